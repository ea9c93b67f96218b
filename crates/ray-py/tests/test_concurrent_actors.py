"""Actors that run several calls at once: in event loops, in threads, in concurrency groups."""

import asyncio
import contextvars
import os
import signal
import threading
import time

import pytest

import ray_rust
from conftest import DEADLINE_S, wait_until
from ray_rust import exceptions


@ray_rust.remote
class Async:
    def __init__(self):
        self.event = asyncio.Event()
        self.waiting = 0
        self.seen = []

    async def echo(self, value):
        return value

    async def wait_for_event(self):
        self.waiting += 1
        await self.event.wait()
        return self.waiting

    async def set_event(self):
        self.event.set()

    async def count(self):
        return self.waiting

    def plain(self, value):
        return value, asyncio.get_running_loop() is not None

    async def fail(self):
        await asyncio.sleep(0)
        raise KeyError("gone")

    async def sleep_until_cancelled(self):
        try:
            self.waiting += 1
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            self.seen.append("cancelled")
            raise

    async def get_seen(self):
        return self.seen

    async def task_id(self, wait):
        first = ray_rust.get_runtime_context().get_task_id()
        await asyncio.sleep(0.01 if wait else 0)
        return first, ray_rust.get_runtime_context().get_task_id()

    async def leave(self):
        ray_rust.actor.exit_actor()

    async def crash(self):
        os.kill(os.getpid(), signal.SIGKILL)


def test_coroutines_of_one_actor_run_side_by_side(cluster):
    actor = Async.remote()
    waiting = [actor.wait_for_event.remote() for _ in range(500)]
    wait_until(lambda: ray_rust.get(actor.count.remote()) == 500)
    ready, _ = ray_rust.wait(waiting, num_returns=500, timeout=0)
    assert ready == []
    ray_rust.get(actor.set_event.remote())
    assert ray_rust.get(waiting) == [500] * 500


def test_thousands_of_calls_are_answered(cluster):
    actor = Async.remote()
    assert ray_rust.get([actor.echo.remote(i) for i in range(5000)]) == list(range(5000))
    assert [ray_rust.get(actor.echo.remote(i)) for i in range(100)] == list(range(100))


def test_no_more_calls_run_than_the_limit(cluster):
    @ray_rust.remote(max_concurrency=3)
    class Meeting:
        def __init__(self):
            self.came = 0
            self.present = 0
            self.peak = 0

        async def meet(self):
            self.came += 1
            self.present += 1
            self.peak = max(self.peak, self.present)
            mine = (self.came + 2) // 3 * 3
            while self.came < mine:  # noqa: ASYNC110 - an event would do no better
                await asyncio.sleep(0)
            self.present -= 1

        async def get_peak(self):
            return self.peak

    actor = Meeting.remote()
    ray_rust.get([actor.meet.remote() for _ in range(9)], timeout=DEADLINE_S)
    assert ray_rust.get(actor.get_peak.remote()) == 3


def test_a_call_that_waits_for_its_turn_is_cancelled(cluster):
    actor = Async.options(max_concurrency=1).remote()
    first = actor.wait_for_event.remote()
    second = actor.echo.remote(1)
    ray_rust.cancel(second)
    with pytest.raises(exceptions.TaskCancelledError):
        ray_rust.get(second, timeout=DEADLINE_S)
    ray_rust.cancel(first)
    with pytest.raises(exceptions.TaskCancelledError):
        ray_rust.get(first, timeout=DEADLINE_S)


def test_plain_methods_run_in_the_loop(cluster):
    actor = Async.remote()
    assert ray_rust.get(actor.plain.remote(1)) == (1, True)
    assert ray_rust.get(actor.__ray_ready__.remote()) is True


def test_an_exception_of_a_coroutine_comes_back(cluster):
    actor = Async.remote()
    with pytest.raises(KeyError, match="gone"):
        ray_rust.get(actor.fail.remote())
    assert ray_rust.get(actor.echo.remote(1)) == 1


