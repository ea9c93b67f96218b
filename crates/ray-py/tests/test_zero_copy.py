"""Large values are read where they lie in shared memory, whoever made them."""

import array
import gc
import pickle
import subprocess
import sys

import numpy as np
import pytest

import ray_rust as ray
from ray_rust._private.serialization import dumps, loads

SIZE = 1_000_000


def address_of(buffer):
    """Where the memory of something lies."""
    return np.frombuffer(buffer, dtype=np.uint8).__array_interface__["data"][0]


@ray.remote
def echo(value):
    return value


@ray.remote
def describe(value):
    view = memoryview(value)
    return type(value).__name__, view.readonly, bytes(view[:3]), view.nbytes


@pytest.fixture(params=["put", "argument and result"])
def through(request, cluster):
    """Sends a value and returns what arrives, twice."""

    def send(value):
        ref = ray.put(value) if request.param == "put" else echo.remote(value)
        return ray.get([ref, ref])

    return send


class Frame:
    """A class with a buffer of its own, as the documentation of pickle describes it."""

    def __init__(self, data):
        self.data = data

    def __reduce_ex__(self, protocol):
        return (Frame, (pickle.PickleBuffer(self.data),))


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("make", [bytes, bytearray], ids=lambda make: make.__name__)
def test_bytes_are_values_of_their_own(through, make, small):
    value = make(b"abc" * (1 if small else SIZE))
    one, other = through(value)
    assert type(one) is make
    assert one == other == value
    if make is bytearray:
        one[0] = 0
        assert other[0] == ord("a")


@pytest.mark.parametrize(
    "view",
    [
        memoryview(b"abc" * SIZE),
        memoryview(b"abc"),
        memoryview(b""),
        memoryview(bytearray(b"abc" * SIZE)),
        memoryview(array.array("d", [1.5] * SIZE)),
        memoryview(b"x" * 6 * SIZE).cast("B", (2, 3 * SIZE)),
        memoryview(np.zeros((1000, 1000))),
    ],
    ids=lambda view: f"{view.format}{list(view.shape)}",
)
def test_views_keep_their_shape(through, view):
    one, other = through(view)
    assert one == other == view
    if view.nbytes:
        assert type(one) is memoryview
        assert (one.format, one.shape, one.readonly) == (view.format, view.shape, True)
    if view.nbytes > SIZE:
        assert address_of(one) == address_of(other)


def test_views_that_are_not_in_one_piece_are_copied(through):
    view = memoryview(bytes(range(200)))[::2]
    assert through(view)[0] == bytes(view)
    transposed = memoryview(np.arange(6).reshape(2, 3).T)
    assert through(transposed)[0] == transposed.tobytes()


def test_buffers_of_the_users_classes_are_not_copied(through):
    one, other = through(Frame(b"abc" * SIZE))
    assert type(one) is Frame
    assert address_of(one.data) == address_of(other.data)
    view = memoryview(one.data)
    assert view.readonly
    assert len(one.data) == 3 * SIZE
    assert one.data[:3] == b"abc"


def test_a_buffer_by_itself(cluster):
    ref = ray.put(pickle.PickleBuffer(b"abc" * SIZE))
    one, other = ray.get([ref, ref])
    assert address_of(one) == address_of(other)
    assert one == b"abc" * SIZE


def test_views_are_read_only_in_tasks_too(cluster):
    ref = ray.put(memoryview(b"abc" * SIZE))
    assert ray.get(describe.remote(ref)) == ("memoryview", True, b"abc", 3 * SIZE)


def test_a_view_keeps_its_object(cluster):
    ref = ray.put(memoryview(b"abc" * SIZE))
    part = ray.get(ref)[3:9]
    del ref
    gc.collect()
    for _ in range(20):
        ray.put(np.ones(SIZE))
    assert part == b"abcabc"


