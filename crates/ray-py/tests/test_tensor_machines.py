"""The decisions behind transports of tensors, without processes."""

import pickle
import random
import threading

import numpy as np
import pytest

from ray_rust._private.tensors import packing
from ray_rust._private.tensors.arrivals import Arrivals, TransferTimedOutError
from ray_rust._private.tensors.registry import TransportManagerInfo, TransportRegistry
from ray_rust._private.tensors.transfer import TransferWatch
from ray_rust.exceptions import ActorDiedError, RayTaskError
from ray_rust.experimental.rdt.nixl_memory_pool import MemoryPool, NixlOutOfMemoryError
from ray_rust.experimental.rdt.nixl_tensor_transport import _Remotes
from ray_rust.experimental.rdt.rdt_store import Kept, RDTStore
from ray_rust.experimental.rdt.tensor_transport_manager import TensorTransportManager


def raised(cause):
    return RayTaskError("task", "traceback", cause)


# Arrivals


def test_the_first_outcome_of_a_transfer_counts():
    arrivals = Arrivals()
    arrivals.settle("a", [1])
    arrivals.settle("a", ValueError("late"))
    assert arrivals.is_settled("a")
    assert arrivals.wait("a", 0) == [1]
    # What comes when nobody waits any more is dropped.
    arrivals.settle("a", [2])
    assert arrivals.is_settled("a")
    with pytest.raises(TransferTimedOutError):
        arrivals.wait("a", 0)
    assert not arrivals.is_settled("b")
    arrivals.settle("b", ValueError("broken"))
    with pytest.raises(ValueError, match="broken"):
        arrivals.wait("b", 0)


def test_a_transfer_is_waited_for():
    arrivals = Arrivals()
    found = []
    waiting = threading.Thread(target=lambda: found.append(arrivals.wait("a", 20)))
    waiting.start()
    arrivals.settle("b", [1])
    arrivals.settle("a", [2])
    waiting.join(20)
    assert found == [[2]]


def test_no_more_transfers_are_remembered_than_a_bound():
    arrivals = Arrivals()
    for number in range(1500):
        arrivals.settle(str(number), [number])
        arrivals.wait(str(number), 0)
    assert len(arrivals._over) == 1000
    assert not arrivals._outcomes


# Transfers


def test_a_transfer_that_goes_well_stops_nobody():
    for is_one_sided in (True, False):
        watch = TransferWatch(is_one_sided=is_one_sided)
        assert watch.begin()
        assert watch.on_sent(None) is None
        assert watch.on_arrival(None) is None
        assert not watch.wants_deadline
        assert watch.on_deadline(1) is None


def test_a_sender_that_fails_stops_both_once():
    watch = TransferWatch(is_one_sided=False)
    assert watch.begin()
    assert watch.on_sent(raised(ValueError("cut"))) == "sending failed: ValueError: cut"
    assert watch.on_arrival(ActorDiedError()) is None
    assert watch.on_deadline(1) is None


def test_what_receiving_raises_is_for_who_waits_and_its_end_is_for_both():
    watch = TransferWatch(is_one_sided=False)
    assert watch.begin()
    assert watch.on_arrival(raised(ValueError("cut"))) is None
    assert watch.wants_deadline
    assert "sending has not ended 3 s after" in watch.on_deadline(3)
    for error in (ActorDiedError(), raised(TransferTimedOutError("late"))):
        watch = TransferWatch(is_one_sided=True)
        assert watch.begin()
        assert watch.on_arrival(error).startswith("receiving failed: ")
        assert not watch.wants_deadline


def test_a_value_that_is_never_made_stops_nobody():
    watch = TransferWatch(is_one_sided=False)
    assert watch.on_arrival(ActorDiedError()) is None
    assert not watch.begin(), "nobody is asked for what nobody waits for any more"
    assert not watch.wants_deadline


def test_a_value_without_tensors_is_not_sent():
    watch = TransferWatch(is_one_sided=False)
    assert watch.begin(is_sent=True)
    assert watch.on_arrival(None) is None
    assert not watch.wants_deadline


