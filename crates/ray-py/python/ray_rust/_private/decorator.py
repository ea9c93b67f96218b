"""The decorator that makes tasks of functions and actors of classes."""

from __future__ import annotations

from typing import Any, Callable, Union

from ray_rust._private import options as option_checks
from ray_rust.actor import ActorClass
from ray_rust.remote_function import RemoteFunction

_USAGE = "use @remote, or @remote(...) with options by name, on a function or a class"


def remote(*args: Any, **options: Any) -> Any:
    """Makes a function or class remote: `@remote`, or `@remote(num_cpus=2, ...)`, or `remote(function)`.

    Options of tasks: num_cpus (1), num_gpus, memory (bytes), resources, num_returns (1), max_retries (3
    when the process dies; -1 without limit), retry_exceptions (False), name.
    Options of actors: num_cpus, num_gpus, memory, resources, name, namespace, lifetime, get_if_exists,
    max_restarts (0), max_task_retries (0).
    """
    if len(args) == 1 and not options:
        return _make(args[0], {})
    if args:
        raise TypeError(f"remote() takes one function or class: {_USAGE}")
    if not options:
        raise TypeError(f"@remote() has no options: {_USAGE}")
    # What the decorated thing is shows only later, but what is wrong for both is wrong now.
    both = {**option_checks.TASK_OPTIONS, **option_checks.ACTOR_OPTIONS}
    option_checks.check({name: value for name, value in options.items() if name != "name"}, both, "tasks or actors")
    return lambda decorated: _make(decorated, options)


def _make(decorated: Union[type, Callable[..., Any]], options: dict[str, Any]) -> Any:
    if isinstance(decorated, type):
        return ActorClass(decorated, options)
    if isinstance(decorated, (RemoteFunction, ActorClass)):
        raise TypeError(f"{decorated!r} is remote already")
    if not callable(decorated):
        raise TypeError(f"remote() was given {decorated!r} of type {type(decorated).__name__}: {_USAGE}")
    return RemoteFunction(decorated, options)
