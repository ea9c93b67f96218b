"""Tasks: arguments, results, options, errors, tasks that submit tasks."""

import functools
import gc
import os
import threading

import numpy as np
import pytest

import ray_rust
from ray_rust import TaskResult, exceptions
from ray_rust.exceptions import RayTaskError


@ray_rust.remote
def add(x, y=10, *rest, z=100, **more):
    return x + y + z + sum(rest) + sum(more.values())


@ray_rust.remote
def identity(value):
    return value


@ray_rust.remote
def fail(text):
    raise ValueError(text)


@ray_rust.remote
def fibonacci(n):
    return n if n < 2 else sum(ray_rust.get([fibonacci.remote(n - 1), fibonacci.remote(n - 2)]))


class CustomError(Exception):
    def __init__(self, code, detail):
        super().__init__(f"{code}: {detail}")
        self.code = code


def test_arguments_are_passed_as_in_python(cluster):
    refs = [add.remote(1), add.remote(1, 2), add.remote(1, 2, 3, z=4), add.remote(y=1, x=2, w=5)]
    assert cluster.get(refs) == [111, 103, 10, 108]


def test_references_as_arguments_are_resolved(cluster):
    assert cluster.get(add.remote(cluster.put(1), y=cluster.put(2))) == 103


def test_references_inside_arguments_stay_references(cluster):
    @cluster.remote
    def look(values):
        assert isinstance(values[0], ray_rust.ObjectRef)
        return ray_rust.get(values[0])

    assert cluster.get(look.remote([cluster.put("x")])) == "x"


def test_results_of_tasks_can_be_arguments_of_tasks(cluster):
    ref = identity.remote(0)
    for _ in range(50):
        ref = add.remote(ref, 1, z=0)
    assert cluster.get(ref) == 50


def test_a_task_can_return_a_reference(cluster):
    @cluster.remote
    def make():
        return [ray_rust.put("made")]

    assert cluster.get(cluster.get(make.remote())[0]) == "made"


@pytest.mark.parametrize("size", [10, 200_000, 20_000_000])
def test_large_arguments_and_results_come_through(cluster, size):
    value = os.urandom(size)
    assert cluster.get(identity.remote(value)) == value


def test_arrays_are_not_copied_on_their_way(cluster):
    array = np.arange(1_000_000)

    @cluster.remote
    def look(values):
        return values.flags.writeable, values.sum()

    writeable, total = cluster.get(look.remote(cluster.put(array)))
    assert not writeable
    assert total == array.sum()
    result = cluster.get(identity.remote(array))
    np.testing.assert_array_equal(result, array)
    assert not result.flags.writeable


def test_several_results(cluster):
    @cluster.remote(num_returns=3)
    def three():
        return 1, "b", [3]

    refs = three.remote()
    assert len(refs) == 3
    assert cluster.get(refs) == [1, "b", [3]]
    assert cluster.get(identity.options(num_returns=2).remote([4, 5])) == [4, 5]


def test_no_result(cluster):
    assert identity.options(num_returns=0).remote(1) is None


def test_a_wrong_number_of_results_is_an_error_that_says_so(cluster):
    refs = identity.options(num_returns=3).remote([1, 2])
    with pytest.raises((ValueError, RayTaskError), match="3"):
        cluster.get(refs[0], timeout=20)


def test_closures_lambdas_and_partial_functions(cluster):
    offset = 5
    assert cluster.get(cluster.remote(lambda x: x + offset).remote(1)) == 6
    assert cluster.get(cluster.remote(functools.partial(max, 3)).remote(2)) == 3


def test_functions_that_call_themselves(cluster):
    @cluster.remote
    def factorial(n):
        return 1 if n == 0 else n * ray_rust.get(factorial.remote(n - 1))

    assert cluster.get(factorial.remote(10)) == 3628800


def test_tasks_that_submit_tasks(cluster):
    assert cluster.get(fibonacci.remote(8)) == 21


def test_nested_waiting_does_not_lock_up_a_single_processor(run_script):
    out = run_script(
        """
import ray_rust as ray
ray.init(num_cpus=1)

@ray.remote
def nest(depth):
    return depth if depth == 0 else 1 + ray.get(nest.remote(depth - 1))

@ray.remote
def fan(n):
    return sum(ray.get([nest.remote(1) for _ in range(n)]))

print(ray.get(nest.remote(12)), ray.get([fan.remote(5) for _ in range(4)]))
"""
    )
    assert out == "12 [5, 5, 5, 5]\n"


