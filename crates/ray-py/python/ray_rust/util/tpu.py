"""Whole slices of TPUs for tasks and actors: `ray.util.tpu`.

A node of a slice has the resource "TPU" and the labels `ray.io/tpu-slice-name`, `ray.io/tpu-worker-id` (from "0"),
`ray.io/tpu-topology` and `ray.io/tpu-pod-type`; its first node has the resource "TPU-<pod type>-head" besides, by which
a slice is claimed. Nodes are given these when they are started.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, Optional

from ray_rust._private import tpu_topology as topologies
from ray_rust._private.tpu_topology import POD_TYPE_LABEL, SLICE_NAME_LABEL, WORKER_ID_LABEL
from ray_rust.util.placement_group import placement_group, placement_group_table, remove_placement_group
from ray_rust.util.scheduling_strategies import PlacementGroupSchedulingStrategy

if TYPE_CHECKING:
    from ray_rust._internal import ObjectRef
    from ray_rust.util.placement_group import PlacementGroup

__all__ = [
    "SlicePlacementGroup",
    "get_current_pod_name",
    "get_current_pod_worker_count",
    "get_num_ready_tpu_slices",
    "get_num_tpu_chips_on_node",
    "get_num_tpu_slices",
    "get_tpu_coordinator_env_vars",
    "get_tpu_nodes_for_slice",
    "get_tpu_num_slices_for_workers",
    "get_tpu_slice_name_from_node",
    "get_tpu_version_from_type",
    "get_tpu_worker_resources",
    "run_on_slice",
    "slice_placement_group",
]

DEFAULT_MEGASCALE_PORT = "8081"
DEFAULT_TPU_HEAD_RESERVATION_TIMEOUT_S = 100.0

logger = logging.getLogger("ray")


# Slices and their hosts, by what is known of TPUs


def get_tpu_version_from_type(accelerator_type: str) -> str:
    """The generation, such as "v6e", of a type, such as "TPU-V6E". ValueError if there is none."""
    return topologies.generation_of(accelerator_type)


def get_tpu_worker_resources(
    topology: str,
    accelerator_type: str,
    resources_per_worker: Optional[dict[str, float]] = None,
    num_slices: int = 1,
    chips_per_vm: Optional[int] = None,
    tpu_resource_per_chip: Optional[int] = None,
) -> tuple[int, dict[str, float]]:
    """How many workers fill so many slices, and what each takes: a host's chips and a CPU, unless it is said.

    ValueError if workers would not fill a slice evenly.
    """
    per_chip = _resource_per_chip(tpu_resource_per_chip)
    generation = topologies.generation_of(accelerator_type)
    on_host = _chips_per_host(topology, generation, chips_per_vm) * per_chip
    on_slice = topologies.chips_of(topology) * per_chip
    resources = {"CPU": 1, "TPU": on_host, **(resources_per_worker or {})}
    takes = resources["TPU"]
    if takes <= 0:
        raise ValueError(f"TPU resources must be positive, and a worker is to have {takes}")
    if on_slice * num_slices % takes:
        raise ValueError(f"Total TPU resources ({on_slice * num_slices}) not divisible by a worker's ({takes})")
    if on_slice % takes:
        raise ValueError(
            f"workers of {takes} TPU do not divide evenly the {on_slice} TPU of each slice of topology {topology!r}: "
            "one of them would be on two slices"
        )
    return int(on_slice * num_slices // takes), resources


def get_tpu_num_slices_for_workers(
    topology: str,
    accelerator_type: str,
    num_workers: int,
    resources_per_worker: Optional[dict[str, float]] = None,
    tpu_resource_per_chip: Optional[int] = None,
) -> int:
    """How many slices so many workers need; 1 if that cannot be told."""
    if not topology or not accelerator_type:
        return 1
    try:
        on_slice, _ = get_tpu_worker_resources(
            topology, accelerator_type, resources_per_worker, tpu_resource_per_chip=tpu_resource_per_chip
        )
    except ValueError:
        return 1
    return max(1, math.ceil(num_workers / max(1, on_slice)))


def get_tpu_coordinator_env_vars(
    coordinator_address: str, num_slices: int, slice_id: int, coordinator_port: str = DEFAULT_MEGASCALE_PORT
) -> dict[str, str]:
    """The environment variables of processes that work on several slices together."""
    return {
        "MEGASCALE_COORDINATOR_ADDRESS": coordinator_address,
        "MEGASCALE_PORT": coordinator_port,
        "MEGASCALE_NUM_SLICES": str(num_slices),
        "MEGASCALE_SLICE_ID": str(slice_id),
    }


def _resource_per_chip(given: Optional[int]) -> int:
    per_chip = topologies.resource_per_chip() if given is None else given
    if per_chip <= 0:
        raise ValueError(f"`tpu_resource_per_chip` must be a positive integer, got {per_chip}")
    return per_chip


def _chips_per_host(topology: str, generation: str, given: Optional[int]) -> int:
    chips = topologies.chips_per_host(topology, generation) if given is None else given
    if chips <= 0:
        raise ValueError(f"chips_per_vm must be positive, got {chips}")
    return chips


# This machine


def get_current_pod_name() -> Optional[str]:
    """The slice that this machine belongs to, if any."""
    return topologies.own_slice_name()


def get_current_pod_worker_count() -> Optional[int]:
    """How many hosts that slice has."""
    pod_type, chips = topologies.own_pod_type(), topologies.own_chips()
    if pod_type is None or not chips:
        return None
    generation, _, cores = pod_type.partition("-")
    return math.ceil(int(cores) / (chips * topologies.cores_per_chip(generation)))


def get_num_tpu_chips_on_node() -> int:
    """How many chips this machine has."""
    return topologies.own_chips()


# The nodes of a cluster


def get_tpu_slice_name_from_node(node: dict[str, Any]) -> Optional[str]:
    """The slice that a node, as `nodes()` describes it, belongs to."""
    name: Optional[str] = node.get("Labels", {}).get(SLICE_NAME_LABEL)
    return name


def get_tpu_nodes_for_slice(slice_name: str, nodes: Optional[list[dict[str, Any]]] = None) -> list[dict[str, Any]]:
    """The living nodes of a slice, of these or of all in the cluster."""
    import ray_rust

    if nodes is None:
        nodes = ray_rust.nodes() if ray_rust.is_initialized() else []
    return [node for node in nodes if node.get("Alive") and get_tpu_slice_name_from_node(node) == slice_name]


def get_num_tpu_slices(topology: str, accelerator_type: str, tpu_resource_per_chip: Optional[int] = None) -> int:
    """How many slices of this topology are there with all of their hosts."""
    return len(_whole_slices(topology, accelerator_type, _resource_per_chip(tpu_resource_per_chip)))


def get_num_ready_tpu_slices(topology: str, accelerator_type: str, tpu_resource_per_chip: Optional[int] = None) -> int:
    """How many of them nobody uses."""
    from ray_rust._private.state import available_resources_per_node

    slices = _whole_slices(topology, accelerator_type, _resource_per_chip(tpu_resource_per_chip))
    if not slices:
        return 0
    free = available_resources_per_node()

    def is_free(node: dict[str, Any]) -> bool:
        total = node["Resources"].get("TPU", 0)
        return bool(free.get(node["NodeID"], {}).get("TPU", 0 if node["NodeID"] in free else total) >= total)

    return sum(all(map(is_free, nodes)) for nodes in slices.values())


def _whole_slices(topology: str, accelerator_type: str, per_chip: int) -> dict[str, list[dict[str, Any]]]:
    """The nodes of each slice of which all are alive, with all of their chips and the first among them."""
    import ray_rust

    if not ray_rust.is_initialized():
        return {}
    try:
        pod_type, expected = topologies.pod_type(topology, accelerator_type), topologies.chips_of(topology) * per_chip
    except ValueError as error:
        logger.warning("there are no slices of topology %r of %r: %s", topology, accelerator_type, error)
        return {}
    slices: dict[str, list[dict[str, Any]]] = {}
    for node in ray_rust.nodes():
        if not node["Alive"] or node["Labels"].get(POD_TYPE_LABEL) != pod_type:
            continue
        alone = node["Resources"].get("TPU", 0) >= expected
        name = node["NodeID"] if alone else get_tpu_slice_name_from_node(node)
        if name:
            slices.setdefault(name, []).append(node)

    def is_whole(nodes: list[dict[str, Any]]) -> bool:
        has_first = len(nodes) == 1 or any(node["Labels"].get(WORKER_ID_LABEL) == "0" for node in nodes)
        return has_first and sum(node["Resources"].get("TPU", 0) for node in nodes) == expected

    return {name: nodes for name, nodes in slices.items() if is_whole(nodes)}


# Reserving


class SlicePlacementGroup:
    """A placement group on whole slices: a bundle for each host, or for each worker if `resources_per_bundle` say so.

    A slice of several hosts is claimed by its first one, for which there is at most `head_reservation_timeout_s` time
    (None: any); all bundles of the slice are then on its nodes. With `pg_per_slice` each slice has a group of its own.
    `bundle_label_selector` are labels that nodes have to have besides; one that names a slice chooses it.
    `chips_per_vm` says how many chips a host has where there are several kinds, and `tpu_resource_per_chip` as how many
    "TPU" each counts.
    """

    def __init__(
        self,
        topology: str,
        accelerator_version: str,
        resources_per_bundle: Optional[dict[str, float]] = None,
        strategy: str = "SPREAD",
        name: str = "",
        lifetime: Optional[str] = None,
        num_slices: int = 1,
        chips_per_vm: Optional[int] = None,
        head_reservation_timeout_s: Optional[float] = DEFAULT_TPU_HEAD_RESERVATION_TIMEOUT_S,
        bundle_label_selector: Optional[list[dict[str, str]]] = None,
        pg_per_slice: bool = False,
        tpu_resource_per_chip: Optional[int] = None,
    ) -> None:
        """Claims slices and asks for their bundles, which need not be there yet when this returns: see `ready`.

        ValueError for what there is not; TimeoutError if no slice is free in time.
        """
        self._topology = topology.strip().lower()
        self._generation = topologies.generation_of(accelerator_version)
        self._num_slices = num_slices
        self._pg_per_slice = pg_per_slice
        self._per_chip = _resource_per_chip(tpu_resource_per_chip)
        self._chips_per_host = _chips_per_host(self._topology, self._generation, chips_per_vm)
        self._num_bundles, self._bundle_resources = get_tpu_worker_resources(
            self._topology, self._generation, resources_per_bundle, num_slices, chips_per_vm, self._per_chip
        )
        if not topologies.is_valid(self._generation, self._topology):
            raise ValueError(
                f"Invalid accelerator topology: '{self._topology}' for accelerator version: '{self._generation}'"
            )
        asked = bundle_label_selector or [{} for _ in range(self._num_bundles)]
        if len(asked) != self._num_bundles:
            raise ValueError(
                f"bundle_label_selector length ({len(asked)}) must match the number of bundles ({self._num_bundles})."
            )
        self._head_groups: list[Optional[PlacementGroup]] = []
        self._groups: list[PlacementGroup] = []
        self._selectors: list[dict[str, str]] = []
        try:
            self._claim(asked, head_reservation_timeout_s)
            self._reserve(strategy, name, lifetime)
        except BaseException:
            self.shutdown()
            raise

    def _claim(self, asked: list[dict[str, str]], timeout_s: Optional[float]) -> None:
        each = self._num_bundles // self._num_slices
        for start in range(0, self._num_bundles, each):
            wanted = asked[start : start + each]
            named = {}
            if topologies.chips_of(self._topology) > self._chips_per_host:
                chosen = next((labels[SLICE_NAME_LABEL] for labels in wanted if SLICE_NAME_LABEL in labels), None)
                if chosen is None:
                    chosen, head = _reserve_slice(self._topology, self._generation, timeout_s)
                    self._head_groups.append(head)
                named = {SLICE_NAME_LABEL: chosen}
            self._selectors += [{**labels, **named} for labels in wanted]

    def _reserve(self, strategy: str, name: str, lifetime: Optional[str]) -> None:
        each = self._num_bundles // self._num_slices if self._pg_per_slice else self._num_bundles
        for number, start in enumerate(range(0, self._num_bundles, each)):
            own_name = f"{name}_slice_{number}" if name and self._pg_per_slice else name
            self._groups.append(
                placement_group(
                    bundles=[dict(self._bundle_resources) for _ in range(each)],
                    strategy=strategy,
                    name=own_name,
                    lifetime=lifetime,
                    bundle_label_selector=self._selectors[start : start + each],
                )
            )

    @property
    def tpu_resource_per_chip(self) -> int:
        """As how many "TPU" a chip counts."""
        return self._per_chip

    @property
    def slice_placement_group(self) -> Optional[PlacementGroup]:
        """The group of all slices; None after `shutdown`. ValueError with `pg_per_slice`."""
        if self._pg_per_slice:
            raise ValueError("pg_per_slice=True, use `slice_placement_groups` instead.")
        return self._groups[0] if self._groups else None

    @property
    def placement_group(self) -> Optional[PlacementGroup]:
        """The same."""
        return self.slice_placement_group

    @property
    def slice_placement_groups(self) -> list[PlacementGroup]:
        """The group of each slice. ValueError without `pg_per_slice`."""
        if not self._pg_per_slice:
            raise ValueError("pg_per_slice=False, use `slice_placement_group` instead.")
        return self._groups

    @property
    def chips_per_host(self) -> int:
        """How many chips each host has."""
        return self._chips_per_host

    @property
    def devices_per_host(self) -> int:
        """How many "TPU" each host has."""
        return self._chips_per_host * self._per_chip

    @property
    def num_hosts(self) -> int:
        """How many hosts all slices have."""
        return max(1, topologies.chips_of(self._topology) // self._chips_per_host) * self._num_slices

    @property
    def num_bundles(self) -> int:
        """How many bundles all slices have."""
        return self._num_bundles

    @property
    def topology(self) -> str:
        """Of each slice."""
        return self._topology

    @property
    def accelerator_version(self) -> str:
        """The generation."""
        return self._generation

    @property
    def num_slices(self) -> int:
        """How many slices there are."""
        return self._num_slices

    @property
    def head_placement_groups(self) -> list[PlacementGroup]:
        """The groups by which slices are claimed, those that are not released yet."""
        return [group for group in self._head_groups if group is not None]

    @property
    def bundle_label_selector(self) -> list[dict[str, str]]:
        """What each bundle asks of its node."""
        return self._selectors

    @property
    def bundle_resources(self) -> dict[str, float]:
        """What each bundle takes."""
        return self._bundle_resources

    def release_head_pgs(self, slice_index: Optional[int] = None) -> None:
        """Gives the claim on all slices, or on one, back. The bundles keep a slice once they are there."""
        if slice_index is not None and not 0 <= slice_index < len(self._head_groups):
            raise ValueError(f"Invalid slice_index: {slice_index}.")
        for at in range(len(self._head_groups)) if slice_index is None else (slice_index,):
            group, self._head_groups[at] = self._head_groups[at], None
            if group is not None:
                remove_placement_group(group)

    def shutdown(self) -> None:
        """Gives all of it back; as often as one likes."""
        groups, self._groups = self._groups, []
        for group in groups:
            remove_placement_group(group)
        self.release_head_pgs()


def slice_placement_group(
    topology: str,
    accelerator_version: str,
    resources_per_bundle: Optional[dict[str, float]] = None,
    num_slices: int = 1,
    chips_per_vm: Optional[int] = None,
    pg_per_slice: bool = False,
    tpu_resource_per_chip: Optional[int] = None,
    **kwargs: Any,
) -> SlicePlacementGroup:
    """Reserves slices: a `SlicePlacementGroup`, which `kwargs` are for, too."""
    return SlicePlacementGroup(
        topology,
        accelerator_version,
        resources_per_bundle,
        num_slices=num_slices,
        chips_per_vm=chips_per_vm,
        pg_per_slice=pg_per_slice,
        tpu_resource_per_chip=tpu_resource_per_chip,
        **kwargs,
    )


def _reserve_slice(topology: str, generation: str, timeout_s: Optional[float]) -> tuple[str, PlacementGroup]:
    """Claims a free slice by its first node. Returns its name and the group that claims it."""
    import ray_rust

    pod_type = topologies.pod_type(topology, generation)
    labels = {WORKER_ID_LABEL: "0", POD_TYPE_LABEL: pod_type}
    group = placement_group([{f"TPU-{pod_type}-head": 1}], bundle_label_selector=[labels])
    try:
        is_there = group.wait(math.inf if timeout_s is None else timeout_s)
        name = _slice_of(group) if is_there else None
    except BaseException:
        remove_placement_group(group)
        raise
    if name:
        return name, group
    remove_placement_group(group)
    if is_there:
        raise RuntimeError(
            f"a slice of type {pod_type} was claimed, but its first node has neither the label {SLICE_NAME_LABEL} nor "
            "the environment variable TPU_NAME, which say which slice that is"
        )
    raise TimeoutError(
        f"no slice of type {pod_type} was free within {timeout_s} s: a node with the labels {labels} and one "
        f"TPU-{pod_type}-head is wanted; free in the cluster: {ray_rust.available_resources()}"
    )


def _slice_of(group: PlacementGroup) -> Optional[str]:
    """The slice of the node where the only bundle of a group is."""
    import ray_rust

    node_id = placement_group_table(group)["bundles_to_node_id"][0]
    node = next((node for node in ray_rust.nodes() if node["NodeID"] == node_id), {})
    name = get_tpu_slice_name_from_node(node)
    if name is not None:
        return name
    ask = ray_rust.remote(num_cpus=0)(topologies.own_slice_name)
    told: Optional[str] = ray_rust.get(
        ask.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group, 0)).remote()
    )
    return told


def run_on_slice(
    fn: Any,
    *args: Any,
    topology: Optional[str] = None,
    accelerator_version: Optional[str] = None,
    tpu_slice: Optional[SlicePlacementGroup] = None,
    slice_index: Optional[int] = None,
    num_slices: int = 1,
    chips_per_vm: Optional[int] = None,
    head_reservation_timeout_s: Optional[float] = DEFAULT_TPU_HEAD_RESERVATION_TIMEOUT_S,
    pg_ready_timeout_s: Optional[float] = None,
    **kwargs: Any,
) -> list[ObjectRef[Any]]:
    """Runs a remote function in every bundle of `tpu_slice`, or of slices that are reserved for it.

    Returns the references of the results, in the order of the bundles. With `slice_index` it runs on that slice alone.
    TimeoutError if the bundles are not there within `pg_ready_timeout_s` seconds.
    """
    if not hasattr(fn, "options"):
        raise TypeError(
            f"fn must be a remote function, and {type(fn).__name__!r} has no .options() method: use @remote"
        )
    if slice_index is not None:
        _check_slice_index(tpu_slice, slice_index)
    if tpu_slice is not None:
        return _run_on(tpu_slice, fn, args, kwargs, slice_index, pg_ready_timeout_s)
    if topology is None or accelerator_version is None:
        raise ValueError("topology and accelerator_version are required when tpu_slice is not provided.")
    own = SlicePlacementGroup(
        topology,
        accelerator_version,
        num_slices=num_slices,
        chips_per_vm=chips_per_vm,
        head_reservation_timeout_s=head_reservation_timeout_s,
    )
    try:
        refs = _run_on(own, fn, args, kwargs, None, pg_ready_timeout_s)
    except BaseException:
        own.shutdown()
        raise
    own.release_head_pgs()
    return refs


def _check_slice_index(tpu_slice: Optional[SlicePlacementGroup], slice_index: int) -> None:
    if tpu_slice is None:
        raise ValueError("slice_index can only be used when an existing tpu_slice is provided.")
    groups = tpu_slice.slice_placement_groups
    if not 0 <= slice_index < tpu_slice.num_slices:
        raise ValueError(f"Invalid slice_index {slice_index}. Must be between 0 and {max(0, len(groups) - 1)}.")


def _run_on(
    tpu_slice: SlicePlacementGroup,
    fn: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    slice_index: Optional[int],
    timeout_s: Optional[float],
) -> list[ObjectRef[Any]]:
    import ray_rust

    groups = tpu_slice._groups  # noqa: SLF001 - one or several of them
    if not groups:
        raise ValueError("tpu_slice was shut down: make another, or leave tpu_slice out")
    if slice_index is not None:
        groups = [groups[slice_index]]
    refs = [group.ready() for group in groups]
    ready, _ = ray_rust.wait(refs, num_returns=len(refs), timeout=timeout_s)
    if len(ready) < len(refs):
        raise TimeoutError(
            f"the bundles of the slice were not there within {timeout_s} s: its hosts are in use or gone"
        )
    # One that can never be there is ready, too.
    ray_rust.get(ready)
    takes = tpu_slice.bundle_resources["TPU"]
    return [
        fn.options(
            num_cpus=0,
            resources={"TPU": takes},
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, bundle),
        ).remote(*args, **kwargs)
        for group in groups
        for bundle in range(group.bundle_count)
    ]
