"""What is tried again, how often, and in which process: retry_exceptions, max_retries, max_task_retries, max_calls."""

import os
import signal

import pytest

import ray_rust
from conftest import wait_until
from ray_rust import exceptions
from ray_rust._private import options as option_checks
from ray_rust.cluster_utils import Cluster
from ray_rust.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class Flaky(Exception):
    pass


class VeryFlaky(Flaky):
    pass


def attempt(path):
    """How often this was called with this path."""
    with open(path, "a") as file:
        file.write("x")
    return os.path.getsize(path)


@ray_rust.remote
def raise_until(path, error, successful):
    number = attempt(path)
    if number < successful:
        raise error(f"attempt {number}")
    return number


@ray_rust.remote(max_task_retries=5)
class Caller:
    @ray_rust.method(retry_exceptions=[Flaky])
    def listed(self, path, error, successful):
        return self.plain(path, error, successful)

    @ray_rust.method(retry_exceptions=True, max_task_retries=1)
    def always_once(self, path, error, successful):
        return self.plain(path, error, successful)

    def plain(self, path, error, successful):
        number = attempt(path)
        if number < successful:
            raise error(f"attempt {number}")
        return number

    @ray_rust.method(retry_exceptions=[Flaky])
    def listed_items(self, path, error, successful):
        number = attempt(path)
        yield from range(number)
        if number < successful:
            raise error(f"attempt {number}")


@ray_rust.remote(max_task_retries=5)
class AsyncCaller:
    @ray_rust.method(retry_exceptions=[Flaky])
    async def listed(self, path, error, successful):
        number = attempt(path)
        if number < successful:
            raise error(f"attempt {number}")
        return number


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "attempts")


@pytest.mark.parametrize("error", [Flaky, VeryFlaky])
def test_an_exception_of_a_listed_type_is_retried(cluster, path, error):
    listing = raise_until.options(retry_exceptions=[KeyError, Flaky])
    assert cluster.get(listing.remote(path, error, 3), timeout=60) == 3


def test_an_exception_of_another_type_is_not(cluster, path):
    listing = raise_until.options(retry_exceptions=[VeryFlaky, KeyError])
    with pytest.raises(Flaky, match="attempt 1"):
        cluster.get(listing.remote(path, Flaky, 3), timeout=60)
    assert os.path.getsize(path) == 1


def test_an_empty_list_retries_nothing(cluster, path):
    with pytest.raises(Flaky):
        cluster.get(raise_until.options(retry_exceptions=[]).remote(path, Flaky, 3), timeout=60)
    assert os.path.getsize(path) == 1


def test_listed_exceptions_are_retried_no_more_often_than_allowed(cluster, path):
    listing = raise_until.options(retry_exceptions=(Flaky,), max_retries=2)
    with pytest.raises(Flaky, match="attempt 3"):
        cluster.get(listing.remote(path, Flaky, 10), timeout=60)
    assert os.path.getsize(path) == 3


def test_crashes_and_exceptions_share_their_retries(cluster, path):
    @ray_rust.remote(max_retries=2, retry_exceptions=[Flaky])
    def fail_in_turn(path):
        number = attempt(path)
        if number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        raise Flaky(f"attempt {number}")

    with pytest.raises(Flaky, match="attempt 3"):
        cluster.get(fail_in_turn.remote(path), timeout=60)


def test_a_type_that_exists_in_the_program_only_can_be_listed(cluster, path):
    class Local(Exception):
        pass

    @ray_rust.remote(retry_exceptions=[Local])
    def work(path):
        if attempt(path) < 2:
            raise Local("here")
        return "done"

    assert cluster.get(work.remote(path), timeout=60) == "done"


def test_the_error_of_a_nested_task_is_of_the_types_of_its_cause(cluster, path):
    @ray_rust.remote
    def inner():
        raise Flaky("inside")

    @ray_rust.remote(retry_exceptions=[Flaky], max_retries=1)
    def outer(path):
        attempt(path)
        ray_rust.get(inner.remote())

    with pytest.raises(Flaky, match="inside"):
        cluster.get(outer.remote(path), timeout=60)
    assert os.path.getsize(path) == 2


def test_user_code_exceptions_are_judged_by_their_cause(cluster, path):
    @ray_rust.remote(retry_exceptions=[Flaky], max_retries=1)
    def wrapping(path, error):
        attempt(path)
        try:
            raise error("inside")
        except Exception as cause:
            raise exceptions.UserCodeException from cause

    with pytest.raises(exceptions.UserCodeException):
        cluster.get(wrapping.remote(path, Flaky), timeout=60)
    assert os.path.getsize(path) == 2
    with pytest.raises(exceptions.UserCodeException):
        cluster.get(wrapping.remote(path, KeyError), timeout=60)
    assert os.path.getsize(path) == 3


