"""`ray.cloudpickle`: the cloudpickle package, with what this runtime adds to its pickler.

That is: the serializers of `ray_rust.util.register_serializer`, and the names of source files in the code
of functions, so that tracebacks say where to look.
"""

from __future__ import annotations

import os
from pickle import PicklingError, load, loads
from typing import TYPE_CHECKING, Any, Callable, Optional

from cloudpickle import (
    DEFAULT_PROTOCOL,
    __version__,
    list_registry_pickle_by_value,
    register_pickle_by_value,
    unregister_pickle_by_value,
)

from ray_rust._private.pickler import Pickler
from ray_rust.cloudpickle import cloudpickle, cloudpickle_fast

if TYPE_CHECKING:
    from pickle import PickleBuffer
    from typing import IO

__all__ = [
    "DEFAULT_PROTOCOL",
    "CloudPickler",
    "Pickler",
    "PicklingError",
    "__version__",
    "cloudpickle",
    "cloudpickle_fast",
    "dump",
    "dump_debug",
    "dumps",
    "dumps_debug",
    "list_registry_pickle_by_value",
    "load",
    "loads",
    "register_pickle_by_value",
    "unregister_pickle_by_value",
]

CloudPickler = Pickler

# Whether the `..._debug` functions look for what cannot be pickled.
_VERBOSE_VARIABLE = "RAY_PICKLE_VERBOSE_DEBUG"


def dump(
    obj: Any,
    file: IO[bytes],
    protocol: Optional[int] = None,
    buffer_callback: Optional[Callable[[PickleBuffer], Any]] = None,
) -> None:
    """Pickles into a file; functions and classes of `__main__`, and local ones, by value."""
    Pickler(file, protocol=protocol, buffer_callback=buffer_callback).dump(obj)


def dumps(
    obj: Any, protocol: Optional[int] = None, buffer_callback: Optional[Callable[[PickleBuffer], Any]] = None
) -> bytes:
    """As `dump`, and returns the bytes."""
    import io

    file = io.BytesIO()
    dump(obj, file, protocol, buffer_callback)
    return file.getvalue()


def dump_debug(obj: Any, *args: Any, **kwargs: Any) -> None:
    """As `dump`; if that fails, the error says what to do."""
    try:
        dump(obj, *args, **kwargs)
    except (TypeError, PicklingError) as error:
        raise _explained(obj, "dump", error) from error


def dumps_debug(obj: Any, *args: Any, **kwargs: Any) -> bytes:
    """As `dumps`; if that fails, the error says what inside the value cannot be pickled."""
    try:
        return dumps(obj, *args, **kwargs)
    except (TypeError, PicklingError) as error:
        raise _explained(obj, "dumps", error) from error


def _explained(obj: Any, function: str, error: Exception) -> Exception:
    from ray_rust._private.culprit import find_culprit

    if os.environ.get(_VERBOSE_VARIABLE):
        from ray_rust.util.check_serialize import inspect_serializability

        inspect_serializability(obj)
    culprit = find_culprit(obj)
    why = f": {culprit.describe()}" if culprit.path else ""
    return type(error)(f"ray.cloudpickle.{function}() of a {type(obj).__qualname__} failed{why}: {error}")
