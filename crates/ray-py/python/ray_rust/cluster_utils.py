"""Clusters of several nodes on one machine, for tests.

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    other = cluster.add_node(num_cpus=1, resources={"gizmo": 1})
    ray_rust.init(cluster.address)
    ...
    cluster.remove_node(other)
    cluster.shutdown()

An `AutoscalingCluster` starts nodes when something waits for them, and ends those that have nothing to do.

Each node is a daemon with workers and shared memory of its own. All of them end with `shutdown()`, and with the
process that made them, however that ends.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any, Optional

if TYPE_CHECKING:
    from ray_rust._private.autoscaler import Monitor
    from ray_rust._private.node import NodeInfo, NodeProcess

__all__ = ["AutoscalingCluster", "Cluster"]

_POLL_S = 0.02
# What a node has unless it is said, as in Ray.
_DEFAULTS = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 150 * 1024 * 1024}
# What Ray's nodes are told and these have no use for.
_IGNORED = frozenset(
    {
        "dashboard_port",
        "dashboard_host",
        "dashboard_agent_listen_port",
        "include_dashboard",
        "enable_object_reconstruction",
        "max_worker_port",
        "metrics_export_port",
        "min_worker_port",
        "node_ip_address",
        "node_manager_port",
        "ray_client_server_port",
        "redis_password",
        "redis_username",
    }
)


class Node:
    """A node of a `Cluster`: a daemon that this process started."""

    def __init__(self, config: dict[str, Any], *, is_head: bool, env_vars: dict[str, str], wait: bool = True) -> None:
        self._is_head = is_head
        self._started: Optional[NodeProcess] = None
        self._failure: Optional[Exception] = None
        self._starting: Optional[threading.Thread] = None
        if wait:
            self._start(config, env_vars)
        else:
            self._starting = threading.Thread(target=self._start_alone, args=(config, env_vars), daemon=True)
            self._starting.start()

    def _start(self, config: dict[str, Any], env_vars: dict[str, str]) -> None:
        from ray_rust._private import node as nodes

        self._started = nodes.start_node(config, env_vars=env_vars)

    def _start_alone(self, config: dict[str, Any], env_vars: dict[str, str]) -> None:
        try:
            self._start(config, env_vars)
        except Exception as error:  # noqa: BLE001 - whoever uses the node is told
            self._failure = error

    @property
    def _process(self) -> NodeProcess:
        """Waits for its start. RuntimeError if that has failed."""
        if self._starting is not None:
            self._starting.join()
        if self._started is None:
            raise RuntimeError(f"this node was not started: {self._failure}") from self._failure
        return self._started

    def _has_failed(self) -> bool:
        if self._starting is not None:
            self._starting.join()
        return self._started is None

    @property
    def _info(self) -> NodeInfo:
        return self._process.info

    @property
    def node_id(self) -> str:
        """In hexadecimal."""
        return self._info.node_id

    @property
    def unique_id(self) -> str:
        """Ray's other name of `node_id`."""
        return self._info.node_id

    @property
    def gcs_address(self) -> str:
        """Of the cluster's control plane, as host:port."""
        return self._info.gcs_address

    @property
    def address(self) -> str:
        """What `init` takes to join the cluster."""
        return self._info.gcs_address

    @property
    def node_ip_address(self) -> str:
        """Of the machine that it is on."""
        return str(self._info.fields["node_address"]).rpartition(":")[0]

    @property
    def node_manager_port(self) -> int:
        """Of its services."""
        return int(str(self._info.fields["node_address"]).rpartition(":")[2])

    @property
    def metrics_export_port(self) -> int:
        """Where its metrics are read."""
        return int(self._info.fields["metrics_export_port"])

    @property
    def raylet_socket_name(self) -> str:
        """Where its processes and drivers speak to it."""
        return self._info.socket_path

    @property
    def plasma_store_socket_name(self) -> str:
        """The same: shared memory is asked for there, too."""
        return self._info.socket_path

    @property
    def pid(self) -> int:
        """Process id of the daemon."""
        return self._info.pid

    def is_head(self) -> bool:
        """Whether it hosts the control plane."""
        return self._is_head

    def get_session_dir_path(self) -> str:
        """Folder of its session."""
        return self._info.session_dir

    def get_logs_dir_path(self) -> str:
        """Folder of its logs."""
        return os.path.join(self._info.session_dir, "logs")

    def get_temp_dir_path(self) -> str:
        """Folder of all sessions."""
        return os.path.dirname(self._info.session_dir)

    def any_processes_alive(self) -> bool:
        """Whether the daemon runs; its workers end with it."""
        return self._process.is_running()

    def remaining_processes_alive(self) -> bool:
        """Whether it runs, unless it was told to end here."""
        return self._process.is_running() or self._process.was_ended

    def kill_raylet(self, check_alive: bool = True) -> None:
        """Kills the daemon with signal 9, and its workers with it."""
        if check_alive and not self.any_processes_alive():
            raise RuntimeError(f"node {self.node_id} has ended already")
        self._process.kill()

    def kill_all_processes(self, check_alive: bool = True, allow_graceful: bool = False, wait: bool = False) -> None:
        """Ends the daemon and its workers: at once, or telling it to end first. Waits in any case."""
        del wait
        if self._has_failed() and not check_alive:
            return  # There is nothing that could be ended.
        if check_alive and not self.any_processes_alive():
            raise RuntimeError(f"node {self.node_id} has ended already")
        if allow_graceful:
            self._process.terminate()
        else:
            self._process.kill()

    def destroy_external_storage(self) -> None:
        """Nothing: what a node has spilled goes with its session."""


