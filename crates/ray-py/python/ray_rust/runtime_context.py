"""What a process can ask about itself and what it runs."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Optional

from ray_rust._internal import PlacementGroupID
from ray_rust._private import session

if TYPE_CHECKING:
    from ray_rust._internal import ActorID, CoreWorker, JobID, NodeID, TaskID
    from ray_rust._private.global_worker import Worker
    from ray_rust.actor import ActorHandle
    from ray_rust.runtime_env import RuntimeEnv

__all__ = ["RuntimeContext", "get_runtime_context"]


class RuntimeContext:
    """Where this code runs. Ids are given as hexadecimal text.

    In a driver, what only workers have is None; where Ray asserts, AssertionError is raised.
    """

    def __init__(self, worker: Optional[Worker] = None) -> None:
        self._worker = worker

    @property
    def worker(self) -> Worker:
        """This process, for libraries that look into it."""
        if self._worker is None:
            from ray_rust._private.worker import global_worker

            self._worker = global_worker
        return self._worker

    # Ids

    def get_job_id(self) -> str:
        """Of the driver that this code belongs to. RuntimeError without a connection."""
        return _core("the job id").job_id.hex()

    def get_node_id(self) -> str:
        """Of the node that this process runs on. RuntimeError without a connection."""
        return _core("the node id").node_id.hex()

    def get_worker_id(self) -> str:
        """Of this process. RuntimeError without a connection."""
        return _core("the worker id").worker_id.hex()

    def get_session_name(self) -> str:
        """Of the session of this node: the name of its folder. RuntimeError without a connection."""
        return os.path.basename(_core("the session's name").session_dir)

    def get_temp_dir(self) -> str:
        """Folder of the sessions of this node. RuntimeError without a connection."""
        return os.path.dirname(_core("the folder of sessions").session_dir)

    def get_task_id(self) -> Optional[str]:
        """Of the task or actor call that runs; None in a driver."""
        task_id = _core("the task id").current_task_id()
        return task_id.hex() if task_id is not None else None

    def get_task_name(self) -> Optional[str]:
        """Of the task or actor call that runs; None in a driver."""
        return _core("the task's name").current_task_name()

    def get_task_function_name(self) -> Optional[str]:
        """Of the function or method that runs, with its module and class; None in a driver."""
        if session.current_session().is_driver:
            return None
        from ray_rust._private import called

        return called.function_name()

    def get_actor_id(self) -> Optional[str]:
        """Of the actor that this process is; None elsewhere."""
        actor_id = _core("the actor id").current_actor_id()
        return actor_id.hex() if actor_id is not None else None

    def get_actor_name(self) -> Optional[str]:
        """Of the actor that this process is: empty if it has no name; None elsewhere."""
        own = _core("the actor's name").own_description()
        return own[0] if own is not None else None

    # The actor

    @property
    def was_current_actor_reconstructed(self) -> bool:
        """Whether the actor that this process is was restarted. AssertionError elsewhere."""
        own = _core("the actor").own_description()
        if own is None:
            raise AssertionError("was_current_actor_reconstructed is there in actors only")
        return own[1] > 0

    @property
    def current_actor(self) -> ActorHandle:
        """A handle to the actor that this process is. RuntimeError elsewhere."""
        core = _core("the actor")
        actor_id, own = core.current_actor_id(), core.own_description()
        if actor_id is None or own is None:
            raise RuntimeError("current_actor is there in actors only: this process is none")
        from ray_rust.actor import handle_from_metadata

        return handle_from_metadata(actor_id, own[2])

    def get_placement_group_id(self) -> Optional[str]:
        """Of the placement group in which the task or actor call runs; None outside of any."""
        current = _core("the placement group").placement_groups.current()
        return None if current is None else current[0].hex()

    @property
    def should_capture_child_tasks_in_placement_group(self) -> bool:
        """Whether what this code submits runs in the same placement group unless it says otherwise."""
        current = session.connected_core().placement_groups.current()
        return current is not None and current[1]

    def is_canceled(self) -> bool:
        """Whether the task that runs was cancelled, so that it may end in order.

        RuntimeError in a driver, and in an async actor, whose calls are cancelled by `asyncio.CancelledError`.
        """
        if session.current_session().is_driver:
            raise RuntimeError("is_canceled() is there in tasks and actors only: this process is a driver")
        core = session.connected_core()
        asyncio = sys.modules.get("asyncio")
        if core.current_actor_id() is not None and asyncio is not None and asyncio._get_running_loop() is not None:  # noqa: SLF001
            raise RuntimeError(
                "is_canceled() is not there in async actors: a call that is cancelled gets asyncio.CancelledError"
            )
        return core.is_task_cancelled()

    # Where it runs, and on what

    @property
    def namespace(self) -> str:
        """Where names of actors are looked up unless told otherwise."""
        return session.current_session().namespace

    @property
    def gcs_address(self) -> str:
        """Of the cluster's control plane, as host:port."""
        return session.connected_core().gcs_address

    def get_session_dir(self) -> str:
        """Folder of the logs of this node."""
        return session.connected_core().session_dir

    def get_node_labels(self) -> dict[str, str]:
        """Of the node that this process runs on."""
        core = session.connected_core()
        own = core.node_id.hex()
        return next((dict(node["Labels"]) for node in core.nodes() if node["NodeID"] == own), {})

    def get_assigned_resources(self) -> dict[str, float]:
        """What the task that runs, or this actor, takes of its node. AssertionError in a driver."""
        connection = session.current_session()
        if connection.is_driver:
            raise AssertionError("get_assigned_resources() is there in tasks and actors only: this process is a driver")
        return connection.core.leased()[0]

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        """The accelerators that this task or actor is to use, by kind; only those of the kind "GPU" are told apart."""
        from ray_rust._private import gpus
        from ray_rust._private.worker import get_gpu_ids

        ids: dict[str, list[str]] = {kind: [] for kind in gpus.ACCELERATORS}
        ids["GPU"] = [str(device) for device in get_gpu_ids()]
        return ids

    @property
    def runtime_env(self) -> RuntimeEnv:
        """What this process was made with; in a driver, what its job asks for."""
        from ray_rust.runtime_env import RuntimeEnv

        text = self.get_runtime_env_string()
        return RuntimeEnv.deserialize(text)

    def get_runtime_env_string(self) -> str:
        """The same in JSON."""
        import json

        described = json.loads(session.connected_core().runtime_env or "{}")
        return json.dumps({name: value for name, value in described.items() if name != "_setup_hook"})

    # Deprecated, as in Ray

    def get(self) -> dict[str, Any]:
        """Some ids by name. Deprecated: ask for each."""
        _deprecated("get()", "the methods get_..._id()")
        core = session.connected_core()
        found: dict[str, Any] = {"job_id": core.job_id, "node_id": core.node_id, "namespace": self.namespace}
        others = {"task_id": core.current_task_id(), "actor_id": core.current_actor_id()}
        found.update({name: value for name, value in others.items() if value is not None})
        return found

    @property
    def job_id(self) -> JobID:
        """Deprecated: use `get_job_id`."""
        _deprecated("job_id", "get_job_id()")
        return session.connected_core().job_id

    @property
    def node_id(self) -> NodeID:
        """Deprecated: use `get_node_id`."""
        _deprecated("node_id", "get_node_id()")
        return session.connected_core().node_id

    @property
    def task_id(self) -> Optional[TaskID]:
        """Deprecated: use `get_task_id`. AssertionError in a driver."""
        _deprecated("task_id", "get_task_id()")
        if session.current_session().is_driver:
            raise AssertionError("task_id is there in tasks and actors only: this process is a driver")
        return session.connected_core().current_task_id()

    @property
    def actor_id(self) -> Optional[ActorID]:
        """Deprecated: use `get_actor_id`. AssertionError in a driver."""
        _deprecated("actor_id", "get_actor_id()")
        if session.current_session().is_driver:
            raise AssertionError("actor_id is there in tasks and actors only: this process is a driver")
        return session.connected_core().current_actor_id()

    @property
    def current_placement_group_id(self) -> PlacementGroupID:
        """Deprecated: use `get_placement_group_id`. Nil outside of any group."""
        _deprecated("current_placement_group_id", "get_placement_group_id()")
        current = session.connected_core().placement_groups.current()
        return PlacementGroupID.nil() if current is None else current[0]

    def get_resource_ids(self) -> dict[str, list[str]]:
        """Deprecated: use `get_accelerator_ids`."""
        _deprecated("get_resource_ids()", "get_accelerator_ids()")
        return self.get_accelerator_ids()


def _core(what: str) -> CoreWorker:
    if not session.is_initialized():
        raise RuntimeError(f"{what} is not known: this process is not connected to a cluster")
    return session.connected_core()


def _deprecated(name: str, instead: str) -> None:
    import warnings

    from ray_rust.util.annotations import RayDeprecationWarning

    warnings.warn(f"RuntimeContext.{name} is deprecated: use {instead}", RayDeprecationWarning, stacklevel=3)


_context = RuntimeContext()


def get_runtime_context() -> RuntimeContext:
    """The runtime context of this process; connects as `init()` does if it is not connected."""
    session.connected_core()
    return _context
