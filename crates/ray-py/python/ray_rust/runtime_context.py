"""What a process can ask about itself and what it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

from ray_rust._private import session

if TYPE_CHECKING:
    from ray_rust.runtime_env import RuntimeEnv

__all__ = ["RuntimeContext", "get_runtime_context"]


class RuntimeContext:
    """Where this code runs. Ids are given as hexadecimal text."""

    def get_job_id(self) -> str:
        """Of the driver that this code belongs to."""
        return session.connected_core().job_id.hex()

    def get_node_id(self) -> str:
        """Of the node that this process runs on."""
        return session.connected_core().node_id.hex()

    def get_worker_id(self) -> str:
        """Of this process."""
        return session.connected_core().worker_id.hex()

    def get_task_id(self) -> Optional[str]:
        """Of the task or actor call that runs; None in a driver."""
        task_id = session.connected_core().current_task_id()
        return task_id.hex() if task_id is not None else None

    def get_task_name(self) -> Optional[str]:
        """Of the task or actor call that runs; None in a driver."""
        return session.connected_core().current_task_name()

    def get_actor_id(self) -> Optional[str]:
        """Of the actor that this process is; None elsewhere."""
        actor_id = session.connected_core().current_actor_id()
        return actor_id.hex() if actor_id is not None else None

    @property
    def namespace(self) -> str:
        """Where names of actors are looked up unless told otherwise."""
        return session.current_session().namespace

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

    @property
    def gcs_address(self) -> str:
        """Of the cluster's control plane, as host:port."""
        return session.connected_core().gcs_address

    def get_session_dir(self) -> str:
        """Folder of the logs of this node."""
        return session.connected_core().session_dir


_context = RuntimeContext()


def get_runtime_context() -> RuntimeContext:
    """The runtime context of this process."""
    return _context