def test_ten_thousand_tasks(cluster):
    assert sum(cluster.get([add.remote(i, z=0) for i in range(10_000)])) == sum(range(10_000)) + 100_000


def test_tasks_run_side_by_side(cluster, tmp_path):
    @cluster.remote
    def meet(mine, others):
        import time

        open(mine, "w").close()
        deadline = time.monotonic() + 30
        while not all(os.path.exists(other) for other in others):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return True

    paths = [str(tmp_path / str(i)) for i in range(4)]
    assert cluster.get([meet.remote(path, paths) for path in paths]) == [True] * 4


def test_fractions_of_processors(cluster, tmp_path):
    @cluster.remote(num_cpus=0.5)
    def half():
        return 1

    assert sum(cluster.get([half.remote() for _ in range(20)])) == 20


def test_custom_resources(cluster):
    assert cluster.get(identity.options(resources={"gizmo": 1}).remote(1)) == 1


def test_a_function_is_what_it_was_at_its_first_call(cluster):
    state = {"x": 1}

    @cluster.remote
    def read():
        return state["x"]

    assert cluster.get(read.remote()) == 1
    state["x"] = 2
    assert cluster.get(read.remote()) == 1


def test_references_that_a_function_closes_over(cluster):
    def make():
        inner, result = cluster.put(np.arange(1_000_000)), identity.remote(5)
        both = [inner, result, inner]

        @cluster.remote
        def look(i, *, j):
            assert both[2] == inner
            array, five = ray_rust.get(both[:2])
            return array[i] + five + j

        return look

    look = make()
    assert cluster.get([look.remote(i, j=100) for i in range(3)]) == [105, 106, 107]

    @cluster.remote
    def nested():
        return ray_rust.get(look.remote(1, j=1))

    assert cluster.get(nested.remote()) == 7
    # The caller's own references may be gone while a task is under way.
    ref = look.options(num_cpus=0.5).remote(3, j=0)
    look = nested = None
    gc.collect()
    assert cluster.get(ref) == 8


def test_references_in_global_variables_of_a_script(run_script):
    out = run_script(
        """
import ray_rust as ray
data = ray.put([1, 2, 3])

@ray.remote
def look(i):
    return ray.get(data)[i]

@ray.remote
class Keeper:
    refs = [data]

    def look(self, i):
        return ray.get(self.refs[0])[i]

print(ray.get([look.remote(i) for i in range(3)]), ray.get(Keeper.remote().look.remote(2)))
"""
    )
    assert out == "[1, 2, 3] 3\n"


def test_the_culprit_is_named_beside_references(cluster):
    ref, lock = cluster.put(1), threading.Lock()

    @cluster.remote
    def uses_both():
        return ref, lock

    with pytest.raises(TypeError, match=r"'lock' that function"):
        uses_both.remote()


def test_a_remote_function_can_be_an_argument(cluster):
    @cluster.remote
    def call(function, value):
        return ray_rust.get(function.remote(value))

    assert cluster.get(call.remote(identity, 3)) == 3
    assert cluster.get(call.remote(add.options(num_cpus=0), 3)) == 113


def test_two_functions_of_one_name_are_not_mixed_up(cluster):
    def make(result):
        @cluster.remote
        def same():
            return result

        return same

    functions = [make(i) for i in range(10)]
    assert cluster.get([function.remote() for function in functions]) == list(range(10))


def test_options_keep_the_function_as_it_was(cluster):
    changed = identity.options(num_returns=0)
    assert changed.remote(1) is None
    assert cluster.get(identity.remote(1)) == 1
    assert cluster.get(changed.options(num_returns=1).remote(2)) == 2


# Errors


def test_an_exception_arrives_as_itself_with_the_remote_traceback(cluster):
    with pytest.raises(ValueError, match="kaput") as caught:
        cluster.get(fail.remote("kaput"))
    error = caught.value
    assert isinstance(error, RayTaskError)
    assert error.pid != os.getpid()
    text = str(error)
    assert "fail()" in text
    assert "in fail" in text
    assert "test_tasks.py" in text
    assert "ValueError: kaput" in text


def test_an_exception_of_ones_own_keeps_its_attributes(cluster):
    @cluster.remote
    def raise_custom():
        raise CustomError(5, "x")

    with pytest.raises(CustomError) as caught:
        cluster.get(raise_custom.remote())
    assert caught.value.code == 5


def test_an_exception_class_of_the_function_itself(cluster):
    class Local(Exception):
        pass

    @cluster.remote
    def raise_local():
        raise Local("x")

    with pytest.raises(Local):
        cluster.get(raise_local.remote())


