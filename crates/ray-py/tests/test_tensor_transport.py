"""Tensors that go from actor to actor by a transport, past the object store."""

import asyncio
import dataclasses
import gc
import importlib.util
import os
import socket
import struct
import tempfile
import threading
import time

import numpy as np
import pytest

import ray_rust as ray
from ray_rust import experimental
from ray_rust.experimental.rdt import CommunicatorMetadata, TensorTransportManager, TensorTransportMetadata

LIMIT = 20

# Where transports leave things; workers have it from the driver.
FOLDER = "RAY_RUST_TEST_FOLDER"

# Most tests pass references to the actor that made them, too.
pytestmark = pytest.mark.filterwarnings("ignore:.*gets no copy")


def eventually(what, condition):
    until = time.monotonic() + LIMIT
    while time.monotonic() < until:
        found = condition()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError(f"{what} did not happen in {LIMIT} s")


def store():
    return experimental.RDTManager().rdt_store


def events():
    """What transports were asked for in this process."""
    return list(_events)


_events = []


class Transport(TensorTransportManager):
    """What the transports of these tests have in common."""

    name = ""

    def tensor_transport_backend(self):
        return self.name

    @staticmethod
    def can_abort_transport():
        return True

    def actor_has_tensor_transport(self, actor):
        return True

    def get_communicator_metadata(self, src_actor, dst_actor, backend=None):
        return CommunicatorMetadata()

    def send_multiple_tensors(self, tensors, tensor_transport_metadata, communicator_metadata):
        raise NotImplementedError

    def garbage_collect(self, obj_id, tensor_transport_meta, tensors):
        _events.append(("garbage_collect", obj_id, len(tensors)))

    def abort_transport(self, obj_id, communicator_metadata):
        _events.append(("abort", obj_id))


def described(tensors):
    return [(tensor.shape, tensor.dtype) for tensor in tensors]


@dataclasses.dataclass
class InFiles(TensorTransportMetadata):
    paths: list = dataclasses.field(default_factory=list)


class FileTransport(Transport):
    """One-sided: the sender writes files once, receivers read them."""

    name = "FILE"

    @staticmethod
    def is_one_sided():
        return True

    def extract_tensor_transport_metadata(self, obj_id, rdt_object):
        _events.append(("extract", obj_id, len(rdt_object)))
        paths = []
        for tensor in rdt_object:
            handle, path = tempfile.mkstemp(dir=os.environ[FOLDER])
            with os.fdopen(handle, "wb") as file:
                file.write(np.ascontiguousarray(tensor).tobytes())
            paths.append(path)
        return InFiles(described(rdt_object), "cpu", paths)

    def recv_multiple_tensors(self, obj_id, tensor_transport_metadata, communicator_metadata, target_buffers=None):
        _events.append(("recv", obj_id))
        tensors = []
        for at, (path, (shape, dtype)) in enumerate(
            zip(tensor_transport_metadata.paths, tensor_transport_metadata.tensor_meta)
        ):
            read = np.fromfile(path, dtype).reshape(shape)
            if target_buffers:
                target_buffers[at][...] = read
                read = target_buffers[at]
            tensors.append(read)
        return tensors

    def garbage_collect(self, obj_id, tensor_transport_meta, tensors):
        super().garbage_collect(obj_id, tensor_transport_meta, tensors)
        for path in tensor_transport_meta.paths:
            os.unlink(path)


@dataclasses.dataclass
class Line(CommunicatorMetadata):
    path: str = ""


