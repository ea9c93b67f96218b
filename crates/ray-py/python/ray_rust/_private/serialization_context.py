"""How values of this process are pickled: what Ray calls its serialization context."""

from __future__ import annotations

from typing import Any, Callable, Optional

from ray_rust._private.serialization import custom_reducers, dumps


class SerializedObject:
    """A pickled value: a part in band, and large buffers that were not copied."""

    def __init__(self, data: bytes, buffers: list[Any]) -> None:
        self._data = data
        self._buffers = buffers

    @property
    def total_bytes(self) -> int:
        """Size of all parts together."""
        return len(self._data) + sum(memoryview(buffer).nbytes for buffer in self._buffers)

    def to_bytes(self) -> bytes:
        """All parts, one after the other."""
        return b"".join([self._data, *(buffer.raw() for buffer in self._buffers)])


class StandaloneSerializationContext:
    """Registers reducers, which are functions that take an instance and return what `__reduce__` would.

    They count for all values that this process sends, and for `ray_rust.cloudpickle`.
    """

    def _register_cloudpickle_reducer(self, cls: type, reducer: Callable[[Any], Any]) -> None:
        if not isinstance(cls, type):
            raise TypeError(f"a serializer is registered for a class, not for {cls!r}")
        custom_reducers[cls] = reducer

    def _unregister_cloudpickle_reducer(self, cls: type) -> None:
        custom_reducers.pop(cls, None)

    def _register_cloudpickle_serializer(
        self, cls: type, custom_serializer: Callable[[Any], Any], custom_deserializer: Callable[[Any], Any]
    ) -> None:
        def reduce(value: Any) -> tuple[Any, ...]:
            return custom_deserializer, (custom_serializer(value),)

        self._register_cloudpickle_reducer(cls, reduce)


class SerializationContext(StandaloneSerializationContext):
    """The context of a process that has joined a cluster."""

    def serialize(self, value: Any) -> SerializedObject:
        """The value as it would be stored."""
        return SerializedObject(*dumps(value))


_context: Optional[SerializationContext] = None


def get_serialization_context() -> SerializationContext:
    """The one context of this process."""
    global _context
    if _context is None:
        _context = SerializationContext()
    return _context
