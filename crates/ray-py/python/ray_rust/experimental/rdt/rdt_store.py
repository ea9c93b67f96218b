"""Tensors that are kept in this process."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

if TYPE_CHECKING:
    from ray_rust.experimental.rdt.tensor_transport_manager import TensorTransportMetadata


class Kept(NamedTuple):
    """The tensors of one value."""

    tensors: list[Any]
    # The transport that has prepared them; None if they were received.
    transport: Optional[str]
    metadata: Optional[TensorTransportMetadata]


class RDTStore:
    """Keeps tensors as long as somebody refers to them; all threads of a process use it."""

    def __init__(self) -> None:
        self._kept: dict[str, Kept] = {}
        # How many objects have a tensor, by its id: it lives as long as it is here.
        self._uses: dict[int, int] = {}
        self._freed = threading.Condition()

    def add(self, obj_id: str, kept: Kept) -> None:
        """Keeps these tensors."""
        with self._freed:
            self._kept[obj_id] = kept
            for tensor in kept.tensors:
                self._uses[id(tensor)] = self._uses.get(id(tensor), 0) + 1

    def find(self, obj_id: str) -> Optional[Kept]:
        """What is kept under this id."""
        with self._freed:
            return self._kept.get(obj_id)

    def take(self, obj_id: str) -> Optional[Kept]:
        """As `find`; it is not kept any more."""
        with self._freed:
            kept = self._kept.pop(obj_id, None)
            if kept is None:
                return None
            for tensor in kept.tensors:
                uses = self._uses[id(tensor)] - 1
                if uses:
                    self._uses[id(tensor)] = uses
                else:
                    del self._uses[id(tensor)]
            self._freed.notify_all()
            return kept

    def ids(self) -> list[str]:
        """Of all that is kept."""
        with self._freed:
            return list(self._kept)

    def has_object(self, obj_id: str) -> bool:
        """Whether tensors are kept under this id."""
        with self._freed:
            return obj_id in self._kept

    def has_tensor(self, tensor: Any) -> bool:
        """Whether this very tensor is kept."""
        with self._freed:
            return id(tensor) in self._uses

    def wait_tensor_freed(self, tensor: Any, timeout: Optional[float] = None) -> None:
        """Waits until this very tensor is not kept any more. TimeoutError after `timeout` seconds."""
        with self._freed:
            if not self._freed.wait_for(lambda: id(tensor) not in self._uses, timeout):
                raise TimeoutError(
                    f"a tensor of type {type(tensor).__name__} is still kept after {timeout} s: there are references "
                    "to the value that it is part of. It is freed when all of them, in all processes, are gone"
                )

    def get_num_objects(self) -> int:
        """How many values have tensors here."""
        with self._freed:
            return len(self._kept)