class SocketTransport(Transport):
    """Two-sided: both sides meet at a socket, and a transfer ends only when both have done their part."""

    name = "SOCKET"

    def __init__(self):
        self._open = {}
        self._aborted = set()
        self._lock = threading.Lock()

    @staticmethod
    def is_one_sided():
        return False

    def extract_tensor_transport_metadata(self, obj_id, rdt_object):
        _events.append(("extract", obj_id, len(rdt_object)))
        return TensorTransportMetadata(described(rdt_object), "cpu")

    def get_communicator_metadata(self, src_actor, dst_actor, backend=None):
        # One for each pair of actors, not for each transfer: the order alone keeps transfers apart.
        pair = f"{src_actor._actor_id.hex()[-8:]}{dst_actor._actor_id.hex()[-8:]}"
        return Line(os.path.join(os.environ[FOLDER], pair))

    def _meet(self, path, obj_id, listens):
        if listens:
            with socket.socket(socket.AF_UNIX) as server:
                if os.path.exists(path):
                    os.unlink(path)
                server.bind(path)
                server.listen(1)
                with self._lock:
                    if obj_id in self._aborted:
                        raise ConnectionError("aborted")
                    self._open[path] = server
                return server.accept()[0]
        until = time.monotonic() + LIMIT
        while time.monotonic() < until:
            made = socket.socket(socket.AF_UNIX)
            try:
                made.connect(path)
            except (FileNotFoundError, ConnectionRefusedError):
                made.close()
                time.sleep(0.002)
            else:
                return made
        raise TimeoutError("nobody receives")

    def send_multiple_tensors(self, tensors, tensor_transport_metadata, communicator_metadata):
        _events.append(("send", [float(tensor.flat[0]) for tensor in tensors]))
        with self._meet(communicator_metadata.path, None, listens=False) as line:
            for tensor in tensors:
                data = np.ascontiguousarray(tensor).tobytes()
                line.sendall(struct.pack("Q", len(data)) + data)
            assert line.recv(1) == b"k"

    def recv_multiple_tensors(self, obj_id, tensor_transport_metadata, communicator_metadata, target_buffers=None):
        with self._meet(communicator_metadata.path, obj_id, listens=True) as line, line.makefile("rb") as file:
            tensors = []
            for shape, dtype in tensor_transport_metadata.tensor_meta:
                (size,) = struct.unpack("Q", file.read(8))
                tensors.append(np.frombuffer(file.read(size), dtype).reshape(shape).copy())
            _events.append(("recv", [float(tensor.flat[0]) for tensor in tensors]))
            line.sendall(b"k")
        return tensors

    def abort_transport(self, obj_id, communicator_metadata):
        super().abort_transport(obj_id, communicator_metadata)
        with self._lock:
            self._aborted.add(obj_id)
            server = self._open.pop(communicator_metadata.path, None)
            if server is not None:
                server.shutdown(socket.SHUT_RDWR)


class BrokenSend(SocketTransport):
    name = "BROKEN_SEND"

    def send_multiple_tensors(self, tensors, tensor_transport_metadata, communicator_metadata):
        raise ConnectionError("the sending cable is cut")


class Stubborn(BrokenSend):
    """As that one, but a receiver cannot be interrupted."""

    name = "STUBBORN"

    @staticmethod
    def can_abort_transport():
        return False


class BrokenReceive(FileTransport):
    name = "BROKEN_RECEIVE"

    def recv_multiple_tensors(self, obj_id, tensor_transport_metadata, communicator_metadata, target_buffers=None):
        raise ConnectionError("the receiving cable is cut")


class Silent(FileTransport):
    """A receiver waits until it is told to give up."""

    name = "SILENT"

    def recv_multiple_tensors(self, obj_id, tensor_transport_metadata, communicator_metadata, target_buffers=None):
        eventually("the end of a transfer", lambda: ("abort", obj_id) in _events)
        raise ConnectionError("given up")


class Elsewhere(FileTransport):
    name = "ELSEWHERE"

    def actor_has_tensor_transport(self, actor):
        return False


class OnCards(FileTransport):
    name = "ON_CARDS"


KINDS = [FileTransport, SocketTransport, BrokenSend, Stubborn, BrokenReceive, Silent, Elsewhere]


def register_here():
    """Makes the transports known; workers do it when they import this module, or a task calls this."""
    for kind in KINDS:
        try:
            experimental.register_tensor_transport(kind.name, ["cpu"], kind, np.ndarray)
        except ValueError:
            return
    experimental.register_tensor_transport("ON_CARDS", ["cuda"], OnCards, np.ndarray)


register_here()


