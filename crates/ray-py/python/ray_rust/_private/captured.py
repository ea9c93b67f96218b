"""Functions and classes that refer to objects of the cluster by closures or global variables.

    large = ray.put(data)

    @ray.remote
    def look(i):
        return ray.get(large)[i]

A reference counts only while it travels in the arguments of a task. So the references in a function are
taken out when it is pickled, each call brings them along as a hidden argument, and the function is loaded
at its first call, with the references of that call.
"""

from __future__ import annotations

import io
import pickle
from typing import Any, Callable, Optional

from ray_rust._internal import ObjectRef
from ray_rust._private.pickler import PROTOCOL, Pickler

# Name of the hidden argument.
ARGUMENT = "__ray_references__"


class _Pickler(Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=PROTOCOL)
        self.references: dict[ObjectRef, int] = {}

    def persistent_id(self, value: Any) -> Optional[int]:
        if type(value) is not ObjectRef:
            return None
        return self.references.setdefault(value, len(self.references))


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, references: list[ObjectRef]) -> None:
        super().__init__(file)
        self._references = references

    def persistent_load(self, index: int) -> ObjectRef:
        return self._references[index]


class Deferred:
    """Stands for a function or class until its first call brings the references in it."""

    def __init__(self, pickled: bytes) -> None:
        self._pickled = pickled
        self._loaded: Optional[Callable[..., Any]] = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        references = kwargs.pop(ARGUMENT)
        if self._loaded is None:
            self._loaded = _Unpickler(io.BytesIO(self._pickled), references).load()
        return self._loaded(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Deferred, (self._pickled,))


def pickle_function(function: Any) -> tuple[bytes, list[ObjectRef]]:
    """The pickled function or class, and the references that each of its calls has to bring as `ARGUMENT`."""
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(function)
    references = list(pickler.references)
    pickled = file.getvalue()
    return (pickle.dumps(Deferred(pickled), protocol=5) if references else pickled), references