def test_large_values_and_references_pass(cluster):
    actor = Async.remote()
    large = ray_rust.put(b"x" * 1_000_000)
    assert ray_rust.get(actor.echo.remote(large)) == b"x" * 1_000_000
    inner = ray_rust.get(actor.echo.remote([ray_rust.put(5)]))
    assert ray_rust.get(inner[0]) == 5


def test_a_running_coroutine_is_cancelled(cluster):
    actor = Async.remote()
    ref = actor.sleep_until_cancelled.remote()
    wait_until(lambda: ray_rust.get(actor.count.remote()) == 1)
    ray_rust.cancel(ref)
    with pytest.raises(exceptions.TaskCancelledError):
        ray_rust.get(ref, timeout=DEADLINE_S)
    assert ray_rust.get(actor.get_seen.remote()) == ["cancelled"]


def test_each_call_knows_its_task(cluster):
    actor = Async.remote()
    refs = [actor.task_id.remote(i % 2) for i in range(20)]
    ids = ray_rust.get(refs)
    assert all(first == second for first, second in ids)
    assert len({first for first, _ in ids}) == 20


def test_each_call_has_a_context_of_its_own(cluster):
    @ray_rust.remote
    class Contexts:
        def __init__(self):
            self.variable = contextvars.ContextVar("variable", default=None)

        async def swap(self, value):
            before = self.variable.get()
            self.variable.set(value)
            await asyncio.sleep(0)
            return before, self.variable.get()

    actor = Contexts.remote()
    assert ray_rust.get([actor.swap.remote(i) for i in range(10)]) == [(None, i) for i in range(10)]


def test_constructors_may_be_coroutines_and_start_tasks(cluster):
    @ray_rust.remote
    class Starter:
        async def __init__(self, start):
            await asyncio.sleep(0)
            self.ticks = start
            self.task = asyncio.create_task(self.tick())

        async def tick(self):
            while True:
                self.ticks += 1
                await asyncio.sleep(0.001)

        async def get_ticks(self):
            return self.ticks

    actor = Starter.remote(10)
    wait_until(lambda: ray_rust.get(actor.get_ticks.remote()) > 15)


def test_coroutines_call_tasks_and_actors(cluster):
    @ray_rust.remote
    def double(x):
        return 2 * x

    @ray_rust.remote
    class Caller:
        def __init__(self, other):
            self.other = other

        async def call(self, x):
            # Blocks its loop, as it may.
            return ray_rust.get(double.remote(x)) + ray_rust.get(self.other.echo.remote(x))

    caller = Caller.remote(Async.remote())
    assert ray_rust.get([caller.call.remote(i) for i in range(20)]) == [3 * i for i in range(20)]


def test_calls_do_not_wait_for_the_arguments_of_others(cluster):
    @ray_rust.remote
    def slow():
        time.sleep(1000)

    actor = Async.remote()
    argument = slow.remote()
    blocked = actor.echo.remote(argument)
    assert ray_rust.get(actor.echo.remote(1), timeout=DEADLINE_S) == 1
    ray_rust.cancel(argument, force=True)
    with pytest.raises(exceptions.RayError):
        ray_rust.get(blocked)


def test_an_async_actor_leaves_by_itself(cluster):
    actor = Async.remote()
    waiting = actor.wait_for_event.remote()
    ray_rust.get(actor.echo.remote(1))
    with pytest.raises(exceptions.ActorDiedError):
        ray_rust.get(actor.leave.remote(), timeout=DEADLINE_S)
    with pytest.raises(exceptions.ActorDiedError):
        ray_rust.get(waiting, timeout=DEADLINE_S)


def test_the_crash_of_an_async_actor_reaches_all_its_callers(cluster):
    actor = Async.remote()
    waiting = [actor.wait_for_event.remote() for _ in range(10)]
    ray_rust.get(actor.echo.remote(1))
    actor.crash.remote()
    for ref in waiting:
        with pytest.raises(exceptions.ActorDiedError):
            ray_rust.get(ref, timeout=DEADLINE_S)


