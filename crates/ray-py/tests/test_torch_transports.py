"""Tensors of PyTorch by the built-in transports, in memory of the processor: for who has PyTorch and NIXL installed."""

import gc
import time

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("nixl")

import ray_rust as ray  # noqa: E402
from ray_rust import experimental  # noqa: E402
from ray_rust.experimental.rdt.util import get_tensor_transport_manager  # noqa: E402

LIMIT = 30

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore:.*gets no copy"),
]


def eventually(what, condition):
    until = time.monotonic() + LIMIT
    while time.monotonic() < until:
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError(f"{what} did not happen in {LIMIT} s")


@ray.remote(enable_tensor_transport=True)
class Actor:
    def __init__(self):
        self.tensor = None

    @ray.method(tensor_transport="nixl")
    def make(self, size, fill=1.0):
        self.tensor = torch.full((size,), float(fill))
        return {"a": self.tensor, "b": [torch.arange(6).reshape(2, 3), "text", torch.empty(0)]}

    @ray.method(tensor_transport="nixl")
    def make_transposed(self):
        return torch.ones(2, 3).T

    @ray.method(tensor_transport="cuda_ipc")
    def make_for_cuda_ipc(self):
        return torch.ones(3)

    def total(self, value):
        return float(value["a"].sum()) + float(value["b"][0].sum())

    def put_rows_of_registered(self):
        self.tensor = torch.ones(100)
        experimental.register_nixl_memory(self.tensor)
        return [ray.put([self.tensor[:10], self.tensor[50:60]], _tensor_transport="nixl")]

    def deregister(self):
        experimental.deregister_nixl_memory(self.tensor)

    def make_pool(self, size):
        experimental.register_nixl_memory_pool(size, torch.device("cpu"))

    def registered(self):
        return len(get_tensor_transport_manager("NIXL")._registered)

    def wait_freed(self):
        experimental.wait_tensor_freed(self.tensor, LIMIT)


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(num_cpus=4)
    yield
    ray.shutdown()


@pytest.fixture
def two():
    actors = [Actor.remote(), Actor.remote()]
    yield actors
    for actor in actors:
        ray.kill(actor)


def test_tensors_are_read_from_their_actor_and_memory_is_given_back(two):
    one, other = two
    for number in range(5):
        ref = one.make.remote(1000, number)
        assert ray.get(other.total.remote(ref)) == 1000 * number + 15
        got = ray.get(ref)
        assert float(got["a"].sum()) == 1000 * number
        assert got["b"][1:] == ["text", got["b"][2]]
        assert ray.get(one.total.remote(ref)) == 1000 * number + 15
    del ref, got
    gc.collect()
    ray.get(one.wait_freed.remote())
    for actor in two:
        eventually("the end of registrations", lambda actor=actor: ray.get(actor.registered.remote()) == 0)


def test_targets_are_received_into(two):
    ref = two[0].make.remote(10, 2)
    targets = [torch.zeros(10), torch.zeros((2, 3), dtype=torch.int64), torch.empty(0)]
    experimental.set_target_for_ref(ref, targets)
    assert ray.get(ref)["a"] is targets[0]
    assert float(targets[0].sum()) == 20
    experimental.set_target_device_for_ref(ref, "cpu")
    assert float(ray.get(ref)["a"].sum()) == 20


def test_memory_stays_registered_until_it_is_taken_back(two):
    one, _ = two
    (ref,) = ray.get(one.put_rows_of_registered.remote())
    assert [float(row.sum()) for row in ray.get(ref)] == [10, 10]
    del ref
    gc.collect()
    ray.get(one.wait_freed.remote())
    assert ray.get(one.registered.remote()) == 1
    ray.get(one.deregister.remote())
    assert ray.get(one.registered.remote()) == 0


def test_a_pool_takes_copies_until_it_is_full(two):
    one, other = two
    ray.get(one.make_pool.remote(100_000))
    refs = [one.make.remote(1000, number) for number in range(5)]
    assert [ray.get(other.total.remote(ref)) for ref in refs] == [1000 * number + 15 for number in range(5)]
    assert ray.get(one.registered.remote()) == 1
    with pytest.raises(RuntimeError, match="no room for 400000 bytes more"):
        ray.get(one.make.remote(100_000))
    with pytest.raises(ValueError, match="one only"):
        ray.get(one.make_pool.remote(10))
    del refs
    gc.collect()
    ray.get(other.total.remote(one.make.remote(10)))


def test_tensors_have_to_be_contiguous(two):
    with pytest.raises(ValueError, match="contiguous"):
        ray.get(two[0].make_transposed.remote())


def test_cuda_ipc_takes_tensors_on_gpus_only(two):
    with pytest.raises(ValueError, match="CUDA_IPC takes tensors on cuda, and these are on cpu"):
        ray.get(two[0].make_for_cuda_ipc.remote())


def test_the_sender_is_gone(two):
    one, other = two
    ref = one.make.remote(10)
    assert ray.get(other.total.remote(ref)) == 25
    ray.kill(one)

    def fails():
        try:
            ray.get(other.total.remote(ref))
        except ray.exceptions.RayDirectTransportError as error:
            return "the sender may have died" in str(error)
        return False

    eventually("the failure", fails)
    with pytest.raises(ray.exceptions.RayDirectTransportError, match="the sender may have died"):
        ray.get(ref)
