"""Cancelling: tasks, calls of actors, generators; before they begin and while they run; with what they have submitted."""

import asyncio
import os
import threading
import time

import pytest

import ray_rust
from conftest import wait_until
from ray_rust import exceptions
from ray_rust.cluster_utils import Cluster
from ray_rust.util.scheduling_strategies import NodeAffinitySchedulingStrategy

HOWS = pytest.mark.parametrize("force", [False, True])


def begin(started):
    open(started, "w").close()


def wait_for_ever(started=None):
    if started is not None:
        begin(started)
    while True:
        time.sleep(0.01)


@ray_rust.remote
def run_for_ever(started):
    wait_for_ever(started)


@ray_rust.remote(num_cpus=0)
def parent_of(child_started):
    """Waits for a child that never ends."""
    ray_rust.get(run_for_ever.options(num_cpus=0).remote(child_started))


@ray_rust.remote(num_cpus=0)
def grandparent_of(child_started):
    ray_rust.get(parent_of.remote(child_started))


def noting_end(path):
    """A task that says how it ended."""

    @ray_rust.remote(num_cpus=0)
    def child(path):
        try:
            wait_for_ever(f"{path}.started")
        except KeyboardInterrupt:
            open(f"{path}.interrupted", "w").close()
            raise

    return child.remote(path)


@ray_rust.remote
class Plain:
    def ping(self):
        return "pong"

    def until_canceled(self, started):
        open(started, "w").close()
        while not ray_rust.get_runtime_context().is_canceled():
            time.sleep(0.002)
        return "canceled"

    def with_child(self, path):
        child = noting_end(path)
        wait_until(lambda: os.path.exists(f"{path}.started"))
        return ray_rust.get(child)


@ray_rust.remote
class Async:
    def __init__(self):
        self.seen = []

    async def sleep(self, started):
        begin(started)
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            self.seen.append("cancelled")
            raise

    async def get_seen(self):
        return self.seen

    async def with_child(self, path):
        await noting_end(path)

    async def ask(self):
        return ray_rust.get_runtime_context().is_canceled()


def assert_cancelled(ref):
    with pytest.raises(exceptions.TaskCancelledError) as caught:
        ray_rust.get(ref, timeout=60)
    assert caught.value.task_id == ref.task_id()


def exists(path):
    wait_until(lambda: os.path.exists(path), what=f"{path}")


@HOWS
def test_a_running_task_is_cancelled_with_all_below_it(cluster, tmp_path, force):
    started = str(tmp_path / "started")
    ref = grandparent_of.remote(started)
    exists(started)
    ray_rust.cancel(ref, force=force)
    assert_cancelled(ref)
    wait_until(lambda: not running("run_for_ever") and not running("parent_of"))


def running(name):
    from ray_rust.util.state import list_tasks

    return [task for task in list_tasks() if task.name == name and task.state == "RUNNING"]


@HOWS
def test_without_recursion_the_children_go_on(cluster, tmp_path, force):
    path, keeper = str(tmp_path / "child"), Keeper.options(num_cpus=0).remote()

    @ray_rust.remote(num_cpus=0)
    def parent(keeper):
        child = gated_child.remote(path)
        ray_rust.get(keeper.keep.remote([child]))
        begin(f"{path}.kept")
        ray_rust.get(child)

    ref = parent.remote(keeper)
    exists(f"{path}.started")
    exists(f"{path}.kept")
    ray_rust.cancel(ref, force=force, recursive=False)
    assert_cancelled(ref)
    open(f"{path}.go", "w").close()
    if force:
        # Its owner is gone, and with that the child.
        return
    assert ray_rust.get(keeper.result.remote(), timeout=60) == "ended"


@ray_rust.remote(num_cpus=0)
def gated_child(path):
    open(f"{path}.started", "w").close()
    while not os.path.exists(f"{path}.go"):
        time.sleep(0.002)
    return "ended"


@ray_rust.remote
class Keeper:
    def keep(self, box):
        self.box = box

    def result(self):
        return ray_rust.get(self.box[0])


def test_children_that_wait_for_their_turn_never_begin(cluster, tmp_path):
    path = tmp_path / "begun"

    @ray_rust.remote(resources={"gizmo": 2})
    def child():
        path.touch()

    @ray_rust.remote(num_cpus=0)
    def parent(started):
        children = [child.remote() for _ in range(3)]
        open(started, "w").close()
        ray_rust.get(children)

    @ray_rust.remote(num_cpus=0, resources={"gizmo": 2})
    def block(started):
        wait_for_ever(started)

    blocked, started = str(tmp_path / "blocked"), str(tmp_path / "started")
    blocker = block.remote(blocked)
    exists(blocked)
    ref = parent.remote(started)
    exists(started)
    ray_rust.cancel(ref)
    assert_cancelled(ref)
    ray_rust.cancel(blocker)
    assert_cancelled(blocker)
    # If they were still waiting they would come before this.
    assert ray_rust.get(ray_rust.remote(resources={"gizmo": 2})(lambda: "ran").remote(), timeout=60) == "ran"
    assert not path.exists()