@pytest.mark.parametrize("make", [Caller, AsyncCaller])
def test_methods_are_retried_when_they_raise_what_is_listed(cluster, path, tmp_path, make):
    caller = make.remote()
    assert cluster.get(caller.listed.remote(path, VeryFlaky, 3), timeout=60) == 3
    other = str(tmp_path / "other")
    with pytest.raises(KeyError):
        cluster.get(caller.listed.remote(other, KeyError, 3), timeout=60)
    assert os.path.getsize(other) == 1


def test_methods_are_retried_as_the_call_or_the_decorator_says(cluster, tmp_path):
    caller = Caller.remote()
    paths = [str(tmp_path / name) for name in ("plain", "given", "once")]
    with pytest.raises(Flaky, match="attempt 1"):
        cluster.get(caller.plain.remote(paths[0], Flaky, 3), timeout=60)
    given = caller.plain.options(retry_exceptions=[Flaky])
    assert cluster.get(given.remote(paths[1], Flaky, 3), timeout=60) == 3
    with pytest.raises(KeyError, match="attempt 2"):
        cluster.get(caller.always_once.remote(paths[2], KeyError, 9), timeout=60)


def test_a_handle_that_was_passed_on_retries_as_well(cluster, path):
    class Local(Exception):
        pass

    @ray_rust.remote(max_task_retries=2)
    class Own:
        @ray_rust.method(retry_exceptions=[Local])
        def work(self, path):
            if attempt(path) < 3:
                raise Local("here")
            return "done"

    @ray_rust.remote
    def call(actor, path):
        return ray_rust.get(actor.work.remote(path))

    assert cluster.get(call.remote(Own.remote(), path), timeout=60) == "done"


def test_streaming_generators_are_retried_when_they_raise_what_is_listed(cluster, path, tmp_path):
    @ray_rust.remote(retry_exceptions=[Flaky])
    def items(path, error):
        number = attempt(path)
        yield from range(number)
        if number < 3:
            raise error(f"attempt {number}")

    assert [cluster.get(ref) for ref in items.remote(path, Flaky)] == [0, 1, 2]
    caller = Caller.remote()
    from_actor = str(tmp_path / "from_actor")
    assert [cluster.get(ref) for ref in caller.listed_items.remote(from_actor, Flaky, 3)] == [0, 1, 2]
    not_retried = list(items.remote(str(tmp_path / "not"), KeyError))
    assert cluster.get(not_retried[0]) == 0
    with pytest.raises(KeyError, match="attempt 1"):
        cluster.get(not_retried[1])
    assert len(not_retried) == 2


@pytest.mark.filterwarnings("ignore:num_returns='dynamic'")
@pytest.mark.parametrize("retry_exceptions", [True, [Flaky]])
def test_dynamic_generators_are_retried_before_their_exception_becomes_an_item(cluster, path, retry_exceptions):
    @ray_rust.remote(num_returns="dynamic", retry_exceptions=retry_exceptions, max_retries=1)
    def items(path, successful):
        number = attempt(path)
        yield "item"
        if number < successful:
            raise Flaky(f"attempt {number}")

    assert [cluster.get(ref) for ref in cluster.get(items.remote(path, 2), timeout=60)] == ["item"]
    *_, last = cluster.get(items.remote(path, 9), timeout=60)
    with pytest.raises(Flaky, match="attempt 4"):
        cluster.get(last)


def test_a_list_that_does_not_load_there_retries_nothing_and_keeps_the_error(cluster, path, monkeypatch, capfd):
    monkeypatch.setattr(option_checks, "retried", lambda _options: b"nonsense")
    listing = raise_until.options(retry_exceptions=[Flaky])
    with pytest.raises(Flaky, match="attempt 1"):
        cluster.get(listing.remote(path, Flaky, 3), timeout=60)
    printed = []
    wait_until(lambda: printed.append(capfd.readouterr().err) or "cannot be loaded" in "".join(printed))


# max_calls


@ray_rust.remote(max_calls=2)
def two_calls():
    return os.getpid()


@ray_rust.remote
def any_calls():
    return os.getpid()


def is_gone(pid):
    return not os.path.exists(f"/proc/{pid}")


