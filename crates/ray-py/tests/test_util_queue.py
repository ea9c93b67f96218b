"""A queue that tasks and actors share."""

import asyncio
import queue as standard
import threading

import pytest

import ray_rust as ray
from conftest import DEADLINE_S, wait_until
from ray_rust.exceptions import RayActorError
from ray_rust.util.queue import Empty, Full, Queue


@pytest.fixture
def make(cluster):
    made = []

    def start(*args, **kwargs):
        made.append(Queue(*args, **kwargs))
        return made[-1]

    yield start
    for one in made:
        one.shutdown(force=True)


@ray.remote(num_cpus=0)
def put_all(queue, items):
    for item in items:
        queue.put(item)


@ray.remote(num_cpus=0)
def get_some(queue, count):
    return [queue.get(timeout=DEADLINE_S) for _ in range(count)]


def test_first_in_first_out(make):
    queue = make()
    assert queue.empty()
    for item in range(5):
        queue.put(item)
    assert len(queue) == queue.qsize() == queue.size() == 5
    assert not queue.empty()
    assert not queue.full()
    assert [queue.get() for _ in range(5)] == list(range(5))


def test_nothing_there(make):
    queue = make()
    for get in (queue.get_nowait, lambda: queue.get(block=False), lambda: queue.get(timeout=0.01)):
        with pytest.raises(Empty) as caught:
            get()
        assert type(caught.value) is Empty
        assert isinstance(caught.value, standard.Empty)
    with pytest.raises(ValueError, match="negative"):
        queue.get(timeout=-1)


def test_no_room(make):
    queue = make(maxsize=1)
    queue.put("x")
    assert queue.full()
    for put in (queue.put_nowait, lambda x: queue.put(x, block=False), lambda x: queue.put(x, timeout=0.01)):
        with pytest.raises(Full) as caught:
            put("y")
        assert type(caught.value) is Full
        assert isinstance(caught.value, standard.Full)
    with pytest.raises(ValueError, match="negative"):
        queue.put("y", timeout=-1)
    assert queue.get() == "x"
    queue.put_nowait("z")
    assert queue.get_nowait() == "z"


def test_batches_are_all_or_nothing(make):
    queue = make(maxsize=3)
    queue.put_nowait_batch([1, 2])
    with pytest.raises(Full, match="2 items do not fit"):
        queue.put_nowait_batch(iter([3, 4]))
    assert queue.size() == 2
    with pytest.raises(Empty, match="2 items, fewer than 3"):
        queue.get_nowait_batch(3)
    assert queue.get_nowait_batch(2) == [1, 2]
    assert queue.get_nowait_batch(0) == []
    for wrong, error in ((1.5, TypeError), (True, TypeError), (-1, ValueError)):
        with pytest.raises(error):
            queue.get_nowait_batch(wrong)
    with pytest.raises(TypeError, match="iterate"):
        queue.put_nowait_batch(3)


def test_who_waits_is_woken(make):
    queue = make(maxsize=1)
    reader = get_some.remote(queue, 3)
    writer = put_all.remote(queue, ["a", "b", "c"])
    ray.get(writer, timeout=DEADLINE_S)
    assert ray.get(reader, timeout=DEADLINE_S) == ["a", "b", "c"]


def test_many_readers_and_writers_lose_nothing(make):
    queue = make(maxsize=2)
    readers = [get_some.remote(queue, 10) for _ in range(3)]
    writers = [put_all.remote(queue, range(10 * i, 10 * i + 10)) for i in range(3)]
    ray.get(writers, timeout=DEADLINE_S)
    got = [item for items in ray.get(readers, timeout=DEADLINE_S) for item in items]
    assert sorted(got) == list(range(30))


def test_the_others_are_answered_while_one_waits(make):
    queue = make()
    waiting = threading.Thread(target=queue.get)
    waiting.start()
    assert queue.qsize() == 0
    queue.put(1)
    waiting.join(DEADLINE_S)
    assert not waiting.is_alive()


def test_it_can_be_awaited(make):
    queue = make(maxsize=1)

    async def use():
        getting = asyncio.create_task(queue.get_async(timeout=DEADLINE_S))
        await queue.put_async("x")
        assert await getting == "x"
        with pytest.raises(Empty) as empty:
            await queue.get_async(block=False)
        await queue.put_async("y", block=False)
        with pytest.raises(Full) as full:
            await queue.put_async("z", timeout=0.01)
        with pytest.raises(ValueError, match="negative"):
            await queue.put_async("z", timeout=-1)
        return type(empty.value), type(full.value)

    assert asyncio.run(use()) == (Empty, Full)


def test_options_of_the_actor(make):
    queue = make(actor_options={"name": "the queue", "num_cpus": 1})
    queue.put(5)
    assert ray.get(ray.get_actor("the queue").get.remote()) == 5
    wait_until(lambda: ray.available_resources().get("CPU", 0) == 3)


@pytest.mark.parametrize("force", [True, False])
def test_it_ends_when_it_is_told(make, force):
    queue = make()
    actor = queue.actor
    queue.put(1)
    queue.shutdown(force=force)
    queue.shutdown()
    with pytest.raises(RuntimeError, match="shut down"):
        queue.get()
    with pytest.raises(RayActorError):
        ray.get(actor.qsize.remote(), timeout=DEADLINE_S)


def test_a_reader_learns_of_the_end(make):
    queue = make()
    reader = get_some.remote(queue, 1)
    queue.shutdown(force=True)
    with pytest.raises(RayActorError):
        ray.get(reader, timeout=DEADLINE_S)


def test_items_may_be_of_any_kind(make):
    queue = make()
    for item in (None, [1, {2}], lambda: 3, Empty("not an error here")):
        queue.put(item)
    got = [queue.get() for _ in range(4)]
    assert got[:2] == [None, [1, {2}]]
    assert got[2]() == 3
    assert type(got[3]) is Empty
