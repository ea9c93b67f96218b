"""Checks what users ask for tasks and actors, at the moment they write it.

Every refusal names the option. Types that do not fit give TypeError, values ValueError, as in Ray; what
Ray has and this system does not have yet gives NotImplementedError instead of being ignored.
"""

from __future__ import annotations

import math
from typing import Any, Callable, NamedTuple, Optional, Union

DEFAULT_TASK_CPUS = 1.0
DEFAULT_TASK_MAX_RETRIES = 3
DEFAULT_MAX_CONCURRENCY_ASYNC = 1000

ACCELERATOR_PREFIX = "accelerator_type:"
ACCELERATOR_SHARE = 0.001

# Amounts are kept as whole ten-thousandths.
_SMALLEST_AMOUNT = 0.0001
_LARGEST_AMOUNT = 9e14

_Check = Callable[[str, Any], None]


class Placement(NamedTuple):
    """Amounts that a task or actor takes."""

    num_cpus: float
    num_gpus: float
    memory: float
    resources: dict[str, float]

    def amounts(self) -> dict[str, float]:
        """By name, those above zero."""
        standard = {"CPU": self.num_cpus, "GPU": self.num_gpus, "memory": self.memory}
        return {name: amount for name, amount in {**standard, **self.resources}.items() if amount}


# Checks of one value


def _check_amount(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} has to be a number, is {value!r} of type {type(value).__name__}")
    if math.isnan(value):
        raise ValueError(f"{name} is not a number (NaN)")
    if value < 0:
        raise ValueError(f"{name} cannot be negative, is {value}")
    if value > _LARGEST_AMOUNT:
        raise ValueError(f"{name} is too large: {value}")
    if 0 < value < _SMALLEST_AMOUNT:
        raise ValueError(f"{name} is {value}; amounts smaller than {_SMALLEST_AMOUNT} cannot be accounted")


def _check_gpus(name: str, value: Any) -> None:
    _check_amount(name, value)
    if value > 1 and value != int(value):
        raise ValueError(f"{name} above 1 has to be whole, is {value}")


def check_resources(name: str, value: Any) -> None:
    """Custom resources: names to amounts, without those that have an option of their own."""
    if not isinstance(value, dict):
        raise TypeError(f"{name} has to be a dict of names and amounts, is a {type(value).__name__}")
    for key, amount in value.items():
        if not isinstance(key, str) or not key:
            raise TypeError(f"{name} has a name that is not text: {key!r}")
        option = _OWN_OPTION.get(key)
        if option is not None:
            raise ValueError(f"{name} cannot have {key!r}: use the option {option} for it")
        _check_amount(f"{name}[{key!r}]", amount)


_OWN_OPTION = {
    "CPU": "num_cpus",
    "GPU": "num_gpus",
    "memory": "memory",
    "object_store_memory": "object_store_memory",
}


def _integer_from(smallest: int, meaning_of_smallest: str = "") -> _Check:
    def check(name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} has to be a whole number, is {value!r} of type {type(value).__name__}")
        if value < smallest:
            raise ValueError(f"{name} has to be at least {smallest}{meaning_of_smallest}, is {value}")
        if value >= 1 << 31:
            raise ValueError(f"{name} is too large: {value}")

    return check


_or_unlimited = _integer_from(-1, " (-1: without limit)")


def _check_num_returns(name: str, value: Any) -> None:
    if not isinstance(value, str):
        return _integer_from(0)(name, value)
    if value not in ("streaming", "dynamic"):
        raise ValueError(f"{name} has to be a number, 'streaming' or 'dynamic', is {value!r}")
    if value == "dynamic":
        import warnings

        from ray_rust.util.annotations import RayDeprecationWarning

        text = "num_returns='dynamic' is deprecated: use num_returns='streaming', which gives results as they come"
        warnings.warn(text, RayDeprecationWarning, stacklevel=2)
    return None


def _check_unread_limit(name: str, value: Any) -> None:
    _or_unlimited(name, value)
    if value == 0:
        raise ValueError(f"{name} has to be 1 or more objects that may be unread, or -1 for no limit; is 0")


def _check_concurrency_groups(name: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise TypeError(f"{name} has to be a dict of names and numbers of calls, is a {type(value).__name__}")
    for group, limit in value.items():
        _check_text(f"a name in {name}", group)
        _integer_from(1)(f"{name}[{group!r}]", limit)


def _check_bool(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} has to be True or False, is {value!r}")


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} has to be a string, is {value!r} of type {type(value).__name__}")
    if not value:
        raise ValueError(f"{name} cannot be empty")


