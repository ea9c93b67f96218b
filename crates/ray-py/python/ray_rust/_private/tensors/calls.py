"""Calls of actors that take or return tensors, and the transfers that go with them.

Who calls a method with a reference to tensors asks both actors: the one that has them to *send* (unless the transport
is one-sided), the other one to *receive*, and once more to say what became of it. What it says then is an argument
of the call, which so is made when the tensors are there, and fails with the transfer.

```text
 caller        source                   destination
   |---- send ----->|                        |       system group: one after the other, in the
   |-------------- receive ----------------->|       order in which all callers' values were made
   |               ... the transport ...     |
   |----------- wait for arrival ----------->|       group of arrivals
   |<--------------- receipt ----------------|
   |-------- the method, with receipt ------>|
```
The calls of these groups are never held back by other calls to the same actor.
"""

from __future__ import annotations

import logging
import os
import threading
import types
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional

from ray_rust._internal import MethodDescription
from ray_rust._private import session
from ray_rust._private.tensors import fetching, shelf
from ray_rust._private.tensors.packing import TensorShell, Travelling
from ray_rust._private.tensors.refs import TensorRef
from ray_rust._private.tensors.registry import arrived, of_options, registry, travelling
from ray_rust._private.tensors.transfer import TransferWatch

if TYPE_CHECKING:
    from ray_rust._internal import CoreWorker, ObjectRef
    from ray_rust.actor import ActorHandle, ActorMethod
    from ray_rust.experimental.rdt.tensor_transport_manager import CommunicatorMetadata, TensorTransportManager

# Groups that actors with tensor transports have beside their own, with one thread each.
SYSTEM_GROUP = "_ray_system"
ERROR_GROUP = "_ray_system_error"
ARRIVAL_GROUP = "_ray_system_arrivals"
GROUPS = (SYSTEM_GROUP, ERROR_GROUP, ARRIVAL_GROUP)

# Transfers are asked for in one order, the same for all actors.
_order = threading.Lock()


class Receipt(NamedTuple):
    """Tensors that have come to an actor."""

    object_id: str
    # They are kept there as long as this exists.
    token: ObjectRef


class _Plan(NamedTuple):
    """What to do with the arguments that follow: first receipts, then what the method gets."""

    method: str
    receipts: int
    # Names of the last of them.
    names: tuple[str, ...]
    # Of the result.
    transport: Optional[Travelling]


# In the process that calls