@ray.remote(enable_tensor_transport=True)
class Actor:
    def __init__(self):
        self.made = None

    @ray.method(tensor_transport="file")
    def by_file(self, value):
        return value

    @ray.method(tensor_transport="SOCKET")
    def by_socket(self, value):
        return value

    @ray.method(tensor_transport="FILE")
    def make(self, *shape):
        """Keeps what it returns."""
        self.made = np.ones(shape)
        return self.made

    @ray.method(tensor_transport="FILE")
    def fail(self):
        raise KeyError("nothing is made")

    @ray.method(tensor_transport="FILE")
    def locked(self):
        return [np.ones(1), threading.Lock()]

    def plain(self, value):
        return value

    def put(self, value):
        return [ray.put(value, _tensor_transport="FILE")]

    def after(self, path, value):
        eventually("the file", lambda: os.path.exists(path))
        return value

    def total(self, value, *, other=0, times=1):
        return float((np.sum(value) + np.sum(other)) * times)

    def is_made(self, value):
        return value is self.made

    def get(self, refs, **options):
        return ray.get(refs, **options)

    def total_of(self, refs):
        return sum(float(np.sum(value)) for value in ray.get(refs))

    def add(self, value, number):
        value += number
        return float(np.sum(value))

    def wait_freed(self, timeout=LIMIT):
        experimental.wait_tensor_freed(self.made, timeout)
        return "freed"

    def kept(self):
        return store().get_num_objects()

    def events(self):
        return events()

    def pid(self):
        return os.getpid()


@ray.remote
class Plain:
    def total(self, value):
        return float(np.sum(value))


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER, str(tmp_path_factory.mktemp("tensors")))
        ray.init(num_cpus=8)
        yield
        ray.shutdown()


@pytest.fixture
def two():
    actors = [Actor.remote(), Actor.remote()]
    yield actors
    for actor in actors:
        ray.kill(actor)


def kept(actor):
    return ray.get(actor.kept.remote())


def count(actor, kind):
    return sum(event[0] == kind for event in ray.get(actor.events.remote()))


@pytest.mark.parametrize("method", ["by_file", "by_socket"])
def test_tensors_go_to_another_actor_and_the_rest_by_the_object_store(two, method):
    one, other = two
    value = {"a": np.arange(4.0), "text": "b", "more": [np.full((2, 3), 7, np.int32), 5, None]}
    ref = getattr(one, method).remote(value)
    got = ray.get(other.plain.remote(ref))
    assert got["text"] == "b"
    assert got["more"][1:] == [5, None]
    np.testing.assert_array_equal(got["a"], np.arange(4.0))
    np.testing.assert_array_equal(got["more"][0], np.full((2, 3), 7))
    assert got["more"][0].dtype == np.int32
    assert count(one, "extract") == 1
    assert count(other, "recv") == 1
    assert kept(one) == 1
    eventually("the end of the copy", lambda: kept(other) == 0)


def test_the_receiver_gets_its_own_copy_and_the_same_actor_gets_the_very_tensors(two):
    one, other = two
    ref = one.make.remote(3)
    assert ray.get(one.is_made.remote(ref))
    assert count(one, "recv") == 0
    assert ray.get(other.add.remote(ref, 1)) == 6
    assert ray.get(other.add.remote(ref, 1)) == 6
    assert count(other, "recv") == 2


def test_one_that_is_changed_by_the_actor_that_has_it_is_warned_of(two):
    one, other = two
    ref = one.make.remote(3)
    ray.get(other.total.remote(ref))
    with pytest.warns(UserWarning, match="gets no copy"):
        assert ray.get(one.total.remote(ref)) == 3


@pytest.mark.parametrize("method", ["by_file", "by_socket"])
def test_references_go_to_several_actors_by_position_and_by_name(two, method):
    one, other = two
    third = Actor.remote()
    make = getattr(one, method)
    first, second = make.remote(np.ones(5)), make.remote(np.ones((2, 4)))
    calls = [
        other.total.remote(first, times=2),
        third.total.remote(first, other=first),
        other.total.remote(value=first),
    ]
    assert ray.get(calls) == [10, 10, 5]
    assert ray.get(other.total.remote(first, other=second, times=3)) == 39