@pytest.mark.parametrize("seed", range(50))
def test_whatever_happens_both_are_stopped_once_at_most(seed):
    events = random.Random(seed)
    watch = TransferWatch(is_one_sided=events.random() < 0.3)
    stopped = []
    for _ in range(8):
        error = events.choice([None, ActorDiedError(), raised(ValueError()), raised(TransferTimedOutError())])
        happened = events.choice(["begin", "sent", "arrival", "deadline"])
        if happened == "begin":
            watch.begin()
        elif happened == "sent":
            stopped.append(watch.on_sent(error))
        elif happened == "arrival":
            stopped.append(watch.on_arrival(error))
        elif watch.wants_deadline:
            stopped.append(watch.on_deadline(1))
    assert sum(reason is not None for reason in stopped) <= 1


# The store


def test_a_tensor_is_kept_as_long_as_one_object_has_it():
    store, shared, own = RDTStore(), np.ones(1), np.ones(1)
    store.add("a", Kept([shared, own], "T", None))
    store.add("b", Kept([shared], None, None))
    assert store.get_num_objects() == 2
    assert store.ids() == ["a", "b"]
    assert store.take("a").tensors == [shared, own]
    assert not store.has_object("a")
    assert store.has_tensor(shared)
    assert not store.has_tensor(own)
    store.wait_tensor_freed(own, 0)
    with pytest.raises(TimeoutError, match="still kept after 0 s"):
        store.wait_tensor_freed(shared, 0)
    assert store.find("b").tensors == [shared]
    waiting = threading.Thread(target=store.wait_tensor_freed, args=(shared, 20))
    waiting.start()
    store.take("b")
    waiting.join(20)
    assert not waiting.is_alive()
    assert store.take("b") is store.find("b") is None


# Packing


class Odd:
    def __init__(self, inner):
        self.inner = inner


class Special(np.ndarray):
    pass


