"""Tasks and methods that yield: what they yield comes as it is made, and every end is told."""

import asyncio
import gc
import os
import pickle
import threading
import time

import numpy as np
import pytest

import ray_rust
from conftest import kill_quietly, wait_until
from ray_rust import exceptions
from ray_rust._internal import StreamingGeneratorStats
from ray_rust._private.object_ref_generator import DynamicObjectRefGenerator
from ray_rust._private.session import connected_core


@ray_rust.remote
def count(n):
    yield from range(n)


@ray_rust.remote
def count_and_raise(n):
    yield from range(n)
    raise ValueError("in the middle")


@ray_rust.remote
def gated(gate, n):
    """Yields its process, then numbers once the gate is open."""
    yield os.getpid()
    while not os.path.exists(gate):
        time.sleep(0.002)
    yield from range(n)


@ray_rust.remote
def noting(path, n):
    """Notes each number before it yields it."""
    with open(path, "a") as file:
        try:
            for number in range(n):
                file.write(f"{number}\n")
                file.flush()
                yield number
        except GeneratorExit:
            file.write("closed\n")
            raise


def notes(path):
    return path.read_text().split() if path.exists() else []


def values(generator):
    return [ray_rust.get(ref) for ref in generator]


def no_references_left():
    gc.collect()
    return connected_core().reference_usage()[0] == 0


@pytest.fixture
def gate(tmp_path):
    path = tmp_path / "gate"
    yield path
    path.touch()


# What comes


def test_items_come_while_the_task_runs(cluster, gate):
    generator = gated.remote(str(gate), 3)
    assert isinstance(generator, ray_rust.ObjectRefGenerator)
    assert ray_rust.get(next(generator)) > 0
    assert not generator.next_ready()
    assert not generator.is_finished()
    assert ray_rust.wait([generator.completed()], timeout=0) == ([], [generator.completed()])
    gate.touch()
    assert values(generator) == [0, 1, 2]
    assert generator.is_finished()
    assert ray_rust.get(generator.completed()) is None
    with pytest.raises(StopIteration):
        next(generator)


@pytest.mark.parametrize("n", [0, 1, 2000])
def test_any_number_of_items(cluster, n):
    assert values(count.remote(n)) == list(range(n))
    wait_until(no_references_left)


def test_large_items_are_read_in_place_and_spilled_when_nobody_reads(own_folder):
    ray_rust.init("local", num_cpus=1, object_store_memory=60 << 20)

    @ray_rust.remote
    def arrays():
        for number in range(20):
            yield np.full(1 << 20, number, dtype=np.int64)

    generator = arrays.remote()
    ray_rust.get(generator.completed())
    for number, ref in enumerate(generator):
        array = ray_rust.get(ref)
        assert not array.flags.writeable
        assert array[0] == array[-1] == number
        del array, ref
    assert number == 19


def test_items_hold_references_of_all_kinds_and_stay_in_order(cluster):
    @ray_rust.remote
    def value(x):
        return x

    class Keeper:
        def kept(self):
            return [ray_rust.put("of an actor")]

    keeper = ray_rust.remote(Keeper).remote()

    @ray_rust.remote
    def references(mine, keeper):
        yield mine[0]
        yield [ray_rust.put("of the worker")]
        # Its owner is neither the caller nor this process, and has to be asked.
        (theirs,) = ray_rust.get(keeper.kept.remote())
        yield [theirs, "x"]
        yield "plain"
        yield [value.remote(5)]

    items = values(references.remote([ray_rust.put("of the driver")], keeper))
    assert ray_rust.get(items[0]) == "of the driver"
    assert ray_rust.get(items[1]) == ["of the worker"]
    assert ray_rust.get(items[2][0]) == "of an actor"
    assert items[3] == "plain"
    assert ray_rust.get(items[4]) == [5]


def test_a_generator_is_told_how_long_an_item_took(cluster):
    @ray_rust.remote
    def told():
        first = yield 1
        second = yield np.zeros(1 << 20)
        yield [type(first) is type(second) is StreamingGeneratorStats, second.object_creation_dur_s]

    is_stats, seconds = values(told.remote())[2]
    assert is_stats
    assert 0 < seconds < 30


