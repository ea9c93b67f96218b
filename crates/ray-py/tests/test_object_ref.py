"""References as objects of their own: what they say, and the ways to wait for them."""

import asyncio
import concurrent.futures
import gc
import pickle
import threading
import weakref

import numpy as np
import pytest

import ray_rust as ray
from conftest import DEADLINE_S, wait_until
from ray_rust import exceptions


@pytest.fixture
def double(cluster):
    @ray.remote(num_cpus=0)
    def double(x):
        return 2 * x

    return double


@pytest.fixture
def fail(cluster):
    @ray.remote(num_cpus=0)
    def fail():
        raise ValueError("no")

    return fail


@pytest.fixture
def gate(cluster, tmp_path):
    """A task that ends when `gate.open()` was called, and a file that says so."""

    @ray.remote(num_cpus=0)
    def wait_for(path, value):
        import os
        import time

        while not os.path.exists(path):
            time.sleep(0.005)
        return value

    class Gate:
        path = str(tmp_path / "gate")

        def task(self, value=None):
            return wait_for.remote(self.path, value)

        def open(self):
            with open(self.path, "w"):
                pass

    gate = Gate()
    yield gate
    gate.open()


def test_await_gives_what_get_gives(double, fail):
    async def main():
        assert await double.remote(2) == 4
        assert await ray.put("here") == "here"
        with pytest.raises(ValueError, match="no") as caught:
            await fail.remote()
        assert isinstance(caught.value, exceptions.RayTaskError)
        # Known already.
        failed = fail.remote()
        ray.wait([failed])
        with pytest.raises(ValueError, match="no"):
            await failed
        for value in [None, (1, 2), (), StopIteration(3), ValueError("a value")]:
            assert repr(await ray.put(value)) == repr(value)
        return "done"

    assert asyncio.run(main()) == "done"


def test_one_by_one_in_a_loop(double):
    async def main():
        return [await double.remote(number) for number in range(300)]

    assert asyncio.run(main()) == [2 * number for number in range(300)]


def test_thousands_at_once(double):
    async def main():
        return await asyncio.gather(*[double.remote(number) for number in range(5000)])

    assert asyncio.run(main()) == [2 * number for number in range(5000)]


def test_large_values_are_awaited_without_holding_the_loop_up(cluster):
    @ray.remote
    def make(number):
        return np.full(1_000_000, number)

    async def main():
        arrays = await asyncio.gather(*[make.remote(number) for number in range(5)])
        again = await ray.put(arrays[3])
        assert not again.flags.writeable
        return [int(array[0]) for array in arrays]

    assert asyncio.run(main()) == list(range(5))


def test_await_with_timeout_and_cancellation(gate, double):
    async def main():
        slow = gate.task("late")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(slow, 0.01)
        task = asyncio.ensure_future(slow)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await double.remote(1) == 2
        gate.open()
        return await slow

    assert asyncio.run(main()) == "late"


def test_awaits_that_are_given_up_keep_nothing(gate, cluster):
    async def main():
        slow = gate.task()

        @ray.remote(num_cpus=0)
        def after(_):
            pass

        for _ in range(300):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(after.remote(slow), 0)
        gc.collect()
        from ray_rust._private.session import connected_core

        # Far fewer than were awaited; those are dropped from time to time.
        return connected_core().reference_usage()[0]

    try:
        pending = asyncio.run(main())
    finally:
        gate.open()
    # Each given up has its task, which holds its argument, until the gate opens; objects awaited go.
    assert pending <= 301


