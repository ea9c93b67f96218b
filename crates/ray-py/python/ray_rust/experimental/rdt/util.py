"""Registering transports of tensors, and using them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional

from ray_rust._private.tensors.registry import TransportManagerInfo, registry
from ray_rust.util.annotations import PublicAPI

if TYPE_CHECKING:
    from ray_rust.experimental.rdt.nixl_tensor_transport import NixlTensorTransport
    from ray_rust.experimental.rdt.tensor_transport_manager import TensorTransportManager, TensorTransportMetadata

__all__ = [
    "create_empty_tensors_from_metadata",
    "deregister_nixl_memory",
    "device_match_transport",
    "get_tensor_transport_manager",
    "get_transport_data_type",
    "is_one_sided_transport",
    "normalize_and_validate_tensor_transport",
    "register_nixl_memory",
    "register_nixl_memory_pool",
    "register_tensor_transport",
    "set_nixl_cuda_stream",
]


@PublicAPI(stability="alpha")
def register_tensor_transport(
    transport_name: str,
    devices: list[str],
    transport_manager_class: type[TensorTransportManager],
    data_type: type,
) -> None:
    """Makes a transport of tensors known under a name, for `@method(tensor_transport=...)` and `put`.

    It has to be known before a class is decorated with it. Other processes get to know it with the first value that
    travels by it. `devices` are the kinds of devices whose tensors it takes, and `data_type` is their class: instances
    of it in results are what is moved. ValueError if the name is taken.
    """
    info = TransportManagerInfo(transport_manager_class, list(devices), data_type)
    registry.register(transport_name.upper(), info)


def get_tensor_transport_manager(transport_name: str) -> TensorTransportManager:
    """The instance of a transport in this process."""
    return registry.manager(transport_name)


def get_transport_data_type(tensor_transport: str) -> type:
    """The class of the tensors of a transport."""
    return registry.info(tensor_transport).data_type


def device_match_transport(device: str, tensor_transport: str) -> bool:
    """Whether a transport takes tensors of this kind of device."""
    return device in registry.info(tensor_transport).devices


def normalize_and_validate_tensor_transport(tensor_transport: str) -> str:
    """The name as it is registered. ValueError if there is no such transport."""
    return registry.check(tensor_transport)


def is_one_sided_transport(tensor_transport: str) -> bool:
    """Whether receivers of a transport need no sender."""
    return registry.info(tensor_transport).transport_manager_class.is_one_sided()


def create_empty_tensors_from_metadata(
    tensor_transport_meta: TensorTransportMetadata, device: Optional[str] = None
) -> list[Any]:
    """Tensors to receive into: of NumPy if the metadata has its dtypes, else of PyTorch, on `device` or the same."""
    import sys

    numpy = sys.modules.get("numpy")
    made: list[Any] = []
    for shape, dtype in tensor_transport_meta.tensor_meta:
        if numpy is not None and isinstance(dtype, numpy.dtype):
            made.append(numpy.empty(shape, dtype))
        else:
            from ray_rust._private.tensors.registry import torch_for

            there = tensor_transport_meta.tensor_device if device is None else device
            made.append(torch_for("of this object").empty(shape, dtype=dtype, device=there))
    return made


def _nixl() -> NixlTensorTransport:
    manager: Any = registry.manager("NIXL")
    found: NixlTensorTransport = manager
    return found


@PublicAPI(stability="alpha")
def register_nixl_memory(tensor: Any) -> None:
    """Registers the memory of a tensor with NIXL until `deregister_nixl_memory`, so that values need not each time."""
    _nixl().register_nixl_memory(tensor)


@PublicAPI(stability="alpha")
def deregister_nixl_memory(tensor: Any) -> None:
    """Takes back one `register_nixl_memory`; values that refer to the memory keep it registered."""
    _nixl().deregister_nixl_memory(tensor)


@PublicAPI(stability="alpha")
def register_nixl_memory_pool(size: int, device: Any) -> None:
    """Registers `size` bytes on `device` with NIXL once; tensors are then copied into them instead of registered."""
    _nixl().register_nixl_memory_pool(size, device)


@PublicAPI(stability="alpha")
def set_nixl_cuda_stream(stream: Any) -> None:
    """The CUDA stream that is waited for before tensors of this process are sent; None for all of the device."""
    _nixl().set_cuda_stream(stream)
