"""Objects that live in a process of their own: actors."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any, Callable, Generic, NoReturn, Optional, Union, overload

from ray_rust._internal import (
    ActorID,
    CallShape,
    ExportedFunction,
    HandleCall,
    MethodCall,
    MethodDescription,
    ObjectRef,
    TaskOptions,
)
from ray_rust._private import options as option_checks
from ray_rust._private import scheduling, session
from ray_rust.exceptions import AsyncioActorExit
from ray_rust.remote_function import explain_argument, with_captured

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from typing_extensions import Concatenate, ParamSpec, TypeVar

    from ray_rust._internal import CoreWorker, SchedulingConstraint
    from ray_rust._private.typed import MethodDecorator, TypedMethod

    P = ParamSpec("P")
    R = TypeVar("R")
    T = TypeVar("T", default=Any)
else:
    from typing import TypeVar

    T = TypeVar("T")

__all__ = [
    "ActorClass",
    "ActorClassInheritanceException",
    "ActorHandle",
    "ActorMethod",
    "ActorProxy",
    "exit_actor",
    "method",
]

_WHAT = "an actor"
_METHOD_WHAT = "an actor method"
_OPTIONS_ATTRIBUTE = "__ray_method_options__"


if TYPE_CHECKING:

    @overload
    def method(function: Callable[Concatenate[Any, P], Awaitable[R]], /) -> TypedMethod[P, R]: ...
    @overload
    def method(function: Callable[Concatenate[Any, P], R], /) -> TypedMethod[P, R]: ...
    @overload
    def method(*, num_returns: Any, **options: Any) -> Callable[[Callable[..., Any]], Any]: ...
    @overload
    def method(**options: Any) -> MethodDecorator: ...


def method(*args: Any, **kwargs: Any) -> Any:
    """Decorator: options of an actor's method, such as `@method(num_returns=2)`.

    Without options it is there for type checkers, which then know the method's parameters and result.
    """
    if len(args) == 1 and callable(args[0]) and not kwargs:
        return args[0]
    if args:
        raise TypeError("@method takes options by name, as in @method(num_returns=2)")
    options = kwargs
    checked = option_checks.check(options, option_checks.METHOD_OPTIONS, _METHOD_WHAT)

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        setattr(function, _OPTIONS_ATTRIBUTE, checked)
        return function

    return decorate


def _portable(options: dict[str, Any]) -> dict[str, Any]:
    """Options of a method as they travel with handles: to who cannot import the types that they name."""
    if "retry_exceptions" not in options:
        return options
    return {**options, "retry_exceptions": option_checks.retried(options)}


class ClassDescription:
    """What a handle has to know of the actor's class: its name, and its methods with their options.

    It travels with handles, so that who gets one need not be able to import the class.
    """

    def __init__(
        self,
        module_name: str,
        class_name: str,
        methods: dict[str, tuple[Any, dict[str, Any], bool]],
        *,
        is_async: bool,
        generator_limit: int = -1,
        tensor_transport: bool = False,
    ) -> None:
        self.module_name = module_name
        self.class_name = class_name
        # Signature, options, and whether it is a generator.
        self.methods = methods
        # Calls run in event loops.
        self.is_async = is_async
        # How many items of all its generators may be unread; -1 for any number.
        self.generator_limit = generator_limit
        # It can send and receive tensors past the object store.
        self.tensor_transport = tensor_transport
        # As the core takes them.
        self.calls = {name: self.call(name, options) for name, (_, options, _) in methods.items()}

    def call(self, name: str, options: dict[str, Any], through: Optional[str] = None) -> MethodDescription:
        """What calls of this method with these options need, the same for all actors of the class.

        It may be another method that is called, and calls this one.
        """
        signature, _, yields = self.methods[name]
        task_name = options.get("name") or f"{self.class_name}.{name}"
        returns = option_checks.returns(
            options, f"{self.class_name}.{name}", yields=yields, actor_limit=self.generator_limit
        )
        shape = signature.shape
        if option_checks.has_tensor_transport(options):
            shape = _no_shape()
        return MethodDescription(
            (through or name, options.get("concurrency_group", "")),
            task_name,
            shape,
            returns.num_returns,
            options.get("max_task_retries"),
            returns.generator,
            task_events=options.get("enable_task_events", True),
            retry_exceptions=option_checks.retried(options),
        )

    def with_generator_limit(self, generator_limit: int) -> ClassDescription:
        """The same for an actor of which only so many items of all generators may be unread."""
        return _describe(
            self.module_name, self.class_name, self.methods, self.is_async, generator_limit, self.tensor_transport
        )

    def with_tensor_transport(self) -> ClassDescription:
        """The same for an actor that can send and receive tensors."""
        return _describe(self.module_name, self.class_name, self.methods, self.is_async, self.generator_limit, True)

    @property
    def has_tensor_methods(self) -> bool:
        """Whether results of some methods keep their tensors in the actor."""
        return any(option_checks.has_tensor_transport(options) for _, options, _ in self.methods.values())

    @classmethod
    def of(cls, actor_class: type) -> ClassDescription:
        """Looks at all methods, inherited ones too."""
        from ray_rust._private.signature import Signature

        methods: dict[str, tuple[Any, dict[str, Any], bool]] = {}
        is_async = False
        for name, function, is_bound in _methods_of(actor_class):
            is_async = is_async or bool(_code_flags(function) & (_CO_COROUTINE | _CO_ASYNC_GENERATOR))
            options = _portable(getattr(function, _OPTIONS_ATTRIBUTE, {}))
            yields = option_checks.is_generator(function)
            methods[name] = (Signature.of(function, skip_self=is_bound), options, yields)
        for name, signature in _system_signatures().items():
            methods.setdefault(name, (signature, {}, False))
        return cls(actor_class.__module__, actor_class.__qualname__.rpartition(".")[2], methods, is_async=is_async)

    def __reduce__(self) -> tuple[Any, ...]:
        described = (self.module_name, self.class_name, self.methods, self.is_async, self.generator_limit)
        return (_describe, (*described, self.tensor_transport))


def _describe(
    module_name: str,
    class_name: str,
    methods: dict[str, tuple[Any, dict[str, Any], bool]],
    is_async: bool,
    generator_limit: int,
    tensor_transport: bool,
) -> ClassDescription:
    return ClassDescription(
        module_name,
        class_name,
        methods,
        is_async=is_async,
        generator_limit=generator_limit,
        tensor_transport=tensor_transport,
    )


def _no_shape() -> CallShape:
    """That no arguments have, so that calls are made by `ActorMethod._submit`."""
    keyword_only = 3
    return CallShape([("", keyword_only, False)])


def _methods_of(actor_class: type) -> list[tuple[str, Callable[..., Any], bool]]:
    """Name, function, and whether its first parameter is filled in."""
    found = []
    for name in dir(actor_class):
        if name in ("__class__", "__new__", "__init_subclass__", "__subclasshook__", "__class_getitem__"):
            continue
        member = _static_member(actor_class, name)
        if isinstance(member, staticmethod):
            found.append((name, member.__func__, False))
        elif isinstance(member, classmethod):
            found.append((name, member.__func__, True))
        elif callable(member) and not isinstance(member, type) and hasattr(member, "__code__"):
            found.append((name, member, True))
    return found


def _static_member(cls: type, name: str) -> Any:
    for base in cls.__mro__:
        if name in vars(base):
            return vars(base)[name]
    return None


_CO_COROUTINE = 0x80
_CO_ASYNC_GENERATOR = 0x200


def _code_flags(function: Callable[..., Any]) -> int:
    code = getattr(_underlying(function), "__code__", None)
    return code.co_flags if code is not None else 0


def _underlying(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of a partial one; what a decorator wraps counts for nothing, as for `inspect`."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


# Methods that every actor has


def _ray_ready(self: Any) -> bool:
    return True


def _ray_terminate(self: Any) -> None:
    exit_actor()


def _ray_call(self: Any, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return function(self, *args, **kwargs)


_SYSTEM_METHODS: dict[str, Callable[..., Any]] = {
    "__ray_ready__": _ray_ready,
    "__ray_terminate__": _ray_terminate,
    "__ray_call__": _ray_call,
}
_known_system_signatures: dict[str, Any] = {}


def _system_signatures() -> dict[str, Any]:
    from ray_rust._private.signature import Signature

    if not _known_system_signatures:
        for name, function in _SYSTEM_METHODS.items():
            _known_system_signatures[name] = Signature.of(function, skip_self=True)
    return _known_system_signatures


class _Exported:
    """Pickles as the class with the methods that every actor has."""

    def __init__(self, actor_class: type) -> None:
        self._class = actor_class

    def __reduce__(self) -> tuple[Any, ...]:
        return (_with_system_methods, (self._class,))


def _with_system_methods(actor_class: type) -> type:
    # Added to the class itself, in the actor's process: a subclass would change what the class sees of
    # itself, such as its name, `__init_subclass__` and private attributes.
    for name, function in _SYSTEM_METHODS.items():
        if not hasattr(actor_class, name):
            try:
                setattr(actor_class, name, function)
            except TypeError:  # a class made in C
                break
    return actor_class


def exit_actor() -> NoReturn:
    """Ends the actor that calls this, for good: this call and later ones fail with ActorDiedError."""
    core = session.connected_core()
    if core.current_actor_id() is None:
        raise TypeError("exit_actor() was called outside of an actor")
    core.exit_actor("it called exit_actor()")
    # Leads out of the running call; the process ends after it.
    if "asyncio" in sys.modules and sys.modules["asyncio"]._get_running_loop() is not None:  # noqa: SLF001
        raise AsyncioActorExit
    raise SystemExit(0)


class ActorClassInheritanceException(TypeError):  # noqa: N818 - Ray's name
    """A class inherits from an actor class, rather than from the class in it."""


class ActorClass(Generic[T]):
    """A class to be made with `.remote(...)`, which returns a handle to the new actor at once."""

    def __init__(self, actor_class: type, options: dict[str, Any]) -> None:
        checked = option_checks.check(options, option_checks.ACTOR_OPTIONS, _WHAT)
        option_checks.refuse_nameless(checked)
        self._set(actor_class, checked)
        self._check_tensor_transport(checked)

    def _set(self, actor_class: type, options: dict[str, Any]) -> None:
        self.__ray_actor_class__ = actor_class
        self._default_options = options
        self._description = ClassDescription.of(actor_class)
        self._exported: Optional[ExportedFunction] = None
        # References in the class, which its construction has to bring along.
        self._captured: list[ObjectRef] = []
        self.__name__ = actor_class.__name__
        self.__qualname__ = actor_class.__qualname__
        self.__module__ = actor_class.__module__
        self.__doc__ = actor_class.__doc__

    def __mro_entries__(self, bases: tuple[Any, ...]) -> NoReturn:
        raise ActorClassInheritanceException(
            f"a class cannot inherit from the actor class {self.__name__}: "
            "inherit from the plain class and decorate that"
        )

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(f"an actor cannot be made directly: use {self.__name__}.remote(...)")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "__ray_actor_class__" not in self.__dict__:
            raise AttributeError(name)
        # Constants and static methods of the class.
        return getattr(self.__ray_actor_class__, name)

    def remote(self, *args: Any, **kwargs: Any) -> ActorProxy[T]:
        """Makes an actor; its constructor runs later, in the actor's process."""
        return self._create(args, kwargs, self._default_options)

    def options(self, **actor_options: Any) -> _ActorClassWithOptions[T]:
        """This class with other options."""
        option_checks.refuse_concurrency_groups(actor_options)
        merged = option_checks.merge(self._default_options, actor_options, option_checks.ACTOR_OPTIONS, _WHAT)
        option_checks.refuse_nameless(merged)
        self._check_tensor_transport(merged)
        return _ActorClassWithOptions(self, merged)

    def _check_tensor_transport(self, options: dict[str, Any]) -> None:
        if options.get("enable_tensor_transport") is False and self._description.has_tensor_methods:
            raise ValueError(
                f"{self.__name__} has methods with @method(tensor_transport=...), and so cannot be made with "
                "enable_tensor_transport=False"
            )

    def _remote(
        self, args: tuple[Any, ...] = (), kwargs: Optional[dict[str, Any]] = None, **actor_options: Any
    ) -> ActorProxy[T]:
        """As `.options(**actor_options).remote(*args, **kwargs)`."""
        return self.options(**actor_options).remote(*args, **(kwargs or {}))

    def _create(self, args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any]) -> ActorHandle:
        self._check_arguments(args, kwargs)
        connection = session.current_session()
        namespace = options.get("namespace", connection.namespace)
        if options.get("get_if_exists"):
            return self._get_or_create(connection.core, args, kwargs, options, namespace)
        return self._register(connection.core, args, kwargs, options, namespace)

    def _get_or_create(
        self, core: CoreWorker, args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any], namespace: str
    ) -> ActorHandle:
        name = options["name"]
        found = core.get_named_actor(name, namespace)
        if found is None:
            try:
                return self._register(core, args, kwargs, options, namespace)
            except ValueError:
                # Somebody else was faster.
                found = core.get_named_actor(name, namespace)
                if found is None:
                    raise
        return handle_from_metadata(*found)

    def _register(
        self, core: CoreWorker, args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any], namespace: str
    ) -> ActorHandle:
        import pickle

        placement, placement_cpus = option_checks.actor_placement(options)
        max_task_retries = options.get("max_task_retries", 0)
        detached = options.get("lifetime", session.current_session().actor_lifetime) == "detached"
        max_concurrency, groups, out_of_order = self._concurrency(options)
        description = self._description
        generator_limit = options.get("_actor_generator_backpressure_num_objects", -1)
        if generator_limit > 0:
            description = description.with_generator_limit(generator_limit)
        if options.get("enable_tensor_transport") or description.has_tensor_methods:
            from ray_rust._private.tensors.calls import GROUPS

            description = description.with_tensor_transport()
            groups += [(group, 1) for group in GROUPS]
        max_pending_calls = max(0, options.get("max_pending_calls", -1))
        metadata = pickle.dumps((description, max_task_retries, out_of_order, max_pending_calls), protocol=5)
        exported = self._exported or self._export()
        if self._captured:
            kwargs = with_captured(kwargs, self._captured)
        runtime_env = None
        if "runtime_env" in options:
            from ray_rust._private.runtime_env.describe import describe

            runtime_env = describe(options["runtime_env"], core)
        actor_id, reference = core.create_actor(
            exported,
            args,
            kwargs,
            TaskOptions(
                name=self._description.class_name,
                num_cpus=placement.num_cpus,
                num_gpus=placement.num_gpus,
                memory=placement.memory,
                resources=placement.resources,
                num_returns=1,
                max_retries=0,
                retry_exceptions=False,
                runtime_env=runtime_env,
                constraint=self._constraint(options, placement, placement_cpus),
            ),
            placement_cpus=placement_cpus,
            max_restarts=options.get("max_restarts", 0),
            max_task_retries=max_task_retries,
            max_concurrency=max_concurrency,
            concurrency_groups=groups,
            is_async=self._description.is_async,
            out_of_order=out_of_order,
            max_pending_calls=max_pending_calls,
            actor_name=options.get("name", ""),
            namespace=namespace,
            detached=detached,
            handle_metadata=metadata,
        )
        return ActorHandle(actor_id, description, max_task_retries, metadata, reference)

    def _concurrency(self, options: dict[str, Any]) -> tuple[int, list[tuple[str, int]], bool]:
        """How many calls run at once: of those without a group, of each group; and whether in any order."""
        description = self._description
        groups = list(options.get("concurrency_groups", {}).items())
        for name, (_, method_options, _) in description.methods.items():
            group = method_options.get("concurrency_group")
            if group is not None and not any(group == known for known, _ in groups):
                raise ValueError(
                    f"{self.__name__}.{name} is of the concurrency group {group!r}, which is not among the "
                    f"concurrency_groups of its actor: {[known for known, _ in groups]}"
                )
        default = option_checks.DEFAULT_MAX_CONCURRENCY_ASYNC if description.is_async else 1
        max_concurrency = options.get("max_concurrency", default)
        concurrent = description.is_async or max_concurrency > 1 or bool(groups)
        out_of_order = options.get("allow_out_of_order_execution")
        if out_of_order is None:
            out_of_order = concurrent
        elif concurrent and not out_of_order:
            raise ValueError(
                f"calls of {self.__name__} run side by side and so cannot be kept in order: "
                "allow_out_of_order_execution=False is for actors that run one call at a time"
            )
        return max_concurrency, groups, out_of_order

    def _constraint(
        self, options: dict[str, Any], placement: option_checks.Placement, placement_cpus: float
    ) -> Optional[SchedulingConstraint]:
        if scheduling.OPTIONS.isdisjoint(options):
            return None
        to_live = placement.amounts()
        to_place = {**to_live, "CPU": max(placement_cpus, placement.num_cpus)}
        return scheduling.constraint(options, [to_live, to_place], f"the actor {self.__name__}")

    def _check_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        constructor = self._description.methods.get("__init__")
        if constructor is not None:
            constructor[0].check(f"{self.__name__}.__init__", args, kwargs)
        elif (args or kwargs) and _static_member(self.__ray_actor_class__, "__new__") is object.__new__:
            raise TypeError(f"{self.__name__}() takes no arguments")

    def _export(self) -> ExportedFunction:
        from ray_rust._private.serialization import dumps_function

        try:
            pickled, self._captured = dumps_function(
                _Exported(self.__ray_actor_class__), f"the actor class {self.__name__!r}"
            )
        except TypeError:
            # Once more without the wrapping, for an error that shows the way from the class.
            dumps_function(self.__ray_actor_class__, f"the actor class {self.__name__!r}")
            raise
        self._exported = ExportedFunction(pickled, self._description.class_name)
        return self._exported

    def __reduce__(self) -> tuple[Any, ...]:
        return (_new_actor_class, (), {"class": self.__ray_actor_class__, "options": self._default_options})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._set(state["class"], state["options"])

    def __repr__(self) -> str:
        return f"ActorClass({self.__name__})"


