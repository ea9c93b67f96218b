"""References to values whose tensors are kept elsewhere."""

from __future__ import annotations

import asyncio
import threading
import weakref
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Callable, Optional

from ray_rust import _internal
from ray_rust._internal import ObjectRef

if TYPE_CHECKING:
    from collections.abc import Generator

    from ray_rust._private.tensors.packing import Travelling
    from ray_rust.actor import ActorHandle
    from ray_rust.experimental.rdt.tensor_transport_manager import TensorTransportMetadata


class TensorArgumentError(TypeError, ValueError):
    """A reference to tensors was passed where none can be received."""


class TensorRef(ObjectRef[Any]):
    """A reference to a `packing.TensorShell`; who gets it gets the value, with its tensors."""

    transport: Travelling
    # The actor that has the tensors; None if they are in a process that is no actor.
    source: Optional[ActorHandle[Any]]
    _target_buffers: Optional[list[weakref.ref[Any]]]
    _target_device: Optional[str]
    # Actors to which it was passed.
    _destinations: set[Any]
    _has_warned: bool

    @classmethod
    def of(cls, plain: ObjectRef, transport: Travelling, source: Optional[ActorHandle[Any]]) -> TensorRef:
        """One more reference to the object of `plain`."""
        ref = cls(plain.binary())
        ref.transport = transport
        ref.source = source
        ref._target_buffers = ref._target_device = None
        ref._destinations = set()
        ref._has_warned = False
        return ref

    def plain(self) -> ObjectRef:
        """A reference whose value is the shell."""
        return ObjectRef(self.binary())

    def is_from(self, actor: ActorHandle[Any]) -> bool:
        """Whether the tensors are in this actor."""
        return self.source is not None and self.source._actor_id == actor._actor_id  # noqa: SLF001

    def note_destination(self, actor: ActorHandle[Any]) -> None:
        """It is passed to this actor. Warns if the one that has the tensors may now change what others are to get."""
        self._destinations.add(actor._actor_id)  # noqa: SLF001
        source = self.source
        if source is None or self._has_warned or len(self._destinations) < 2:
            return
        if source._actor_id in self._destinations:  # noqa: SLF001
            import warnings

            self._has_warned = True
            text = (
                f"{self!r} is passed to other actors and to the one that has its tensors, {source!r}, which gets no "
                "copy of them: if it changes them, others may get them changed"
            )
            warnings.warn(text, UserWarning, stacklevel=5)

    # What `get` is to do with the tensors

    def set_target_buffers(self, buffers: list[Any]) -> None:
        """Tensors to receive into, as long as they exist."""
        self._target_buffers = [weakref.ref(buffer) for buffer in buffers]
        self._target_device = None

    def set_target_device(self, device: str) -> None:
        """Where to receive. ValueError if the transport cannot do that."""
        from ray_rust._private.tensors.registry import arrived, registry

        name = arrived(self.transport)
        devices = registry.info(name).devices
        if device.partition(":")[0] not in devices:
            raise ValueError(f"the tensor transport {name} takes tensors on {', '.join(devices)}, and not on {device}")
        self._target_buffers = None
        self._target_device = device

    @property
    def has_target(self) -> bool:
        """Whether anything was said of where to receive."""
        return self._target_buffers is not None or self._target_device is not None

    def targets(self, metadata: TensorTransportMetadata) -> Optional[list[Any]]:
        """What to receive into; None if the transport decides. ValueError if it does not fit the tensors."""
        if self._target_device is not None:
            from ray_rust.experimental.rdt.util import create_empty_tensors_from_metadata

            return create_empty_tensors_from_metadata(metadata, self._target_device)
        if self._target_buffers is None:
            return None
        buffers = [buffer() for buffer in self._target_buffers]
        if any(buffer is None for buffer in buffers):
            return None
        check_buffers(buffers, metadata)
        return buffers

    # As any reference, but with the tensors

    def _as_argument(self) -> None:
        raise TensorArgumentError(
            f"{self!r} is the result of a method with tensor_transport={self.transport[0]!r}, and its tensors go to "
            "methods of actors only: it cannot be an argument of a task or of an actor's constructor. "
            "Get the value first, or pass the reference inside a list, for a task that gets it itself"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        parts: tuple[bytes, bytes] = super().__reduce__()[1]  # type: ignore[assignment]
        return _restored, (parts, self.transport, self.source)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._fetched().__await__()

    async def _fetched(self) -> Any:
        from ray_rust._private.tensors import fetching

        shell = await self.plain()
        return await asyncio.get_running_loop().run_in_executor(None, fetching.fill, self, shell)

    def as_future(self, _internal: bool = False) -> asyncio.Future[Any]:
        return asyncio.ensure_future(self._fetched())

    def future(self) -> Future[Any]:
        future: Future[Any] = Future()
        future.object_ref = self  # type: ignore[attr-defined]

        def settle(value: Any, error: Optional[BaseException]) -> None:
            # Somebody may have cancelled it meanwhile.
            if future.set_running_or_notify_cancel():
                if error is None:
                    future.set_result(value)
                else:
                    future.set_exception(error)

        self._when_fetched(settle)
        return future

    def _on_completed(self, py_callback: Callable[[Any], Any]) -> TensorRef:
        self._when_fetched(lambda value, error: py_callback(value if error is None else error))
        return self

    def _when_fetched(self, settle: Callable[[Any, Optional[BaseException]], None]) -> None:
        from ray_rust._private.tensors import fetching

        def fetch(shell: Future[Any]) -> None:
            try:
                value = fetching.fill(self, shell.result())
            except BaseException as error:  # noqa: BLE001 - whoever waits gets it
                settle(None, error)
            else:
                settle(value, None)

        def start(shell: Future[Any]) -> None:
            # Fetching takes its time, and others wait for the thread of callbacks.
            threading.Thread(target=fetch, args=(shell,), name="fetching tensors", daemon=True).start()

        self.plain().future().add_done_callback(start)


def _restored(parts: tuple[bytes, bytes], transport: Travelling, source: Optional[ActorHandle[Any]]) -> TensorRef:
    return TensorRef.of(_internal._restore_ref(*parts), transport, source)  # noqa: SLF001


def check_buffers(buffers: list[Any], metadata: TensorTransportMetadata) -> None:
    """ValueError unless these fit the tensors of which the metadata tell."""
    described = metadata.tensor_meta
    if len(buffers) != len(described):
        raise ValueError(f"{len(buffers)} tensors to receive into were given for a value that has {len(described)}")
    for index, (buffer, (shape, dtype)) in enumerate(zip(buffers, described)):
        if tuple(buffer.shape) != tuple(shape):
            raise ValueError(f"tensor {index} to receive into has the shape {buffer.shape} and not {shape}")
        if buffer.dtype != dtype:
            raise ValueError(f"tensor {index} to receive into has the dtype {buffer.dtype} and not {dtype}")
        if not _is_contiguous(buffer):
            raise ValueError(f"tensor {index} to receive into is not contiguous")


def _is_contiguous(buffer: Any) -> bool:
    asked = getattr(buffer, "is_contiguous", None)
    if asked is not None:
        return bool(asked())
    flags = getattr(buffer, "flags", None)
    return flags is None or bool(flags.c_contiguous)
