"""Objects: put, get, wait, references inside values, arrays in shared memory."""

import gc
import os
import threading
import time

import numpy as np
import pytest

import ray_rust
from ray_rust import exceptions

LARGE = 1 << 20


class Point:
    def __init__(self, x):
        self.x = x

    def __eq__(self, other):
        return self.x == other.x

    def __hash__(self):
        return hash(self.x)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -(2**70),
        1.5,
        "text",
        "\ud800",
        b"hello world",
        bytearray(b"x"),
        (),
        [1, [2, (3, {"a": {4}})]],
        {"key": None, 1: 2.0},
        Point(3),
        Point,
        ValueError,
        ...,
        range(3),
        1j,
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_is_put_is_got(cluster, value):
    got = cluster.get(cluster.put(value))
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize("size", [0, 1, 1000, 100 * 1024 - 200, 100 * 1024 + 200, 10 * LARGE])
def test_bytes_of_any_size_are_got(cluster, size):
    value = os.urandom(size)
    assert cluster.get(cluster.put(value)) == value


def test_a_list_of_references_gives_a_list_of_values(cluster):
    assert cluster.get([cluster.put(i) for i in range(100)]) == list(range(100))
    assert cluster.get([]) == []


def test_the_same_reference_can_be_got_twice_at_once(cluster):
    ref = cluster.put("x")
    assert cluster.get([ref, ref]) == ["x", "x"]


def test_an_exception_that_is_put_is_a_value(cluster):
    error = cluster.get(cluster.put(ValueError("just a value")))
    assert isinstance(error, ValueError)


def test_small_values_are_copies(cluster):
    value = [1]
    ref = cluster.put(value)
    value.append(2)
    first = cluster.get(ref)
    first.append(3)
    assert cluster.get(ref) == [1]


def test_large_arrays_are_read_only_and_not_copied(cluster):
    array = np.arange(LARGE, dtype=np.float64)
    ref = cluster.put(array)
    one, other = cluster.get(ref), cluster.get(ref)
    np.testing.assert_array_equal(one, array)
    assert np.shares_memory(one, other)
    assert not one.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        one[0] = 1


def test_an_array_outlives_its_reference(cluster):
    array = cluster.get(cluster.put(np.full(LARGE, 7.0)))
    gc.collect()
    others = [cluster.put(np.zeros(LARGE)) for _ in range(5)]
    assert (array == 7.0).all()
    del others


def test_memory_is_used_again(cluster):
    # Far more in sum than the store holds at once.
    for round_number in range(200):
        ref = cluster.put(np.full(4 * LARGE, round_number, dtype=np.uint8))
        assert cluster.get(ref)[-1] == round_number % 256


def test_arrays_in_values_are_not_copied_either(cluster):
    value = {"arrays": [np.ones(LARGE), np.zeros((1000, 1000))], "name": "x"}
    ref = cluster.put(value)
    got = cluster.get(ref)
    assert got["name"] == "x"
    np.testing.assert_array_equal(got["arrays"][0], value["arrays"][0])
    assert np.shares_memory(got["arrays"][1], cluster.get(ref)["arrays"][1])


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 3)),
        np.array(5),
        np.arange(10)[::2],
        np.asfortranarray(np.arange(2 * LARGE).reshape(2, LARGE)),
        np.array(["a", "bc"]),
        np.array([Point(1), None], dtype=object),
        np.zeros(3, dtype=[("a", "i4"), ("b", "f8")]),
    ],
    ids=["empty", "scalar", "strided", "fortran", "text", "objects", "records"],
)
def test_arrays_of_any_kind_are_got(cluster, array):
    got = cluster.get(cluster.put(array))
    assert got.dtype == array.dtype
    assert got.shape == array.shape
    assert (got == array).all()


def test_references_inside_values_stay_references(cluster):
    inner = cluster.put("inner")
    outer = cluster.put({"refs": [inner]})
    del inner
    gc.collect()
    got = cluster.get(outer)["refs"][0]
    assert isinstance(got, cluster.ObjectRef)
    assert cluster.get(got) == "inner"


def test_references_nest_deeply(cluster):
    ref = cluster.put("bottom")
    for _ in range(50):
        ref = cluster.put([ref])
    for _ in range(50):
        ref = cluster.get(ref)[0]
    assert cluster.get(ref) == "bottom"


def test_a_reference_cannot_be_put(cluster):
    with pytest.raises(TypeError, match="ObjectRef"):
        cluster.put(cluster.put(1))


def test_references_are_equal_by_what_they_refer_to(cluster):
    ref = cluster.put(1)
    same = cluster.get(cluster.put([ref]))[0]
    assert ref == same
    assert hash(ref) == hash(same)
    assert ref != cluster.put(1)
    assert len({ref, same}) == 1
    assert ref.hex() in repr(ref)
    assert not ref.is_nil()
    assert cluster.ObjectRef.nil().is_nil()


