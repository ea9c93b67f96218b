"""The decorator that makes tasks of functions and actors of classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Union, overload

from ray_rust._private import options as option_checks
from ray_rust.actor import ActorClass
from ray_rust.remote_function import RemoteFunction

if TYPE_CHECKING:
    from typing_extensions import ParamSpec, TypeVar

    from ray_rust._private.typed import RemoteDecorator, TypedFunction

    P = ParamSpec("P")
    R = TypeVar("R")
    T = TypeVar("T")

_USAGE = "use @remote, or @remote(...) with options by name, on a function or a class"


if TYPE_CHECKING:

    @overload
    def remote(decorated: type[T], /) -> ActorClass[T]: ...  # type: ignore[overload-overlap]
    @overload
    def remote(decorated: Callable[P, R], /) -> TypedFunction[P, R]: ...
    @overload
    def remote(*, num_returns: Any, **options: Any) -> Callable[[Any], Any]: ...
    @overload
    def remote(**options: Any) -> RemoteDecorator: ...


def remote(*args: Any, **kwargs: Any) -> Any:
    """Makes a function or class remote: `@remote`, or `@remote(num_cpus=2, ...)`, or `remote(function)`.

    Options of tasks: num_cpus (1), num_gpus, memory (bytes), resources, num_returns (1), max_retries (3
    when the process dies; -1 without limit), retry_exceptions (False; True, or a list of types of exceptions that
    count as if the process had died), max_calls (calls of the function after which its process ends; 1 with
    num_gpus, else any number), name.
    Options of actors: num_cpus, num_gpus, memory, resources, name, namespace, lifetime, get_if_exists,
    max_restarts (0), max_task_retries (0), max_concurrency, concurrency_groups, max_pending_calls (calls of one
    process that may be without an answer; -1 for any number), allow_out_of_order_execution.
    """
    options = kwargs
    if len(args) == 1 and not options:
        return _make(args[0], {})
    if args:
        raise TypeError(f"remote() takes one function or class: {_USAGE}")
    if not options:
        raise TypeError(f"@remote() has no options: {_USAGE}")
    # What the decorated thing is shows only later, but what is wrong for both is wrong now.
    both = {**option_checks.TASK_OPTIONS, **option_checks.ACTOR_OPTIONS}
    differing = ("name", "object_store_memory")
    given = {name: value for name, value in options.items() if name not in differing}
    option_checks.check(given, both, "tasks or actors")
    return lambda decorated: _make(decorated, options)


def _make(decorated: Union[type, Callable[..., Any]], options: dict[str, Any]) -> Any:
    if isinstance(decorated, type):
        return ActorClass(decorated, options)
    if isinstance(decorated, (RemoteFunction, ActorClass)):
        raise TypeError(f"{decorated!r} is remote already")
    if not callable(decorated):
        raise TypeError(f"remote() was given {decorated!r} of type {type(decorated).__name__}: {_USAGE}")
    return RemoteFunction(decorated, options)
