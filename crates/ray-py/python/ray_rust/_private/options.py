"""Checks what users ask for tasks and actors, at the moment they write it.

Every refusal names the option. Types that do not fit give TypeError, values ValueError, as in Ray; what
Ray has and this system does not have yet gives NotImplementedError instead of being ignored.
"""

from __future__ import annotations

import math
from typing import Any, Callable, NamedTuple, Optional

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
    if isinstance(value, (list, tuple)):
        raise NotImplementedError(f"{name} as a list of exception types is not supported yet; True retries them all")
    _check_bool(name, value)


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


def _only(*harmless: Any) -> _Check:
    def check(name: str, value: Any) -> None:
        if value not in harmless:
            raise NotImplementedError(f"the option {name} is not supported yet (given: {value!r})")

    return check


_COMMON: dict[str, _Check] = {
    "num_cpus": _check_amount,
    "num_gpus": _check_gpus,
    "memory": _check_amount,
    "resources": check_resources,
    "scheduling_strategy": _check_strategy,
    "runtime_env": check_runtime_env,
    "enable_task_events": _check_bool,
    "_labels": _anything,
    "_metadata": _anything,
    "object_store_memory": _only(0),
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
    "max_calls": _only(0),
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
    "max_pending_calls": _only(-1),
    "concurrency_groups": _check_concurrency_groups,
    "allow_out_of_order_execution": _check_bool,
    "enable_tensor_transport": _only(False),
    "_actor_generator_backpressure_num_objects": _check_unread_limit,
}

METHOD_OPTIONS: dict[str, _Check] = {
    "num_returns": _check_num_returns,
    "name": _check_task_name,
    "max_task_retries": _or_unlimited,
    "retry_exceptions": _only(False),
    "enable_task_events": _check_bool,
    "_labels": _anything,
    "concurrency_group": _check_text,
    "tensor_transport": _only(),
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
