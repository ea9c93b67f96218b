"""Functions that run as tasks in other processes."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Callable, Optional

from ray_rust._internal import ExportedFunction, RemoteCall, TaskOptions
from ray_rust._private import options as option_checks
from ray_rust._private import scheduling, session

if TYPE_CHECKING:
    from ray_rust._internal import CoreWorker, ObjectRef

_WHAT = "a task"


class RemoteFunction(RemoteCall):
    """A function to be called with `.remote(...)`, which returns references to its results at once."""

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        _refuse_unsupported(function)
        self._set(function, option_checks.check(options, option_checks.TASK_OPTIONS, _WHAT))

    def _set(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        self._function = function
        self._function_name = _name_of(function)
        self._default_options = options
        self._described: _Described = None
        self._is_generator = option_checks.is_generator(function)
        self._task_options = _task_options(options, self._function_name, yields=self._is_generator)
        self._signature: Any = None
        # Pickled at the first call, as late as the function may still change what it refers to.
        self._exported: Optional[ExportedFunction] = None
        # References in it, which calls have to bring along.
        self._captured: list[ObjectRef] = []
        self.__name__ = self._function_name
        self.__doc__ = function.__doc__
        self.__module__ = getattr(function, "__module__", None) or "__main__"
        self.__wrapped__ = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            f"a remote function cannot be called directly: use {self._function_name}.remote(...), "
            f"or {self._function_name}._function(...) to run it in this process"
        )

    def options(self, **task_options: Any) -> _WithOptions:
        """This function with other options."""
        option_checks.refuse_max_calls(task_options)
        option_checks.refuse_per_yield(task_options, self._default_options, "@remote")
        merged = option_checks.merge(self._default_options, task_options, option_checks.TASK_OPTIONS, _WHAT)
        return _WithOptions(self, merged)

    def _remote(self, args: tuple[Any, ...] = (), kwargs: Optional[dict[str, Any]] = None, **task_options: Any) -> Any:
        """As `.options(**task_options).remote(*args, **kwargs)`."""
        # Ray's libraries hand on all options of the function.
        task_options.pop("max_calls", None)
        return self.options(**task_options).remote(*args, **(kwargs or {}))

    def _submit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        options = self._task_options
        if "runtime_env" in self._default_options:
            options, self._described = _in_own_environment(self._default_options, self, self._described)
        return self._submit_with(self, args, kwargs, options)

    def _submit_with(
        self, call: RemoteCall, args: tuple[Any, ...], kwargs: dict[str, Any], options: TaskOptions
    ) -> Any:
        """The first call, and every one that is out of the ordinary; `call` is prepared for the others."""
        signature = self._signature
        if signature is None:
            signature = self._signature = _signature_of(self._function)
        signature.check(self._function_name, args, kwargs)
        core = session.connected_core()
        exported = self._exported
        if exported is None:
            exported = self._export()
        if self._captured:
            kwargs = with_captured(kwargs, self._captured)
        elif not options.has_runtime_env:  # else it holds for this connection only
            call._prepare(signature.shape, exported, options)  # noqa: SLF001
        try:
            return core.submit_task(exported, args, kwargs, options)
        except TypeError as error:
            raise explain_argument(error, self._function_name) from error.__cause__

    def _export(self) -> ExportedFunction:
        from ray_rust._private.serialization import dumps_function

        pickled, self._captured = dumps_function(self._function, f"the remote function {self._function_name!r}")
        max_calls = option_checks.max_calls(self._default_options)
        self._exported = ExportedFunction(pickled, self._function_name, max_calls)
        return self._exported

    def __reduce__(self) -> tuple[Any, ...]:
        # The state comes after the object, so that a function that calls itself can be pickled.
        state = {
            "function": self._function,
            "options": self._default_options,
            "_last_export_session_and_job": None,
        }
        return (_new, (), state)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._set(state["function"], state["options"])

    def __get__(self, instance: Any, owner: Optional[type] = None) -> RemoteFunction:
        if instance is not None:
            raise TypeError(
                f"{self._function_name} is a method; tasks are plain functions. Put @remote on its class, "
                "or make it a staticmethod"
            )
        return self

    def __repr__(self) -> str:
        return f"<RemoteFunction {self.__module__}.{self._function_name}>"


def with_captured(kwargs: dict[str, Any], references: list[ObjectRef]) -> dict[str, Any]:
    """The arguments by name, with the references that the function refers to."""
    from ray_rust._private.captured import ARGUMENT

    return {**kwargs, ARGUMENT: references}


def explain_argument(error: TypeError, function_name: str) -> TypeError:
    """The error with the name of the function whose argument is at fault."""
    from ray_rust._private.serialization import NotPicklableError

    if not isinstance(error, NotPicklableError):
        return error
    return NotPicklableError(f"in the arguments of {function_name}(): {error}")


class _WithOptions(RemoteCall):
    """A remote function with options of its own."""

    __slots__ = ("_described", "_function", "_options", "_task_options")

    def __init__(self, function: RemoteFunction, options: dict[str, Any]) -> None:
        self._function = function
        self._options = options
        self._described: _Described = None
        self._task_options = _task_options(options, function.__name__, yields=function._is_generator)  # noqa: SLF001

    def _submit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        options = self._task_options
        if "runtime_env" in self._options:
            options, self._described = _in_own_environment(self._options, self._function, self._described)
        return self._function._submit_with(self, args, kwargs, options)  # noqa: SLF001

    def options(self, **task_options: Any) -> _WithOptions:
        """These options, overridden by others."""
        option_checks.refuse_max_calls(task_options)
        option_checks.refuse_per_yield(task_options, self._options, "@remote")
        merged = option_checks.merge(self._options, task_options, option_checks.TASK_OPTIONS, _WHAT)
        return _WithOptions(self._function, merged)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_WithOptions, (self._function, self._options))


def _new() -> RemoteFunction:
    return RemoteFunction.__new__(RemoteFunction)


def _name_of(function: Callable[..., Any]) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", None) or type(function).__name__


def _signature_of(function: Callable[..., Any]) -> Any:
    from ray_rust._private.signature import Signature

    return Signature.of(function)


# The options with a runtime environment as it was described for a connection, and that connection.
_Described = Optional["tuple[CoreWorker, TaskOptions]"]


def _in_own_environment(
    options: dict[str, Any], function: RemoteFunction, described: _Described
) -> tuple[TaskOptions, _Described]:
    """The options for this connection. What is local is uploaded at the first call."""
    core = session.connected_core()
    if described is not None and described[0] is core:
        return described[1], described
    from ray_rust._private.runtime_env.describe import describe

    text = describe(options["runtime_env"], core)
    made = _task_options(options, function.__name__, text, yields=function._is_generator)  # noqa: SLF001
    return made, (core, made)


def _task_options(
    options: dict[str, Any], function_name: str, runtime_env: Optional[str] = None, *, yields: bool
) -> TaskOptions:
    placement = option_checks.placement(options, option_checks.DEFAULT_TASK_CPUS)
    returns = option_checks.returns(options, function_name, yields=yields)
    return TaskOptions(
        name=options.get("name") or function_name,
        num_cpus=placement.num_cpus,
        num_gpus=placement.num_gpus,
        memory=placement.memory,
        resources=placement.resources,
        num_returns=returns.num_returns,
        max_retries=options.get("max_retries", option_checks.DEFAULT_TASK_MAX_RETRIES),
        retry_exceptions=option_checks.retried(options),
        runtime_env=runtime_env,
        task_events=options.get("enable_task_events", True),
        generator=returns.generator,
        constraint=scheduling.constraint(options, [placement.amounts()], f"the task {function_name}"),
    )


_CO_COROUTINE = 0x80
_CO_ASYNC_GENERATOR = 0x200


def _refuse_unsupported(function: Callable[..., Any]) -> None:
    code = getattr(function, "__code__", None)
    flags = code.co_flags if code is not None else 0
    name = _name_of(function)
    if flags & (_CO_COROUTINE | _CO_ASYNC_GENERATOR):
        raise ValueError(f"{name!r} is a coroutine function, which cannot be a task; wrap it in asyncio.run()")
