"""`ray._private.worker.global_worker` and `_global_node`, as far as libraries look into them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Optional

from ray_rust._internal import ActorID, JobID, NodeID, TaskID, WorkerID
from ray_rust._private import session as state
from ray_rust.exceptions import RaySystemError

if TYPE_CHECKING:
    from ray_rust._internal import CoreWorker
    from ray_rust._private.session import Session
    from ray_rust.experimental.rdt.rdt_manager import RDTManager

# Sizes of log files at which they are rotated, and how many are kept; Ray's.
_LOG_BYTES = 512 * 1024 * 1024
_LOG_BACKUPS = 5


def address_info(session: Session) -> dict[str, Any]:
    """How the cluster of a connection can be reached; Ray's names."""
    from ray_rust._private.services import get_node_ip_address

    core = session.core
    host = get_node_ip_address()
    socket = _node_field(core.session_dir, "socket_path") or ""
    return {
        "node_ip_address": host,
        "node_id": core.node_id.hex(),
        "object_store_address": socket,
        "raylet_socket_name": socket,
        # What Ray has and this does without.
        "webui_url": None,
        "redis_address": None,
        "dashboard_agent_listen_port": None,
        "session_dir": core.session_dir,
        "gcs_address": core.gcs_address,
        "address": core.gcs_address,
        "namespace": session.namespace,
        "metrics_export_port": _node_field(core.session_dir, "metrics_export_port"),
    }


def _node_field(session_dir: str, name: str) -> Any:
    """What the node has written down of itself beside its logs; None if it has gone."""
    import json

    try:
        with open(os.path.join(session_dir, "node.json"), encoding="utf-8") as file:
            return json.load(file).get(name)
    except (OSError, ValueError):
        return None


class GlobalNode:
    """The node of this process's connection."""

    max_bytes = _LOG_BYTES
    backup_count = _LOG_BACKUPS
    webui_url: Optional[str] = None

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def address_info(self) -> dict[str, Any]:
        """As `init` returns it."""
        return address_info(self._session)

    @property
    def node_id(self) -> str:
        """In hexadecimal."""
        return self._session.core.node_id.hex()

    @property
    def node_ip_address(self) -> str:
        """Host of the node."""
        return str(self.address_info["node_ip_address"])

    @property
    def gcs_address(self) -> str:
        """Of the control plane, as host:port."""
        return self._session.core.gcs_address

    @property
    def session_name(self) -> str:
        """Name of the session's folder."""
        return os.path.basename(self._session.core.session_dir)

    def get_session_dir_path(self) -> str:
        """Folder of the session."""
        return self._session.core.session_dir

    def get_logs_dir_path(self) -> str:
        """Folder of the logs."""
        return os.path.join(self._session.core.session_dir, "logs")

    def get_temp_dir_path(self) -> str:
        """Folder of all sessions."""
        return os.path.dirname(self._session.core.session_dir)

    def is_head(self) -> bool:
        """Whether it hosts the control plane."""
        node_id = self.node_id
        return any(node["NodeID"] == node_id and node["IsHeadNode"] for node in self._session.core.nodes())


def global_node() -> Optional[GlobalNode]:
    """The node of this process, if it is connected."""
    session = state.get_session()
    return GlobalNode(session) if session is not None else None


class Worker:
    """This process, for libraries that look into Ray's object of this name."""

    # Assigned by libraries.
    _filter_logs_by_job = True

    @property
    def connected(self) -> bool:
        """Whether this process is connected."""
        return state.is_initialized()

    def check_connected(self) -> None:
        """RaySystemError unless it is."""
        if not self.connected:
            raise RaySystemError("this process is not connected to a cluster: call init() first")

    @property
    def mode(self) -> Optional[int]:
        """SCRIPT_MODE (0), WORKER_MODE (1), or None without a connection."""
        session = state.get_session()
        if session is None:
            return None
        return 0 if session.is_driver else 1

    @property
    def node(self) -> Optional[GlobalNode]:
        """Its node."""
        return global_node()

    @property
    def core_worker(self) -> CoreWorker:
        """The compiled core."""
        self.check_connected()
        return state.connected_core()

    @property
    def actor_id(self) -> ActorID:
        """Of the actor that it is, else nil."""
        return self._of_core("current_actor_id") or ActorID.nil()

    @property
    def current_task_id(self) -> TaskID:
        """Of what runs, else nil."""
        return self._of_core("current_task_id") or TaskID.nil()

    @property
    def current_job_id(self) -> JobID:
        """Of its job, nil without a connection."""
        session = state.get_session()
        return session.core.job_id if session is not None else JobID.nil()

    @property
    def current_node_id(self) -> NodeID:
        """Of its node, nil without a connection."""
        session = state.get_session()
        return session.core.node_id if session is not None else NodeID.nil()

    @property
    def worker_id(self) -> bytes:
        """Of this process, nil without a connection."""
        session = state.get_session()
        return (session.core.worker_id if session is not None else WorkerID.nil()).binary()

    @property
    def namespace(self) -> str:
        """Where names of actors are looked up."""
        self.check_connected()
        return state.current_session().namespace

    @property
    def node_ip_address(self) -> str:
        """Host of its node."""
        from ray_rust._private.services import get_node_ip_address

        return get_node_ip_address()

    @property
    def runtime_env(self) -> str:
        """What it runs in, in JSON."""
        from ray_rust.runtime_context import RuntimeContext

        return RuntimeContext().get_runtime_env_string()

    @property
    def is_canceled(self) -> bool:
        """Whether what runs was cancelled."""
        return bool(self._of_core("is_task_cancelled"))

    @property
    def rdt_manager(self) -> RDTManager:
        """What it knows of tensors that have a transport."""
        from ray_rust.experimental.rdt.rdt_manager import RDTManager

        return RDTManager()

    def get_serialization_context(self) -> Any:
        """How values are pickled."""
        from ray_rust._private.serialization_context import get_serialization_context

        return get_serialization_context()

    def _of_core(self, method: str) -> Any:
        session = state.get_session()
        return getattr(session.core, method)() if session is not None else None