def test_one_yield_may_make_several_objects(cluster):
    @ray_rust.remote(_num_objects_per_yield=2)
    def pairs(n):
        for number in range(n):
            yield number, [ray_rust.put(number)]
        yield 1, 2, 3

    refs = list(pairs.remote(2))
    assert ray_rust.get(refs[0]) == 0
    assert ray_rust.get(ray_rust.get(refs[3])) == [1]
    with pytest.raises(ValueError, match="yielded 3 objects, but it has _num_objects_per_yield=2"):
        ray_rust.get(refs[4])
    with pytest.raises(ValueError, match="single calls"):
        pairs.options(_num_objects_per_yield=3)


def test_a_task_reads_a_generator_as_a_driver_does(cluster):
    @ray_rust.remote
    def total(n):
        return sum(ray_rust.get(ref) for ref in count.remote(n))

    @ray_rust.remote
    def doubled(n):
        for ref in count.remote(n):
            yield 2 * ray_rust.get(ref)

    assert ray_rust.get(total.remote(100)) == 4950
    assert values(doubled.remote(50)) == [2 * number for number in range(50)]


def test_dynamic_generators_return_all_references_at_their_end(cluster):
    with pytest.warns(DeprecationWarning, match="streaming"):
        dynamic = count_and_raise.options(num_returns="dynamic")
    ref = dynamic.remote(3)
    assert isinstance(ref, ray_rust.ObjectRef)
    refs = ray_rust.get(ref)
    assert isinstance(refs, DynamicObjectRefGenerator)
    assert len(refs) == 4
    *items, last = refs
    assert len(refs) == 0
    assert ray_rust.get(items) == [0, 1, 2]
    with pytest.raises(ValueError, match="in the middle"):
        ray_rust.get(last)

    @ray_rust.remote
    def first_of(refs):
        return ray_rust.get(next(iter(refs)))

    assert ray_rust.get(first_of.remote(ref)) == 0
    del ref, refs, items, last
    wait_until(no_references_left)


# What is refused


def test_what_cannot_be_is_said_at_once(cluster):
    def plain():
        return 5

    class Actor:
        def plain(self):
            return 5

    with pytest.raises(ValueError, match="generator functions"):
        ray_rust.remote(num_returns="streaming")(plain)
    with pytest.raises(ValueError, match="generator functions"):
        ray_rust.remote(plain).options(num_returns="streaming")
    with pytest.raises(ValueError, match="generator functions"):
        ray_rust.remote(Actor).remote().plain.options(num_returns="streaming")
    for option, wrong in [("_generator_backpressure_num_objects", 0), ("_num_objects_per_yield", 0)]:
        with pytest.raises(ValueError, match=option):
            ray_rust.remote(**{option: wrong})(plain)
    with pytest.raises(ValueError, match="_actor_generator"):
        ray_rust.remote(_actor_generator_backpressure_num_objects=0)(Actor)
    with pytest.raises(ValueError, match="'streaming' or 'dynamic'"):
        count.options(num_returns="all")


def test_a_generator_of_references_stays_in_its_process(cluster):
    generator = count.remote(2)
    with pytest.raises(TypeError, match="only in the process that made the call"):
        pickle.dumps(generator)
    with pytest.raises(TypeError, match="only in the process that made the call"):
        ray_rust.put(generator)
    with pytest.raises(TypeError, match="only in the process that made the call"):
        count.remote(generator)
    for method in (generator.send, generator.throw, generator.asend, generator.athrow):
        with pytest.raises(NotImplementedError):
            method(None)
    for method in (generator.close, generator.aclose):
        with pytest.raises(NotImplementedError):
            method()
    assert ray_rust.get(generator) is generator
    assert values(generator) == [0, 1]


# Looking ahead


