"""How instances of a class are sent to other processes, where the class itself does not say it well."""

from __future__ import annotations

from typing import Any, Callable

from ray_rust._private.serialization_context import StandaloneSerializationContext, get_serialization_context

__all__ = ["StandaloneSerializationContext", "deregister_serializer", "register_serializer"]


def register_serializer(cls: type, *, serializer: Callable[[Any], Any], deserializer: Callable[[Any], Any]) -> None:
    """From now on this process sends instances of `cls` (not of its subclasses) as `serializer(instance)`.

    Whoever gets one gets `deserializer(...)` of that; the deserializer travels along.
    """
    for name, function in (("serializer", serializer), ("deserializer", deserializer)):
        if not callable(function):
            raise TypeError(f"{name} has to be a function, is {function!r}")
    get_serialization_context()._register_cloudpickle_serializer(cls, serializer, deserializer)  # noqa: SLF001


def deregister_serializer(cls: type) -> None:
    """Instances of `cls` are sent as the class itself says again."""
    get_serialization_context()._unregister_cloudpickle_reducer(cls)  # noqa: SLF001
