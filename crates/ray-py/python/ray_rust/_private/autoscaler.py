"""Nodes that are started when something waits for them, and ended when they have nothing to do.

What is to be started and ended is decided by the machine in `ray-scheduler/src/autoscaler.rs`; here is what carries it
out, in a thread of the process that made the cluster.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

from ray_rust import _internal
from ray_rust._private import label_utils

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ray_rust.cluster_utils import Cluster, Node

logger = logging.getLogger("ray")

# As in the file that Ray reads what is not given from.
_MAX_WORKERS = 8
_IDLE_TIMEOUT_MINUTES = 0.1
_INTERVAL_S = 1.0
# Until a node has told what is on it.
_ANSWER_TIMEOUT_S = 2.0
_HEAD_TYPE = "ray.head.default"
# Settings of the whole cluster. Nodes are started as they are wanted, so that there is no speed to be set.
_SETTINGS = frozenset({"cluster_name", "idle_timeout_minutes", "max_workers", "upscaling_speed"})
_TYPE_SETTINGS = frozenset({"resources", "labels", "node_config", "min_workers", "max_workers", "idle_timeout_s"})


class NodeType(NamedTuple):
    """A kind of node that can be started."""

    name: str
    resources: dict[str, float]
    labels: dict[str, str]
    min_workers: int
    max_workers: int
    idle_timeout_s: float


class Settings(NamedTuple):
    """What the nodes of a cluster may be."""

    types: list[NodeType]
    max_workers: int


def read_settings(worker_node_types: Mapping[str, Any], config: Mapping[str, Any]) -> Settings:
    """Checks what an `AutoscalingCluster` is made with. ValueError or TypeError names what cannot be had."""
    for name in config:
        if name not in _SETTINGS:
            known = ", ".join(sorted(_SETTINGS))
            raise ValueError(
                f"AutoscalingCluster has no setting {name!r}: nodes are processes on this machine, and can be told "
                f"{known}"
            )
    max_workers = _count("max_workers", config.get("max_workers", _MAX_WORKERS))
    minutes = _positive("idle_timeout_minutes", config.get("idle_timeout_minutes", _IDLE_TIMEOUT_MINUTES))
    _positive("upscaling_speed", config.get("upscaling_speed", 1.0))
    types = [_read_type(name, described, max_workers, minutes * 60) for name, described in worker_node_types.items()]
    return Settings(types, max_workers)


def _read_type(name: str, described: Mapping[str, Any], max_workers: int, idle_timeout_s: float) -> NodeType:
    what = f"node type {name!r}"
    if name == _HEAD_TYPE:
        raise ValueError(f"{what} is the head, which head_resources describe")
    unknown = sorted(set(described) - _TYPE_SETTINGS)
    if unknown:
        raise ValueError(f"{what} has no setting {unknown[0]!r}: there are {', '.join(sorted(_TYPE_SETTINGS))}")
    if described.get("node_config"):
        raise ValueError(
            f"{what} has a node_config, which is for providers of machines; here nodes are processes on this machine, "
            "which have 'resources' and 'labels'"
        )
    resources = {key: _amount(f"{key} of {what}", amount) for key, amount in described.get("resources", {}).items()}
    labels = dict(described.get("labels", {}))
    for key in labels:
        problem = label_utils.validate_label_key(key)
        if problem is not None:
            raise ValueError(f"{what}: {problem}")
    least = _count(f"min_workers of {what}", described.get("min_workers", 0))
    most = _count(f"max_workers of {what}", described.get("max_workers", max_workers))
    if least > most:
        raise ValueError(f"min_workers of {what} is {least}, which is more than max_workers, {most}")
    idle = described.get("idle_timeout_s")
    idle_timeout_s = idle_timeout_s if idle is None else _positive(f"idle_timeout_s of {what}", idle)
    return NodeType(name, resources, labels, least, most, idle_timeout_s)


def _amount(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
        raise ValueError(f"{name} has to be a number that is not negative, got {value!r}")
    return float(value)


def _positive(name: str, value: Any) -> float:
    amount = _amount(name, value)
    if amount == 0:
        raise ValueError(f"{name} has to be more than 0")
    return amount


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} has to be a whole number that is not negative, got {value!r}")
    return value


def node_args(resources: Mapping[str, float], labels: Optional[Mapping[str, str]] = None) -> dict[str, Any]:
    """What `Cluster.add_node` is told for a node that has these."""
    custom = dict(resources)
    args: dict[str, Any] = {"num_cpus": custom.pop("CPU", 0), "num_gpus": custom.pop("GPU", 0)}
    for name in ("memory", "object_store_memory"):
        if name in custom:
            args[name] = int(custom.pop(name))
    if custom:
        args["resources"] = custom
    if labels:
        args["labels"] = dict(labels)
    return args


class Monitor:
    """Looks at a cluster again and again, and starts and ends its nodes."""

    def __init__(self, cluster: Cluster, settings: Settings, env_vars: Optional[dict[str, str]] = None) -> None:
        """Begins at once."""
        env_vars = env_vars or {}
        self._cluster = cluster
        self._types = settings.types
        self._env_vars = env_vars
        self._interval_s = float(env_vars.get("AUTOSCALER_UPDATE_INTERVAL_S", _INTERVAL_S))
        if cluster.gcs_address is None:
            raise RuntimeError("a cluster without a head cannot be looked after: add a node first")
        self._scaler = _internal.Autoscaler(
            cluster.gcs_address, [tuple(one) for one in settings.types], settings.max_workers
        )
        # The nodes that were started here, with the number of their type.
        self._started: dict[str, tuple[int, Node]] = {}
        self._said: Optional[str] = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="autoscaler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Returns when nothing is started or ended any more; the nodes stay."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            head = self._cluster.head_node
            if head is None or not head.any_processes_alive():
                logger.error("the autoscaler ends, for the head of its cluster has")
                return
            try:
                self._round()
            except Exception as error:  # noqa: BLE001 - whatever it is, the next look may find the cluster well
                self._say(f"the autoscaler could not look at its cluster: {error}")
            self._stop.wait(self._interval_s)

    def _round(self) -> None:
        for node_id, (_, node) in list(self._started.items()):
            if not node.any_processes_alive():
                logger.warning("node %s has ended by itself", node_id)
                self._end(node_id)
        types = {node_id: at for node_id, (at, _) in self._started.items()}
        launches, ends, unknown = self._scaler.look(types, _ANSWER_TIMEOUT_S)
        self._say("; ".join(unknown) or None)
        for at in launches:
            if self._stop.is_set():
                return
            self._launch(at)
        for node_id in ends:
            logger.info("node %s is ended, for it was idle", node_id)
            self._end(node_id)

    def _launch(self, at: int) -> None:
        node_type = self._types[at]
        args = node_args(node_type.resources, node_type.labels)
        try:
            node = self._cluster.add_node(**args, env_vars=self._env_vars)
        except RuntimeError as error:
            logger.error("no node of type %r could be started: %s", node_type.name, error)  # noqa: TRY400
            self._scaler.launch_failed(at)
            return
        logger.info("node %s of type %r is started", node.node_id, node_type.name)
        self._started[node.node_id] = (at, node)

    def _end(self, node_id: str) -> None:
        _, node = self._started.pop(node_id)
        self._cluster._end(node, allow_graceful=True)  # noqa: SLF001 - this process is no driver there

    def _say(self, text: Optional[str]) -> None:
        """Once, until it is something else."""
        if text is not None and text != self._said:
            logger.warning("%s", text)
        self._said = text