def _heartbeats(system_config: dict[str, Any]) -> dict[str, int]:
    """What Ray's settings of this kind, all that have a meaning here, say of how soon silent nodes are dead."""
    period = system_config.get("health_check_period_ms")
    threshold = system_config.get("health_check_failure_threshold")
    if period is None and threshold is None:
        return {}
    # Unless they are given, as the settings have them.
    period = 1000 if period is None else int(period)
    threshold = 10 if threshold is None else int(threshold)
    return {"heartbeat_interval_ms": period, "node_dead_after_ms": period * max(threshold, 2)}


class Cluster:
    """A cluster of nodes on this machine, made for tests."""

    def __init__(
        self,
        initialize_head: bool = False,
        connect: bool = False,
        head_node_args: Optional[dict[str, Any]] = None,
        shutdown_at_exit: bool = True,
    ) -> None:
        """No nodes; with `initialize_head` a head of these arguments (see `add_node`), joined with `connect`.

        The nodes end with this process unless `shutdown_at_exit` is false.
        """
        self.head_node: Optional[Node] = None
        self.worker_nodes: set[Node] = set()
        self.connected = False
        self._shutdown_at_exit = shutdown_at_exit
        self._added: list[Node] = []
        if connect and not initialize_head:
            raise RuntimeError("a cluster without a head cannot be joined: pass initialize_head=True, too")
        if initialize_head:
            self.add_node(**(head_node_args or {}))
            if connect:
                self.connect()

    @property
    def gcs_address(self) -> Optional[str]:
        """Of the control plane, as host:port; None without a head."""
        return self.head_node.gcs_address if self.head_node is not None else None

    @property
    def address(self) -> Optional[str]:
        """What `init` takes to join this cluster."""
        return self.gcs_address

    def connect(self, namespace: Optional[str] = None) -> None:
        """Joins the cluster with this process as a driver, on its head."""
        import ray_rust

        if self.address is None:
            raise RuntimeError("a cluster without a head cannot be joined: add a node first")
        if self.connected:
            raise RuntimeError("this cluster was joined already")
        ray_rust.init(self.address, namespace=namespace, ignore_reinit_error=True)
        self.connected = True

    def add_node(self, wait: bool = True, **node_args: Any) -> Node:
        """Starts a node: the head if there is none yet, else one that joins it.

        `node_args` are num_cpus (default 1), num_gpus (default 0), resources, labels, object_store_memory (bytes,
        default 150 MiB), memory (bytes), port, spill_directory and env_vars (of its processes). Of a head's
        `_system_config` this counts how soon a silent node is taken for dead: health_check_period_ms and
        health_check_failure_threshold.

        The node is alive when this returns. Without `wait` it is being started, and whatever asks it for something
        waits for that; a head is always waited for.
        """
        from ray_rust._private import node as nodes

        described = {**_DEFAULTS, **{name: value for name, value in node_args.items() if name not in _IGNORED}}
        temp_dir = nodes.temp_dir(described.pop("temp_dir", None))
        env_vars = described.pop("env_vars", None) or {}
        heartbeats = _heartbeats(described.pop("_system_config", None) or {})
        is_head = self.head_node is None
        described["gcs_address"] = self.gcs_address
        if self._shutdown_at_exit:
            described["owner_pid"] = os.getpid()
        if is_head:
            # As in Ray: drivers that name no cluster find this one.
            described["announce"] = True
        config = nodes.node_config(temp_dir, **described)
        if heartbeats:
            config["config"]["gcs"] = heartbeats
        node = Node(config, is_head=is_head, env_vars=env_vars, wait=wait or is_head)
        if is_head:
            self.head_node = node
        else:
            self.worker_nodes.add(node)
        self._added.append(node)
        return node

    def remove_node(self, node: Node, allow_graceful: bool = True) -> None:
        """Ends a node and its workers: tells it to end first, or with `allow_graceful` false kills it.

        ValueError if this process has joined the cluster on this node, after it has left.
        """
        import ray_rust
        from ray_rust._private import session

        known = session.get_session()
        if known is not None and known.core.node_id.hex() == node.node_id:
            ray_rust.shutdown()
            self.connected = False
            raise ValueError(
                f"node {node.node_id} is the one on which this process has joined the cluster: its removal would end "
                "this process's connection, so it was left instead; remove another node, or call shutdown()"
            )
        self._end(node, allow_graceful=allow_graceful)

    def _end(self, node: Node, *, allow_graceful: bool) -> None:
        node.kill_all_processes(check_alive=False, allow_graceful=allow_graceful, wait=True)
        self._added.remove(node)
        if node is self.head_node:
            self.head_node = None
        else:
            self.worker_nodes.discard(node)

    def wait_for_nodes(self, timeout: float = 30) -> None:
        """Waits until the control plane knows as many living nodes as this cluster has.

        TimeoutError after `timeout` seconds, as when a node has died that was not removed.
        """
        from ray_rust import _internal

        if self.gcs_address is None:
            raise RuntimeError("a cluster without a head has no control plane that knows its nodes")
        control_plane = _internal.GcsKv(self.gcs_address)
        expected = {node.node_id for node in self.list_all_nodes()}
        deadline = time.monotonic() + timeout
        while True:
            living = set(control_plane.living_nodes())
            if len(living) == len(expected):
                return
            if time.monotonic() >= deadline:
                raise TimeoutError(
                    f"{len(living)} nodes are alive instead of {len(expected)} after {timeout:g} s; "
                    f"missing: {', '.join(sorted(expected - living)) or 'none'}, "
                    f"not of this cluster: {', '.join(sorted(living - expected)) or 'none'}"
                )
            time.sleep(_POLL_S)

    def list_all_nodes(self) -> list[Node]:
        """All nodes that were added and not removed, the head first."""
        return list(self._added)

    def remaining_processes_alive(self) -> bool:
        """Whether every node runs that was not told to end here."""
        return all(node.remaining_processes_alive() for node in self.list_all_nodes())

    def shutdown(self) -> None:
        """Ends all nodes, the head last. This process leaves the cluster first if it has joined it."""
        import ray_rust
        from ray_rust._private import session

        known = session.get_session()
        if known is not None and known.is_driver and known.core.gcs_address == self.gcs_address:
            ray_rust.shutdown()
        self.connected = False
        for node in reversed(self.list_all_nodes()):
            self._end(node, allow_graceful=True)


