"""Values to bytes and back.

The compiled core encodes plain values itself and calls `dumps` and `loads` for everything else. The
pickler in C is tried first, being several times faster; cloudpickle does what that one refuses, and
everything that refers to `__main__`, which means another module in each process.
"""

from __future__ import annotations

import copyreg
import io
import os
import pickle
import sys
import traceback
from typing import TYPE_CHECKING, Any, Callable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pickle import PickleBuffer
    from typing import Optional

    from ray_rust._internal import ObjectRef

_PROTOCOL = 5

# How instances of some classes are pickled in this process: what `ray_rust.util.register_serializer` was
# told. They go before the class's own way (`__reduce__`) and that of `copyreg`.
custom_reducers: dict[type, Callable[[Any], Any]] = {}
# The same for classes of packages that this runtime knows to do badly by themselves; see `arrow`.
package_reducers: dict[type, Callable[[Any], Any]] = {}


class NotPicklableError(TypeError):
    """A value cannot be sent to another process."""


def dumps(value: Any) -> tuple[bytes, list[PickleBuffer]]:
    """The pickled value and, in order, the large buffers that are not in it.

    Raises TypeError that says what inside the value cannot be pickled, and where it is.
    """
    buffers: list[PickleBuffer] = []
    if not _pickles_modules_by_value():
        try:
            data = _fast_dumps(value, buffers)
        except Exception:  # noqa: BLE001 - cloudpickle decides, and what it says is reported
            pass
        else:
            # Also true of a value that merely contains this text; that only costs time.
            if b"__main__" not in data:
                return data, buffers
        buffers.clear()
    return _cloudpickle_dumps(value, buffers), buffers


def _fast_dumps(value: Any, buffers: list[PickleBuffer]) -> bytes:
    know_packages()
    if not custom_reducers and not package_reducers:
        return pickle.dumps(value, protocol=_PROTOCOL, buffer_callback=buffers.append)
    file = io.BytesIO()
    pickler = pickle.Pickler(file, protocol=_PROTOCOL, buffer_callback=buffers.append)
    pickler.dispatch_table = {**copyreg.dispatch_table, **package_reducers, **custom_reducers}
    pickler.dump(value)
    return file.getvalue()


def know_packages() -> None:
    """Registers the reducers of packages that the program has imported meanwhile; imports none."""
    if "pyarrow" in sys.modules and not package_reducers:
        from ray_rust._private import arrow

        package_reducers.update(arrow.reducers())


def check_out_of_band(ref: ObjectRef) -> None:
    """Refuses to pickle a reference outside of arguments, results and put values, if that was forbidden."""
    setting = os.environ.get("RAY_allow_out_of_band_object_ref_serialization", "1")  # noqa: SIM112 - Ray's name
    if setting.lower() in ("0", "false"):
        from ray_rust.exceptions import OufOfBandObjectRefSerializationException

        raise OufOfBandObjectRefSerializationException(
            f"{ref!r} is pickled outside of the arguments and results of tasks and of values that are put. Its object "
            "would have to be kept as long as this process lives, and "
            "RAY_allow_out_of_band_object_ref_serialization=0 forbids that. Send the reference as an argument"
        )


def loads(data: Any, buffers: Sequence[Any] = ()) -> Any:
    """What `dumps` was given."""
    return pickle.loads(data, buffers=buffers)


def dumps_function(function: Any, what: str) -> tuple[bytes, list[ObjectRef]]:
    """A function or class for other processes, and the references in it; `what` names it in errors."""
    from ray_rust._private.captured import pickle_function

    try:
        return pickle_function(function)
    except Exception as error:
        raise not_picklable(function, error, what) from error


def _cloudpickle_dumps(value: Any, buffers: list[PickleBuffer]) -> bytes:
    from ray_rust._private.pickler import dumps_by_value

    try:
        return dumps_by_value(value, buffers.append)
    except Exception as error:
        raise not_picklable(value, error, f"a value of type {_type_name(value)}") from error


def _pickles_modules_by_value() -> bool:
    """Whether the user asked cloudpickle to send some modules by value, which only it can."""
    module = sys.modules.get("cloudpickle.cloudpickle")
    return bool(getattr(module, "_PICKLE_BY_VALUE_MODULES", None))


