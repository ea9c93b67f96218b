"""`get` and `put` of values whose tensors have a transport."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Optional

from ray_rust._private import session
from ray_rust._private.tensors import packing, shelf
from ray_rust._private.tensors.packing import TensorShell
from ray_rust._private.tensors.refs import TensorRef
from ray_rust._private.tensors.registry import arrived, registry, travelling
from ray_rust.exceptions import GetTimeoutError, ObjectFetchTimedOutError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ray_rust._internal import ObjectRef
    from ray_rust.actor import ActorHandle

_DEFAULT_TIMEOUT_MS = 60_000


def timeout_of_transfers() -> float:
    """How long tensors may be on their way, in seconds."""
    given = os.environ.get("RAY_rdt_fetch_fail_timeout_milliseconds", "")  # noqa: SIM112 - Ray's name
    try:
        return int(given or _DEFAULT_TIMEOUT_MS) / 1000
    except ValueError:
        raise ValueError(f"RAY_rdt_fetch_fail_timeout_milliseconds has to be a whole number, is {given!r}") from None


def get_all(refs: Sequence[ObjectRef], timeout: Optional[float], *, use_object_store: bool) -> list[Any]:
    """The values of these references, of which some are to tensors. What is there twice is fetched once."""
    until = None if timeout is None else time.monotonic() + timeout
    values = session.connected_core().get(refs, timeout)
    fetched: dict[ObjectRef, list[Any]] = {}
    for index, (ref, shell) in enumerate(zip(refs, values)):
        if isinstance(ref, TensorRef) and isinstance(shell, TensorShell):
            if ref not in fetched:
                fetched[ref] = _tensors_of(ref, shell, until, use_object_store=use_object_store)
            values[index] = shell.fill(fetched[ref])
    return values


def fill(ref: TensorRef, shell: Any) -> Any:
    """The value of a shell, with its tensors."""
    return shell.fill(_tensors_of(ref, shell)) if isinstance(shell, TensorShell) else shell


def _tensors_of(
    ref: TensorRef, shell: TensorShell, until: Optional[float] = None, *, use_object_store: bool = False
) -> list[Any]:
    """Waits for them until then."""
    if not shell.count:
        return []
    kept = None if use_object_store else shelf.store.find(shell.object_id)
    if kept is not None:
        return kept.tensors
    fetch = _by_object_store if use_object_store else _by_transport
    tensors = fetch(ref, shell, _Patience(ref, until))
    shell.check(tensors)
    return tensors


class _Patience:
    """How long tensors are waited for: as `get` was told, and not longer than a transfer may take."""

    def __init__(self, ref: TensorRef, until: Optional[float]) -> None:
        limit = timeout_of_transfers()
        self._ref = ref
        self._limit = limit
        most = time.monotonic() + limit
        self._is_own = until is None or most < until
        self._until = most if until is None else min(most, until)

    def left(self) -> float:
        """In seconds; raises if there is none."""
        left = self._until - time.monotonic()
        if left <= 0:
            raise self.error()
        return left

    def error(self) -> Exception:
        """What is raised then."""
        if self._is_own:
            return ObjectFetchTimedOutError(self._ref.hex(), None, "")
        return GetTimeoutError(f"get() has not got the tensors of {self._ref!r} in time")


def _by_transport(ref: TensorRef, shell: TensorShell, patience: _Patience) -> list[Any]:
    name = arrived(shell.transport)
    manager = registry.manager(name)
    if not manager.is_one_sided():
        raise ValueError(
            f"get() of {ref!r} is not possible: with the tensor transport {name} both sides take part in a transfer. "
            "Pass it to a method of an actor, or let get(..., _use_object_store=True) fetch the tensors by the "
            "object store"
        )
    communicator = manager.get_communicator_metadata(None, None, name)
    request = manager.fetch_multiple_tensors(shell.object_id, shell.metadata, communicator, ref.targets(shell.metadata))
    try:
        return manager.wait_fetch_complete(request, timeout=patience.left())
    except TimeoutError:
        raise patience.error() from None


def _by_object_store(ref: TensorRef, shell: TensorShell, patience: _Patience) -> list[Any]:
    if ref.source is None:
        raise ValueError(
            f"_use_object_store=True is not possible for {ref!r}: it was put by a process that is no actor, "
            "which cannot be asked for the tensors"
        )
    if ref.has_target:
        import logging

        logging.getLogger("ray_rust").warning(
            "the target that was set for %r has no effect with _use_object_store=True", ref
        )
    from ray_rust._private.tensors import calls

    found = calls.ask(ref.source, calls.SYSTEM_GROUP, calls.give_tensors, shell.object_id)
    try:
        (tensors,) = session.connected_core().get((found,), patience.left())
    except GetTimeoutError:
        raise patience.error() from None
    return list(tensors)


def put(value: Any, tensor_transport: str) -> ObjectRef:
    """Stores a value whose tensors stay in this process."""
    name = registry.check(tensor_transport)
    if not registry.info(name).transport_manager_class.is_one_sided():
        raise ValueError(
            f"put() is not possible with the tensor transport {name}, with which both sides take part in a transfer: "
            f"return the value from a method with tensor_transport={name!r}"
        )
    shell = packed(value, name)
    ref = session.connected_core().put(shell)
    return TensorRef.of(ref, shell.transport, _this_actor())


def packed(value: Any, transport: str) -> TensorShell:
    """A value of this process without its tensors, which are kept."""
    packed = packing.pack(value, registry.info(transport).data_type)
    token, metadata = shelf.keep(packed.tensors, transport)
    return TensorShell(
        token.hex(),
        travelling(transport),
        metadata,
        token,
        len(packed.tensors),
        packed.data,
        packed.buffers,
        packed.references,
    )


def _this_actor() -> Optional[ActorHandle[Any]]:
    from ray_rust.runtime_context import get_runtime_context

    try:
        return get_runtime_context().current_actor
    except RuntimeError:
        return None