class AutoscalingCluster:
    """A cluster of nodes on this machine that grows and shrinks with what runs there, made for tests.

        cluster = AutoscalingCluster(
            head_resources={"CPU": 1},
            worker_node_types={"cpu": {"resources": {"CPU": 4}, "min_workers": 0, "max_workers": 2}},
            idle_timeout_minutes=0.1,
        )
        cluster.start()
        ray_rust.init("auto")

    Tasks, actors and placement groups that find no room have nodes started of a type that has it, if there is one.
    Its nodes end with `shutdown()`, and with the process that made them.
    """

    def __init__(
        self,
        head_resources: dict[str, Any],
        worker_node_types: dict[str, Any],
        autoscaler_v2: bool = False,
        **config_kwargs: Any,
    ) -> None:
        """A head that has these resources, and nodes of these types as they are wanted.

        A type has `resources`, `labels`, `min_workers` (default 0), `max_workers` and `idle_timeout_s`. Of all:
        `max_workers` (default 8) and `idle_timeout_minutes` (default 0.1). There is one autoscaler, whether
        `autoscaler_v2` or not, and no `upscaling_speed`: nodes are started as soon as they are wanted.
        """
        from ray_rust._private import autoscaler

        del autoscaler_v2
        self._head_resources = dict(head_resources)
        self._settings = autoscaler.read_settings(worker_node_types, config_kwargs)
        self._cluster: Optional[Cluster] = None
        self._monitor: Optional[Monitor] = None

    @property
    def address(self) -> Optional[str]:
        """What `init` takes to join this cluster; None while it is not started."""
        return self._cluster.address if self._cluster is not None else None

    def start(
        self, _system_config: Optional[dict[str, Any]] = None, override_env: Optional[dict[str, str]] = None
    ) -> None:
        """Starts the head, which `init("auto")` joins from then on, and the autoscaler.

        `override_env` are environment variables of its nodes; AUTOSCALER_UPDATE_INTERVAL_S says how often (seconds,
        default 1) the autoscaler looks. Other clusters on this machine are left alone. RuntimeError if it is started.
        """
        from ray_rust._private import autoscaler

        if self._cluster is not None:
            raise RuntimeError("this cluster was started already: call shutdown() first")
        head = autoscaler.node_args(self._head_resources)
        if "CPU" not in self._head_resources:
            # As many as this machine has.
            head["num_cpus"] = None
        env_vars = override_env or {}
        cluster = Cluster()
        cluster.add_node(**head, _system_config=_system_config, env_vars=env_vars)
        try:
            self._monitor = autoscaler.Monitor(cluster, self._settings, env_vars)
        except BaseException:
            cluster.shutdown()
            raise
        self._cluster = cluster

    def shutdown(self) -> None:
        """Ends the autoscaler and all nodes. This process leaves the cluster first if it has joined it."""
        if self._monitor is not None:
            self._monitor.stop()
            self._monitor = None
        if self._cluster is not None:
            self._cluster.shutdown()
            self._cluster = None
