"""Tensors that go from actor to actor past the object store: `ray.experimental.rdt`."""

from ray_rust.experimental.rdt.rdt_manager import (
    RDTManager,
    set_target_device_for_ref,
    set_target_for_ref,
    wait_tensor_freed,
)
from ray_rust.experimental.rdt.tensor_transport_manager import (
    CommunicatorMetadata,
    TensorTransportManager,
    TensorTransportMetadata,
)
from ray_rust.experimental.rdt.util import (
    deregister_nixl_memory,
    register_nixl_memory,
    register_nixl_memory_pool,
    register_tensor_transport,
    set_nixl_cuda_stream,
)

__all__ = [
    "CommunicatorMetadata",
    "RDTManager",
    "TensorTransportManager",
    "TensorTransportMetadata",
    "deregister_nixl_memory",
    "register_nixl_memory",
    "register_nixl_memory_pool",
    "register_tensor_transport",
    "set_nixl_cuda_stream",
    "set_target_device_for_ref",
    "set_target_for_ref",
    "wait_tensor_freed",
]
