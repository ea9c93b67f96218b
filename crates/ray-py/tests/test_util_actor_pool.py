"""A pool of actors, and iterating over results as they come."""

import pytest

import ray_rust as ray
from ray_rust.exceptions import ActorDiedError
from ray_rust.util import ActorPool, as_completed, map_unordered


@ray.remote(num_cpus=0)
class Worker:
    def double(self, x):
        return 2 * x

    def pair(self, x):
        return x, x + 1

    def fail(self, x):
        raise ValueError(x)

    def die(self, x):
        import os

        os._exit(1)


@ray.remote(num_cpus=0)
class Gate:
    """Something to wait for, under the control of the test."""

    def __init__(self):
        self.is_open = False

    def open(self):
        self.is_open = True

    def look(self):
        return self.is_open


@ray.remote(num_cpus=0)
class Patient:
    def wait_for(self, gate, x):
        while not ray.get(gate.look.remote()):
            pass
        return x


def double(actor, x):
    return actor.double.remote(x)


@pytest.fixture
def pool(cluster):
    return ActorPool([Worker.remote() for _ in range(2)])


def test_map_is_in_order(pool):
    assert list(pool.map(double, range(10))) == [2 * x for x in range(10)]
    assert list(pool.map(double, [])) == []


def test_map_unordered_has_all(pool):
    assert sorted(pool.map_unordered(double, range(10))) == [2 * x for x in range(10)]


def test_single_calls(pool):
    for x in range(3):
        pool.submit(double, x)
    assert pool.has_next()
    assert not pool.has_free()
    assert [pool.get_next() for _ in range(3)] == [0, 2, 4]
    assert not pool.has_next()
    with pytest.raises(StopIteration):
        pool.get_next()
    with pytest.raises(StopIteration):
        pool.get_next_unordered()


def test_ordered_after_unordered_is_refused(cluster):
    gate = Gate.remote()
    slow, fast = Patient.remote(), Patient.remote()
    open_gate = Gate.remote()
    ray.get(open_gate.open.remote())
    pool = ActorPool([fast, slow])  # the last one is taken first
    pool.submit(lambda actor, x: actor.wait_for.remote(gate, x), 1)
    pool.submit(lambda actor, x: actor.wait_for.remote(open_gate, x), 2)
    assert pool.get_next_unordered() == 2
    with pytest.raises(ValueError, match="get_next_unordered"):
        pool.get_next()
    ray.get(gate.open.remote())
    assert pool.get_next_unordered() == 1


def test_time_runs_out_and_the_call_can_be_given_up(cluster):
    gate = Gate.remote()
    pool = ActorPool([Patient.remote()])
    for get_next in (pool.get_next, pool.get_next_unordered):
        pool.submit(lambda actor, x: actor.wait_for.remote(gate, x), 1)
        with pytest.raises(TimeoutError, match="not there yet"):
            get_next(timeout=0)
        assert pool.has_next()
        with pytest.raises(TimeoutError, match="given up"):
            get_next(timeout=0, ignore_if_timedout=True)
        assert not pool.has_next()
        assert pool.has_free()
    ray.get(gate.open.remote())
    pool.submit(lambda actor, x: actor.wait_for.remote(gate, x), 5)
    assert pool.get_next() == 5


def test_map_drops_what_was_submitted_before(pool):
    for x in range(20):
        pool.submit(double, x)
    assert list(pool.map(double, [100])) == [200]


def test_an_error_does_not_stop_the_pool(pool):
    results = pool.map(lambda actor, x: actor.fail.remote(x) if x == 1 else actor.double.remote(x), range(3))
    assert next(results) == 0
    with pytest.raises(ValueError, match="1"):
        next(results)
    assert pool.get_next() == 4


def test_a_dead_actor_takes_no_more_part(pool):
    pool.submit(lambda actor, x: actor.die.remote(x), 0)
    with pytest.raises(ActorDiedError):
        pool.get_next()
    assert list(pool.map(double, range(5))) == [0, 2, 4, 6, 8]


def test_without_actors_nothing_is_silently_left_out(cluster):
    pool = ActorPool([Worker.remote()])
    results = pool.map(lambda actor, x: actor.die.remote(x), range(3))
    with pytest.raises(ActorDiedError):
        next(results)
    with pytest.raises(RuntimeError, match=r"no actor .* 2 submitted"):
        list(pool._results(pool.get_next))
    pool.push(Worker.remote())
    with pytest.raises(ActorDiedError):
        pool.get_next()


def test_actors_come_and_go(cluster):
    first, second = Worker.remote(), Worker.remote()
    pool = ActorPool([first])
    with pytest.raises(ValueError, match="already"):
        pool.push(first)
    pool.submit(double, 1)
    assert pool.pop_idle() is None
    with pytest.raises(ValueError, match="already"):
        pool.push(first)
    pool.submit(double, 2)
    pool.push(second)
    assert sorted([pool.get_next(), pool.get_next()]) == [2, 4]
    assert {pool.pop_idle(), pool.pop_idle()} == {first, second}
    assert pool.pop_idle() is None


def test_methods_with_several_results(cluster):
    pool = ActorPool([Worker.remote()])
    for get_next in (pool.get_next, pool.get_next_unordered):
        pool.submit(lambda actor, x: actor.pair.options(num_returns=2).remote(x), 1)
        assert get_next(timeout=30) == [1, 2]


def test_a_function_that_raises_leaves_the_actor_in_the_pool(pool):
    with pytest.raises(ZeroDivisionError):
        pool.submit(lambda actor, x: 1 / 0, 1)
    assert list(pool.map(double, range(4))) == [0, 2, 4, 6]


# as_completed and map_unordered


@ray.remote(num_cpus=0.1)
def plus_one(x):
    return x + 1


@pytest.mark.parametrize("chunk_size", [1, 3, 100])
def test_results_as_they_come(cluster, chunk_size):
    refs = [plus_one.remote(x) for x in range(10)]
    assert sorted(as_completed(refs, chunk_size=chunk_size)) == list(range(1, 11))
    assert set(as_completed(refs, chunk_size=chunk_size, yield_obj_refs=True)) == set(refs)
    assert list(as_completed([])) == []


@pytest.mark.parametrize("backpressure_size", [1, 4, None])
def test_tasks_for_items(cluster, backpressure_size):
    results = map_unordered(plus_one, iter(range(10)), backpressure_size=backpressure_size, chunk_size=2)
    assert sorted(results) == list(range(1, 11))


def test_back_pressure_holds_the_items_back(cluster):
    taken = []

    def items():
        for x in range(20):
            taken.append(x)
            yield x

    results = map_unordered(plus_one, items(), backpressure_size=5, chunk_size=1, yield_obj_refs=True)
    next(results)
    assert len(taken) == 5


def test_wrong_sizes_are_refused(cluster):
    with pytest.raises(ValueError, match="chunk_size"):
        list(as_completed([], chunk_size=0))
    with pytest.raises(ValueError, match="num_returns"):
        list(as_completed([], num_returns=2))
    with pytest.raises(ValueError, match="backpressure_size"):
        list(map_unordered(plus_one, [], backpressure_size=0))
