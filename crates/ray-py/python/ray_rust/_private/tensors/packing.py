"""Values without their tensors."""

from __future__ import annotations

import io
import pickle
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

from ray_rust._internal import ObjectRef
from ray_rust._private.pickler import PROTOCOL, Pickler

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ray_rust.experimental.rdt.tensor_transport_manager import TensorTransportMetadata

# A transport as it travels: its name, and what registers it where it is not known; None for those of the system.
Travelling = tuple[str, "ObjectRef | None"]


class Packed(NamedTuple):
    """A value in pieces."""

    data: bytes
    # Large pieces of it that were not copied.
    buffers: list[Any]
    # References in it. They are pickled with what holds them, so that they are counted.
    references: list[ObjectRef]
    tensors: list[Any]


class _Packer(Pickler):
    def __init__(self, file: io.BytesIO, buffers: list[Any], is_tensor: Callable[[Any], bool]) -> None:
        super().__init__(file, protocol=PROTOCOL, buffer_callback=buffers.append)
        self._is_tensor = is_tensor
        self.taken: dict[str, list[Any]] = {"tensors": [], "references": []}
        self._places: dict[int, tuple[str, int]] = {}

    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, ObjectRef):
            kind = "references"
        elif self._is_tensor(value):
            kind = "tensors"
        else:
            return None
        place = self._places.get(id(value))
        if place is None:
            place = self._places[id(value)] = (kind, len(self.taken[kind]))
            # Which also keeps its id from being used again.
            self.taken[kind].append(value)
        return place


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, buffers: Sequence[Any], taken: dict[str, list[Any]]) -> None:
        super().__init__(file, buffers=buffers)
        self._taken = taken

    def persistent_load(self, place: tuple[str, int]) -> Any:
        kind, index = place
        return self._taken[kind][index]


def is_instance_of(data_type: type) -> Callable[[Any], bool]:
    """Tells values of this very class, or of classes that implement it if it is abstract: a subclass may be more."""

    def is_tensor(value: Any) -> bool:
        cls = type(value)
        return cls is data_type or (data_type not in cls.__mro__ and isinstance(value, data_type))

    return is_tensor


def pack(value: Any, data_type: type) -> Packed:
    """Takes the tensors, which are instances of `data_type`, out of a value. TypeError if it cannot be pickled."""
    file = io.BytesIO()
    buffers: list[Any] = []
    packer = _Packer(file, buffers, is_instance_of(data_type))
    try:
        packer.dump(value)
    except Exception as error:
        from ray_rust._private.serialization import not_picklable

        raise not_picklable(value, error, "the part of a value that is no tensor") from error
    return Packed(file.getvalue(), buffers, packer.taken["references"], packer.taken["tensors"])


class TensorShell:
    """A value without its tensors, which are kept elsewhere under `object_id`: what is stored as the object."""

    __slots__ = ("_buffers", "_data", "_references", "count", "metadata", "object_id", "token", "transport")

    def __init__(
        self,
        object_id: str,
        transport: Travelling,
        metadata: TensorTransportMetadata,
        token: ObjectRef,
        count: int,
        data: bytes,
        buffers: Sequence[Any],
        references: list[ObjectRef],
    ) -> None:
        self.object_id = object_id
        self.transport = transport
        self.metadata = metadata
        # As long as this exists, in any process, so do the tensors.
        self.token = token
        self.count = count
        self._data = data
        self._buffers = buffers
        self._references = references

    def check(self, tensors: list[Any]) -> None:
        """RuntimeError if it has not as many."""
        if len(tensors) != self.count:
            raise RuntimeError(
                f"the tensor transport {self.transport[0]} brought {len(tensors)} tensors "
                f"for a value that has {self.count}"
            )

    def fill(self, tensors: list[Any]) -> Any:
        """The value."""
        taken = {"tensors": tensors, "references": self._references}
        return _Unpacker(io.BytesIO(self._data), self._buffers, taken).load()

    def __reduce__(self) -> tuple[Any, ...]:
        return (
            TensorShell,
            (
                self.object_id,
                self.transport,
                self.metadata,
                self.token,
                self.count,
                self._data,
                [pickle.PickleBuffer(buffer) for buffer in self._buffers],
                self._references,
            ),
        )

    def __repr__(self) -> str:
        return f"<a value whose {self.count} tensors are kept elsewhere: get() of the original reference fetches them>"
