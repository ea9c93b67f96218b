"""What can go wrong, as Python exceptions: the names and the tree of `ray.exceptions`.

`RayTaskError` stands for an exception that user code raised in another process. All others say what
happened to a task, an actor, an object or the system, in one message.
"""

from __future__ import annotations

import os
import types
from typing import TYPE_CHECKING, Any, Optional, Union

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "ActorAlreadyExistsError",
    "ActorDiedError",
    "ActorHandleNotFoundError",
    "ActorPlacementGroupRemoved",
    "ActorUnavailableError",
    "ActorUnschedulableError",
    "AsyncioActorExit",
    "CrossLanguageError",
    "GetTimeoutError",
    "LocalRayletDiedError",
    "NodeDiedError",
    "ObjectFetchTimedOutError",
    "ObjectFreedError",
    "ObjectLostError",
    "ObjectReconstructionFailedError",
    "ObjectRefStreamEndOfStreamError",
    "ObjectStoreFullError",
    "OutOfDiskError",
    "OutOfMemoryError",
    "OwnerDiedError",
    "PendingCallsLimitExceeded",
    "PlasmaObjectNotAvailable",
    "RayActorError",
    "RayChannelError",
    "RayChannelTimeoutError",
    "RayError",
    "RaySystemError",
    "RayTaskError",
    "ReferenceCountingAssertionError",
    "RpcError",
    "RuntimeEnvSetupError",
    "TaskCancelledError",
    "TaskPlacementGroupRemoved",
    "TaskUnschedulableError",
    "UnserializableException",
    "UserCodeException",
    "WorkerCrashedError",
]


class RayError(Exception):
    """Whatever this system raises about a task, an actor or an object."""


class RayTaskError(RayError):
    """User code raised an exception in another process.

    `cause` is that exception, `traceback_str` its traceback there. What `get` raises is also an
    instance of the cause's class (see `as_instanceof_cause`), so that `except ValueError` works.
    """

    def __init__(
        self,
        function_name: str,
        traceback_str: str,
        cause: BaseException,
        proctitle: Optional[str] = None,
        pid: Optional[int] = None,
        ip: Optional[str] = None,
        actor_repr: Optional[str] = None,
        actor_id: Optional[str] = None,
    ) -> None:
        self.function_name = function_name
        self.traceback_str = traceback_str
        self.cause = cause
        self.proctitle = proctitle or "ray::" + function_name
        self.pid = pid or os.getpid()
        self.ip = ip or "127.0.0.1"
        self.actor_repr = actor_repr
        self._actor_id = actor_id

    def as_instanceof_cause(self) -> RayTaskError:
        """This error as an instance of both `RayTaskError` and the cause's class.

        It has the attributes of the cause. Where the cause's class cannot be subclassed, and for causes
        such as `SystemExit` that would end the process that looks at them, it is this error itself.
        """
        if isinstance(self, _Dual) or not isinstance(self.cause, Exception) or isinstance(self.cause, RayTaskError):
            return self
        try:
            return _make_dual(self)
        except Exception:  # noqa: BLE001 - the class belongs to the user: any of its hooks may raise
            return self

    def __str__(self) -> str:
        where = f"pid={self.pid}, ip={self.ip}"
        if self.actor_repr:
            where += f", actor={self.actor_repr}"
        return f"{self.proctitle}() ({where})\n{self.traceback_str.rstrip()}"

    def __reduce__(self) -> tuple[Any, ...]:
        from ray_rust._private.serialization import pack_exception

        # The cause may be an exception that cannot be pickled or loaded; this one always can.
        state = (
            self.function_name,
            self.traceback_str,
            pack_exception(self.cause),
            self.proctitle,
            self.pid,
            self.ip,
            self.actor_repr,
            self._actor_id,
        )
        return (_load_dual if isinstance(self, _Dual) else _load, state)


def _load(function_name: str, traceback_str: str, packed_cause: Any, *rest: Any) -> RayTaskError:
    from ray_rust._private.serialization import unpack_exception

    return RayTaskError(function_name, traceback_str, unpack_exception(packed_cause), *rest)


def _load_dual(*state: Any) -> RayTaskError:
    return _load(*state).as_instanceof_cause()