def test_a_reference_is_passed_before_there_is_a_value(two):
    one, other = two
    slow = other.plain.remote(np.ones(2))
    refs = [one.by_socket.remote(slow), one.by_file.remote(slow)]
    assert ray.get([other.total.remote(ref) for ref in refs]) == [2, 2]


def test_calls_of_an_actor_keep_their_order_though_tensors_are_waited_for(two):
    one, other = two
    ref = one.by_socket.remote(np.ones(1))
    order = []
    calls = [other.add.remote(ref, 1), other.plain.remote(None), other.add.remote(ref, 2)]
    for call in calls:
        call._on_completed(order.append)
    ray.get(calls)
    eventually("the calls", lambda: len(order) == 3)
    assert order == [2, None, 3]


def test_both_sides_are_told_of_transfers_in_the_same_order(two):
    one, other = two
    numbers = list(range(20))
    there = [one.by_socket.remote(np.full(1, number)) for number in numbers]
    back = [other.by_socket.remote(np.full(1, 100 + number)) for number in numbers]
    # In both directions at once, which a wrong order would bring to a halt.
    totals = [actor.total.remote(ref) for pair in zip(there, back) for actor, ref in zip((other, one), pair)]
    assert ray.get(totals) == [number for pair in zip(numbers, range(100, 120)) for number in pair]

    def moved(actor, kind):
        return [event[1][0] for event in ray.get(actor.events.remote()) if event[0] == kind]

    assert moved(one, "send") == moved(other, "recv")
    assert moved(other, "send") == moved(one, "recv")


@pytest.mark.parametrize("method", ["by_file", "by_socket"])
def test_results_without_tensors_are_values_as_all(two, method):
    one, other = two
    ref = getattr(one, method).remote({"a": 1})
    assert ray.get(ref) == {"a": 1}
    assert ray.get([other.plain.remote(ref), one.plain.remote(ref)]) == [{"a": 1}] * 2
    assert count(one, "extract") == count(other, "recv") == 0
    assert kept(one) == 0


def test_one_tensor_that_is_there_twice_is_one_afterwards(two):
    one, other = two
    tensor = np.ones(2)
    got = ray.get(one.by_file.remote([tensor, {"again": tensor}]))
    assert got[0] is got[1]["again"]
    assert ray.get(other.plain.remote(one.by_file.remote([tensor, tensor])))[1].sum() == 2


def test_references_and_handles_in_the_value_are_counted(two):
    one, other = two
    ref = one.by_file.remote([np.ones(2), other, ray.put("inner")])
    tensor, handle, inner = ray.get(ref)
    del ref
    gc.collect()
    assert ray.get(inner) == "inner"
    assert handle == other
    assert ray.get(handle.total.remote(tensor)) == 2


# get and put


def test_get_fetches_by_a_one_sided_transport_and_by_the_object_store(two):
    one, _ = two
    ref = one.by_file.remote([np.ones(3), "a"])
    before = len(events())
    twice = ray.get([ref, ref])
    assert twice[0][0] is twice[1][0]
    assert twice[0] is not twice[1]
    for got in (ray.get(ref), *twice, ray.get(ref, timeout=LIMIT), ray.get(ref, _use_object_store=True)):
        np.testing.assert_array_equal(got[0], np.ones(3))
        assert got[1] == "a"
    assert [event[0] for event in events()[before:]] == ["recv"] * 3
    assert ray.get([ray.put(1), ref], timeout=LIMIT)[0] == 1
    assert ray.wait([ref], timeout=LIMIT) == ([ref], [])


def test_get_of_a_two_sided_transport_goes_by_the_object_store_only(two):
    ref = two[0].by_socket.remote(np.ones(3))
    with pytest.raises(ValueError, match="_use_object_store=True"):
        ray.get(ref)
    assert ray.get(ref, _use_object_store=True).sum() == 3