def unpacked(packed, tensors):
    shell = packing.TensorShell(
        "id", ("T", None), None, None, len(tensors), packed.data, packed.buffers, packed.references
    )
    buffers = []
    data = pickle.dumps(shell, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(data, buffers=[buffer.raw() for buffer in buffers]).fill(tensors), shell


def test_a_value_comes_back_with_the_tensors_that_it_is_given():
    one, two = np.ones(2), np.zeros(3)
    value = {"one": one, "more": [Odd(two), one, (lambda: two)], "none": None, "bytes": bytearray(b"x" * 10)}
    packed = packing.pack(value, np.ndarray)
    assert len(packed.tensors) == 2
    assert packed.tensors[0] is one
    assert packed.tensors[1] is two
    others = [np.full(2, 5.0), np.full(3, 6.0)]
    got, shell = unpacked(packed, others)
    assert got["one"] is got["more"][1] is others[0]
    assert got["more"][0].inner is got["more"][2]() is others[1]
    assert got["none"] is None
    assert got["bytes"] == b"x" * 10
    assert "2 tensors" in repr(shell)
    with pytest.raises(RuntimeError, match="brought 1 tensors for a value that has 2"):
        shell.check(others[:1])


def test_large_pieces_are_not_copied():
    rest = np.arange(1000)
    packed = packing.pack([rest, bytearray(1)], bytearray)
    assert len(packed.tensors) == 1
    assert len(packed.data) < 1000
    got, _ = unpacked(packed, ["tensor"])
    np.testing.assert_array_equal(got[0], rest)
    assert got[1] == "tensor"


def test_only_the_very_class_is_taken_unless_it_is_abstract():
    special = np.ones(2).view(Special)
    assert packing.pack([special, np.ones(1)], np.ndarray).tensors == [np.ones(1)]
    from collections.abc import Sequence

    is_sequence = packing.is_instance_of(Sequence)
    assert is_sequence([])
    assert not is_sequence({})


def test_what_cannot_be_pickled_is_named():
    with pytest.raises(TypeError, match="no tensor"):
        packing.pack({"a": [np.ones(1), threading.Lock()]}, np.ndarray)


# The registry


def test_transports_are_known_by_names_in_capital_letters():
    made = []

    def built_in():
        made.append(1)
        return TransportManagerInfo(Nothing, ["cpu"], int)

    registry = TransportRegistry({"BUILT_IN": built_in})
    registry.register("OWN", TransportManagerInfo(Nothing, ["cpu"], str))
    assert registry.check("own") == "OWN"
    assert registry.check("Built_In") == "BUILT_IN"
    assert not made
    assert registry.info("built_in").data_type is int
    assert registry.manager("built_in") is registry.manager("BUILT_IN")
    assert made == [1]
    for taken in ("OWN", "BUILT_IN", "OBJECT_STORE"):
        with pytest.raises(ValueError, match="already"):
            registry.register(taken, TransportManagerInfo(Nothing, [], int))
    with pytest.raises(ValueError, match="which knows BUILT_IN, OBJECT_STORE, OWN"):
        registry.check("other")
    with pytest.raises(NotImplementedError, match="collective"):
        registry.info("gloo")
    # Who has one may use the name.
    registry.register("GLOO", TransportManagerInfo(Nothing, [], int))
    assert registry.check("gloo") == "GLOO"
    assert registry.knows("GLOO")
    assert not registry.is_built_in("GLOO")


class Nothing(TensorTransportManager):
    def tensor_transport_backend(self):
        return "NOTHING"

    is_one_sided = can_abort_transport = staticmethod(lambda: True)

    def _unused(self, *args):
        raise AssertionError

    actor_has_tensor_transport = extract_tensor_transport_metadata = get_communicator_metadata = _unused
    recv_multiple_tensors = send_multiple_tensors = garbage_collect = abort_transport = _unused


# What NIXL needs


@pytest.mark.parametrize("seed", range(30))
def test_pieces_of_a_pool_never_overlap_and_all_of_it_comes_back(seed):
    chance = random.Random(seed)
    pool = MemoryPool(1000)
    taken = {}
    for number in range(200):
        if taken and chance.random() < 0.5:
            owner = chance.choice(list(taken))
            del taken[owner]
            assert pool.give_back(owner)
        else:
            sizes = [chance.randrange(0, 200) for _ in range(chance.randrange(1, 4))]
            alignment = chance.choice([1, 8, 64])
            try:
                starts = pool.take(str(number), sizes, alignment)
            except NixlOutOfMemoryError:
                continue
            assert all(start % alignment == 0 for start in starts)
            taken[str(number)] = [(start, start + size) for start, size in zip(starts, sizes) if size]
        pieces = sorted(piece for of_one in taken.values() for piece in of_one)
        assert all(0 <= start < end <= 1000 for start, end in pieces)
        assert all(end <= start for (_, end), (start, _) in zip(pieces, pieces[1:]))
    for owner in taken:
        pool.give_back(owner)
    assert pool.take("all", [1000], 1) == [0]
    assert not pool.give_back("nobody")


def test_a_pool_that_is_full_stays_as_it_was():
    pool = MemoryPool(100)
    assert pool.take("a", [40], 1) == [0]
    with pytest.raises(
        NixlOutOfMemoryError, match=r"100 bytes has no room for 50 bytes more: 60 were free, in 1 pieces"
    ):
        pool.take("b", [30, 50], 1)
    assert pool.take("b", [60], 1) == [40]
    with pytest.raises(ValueError, match="above 0"):
        MemoryPool(0)


def test_processes_that_no_transfer_uses_are_forgotten_in_time():
    remotes = _Remotes()
    remotes.use("used", 1)
    assert remotes.is_used("used")
    assert not remotes.is_outdated("used", 1)
    assert remotes.is_outdated("used", 2)
    forgotten = []
    for number in range(300):
        remotes.use(str(number), 1)
        for surplus in remotes.release(str(number)):
            forgotten.append(surplus)
            remotes.forget(surplus)
    assert "used" not in forgotten
    assert forgotten == [str(number) for number in range(45)]
    assert not remotes.is_outdated("0", 2)
