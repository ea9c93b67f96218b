"""What may still change: `ray.experimental`."""

from ray_rust.experimental.dynamic_resources import set_resource
from ray_rust.experimental.locations import get_local_object_locations, get_object_locations
from ray_rust.experimental.rdt import (
    CommunicatorMetadata,
    RDTManager,
    TensorTransportManager,
    TensorTransportMetadata,
    deregister_nixl_memory,
    register_nixl_memory,
    register_nixl_memory_pool,
    register_tensor_transport,
    set_nixl_cuda_stream,
    set_target_device_for_ref,
    set_target_for_ref,
    wait_tensor_freed,
)

__all__ = [
    "CommunicatorMetadata",
    "RDTManager",
    "TensorTransportManager",
    "TensorTransportMetadata",
    "deregister_nixl_memory",
    "get_local_object_locations",
    "get_object_locations",
    "register_nixl_memory",
    "register_nixl_memory_pool",
    "register_tensor_transport",
    "set_nixl_cuda_stream",
    "set_resource",
    "set_target_device_for_ref",
    "set_target_for_ref",
    "wait_tensor_freed",
]