def test_a_reference_can_be_awaited_and_made_a_future(two):
    ref = two[0].by_file.remote(np.ones(3))

    async def read():
        return [await ref, await ref.as_future(), await asyncio.wait_for(ref, LIMIT)]

    assert [value.sum() for value in asyncio.run(read())] == [3, 3, 3]
    assert ref.future().result(LIMIT).sum() == 3
    told = []
    ref._on_completed(told.append)
    eventually("the callback", lambda: told)
    assert told[0].sum() == 3
    failed = two[0].fail.remote()
    with pytest.raises(KeyError):
        asyncio.run(_await(failed))
    with pytest.raises(KeyError):
        failed.future().result(LIMIT)


async def _await(ref):
    return await ref


def test_put_inside_an_actor(two):
    one, other = two
    (ref,) = ray.get(one.put.remote({"a": np.ones(4)}))
    assert ray.get(ref)["a"].sum() == 4
    assert ray.get(ref, _use_object_store=True)["a"].sum() == 4
    assert ray.get(other.plain.remote(ref))["a"].sum() == 4
    assert ray.get(one.plain.remote(ref))["a"].sum() == 4
    assert kept(one) == 1
    del ref
    eventually("the end of the tensors", lambda: kept(one) == 0)
    assert count(one, "garbage_collect") == 1


def test_put_in_a_driver(two):
    tensor = np.ones(4)
    ref = ray.put(tensor, _tensor_transport="file")
    assert ray.get(ref) is tensor
    assert ray.get(two[0].total.remote(ref)) == 4
    with pytest.raises(ValueError, match="no actor"):
        ray.get(ref, _use_object_store=True)
    with pytest.raises(TimeoutError, match="still kept"):
        experimental.wait_tensor_freed(tensor, 0)
    del ref
    experimental.wait_tensor_freed(tensor, LIMIT)
    with pytest.raises(ValueError, match="both sides"):
        ray.put(tensor, _tensor_transport="socket")
    assert ray.get(ray.put(tensor, _tensor_transport="object_store")).sum() == 4


def test_others_get_what_a_reference_in_a_container_refers_to(two):
    one, other = two
    refs = [one.by_file.remote(np.ones(2)), one.by_file.remote(np.ones(3))]
    assert ray.get(other.total_of.remote(refs)) == 5
    # Also the actor that has them, and tasks.
    assert ray.get(one.total_of.remote(refs)) == 5

    @ray.remote
    def total_of(refs, actor):
        return sum(float(np.sum(value)) for value in ray.get(refs)) + ray.get(actor.total.remote(refs[0]))

    assert ray.get(total_of.remote(refs, other)) == 7
    got = ray.get(other.get.remote(refs))
    assert [value.sum() for value in got] == [2, 3]
    assert ray.get(other.get.remote([refs[0]], _use_object_store=True))[0].sum() == 2


def test_targets_are_received_into(two):
    ref = two[0].by_file.remote([np.full((2, 2), 5.0), np.full(1, 6.0)])
    targets = [np.zeros((2, 2)), np.zeros(1)]
    experimental.set_target_for_ref(ref, targets)
    got = ray.get(ref)
    assert got[0] is targets[0]
    assert targets[0].sum() == 20
    assert targets[1].sum() == 6
    for wrong, match in (
        ([np.zeros((2, 2))], "1 tensors"),
        ([np.zeros((2, 3)), np.zeros(1)], "shape"),
        ([np.zeros((2, 2), np.int8), np.zeros(1)], "dtype"),
        ([np.zeros((2, 4))[:, ::2], np.zeros(1)], "contiguous"),
    ):
        experimental.set_target_for_ref(ref, wrong)
        with pytest.raises(ValueError, match=match):
            ray.get(ref)
    experimental.set_target_device_for_ref(ref, "cpu:0")
    assert ray.get(ref)[0].sum() == 20
    with pytest.raises(ValueError, match="not on cuda:1"):
        experimental.set_target_device_for_ref(ref, "cuda:1")
    # Targets that are gone are not received into.
    experimental.set_target_for_ref(ref, [np.zeros((2, 2)), np.zeros(1)])
    assert ray.get(ref)[1].sum() == 6
    for refused in (ray.put(1), two[0].plain.remote(1)):
        with pytest.raises(ValueError, match="not a reference to a value"):
            experimental.set_target_for_ref(refused, targets)
        with pytest.raises(ValueError, match="not a reference to a value"):
            experimental.set_target_device_for_ref(refused, "cpu")