@pytest.fixture
def one_cpu(no_cluster):
    ray_rust.init("local", num_cpus=1)


def test_a_process_ends_after_so_many_calls_of_a_function(one_cpu):
    pids = [ray_rust.get(two_calls.remote(), timeout=60) for _ in range(6)]
    assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4] == pids[5]
    wait_until(lambda: all(is_gone(pid) for pid in pids))


def test_a_process_on_another_node_ends_after_so_many_calls_and_another_goes_on(no_cluster):
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    other = cluster.add_node(num_cpus=1)
    try:
        ray_rust.init(cluster.address, log_to_driver=False)

        @ray_rust.remote(max_calls=2, max_retries=0)
        def where():
            return ray_rust.get_runtime_context().get_node_id(), os.getpid()

        there = where.options(scheduling_strategy=NodeAffinitySchedulingStrategy(other.node_id, soft=False))
        places = [ray_rust.get(there.remote(), timeout=60) for _ in range(6)]
        assert {node_id for node_id, _ in places} == {other.node_id}
        pids = [pid for _, pid in places]
        assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4] == pids[5]
        wait_until(lambda: all(is_gone(pid) for pid in pids))
        # Many at once, of which most find their process at its end.
        pids = [pid for _, pid in ray_rust.get([there.remote() for _ in range(10)], timeout=120)]
        assert max(map(pids.count, pids)) <= 2
    finally:
        ray_rust.shutdown()
        cluster.shutdown()


def test_tasks_behind_the_last_call_run_elsewhere_at_no_cost(one_cpu):
    single = ray_rust.remote(max_calls=1, max_retries=0)(any_calls._function)
    pids = ray_rust.get([single.remote() for _ in range(20)], timeout=120)
    assert len(set(pids)) == 20


def test_other_functions_do_not_count(one_cpu):
    first = ray_rust.get(any_calls.remote())
    assert ray_rust.get([any_calls.remote() for _ in range(10)]) == [first] * 10
    assert ray_rust.get([two_calls.remote(), any_calls.remote()]) == [first] * 2
    assert ray_rust.get(two_calls.remote()) == first
    assert ray_rust.get(any_calls.remote()) != first
    wait_until(lambda: is_gone(first))


def test_calls_that_raise_count_and_are_told(one_cpu):
    @ray_rust.remote(max_calls=1, max_retries=0)
    def fail():
        raise ValueError(os.getpid())

    pids = set()
    for _ in range(3):
        with pytest.raises(ValueError, match=r"\d+") as caught:
            ray_rust.get(fail.remote(), timeout=60)
        pids.add(caught.value.args[0])
    assert len(pids) == 3


def test_a_generator_ends_before_its_process(one_cpu):
    @ray_rust.remote(max_calls=1)
    def items():
        for _ in range(5):
            yield os.getpid()

    first, second = [{ray_rust.get(ref) for ref in items.remote()} for _ in range(2)]
    assert len(first) == len(second) == 1
    assert first != second


def test_a_process_stays_as_long_as_others_need_what_it_owns(one_cpu):
    @ray_rust.remote(max_calls=1)
    def make():
        return os.getpid(), [ray_rust.put("kept"), any_calls.remote()]

    pid, (ref, _) = ray_rust.get(make.remote(), timeout=60)
    other = ray_rust.get(any_calls.remote(), timeout=60)
    assert other != pid
    assert ray_rust.get(ref, timeout=60) == "kept"
    assert not is_gone(pid)
    del ref, _
    wait_until(lambda: is_gone(pid))


def test_the_end_of_a_process_that_has_done_its_calls_is_no_crash(one_cpu):
    from ray_rust.util.state import list_workers

    pid = ray_rust.get(ray_rust.remote(max_calls=1)(any_calls._function).remote())
    wait_until(lambda: is_gone(pid))
    ended = wait_until(lambda: [w for w in list_workers(detail=True) if w.pid == pid and not w.is_alive])
    assert "max_calls" in ended[0].exit_detail


def test_a_process_that_has_used_a_gpu_is_not_used_again_unless_told_otherwise(no_cluster):
    ray_rust.init("local", num_cpus=1, num_gpus=1)

    def look():
        return os.getpid()

    once = ray_rust.remote(num_gpus=1)(look)
    assert len({ray_rust.get(once.remote(), timeout=60) for _ in range(3)}) == 3
    often = ray_rust.remote(num_gpus=1, max_calls=0)(look)
    assert len({ray_rust.get(often.remote(), timeout=60) for _ in range(3)}) == 1