def test_references_are_there_before_their_items(cluster, gate):
    generator = gated.remote(str(gate), 2)
    places = generator._get_next_ref_n(5)
    assert places == generator._get_next_ref_n(5)
    assert places[0].binary() == generator._get_next_object_id_binary()

    @ray_rust.remote
    def plus_one(x):
        return x + 1

    follows = plus_one.remote(places[2])
    ray_rust.get(places[0])
    assert generator.next_ready()
    with pytest.raises(ValueError, match="not all there yet"):
        generator._consume_next_ref_n(2)
    generator._consume_next_ref_n(1)
    assert generator._peek(1) == [(places[1], False)]
    gate.touch()
    assert ray_rust.get(follows) == 2
    ref = next(generator)
    assert ref == places[1]
    assert ray_rust.wait([ref, places[2]], num_returns=2) == ([ref, places[2]], [])
    ray_rust.get(generator.completed())
    for behind in places[3:]:
        with pytest.raises(exceptions.ObjectRefStreamEndOfStreamError):
            ray_rust.get(behind)
    with pytest.raises(exceptions.ObjectRefStreamEndOfStreamError):
        ray_rust.get(generator._get_next_ref_n(9)[8])
    assert not generator._stream_exhausted()
    generator._consume_next_ref_n(3)
    assert generator._stream_exhausted()
    assert generator.is_finished()
    assert not generator.next_ready()
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="1 or more"):
            generator._get_next_ref_n(wrong)
        with pytest.raises(ValueError, match="1 or more"):
            generator._consume_next_ref_n(wrong)
    del generator, places, ref, behind, follows
    wait_until(no_references_left)


def test_a_short_wait_for_an_item_gives_nil(cluster, gate):
    generator = gated.remote(str(gate), 1)
    ray_rust.get(generator._next_sync())
    assert generator._next_sync(0).is_nil()
    assert generator._next_sync(timeout_s=0.02).is_nil()
    gate.touch()
    assert ray_rust.get(generator._next_sync(-1)) == 0
    with pytest.raises(StopIteration):
        generator._next_sync(60)
    with pytest.raises(ValueError, match="timeout_s"):
        generator._next_sync(-2)


def test_wait_takes_generators_and_references_together(cluster, gate):
    slow, quick = gated.remote(str(gate), 1), count.remote(1)
    next(slow)
    value = ray_rust.put(1)
    assert ray_rust.wait([slow, value, quick], num_returns=2) == ([value, quick], [slow])
    assert ray_rust.wait([slow], timeout=0) == ([], [slow])
    next(quick)
    # Its end is something to be read too.
    assert ray_rust.wait([slow, quick], num_returns=1, fetch_local=False) == ([quick], [slow])
    gate.touch()
    assert ray_rust.wait([slow, quick], num_returns=2) == ([slow, quick], [])
    with pytest.raises(ValueError, match="twice"):
        ray_rust.wait([slow, slow])
    with pytest.raises(TypeError, match="not a single ObjectRefGenerator"):
        ray_rust.wait(slow)


def test_generators_are_read_side_by_side_in_an_event_loop(cluster, gate):
    async def read(generator):
        return [ray_rust.get(ref) async for ref in generator]

    async def main():
        slow = gated.remote(str(gate), 2)
        late = asyncio.ensure_future(read(slow))
        assert await asyncio.gather(read(count.remote(3)), read(count.remote(4))) == [[0, 1, 2], [0, 1, 2, 3]]
        assert not late.done()
        gate.touch()
        assert (await late)[1:] == [0, 1]
        failing = count_and_raise.remote(1)
        refs = [ref async for ref in failing]
        with pytest.raises(ValueError, match="in the middle"):
            ray_rust.get(refs[1])

    asyncio.run(main())


def test_an_async_read_may_be_limited_and_given_up(cluster, gate):
    async def main():
        generator = gated.remote(str(gate), 1)
        await generator.__anext__()
        assert (await generator._next_async(timeout_s=0.01)).is_nil()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(generator.__anext__(), 0.01)
        gate.touch()
        assert ray_rust.get(await generator.__anext__()) == 0
        with pytest.raises(StopAsyncIteration):
            await generator.__anext__()

    asyncio.run(main())


# Back-pressure