# The end of tensors


def test_tensors_are_freed_when_the_last_reference_is_gone(two):
    one, other = two
    ref = one.make.remote(3)
    ray.get(ref)
    with pytest.raises(TimeoutError, match="still kept"):
        ray.get(one.wait_freed.remote(0))
    # Another process has a reference, too.
    copies = ray.get(other.plain.remote([ref]))
    del ref
    assert ray.get(copies[0]).sum() == 3
    with pytest.raises(TimeoutError, match="still kept"):
        ray.get(one.wait_freed.remote(0))
    del copies
    assert ray.get(one.wait_freed.remote()) == "freed"
    assert kept(one) == 0
    assert count(one, "garbage_collect") == 1


def test_a_reference_that_is_dropped_at_once_keeps_the_tensors_until_the_call_has_them(two):
    one, other = two
    totals = [other.total.remote(one.by_file.remote(np.ones(number))) for number in range(10)]
    assert ray.get(totals) == list(range(10))
    eventually("the end of all tensors", lambda: kept(one) == kept(other) == 0)


def test_a_copy_that_no_call_takes_is_freed(two):
    one, other = two
    ref = one.by_file.remote(np.ones(1))

    with pytest.raises(KeyError):
        ray.get(other.total.remote(ref, other=one.fail.remote()))
    eventually("the end of the copy", lambda: kept(other) == 0)
    assert kept(one) == 1


def test_tensors_end_with_the_process_that_refers_to_them(two):
    @ray.remote(max_retries=0)
    def refer(actor):
        register_here()
        ref = actor.make.remote(2)
        ray.get(ref)
        os._exit(1)

    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(refer.remote(two[0]))
    assert ray.get(two[0].wait_freed.remote()) == "freed"


# What is refused


def test_names_are_checked():
    with pytest.raises(ValueError, match="no tensor transport NOWHERE"):
        ray.method(tensor_transport="nowhere")
    with pytest.raises(ValueError, match="no tensor transport NOWHERE"):
        ray.put(1, _tensor_transport="nowhere")
    for name in ("nccl", "GLOO"):
        with pytest.raises(NotImplementedError, match=r"ray\.util\.collective"):
            ray.method(tensor_transport=name)
    for name in ("FILE", "file", "nixl", "object_store"):
        with pytest.raises(ValueError, match="already"):
            experimental.register_tensor_transport(name, ["cpu"], FileTransport, np.ndarray)
    with pytest.raises(ValueError, match="inherit from TensorTransportManager"):
        experimental.register_tensor_transport("NEW", ["cpu"], int, np.ndarray)
    with pytest.raises(ValueError, match="no tensor transport NEW"):
        ray.method(tensor_transport="NEW")


def test_an_actor_has_to_have_tensor_transports(two):
    ref = two[0].by_file.remote(np.ones(2))
    plain = Plain.remote()
    with pytest.raises(ValueError, match="enable_tensor_transport=True"):
        plain.total.remote(ref)
    with pytest.raises(ValueError, match="enable_tensor_transport=True"):
        plain.total.options(tensor_transport="FILE").remote(1)
    assert ray.get(plain.total.remote(ray.get(ref))) == 2
    with pytest.raises(ValueError, match="enable_tensor_transport=False"):
        Actor.options(enable_tensor_transport=False)
    enabled = Plain.options(enable_tensor_transport=True).remote()
    assert ray.get(enabled.total.remote(ref)) == 2
    assert ray.get(enabled.total.options(tensor_transport="FILE").remote(1)) == 1
    with pytest.raises(ValueError, match="by what that says"):
        enabled.total.options(tensor_transport="elsewhere").remote(1)
    with pytest.raises(ValueError, match="one value"):
        enabled.total.options(tensor_transport="file", num_returns=2).remote(1)