def test_an_async_actor_restarts_and_retries(cluster):
    actor = Async.options(max_restarts=1, max_task_retries=-1).remote()
    pid = ray_rust.get(actor.__ray_call__.remote(lambda self: os.getpid()))
    waiting = [actor.wait_for_event.remote() for _ in range(5)]
    wait_until(lambda: ray_rust.get(actor.count.remote()) == 5)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: ray_rust.get(actor.count.remote()) == 5)
    ray_rust.get(actor.set_event.remote())
    assert ray_rust.get(waiting, timeout=DEADLINE_S) == [5] * 5


def test_calls_made_before_the_last_handle_went_still_run(cluster, tmp_path):
    marker = tmp_path / "ran"

    @ray_rust.remote
    class Writer:
        async def write(self):
            await asyncio.sleep(0.1)
            marker.write_text("yes")
            return os.getpid()

    ref = Writer.remote().write.remote()
    pid = ray_rust.get(ref, timeout=DEADLINE_S)
    assert marker.read_text() == "yes"
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"))


@ray_rust.remote
class Threaded:
    def __init__(self, parties=1):
        self.barrier = threading.Barrier(parties)
        self.local = threading.local()

    def meet(self):
        self.barrier.wait(DEADLINE_S)
        return threading.get_ident()

    def echo(self, value):
        return value

    def block_on(self, refs):
        return ray_rust.get(refs[0])

    def task_id(self):
        before = ray_rust.get_runtime_context().get_task_id()
        self.barrier.wait(DEADLINE_S)
        return before, ray_rust.get_runtime_context().get_task_id()

    def count_on_this_thread(self):
        self.local.count = getattr(self.local, "count", 0) + 1
        return self.local.count

    def leave(self):
        ray_rust.actor.exit_actor()


def test_calls_of_a_threaded_actor_run_side_by_side(cluster):
    actor = Threaded.options(max_concurrency=8).remote(8)
    threads = ray_rust.get([actor.meet.remote() for _ in range(8)], timeout=DEADLINE_S)
    assert len(set(threads)) == 8
    assert len(ray_rust.get([actor.meet.remote() for _ in range(64)], timeout=DEADLINE_S)) == 64


def test_no_more_threads_run_than_the_limit(cluster):
    actor = Threaded.options(max_concurrency=2).remote(3)
    refs = [actor.meet.remote() for _ in range(3)]
    ready, _ = ray_rust.wait(refs, timeout=0.3)
    assert ready == []
    ray_rust.kill(actor)


def test_short_calls_of_a_threaded_actor(cluster):
    actor = Threaded.options(max_concurrency=4).remote()
    assert ray_rust.get([actor.echo.remote(i) for i in range(2000)]) == list(range(2000))
    assert [ray_rust.get(actor.echo.remote(i)) for i in range(50)] == list(range(50))


def test_a_call_that_waits_for_another_of_its_actor_gets_it(cluster):
    actor = Threaded.options(max_concurrency=2).remote()
    gate = actor.meet.remote()
    assert ray_rust.get(actor.block_on.remote([gate]), timeout=DEADLINE_S)
    inner = actor.echo.remote(7)
    assert ray_rust.get([actor.block_on.remote([inner]) for _ in range(20)], timeout=DEADLINE_S) == [7] * 20


def test_each_thread_knows_its_task(cluster):
    actor = Threaded.options(max_concurrency=4).remote(4)
    ids = ray_rust.get([actor.task_id.remote() for _ in range(4)], timeout=DEADLINE_S)
    assert all(first == second for first, second in ids)
    assert len({first for first, _ in ids}) == 4


def test_thread_locals_last(cluster):
    actor = Threaded.options(max_concurrency=2).remote()
    counts = [ray_rust.get(actor.count_on_this_thread.remote()) for _ in range(10)]
    assert max(counts) >= 5