def _check_task_name(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} has to be a string, is {value!r} of type {type(value).__name__}")


def _check_retry_exceptions(name: str, value: Any) -> None:
    if not isinstance(value, (list, tuple)):
        if not isinstance(value, bool):
            raise TypeError(f"{name} has to be True, False or a list of exception types, is {value!r}")
        return
    for kind in value:
        if not isinstance(kind, type) or not issubclass(kind, Exception):
            raise ValueError(f"{name} has to be a list of types of exceptions; {kind!r} is none")  # noqa: TRY004


def _check_object_store_memory(name: str, value: Any) -> None:
    import warnings

    _integer_from(0)(name, value)
    text = f"{name} of actors is deprecated: no memory is set apart by it. Objects are spilled when the store is full"
    warnings.warn(text, DeprecationWarning, stacklevel=2)


def _refuse_object_store_memory(name: str, value: Any) -> None:
    raise ValueError(f"{name} cannot be set for tasks (given: {value!r}): objects are spilled when the store is full")


def _check_tensor_transport(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} has to be a string, is {value!r}")
    if value.lower() != "object_store":
        from ray_rust._private.tensors.registry import registry

        registry.check(value)


def _check_labels(name: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise TypeError(f"{name} has to be a dict, is {value!r}")


def _check_lifetime(name: str, value: Any) -> None:
    if value not in ("detached", "non_detached"):
        raise ValueError(f"{name} has to be 'detached', 'non_detached' or None, is {value!r}")


def _check_strategy(name: str, value: Any) -> None:
    if isinstance(value, str):
        if value not in ("DEFAULT", "SPREAD"):
            raise ValueError(f"{name} has to be 'DEFAULT' or 'SPREAD', is {value!r}")
        return
    from ray_rust.util import scheduling_strategies as known

    strategies = (
        known.PlacementGroupSchedulingStrategy,
        known.NodeAffinitySchedulingStrategy,
        known.NodeLabelSchedulingStrategy,
    )
    if not isinstance(value, strategies):
        raise TypeError(f"{name} has to be a string or a scheduling strategy, is {value!r}")


def _check_group(name: str, value: Any) -> None:
    if value == "default":
        return
    from ray_rust.util.placement_group import PlacementGroup

    if not isinstance(value, PlacementGroup):
        raise TypeError(f"{name} has to be a PlacementGroup, 'default' or None, is {value!r}")


def _check_selector(name: str, value: Any) -> None:
    if not isinstance(value, dict) or not all(isinstance(text, str) for pair in value.items() for text in pair):
        raise TypeError(f"{name} has to be a dict of strings, is {value!r}")
    from ray_rust._private import label_utils

    problem = label_utils.validate_label_selector(value)
    if problem:
        raise ValueError(f"{name} is wrong: {problem}")


def _check_fallbacks(name: str, value: Any) -> None:
    if not isinstance(value, list):
        raise TypeError(f"{name} has to be a list, is a {type(value).__name__}")
    from ray_rust._private import label_utils

    problem = label_utils.validate_fallback_strategy(value)
    if problem:
        raise ValueError(f"{name} is wrong: {problem}")


def check_runtime_env(name: str, value: Any) -> None:
    """What the process of a task, actor or job is to have."""
    if not isinstance(value, dict):
        raise TypeError(f"{name} has to be a dict or a RuntimeEnv, is a {type(value).__name__}")
    if value:
        from ray_rust._private.runtime_env import fields
        from ray_rust.runtime_env import RuntimeEnv

        fields.refuse_unsupported(RuntimeEnv(**value))


def _anything(name: str, value: Any) -> None:
    """Options without an effect on results: what they ask for is a hint."""


_COMMON: dict[str, _Check] = {
    "num_cpus": _check_amount,
    "num_gpus": _check_gpus,
    "memory": _check_amount,
    "resources": check_resources,
    "scheduling_strategy": _check_strategy,
    "runtime_env": check_runtime_env,
    "enable_task_events": _check_bool,
    "_labels": _check_labels,
    "_metadata": _anything,
    "accelerator_type": _check_text,
    "label_selector": _check_selector,
    "fallback_strategy": _check_fallbacks,
    "placement_group": _check_group,
    "placement_group_bundle_index": _integer_from(-1),
    "placement_group_capture_child_tasks": _check_bool,
}

TASK_OPTIONS: dict[str, _Check] = {
    **_COMMON,
    "name": _check_task_name,
    "num_returns": _check_num_returns,
    "max_retries": _or_unlimited,
    "retry_exceptions": _check_retry_exceptions,
    "max_calls": _integer_from(0),
    "object_store_memory": _refuse_object_store_memory,
    "_generator_backpressure_num_objects": _check_unread_limit,
    "_num_objects_per_yield": _integer_from(1),
}

ACTOR_OPTIONS: dict[str, _Check] = {
    **_COMMON,
    "name": _check_text,
    "namespace": _check_text,
    "lifetime": _check_lifetime,
    "get_if_exists": _check_bool,
    "max_restarts": _or_unlimited,
    "max_task_retries": _or_unlimited,
    "max_concurrency": _integer_from(1),
    "max_pending_calls": _or_unlimited,
    "object_store_memory": _check_object_store_memory,
    "concurrency_groups": _check_concurrency_groups,
    "allow_out_of_order_execution": _check_bool,
    "enable_tensor_transport": _check_bool,
    "_actor_generator_backpressure_num_objects": _check_unread_limit,
}

METHOD_OPTIONS: dict[str, _Check] = {
    "num_returns": _check_num_returns,
    "name": _check_task_name,
    "max_task_retries": _or_unlimited,
    "retry_exceptions": _check_retry_exceptions,
    "enable_task_events": _check_bool,
    "_labels": _check_labels,
    "concurrency_group": _check_text,
    "tensor_transport": _check_tensor_transport,
    "_generator_backpressure_num_objects": _check_unread_limit,
    "_num_objects_per_yield": _integer_from(1),
}

# Without a value these mean something else than "not given".
_NONE_IS_REFUSED = frozenset({"get_if_exists", "enable_task_events"})
# Here None is a value: no placement group, whatever the group of the caller.
_NONE_IS_A_VALUE = frozenset({"placement_group"})


def check(given: dict[str, Any], known: dict[str, _Check], what: str) -> dict[str, Any]:
    """`given` without the options that are None, which means "as by default".

    `what` says in errors whose options they are, such as "a task".
    """
    checked = {}
    for name, value in given.items():
        if name not in known:
            public = ", ".join(sorted(option for option in known if not option.startswith("_")))
            raise ValueError(f"{name!r} is not an option of {what}; the options are {public}")
        if value is None and name not in _NONE_IS_REFUSED | _NONE_IS_A_VALUE:
            continue
        if value is not None or name in _NONE_IS_REFUSED:
            known[name](name, value)
        checked[name] = value
    return checked


def merge(old: dict[str, Any], new: dict[str, Any], known: dict[str, _Check], what: str) -> dict[str, Any]:
    """`old` overridden by `new`; None in `new` takes an option back."""
    if not new.get("runtime_env"):  # as in Ray: who asks for no environment keeps that of the decorator
        new = {name: value for name, value in new.items() if name != "runtime_env"}
    merged = {name: value for name, value in old.items() if name not in new}
    merged.update(check(new, known, what))
    return merged


def retried(options: dict[str, Any]) -> Union[bool, bytes]:
    """Which exceptions are retried, as the core takes it: all, none, or the pickled types of those that are."""
    given: Any = options.get("retry_exceptions", False)
    if not isinstance(given, (list, tuple)):
        return given  # type: ignore[no-any-return]
    from ray_rust._private import serialization

    # Pickled as functions are, for the types may exist in this program only.
    return serialization.dumps_function(tuple(given), "the types of exceptions in retry_exceptions")[0]


def is_retried(error: BaseException, types: bytes) -> bool:
    """Whether an exception is of one of the types that `retried` has pickled."""
    import pickle

    from ray_rust.exceptions import UserCodeException

    cause = error.__cause__ if isinstance(error, UserCodeException) else error
    try:
        listed = pickle.loads(types)
    except Exception as problem:
        raise RuntimeError("not retried, for the types in retry_exceptions cannot be loaded here") from problem
    return isinstance(cause, listed)


def max_calls(options: dict[str, Any]) -> int:
    """How many calls of a function with these options one process runs; 0 for any number.

    As in Ray, a process that has used a graphics processor is not used again unless told otherwise, for libraries
    keep the processor's memory as long as it lives.
    """
    given: Optional[int] = options.get("max_calls")
    return given if given is not None else int(bool(options.get("num_gpus")))


def has_tensor_transport(options: dict[str, Any]) -> bool:
    """Whether results of a method with these options keep their tensors in the actor."""
    name: str = options.get("tensor_transport", "object_store")
    return name.lower() != "object_store"


def refuse_nameless(options: dict[str, Any]) -> None:
    """Without a name there is no actor that could exist already."""
    if options.get("get_if_exists") and "name" not in options:
        raise ValueError("get_if_exists needs a name")


def refuse_concurrency_groups(given: dict[str, Any]) -> None:
    """The methods of a class name its groups, whatever the options of single actors."""
    if "concurrency_groups" in given:
        raise ValueError("concurrency_groups cannot be changed for single actors: give them to @remote")


def refuse_max_calls(given: dict[str, Any]) -> None:
    """A process counts the calls of a function, whatever the options of single calls."""
    if "max_calls" in given:
        raise ValueError("max_calls cannot be changed for single calls: give it to @remote")


class Returns(NamedTuple):
    """What a call returns, as the core takes it."""

    num_returns: int
    # Whether it is "dynamic", objects for each yield, and how many may be unread: of it, and of its actor
    # (0: any number). None if the call is no generator.
    generator: Optional[tuple[bool, int, int, int]]


_CO_GENERATOR = 0x20
_CO_ASYNC_GENERATOR = 0x200


def is_generator(function: Any) -> bool:
    """Whether a call of this function gives a generator, synchronous or not."""
    import functools

    while isinstance(function, functools.partial):
        function = function.func
    code = getattr(function, "__code__", None)
    return code is not None and bool(code.co_flags & (_CO_GENERATOR | _CO_ASYNC_GENERATOR))


def returns(options: dict[str, Any], name: str, *, yields: bool, actor_limit: int = 0) -> Returns:
    """What a call with checked options returns; `yields` tells of its function."""
    num_returns = options.get("num_returns", "streaming" if yields else 1)
    if num_returns not in ("streaming", "dynamic"):
        return Returns(num_returns, None)
    if not yields:
        raise ValueError(
            f"num_returns={num_returns!r} is for generator functions (those with 'yield'), and {name} is none"
        )
    limit = max(0, options.get("_generator_backpressure_num_objects", -1))
    per_yield = options.get("_num_objects_per_yield", 1)
    return Returns(1, (num_returns == "dynamic", per_yield, limit, max(0, actor_limit)))


def refuse_per_yield(given: dict[str, Any], old: dict[str, Any], where: str) -> None:
    """How many objects a yield makes is the function's, not the call's."""
    per_yield = given.get("_num_objects_per_yield")
    if per_yield is not None and per_yield != old.get("_num_objects_per_yield", 1):
        raise ValueError(f"_num_objects_per_yield cannot be changed for single calls: give it to {where}")


def placement(options: dict[str, Any], default_cpus: float) -> Placement:
    """What checked options take."""
    resources = {name: float(amount) for name, amount in options.get("resources", {}).items() if amount}
    if "accelerator_type" in options:
        # As in Ray: so little that it is only a mark of the node.
        resources[f"{ACCELERATOR_PREFIX}{options['accelerator_type']}"] = ACCELERATOR_SHARE
    return Placement(
        num_cpus=float(options.get("num_cpus", default_cpus)),
        num_gpus=float(options.get("num_gpus", 0)),
        memory=float(options.get("memory", 0)),
        resources=resources,
    )


def actor_placement(options: dict[str, Any]) -> tuple[Placement, float]:
    """What an actor takes while it lives, and how many CPUs it takes in addition until it is placed.

    As in Ray: an actor for which nothing is asked needs one CPU to be placed and none to live, so that
    many actors fit on a node; one that asks for something keeps what it asked, and one CPU unless told
    otherwise. Memory alone does not count as asking.
    """
    if "num_cpus" in options:
        return placement(options, 0.0), 0.0
    if options.get("num_gpus") or any(options.get("resources", {}).values()):
        return placement(options, 1.0), 0.0
    return placement(options, 0.0), 1.0


def check_init_amount(name: str, value: Optional[float]) -> None:
    """Amounts that a node is started with."""
    if value is not None:
        _check_amount(name, value)