def _type_name(value: Any) -> str:
    cls = type(value)
    return str(cls.__qualname__) if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def not_picklable(value: Any, error: Exception, what: str) -> TypeError:
    from ray_rust._private.culprit import find_culprit

    culprit = find_culprit(value)
    text = f"cannot pickle {what}"
    if culprit.path:
        text += f": {culprit.describe()}"
    return NotPicklableError(f"{text}: {type(error).__name__}: {error}")


# Errors of user code


def encode_error(error: BaseException, task_name: str, actor_id: Optional[str] = None) -> bytes:
    """What stands for `error`, raised by user code of this process in `task_name`, of that actor if it is one's."""
    from ray_rust.exceptions import RayTaskError

    text = "".join(traceback.format_exception(type(error), error, _user_frames(error)))
    # A task that passes on what another task raised: whoever waits wants the first cause.
    cause = error.cause if isinstance(error, RayTaskError) else error
    actor_repr = task_name.rpartition(".")[0] if actor_id is not None else None
    packed = RayTaskError(task_name, text, cause, actor_repr=actor_repr, actor_id=actor_id)
    return pickle.dumps(packed, protocol=_PROTOCOL)


def decode_error(data: bytes) -> BaseException:
    """The exception for `get` to raise."""
    error = pickle.loads(data)
    from ray_rust.exceptions import RayTaskError

    return error.as_instanceof_cause() if isinstance(error, RayTaskError) else error


def pack_exception(error: BaseException) -> tuple[Optional[bytes], str]:
    """An exception of any class in a form that always travels: pickled once more, if that works, and as text."""
    return _pickle_exception(error), repr_of(error)


def unpack_exception(packed: tuple[Optional[bytes], str]) -> BaseException:
    """What was packed, or what says why it cannot be had here."""
    from ray_rust.exceptions import UnserializableException

    pickled, description = packed
    if pickled is None:
        return UnserializableException(f"{description} cannot be pickled")
    try:
        error = pickle.loads(pickled)
    except Exception as failure:  # noqa: BLE001 - loading runs code of the user
        return UnserializableException(f"{description} cannot be loaded in this process: {failure!r}")
    return error if isinstance(error, BaseException) else UnserializableException(f"{description} loads as {error!r}")


def repr_of(value: object) -> str:
    """`repr`, or the type's name if that fails."""
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - code of the user
        return f"<{_type_name(value)}>"


def _user_frames(error: BaseException) -> Any:
    """The traceback without the frames of this package that lead to the user's code."""
    frame = error.__traceback__
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    while frame is not None and frame.tb_frame.f_code.co_filename.startswith(here):
        frame = frame.tb_next
    return frame if frame is not None else error.__traceback__


def _pickle_exception(error: BaseException) -> Optional[bytes]:
    """The exception in a form that loads, or None."""
    from ray_rust._private.pickler import dumps_by_value

    forms: tuple[Callable[[], Any], ...] = (
        lambda: error,
        lambda: _Rebuilt(error, error.args, dict(vars(error))),
        lambda: _Rebuilt(error, *_picklable_parts(error)),
    )
    for form in forms:
        try:
            data = dumps_by_value(form())
            # Many exceptions whose constructor takes other arguments than `args` pickle but do not load.
            loaded = pickle.loads(data)
        except Exception:  # noqa: BLE001 - the next form may do; code of the user
            continue
        if type(loaded).__qualname__ == type(error).__qualname__:
            return data
    return None


def _picklable_parts(error: BaseException) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments, by their `repr` where they cannot be pickled, and those attributes that can."""
    from ray_rust._private.culprit import is_picklable

    args = tuple(argument if is_picklable(argument) else repr_of(argument) for argument in error.args)
    return args, {name: value for name, value in vars(error).items() if is_picklable(value)}


class _Rebuilt:
    """Pickles as an exception that is made again without its constructor."""

    def __init__(self, error: BaseException, args: tuple[Any, ...], state: dict[str, Any]) -> None:
        self._parts = (type(error), args, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild_exception, self._parts)


def _rebuild_exception(cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    made = cls.__new__(cls, *args)
    made.args = args
    vars(made).update(state)
    return made