def test_tensors_on_other_devices_are_refused(two):
    one = two[0]
    with pytest.raises(ValueError, match="on cuda, and these are on cpu"):
        ray.get(one.plain.options(tensor_transport="on_cards").remote(np.ones(1)))
    assert count(one, "garbage_collect") == 1
    assert kept(one) == 0


def test_tasks_and_constructors_take_no_references_to_tensors(two):
    ref = two[0].by_file.remote(np.ones(2))

    @ray.remote
    def total(value):
        return float(np.sum(value))

    for refuse in (lambda: total.remote(ref), lambda: total.remote(value=ref), lambda: Taking.remote(ref)):
        with pytest.raises(ValueError, match="to methods of actors only"):
            refuse()
    assert ray.get(total.remote(ray.get(ref))) == 2


@ray.remote
class Taking:
    def __init__(self, value):
        pass


# Failures


def test_what_the_method_raises_goes_to_all_who_want_the_value(two):
    one, other = two
    ref = one.fail.remote()
    for failed in (ref, other.total.remote(ref), one.total.remote(ref)):
        with pytest.raises(KeyError, match="nothing is made"):
            ray.get(failed)
    assert ray.get(other.plain.remote(1)) == 1
    with pytest.raises(TypeError, match="cannot pickle the part of a value that is no tensor"):
        ray.get(one.locked.remote())


def test_a_failure_to_receive_is_raised_where_the_tensors_are_wanted(two):
    one, other = two
    ref = one.plain.options(tensor_transport="broken_receive").remote(np.ones(2))
    with pytest.raises(ConnectionError, match="the receiving cable is cut"):
        ray.get(other.total.remote(ref))
    with pytest.raises(ConnectionError, match="the receiving cable is cut"):
        ray.get(ref)
    assert ray.get(other.total.remote(one.by_file.remote(np.ones(2)))) == 2
    eventually("nothing being kept", lambda: kept(other) == 0)


def test_a_failure_to_send_aborts_the_transfer_at_both_sides(two):
    one, other = two
    ref = one.plain.options(tensor_transport="broken_send").remote(np.ones(2))
    with pytest.raises(RuntimeError, match="aborted: sending failed: ConnectionError: the sending cable is cut"):
        ray.get(other.total.remote(ref))
    eventually("the abortion at the sender", lambda: count(one, "abort") == 1)
    eventually("the abortion at the receiver", lambda: count(other, "abort") == 1)
    # Both go on.
    assert ray.get(other.total.remote(one.by_socket.remote(np.ones(2)))) == 2


def test_what_cannot_be_aborted_ends_both_actors(two):
    one, other = two
    ref = one.plain.options(tensor_transport="stubborn").remote(np.ones(2))
    with pytest.raises(ray.exceptions.ActorDiedError):
        ray.get(other.total.remote(ref))
    for actor in two:
        with pytest.raises(ray.exceptions.ActorDiedError):
            ray.get(actor.plain.remote(1))


def test_a_transfer_without_end_is_aborted(two, monkeypatch):
    monkeypatch.setenv("RAY_rdt_fetch_fail_timeout_milliseconds", "200")
    one, other = two
    ref = one.plain.options(tensor_transport="silent").remote(np.ones(2))
    with pytest.raises(Exception, match=r"not there after 0\.2 s"):
        ray.get(other.total.remote(ref))
    eventually("the abortion", lambda: count(other, "abort") == 1)
    assert ray.get(other.total.remote(one.by_file.remote(np.ones(2)))) == 2


def test_the_sender_dies(two):
    one, other = two
    by_socket, by_file = one.by_socket.remote(np.ones(2)), one.by_file.remote(np.ones(3))
    ray.wait([by_socket, by_file], num_returns=2)
    ray.kill(one)
    with pytest.raises(RuntimeError, match="aborted: sending failed: ActorDiedError"):
        ray.get(other.total.remote(by_socket))
    with pytest.raises(ray.exceptions.ActorDiedError):
        ray.get(by_socket, _use_object_store=True)
    # What was written to files is there without it.
    assert ray.get(other.total.remote(by_file)) == 3


