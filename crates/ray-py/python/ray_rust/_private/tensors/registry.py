"""The transports that this process knows."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional

from ray_rust._private import session

if TYPE_CHECKING:
    from ray_rust._internal import CoreWorker, ObjectRef
    from ray_rust._private.tensors.packing import Travelling
    from ray_rust.experimental.rdt.tensor_transport_manager import TensorTransportManager

# The name for "by the object store", which needs none of this.
OBJECT_STORE = "OBJECT_STORE"

# Transports of Ray that are made of another of its libraries.
_COLLECTIVE = frozenset({"NCCL", "GLOO"})


class TransportManagerInfo(NamedTuple):
    """What is registered for one transport."""

    transport_manager_class: type[TensorTransportManager]
    devices: list[str]
    data_type: type


class TransportRegistry:
    """Transports by name, in capital letters, and the one instance of each that this process has made.

    `built_in` are those of the system, made when they are used for the first time.
    """

    def __init__(self, built_in: dict[str, Callable[[], TransportManagerInfo]]) -> None:
        self._built_in = built_in
        self._known: dict[str, TransportManagerInfo] = {}
        self._managers: dict[str, TensorTransportManager] = {}
        self._lock = threading.RLock()

    def register(self, name: str, info: TransportManagerInfo) -> None:
        """ValueError if the name is taken, or the class is not one of a transport."""
        from ray_rust.experimental.rdt.tensor_transport_manager import TensorTransportManager

        manager_class = info.transport_manager_class
        if not (isinstance(manager_class, type) and issubclass(manager_class, TensorTransportManager)):
            raise ValueError(  # noqa: TRY004 - as Ray
                f"the class of the tensor transport {name} has to inherit from TensorTransportManager, "
                f"which {manager_class!r} does not"
            )
        with self._lock:
            if name in self._known or name in self._built_in or name == OBJECT_STORE:
                raise ValueError(f"there is a tensor transport {name} already in this process")
            self._known[name] = info

    def check(self, name: str) -> str:
        """The name as it is kept. Raises if there is no such transport; imports nothing."""
        name = name.upper()
        if name in self._known or name in self._built_in:
            return name
        if name in _COLLECTIVE:
            raise NotImplementedError(
                f"the tensor transport {name} is made of Ray's collective library (ray.util.collective), which is not "
                "part of this package: use another one, or register your own under this name with "
                "ray.experimental.register_tensor_transport"
            )
        known = ", ".join(sorted({*self._known, *self._built_in, OBJECT_STORE}))
        raise ValueError(
            f"there is no tensor transport {name} in this process, which knows {known}. Register it with "
            "ray.experimental.register_tensor_transport before it is used"
        )

    def info(self, name: str) -> TransportManagerInfo:
        """What is registered; ImportError if a package is missing that the transport needs."""
        with self._lock:
            name = self.check(name)
            info = self._known.get(name)
            if info is None:
                info = self._known[name] = self._built_in[name]()
            return info

    def manager(self, name: str) -> TensorTransportManager:
        """The instance of this process."""
        with self._lock:
            name = self.check(name)
            manager = self._managers.get(name)
            if manager is None:
                manager = self._managers[name] = self.info(name).transport_manager_class()
            return manager

    def is_built_in(self, name: str) -> bool:
        """Whether every process knows it."""
        return name in self._built_in

    def knows(self, name: str) -> bool:
        """Whether it can be used in this process."""
        return name in self._known or name in self._built_in


def _cuda_ipc() -> TransportManagerInfo:
    from ray_rust.experimental.rdt import cuda_ipc_transport

    return TransportManagerInfo(cuda_ipc_transport.CudaIpcTransport, ["cuda"], torch_for("CUDA_IPC").Tensor)


def _nixl() -> TransportManagerInfo:
    from ray_rust.experimental.rdt import nixl_tensor_transport

    return TransportManagerInfo(nixl_tensor_transport.NixlTensorTransport, ["cuda", "cpu"], torch_for("NIXL").Tensor)


def torch_for(transport: str) -> Any:
    """The package PyTorch. ImportError that says what to install."""
    try:
        import torch  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise ImportError(
            f"the tensor transport {transport} moves tensors of PyTorch, which cannot be imported in this process "
            f"({error}): install it with 'pip install torch', on all nodes"
        ) from error
    return torch


registry = TransportRegistry({"NIXL": _nixl, "CUDA_IPC": _cuda_ipc})

# What registers a transport in other processes, by its name, and the connection for which that was stored.
_stored: dict[str, tuple[CoreWorker, ObjectRef]] = {}
_store_lock = threading.Lock()


def travelling(name: str) -> Travelling:
    """A transport in a form that can be sent; `arrived` reads it."""
    if registry.is_built_in(name):
        return name, None
    core = session.connected_core()
    with _store_lock:
        stored = _stored.get(name)
        if stored is None or stored[0] is not core:
            stored = _stored[name] = (core, core.put(registry.info(name)))
        return name, stored[1]


def arrived(transport: Travelling) -> str:
    """The name of a transport that was sent here, which is known here from now on."""
    name, registration = transport
    if registration is not None and not registry.knows(name):
        (info,) = session.connected_core().get((registration,), None)
        try:
            registry.register(name, info)
        except ValueError:
            # Another thread may have been faster.
            if not registry.knows(name):
                raise
    return registry.check(name)


def of_options(options: dict[str, Any]) -> Optional[str]:
    """The transport that options of a method name; None if results go by the object store."""
    name = options.get("tensor_transport")
    return None if name is None or name.upper() == OBJECT_STORE else registry.check(name)