def _new_actor_class() -> ActorClass:
    return ActorClass.__new__(ActorClass)


class _ActorClassWithOptions(Generic[T]):
    """An actor class with options of its own."""

    __slots__ = ("_class", "_options")

    def __init__(self, actor_class: ActorClass, options: dict[str, Any]) -> None:
        self._class = actor_class
        self._options = options

    def remote(self, *args: Any, **kwargs: Any) -> ActorProxy[T]:
        """As `ActorClass.remote`."""
        return self._class._create(args, kwargs, self._options)  # noqa: SLF001

    def options(self, **actor_options: Any) -> _ActorClassWithOptions[T]:
        """These options, overridden by others."""
        option_checks.refuse_concurrency_groups(actor_options)
        merged = option_checks.merge(self._options, actor_options, option_checks.ACTOR_OPTIONS, _WHAT)
        option_checks.refuse_nameless(merged)
        return _ActorClassWithOptions(self._class, merged)

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._class(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_ActorClassWithOptions, (self._class, self._options))


class ActorHandle(HandleCall, Generic[T]):
    """Stands for an actor: `handle.method.remote(...)` calls it.

    Calls through one process's handles run in the order in which they were made. The actor ends, after
    the calls made so far, when the handle that `.remote()` returned and all copies of it are gone, in
    whichever process. Handles from `get_actor` and `current_actor` do not keep it; a detached actor ends by
    `kill` alone. A handle that is pickled outside of arguments and results keeps its actor as long as the
    process lives that pickled it.
    """

    def __new__(  # noqa: PYI034 - typing.Self comes with Python 3.11
        cls,
        actor_id: ActorID,
        description: ClassDescription,
        max_task_retries: int,
        metadata: bytes,
        reference: Optional[ObjectRef] = None,
    ) -> ActorHandle:
        """A handle to an actor of this class; `metadata` makes another one, `reference` keeps the actor."""
        handle = super().__new__(cls, description.class_name, description.calls, ActorMethod)
        handle._actor_id = actor_id
        handle._description = description
        handle._max_task_retries = max_task_retries
        handle._metadata = metadata
        handle._reference = reference
        return handle

    _actor_id: ActorID
    _description: ClassDescription
    _max_task_retries: int
    _metadata: bytes
    _reference: Optional[ObjectRef]

    @property
    def _ray_actor_id(self) -> ActorID:
        return self._actor_id

    def __class_getitem__(cls, item: Any) -> Any:
        return cls

    def __dir__(self) -> list[str]:
        return sorted(self._description.methods)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ActorHandle):
            return NotImplemented
        return bool(self._actor_id == other._actor_id)

    def __hash__(self) -> int:
        return hash(self._actor_id)

    def __repr__(self) -> str:
        return f"Actor({self._description.class_name}, {self._actor_id.hex()})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (_handle_from_binary, (self._actor_id.binary(), self._metadata, self._reference))


