"""The calls of the public interface that go to the core."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional, TypeVar, Union

from ray_rust._internal import ObjectRef, ObjectRefGenerator
from ray_rust._private.session import connected_core, current_session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ray_rust.actor import ActorHandle


_Waitable = TypeVar("_Waitable", bound=Union[ObjectRef, ObjectRefGenerator])


class InvalidReferenceError(TypeError, ValueError):
    """By its nature the first; callers of Ray expect the second."""


def put(value: Any, *, _tensor_transport: Optional[str] = None) -> ObjectRef:
    """Stores a value; tasks that get the reference, here and elsewhere, read it without a copy if it is large.

    With `_tensor_transport`, its tensors stay in this process, and go to others by that transport.
    """
    if isinstance(value, ObjectRef):
        raise TypeError(
            "put() of an ObjectRef is not allowed, because a reference to a reference is mostly a mistake; "
            "put it in a list if it is meant"
        )
    if _tensor_transport is not None and _tensor_transport.upper() != "OBJECT_STORE":
        from ray_rust._private.tensors import fetching

        return fetching.put(value, _tensor_transport)
    return connected_core().put(value)


def get(
    object_refs: Union[ObjectRef, ObjectRefGenerator, Sequence[ObjectRef]],
    *,
    timeout: Optional[float] = None,
    _use_object_store: bool = False,
) -> Any:
    """The value of a reference, or the list of values of a list; waits until they are there.

    Raises what the task raised, or GetTimeoutError after `timeout` seconds. With `_use_object_store`, tensors that
    have a transport come by the object store nevertheless.
    """
    if timeout is not None:
        timeout = _check_timeout("get", timeout)
    if isinstance(object_refs, ObjectRef):
        return _values((object_refs,), timeout, _use_object_store)[0]
    if isinstance(object_refs, ObjectRefGenerator):
        # As in Ray: what is read of it are its items, one by one.
        return object_refs
    if not isinstance(object_refs, (list, tuple)):
        raise InvalidReferenceError(
            f"get() takes an ObjectRef or a list of them, not {_short(object_refs)} of type {_type_name(object_refs)}"
        )
    for index, ref in enumerate(object_refs):
        if not isinstance(ref, ObjectRef):
            raise TypeError(f"get() was given {_short(ref)} of type {_type_name(ref)} at index {index} of its list")
    return _values(object_refs, timeout, _use_object_store)


def _values(refs: Sequence[ObjectRef], timeout: Optional[float], use_object_store: bool) -> list[Any]:
    if all(type(ref) is ObjectRef for ref in refs):
        return connected_core().get(refs, timeout)
    from ray_rust._private.tensors import fetching

    return fetching.get_all(refs, timeout, use_object_store=use_object_store)


def wait(
    ray_waitables: Sequence[_Waitable],
    *,
    num_returns: int = 1,
    timeout: Optional[float] = None,
    fetch_local: bool = True,
    timeout_ms: Optional[float] = None,
) -> tuple[list[_Waitable], list[_Waitable]]:
    """Waits until `num_returns` of the references are ready, at most `timeout` seconds.

    A generator of references is ready when its next item is, or when there is none.

    Returns those that are ready, at most `num_returns`, and the others, both in the order given.
    `timeout_ms` says the time in milliseconds instead.
    """
    _check_wait_list(ray_waitables)
    if timeout_ms is not None:
        if timeout is not None:
            raise ValueError("wait() takes timeout (seconds) or timeout_ms, not both")
        timeout = timeout_ms / 1000
    if timeout is not None and not timeout >= 0:
        raise ValueError(f"the timeout of wait() cannot be negative, is {timeout} s")
    core = connected_core()
    if not ray_waitables:
        return [], []
    if isinstance(num_returns, bool) or not isinstance(num_returns, int):
        raise TypeError(f"num_returns of wait() has to be a whole number, is {num_returns!r}")
    if not 1 <= num_returns <= len(ray_waitables):
        raise ValueError(
            f"num_returns of wait() has to be from 1 to the number of references ({len(ray_waitables)}), "
            f"is {num_returns}"
        )
    return core.wait(ray_waitables, num_returns, timeout, fetch_local)


def _check_wait_list(object_refs: Any) -> None:
    if isinstance(object_refs, (ObjectRef, ObjectRefGenerator)):
        raise TypeError(f"wait() takes a list of references, not a single {_type_name(object_refs)}")
    if not isinstance(object_refs, list):
        raise TypeError(f"wait() takes a list of references, not a {_type_name(object_refs)}")
    for index, ref in enumerate(object_refs):
        if not isinstance(ref, (ObjectRef, ObjectRefGenerator)):
            raise TypeError(f"wait() was given {_short(ref)} of type {_type_name(ref)} at index {index} of its list")
    if len(set(object_refs)) != len(object_refs):
        raise ValueError("wait() was given the same reference twice")


def _check_timeout(function: str, timeout: float) -> Optional[float]:
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"the timeout of {function}() has to be a number of seconds, is {timeout!r}")
    if timeout == -1:  # Ray's other word for None
        return None
    if not timeout >= 0:
        raise ValueError(f"the timeout of {function}() cannot be negative, is {timeout} s")
    return timeout


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _type_name(value: Any) -> str:
    return type(value).__name__


# Tasks and actors


def kill(actor: ActorHandle, *, no_restart: bool = True) -> None:
    """Ends the actor's process at once; with `no_restart=False` it is restarted if its options allow."""
    from ray_rust.actor import ActorHandle

    if not isinstance(actor, ActorHandle):
        raise InvalidReferenceError(f"kill() takes an actor handle, not a {_type_name(actor)}; cancel() ends tasks")
    connected_core().kill_actor(actor._actor_id, no_restart)  # noqa: SLF001