def call(method: ActorMethod, core: CoreWorker, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Calls a method that takes references to tensors, or whose result has a transport."""
    from ray_rust.actor import ActorMethod

    handle: ActorHandle[Any] = method._handle  # noqa: SLF001
    description = handle._description  # noqa: SLF001
    options = method._options  # noqa: SLF001
    transport = of_options(options)
    if transport is not None:
        _check_result(method, handle, options, transport)
    given = [*args, *kwargs.values()]
    receipts = _receive_all(given, handle)
    given = [ref.plain() if isinstance(ref, TensorRef) else ref for ref in given]
    returned = None if transport is None else travelling(transport)
    plan = _Plan(method._name, len(receipts), tuple(kwargs), returned)  # noqa: SLF001
    through = ActorMethod(handle, description.call(method._name, options, "__ray_call__"))  # noqa: SLF001
    made: Any = through._call(core, (run_method, plan, *receipts, *given), {})  # noqa: SLF001
    return made if returned is None else TensorRef.of(made, returned, handle)


def _check_result(method: ActorMethod, handle: ActorHandle[Any], options: dict[str, Any], transport: str) -> None:
    name = method._task_name  # noqa: SLF001
    if options.get("num_returns", 1) != 1 or handle._description.methods[method._name][2]:  # noqa: SLF001
        raise ValueError(f"{name} has tensor_transport={transport!r}, which is for methods that return one value")
    _check_enabled(handle, f"{name} has tensor_transport={transport!r}, but its actor")
    if not registry.manager(transport).actor_has_tensor_transport(handle):
        raise ValueError(
            f"{name} cannot use the tensor transport {transport}: by what that says, {handle!r} does not have it"
        )


def _check_enabled(handle: ActorHandle[Any], what: str) -> None:
    if not handle._description.tensor_transport:  # noqa: SLF001
        raise ValueError(
            f"{what} was made without tensor transports: decorate its class with "
            "@ray.remote(enable_tensor_transport=True)"
        )


def _receive_all(given: list[Any], handle: ActorHandle[Any]) -> list[ObjectRef]:
    """Has the tensors of all these references sent to an actor. Returns references to its receipts."""
    refs = {ref.hex(): ref for ref in given if isinstance(ref, TensorRef)}
    if not refs:
        return []
    # Nothing is sent if something is wrong with one of them.
    _check_enabled(handle, f"{next(iter(refs.values()))!r} refers to tensors, but {handle!r}")
    for ref in refs.values():
        ref.note_destination(handle)
    transfers = [_Transfer(ref, handle) for ref in refs.values() if not ref.is_from(handle)]
    return [transfer.start() for transfer in transfers]


class _Transfer:
    """One transfer, in the process that asks for it."""

    def __init__(self, ref: TensorRef, destination: ActorHandle[Any]) -> None:
        self._ref = ref
        self._destination = destination
        self._name = arrived(ref.transport)
        self._manager: TensorTransportManager = registry.manager(self._name)
        self._transport = travelling(self._name)
        self._communicator: CommunicatorMetadata = self._manager.get_communicator_metadata(
            ref.source, destination, self._name
        )
        self._id = os.urandom(16).hex()
        self._watch = TransferWatch(is_one_sided=self._manager.is_one_sided())
        self._timeout = fetching.timeout_of_transfers()

    def start(self) -> ObjectRef:
        """Returns a reference to the receipt."""
        plain = self._ref.plain()
        receipt = ask(self._destination, ARRIVAL_GROUP, await_arrival, self._id, plain, self._timeout)
        receipt._on_completed(self._on_arrival)  # noqa: SLF001
        plain._on_completed(self._on_value)  # noqa: SLF001
        return receipt

    def _on_value(self, shell: Any) -> None:
        """The value is there, or an exception that is told to who waits for the receipt."""
        if not isinstance(shell, TensorShell) or not self._watch.begin(is_sent=not shell.count):
            return
        plain, source = self._ref.plain(), self._ref.source
        with _order:
            if shell.count and not self._manager.is_one_sided() and source is not None:
                args = (shell.object_id, shell.metadata, self._communicator, self._transport)
                sent = ask(source, SYSTEM_GROUP, send_tensors, *args)
                sent._on_completed(self._on_sent)  # noqa: SLF001
            ask(self._destination, SYSTEM_GROUP, receive_tensors, self._id, plain, self._communicator)
        self._object_id = shell.object_id

    def _on_sent(self, outcome: Any) -> None:
        self._stop(self._watch.on_sent(outcome if isinstance(outcome, BaseException) else None))

    def _on_arrival(self, outcome: Any) -> None:
        self._stop(self._watch.on_arrival(outcome if isinstance(outcome, BaseException) else None))
        if self._watch.wants_deadline:
            timer = threading.Timer(self._timeout, lambda: self._stop(self._watch.on_deadline(self._timeout)))
            timer.daemon = True
            timer.start()

    def _stop(self, reason: Optional[str]) -> None:
        """Ends the transfer at both sides, as far as the transport can do that; else the actors."""
        if reason is None or not session.is_initialized():
            return
        source, destination = self._ref.source, self._destination
        logger = logging.getLogger("ray_rust")
        if self._manager.can_abort_transport():
            logger.warning("the transfer of the tensors of %r to %r is aborted: %s", self._ref, destination, reason)
            sides = [destination] if self._manager.is_one_sided() or source is None else [source, destination]
            for side in sides:
                args = (self._id, self._object_id, self._communicator, self._transport, reason)
                ask(side, ERROR_GROUP, abort_transfer, *args)
            return
        sides = [destination] if source is None else [source, destination]
        logger.error(
            "the transfer of the tensors of %r from %r to %r has failed, and the tensor transport %s cannot abort it, "
            "so both actors are killed: %s",
            self._ref,
            source,
            destination,
            self._name,
            reason,
        )
        from ray_rust._private.api import kill

        for side in sides:
            kill(side)


def ask(actor: ActorHandle[Any], group: str, function: Callable[..., Any], *args: Any) -> ObjectRef:
    """Has an actor call a function of this module, in one of its system groups."""
    from ray_rust.actor import ActorMethod

    description = actor._description  # noqa: SLF001
    name = f"{description.class_name}.{function.__name__}"
    shape = description.methods["__ray_call__"][0].shape
    called = MethodDescription(("__ray_call__", group), name, shape, 1, 0, task_events=False)
    made: Any = ActorMethod(actor, called)._call(session.connected_core(), (function, *args), {})  # noqa: SLF001
    ref: ObjectRef = made
    return ref


# In actors


def run_method(actor: Any, plan: _Plan, *given: Any) -> Any:
    """A method that gets values with their tensors, or gives some."""
    received: dict[str, list[Any]] = {}
    for receipt in given[: plan.receipts]:
        kept = shelf.store.take(receipt.token.hex())
        if kept is None:
            raise RuntimeError(
                "the tensors of an argument were handed to an attempt of this call before, and are not kept for others"
            )
        received[receipt.object_id] = kept.tensors
    values = [_filled(value, received) for value in given[plan.receipts :]]
    at = len(values) - len(plan.names)
    result = getattr(actor, plan.method)(*values[:at], **dict(zip(plan.names, values[at:])))
    if plan.transport is None:
        return result
    name = arrived(plan.transport)
    return _pack_later(result, name) if isinstance(result, types.CoroutineType) else fetching.packed(result, name)


async def _pack_later(result: Any, transport: str) -> TensorShell:
    return fetching.packed(await result, transport)


def _filled(value: Any, received: dict[str, list[Any]]) -> Any:
    if not isinstance(value, TensorShell):
        return value
    tensors = received.get(value.object_id)
    if tensors is None:
        tensors = _own(value.object_id) if value.count else []
    return value.fill(tensors)


def _own(object_id: str) -> list[Any]:
    kept = shelf.store.find(object_id)
    if kept is None:
        raise RuntimeError(
            f"the tensors of the object {object_id} are not in this actor any more: "
            "it was restarted since they were made"
        )
    return kept.tensors


def send_tensors(
    _actor: Any, object_id: str, metadata: Any, communicator: CommunicatorMetadata, transport: Travelling
) -> None:
    """Sends what this actor keeps."""
    registry.manager(arrived(transport)).send_multiple_tensors(_own(object_id), metadata, communicator)


def receive_tensors(_actor: Any, transfer_id: str, shell: TensorShell, communicator: CommunicatorMetadata) -> None:
    """Receives tensors for `await_arrival`, which says what became of it."""
    if shelf.arrivals.is_settled(transfer_id):
        # It was aborted before it began.
        return
    try:
        name = arrived(shell.transport)
        manager = registry.manager(name)
        tensors: list[Any] = []
        if shell.count:
            tensors = manager.recv_multiple_tensors(shell.object_id, shell.metadata, communicator)
        shell.check(tensors)
    except Exception as error:  # noqa: BLE001 - it is raised where it is waited for
        shelf.arrivals.settle(transfer_id, error)
    else:
        shelf.arrivals.settle(transfer_id, tensors)


def await_arrival(_actor: Any, transfer_id: str, shell: TensorShell, timeout: float) -> Receipt:
    """Waits for tensors that are received, and keeps them as long as the receipt exists."""
    return Receipt(shell.object_id, shelf.keep_received(shelf.arrivals.wait(transfer_id, timeout)))


def abort_transfer(
    _actor: Any,
    transfer_id: str,
    object_id: str,
    communicator: CommunicatorMetadata,
    transport: Travelling,
    reason: str,
) -> None:
    """Ends a transfer in this actor."""
    shelf.arrivals.settle(transfer_id, RuntimeError(f"the transfer of these tensors was aborted: {reason}"))
    registry.manager(arrived(transport)).abort_transport(object_id, communicator)


def give_tensors(_actor: Any, object_id: str) -> list[Any]:
    """What this actor keeps, by the object store."""
    return _own(object_id)
