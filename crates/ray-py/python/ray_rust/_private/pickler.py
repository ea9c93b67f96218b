"""The pickler for what the one in C refuses: cloudpickle's, with the names of source files in code."""

from __future__ import annotations

import collections
import io
import pickle
import types
from typing import TYPE_CHECKING, Any, Callable, ClassVar, Optional

import cloudpickle

from ray_rust._private.serialization import custom_reducers, know_packages, package_reducers

if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from pickle import PickleBuffer

PROTOCOL = 5

# Cloudpickle 3.1.3 has this in place of the file's name, so that tracebacks would not say where to look.
_NO_FILE_NAME = "<dynamic-code>"
_reduce_code = cloudpickle.Pickler.dispatch_table[types.CodeType]


def _reduce_code_with_file_name(code: types.CodeType) -> tuple[Any, tuple[Any, ...]]:
    make, arguments = _reduce_code(code)
    named = (code.co_filename if part == _NO_FILE_NAME else part for part in arguments)
    return make, tuple(named)


def _reduce_memoryview(view: memoryview) -> tuple[Any, ...]:
    # Only such a view can be made again of plain bytes; cloudpickle itself copies every one into bytes.
    if not view.c_contiguous or len(view.format) != 1 or view.nbytes == 0:
        return bytes, (view.tobytes(),)
    return _make_memoryview, (pickle.PickleBuffer(view), view.format, view.shape)


def _make_memoryview(buffer: Any, format: Any, shape: tuple[int, ...]) -> Any:
    return memoryview(buffer).cast("B").cast(format, shape)


class Pickler(cloudpickle.Pickler):  # type: ignore[misc] # cloudpickle has no types
    """Pickles functions and classes by value, and knows the reducers that were registered."""

    dispatch_table: ClassVar[MutableMapping[type, Any]] = collections.ChainMap(
        custom_reducers,
        package_reducers,
        {types.CodeType: _reduce_code_with_file_name, memoryview: _reduce_memoryview},
        cloudpickle.Pickler.dispatch_table,
    )
    # Under this name libraries add reducers of their own.
    dispatch = dispatch_table


def dumps_by_value(value: Any, buffer_callback: Optional[Callable[[PickleBuffer], Any]] = None) -> bytes:
    """The pickled value; large buffers go to `buffer_callback` if there is one."""
    know_packages()
    file = io.BytesIO()
    Pickler(file, protocol=PROTOCOL, buffer_callback=buffer_callback).dump(value)
    return file.getvalue()