def test_a_producer_with_a_limit_pauses_until_items_are_read(cluster, tmp_path):
    path = tmp_path / "notes"
    generator = noting.options(_generator_backpressure_num_objects=3).remote(str(path), 10)
    wait_until(lambda: len(notes(path)) == 3)
    ray_rust.get(generator._get_next_ref_n(3))
    for read in range(1, 4):
        assert len(notes(path)) == 2 + read
        next(generator)
        wait_until(lambda count=read: len(notes(path)) == 3 + count)
    assert values(generator) == list(range(3, 10))
    assert notes(path) == [str(number) for number in range(10)]


def test_a_limit_of_one_is_like_a_generator_of_ones_own(cluster, tmp_path):
    path = tmp_path / "notes"
    generator = noting.options(_generator_backpressure_num_objects=1).remote(str(path), 100)
    for number in range(100):
        ref = next(generator)
        assert ray_rust.get(ref) == number
        assert len(notes(path)) <= number + 2
    assert list(generator) == []


def test_waiting_for_the_next_item_reads_nothing(cluster, tmp_path):
    path = tmp_path / "notes"
    generator = noting.options(_generator_backpressure_num_objects=2).remote(str(path), 5)
    for _ in range(20):
        assert ray_rust.wait([generator]) == ([generator], [])
        assert generator.next_ready()
    wait_until(lambda: len(notes(path)) == 2)
    generator._consume_next_ref_n(1)
    wait_until(lambda: len(notes(path)) == 3)
    assert values(generator) == [1, 2, 3, 4]


# Failure


def test_an_exception_in_the_middle_is_the_last_item(cluster):
    refs = list(count_and_raise.remote(3))
    assert len(refs) == 4
    assert ray_rust.get(refs[:3]) == [0, 1, 2]
    with pytest.raises(ValueError, match="in the middle"):
        ray_rust.get(refs[3])
    generator = count_and_raise.remote(0)
    (only,) = generator
    with pytest.raises(ValueError, match="in the middle"):
        ray_rust.get(only)
    assert ray_rust.get(generator.completed()) is None
    assert generator.is_finished()


def test_what_cannot_be_pickled_is_an_exception_in_the_middle(cluster):
    @ray_rust.remote
    def odd():
        yield 1
        yield threading.Lock()

    first, second = odd.remote()
    assert ray_rust.get(first) == 1
    with pytest.raises(TypeError):
        ray_rust.get(second)


def test_a_failed_argument_is_told_in_place_of_the_first_item(cluster):
    @ray_rust.remote
    def fail():
        raise KeyError("argument")

    generator = count.remote(fail.remote())
    place = generator._get_next_ref_n(1)[0]
    assert not generator.is_finished()
    (only,) = generator
    assert only == generator.completed()
    for ref in (only, place):
        with pytest.raises(KeyError, match="argument"):
            ray_rust.get(ref)
    assert generator.is_finished()


def test_exceptions_are_retried_without_repeating_items(cluster, tmp_path):
    path = tmp_path / "attempts"

    @ray_rust.remote(max_retries=2, retry_exceptions=True)
    def flaky(path):
        with open(path, "a") as file:
            file.write("x")
        attempt = os.path.getsize(path)
        yield from range(2 * attempt)
        if attempt < 3:
            raise ValueError(str(attempt))

    generator = flaky.remote(str(path))
    places = generator._get_next_ref_n(6)
    refs = list(generator)
    assert refs == places
    assert ray_rust.get(refs) == list(range(6))
    assert path.read_text() == "xxx"


def test_a_killed_producer_leaves_what_came_and_then_its_end(cluster, gate):
    generator = gated.options(max_retries=0).remote(str(gate), 1)
    first = next(generator)
    place = generator._get_next_ref_n(1)[0]
    kill_quietly(ray_rust.get(first))
    last = next(generator)
    for ref in (last, place):
        with pytest.raises(exceptions.WorkerCrashedError):
            ray_rust.get(ref)
    assert last == generator.completed()
    with pytest.raises(StopIteration):
        next(generator)
    assert ray_rust.get(first) > 0
    assert generator.is_finished()


