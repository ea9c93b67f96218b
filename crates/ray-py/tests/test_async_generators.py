"""Generator methods of async actors: asynchronous ones and others, paused without holding the event loop up."""

import asyncio
import os

import numpy as np
import pytest

import ray_rust
from conftest import wait_until
from ray_rust import exceptions
from ray_rust._internal import StreamingGeneratorStats


@ray_rust.remote
class Yielding:
    def __init__(self):
        self.made = []
        self.closed = 0
        self.gate = asyncio.Event()

    async def count(self, n):
        for number in range(n):
            await asyncio.sleep(0)
            yield number

    async def noting(self, n):
        try:
            for number in range(n):
                self.made.append(number)
                yield number
        finally:
            self.closed += 1

    async def gated(self):
        yield "first"
        await self.gate.wait()
        yield "second"

    async def open_gate(self):
        self.gate.set()

    async def fail_after(self, n):
        for number in range(n):
            yield number
        raise KeyError("in the middle")

    async def stats(self):
        yield isinstance((yield 1), StreamingGeneratorStats)

    async def sleep(self):
        yield "asleep"
        await asyncio.sleep(1000)

    def plain(self, n):
        yield from range(n)

    def plain_stats(self):
        yield isinstance((yield 1), StreamingGeneratorStats)

    async def nothing_to_iterate(self):
        return 5

    async def large(self, n):
        for number in range(n):
            yield np.full(200_000, number)

    async def references(self):
        for number in range(3):
            yield [ray_rust.put(number)]

    async def state(self):
        return self.made, self.closed


@pytest.fixture
def actor(cluster):
    return Yielding.remote()


def values(generator):
    return [ray_rust.get(ref, timeout=60) for ref in generator]


def state(actor):
    return ray_rust.get(actor.state.remote(), timeout=60)


@pytest.mark.parametrize("n", [0, 1, 1000])
def test_all_items_come_in_order(actor, n):
    assert values(actor.count.remote(n)) == list(range(n))
    assert values(actor.plain.remote(n)) == list(range(n))


def test_items_come_before_the_end_and_other_calls_run_between(actor):
    generator = actor.gated.remote()
    assert ray_rust.get(next(generator)) == "first"
    assert values(actor.count.remote(3)) == [0, 1, 2]
    ray_rust.get(actor.open_gate.remote())
    assert values(generator) == ["second"]


def test_many_run_side_by_side(actor):
    generators = [actor.count.remote(20) for _ in range(100)]
    assert [values(generator) for generator in generators] == [list(range(20))] * 100


def test_large_items_and_references_pass(actor):
    assert [int(item[0]) for item in values(actor.large.remote(5))] == [0, 1, 2, 3, 4]
    assert [ray_rust.get(box[0]) for box in values(actor.references.remote())] == [0, 1, 2]


def test_a_paused_generator_holds_no_other_call_up(actor):
    limited = actor.noting.options(_generator_backpressure_num_objects=2)
    # More than a pool of threads has threads.
    paused = [limited.remote(10) for _ in range(60)]
    wait_until(lambda: len(state(actor)[0]) == 120)
    assert values(actor.count.remote(3)) == [0, 1, 2]
    assert len(state(actor)[0]) == 120
    assert [values(generator) for generator in paused] == [list(range(10))] * 60
    assert state(actor)[1] == 60


def test_an_exception_in_the_middle_is_the_last_item(actor):
    *items, last = actor.fail_after.remote(2)
    assert [ray_rust.get(ref) for ref in items] == [0, 1]
    with pytest.raises(KeyError, match="in the middle"):
        ray_rust.get(last)


def test_a_yield_gets_to_know_what_became_of_its_item(actor):
    assert values(actor.stats.remote()) == [1, True]
    assert values(actor.plain_stats.remote()) == [1, True]


def test_what_cannot_be_iterated_over_is_said(actor):
    with pytest.raises(ValueError, match="generator functions"):
        actor.nothing_to_iterate.options(num_returns="streaming")


def test_a_generator_that_sleeps_is_cancelled(actor):
    generator = actor.sleep.remote()
    assert ray_rust.get(next(generator)) == "asleep"
    ray_rust.cancel(generator)
    with pytest.raises(exceptions.TaskCancelledError):
        for ref in generator:
            ray_rust.get(ref, timeout=60)
    assert values(actor.count.remote(1)) == [0]


def test_a_paused_generator_is_cancelled(actor):
    generator = actor.noting.options(_generator_backpressure_num_objects=1).remote(10)
    wait_until(lambda: state(actor)[0])
    ray_rust.cancel(generator)
    with pytest.raises(exceptions.TaskCancelledError):
        for ref in generator:
            ray_rust.get(ref, timeout=60)
    assert state(actor) == ([0], 1)


def test_a_generator_that_nobody_reads_stops_and_is_closed(actor):
    generator = actor.noting.options(_generator_backpressure_num_objects=1).remote(10)
    wait_until(lambda: state(actor)[0])
    del generator
    assert wait_until(lambda: state(actor) if state(actor)[1] else None) == ([0], 1)


def test_generators_of_a_concurrency_group_run_in_its_loop(cluster):
    @ray_rust.remote(concurrency_groups={"io": 2})
    class Grouped:
        @ray_rust.method(concurrency_group="io")
        async def names(self):
            import threading

            yield threading.current_thread().name
            await asyncio.sleep(0)
            yield threading.current_thread().name

    assert values(Grouped.remote().names.remote()) == ["concurrency group io"] * 2


def test_a_crash_is_told_at_the_end_of_what_came(cluster):
    @ray_rust.remote
    class Crashing:
        async def items(self):
            yield 1
            await asyncio.sleep(0.01)
            os._exit(1)

    generator = Crashing.remote().items.remote()
    assert ray_rust.get(next(generator)) == 1
    with pytest.raises(exceptions.ActorDiedError):
        for ref in generator:
            ray_rust.get(ref, timeout=60)


def test_listed_exceptions_are_retried_without_repeating_items(cluster, tmp_path):
    @ray_rust.remote(max_task_retries=2)
    class Flaky:
        def __init__(self):
            self.attempts = 0

        @ray_rust.method(retry_exceptions=[KeyError])
        async def items(self):
            self.attempts += 1
            for number in range(self.attempts):
                yield number
            if self.attempts < 3:
                raise KeyError(self.attempts)

    assert values(Flaky.remote().items.remote()) == [0, 1, 2]


@pytest.mark.filterwarnings("ignore:num_returns='dynamic'")
def test_a_dynamic_one_returns_all_references_at_its_end(actor):
    dynamic = ray_rust.get(actor.count.options(num_returns="dynamic").remote(3), timeout=60)
    assert values(dynamic) == [0, 1, 2]
    *_, last = ray_rust.get(actor.fail_after.options(num_returns="dynamic").remote(1), timeout=60)
    with pytest.raises(KeyError, match="in the middle"):
        ray_rust.get(last)


def test_a_read_by_await(actor):
    async def read():
        return [await ref async for ref in actor.count.remote(5)]

    assert asyncio.run(read()) == list(range(5))