def test_loops_in_several_threads(double):
    results = {}

    def run(name):
        async def main():
            return [await double.remote(number) for number in range(100)]

        results[name] = asyncio.run(main())

    threads = [threading.Thread(target=run, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    blocking = [ray.get(double.remote(number)) for number in range(100)]
    for thread in threads:
        thread.join(DEADLINE_S)
    assert blocking == results[0] == results[1] == results[2] == results[3]


def test_one_loop_after_the_other(double):
    for number in range(20):

        async def main(number=number):
            return await double.remote(number)

        assert asyncio.run(main()) == 2 * number


def test_a_busy_loop_does_not_hold_up_other_threads(gate, double):
    async def main():
        waiting = asyncio.ensure_future(gate.task("value"))
        await asyncio.sleep(0)
        # The loop does not come back to its inbox while this runs.
        value = ray.get(double.remote(4), timeout=DEADLINE_S)
        gate.open()
        return value, await waiting

    assert asyncio.run(main()) == (8, "value")


def test_await_in_a_task(cluster):
    @ray.remote(num_cpus=0)
    def inner(x):
        return x + 1

    @ray.remote(num_cpus=0)
    def outer(refs):
        async def main():
            first = await asyncio.gather(*[inner.remote(number) for number in range(20)])
            return sum(first) + await refs[0]

        return asyncio.run(main())

    # The second is borrowed there.
    assert ray.get(outer.remote([ray.put(1000)])) == sum(range(1, 21)) + 1000


def test_await_without_a_loop_and_of_nothing(cluster):
    with pytest.raises(RuntimeError, match="event loop"):
        ray.put(1).as_future()

    async def main():
        with pytest.raises(ValueError, match="nil"):
            await ray.ObjectRef.nil()

    asyncio.run(main())


def test_future(double, fail, gate):
    assert double.remote(3).future().result(DEADLINE_S) == 6
    with pytest.raises(ValueError, match="no"):
        fail.remote().future().result(DEADLINE_S)
    error = ValueError("a value")
    assert repr(ray.put(error).future().result(DEADLINE_S)) == repr(error)
    futures = [double.remote(number).future() for number in range(500)]
    assert [future.result(DEADLINE_S) for future in futures] == [2 * number for number in range(500)]
    given_up = gate.task().future()
    assert given_up.cancel()
    gate.open()
    done, _ = concurrent.futures.wait([double.remote(1).future()], timeout=DEADLINE_S)
    assert len(done) == 1

    async def main():
        return await asyncio.wrap_future(double.remote(8).future()), await double.remote(9).as_future()

    assert asyncio.run(main()) == (16, 18)


def test_on_completed_gets_the_value_or_the_exception(double, fail):
    heard = []
    reference = double.remote(1)
    assert reference._on_completed(heard.append) is reference
    fail.remote()._on_completed(heard.append)
    wait_until(lambda: len(heard) == 2)
    values = [outcome for outcome in heard if not isinstance(outcome, Exception)]
    errors = [outcome for outcome in heard if isinstance(outcome, exceptions.RayTaskError)]
    assert values == [2]
    assert len(errors) == 1
    assert isinstance(errors[0].cause, ValueError)


def test_a_callback_may_call_and_wait(double):
    heard = []
    double.remote(1)._on_completed(lambda value: heard.append(ray.get(double.remote(value))))
    wait_until(lambda: heard == [4])


def test_a_callback_that_raises_is_reported_and_harms_nobody(double, capsys, monkeypatch):
    import sys

    reported = []
    monkeypatch.setattr(sys, "unraisablehook", lambda report: reported.append(report.exc_value))

    def bad(_value):
        raise KeyError("callback")

    heard = []
    double.remote(1)._on_completed(bad)
    double.remote(2)._on_completed(heard.append)
    wait_until(lambda: heard == [4] and reported)
    assert isinstance(reported[0], KeyError)


def test_on_ready_does_not_read_the_value_and_can_be_taken_back(cluster, fail, gate):
    class Unreadable:
        def __reduce__(self):
            return (_refuse, ())

    heard = []
    ray.put(Unreadable())._on_ready(lambda error: heard.append(("put", error)))
    fail.remote()._on_ready(lambda error: heard.append(("failed", error)))
    wait_until(lambda: sorted(heard) == [("failed", None), ("put", None)])
    cancel = gate.task()._on_ready(lambda error: heard.append(("cancelled", error)))
    cancel()
    cancel()
    gate.open()
    gate.task()._on_ready(lambda error: heard.append(("last", error)))
    wait_until(lambda: ("last", None) in heard)
    assert ("cancelled", None) not in heard


def _refuse():
    raise AssertionError("it was read")


def test_ready(gate, fail):
    async def main():
        slow = gate.task()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(slow._ready(), 0.01)
        gate.open()
        assert await slow._ready() is slow
        failed = fail.remote()
        assert await failed._ready() is failed

    asyncio.run(main())


def test_the_end_of_the_membership_ends_every_wait(script):
    out = script("""
import asyncio, time
import ray_rust as ray
ray.init("local", num_cpus=1)

@ray.remote
def forever():
    time.sleep(1000)

heard = []
slow = forever.remote()
slow._on_completed(heard.append)
future = slow.future()

async def main():
    task = asyncio.ensure_future(slow)
    await asyncio.sleep(0)
    ray.shutdown()
    try:
        await task
    except Exception as error:
        print("awaited:", type(error).__name__)
    try:
        future.result(30)
    except Exception as error:
        print("future:", type(error).__name__)
    print("callback:", type(heard[0]).__name__)

asyncio.run(main())
""").finish()
    assert out[0] == 0, out
    assert out[1].splitlines() == ["awaited: RaySystemError", "future: RaySystemError", "callback: RaySystemError"]


def test_names(cluster, double):
    reference = double.remote(1)
    assert reference.hex() == reference.binary().hex() == str(reference)[len("ObjectRef(") : -1]
    assert len(reference.binary()) == ray.ObjectRef.size()
    assert not reference.is_nil()
    assert ray.ObjectRef.nil().is_nil()
    assert isinstance(reference.task_id(), ray.TaskID)
    assert reference.task_id() != double.remote(1).task_id()
    assert isinstance(reference.job_id(), ray.JobID)
    assert reference.job_id().hex() == ray.get_runtime_context().get_job_id()
    assert isinstance(reference.call_site(), str)
    assert ray.ObjectRef[int] is ray.ObjectRef
    assert len({reference, reference, ray.ObjectRef.nil(), ray.ObjectRef.nil()}) == 2
    assert reference != reference.hex()

    class Special(ray.ObjectRef):
        pass

    assert issubclass(Special, ray.ObjectRef)


def test_a_reference_made_of_its_name_is_one_more(cluster):
    first = ray.put([1])
    for second in (
        ray.ObjectRef.from_binary(first.binary()),
        ray.ObjectRef.from_hex(first.hex()),
        ray.ObjectRef(first.binary()),
    ):
        assert second == first
        assert hash(second) == hash(first)
        assert ray.get(second) == [1]
    kept = ray.ObjectRef(first.binary())
    del first, second
    assert ray.get(kept) == [1]
    unknown = ray.ObjectRef.from_random()
    assert not unknown.is_nil()
    with pytest.raises(ValueError, match="not known"):
        ray.get(unknown)
    with pytest.raises(ValueError, match="28 bytes"):
        ray.ObjectRef.from_binary(b"short")


@pytest.mark.parametrize(
    "name",
    [
        "ActorClassID",
        "ActorID",
        "ClusterID",
        "FunctionID",
        "JobID",
        "NodeID",
        "PlacementGroupID",
        "TaskID",
        "UniqueID",
        "WorkerID",
    ],
)
def test_ids(name):
    import pickle

    kind = getattr(ray, name)
    first, second = kind.from_random(), kind.from_random()
    assert first != second
    assert first == kind(first.binary()) == kind.from_binary(first.binary()) == kind.from_hex(first.hex())
    assert pickle.loads(pickle.dumps(first)) == first
    assert len(first.binary()) == kind.size()
    assert kind.nil().is_nil()
    assert not first.is_nil()
    assert repr(first) == f"{name}({first.hex()})"
    assert len({first, kind(first.binary()), second}) == 2


def test_ids_of_jobs_are_numbers_too():
    assert ray.JobID.from_int(7).int() == 7
    assert ray.JobID.from_int(7) == ray.JobID.from_int(7) != ray.JobID.from_int(8)
    assert ray.ObjectID is ray.ObjectRef


def test_the_garbage_collector_has_nothing_to_do_with_references(cluster):
    """It would go through all that a program holds, again and again, and they are in no cycle."""

    @ray.remote
    def inner():
        return [ray.put(1)]

    @ray.remote(num_returns="streaming")
    def items():
        yield 1

    returned = inner.remote()
    [item] = items.remote()
    [borrowed] = ray.get(returned)
    for ref in [returned, item, borrowed, ray.put(1), pickle.loads(pickle.dumps(returned))]:
        assert type(ref) is ray.ObjectRef
        assert not gc.is_tracked(ref)
    # They end with their own count, also within a cycle of others.
    watched = ray.put(2)
    ended = weakref.ref(watched)
    cycle = [watched]
    cycle.append(cycle)
    del watched, cycle
    gc.collect()
    assert ended() is None


def test_a_reference_with_attributes_is_freed_within_a_cycle(cluster):
    class Named(ray.ObjectRef):
        pass

    ref = Named(ray.put(1).binary())
    ref.itself = ref
    ended = weakref.ref(ref)
    assert gc.is_tracked(ref)
    del ref
    gc.collect()
    assert ended() is None