def cancel(ray_waitable: Union[ObjectRef, ObjectRefGenerator], *, force: bool = False, recursive: bool = True) -> None:
    """Cancels the task that makes this object: before it starts, else by KeyboardInterrupt in it.

    `force` ends its process instead. A call of an async actor that runs is cancelled as a task of asyncio; one of
    another actor can ask `get_runtime_context().is_canceled()`, and `force` is refused for it. With `recursive` the
    tasks and calls that the task has submitted are cancelled too, those of actors without `force`. Nothing happens
    if the task has ended. Whoever gets its result gets TaskCancelledError.
    """
    if isinstance(ray_waitable, ObjectRefGenerator):
        ray_waitable = ray_waitable._generator_ref  # noqa: SLF001
    if not isinstance(ray_waitable, ObjectRef):
        raise TypeError(f"cancel() takes an ObjectRef, not a {_type_name(ray_waitable)}; kill() ends actors")
    connected_core().cancel_task(ray_waitable, force, recursive)


def get_actor(name: str, namespace: Optional[str] = None) -> ActorHandle:
    """The living actor of this name. ValueError if there is none."""
    from ray_rust.actor import handle_from_metadata

    if not isinstance(name, str) or not name:
        raise ValueError(f"get_actor() needs a name that is not empty, not {name!r}")
    if namespace is not None and (not isinstance(namespace, str) or not namespace):
        raise ValueError(f"namespace has to be text that is not empty, is {namespace!r}")
    session = current_session()
    namespace = namespace or session.namespace
    found = session.core.get_named_actor(name, namespace)
    if found is None:
        raise ValueError(
            f"no actor named {name!r} lives in namespace {namespace!r}: it was never created, it died, "
            "or it is in another namespace"
        )
    return handle_from_metadata(*found)


# The cluster


def nodes() -> list[dict[str, Any]]:
    """Every node, dead ones too, with its resources and labels."""
    return connected_core().nodes()


def timeline(filename: Optional[str] = None) -> Optional[list[dict[str, Any]]]:
    """Which task ran where and when: events of Chrome's trace format, or None if they are written to a file.

    The file opens in ui.perfetto.dev and chrome://tracing.
    """
    from ray_rust._private import timeline as timelines

    return timelines.timeline(filename)


def cluster_resources() -> dict[str, float]:
    """What all living nodes have together."""
    return connected_core().cluster_resources()


def available_resources() -> dict[str, float]:
    """What of it is free now."""
    return connected_core().available_resources()
