"""Placement groups: resources that are reserved together, for tasks and actors to run in."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Optional, Union

from ray_rust._internal import NodeID, PlacementGroupID
from ray_rust._private import label_utils
from ray_rust._private.session import connected_core, current_session, get_session
from ray_rust.util.annotations import DeveloperAPI, PublicAPI

if TYPE_CHECKING:
    from ray_rust._internal import ObjectRef

__all__ = [
    "VALID_PLACEMENT_GROUP_STRATEGIES",
    "PlacementGroup",
    "check_placement_group_index",
    "get_current_placement_group",
    "get_placement_group",
    "placement_group",
    "placement_group_table",
    "remove_placement_group",
    "validate_placement_group",
]

VALID_PLACEMENT_GROUP_STRATEGIES = {"PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"}

NODE_ID_LABEL_KEY = "ray.io/node-id"

# Taken by whoever has to be in a group, but of none of its bundles.
_BUNDLE_RESOURCE = "bundle"


@PublicAPI
class PlacementGroup:
    """A handle to a placement group. Handles to the same group are equal, wherever they come from."""

    @staticmethod
    def empty() -> PlacementGroup:
        """Stands for no group."""
        return PlacementGroup(PlacementGroupID.nil())

    def __init__(self, id: PlacementGroupID, bundle_cache: Optional[list[dict[str, float]]] = None) -> None:
        self.id = id
        self.bundle_cache = bundle_cache

    @property
    def is_empty(self) -> bool:
        """Whether it stands for no group."""
        return self.id.is_nil()

    def ready(self) -> ObjectRef:
        """A reference that becomes this group when its resources are reserved, and an error if it is removed."""
        core = connected_core()
        return core.put(self) if self.is_empty else core.placement_groups.ready(self.id, _Created(self))

    def wait(self, timeout_seconds: float = 30) -> bool:
        """Waits until the resources are reserved. Returns whether they are; ValueError if the group is removed."""
        return connected_core().placement_groups.wait(self.id, _timeout(timeout_seconds))

    @property
    def bundle_specs(self) -> list[dict[str, float]]:
        """What each bundle reserves."""
        if not self.bundle_cache:
            self.bundle_cache = _bundles_of(self.id)
        return self.bundle_cache

    @property
    def bundle_count(self) -> int:
        """How many bundles there are."""
        return len(self.bundle_specs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlacementGroup) and bool(self.id == other.id)

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"PlacementGroup({self.id.hex()})"

    def __reduce__(self) -> tuple[Any, ...]:
        session = get_session()
        if session is not None:
            # Whoever reads it may ask the control plane at once.
            session.core.placement_groups.settle()
        return _Created(self).__reduce__()


class _Created:
    """Pickles as its group, of which the control plane knows when that is read."""

    def __init__(self, group: PlacementGroup) -> None:
        self._group = group

    def __reduce__(self) -> tuple[Any, ...]:
        return PlacementGroup, (self._group.id, self._group.bundle_cache)


def _timeout(seconds: float) -> Optional[float]:
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"timeout_seconds has to be a number of seconds, is {seconds!r}")
    # As in Ray, -1 is for ever.
    return None if seconds == -1 else float(seconds)


def _bundles_of(group_id: PlacementGroupID) -> list[dict[str, float]]:
    if group_id.is_nil():
        return []
    known = connected_core().placement_groups.get(group_id)
    if known is None:
        raise ValueError(f"placement group {group_id.hex()} was removed, or never created")
    bundles: list[dict[str, float]] = known["bundles"]
    return bundles


# The name of the module is that of the function, as in Ray.
@PublicAPI
def placement_group(
    bundles: list[dict[str, float]],
    strategy: Optional[str] = None,
    name: str = "",
    lifetime: Optional[str] = None,
    _soft_target_node_id: Optional[str] = None,
    bundle_label_selector: Optional[list[dict[str, str]]] = None,
    topology_strategy: Optional[dict[str, str]] = None,
) -> PlacementGroup:
    """Reserves sets of resources, all of them together; returns at once.

    `strategy` says how the bundles lie to one another: "PACK" (default) on few nodes, "SPREAD" on many,
    "STRICT_PACK" on one, "STRICT_SPREAD" on a node each. With `name`, others find the group by
    `get_placement_group`; ValueError if the name is taken. It is removed with its job unless `lifetime` is "detached".
    `bundle_label_selector` has for each bundle what the labels of its node have to be.
    """
    validate_placement_group(
        bundles, strategy, lifetime, _soft_target_node_id, bundle_label_selector, topology_strategy
    )
    if not isinstance(name, str):
        raise TypeError(f"the name of a placement group has to be a string, is {name!r}")
    session = current_session()
    selectors = bundle_label_selector or [{}] * len(bundles)
    group_id = session.core.placement_groups.create(
        [
            ({key: float(amount) for key, amount in bundle.items() if amount}, label_utils.parse(selector))
            for bundle, selector in zip(bundles, selectors)
        ],
        _strategy(strategy, topology_strategy),
        name,
        session.namespace,
        lifetime == "detached",
        _soft_target_node_id,
    )
    specs = [{key: float(amount) for key, amount in bundle.items()} for bundle in bundles]
    return PlacementGroup(group_id, bundle_cache=specs)


@PublicAPI
def remove_placement_group(placement_group: PlacementGroup) -> None:
    """Gives back what a group reserves, and ends the tasks and actors in it. Returns at once."""
    if not isinstance(placement_group, PlacementGroup):
        raise TypeError(f"remove_placement_group() takes a PlacementGroup, not a {type(placement_group).__name__}")
    connected_core().placement_groups.remove(placement_group.id)


@PublicAPI
def get_placement_group(placement_group_name: str) -> PlacementGroup:
    """The group of this name. ValueError if there is none."""
    if not placement_group_name:
        raise ValueError("get_placement_group() needs a name that is not empty")
    session = current_session()
    found = session.core.placement_groups.get_named(placement_group_name, session.namespace)
    if found is None:
        raise ValueError(
            f"no placement group is named {placement_group_name!r} in namespace {session.namespace!r}: it was never "
            "created, it was removed, or it is in another namespace"
        )
    return PlacementGroup(PlacementGroupID.from_hex(found["placement_group_id"]), found["bundles"])


@DeveloperAPI
def placement_group_table(placement_group: Optional[PlacementGroup] = None) -> dict[str, Any]:
    """What is known of a group, nothing if nothing is; without one, of all groups by their ids in hexadecimal."""
    groups = connected_core().placement_groups
    if placement_group is None:
        return {known["placement_group_id"]: _row(known) for known in groups.list()}
    known = groups.get(placement_group.id)
    return {} if known is None else _row(known)


def _row(known: dict[str, Any]) -> dict[str, Any]:
    return {
        "placement_group_id": known["placement_group_id"],
        "name": known["name"],
        "bundles": dict(enumerate(known["bundles"])),
        "bundles_to_node_id": dict(enumerate(known["bundle_nodes"])),
        "strategy": known["strategy"],
        "state": known["state"],
        "stats": {
            # What is not measured is 0, as in Ray before it is.
            "end_to_end_creation_latency_ms": 0.0,
            "scheduling_latency_ms": 0.0,
            "scheduling_attempt": known["attempts"],
            "highest_retry_delay_ms": 0.0,
            "scheduling_state": _scheduling_state(known),
        },
        # Beyond what Ray tells: what it waits for, or why it is gone.
        "reason": known["pending_reason"] or known["removed_reason"],
    }


def _scheduling_state(known: dict[str, Any]) -> str:
    if known["state"] == "CREATED":
        return "FINISHED"
    if known["state"] == "REMOVED":
        return "REMOVED"
    if known["infeasible"]:
        return "INFEASIBLE"
    under_way = known["state"] == "PREPARED" or any(known["bundle_nodes"])
    return "SCHEDULING_STARTED" if under_way else "NO_RESOURCES"


@PublicAPI
def get_current_placement_group() -> Optional[PlacementGroup]:
    """The group in which this task or actor runs; None in a driver, and where there is none."""
    current = connected_core().placement_groups.current()
    return None if current is None else PlacementGroup(current[0])


# Checks


def check_placement_group_index(placement_group: PlacementGroup, bundle_index: int) -> None:
    """ValueError unless the group has a bundle of this index, or it is -1."""
    if isinstance(bundle_index, bool) or not isinstance(bundle_index, int):
        raise TypeError(f"the index of a bundle has to be a whole number, is {bundle_index!r}")
    if placement_group.is_empty:
        if bundle_index != -1:
            raise ValueError(f"without a placement group the bundle index has to be -1, is {bundle_index}")
    elif not -1 <= bundle_index < placement_group.bundle_count:
        raise ValueError(
            f"placement group bundle index {bundle_index} is invalid: it has to be from 0 to "
            f"{placement_group.bundle_count - 1}, or -1 for any"
        )


def check_fits(placement_group: PlacementGroup, index: int, need: dict[str, float], what: str) -> None:
    """ValueError unless some bundle, or that of the index, can hold `need` when nothing else is in it."""
    bundles = placement_group.bundle_specs
    if not _valid_resource_shape(need, bundles if index == -1 else [bundles[index]]):
        which = "any bundle" if index == -1 else f"bundle {index}"
        raise ValueError(
            f"{what} cannot run in placement group {placement_group.id.hex()}: what it needs, {need}, cannot fit into "
            f"{which} of {bundles}"
        )


def _valid_resource_shape(resources: dict[str, float], bundle_specs: list[dict[str, float]]) -> bool:
    wanted = [(name, amount) for name, amount in resources.items() if name != _BUNDLE_RESOURCE]
    return any(all(bundle.get(name, 0) >= amount for name, amount in wanted) for bundle in bundle_specs)


def validate_placement_group(
    bundles: list[dict[str, float]],
    strategy: Optional[str] = None,
    lifetime: Optional[str] = None,
    _soft_target_node_id: Optional[str] = None,
    bundle_label_selector: Optional[list[dict[str, str]]] = None,
    topology_strategy: Optional[dict[str, str]] = None,
) -> bool:
    """ValueError if no such group can be made."""
    if topology_strategy is not None and strategy is not None:
        raise ValueError(
            f"strategy and topology_strategy cannot both be given: use topology_strategy[{NODE_ID_LABEL_KEY!r}]"
        )
    if strategy is not None and strategy not in VALID_PLACEMENT_GROUP_STRATEGIES:
        raise ValueError(
            f"Invalid placement group strategy {strategy!r}; the strategies are "
            f"{', '.join(sorted(VALID_PLACEMENT_GROUP_STRATEGIES))}"
        )
    if topology_strategy is not None:
        _check_topology(topology_strategy)
    if _soft_target_node_id:
        if _strategy(strategy, topology_strategy) != "STRICT_PACK":
            raise ValueError("_soft_target_node_id goes with the strategy STRICT_PACK only")
        if NodeID.from_hex(_soft_target_node_id).is_nil():
            raise ValueError(f"_soft_target_node_id is no id of a node: {_soft_target_node_id!r}")
    _check_bundles(bundles)
    if bundle_label_selector is not None:
        _check_selectors(bundle_label_selector, len(bundles))
    if lifetime not in (None, "detached"):
        raise ValueError(f"the lifetime of a placement group has to be None or 'detached', is {lifetime!r}")
    return True


def _strategy(strategy: Optional[str], topology_strategy: Optional[dict[str, str]]) -> str:
    if topology_strategy is not None:
        return topology_strategy.get(NODE_ID_LABEL_KEY, "PACK")
    return strategy if strategy is not None else "PACK"


def _check_topology(topology_strategy: Any) -> None:
    if not isinstance(topology_strategy, dict):
        raise ValueError(  # noqa: TRY004 - as in Ray
            f"topology_strategy has to be a dict, is a {type(topology_strategy).__name__}"
        )
    for key, value in topology_strategy.items():
        if not isinstance(key, str) or not key:
            raise ValueError(f"topology_strategy has a key that is no label: {key!r}")
        if value not in VALID_PLACEMENT_GROUP_STRATEGIES:
            raise ValueError(f"Invalid topology strategy {value!r} for label {key!r}")
        if key != NODE_ID_LABEL_KEY:
            raise NotImplementedError(f"topology_strategy by the label {key!r} is not supported yet")


def _check_bundles(bundles: Any) -> None:
    if not isinstance(bundles, list):
        raise ValueError(  # noqa: TRY004 - as in Ray
            f"the bundles of a placement group have to be a list, got {type(bundles).__name__}"
        )
    example = 'as in [{"CPU": 1.0}, {"GPU": 1.0}]'
    if not bundles:
        raise ValueError(f"a placement group needs bundles, {example}")
    for bundle in bundles:
        if not isinstance(bundle, dict) or not all(isinstance(name, str) for name in bundle):
            raise ValueError(f"Bundles must be a list of dicts of resources, {example}; one is {bundle!r}")
        for name, amount in bundle.items():
            _check_bundle_amount(name, amount, example)
        if not any(bundle.values()):
            raise ValueError(f"Bundles cannot be empty, or reserve only 0 of everything: {bundles}")
        if "object_store_memory" in bundle:
            warnings.warn(
                "object_store_memory in bundles is deprecated: no memory of the object store is set apart by it",
                DeprecationWarning,
                stacklevel=4,
            )


def _check_bundle_amount(name: str, amount: Union[float, Any], example: str) -> None:
    if isinstance(amount, bool) or not isinstance(amount, (int, float)):
        raise ValueError(  # noqa: TRY004 - as in Ray
            f"Bundles must be a list of dicts of resources, {example}; {name} is {amount!r}"
        )
    if not amount >= 0:
        raise ValueError(f"a bundle cannot reserve {amount} of {name}")


def _check_selectors(selectors: Any, count: int) -> None:
    if not isinstance(selectors, list):
        raise ValueError(  # noqa: TRY004 - as in Ray
            f"bundle_label_selector has to be a list, is a {type(selectors).__name__}"
        )
    if selectors and len(selectors) != count:
        raise ValueError(
            f"Invalid bundle label selector {selectors}: it has to have as many elements as there are bundles, {count}"
        )
    for selector in selectors:
        text = isinstance(selector, dict) and all(isinstance(part, str) for pair in selector.items() for part in pair)
        if not text:
            raise ValueError(f"each element of bundle_label_selector has to be a dict of strings, one is {selector!r}")
        problem = label_utils.validate_label_selector(selector)
        if problem:
            raise ValueError(f"Invalid label selector in bundle_label_selector: {problem}")