def test_a_killed_producer_is_tried_again_without_repeating_items(cluster, tmp_path):
    path = tmp_path / "pids"

    @ray_rust.remote(max_retries=-1, _generator_backpressure_num_objects=2)
    def numbers(path):
        with open(path, "a") as file:
            file.write(f"{os.getpid()}\n")
        yield from range(30)

    generator = numbers.remote(str(path))
    places = generator._get_next_ref_n(30)
    read = []
    for ref in generator:
        read.append(ref)
        if len(read) in (1, 5, 20):
            # Counted first: the next attempt may be quick.
            attempts = len(notes(path))
            kill_quietly(int(notes(path)[-1]))
            # A reader that is behind what was sent sees the new attempt at most later.
            if len(read) == 5:
                wait_until(lambda count=attempts: len(notes(path)) > count)
    assert read == places
    assert ray_rust.get(read) == list(range(30))
    assert len(notes(path)) >= 3


def test_a_killed_actor_is_told_at_the_end_of_its_generators(cluster, gate):
    class Actor:
        def pid(self):
            return os.getpid()

        def numbers(self, gate, n):
            yield os.getpid()
            while not os.path.exists(gate):
                time.sleep(0.002)
            yield from range(n)

    actor = ray_rust.remote(Actor).remote()
    generator = actor.numbers.remote(str(gate), 3)
    kill_quietly(ray_rust.get(next(generator)))
    (last,) = generator
    with pytest.raises(exceptions.ActorDiedError):
        ray_rust.get(last)

    again = ray_rust.remote(max_restarts=-1, max_task_retries=-1)(Actor).remote()
    generator = again.numbers.remote(str(gate), 3)
    first = ray_rust.get(next(generator))
    kill_quietly(first)
    gate.touch()
    assert values(generator) == [0, 1, 2]
    assert ray_rust.get(again.pid.remote()) != first


# The end of interest


def test_a_running_generator_can_be_cancelled(cluster, gate):
    generator = gated.remote(str(gate), 1)
    first = next(generator)
    ray_rust.cancel(generator)
    (last,) = generator
    with pytest.raises(exceptions.TaskCancelledError):
        ray_rust.get(last)
    assert ray_rust.get(first) > 0


def test_a_paused_generator_can_be_cancelled(cluster, tmp_path):
    path = tmp_path / "notes"
    generator = noting.options(_generator_backpressure_num_objects=1).remote(str(path), 10)
    wait_until(lambda: notes(path) == ["0"])
    ray_rust.cancel(generator)
    with pytest.raises(exceptions.TaskCancelledError):
        ray_rust.get(generator.completed())
    first, last = generator
    assert ray_rust.get(first) == 0
    assert last == generator.completed()


def test_a_generator_that_has_not_begun_can_be_cancelled(cluster):
    never = count.options(resources={"gizmo": 3}).remote(1)
    ray_rust.cancel(never)
    (only,) = never
    with pytest.raises(exceptions.TaskCancelledError):
        ray_rust.get(only)


@pytest.mark.parametrize("limit", [-1, 2])
def test_dropping_a_generator_drops_what_is_unread_and_stops_it(cluster, tmp_path, limit):
    path = tmp_path / "notes"
    generator = noting.options(_generator_backpressure_num_objects=limit).remote(str(path), 10**9)
    first = next(generator)
    del generator
    wait_until(lambda: notes(path)[-1:] == ["closed"])
    assert ray_rust.get(first) == 0
    del first
    wait_until(no_references_left)


def test_dropping_a_generator_frees_its_large_items(own_folder, tmp_path):
    ray_rust.init("local", num_cpus=1, object_store_memory=60 << 20)

    @ray_rust.remote
    def arrays(gate):
        for _ in range(3):
            yield np.zeros(1 << 20)
        while not os.path.exists(gate):
            time.sleep(0.002)
        for _ in range(3):
            yield np.zeros(1 << 20)

    for round_ in range(5):
        gate = tmp_path / str(round_)
        generator = arrays.remote(str(gate))
        ray_rust.get(generator._get_next_ref_n(3)[2])
        del generator
        gate.touch()
    wait_until(no_references_left)
    ray_rust.get(count.remote(0).completed())
    # Nothing is left there that would be in the way, or would have to be spilled.
    ray_rust.put(np.zeros(50 << 17))
    assert not any(name for _, _, files in os.walk(own_folder) for name in files if "spill" in name)