def test_the_receiver_dies(two):
    one, other = two
    ref = one.by_socket.remote(np.ones(2))
    ray.get(other.plain.remote(1))
    ray.kill(other)
    with pytest.raises(ray.exceptions.ActorDiedError):
        ray.get(other.total.remote(ref))
    assert ray.get(one.total.remote(ref)) == 2


def test_tensors_of_before_a_restart_are_lost():
    actor = Actor.options(max_restarts=1).remote()
    other = Actor.remote()
    ref = actor.by_socket.remote(np.ones(2))
    ray.wait([ref])
    pid = ray.get(actor.pid.remote())
    ray.kill(actor, no_restart=False)

    def restarted():
        try:
            return ray.get(actor.pid.remote()) != pid
        except ray.exceptions.RayActorError:
            return False

    eventually("the restart", restarted)
    with pytest.raises(RuntimeError, match="restarted since"):
        ray.get(actor.total.remote(ref))
    with pytest.raises(RuntimeError, match="restarted since"):
        ray.get(other.total.remote(ref))
    assert ray.get(other.total.remote(actor.by_socket.remote(np.ones(2)))) == 2


# Kinds of actors and methods


def test_a_limit_of_pending_calls_holds_for_calls_of_users(two, tmp_path):
    one, other = two
    limited = Actor.options(max_pending_calls=2).remote()
    ref = one.by_socket.remote(other.after.remote(str(tmp_path / "go"), np.ones(2)))
    # To wait for the tensors is a call, too.
    total = limited.total.remote(ref)
    with pytest.raises(ray.exceptions.PendingCallsLimitExceeded):
        limited.plain.remote(None)
    # Now that there are as many calls as may be, the tensors come, and have to be received.
    (tmp_path / "go").touch()
    assert ray.get(total) == 2


def test_asynchronous_actors_and_generators(two):
    @ray.remote(enable_tensor_transport=True)
    class Async:
        @ray.method(tensor_transport="FILE")
        async def make(self, value):
            await asyncio.sleep(0)
            return value

        @ray.method(tensor_transport="SOCKET")
        async def make_by_socket(self, value):
            return value

        async def total(self, value):
            return float(np.sum(value))

        async def count(self, value):
            for item in value:
                yield float(item)

    class_of = two[0]
    actor, other = Async.remote(), Async.remote()
    for ref in (actor.make.remote(np.ones(2)), actor.make_by_socket.remote(np.ones(2))):
        assert ray.get([a.total.remote(ref) for a in (actor, other, class_of)]) == [2, 2, 2]
        assert [ray.get(item) for item in other.count.remote(ref)] == [1, 1]


def test_a_transport_that_only_this_program_knows(two):
    one, other = two

    class Own(FileTransport):
        name = "OWN"

    experimental.register_tensor_transport("own", ["cpu"], Own, np.ndarray)
    ref = one.plain.options(tensor_transport="own").remote(np.ones(2))
    assert ray.get(other.total.remote(ref)) == 2
    assert ray.get(other.total_of.remote([ref])) == 2
    assert ray.get(ref).sum() == 2


def test_a_handle_that_came_from_elsewhere(two):
    one, other = two

    @ray.remote
    def use(one, other):
        register_here()
        ref = one.by_socket.remote(np.ones(2))
        return ray.get(other.total.remote(ref))

    assert ray.get(use.remote(one, other)) == 2


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="PyTorch is there")
def test_built_in_transports_say_what_is_missing(two):
    for name in ("nixl", "cuda_ipc"):
        with pytest.raises(ImportError, match="pip install torch"):
            two[0].plain.options(tensor_transport=name).remote(1)
    for call in (
        lambda: experimental.register_nixl_memory(None),
        lambda: experimental.deregister_nixl_memory(None),
        lambda: experimental.register_nixl_memory_pool(1, "cpu"),
        lambda: experimental.set_nixl_cuda_stream(None),
    ):
        with pytest.raises(ImportError, match="pip install"):
            call()
