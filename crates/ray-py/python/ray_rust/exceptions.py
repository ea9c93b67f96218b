"""What can go wrong, as Python exceptions: the names and the tree of `ray.exceptions`.

`RayTaskError` stands for an exception that user code raised in another process. All others say what
happened to a task, an actor, an object or the system, in one message.
"""

from __future__ import annotations

import os
import types
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Optional, Union

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ray_rust._internal import TaskID

__all__ = [
    "ActorAlreadyExistsError",
    "ActorDiedError",
    "ActorHandleNotFoundError",
    "ActorPlacementGroupRemoved",
    "ActorUnavailableError",
    "ActorUnschedulableError",
    "AsyncioActorExit",
    "AuthenticationError",
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
    "OufOfBandObjectRefSerializationException",
    "OutOfDiskError",
    "OutOfMemoryError",
    "OwnerDiedError",
    "PendingCallsLimitExceeded",
    "PlasmaObjectNotAvailable",
    "RayActorError",
    "RayCgraphCapacityExceeded",
    "RayChannelError",
    "RayChannelTimeoutError",
    "RayDirectTransportError",
    "RayError",
    "RaySystemError",
    "RayTaskError",
    "ReferenceCountingAssertionError",
    "RpcError",
    "RuntimeEnvSetupError",
    "StreamingGeneratorReplayInconsistentError",
    "TaskCancelledError",
    "TaskPlacementGroupRemoved",
    "TaskUnschedulableError",
    "UnserializableException",
    "UserCodeException",
    "WorkerCrashedError",
]


class RayError(Exception):
    """Whatever this system raises about a task, an actor or an object."""

    # What it says when it was made without a message.
    _default = ""

    def __str__(self) -> str:
        return super().__str__() or self._default

    def __reduce__(self) -> tuple[Any, ...]:
        # Without `__init__`, whose arguments may be keywords or others than `args`.
        return (_restore, (type(self), self.args, self.__dict__))

    def to_bytes(self) -> bytes:
        """The error for `from_bytes`, here or in another process."""
        from ray_rust import cloudpickle

        return cloudpickle.dumps((self, f"{type(self).__name__}: {self}"))

    @staticmethod
    def from_bytes(b: bytes) -> BaseException:
        """What `to_bytes` was called of; `UnserializableException` if that cannot be had here."""
        import pickle

        try:
            error, _ = pickle.loads(b)
        except Exception as failure:  # noqa: BLE001 - loading runs code of the user
            return UnserializableException(f"{type(failure).__name__}: {failure}")
        return error if isinstance(error, BaseException) else UnserializableException(repr(error))