def test_a_threaded_actor_leaves_by_itself(cluster):
    actor = Threaded.options(max_concurrency=2).remote()
    with pytest.raises(exceptions.ActorDiedError):
        ray_rust.get(actor.leave.remote(), timeout=DEADLINE_S)


@ray_rust.remote(concurrency_groups={"io": 1, "compute": 2})
class Grouped:
    def __init__(self):
        self.barrier = threading.Barrier(2)
        self.event = threading.Event()

    @ray_rust.method(concurrency_group="io")
    def wait_in_io(self):
        return self.event.wait(DEADLINE_S)

    @ray_rust.method(concurrency_group="compute")
    def meet_in_compute(self):
        self.barrier.wait(DEADLINE_S)
        return True

    def let_go(self):
        self.event.set()

    def echo(self, value):
        return value


def test_groups_do_not_wait_for_each_other(cluster):
    actor = Grouped.remote()
    stuck = [actor.wait_in_io.remote() for _ in range(3)]
    assert ray_rust.get([actor.meet_in_compute.remote() for _ in range(2)], timeout=DEADLINE_S) == [True, True]
    assert ray_rust.get(actor.echo.remote(1), timeout=DEADLINE_S) == 1
    # In the group that is stuck it waits.
    other = actor.echo.options(concurrency_group="io").remote(2)
    ready, _ = ray_rust.wait([other], timeout=0.2)
    assert ready == []
    ray_rust.get(actor.let_go.remote())
    assert ray_rust.get(stuck, timeout=DEADLINE_S) == [True] * 3
    assert ray_rust.get(other) == 2


def test_an_unknown_group_is_refused(cluster):
    @ray_rust.remote
    class NoGroups:
        @ray_rust.method(concurrency_group="io")
        def f(self):
            pass

    with pytest.raises(ValueError, match="'io'"):
        NoGroups.remote()
    actor = Grouped.remote()
    with pytest.raises(exceptions.RaySystemError, match="nowhere"):
        ray_rust.get(actor.echo.options(concurrency_group="nowhere").remote(1))


def test_a_group_of_an_async_actor_has_a_loop_of_its_own(cluster):
    @ray_rust.remote(concurrency_groups={"health": 1})
    class Blocking:
        def __init__(self):
            self.event = threading.Event()

        async def block_the_loop(self):
            return self.event.wait(DEADLINE_S)

        @ray_rust.method(concurrency_group="health")
        async def healthy(self):
            await asyncio.sleep(0)
            return threading.current_thread() is not threading.main_thread()

        @ray_rust.method(concurrency_group="health")
        async def let_go(self):
            self.event.set()

    actor = Blocking.remote()
    stuck = actor.block_the_loop.remote()
    assert ray_rust.get(actor.healthy.remote(), timeout=DEADLINE_S)
    ready, _ = ray_rust.wait([stuck], timeout=0)
    assert ready == []
    ray_rust.get(actor.let_go.remote(), timeout=DEADLINE_S)
    assert ray_rust.get(stuck, timeout=DEADLINE_S)


def test_an_order_that_cannot_be_kept_is_refused(cluster):
    with pytest.raises(ValueError, match="one call at a time"):
        Async.options(allow_out_of_order_execution=False).remote()


def test_what_a_call_leaves_to_its_loop_is_done_though_no_other_call_comes(cluster, tmp_path):
    def touch(path):
        open(path, "w").close()

    @cluster.remote
    class Actor:
        async def soon(self, path):
            asyncio.get_running_loop().call_soon(touch, path)

        async def later(self, path):
            asyncio.get_running_loop().call_later(0.01, touch, path)

        async def task(self, path):
            async def work():
                await asyncio.sleep(0.01)
                touch(path)

            self.kept = asyncio.ensure_future(work())

    actor = Actor.remote()
    for name in ("soon", "later", "task"):
        path = tmp_path / name
        cluster.get(getattr(actor, name).remote(str(path)))
        wait_until(path.exists)