def test_arrays_share_their_memory(through):
    value = {"a": np.arange(SIZE), "f": np.asfortranarray(np.ones((1000, 1000))), "nested": [np.zeros(SIZE)]}
    one, other = through(value)
    for left, right in ((one["a"], other["a"]), (one["f"], other["f"]), (one["nested"][0], other["nested"][0])):
        assert np.shares_memory(left, right)
        assert not left.flags.writeable
    assert one["f"].flags.f_contiguous
    assert (one["a"] == value["a"]).all()


def test_data_frames_share_their_memory(through):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"x": np.arange(SIZE), "y": np.ones(SIZE), "name": ["a"] * SIZE})
    one, other = through(frame)
    pandas.testing.assert_frame_equal(one, frame)
    for column in ("x", "y"):
        assert np.shares_memory(one[column].to_numpy(), other[column].to_numpy())


# Arrow


@pytest.fixture
def pa():
    return pytest.importorskip("pyarrow")


def test_tables_share_their_memory(pa, through):
    table = pa.table({"x": np.arange(SIZE), "name": [str(i % 10) for i in range(SIZE)]})
    one, other = through(table)
    assert one.equals(table)
    for column in ("x", "name"):
        buffers = [[b for b in each.column(column).chunk(0).buffers() if b is not None] for each in (one, other)]
        assert [b.address for b in buffers[0]] == [b.address for b in buffers[1]]
        assert not any(b.is_mutable for b in buffers[0])


def slices(pa):
    numbers = pa.array(np.arange(SIZE))
    words = pa.array([str(i) for i in range(SIZE)])
    table = pa.table({"x": numbers, "words": words}, metadata={"made": "here"})
    dictionary = words.dictionary_encode()
    return {
        "table": table.slice(SIZE // 2, 10),
        "batch": table.slice(SIZE // 2, 10).to_batches()[0],
        "chunked": table["words"].slice(SIZE // 2, 10),
        "numbers": numbers.slice(SIZE // 2, 10),
        "words": words.slice(SIZE // 2, 10),
        "booleans": pa.array(np.arange(SIZE) % 3 == 0).slice(SIZE // 2 + 1, 10),
        "lists": pa.array([[i, i + 1] for i in range(SIZE // 10)]).slice(1000, 10),
        "structs": pa.StructArray.from_arrays([numbers, words], names=["a", "b"]).slice(SIZE // 2, 10),
        "with nulls": pa.array([None if i % 2 else i for i in range(SIZE)]).slice(SIZE // 2, 10),
        "dictionary": dictionary.slice(SIZE // 2, 10),
    }


def test_a_part_travels_without_the_rest(pa, cluster):
    for name, part in slices(pa).items():
        data, buffers = dumps({"part": part})
        size = len(data) + sum(memoryview(buffer).nbytes for buffer in buffers)
        # A dictionary is needed as a whole, or nearly so.
        assert name == "dictionary" or size < 20_000, name
        again = loads(data, buffers)["part"]
        assert again.equals(part), name
        assert type(again) is type(part)
        assert ray.get(ray.put(part)).equals(part), name


def test_parts_survive_by_value_too(pa):
    part = slices(pa)["table"]
    data, buffers = dumps((part, lambda: 0))
    assert loads(data, buffers)[0].equals(part)
    assert loads(data, buffers)[0].schema.metadata == {b"made": b"here"}


def test_a_type_that_streams_do_not_know_is_pickled_by_arrow(pa, monkeypatch):
    from ray_rust._private import arrow

    def refuse(value):
        raise pa.ArrowNotImplementedError("no")

    monkeypatch.setattr(arrow, "_stream_of", refuse)
    part = slices(pa)["numbers"]
    assert loads(*dumps(part)).equals(part)


def test_arrow_is_not_imported_for_this():
    code = (
        "import sys\nfrom ray_rust._private.serialization import dumps\n"
        "dumps({1, 2})\ndumps(lambda: 0)\nassert 'pyarrow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
