"""Ray Rust: tasks, actors and objects across processes, with the interface of Ray.

import ray_rust as ray

@ray.remote
def square(x):
return x * x

print(ray.get([square.remote(i) for i in range(4)]))
"""

from typing import TYPE_CHECKING

from ray_rust import actor, exceptions, remote_function
from ray_rust._internal import (
    ActorClassID,
    ActorID,
    ClusterID,
    FunctionID,
    JobID,
    NodeID,
    ObjectRef,
    PlacementGroupID,
    TaskID,
    UniqueID,
    WorkerID,
    __version__,
    get,
    put,
    wait,
)
from ray_rust._private.api import (
    available_resources,
    cancel,
    cluster_resources,
    get_actor,
    kill,
    nodes,
)
from ray_rust._private.decorator import remote
from ray_rust._private.session import is_initialized
from ray_rust._private.worker import init, shutdown
from ray_rust.actor import method
from ray_rust.runtime_context import get_runtime_context
from ray_rust.task_result import TaskResult

if TYPE_CHECKING:
    from ray_rust import cloudpickle, experimental, runtime_env, util, widgets

# As in Ray, which has two names for the same.
ObjectID = ObjectRef

__all__ = [
    "ActorClassID",
    "ActorID",
    "ClusterID",
    "FunctionID",
    "JobID",
    "NodeID",
    "ObjectID",
    "ObjectRef",
    "PlacementGroupID",
    "TaskID",
    "TaskResult",
    "UniqueID",
    "WorkerID",
    "__version__",
    "actor",
    "available_resources",
    "cancel",
    "cloudpickle",
    "cluster_resources",
    "exceptions",
    "experimental",
    "get",
    "get_actor",
    "get_runtime_context",
    "init",
    "is_initialized",
    "kill",
    "method",
    "nodes",
    "put",
    "remote",
    "remote_function",
    "runtime_env",
    "shutdown",
    "util",
    "wait",
    "widgets",
]

# Imported when they are first looked at, so that importing this package stays cheap.
_LATE = ("cloudpickle", "experimental", "runtime_env", "util", "widgets")

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name in _LATE:
            import importlib

            return importlib.import_module(f"ray_rust.{name}")
        raise AttributeError(f"module 'ray_rust' has no attribute {name!r}")