class _Dual:
    """Marks errors that are of the cause's class too."""


# By class of the cause. Classes of user code that comes and goes (notebooks) must not be kept alive
# for ever, but a weak dictionary would not help: the value refers to its key.
_dual_classes: dict[type, Any] = {}
_MAX_DUAL_CLASSES = 1000


def _dual_class(cause_class: type[BaseException]) -> Any:
    known = _dual_classes.get(cause_class)
    if known is not None:
        return known

    def getattr_from_cause(self: Any, name: str) -> Any:
        # `cause` itself is missing only while the object is being made.
        if name == "cause":
            raise AttributeError(name)
        return getattr(self.cause, name)

    name = f"RayTaskError({cause_class.__name__})"
    members = {
        "__module__": RayTaskError.__module__,
        "__qualname__": name,
        "__init__": BaseException.__init__,
        "__str__": RayTaskError.__str__,
        "__repr__": lambda self: f"{name}({self.cause!r})",
        "__getattr__": getattr_from_cause,
        "__reduce__": RayTaskError.__reduce__,
        "__doc__": RayTaskError.__doc__,
    }
    made = type(name, (RayTaskError, cause_class, _Dual), members)
    if len(_dual_classes) >= _MAX_DUAL_CLASSES:
        _dual_classes.clear()
    _dual_classes[cause_class] = made
    return made


def _make_dual(error: RayTaskError) -> RayTaskError:
    cause: Any = error.cause
    dual_class = _dual_class(type(cause))
    # `__init__` of the cause's class is not run: its arguments are unknown. `__new__` is, because some
    # built-in classes (OSError, ExceptionGroup) take their fields there.
    dual: Any = dual_class.__new__(dual_class, *cause.args)
    if not isinstance(dual, dual_class):
        return error
    dual.args = cause.args
    for name in _fields(type(cause)):
        try:
            setattr(dual, name, getattr(cause, name))
        except (AttributeError, TypeError):
            continue  # read-only, such as ExceptionGroup.exceptions: `__new__` has set it
    dual.__dict__.update(getattr(cause, "__dict__", {}))
    dual.__dict__.update(error.__dict__)
    result: RayTaskError = dual
    return result


def _fields(cls: type) -> Iterator[str]:
    """Names of what instances keep outside of their `__dict__`: slots, and fields of built-in classes."""
    for base in cls.__mro__:
        if base is BaseException:
            return
        for name, member in vars(base).items():
            if isinstance(member, (types.MemberDescriptorType, types.GetSetDescriptorType)) and name[:2] != "__":
                yield name


class CrossLanguageError(RayError):
    """A task in another language failed."""


class TaskCancelledError(RayError):
    """The task was cancelled before it had a result."""

    def __init__(self, message: Any = None, error_message: Optional[str] = None) -> None:
        if error_message is None:
            error_message = message if isinstance(message, str) else None
        self.task_id = None if isinstance(message, str) else message
        if error_message is None:
            error_message = f"task {self.task_id.hex()} was cancelled" if self.task_id else "the task was cancelled"
        super().__init__(error_message)


class LocalRayletDiedError(RayError):
    """The node daemon of this machine ended."""


class WorkerCrashedError(RayError):
    """The process that ran the task ended unexpectedly, and no retry is left."""


class RayActorError(RayError):
    """The actor cannot take the call: it died, or cannot be reached."""

    def __init__(
        self,
        error_msg: str = "the actor died before it finished this call",
        actor_id: Optional[str] = None,
        actor_init_failed: bool = False,
        preempted: bool = False,
    ) -> None:
        super().__init__(error_msg)
        self.error_msg = error_msg
        self.actor_id = actor_id
        self._actor_init_failed = actor_init_failed
        self._preempted = preempted

    @property
    def actor_init_failed(self) -> bool:
        """Whether the actor's constructor raised."""
        return self._actor_init_failed

    @property
    def preempted(self) -> bool:
        """Whether the actor's node was taken away."""
        return self._preempted


