"""Tensors in memory that the receiver reads by NIXL, NVIDIA's library for transfers between machines."""

from __future__ import annotations

import collections
import dataclasses
import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Any, Optional

from ray_rust._private.tensors.registry import torch_for
from ray_rust.experimental.rdt.nixl_memory_pool import MemoryPool
from ray_rust.experimental.rdt.one_sided_transport import OneSidedTransport
from ray_rust.experimental.rdt.tensor_transport_manager import (
    CommunicatorMetadata,
    FetchRequest,
    TensorTransportMetadata,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

_NAME = "NIXL"
_BACKEND = "UCX"

# How often a transfer is looked at, in seconds.
_LOOK_S = 0.001
# Other processes that are remembered without being in use.
_REMEMBERED = 256
# Of the start of a tensor in the pool, in bytes.
_ALIGNMENT = 64

# Address, length in bytes, number of the device.
_Region = tuple[int, int, int]


@dataclasses.dataclass
class NixlTransportMetadata(TensorTransportMetadata):
    """What a receiver has to know."""

    # Where the tensors are; empty ones are left out.
    regions: list[_Region] = dataclasses.field(default_factory=list)
    # The kind of memory, which a pool may have changed.
    memory: str = "cpu"
    agent_name: str = ""
    # How to reach the sender, and what it has registered.
    agent: bytes = b""
    # Changes when the sender has taken back something of that.
    version: int = 0


@dataclasses.dataclass
class _Fetch(FetchRequest):
    """A transfer under way."""

    handle: Any = None
    remote: str = ""
    is_over: bool = False


class _Remotes:
    """Other processes that the agent of this one knows, and how many transfers use each."""

    def __init__(self) -> None:
        # Version and uses, those used last at the end.
        self._known: collections.OrderedDict[str, list[int]] = collections.OrderedDict()

    def is_outdated(self, name: str, version: int) -> bool:
        """Whether it has to be forgotten before it is used."""
        known = self._known.get(name)
        return known is not None and known[0] != version

    def is_used(self, name: str) -> bool:
        """Whether a transfer uses it."""
        return name in self._known and self._known[name][1] > 0

    def use(self, name: str, version: int) -> None:
        """One more transfer."""
        self._known.setdefault(name, [version, 0])[1] += 1
        self._known.move_to_end(name)

    def release(self, name: str) -> list[str]:
        """One transfer less. Returns those that are not to be remembered any more."""
        self._known[name][1] -= 1
        surplus = len(self._known) - _REMEMBERED
        idle = [known for known, (_, uses) in self._known.items() if not uses]
        return idle[: max(0, surplus)]

    def forget(self, name: str) -> None:
        """It is not known any more."""
        self._known.pop(name, None)


class NixlTensorTransport(OneSidedTransport):
    """One-sided: the sender registers memory, and the receiver reads it."""

    def __init__(self) -> None:
        self._agent: Any = None
        # By kind and address of a storage: what NIXL has made of it, and how many need it.
        self._registered: dict[tuple[str, int], list[Any]] = {}
        self._version = 0
        self._remotes = _Remotes()
        self._aborted: set[str] = set()
        self._fetching: collections.Counter[str] = collections.Counter()
        self._pool: Optional[tuple[MemoryPool, Any]] = None
        self._stream: Any = None
        # Memory that a transfer may still write to, for it could not be ended.
        self._lost: list[Any] = []
        # The agent is used by one thread at a time.
        self._changed = threading.Condition(threading.RLock())

    def tensor_transport_backend(self) -> str:
        return _NAME

    @staticmethod
    def can_abort_transport() -> bool:
        return True

    # Memory

    def register_nixl_memory(self, tensor: Any) -> None:
        """Registers the memory of a tensor until it is taken back as often."""
        with self._changed:
            self._register([tensor])

    def deregister_nixl_memory(self, tensor: Any) -> None:
        """Takes back one registration."""
        with self._changed:
            self._deregister([tensor])

    def register_nixl_memory_pool(self, size: int, device: Any) -> None:
        """Registers memory into which tensors are copied."""
        torch = torch_for(_NAME)
        with self._changed:
            if self._pool is not None:
                raise ValueError("this process has a memory pool for NIXL already, and can have one only")
            pool = MemoryPool(size)
            memory = torch.empty(size, dtype=torch.uint8, device=device)
            self._register([memory])
            self._pool = (pool, memory)

    def set_cuda_stream(self, stream: Any) -> None:
        """The stream to wait for before tensors are described; None for all of their devices."""
        self._stream = stream

    def _register(self, tensors: Iterable[Any]) -> None:
        for tensor in tensors:
            key = _storage(tensor)
            known = self._registered.get(key)
            if known is None:
                storage = tensor.untyped_storage()
                region = (storage.data_ptr(), storage.nbytes(), _device_number(tensor), "")
                handle = self._own_agent().register_memory([region], mem_type=_memory(tensor))
                known = self._registered[key] = [handle, 0]
            known[1] += 1

    def _deregister(self, tensors: Iterable[Any]) -> None:
        for tensor in tensors:
            known = self._registered.get(_storage(tensor))
            if known is None:
                continue
            known[1] -= 1
            if not known[1]:
                del self._registered[_storage(tensor)]
                self._version += 1
                self._own_agent().deregister_memory(known[0])

    def _own_agent(self) -> Any:
        if self._agent is None:
            try:
                from nixl._api import (  # type: ignore[import-not-found, unused-ignore]
                    nixl_agent,
                    nixl_agent_config,
                )
            except ImportError as error:
                raise ImportError(
                    f"the tensor transport {_NAME} needs the package nixl, which cannot be imported in this process "
                    f"({error}): install it with 'pip install nixl', on all nodes"
                ) from error
            self._agent = nixl_agent(f"ray-{os.getpid()}-{os.urandom(8).hex()}", nixl_agent_config(backends=[_BACKEND]))
        return self._agent

    # The sender

    def extract_tensor_transport_metadata(self, obj_id: str, rdt_object: list[Any]) -> NixlTransportMetadata:
        kinds = {_memory(tensor) for tensor in rdt_object}
        if len(kinds) != 1:
            raise ValueError(f"the tensors of a value have to be on one kind of device, these are on {sorted(kinds)}")
        if not all(tensor.is_contiguous() for tensor in rdt_object):
            raise ValueError(f"the tensor transport {_NAME} takes contiguous tensors only: use tensor.contiguous()")
        (kind,) = kinds
        if kind == "cuda":
            self._synchronize({tensor.device for tensor in rdt_object})
        described = [(tensor.shape, tensor.dtype) for tensor in rdt_object]
        with self._changed:
            sent, memory = self._prepare(obj_id, rdt_object, kind)
            agent = self._own_agent()
            return NixlTransportMetadata(
                described, kind, _regions(sent), memory, agent.name, agent.get_agent_metadata(), self._version
            )

    def _prepare(self, obj_id: str, tensors: list[Any], kind: str) -> tuple[list[Any], str]:
        """The memory that receivers are to read, and its kind."""
        if self._pool is None or any(_storage(tensor) in self._registered for tensor in tensors):
            self._register(tensors)
            return tensors, kind
        pool, memory = self._pool
        sizes = [_size(tensor) for tensor in tensors]
        copies = []
        for tensor, size, start in zip(tensors, sizes, pool.take(obj_id, sizes, _ALIGNMENT)):
            copy = memory[start : start + size].view(tensor.dtype).view(tensor.shape)
            copy.copy_(tensor)
            copies.append(copy)
        if memory.is_cuda or kind == "cuda":
            self._synchronize({memory.device, *(tensor.device for tensor in tensors)})
        return copies, _memory(memory)

    def _synchronize(self, devices: set[Any]) -> None:
        """Waits for what makes the tensors, of which NIXL knows nothing."""
        devices = {device for device in devices if device.type == "cuda"}
        if self._stream is None:
            for device in devices:
                torch_for(_NAME).cuda.synchronize(device)
            return
        others = sorted(str(device) for device in devices if device != self._stream.device)
        if others:
            raise ValueError(
                f"set_nixl_cuda_stream was given a stream of {self._stream.device}, "
                f"and tensors are on {', '.join(others)}"
            )
        self._stream.synchronize()

    def garbage_collect(self, obj_id: str, tensor_transport_meta: TensorTransportMetadata, tensors: list[Any]) -> None:
        with self._changed:
            if self._pool is None or not self._pool[0].give_back(obj_id):
                self._deregister(tensors)

    # The receiver

    def recv_multiple_tensors(
        self,
        obj_id: str,
        tensor_transport_metadata: TensorTransportMetadata,
        communicator_metadata: CommunicatorMetadata,
        target_buffers: Optional[list[Any]] = None,
    ) -> list[Any]:
        from ray_rust._private.tensors.fetching import timeout_of_transfers

        fetch = self.fetch_multiple_tensors(obj_id, tensor_transport_metadata, communicator_metadata, target_buffers)
        return self.wait_fetch_complete(fetch, timeout_of_transfers())

    def fetch_multiple_tensors(
        self,
        obj_id: str,
        tensor_transport_metadata: TensorTransportMetadata,
        communicator_metadata: CommunicatorMetadata,
        target_buffers: Optional[list[Any]] = None,
    ) -> _Fetch:
        metadata: Any = tensor_transport_metadata
        torch = torch_for(_NAME)
        tensors = target_buffers
        if tensors is None:
            device = metadata.tensor_device
            tensors = [torch.empty(shape, dtype=dtype, device=device) for shape, dtype in metadata.tensor_meta]
        with self._changed:
            self._register(tensors)
            try:
                return self._begin(obj_id, metadata, tensors)
            except BaseException:
                self._deregister(tensors)
                raise

    def _begin(self, obj_id: str, metadata: NixlTransportMetadata, tensors: list[Any]) -> _Fetch:
        regions = _regions(tensors)
        if not regions:
            self._deregister(tensors)
            return _Fetch(obj_id, tensors, is_over=True)
        agent, name = self._own_agent(), metadata.agent_name
        if self._remotes.is_outdated(name, metadata.version):
            from ray_rust._private.tensors.fetching import timeout_of_transfers

            if not self._changed.wait_for(lambda: not self._remotes.is_used(name), timeout_of_transfers()):
                raise TimeoutError(f"other transfers by {_NAME} from the same process did not end in time")
            self._remotes.forget(name)
            agent.remove_remote_agent(name)
        self._remotes.use(name, metadata.version)
        try:
            # What it has registered since it was added last is added.
            agent.add_remote_agent(metadata.agent)
            local = agent.get_xfer_descs(regions, mem_type=_memory(tensors[0]))
            remote = agent.get_xfer_descs(metadata.regions, mem_type=metadata.memory)
            handle = agent.initialize_xfer("READ", local, remote, name, b"")
            state = agent.transfer(handle)
        except Exception as error:
            self._release(name)
            raise _failed(obj_id, f"it could not be begun; the sender may have died ({error})") from error
        fetch = _Fetch(obj_id, tensors, handle, name)
        self._fetching[obj_id] += 1
        if state == "ERR":
            self._end(fetch)
            raise _failed(obj_id, "it could not be begun; the sender may have died")
        return fetch

    def wait_fetch_complete(self, fetch_request: FetchRequest, timeout: float = -1) -> list[Any]:
        fetch: Any = fetch_request
        until = None if timeout < 0 else time.monotonic() + timeout
        while not fetch.is_over:
            with self._changed:
                state, cause = self._look(fetch)
                is_aborted = fetch.obj_id in self._aborted
                is_late = until is not None and time.monotonic() >= until
                if state != "PROC" or is_aborted or is_late:
                    self._end(fetch)
                    self._deregister(fetch.tensors)
            if state == "DONE":
                break
            if state != "PROC":
                raise _failed(fetch.obj_id, f"it has failed; the sender may have died ({cause})") from cause
            if is_aborted:
                raise _failed(fetch.obj_id, "it was aborted")
            if is_late:
                raise TimeoutError(f"the tensors of {fetch.obj_id} have not come by {_NAME} in {timeout:g} s")
            time.sleep(_LOOK_S)
        tensors: list[Any] = fetch.tensors
        return tensors

    def _look(self, fetch: _Fetch) -> tuple[str, Optional[Exception]]:
        try:
            return self._agent.check_xfer_state(fetch.handle), None
        except Exception as error:  # noqa: BLE001 - of any class of NIXL's
            return "ERR", error

    def _end(self, fetch: _Fetch) -> None:
        fetch.is_over = True
        self._fetching[fetch.obj_id] -= 1
        if not self._fetching[fetch.obj_id]:
            del self._fetching[fetch.obj_id]
            self._aborted.discard(fetch.obj_id)
        try:
            self._agent.release_xfer_handle(fetch.handle)
        except Exception:
            logging.getLogger("ray_rust").exception("a transfer by NIXL could not be ended: its memory is kept")
            self._lost.append((fetch.handle, fetch.tensors))
            self._register(fetch.tensors)
        self._release(fetch.remote)

    def _release(self, name: str) -> None:
        for surplus in self._remotes.release(name):
            self._remotes.forget(surplus)
            self._agent.remove_remote_agent(surplus)
        self._changed.notify_all()

    def abort_transport(self, obj_id: str, communicator_metadata: CommunicatorMetadata) -> None:
        with self._changed:
            if self._fetching[obj_id]:
                self._aborted.add(obj_id)
            else:
                del self._fetching[obj_id]


def _failed(obj_id: str, reason: str) -> Exception:
    from ray_rust.exceptions import RayDirectTransportError

    return RayDirectTransportError(f"the tensors of {obj_id} could not be fetched by {_NAME}: {reason}")


def _memory(tensor: Any) -> str:
    return str(tensor.device.type)


def _device_number(tensor: Any) -> int:
    # -1 stands for the processor, and NIXL takes no negative numbers.
    return max(0, int(tensor.get_device()))


def _storage(tensor: Any) -> tuple[str, int]:
    return _memory(tensor), int(tensor.untyped_storage().data_ptr())


def _size(tensor: Any) -> int:
    return int(tensor.numel() * tensor.element_size())


def _regions(tensors: Iterable[Any]) -> list[_Region]:
    return [(tensor.data_ptr(), _size(tensor), _device_number(tensor)) for tensor in tensors if _size(tensor)]