def test_calls_of_actors_are_cancelled_with_the_task_that_made_them(cluster, tmp_path):
    actor, started = Async.remote(), str(tmp_path / "started")

    @ray_rust.remote(num_cpus=0)
    def parent():
        ray_rust.get(actor.sleep.remote(started))

    ref = parent.remote()
    exists(started)
    ray_rust.cancel(ref)
    assert_cancelled(ref)
    assert wait_until(lambda: ray_rust.get(actor.get_seen.remote(), timeout=60)) == ["cancelled"]


def test_force_ends_the_children_but_not_their_actors(cluster, tmp_path):
    actor, started = Async.remote(), str(tmp_path / "started")

    @ray_rust.remote(num_cpus=0)
    def parent():
        ray_rust.get(actor.sleep.remote(started))

    ref = parent.remote()
    exists(started)
    ray_rust.cancel(ref, force=True)
    assert_cancelled(ref)
    assert wait_until(lambda: ray_rust.get(actor.get_seen.remote(), timeout=60)) == ["cancelled"]


@pytest.mark.parametrize("make", [Plain, Async])
def test_what_a_call_has_submitted_is_cancelled_with_it(cluster, tmp_path, make):
    actor, path = make.remote(), str(tmp_path / "child")
    ref = actor.with_child.remote(path)
    exists(f"{path}.started")
    ray_rust.cancel(ref)
    exists(f"{path}.interrupted")
    assert_cancelled(ref)


def test_a_running_call_can_ask_whether_it_was_cancelled(cluster, tmp_path):
    actor, started = Plain.remote(), str(tmp_path / "started")
    ref = actor.until_canceled.remote(started)
    exists(started)
    ray_rust.cancel(ref)
    assert ray_rust.get(ref, timeout=60) == "canceled"
    assert ray_rust.get(actor.ping.remote(), timeout=60) == "pong"


def test_a_call_of_an_async_actor_cannot_ask(cluster):
    with pytest.raises(RuntimeError, match="CancelledError"):
        ray_rust.get(Async.remote().ask.remote(), timeout=60)


def test_a_call_that_waits_behind_another_is_cancelled(cluster, tmp_path):
    actor, started = Plain.remote(), str(tmp_path / "started")
    first = actor.until_canceled.remote(started)
    second = actor.ping.remote()
    exists(started)
    ray_rust.cancel(second)
    assert_cancelled(second)
    ray_rust.cancel(first)
    assert ray_rust.get(first, timeout=60) == "canceled"


def test_a_call_of_an_actor_cannot_be_cancelled_with_force(cluster, tmp_path):
    actor, started = Plain.remote(), str(tmp_path / "started")
    ref = actor.until_canceled.remote(started)
    with pytest.raises(ValueError, match=r"force.*kill"):
        ray_rust.cancel(ref, force=True)
    ray_rust.cancel(ref)
    try:
        assert ray_rust.get(ref, timeout=60) == "canceled"
    except exceptions.TaskCancelledError:
        # It had not begun.
        assert not os.path.exists(started)


def test_what_has_ended_cannot_be_cancelled_any_more(cluster):
    actor = Plain.remote()
    ref = actor.ping.remote()
    assert ray_rust.get(ref) == "pong"
    ray_rust.cancel(ref)
    ray_rust.cancel(ref, force=True)
    assert ray_rust.get(ref) == "pong"


def test_who_was_given_a_reference_can_cancel_its_task(cluster, tmp_path):
    started = str(tmp_path / "started")

    @ray_rust.remote(num_cpus=0)
    def cancel(box, force):
        ray_rust.cancel(box[0], force=force)

    for force in (False, True):
        ref = run_for_ever.options(num_cpus=0).remote(started)
        exists(started)
        ray_rust.get(cancel.remote([ref], force), timeout=60)
        assert_cancelled(ref)
        os.remove(started)


def test_force_does_not_touch_the_task_before(no_cluster, tmp_path):
    """Both are with one process, and the first must not pay for the second."""
    ray_rust.init("local", num_cpus=1)
    go = tmp_path / "go"

    @ray_rust.remote(max_retries=0)
    def short(wait):
        while wait and not go.exists():
            time.sleep(0.001)
        return os.getpid()

    ray_rust.get([short.remote(False) for _ in range(50)])
    first = short.remote(True)
    others = [short.remote(False) for _ in range(20)]
    for ref in others:
        ray_rust.cancel(ref, force=True)
    go.touch()
    assert ray_rust.get(first, timeout=60)
    for ref in others:
        assert_cancelled(ref)