def test_a_generator_of_which_only_the_end_is_wanted_runs_to_its_end(cluster, tmp_path):
    path = tmp_path / "notes"
    end = noting.options(_generator_backpressure_num_objects=1).remote(str(path), 20).completed()
    assert ray_rust.get(end) is None
    assert len(notes(path)) == 20
    del end
    wait_until(no_references_left)


def test_a_dropped_generator_that_has_not_begun_never_does(cluster, gate, tmp_path):
    blocker = [gated.options(num_cpus=4).remote(str(gate), 0)]
    next(blocker[0])
    path = tmp_path / "notes"
    noting.options(num_cpus=4).remote(str(path), 1)
    gate.touch()
    assert list(blocker[0]) == []
    assert values(count.options(num_cpus=4).remote(1)) == [0]
    assert notes(path) == []


def test_a_reference_that_was_looked_at_outlives_the_generator(cluster, gate):
    generator = gated.remote(str(gate), 5)
    first, second = generator._get_next_ref_n(2)
    ray_rust.get(first)
    del generator
    gate.touch()
    assert ray_rust.get(first) > 0
    # The generator stops at its next item, so this comes or never will.
    outcome = ray_rust.TaskResult.of(second)
    ends = (exceptions.TaskCancelledError, exceptions.ObjectRefStreamEndOfStreamError)
    assert outcome.value == 0 or isinstance(outcome.error, ends)


def test_a_generator_is_of_no_use_after_shutdown(own_folder):
    ray_rust.init("local", num_cpus=1)
    generator = count.remote(3)
    next(generator)
    ray_rust.shutdown()
    with pytest.raises(exceptions.RaySystemError, match="shut down"):
        next(generator)
    del generator


# Actors


class Counter:
    def __init__(self):
        self.calls = 0

    def numbers(self, n):
        self.calls += 1
        yield from range(n)

    @ray_rust.method(_generator_backpressure_num_objects=2, num_returns="streaming")
    def slow(self, path, n):
        for number in range(n):
            with open(path, "a") as file:
                file.write(f"{number}\n")
            yield number

    def called(self):
        return self.calls


def test_methods_yield_as_functions_do(cluster):
    actor = ray_rust.remote(Counter).remote()
    generators = [actor.numbers.remote(3), actor.numbers.remote(2)]
    assert ray_rust.get(actor.called.remote()) == 2
    assert [values(generator) for generator in generators] == [[0, 1, 2], [0, 1]]
    with pytest.warns(DeprecationWarning):
        dynamic = actor.numbers.options(num_returns="dynamic")
    assert ray_rust.get(list(ray_rust.get(dynamic.remote(2)))) == [0, 1]

    @ray_rust.remote
    def through(handle):
        return values(handle.numbers.remote(4))

    assert ray_rust.get(through.remote(actor)) == [0, 1, 2, 3]


def test_a_method_has_a_limit_of_its_own(cluster, tmp_path):
    path = tmp_path / "notes"
    actor = ray_rust.remote(Counter).remote()
    generator = actor.slow.remote(str(path), 5)
    wait_until(lambda: len(notes(path)) == 2)
    next(generator)
    wait_until(lambda: len(notes(path)) == 3)
    del generator
    # It stops, and the actor goes on with other calls.
    assert ray_rust.get(actor.called.remote()) == 0
    assert len(notes(path)) == 3


def test_an_actor_has_a_limit_for_all_its_generators(cluster, tmp_path):
    path = tmp_path / "notes"
    limited = ray_rust.remote(_actor_generator_backpressure_num_objects=3)(Counter)
    actor = limited.options(name="limited").remote()
    generator = ray_rust.get_actor("limited").slow.options(_generator_backpressure_num_objects=10).remote(str(path), 6)
    wait_until(lambda: len(notes(path)) == 3)
    next(generator)
    wait_until(lambda: len(notes(path)) == 4)
    assert values(generator) == [1, 2, 3, 4, 5]
    del actor