def test_an_exception_goes_through_tasks_that_depend_on_it(cluster):
    with pytest.raises(ValueError, match="first"):
        cluster.get(add.remote(fail.remote("first")))

    @cluster.remote
    def get_it(refs):
        return ray_rust.get(refs[0])

    with pytest.raises(ValueError, match="second"):
        cluster.get(get_it.remote([fail.remote("second")]))


def test_every_result_of_a_failed_task_has_the_error(cluster):
    for ref in fail.options(num_returns=2).remote("both"):
        with pytest.raises(ValueError, match="both"):
            cluster.get(ref)


def test_the_first_error_of_a_list_is_raised(cluster):
    with pytest.raises(ValueError, match="a"):
        cluster.get([identity.remote(1), fail.remote("a"), fail.remote("b")])


def test_a_failed_task_does_not_harm_the_next(cluster):
    for _ in range(20):
        with pytest.raises(ValueError, match="x"):
            cluster.get(fail.remote("x"))
    assert cluster.get(identity.remote(1)) == 1


class NeedsTwo(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


@pytest.mark.parametrize(
    "make",
    [lambda: KeyError("k"), lambda: OSError(2, "no"), lambda: StopIteration(1), AssertionError, lambda: NeedsTwo(1, 2)],
    ids=["key", "os", "stop", "assertion", "constructor"],
)
def test_errors_of_all_kinds_come_through(cluster, make):
    @cluster.remote
    def raise_it():
        raise make()

    with pytest.raises(type(make())):
        cluster.get(raise_it.remote())


def test_an_unpicklable_argument_names_the_culprit_and_the_function(cluster):
    with pytest.raises(TypeError, match=r"identity\(\).*lock"):
        identity.remote({"a": threading.Lock()})


def test_an_unpicklable_function_names_the_culprit(cluster):
    lock = threading.Lock()

    @cluster.remote
    def uses_lock():
        return lock

    with pytest.raises(TypeError, match=r"'uses_lock'.*'lock'"):
        uses_lock.remote()


def test_an_unpicklable_result_names_the_culprit(cluster):
    @cluster.remote
    def make():
        return [threading.Lock()]

    with pytest.raises(TypeError, match="item 0 of a list"):
        cluster.get(make.remote())


def test_a_value_that_does_not_load_is_an_error(cluster):
    class Mine:
        def __reduce__(self):
            return (_explode, ())

    with pytest.raises(RuntimeError, match="loading failed"):
        cluster.get(identity.remote(Mine()), timeout=30)


def _explode():
    raise RuntimeError("loading failed")


def test_an_exit_in_a_task_is_an_error_for_the_caller(cluster):
    @cluster.remote(max_retries=0)
    def leave():
        raise SystemExit(3)

    with pytest.raises(exceptions.RayError):
        cluster.get(leave.remote(), timeout=30)
    assert cluster.get(identity.remote(1)) == 1


def test_exceptions_are_retried_only_if_asked(cluster, tmp_path):
    @cluster.remote
    def count(path):
        with open(path, "a") as file:
            file.write("x")
        if os.path.getsize(path) < 3:
            raise ValueError("again")
        return "done"

    once, thrice = str(tmp_path / "once"), str(tmp_path / "thrice")
    with pytest.raises(ValueError, match="again"):
        cluster.get(count.remote(once))
    assert os.path.getsize(once) == 1
    assert cluster.get(count.options(retry_exceptions=True).remote(thrice)) == "done"
    assert os.path.getsize(thrice) == 3


def test_task_results_are_ends_without_exceptions(cluster):
    results = TaskResult.of_all([identity.remote(5), fail.remote("no")], timeout=30)
    assert [result.ok for result in results] == [True, False]
    assert results[0].unwrap() == 5
    assert isinstance(results[1].error, ValueError)
    assert "ValueError" in repr(results[1])
    with pytest.raises(ValueError, match="no"):
        results[1].unwrap()


def test_the_runtime_context_tells_where_code_runs(cluster):
    @cluster.remote
    def look():
        context = ray_rust.get_runtime_context()
        return {
            "job": context.get_job_id(),
            "node": context.get_node_id(),
            "worker": context.get_worker_id(),
            "task": context.get_task_id(),
            "name": context.get_task_name(),
            "actor": context.get_actor_id(),
            "namespace": context.namespace,
        }

    here = ray_rust.get_runtime_context()
    ref = look.options(name="looking").remote()
    there = cluster.get(ref)
    assert there["job"] == here.get_job_id()
    assert there["node"] == here.get_node_id()
    assert there["worker"] != here.get_worker_id()
    assert there["task"] == ref.task_id().hex()
    assert there["name"] == "looking"
    assert there["actor"] is None
    assert there["namespace"] == here.namespace == "tests"
    assert here.get_actor_id() is None


def test_a_cancelled_task_ends_with_an_error(cluster, tmp_path):
    @cluster.remote
    def run_for_ever(path):
        import time

        open(path, "w").close()
        while True:
            time.sleep(0.01)

    from conftest import wait_until

    path = str(tmp_path / "started")
    ref = run_for_ever.remote(path)
    wait_until(lambda: os.path.exists(path))
    cluster.cancel(ref)
    with pytest.raises(exceptions.TaskCancelledError):
        cluster.get(ref, timeout=30)


def test_a_task_that_waits_for_its_turn_can_be_cancelled(cluster, tmp_path):
    @cluster.remote
    def block(path):
        import time

        while not os.path.exists(path):
            time.sleep(0.01)

    path = str(tmp_path / "go")
    blockers = [block.remote(path) for _ in range(4)]
    waiting = identity.options(num_cpus=4).remote(1)
    cluster.cancel(waiting)
    with pytest.raises(exceptions.TaskCancelledError):
        cluster.get(waiting, timeout=30)
    open(path, "w").close()
    cluster.get(blockers)


def test_tasks_that_wait_for_tasks_a_hundred_deep_need_no_more_than_two_processors(no_cluster):
    ray_rust.init("local", num_cpus=2)

    @ray_rust.remote
    def nest(depth):
        return depth if depth == 0 else 1 + ray_rust.get(nest.remote(depth - 1))

    assert ray_rust.get([nest.remote(100), nest.remote(100)], timeout=60) == [100, 100]


# Those who submit


@pytest.fixture
def one_cpu(no_cluster):
    ray_rust.init("local", num_cpus=1)
    return ray_rust


@ray_rust.remote(num_cpus=0)
class Submitter:
    """Submits from a process of its own."""

    def submit_long(self, count, until):
        refs = [pause.remote(until) for _ in range(count)]
        return sum(ray_rust.get(refs))

    def submit_one(self):
        return ray_rust.get(identity.remote("done"))


@ray_rust.remote
def pause(until):
    """Takes a moment, until the file is there. Returns whether it was not."""
    if os.path.exists(until):
        return False
    threading.Event().wait(0.002)
    return True


def test_who_has_one_task_does_not_wait_behind_somebody_elses_thousands(one_cpu, tmp_path):
    many, one = Submitter.remote(), Submitter.remote()
    done = tmp_path / "done"
    waited = many.submit_long.remote(5000, str(done))
    for _ in range(3):
        assert one_cpu.get(one.submit_one.remote(), timeout=60) == "done"
    done.touch()
    assert one_cpu.get(waited, timeout=60) < 5000


def test_all_who_submit_get_all_their_results(cluster):
    @cluster.remote(num_cpus=0)
    class Counter:
        def count(self, tasks):
            return sum(ray_rust.get([identity.remote(1) for _ in range(tasks)]))

    counters = [Counter.remote() for _ in range(6)]
    for _ in range(5):
        assert cluster.get([counter.count.remote(200) for counter in counters]) == [200] * 6


def test_a_worker_that_is_lost_while_leases_change_hands_costs_no_result(cluster, tmp_path):
    @cluster.remote(num_cpus=0)
    class Counter:
        def count(self, tasks, victim):
            refs = [die_once.remote(victim if number == tasks // 2 else None) for number in range(tasks)]
            return sum(ray_rust.get(refs))

    @cluster.remote
    def die_once(victim):
        if victim is not None and not os.path.exists(victim):
            open(victim, "w").close()
            os._exit(1)
        return 1

    counters = [Counter.remote() for _ in range(6)]
    for turn in range(3):
        victims = [str(tmp_path / f"{turn}-{number}") for number in range(6)]
        counts = [counter.count.remote(100, victim) for counter, victim in zip(counters, victims)]
        assert cluster.get(counts, timeout=60) == [100] * 6


def test_as_many_results_as_promised_have_to_be_returned(cluster):
    @cluster.remote(num_returns=2)
    def give(value):
        return value

    assert cluster.get(give.remote((1, 2))) == [1, 2]
    with pytest.raises(ValueError, match="returned 3 values"):
        cluster.get(give.remote([1, 2, 3])[0])
    with pytest.raises(TypeError, match="cannot be iterated over"):
        cluster.get(give.remote(1)[1])