def test_cancelled_tasks_are_not_retried(cluster, tmp_path):
    path = tmp_path / "attempts"

    @ray_rust.remote(max_retries=5, retry_exceptions=True)
    def attempt():
        with open(path, "a") as file:
            file.write("x")
        wait_for_ever()

    for force in (False, True):
        ref = attempt.remote()
        wait_until(path.exists)
        ray_rust.cancel(ref, force=force)
        assert_cancelled(ref)
        assert path.read_text() == "x"
        path.unlink()


def test_an_argument_that_was_cancelled_is_told_to_who_waits_for_it(cluster, tmp_path):
    started = str(tmp_path / "started")
    first = run_for_ever.remote(started)
    second = ray_rust.remote(lambda value: value).remote(first)
    exists(started)
    ray_rust.cancel(first)
    with pytest.raises(exceptions.TaskCancelledError):
        ray_rust.get(second, timeout=60)


@HOWS
def test_a_streaming_generator_is_cancelled_with_its_children(cluster, tmp_path, force):
    started = str(tmp_path / "started")

    @ray_rust.remote(num_cpus=0)
    def items():
        yield 0
        child = run_for_ever.options(num_cpus=0).remote(started)
        yield 1
        ray_rust.get(child)

    generator = items.remote()
    assert [ray_rust.get(next(generator)) for _ in range(2)] == [0, 1]
    exists(started)
    ray_rust.cancel(generator, force=force)
    with pytest.raises(exceptions.TaskCancelledError):
        for ref in generator:
            ray_rust.get(ref, timeout=60)
    wait_until(lambda: not running("run_for_ever"))


def test_a_threaded_actor_goes_on_with_its_other_calls(cluster, tmp_path):
    actor = Plain.options(max_concurrency=2).remote()
    started = str(tmp_path / "started")
    ref = actor.until_canceled.remote(started)
    exists(started)
    assert ray_rust.get(actor.ping.remote(), timeout=60) == "pong"
    ray_rust.cancel(ref)
    assert ray_rust.get(ref, timeout=60) == "canceled"


def test_cancelling_from_several_threads_is_cancelling_once(cluster, tmp_path):
    started = str(tmp_path / "started")
    ref = run_for_ever.remote(started)
    exists(started)
    threads = [threading.Thread(target=ray_rust.cancel, args=(ref,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_cancelled(ref)


# On several nodes


@pytest.fixture
def three_nodes(no_cluster):
    """The ids of the nodes of a cluster, the head's, where this process is, first."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes = [made.head_node, *(made.add_node(num_cpus=1) for _ in range(2))]
    ray_rust.init(made.address, namespace="tests", log_to_driver=False)
    yield [node.node_id for node in nodes]
    ray_rust.shutdown()
    made.shutdown()


def on(node_id):
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False)}


@ray_rust.remote
def chain(nodes, path):
    """Calls itself on the next node and waits for that; on the last one, until it is cancelled."""
    with open(f"{path}.{len(nodes)}", "w") as file:
        file.write(ray_rust.get_runtime_context().get_node_id())
    if nodes:
        ray_rust.get(chain.options(**on(nodes[0])).remote(nodes[1:], path))
    else:
        wait_for_ever()


@HOWS
def test_children_and_grandchildren_on_other_nodes_are_cancelled_with_a_task(three_nodes, tmp_path, force):
    head, first, second = three_nodes
    ref = chain.options(**on(first)).remote([second, head, first], str(tmp_path / "at"))
    places = [tmp_path / f"at.{left}" for left in (3, 2, 1, 0)]
    wait_until(lambda: places[-1].exists() and places[-1].read_text())
    assert [place.read_text() for place in places] == [first, second, head, first]
    assert len(running("chain")) == 4
    ray_rust.cancel(ref, force=force, recursive=True)
    assert_cancelled(ref)
    wait_until(lambda: not running("chain"), what="the end of the tasks below it")


def test_children_on_another_node_go_on_without_recursion(three_nodes, tmp_path):
    head, first, second = three_nodes
    path, keeper = str(tmp_path / "child"), Keeper.options(**on(head)).remote()

    @ray_rust.remote
    def parent(keeper):
        child = gated_child.options(**on(second)).remote(path)
        ray_rust.get(keeper.keep.remote([child]))
        begin(f"{path}.kept")
        ray_rust.get(child)

    ref = parent.options(**on(first)).remote(keeper)
    exists(f"{path}.started")
    exists(f"{path}.kept")
    ray_rust.cancel(ref, recursive=False)
    assert_cancelled(ref)
    assert [task.node_id for task in running("gated_child")] == [second]
    begin(f"{path}.go")
    assert ray_rust.get(keeper.result.remote(), timeout=60) == "ended"
