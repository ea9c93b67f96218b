"""What `ray._private.state` answers about the cluster, as far as libraries ask it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional

from ray_rust._private.api import available_resources, cluster_resources, nodes, timeline
from ray_rust._private.session import connected_core

if TYPE_CHECKING:
    from ray_rust._internal import JobID

__all__ = [
    "GlobalState",
    "actors",
    "available_resources",
    "available_resources_per_node",
    "cluster_resources",
    "jobs",
    "node_ids",
    "nodes",
    "state",
    "timeline",
    "total_resources_per_node",
]


class GlobalState:
    """The cluster, as the control plane knows it."""

    def node_table(self) -> list[dict[str, Any]]:
        """Every node."""
        return nodes()

    def cluster_resources(self) -> dict[str, float]:
        """What all living nodes have together."""
        return cluster_resources()

    def available_resources(self) -> dict[str, float]:
        """What of it is free now."""
        return available_resources()

    def total_resources_per_node(self) -> dict[str, dict[str, float]]:
        """What each living node has, by its id."""
        return {node["NodeID"]: dict(node["Resources"]) for node in nodes() if node["Alive"]}

    def available_resources_per_node(self) -> dict[str, dict[str, float]]:
        """What of each living node is free, by its id; what is used up is left out."""
        free = connected_core().available_resources_per_node()
        return {node_id: {name: amount for name, amount in has.items() if amount} for node_id, has in free.items()}

    def actor_table(
        self,
        actor_id: Optional[str],
        job_id: Optional[JobID] = None,
        actor_state_name: Optional[str] = None,
    ) -> dict[str, Any]:
        """One actor, empty if it is unknown; or all by their ids, of one job or in one state."""
        rows = {row["actor_id"]: _actor(row) for row in connected_core().list_actors()}
        if actor_id is not None:
            found: dict[str, Any] = rows.get(actor_id, {})
            return found
        job = job_id.hex() if job_id is not None else None
        return {
            known: row
            for known, row in rows.items()
            if job in (None, row["JobID"]) and actor_state_name in (None, row["State"])
        }

    def job_table(self) -> list[dict[str, Any]]:
        """Every job."""
        return connected_core().list_jobs()

    def get_draining_nodes(self) -> dict[str, int]:
        """None: nodes are not told to end in advance."""
        return {}

    def get_cluster_config(self) -> None:
        """None: nobody adds nodes to the cluster by himself."""

    def get_max_resources_from_cluster_config(self) -> None:
        """None, for the same reason."""


def _actor(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "ActorID": row["actor_id"],
        "ActorClassName": row.get("class_name"),
        "IsDetached": row.get("is_detached"),
        "Name": row.get("name"),
        "JobID": row.get("job_id"),
        "Address": {"NodeID": row.get("node_id") or ""},
        "State": row.get("state"),
        "NumRestarts": row.get("num_restarts"),
        "Pid": row.get("pid"),
    }


state = GlobalState()


def actors(
    actor_id: Optional[str] = None, job_id: Optional[JobID] = None, actor_state_name: Optional[str] = None
) -> dict[str, Any]:
    """One actor, empty if it is unknown; or all by their ids, of one job or in one state."""
    return state.actor_table(actor_id, job_id, actor_state_name)


def jobs() -> list[dict[str, Any]]:
    """Every job."""
    return state.job_table()


def node_ids() -> list[str]:
    """The resources by which tasks choose a node, of the living ones."""
    return [f"node:{node['NodeManagerAddress']}" for node in nodes() if node["Alive"]]


def total_resources_per_node() -> dict[str, dict[str, float]]:
    """What each living node has, by its id."""
    return state.total_resources_per_node()


def available_resources_per_node() -> dict[str, dict[str, float]]:
    """What of each living node is free, by its id; what is used up is left out."""
    return state.available_resources_per_node()
