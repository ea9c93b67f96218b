"""Tensors on one GPU, between processes of the same node: the receiver maps the sender's memory."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any, Optional

from ray_rust._private.tensors.registry import torch_for
from ray_rust.experimental.rdt.one_sided_transport import OneSidedTransport
from ray_rust.experimental.rdt.tensor_transport_manager import (
    CommunicatorMetadata,
    TensorTransportMetadata,
)

_NAME = "CUDA_IPC"

# Of the arguments of PyTorch's `rebuild_cuda_tensor`, the number of the device in the process that calls it.
_DEVICE_ARGUMENT = 6


@dataclasses.dataclass
class CudaIpcTransportMetadata(TensorTransportMetadata):
    """What the receiver has to know."""

    # For each tensor a function and its arguments, as PyTorch's own processes pass them on.
    handles: list[Any] = dataclasses.field(default_factory=list)
    # Of what the receiver's stream has to wait for.
    event_handle: Optional[bytes] = None
    # The identity of the GPU, whatever its number is in a process.
    device_uuid: str = ""


class CudaIpcTransport(OneSidedTransport):
    """Nothing is copied: what the receiver gets is the sender's memory, as long as that keeps it."""

    def __init__(self) -> None:
        # Events exist as long as the sender keeps them.
        self._events: dict[str, Any] = {}
        self._lock = threading.Lock()

    def tensor_transport_backend(self) -> str:
        return _NAME

    @staticmethod
    def can_abort_transport() -> bool:
        return False

    def extract_tensor_transport_metadata(self, obj_id: str, rdt_object: list[Any]) -> CudaIpcTransportMetadata:
        torch = torch_for(_NAME)
        devices = {tensor.device for tensor in rdt_object}
        if len(devices) != 1:
            raise ValueError(
                f"the tensor transport {_NAME} takes values whose tensors are all on one GPU, "
                f"and these are on {', '.join(sorted(map(str, devices)))}"
            )
        (device,) = devices
        metadata = CudaIpcTransportMetadata([(tensor.shape, tensor.dtype) for tensor in rdt_object], device.type)
        if device.type != "cuda":
            # It is refused by who has asked.
            return metadata
        from torch.multiprocessing.reductions import reduce_tensor  # type: ignore[import-not-found, unused-ignore]

        event = torch.cuda.Event(interprocess=True)
        torch.cuda.current_stream(device).record_event(event)
        with self._lock:
            self._events[obj_id] = event
        metadata.handles = [reduce_tensor(tensor) for tensor in rdt_object]
        metadata.event_handle = event.ipc_handle()
        metadata.device_uuid = _uuid(torch, device)
        return metadata

    def recv_multiple_tensors(
        self,
        obj_id: str,
        tensor_transport_metadata: TensorTransportMetadata,
        communicator_metadata: CommunicatorMetadata,
        target_buffers: Optional[list[Any]] = None,
    ) -> list[Any]:
        metadata: Any = tensor_transport_metadata
        if target_buffers is not None:
            raise ValueError(f"the tensor transport {_NAME} maps the sender's memory, and cannot receive into tensors")
        torch = torch_for(_NAME)
        known = {_uuid(torch, index): index for index in range(torch.cuda.device_count())}
        index = known.get(metadata.device_uuid)
        if index is None:
            raise ValueError(
                f"the tensor transport {_NAME} is for processes that use the same GPU: the sender's is "
                f"{metadata.device_uuid}, and this process has {', '.join(known) or 'none'}"
            )
        event = torch.cuda.Event.from_ipc_handle(torch.device("cuda", index), metadata.event_handle)
        torch.cuda.current_stream(index).wait_event(event)
        tensors = []
        for function, arguments in metadata.handles:
            here = [*arguments]
            if not isinstance(here[_DEVICE_ARGUMENT], int):
                raise RuntimeError(f"the tensor transport {_NAME} does not know this version of PyTorch")  # noqa: TRY004
            here[_DEVICE_ARGUMENT] = index
            tensors.append(function(*here))
        return tensors

    def garbage_collect(self, obj_id: str, tensor_transport_meta: TensorTransportMetadata, tensors: list[Any]) -> None:
        with self._lock:
            self._events.pop(obj_id, None)

    def abort_transport(self, obj_id: str, communicator_metadata: CommunicatorMetadata) -> None:
        raise NotImplementedError(f"the tensor transport {_NAME} cannot abort a transfer")


def _uuid(torch: Any, device: Any) -> str:
    return str(torch.cuda.get_device_properties(device).uuid)
