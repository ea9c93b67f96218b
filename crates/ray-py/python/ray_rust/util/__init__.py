"""Tools on top of tasks and actors: `ray.util`."""

from typing import TYPE_CHECKING

from ray_rust._private.services import get_node_instance_id, get_node_ip_address
from ray_rust.util.actor_pool import ActorPool
from ray_rust.util.check_serialize import inspect_serializability
from ray_rust.util.debug import disable_log_once_globally, enable_periodic_logging, log_once
from ray_rust.util.helpers import as_completed, map_unordered
from ray_rust.util.named_actors import list_named_actors
from ray_rust.util.placement_group import (
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray_rust.util.serialization import deregister_serializer, register_serializer

if TYPE_CHECKING:
    from ray_rust.util import accelerators
    from ray_rust.util import debugpy as ray_debugpy
    from ray_rust.util import rpdb as pdb

__all__ = [
    "ActorPool",
    "accelerators",
    "as_completed",
    "deregister_serializer",
    "disable_log_once_globally",
    "enable_periodic_logging",
    "get_current_placement_group",
    "get_node_instance_id",
    "get_node_ip_address",
    "get_placement_group",
    "inspect_serializability",
    "list_named_actors",
    "log_once",
    "map_unordered",
    "pdb",
    "placement_group",
    "placement_group_table",
    "ray_debugpy",
    "register_serializer",
    "remove_placement_group",
]

# Imported when they are first looked at.
_LATE = {"accelerators": "accelerators", "pdb": "rpdb", "ray_debugpy": "debugpy"}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name in _LATE:
            import importlib

            return importlib.import_module(f"ray_rust.util.{_LATE[name]}")
        raise AttributeError(f"module 'ray_rust.util' has no attribute {name!r}")