class ActorDiedError(RayActorError):
    """The actor is dead for good.

    `cause` is the constructor's `RayTaskError` if that is why.
    """

    def __init__(self, cause: Union[str, RayTaskError, None] = None) -> None:
        self.cause = cause if isinstance(cause, RayTaskError) else None
        if isinstance(cause, RayTaskError):
            super().__init__(f"the actor died because its constructor raised: {cause}", actor_init_failed=True)
        elif cause is None:
            super().__init__()
        else:
            super().__init__(cause)

    @staticmethod
    def from_task_error(task_error: RayTaskError) -> ActorDiedError:
        """The error of calls to an actor whose constructor raised."""
        return ActorDiedError(task_error)

    def __reduce__(self) -> tuple[Any, ...]:
        return (ActorDiedError, (self.cause if self.cause is not None else self.error_msg,))


class ActorUnavailableError(RayActorError):
    """The actor cannot be reached now; it may come back."""

    def __init__(self, error_message: str, actor_id: Optional[bytes] = None) -> None:
        super().__init__(error_message, actor_id.hex() if actor_id else None)
        self._binary_id = actor_id

    def __reduce__(self) -> tuple[Any, ...]:
        return (ActorUnavailableError, (self.error_msg, self._binary_id))


class RaySystemError(RayError):
    """The system itself failed, or is not in the state that the call needs."""

    def __init__(self, client_exc: Any, traceback_str: Optional[str] = None) -> None:
        super().__init__(client_exc)
        self.client_exc = client_exc
        self.traceback_str = traceback_str

    def __str__(self) -> str:
        text = str(self.client_exc)
        return f"{text}\n{self.traceback_str}" if self.traceback_str else text


class UserCodeException(RayError):
    """Code of the user that a library called raised."""


class ObjectStoreFullError(RayError):
    """The object store has no room, and nothing in it can make way."""


class OutOfDiskError(RayError):
    """The disk to spill objects to has no room."""


class OutOfMemoryError(RayError):
    """The node ran out of memory and ended the process that ran the task."""


class NodeDiedError(RayError):
    """The node that ran the task is gone."""


class ObjectLostError(RayError):
    """Every copy of the object is gone, and it could not be made again."""


class ObjectFetchTimedOutError(ObjectLostError):
    """The object could not be fetched from another node in time."""


class ReferenceCountingAssertionError(ObjectLostError, AssertionError):
    """The object was freed while it was still referred to."""


class ObjectFreedError(ObjectLostError):
    """The object was freed by an explicit call."""


class OwnerDiedError(ObjectLostError):
    """The process that owned the object is gone."""


class ObjectReconstructionFailedError(ObjectLostError):
    """The object was lost and could not be made again."""


class RpcError(RayError):
    """A call between two parts of the system failed."""

    def __init__(self, message: str, rpc_code: Optional[int] = None) -> None:
        super().__init__(message)
        self.message = message
        self.rpc_code = rpc_code


class GetTimeoutError(RayError, TimeoutError):
    """The value did not come in time; it may still come."""


class PlasmaObjectNotAvailable(RayError):
    """The object is not in this node's store."""


class AsyncioActorExit(RayError):
    """An actor with coroutines leaves on purpose."""


class RuntimeEnvSetupError(RayError):
    """The environment that the task or actor asked for could not be made."""


class TaskPlacementGroupRemoved(RayError):
    """The placement group of the task was removed."""


class ActorPlacementGroupRemoved(RayError):
    """The placement group of the actor was removed."""


class PendingCallsLimitExceeded(RayError):
    """As many calls as allowed (`max_pending_calls`) wait for the actor."""


class TaskUnschedulableError(RayError):
    """No node can ever run the task."""


class ActorUnschedulableError(RayError):
    """No node can ever run the actor."""


class ObjectRefStreamEndOfStreamError(RayError):
    """The stream of results has ended."""


class RayChannelError(RaySystemError):
    """A channel between actors failed."""


class RayChannelTimeoutError(RayChannelError, TimeoutError):
    """A channel between actors was not ready in time."""


class UnserializableException(RayError):
    """Stands for an exception that cannot be sent between processes."""


class ActorAlreadyExistsError(ValueError, RayError):
    """An actor of this name lives in the namespace."""


class ActorHandleNotFoundError(ValueError, RayError):
    """The handle belongs to another session."""