if TYPE_CHECKING:
    # Its methods are those of the class, as far as they are known: see `method`.
    ActorProxy = Union["ActorHandle[T]", type[T]]
else:
    ActorProxy = ActorHandle


def handle_from_metadata(actor_id: ActorID, metadata: bytes, reference: Optional[ObjectRef] = None) -> ActorHandle:
    """A handle that keeps its actor alive only if there is a `reference` to do so."""
    import pickle

    description, max_task_retries, out_of_order, max_pending_calls = pickle.loads(metadata)
    connection = session.get_session()
    if connection is not None:
        connection.core.attach_actor(actor_id, description.class_name, out_of_order, max_pending_calls)
    return ActorHandle(actor_id, description, max_task_retries, metadata, reference)


def _handle_from_binary(actor_id: bytes, metadata: bytes, reference: Optional[ObjectRef]) -> ActorHandle:
    return handle_from_metadata(ActorID(actor_id), metadata, reference)


class ActorMethod(MethodCall):
    """A method of an actor, to be called with `.remote(...)`."""

    __slots__ = ("_own_options",)

    _own_options: dict[str, Any]

    def _submit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call that is out of the ordinary."""
        handle: ActorHandle = self._handle
        signature = handle._description.methods[self._name][0]  # noqa: SLF001
        signature.check(self._task_name, args, kwargs)
        core = session.connected_core()
        try:
            if option_checks.has_tensor_transport(self._options) or _has_tensors(args, kwargs):
                from ray_rust._private.tensors import calls

                return calls.call(self, core, args, kwargs)
            return self._call(core, args, kwargs)
        except TypeError as error:
            raise explain_argument(error, self._task_name) from error.__cause__

    def options(self, **method_options: Any) -> ActorMethod:
        """This method with other options."""
        option_checks.refuse_per_yield(method_options, self._options, "@method")
        merged = option_checks.merge(self._options, method_options, option_checks.METHOD_OPTIONS, _METHOD_WHAT)
        return _method_with_options(self._handle, self._name, _portable(merged))

    @property
    def _options(self) -> dict[str, Any]:
        """Those given by `options`, else those of the class."""
        handle: ActorHandle = self._handle
        default: dict[str, Any] = handle._description.methods[self._name][1]  # noqa: SLF001
        return getattr(self, "_own_options", default)

    def _remote(
        self, args: tuple[Any, ...] = (), kwargs: Optional[dict[str, Any]] = None, **method_options: Any
    ) -> Any:
        """As `.options(**method_options).remote(*args, **kwargs)`."""
        return self.options(**method_options).remote(*args, **(kwargs or {}))

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(f"a method of an actor cannot be called directly: use {self._name}.remote(...)")

    def __reduce__(self) -> tuple[Any, ...]:
        return (_method_with_options, (self._handle, self._name, self._options))

    def __repr__(self) -> str:
        return f"<ActorMethod {self._task_name}>"


def _has_tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether there are references to tensors among these."""
    special = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, ObjectRef) and type(arg) is not ObjectRef]
    if not special:
        return False
    from ray_rust._private.tensors.refs import TensorRef

    return any(isinstance(arg, TensorRef) for arg in special)


def _method_with_options(handle: ActorHandle, name: str, options: dict[str, Any]) -> ActorMethod:
    method = ActorMethod(handle, handle._description.call(name, options))  # noqa: SLF001
    method._own_options = options  # noqa: SLF001
    return method