def test_a_value_that_cannot_be_pickled_is_refused_with_the_culprit(cluster):
    with pytest.raises(TypeError, match=r"item 1 of a list.*lock"):
        cluster.put([1, threading.Lock()])
    assert cluster.get(cluster.put("still works")) == "still works"


def test_references_of_other_kinds_are_refused(cluster):
    with pytest.raises(TypeError, match="5"):
        cluster.get([cluster.put(1), 5])


# wait


def test_wait_gives_what_is_ready_and_what_is_not(cluster, gate):
    ready, blocked = cluster.put(1), gate.task()
    assert cluster.wait([blocked, ready], num_returns=1, timeout=20) == ([ready], [blocked])
    assert cluster.wait([blocked], timeout=0) == ([], [blocked])
    gate.open()
    assert cluster.wait([blocked, ready], num_returns=2, timeout=20) == ([blocked, ready], [])


def test_wait_returns_no_more_than_asked(cluster):
    refs = [cluster.put(i) for i in range(5)]
    ready, rest = cluster.wait(refs, num_returns=2)
    assert ready == refs[:2]
    assert rest == refs[2:]


def test_wait_takes_milliseconds_too(cluster, gate):
    ready, not_ready = cluster.wait([cluster.put(b"x")], num_returns=1, timeout_ms=5000)
    assert (len(ready), len(not_ready)) == (1, 0)
    blocked = gate.task()
    assert cluster.wait([blocked], timeout_ms=1) == ([], [blocked])


def test_wait_returns_early_with_a_task_that_fails(cluster):
    @cluster.remote
    def fail():
        raise ValueError

    ref = fail.remote()
    assert cluster.wait([ref], timeout=20) == ([ref], [])


def test_wait_checks_what_it_is_given(cluster):
    ref = cluster.put(1)
    assert cluster.wait([]) == ([], [])
    with pytest.raises(ValueError, match="twice"):
        cluster.wait([ref, ref])
    with pytest.raises(ValueError, match="num_returns"):
        cluster.wait([ref], num_returns=2)
    with pytest.raises(ValueError, match="num_returns"):
        cluster.wait([ref], num_returns=0)
    with pytest.raises(TypeError, match="single"):
        cluster.wait(ref)


def test_get_gives_up_in_time(cluster, gate):
    blocked = gate.task()
    with pytest.raises(exceptions.GetTimeoutError):
        cluster.get(blocked, timeout=0.05)
    with pytest.raises(TimeoutError):
        cluster.get([cluster.put(1), blocked], timeout=0)
    gate.open()
    assert cluster.get(blocked, timeout=20) == "opened"


def test_get_without_patience_gives_what_is_there(cluster):
    assert cluster.get(cluster.put(5), timeout=0) == 5


def test_several_threads_can_wait_at_once(cluster, gate):
    blocked = gate.task()
    results = []
    threads = [threading.Thread(target=lambda: results.append(cluster.get(blocked))) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert cluster.get(cluster.put("meanwhile")) == "meanwhile"
    gate.open()
    for thread in threads:
        thread.join(20)
    assert results == ["opened"] * 8


def test_the_required_program_runs_as_it_stands(run_script):
    run_script(
        """
import ray_rust
ray_rust.init(address="auto", num_cpus=4)
obj_ref = ray_rust.put(b"hello world")
data = ray_rust.get(obj_ref)
ready, not_ready = ray_rust.wait([obj_ref], num_returns=1, timeout_ms=5000)
ray_rust.shutdown()
assert data == b"hello world" and ready == [obj_ref] and not not_ready
"""
    )


@pytest.fixture
def gate(cluster, tmp_path):
    """Tasks that end when the test says so."""
    path = tmp_path / "open"

    @cluster.remote
    def wait_at(path):
        while not os.path.exists(path):
            time.sleep(0.005)
        return "opened"

    class Gate:
        def task(self):
            return wait_at.remote(str(path))

        def open(self):
            path.touch()

    gate = Gate()
    yield gate
    gate.open()


def test_wait_finds_two_references_to_one_object_that_were_read_from_a_value(cluster):
    reference = cluster.put(1)
    copies = cluster.get(cluster.put([reference])) + cluster.get(cluster.put([reference]))
    with pytest.raises(ValueError, match="twice"):
        cluster.wait(copies)
    with pytest.raises(ValueError, match="twice"):
        cluster.wait([reference, copies[0]])
    assert cluster.wait(copies[:1]) == (copies[:1], [])


def test_arrays_that_are_read_again_and_again_make_room_for_others(no_cluster):
    ray_rust.init("local", num_cpus=1, object_store_memory=64 << 20)
    large = np.arange(2_000_000)  # a quarter of the store
    for _ in range(30):
        reference = ray_rust.put(large)
        for _ in range(5):
            assert ray_rust.get(reference)[-1] == 1_999_999
        kept = ray_rust.get(reference)
        del reference
        assert kept[-1] == 1_999_999