def _restore(cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


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
        self.ip = ip or _own_address()
        self.actor_repr = actor_repr
        self._actor_id = actor_id

    def make_dual_exception_instance(self) -> RayTaskError:
        """As `as_instanceof_cause`, but TypeError where that is not possible."""
        made = self.as_instanceof_cause()
        if made is self and not isinstance(self, _Dual):
            raise TypeError(f"there can be no class derived from {type(self.cause).__qualname__}")
        return made

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
        if self._actor_id:
            where += f", actor_id={self._actor_id}"
        if self.actor_repr:
            where += f", repr={self.actor_repr}"
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


def _own_address() -> str:
    from ray_rust._private.services import get_node_ip_address

    return get_node_ip_address()


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

    def __init__(self, task_id: Optional[TaskID] = None, error_message: Optional[str] = None) -> None:
        super().__init__(task_id, error_message)
        self.task_id = task_id
        self.error_message = error_message

    def __str__(self) -> str:
        text = f"task {self.task_id.hex()} was cancelled" if self.task_id is not None else "the task was cancelled"
        return f"{text}: {self.error_message}" if self.error_message else text


class LocalRayletDiedError(RayError):
    """The node daemon of this machine ended."""

    _default = "the node daemon of this machine ended; its log says why"


class WorkerCrashedError(RayError):
    """The process that ran the task ended unexpectedly, and no retry is left."""

    _default = "the process that ran the task ended unexpectedly; its log may say why"


class RayActorError(RayError):
    """The actor cannot take the call: it died, or cannot be reached.

    `actor_id` is in hexadecimal digits.
    """

    BASE_ERROR_MSG = "the actor failed before it had finished this call"

    def __init__(
        self,
        actor_id: Optional[str] = None,
        error_msg: str = BASE_ERROR_MSG,
        actor_init_failed: bool = False,
        preempted: bool = False,
    ) -> None:
        super().__init__(error_msg)
        self.actor_id = actor_id
        self.error_msg = error_msg
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


class _ActorDeath(NamedTuple):
    """How an actor died; of its system, not of its constructor."""

    actor_id: str
    class_name: str
    error_message: str
    preempted: bool = False


class ActorDiedError(RayActorError):
    """The actor is dead for good.

    `cause` is the constructor's `RayTaskError` if that is why.
    """

    BASE_ERROR_MSG = "the actor died before it had finished this call"

    def __init__(self, cause: Union[RayTaskError, _ActorDeath, str, None] = None) -> None:
        self.cause = cause if isinstance(cause, RayTaskError) else None
        if isinstance(cause, RayTaskError):
            text = f"the actor died because its constructor raised: {cause}"
            super().__init__(cause._actor_id, text, actor_init_failed=True)  # noqa: SLF001 - Ray's name
        elif isinstance(cause, _ActorDeath):
            text = f"actor {cause.class_name} ({cause.actor_id}) is dead: {cause.error_message}"
            super().__init__(cause.actor_id, text, preempted=cause.preempted)
        else:
            super().__init__(None, cause or self.BASE_ERROR_MSG)

    @staticmethod
    def from_task_error(task_error: RayTaskError) -> ActorDiedError:
        """The error of calls to an actor whose constructor raised."""
        return ActorDiedError(task_error)


class ActorUnavailableError(RayActorError):
    """The actor cannot be reached now; it may come back. The call may have run or not."""

    def __init__(self, error_message: str, actor_id: Optional[bytes]) -> None:
        name = actor_id.hex() if actor_id is not None else None
        text = f"the actor {name} is unavailable: {error_message}. The call may have run or not"
        super().__init__(name, text)


class RaySystemError(RayError):
    """The system itself failed, or is not in the state that the call needs."""

    def __init__(self, client_exc: Any, traceback_str: Optional[str] = None) -> None:
        super().__init__(client_exc)
        self.client_exc = client_exc
        self.traceback_str = traceback_str

    def __str__(self) -> str:
        text = str(self.client_exc)
        return f"{text}\n{self.traceback_str}" if self.traceback_str else text


class _MessageError(RayError):
    """An error that keeps its text as `message`."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class AuthenticationError(_MessageError):
    """The cluster does not take the token of this process, or there is none."""


class UserCodeException(RayError):
    """Code of the user that a library called raised; that exception is the `__cause__`."""


class ObjectStoreFullError(RayError):
    """The object store has no room, and nothing in it can make way."""

    _default = "the object store is full of objects that are referred to and cannot be spilled"


class OutOfDiskError(RayError):
    """The disk to spill objects to has no room."""

    _default = "the object store is full, and so is the disk that it spills to"


class OutOfMemoryError(_MessageError):
    """The node ran out of memory and ended the process that ran the task."""


class NodeDiedError(_MessageError):
    """The node that ran the task is gone."""


class ObjectLostError(RayError):
    """Every copy of the object is gone, and it could not be made again.

    `object_ref_hex` is the id of the object in hexadecimal digits, `call_site` where the reference was
    made if that is known, `cause` what happened.
    """

    _default = "every copy of it is gone"

    def __init__(self, object_ref_hex: str, owner_address: Optional[bytes], call_site: str, *, cause: str = "") -> None:
        super().__init__(object_ref_hex, owner_address, call_site)
        self.object_ref_hex = object_ref_hex
        self.owner_address = owner_address
        self.call_site = call_site
        self.cause = cause

    def __str__(self) -> str:
        made = f" (its reference was made at {self.call_site})" if self.call_site else ""
        return f"object {self.object_ref_hex}{made} cannot be had: {self.cause or self._default}"


class ObjectFetchTimedOutError(ObjectLostError):
    """The object could not be fetched from another node in time."""

    _default = "no copy of it was found in time"


class ReferenceCountingAssertionError(ObjectLostError, AssertionError):
    """The object was freed while it was still referred to."""

    _default = "it was freed, though something still refers to it"


class ObjectFreedError(ObjectLostError):
    """The object was freed by an explicit call."""

    _default = "it was freed by a call of free()"


class OwnerDiedError(ObjectLostError):
    """The process that owned the object is gone."""

    _default = "the process that owned it, which called .remote() or put(), has ended"


class ObjectReconstructionFailedError(ObjectLostError):
    """The object was lost and could not be made again, for this `reason`."""

    REASON_MESSAGES: ClassVar[dict[str, str]] = {
        "OBJECT_UNRECONSTRUCTABLE_MAX_ATTEMPTS_EXCEEDED": "its task has no retry left; max_retries allows for more",
        "OBJECT_UNRECONSTRUCTABLE_LINEAGE_EVICTED": "what is known of its task was dropped to save memory",
        "OBJECT_UNRECONSTRUCTABLE_PUT": "it was stored by put(), and no task can make it again",
        "OBJECT_UNRECONSTRUCTABLE_RETRIES_DISABLED": "its task has max_retries=0",
        "OBJECT_UNRECONSTRUCTABLE_BORROWED": "only its owner, another process, could have made it again",
        "OBJECT_UNRECONSTRUCTABLE_REF_NOT_FOUND": "its owner does not know it any more",
        "OBJECT_UNRECONSTRUCTABLE_TASK_CANCELLED": "its task was cancelled",
        "OBJECT_UNRECONSTRUCTABLE_LINEAGE_DISABLED": "making objects again is turned off",
    }

    def __init__(
        self,
        object_ref_hex: str,
        reason: Optional[str] = None,
        reason_message: Optional[str] = None,
        owner_address: Optional[bytes] = None,
        call_site: str = "",
    ) -> None:
        message = reason_message or self.REASON_MESSAGES.get(reason or "", "it is not known why")
        cause = f"it was lost and could not be made again: {message}"
        super().__init__(object_ref_hex, owner_address, call_site, cause=cause)
        self.reason = reason
        self.reason_message = message


class RpcError(RayError):
    """A call between two parts of the system failed; `rpc_code` is gRPC's number for how."""

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


class _ExplainedError(RayError):
    """An error that keeps its text as `error_message`."""

    _prefix = ""

    def __init__(self, error_message: str) -> None:
        super().__init__(error_message)
        self.error_message = error_message

    def __str__(self) -> str:
        return f"{self._prefix}{self.error_message}"


class RuntimeEnvSetupError(RayError):
    """The environment that the task or actor asked for could not be made."""

    def __init__(self, error_message: Optional[str] = None) -> None:
        super().__init__(error_message)
        self.error_message = error_message

    def __str__(self) -> str:
        text = "the runtime environment could not be made"
        return f"{text}: {self.error_message}" if self.error_message else text


class TaskPlacementGroupRemoved(RayError):
    """The placement group of the task was removed."""

    _default = "the placement group that the task was to run in was removed"


class ActorPlacementGroupRemoved(RayError):
    """The placement group of the actor was removed."""

    _default = "the placement group of the actor was removed"


class WorkerEndedWithPlacementGroup(WorkerCrashedError, TaskPlacementGroupRemoved):
    """The task was running when its placement group was removed: its process was ended."""


class ActorEndedWithPlacementGroup(ActorDiedError, ActorPlacementGroupRemoved):
    """The actor's placement group was removed, and the actor is dead for good."""


class ActorEndedForMemory(ActorDiedError, OutOfMemoryError):
    """The node ran out of memory and ended the actor's process, and the actor is dead for good."""


class PendingCallsLimitExceeded(RayError):
    """As many calls as allowed (`max_pending_calls`) wait for the actor."""


class TaskUnschedulableError(_ExplainedError):
    """No node can ever run the task."""

    _prefix = "the task cannot be scheduled: "


class ActorUnschedulableError(_ExplainedError):
    """No node can ever run the actor."""

    _prefix = "the actor cannot be scheduled: "


class ObjectRefStreamEndOfStreamError(RayError):
    """The stream of results has ended."""


class StreamingGeneratorReplayInconsistentError(RaySystemError):
    """A generator that ran again yielded another number of values than the first time."""


class OufOfBandObjectRefSerializationException(RayError):
    """A reference was pickled outside of arguments, results and put values, where that is not allowed."""


class RayChannelError(RaySystemError):
    """A channel between actors failed."""


class RayChannelTimeoutError(RayChannelError, TimeoutError):
    """A channel between actors was not ready in time."""


class RayCgraphCapacityExceeded(RaySystemError):
    """A channel between actors is full."""


class RayDirectTransportError(RaySystemError):
    """A transfer from device to device failed."""


class UnserializableException(RayError):
    """Stands for an exception that cannot be sent between processes."""

    def __init__(self, original_stack_trace: str) -> None:
        super().__init__(original_stack_trace)
        self._original_stack_trace = original_stack_trace


class ActorAlreadyExistsError(ValueError, RayError):
    """An actor of this name lives in the namespace."""

    def __init__(self, error_message: str) -> None:
        super().__init__(error_message)
        self.error_message = error_message


class ActorHandleNotFoundError(ValueError, RayError):
    """The handle belongs to another session."""

    def __init__(self, error_message: str) -> None:
        super().__init__(error_message)
        self.error_message = error_message


RAY_EXCEPTION_TYPES = [
    PlasmaObjectNotAvailable,
    RayError,
    RayTaskError,
    WorkerCrashedError,
    RayActorError,
    ObjectStoreFullError,
    ObjectLostError,
    ObjectFetchTimedOutError,
    ReferenceCountingAssertionError,
    ObjectReconstructionFailedError,
    OwnerDiedError,
    GetTimeoutError,
    AsyncioActorExit,
    RuntimeEnvSetupError,
    TaskPlacementGroupRemoved,
    ActorPlacementGroupRemoved,
    PendingCallsLimitExceeded,
    LocalRayletDiedError,
    TaskUnschedulableError,
    ActorDiedError,
    ActorUnschedulableError,
    ActorUnavailableError,
    RayChannelError,
    RayChannelTimeoutError,
    OufOfBandObjectRefSerializationException,
    RayCgraphCapacityExceeded,
    UnserializableException,
    ActorAlreadyExistsError,
    ActorHandleNotFoundError,
    AuthenticationError,
]
