"""The tensors of this process, and their end."""

from __future__ import annotations

import logging
import queue
import threading
from typing import TYPE_CHECKING, Any, Optional

from ray_rust._private import session
from ray_rust._private.tensors.arrivals import Arrivals
from ray_rust._private.tensors.registry import registry
from ray_rust.experimental.rdt.rdt_store import Kept, RDTStore
from ray_rust.experimental.rdt.tensor_transport_manager import TensorTransportMetadata

if TYPE_CHECKING:
    from ray_rust._internal import ObjectRef

store = RDTStore()
arrivals = Arrivals()

# Ids of tokens that are gone: at most as many as there were tensors.
_released: queue.SimpleQueue[str] = queue.SimpleQueue()
_sweeper: Optional[threading.Thread] = None
_lock = threading.Lock()


def keep(tensors: list[Any], transport: str) -> tuple[ObjectRef, TensorTransportMetadata]:
    """Keeps tensors of this process until nobody refers to the token any more."""
    token = _token()
    object_id = token.hex()
    if not tensors:
        return token, TensorTransportMetadata(tensor_meta=[])
    info, manager = registry.info(transport), registry.manager(transport)
    metadata = manager.extract_tensor_transport_metadata(object_id, tensors)
    if metadata.tensor_device not in info.devices:
        manager.garbage_collect(object_id, metadata, tensors)
        raise ValueError(
            f"the tensor transport {transport} takes tensors on {', '.join(info.devices)}, "
            f"and these are on {metadata.tensor_device}"
        )
    store.add(object_id, Kept(tensors, transport, metadata))
    return token, metadata


def keep_received(tensors: list[Any]) -> ObjectRef:
    """As `keep`, for tensors that came from elsewhere."""
    token = _token()
    store.add(token.hex(), Kept(tensors, None, None))
    return token


def on_released(object_id: str) -> None:
    """A token is gone; told by the core, which must not be kept waiting."""
    _released.put(object_id)


def clear() -> None:
    """This process has left the cluster: nobody can refer to its tensors any more."""
    for object_id in store.ids():
        _released.put(object_id)


def _token() -> ObjectRef:
    """An object whose end is told. Only its existence counts."""
    global _sweeper
    with _lock:
        if _sweeper is None:
            _sweeper = threading.Thread(target=_sweep, name="end of tensors", daemon=True)
            _sweeper.start()
    core = session.connected_core()
    token = core.put(None)
    core.watch(token)
    return token


def _sweep() -> None:
    while True:
        object_id = _released.get()
        kept = store.find(object_id)
        if kept is None:
            # It was handed to who had it sent here, or never described.
            continue
        try:
            if kept.transport is not None and kept.metadata is not None:
                registry.manager(kept.transport).garbage_collect(object_id, kept.metadata, kept.tensors)
        except Exception:
            logging.getLogger("ray_rust").exception(
                "the tensor transport %s could not clean up after tensors that are freed", kept.transport
            )
        finally:
            store.take(object_id)
            # Nothing here refers to tensors while the next is waited for.
            del kept
