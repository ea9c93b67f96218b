"""Where a task or actor may run, from its options to what the core takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional

from ray_rust._internal import SchedulingConstraint
from ray_rust._private import label_utils

if TYPE_CHECKING:
    from ray_rust._private.label_utils import Expression
    from ray_rust.util.placement_group import PlacementGroup
    from ray_rust.util.scheduling_strategies import NodeAffinitySchedulingStrategy

# Options that say where something runs.
OPTIONS = frozenset(
    {
        "scheduling_strategy",
        "placement_group",
        "placement_group_bundle_index",
        "placement_group_capture_child_tasks",
        "label_selector",
        "fallback_strategy",
    }
)


def constraint(options: dict[str, Any], needs: list[dict[str, float]], what: str) -> Optional[SchedulingConstraint]:
    """What checked options say of where it runs; None if nothing, so that it may inherit a placement group.

    `needs` are the amounts that have to fit into one bundle of a placement group, each at its time, and `what` says in
    errors what needs them.
    """
    if OPTIONS.isdisjoint(options):
        return None
    chosen = _by_strategy(options, needs, what)
    selectors = _selectors(options)
    if not selectors:
        return chosen
    return (chosen or SchedulingConstraint.default()).with_selectors(selectors)


def _by_strategy(options: dict[str, Any], needs: list[dict[str, float]], what: str) -> Optional[SchedulingConstraint]:
    strategy = options.get("scheduling_strategy")
    if strategy is None:
        _warn_of_group_options(options)
        return _by_group_options(options, needs, what)
    # No group at all goes with any strategy, as in Ray.
    if options.get("placement_group", "default") not in ("default", None):
        raise ValueError(
            "placement_group and scheduling_strategy cannot both be given: "
            "use PlacementGroupSchedulingStrategy in scheduling_strategy"
        )
    _warn_of_group_options(options)
    if strategy == "SPREAD":
        return SchedulingConstraint.spread()
    from ray_rust.util import scheduling_strategies as known

    if isinstance(strategy, known.PlacementGroupSchedulingStrategy):
        index, capture = strategy.placement_group_bundle_index, strategy.placement_group_capture_child_tasks
        return _in_group(strategy.placement_group, index, capture, needs, what)
    if isinstance(strategy, known.NodeAffinitySchedulingStrategy):
        return SchedulingConstraint.on_node(strategy.node_id, strategy.soft, _when_busy(strategy))
    # "DEFAULT", or by labels, which are looked at beside the strategy.
    return SchedulingConstraint.default()


# The options that came before strategies, with what means that they are not given.
_GROUP_OPTIONS = {
    "placement_group": ("default",),
    "placement_group_bundle_index": (-1,),
    "placement_group_capture_child_tasks": (None, False),
}


def _warn_of_group_options(options: dict[str, Any]) -> None:
    from ray_rust.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    if isinstance(options.get("scheduling_strategy"), PlacementGroupSchedulingStrategy):
        return
    for name, not_given in _GROUP_OPTIONS.items():
        if options.get(name, not_given[0]) not in not_given:
            import warnings

            text = f"{name} is deprecated: use scheduling_strategy=PlacementGroupSchedulingStrategy(...)"
            warnings.warn(text, DeprecationWarning, stacklevel=_users_level())


def _users_level() -> int:
    """How far up the stack the code is that called into this package, for who calls `warn` next to this."""
    import os
    import sys

    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
    frame, level = sys._getframe(1), 1  # noqa: SLF001 - warnings are about a line of the user's
    while frame.f_back is not None and os.path.abspath(frame.f_code.co_filename).startswith(package):
        frame, level = frame.f_back, level + 1
    return level


def _by_group_options(
    options: dict[str, Any], needs: list[dict[str, float]], what: str
) -> Optional[SchedulingConstraint]:
    """By the options that came before strategies."""
    group = options.get("placement_group", "default")
    index = options.get("placement_group_bundle_index", -1)
    capture = options.get("placement_group_capture_child_tasks")
    if group != "default":
        return _in_group(group, index, capture, needs, what)
    if index != -1:
        raise ValueError("placement_group_bundle_index needs a placement_group")
    return _inherited(capture)


def _when_busy(strategy: NodeAffinitySchedulingStrategy) -> str:
    if strategy._spill_on_unavailable:  # noqa: SLF001
        return "spill"
    return "fail" if strategy._fail_on_unavailable else "wait"  # noqa: SLF001


def _inherited(capture: Optional[bool]) -> Optional[SchedulingConstraint]:
    """In the group of what runs here, if that was asked for: as by default, that depends on the group."""
    if capture is None:
        return None
    if not capture:
        return SchedulingConstraint.default()
    from ray_rust._private.session import connected_core

    current = connected_core().placement_groups.current()
    return None if current is None else SchedulingConstraint.in_group(current[0], None, capture=True)


def _in_group(
    group: Optional[PlacementGroup],
    index: int,
    capture: Optional[bool],
    needs: list[dict[str, float]],
    what: str,
) -> SchedulingConstraint:
    from ray_rust.util.placement_group import check_fits, check_placement_group_index

    if group is None or group.is_empty:
        if index != -1:
            raise ValueError(f"without a placement group the bundle index has to be -1, is {index}")
        return SchedulingConstraint.default()
    check_placement_group_index(group, index)
    for need in needs:
        check_fits(group, index, need, what)
    if capture is None:
        from ray_rust._private.session import connected_core

        # What runs in a group that captures has its children do so, too.
        current = connected_core().placement_groups.current()
        capture = current is not None and current[1]
    return SchedulingConstraint.in_group(group.id, None if index == -1 else index, capture=capture)


def _selectors(options: dict[str, Any]) -> list[list[Expression]]:
    """In the order of preference."""
    selectors: list[list[Expression]] = []
    selector = options.get("label_selector")
    if selector is not None:
        selectors.append(label_utils.parse(selector))
    fallbacks = options.get("fallback_strategy") or []
    if fallbacks and not selectors:
        selectors.append([])
    selectors.extend(label_utils.parse(fallback["label_selector"]) for fallback in fallbacks)
    by_strategy = _selectors_of_strategy(options.get("scheduling_strategy"))
    if by_strategy:
        selectors = [ours + given for ours in by_strategy for given in selectors or [[]]]
    return [] if selectors == [[]] else selectors


def _selectors_of_strategy(strategy: Any) -> list[list[Expression]]:
    if strategy is None or isinstance(strategy, str):
        return []
    from ray_rust.util import scheduling_strategies as known

    if not isinstance(strategy, known.NodeLabelSchedulingStrategy):
        return []
    hard = [_expression(one) for one in strategy.hard]
    soft = [_expression(one) for one in strategy.soft]
    return [hard + soft, hard] if soft else [hard]


def _expression(one: Any) -> Expression:
    from ray_rust.util import scheduling_strategies as known

    operator = one.operator
    if isinstance(operator, known.In):
        return (one.key, "in", operator.values)
    if isinstance(operator, known.NotIn):
        return (one.key, "not in", operator.values)
    return (one.key, "exists" if isinstance(operator, known.Exists) else "does not exist", [])
