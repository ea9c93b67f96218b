"""Ray Rust: tasks, actors and objects across processes, with the interface of Ray.

import ray_rust as ray

@ray.remote
def square(x):
return x * x

print(ray.get([square.remote(i) for i in range(4)]))
"""

from typing import TYPE_CHECKING

from ray_rust import actor, exceptions, remote_function, runtime_context
from ray_rust._internal import (
    ActorClassID,
    ActorID,
    ClusterID,
    FunctionID,
    JobID,
    NodeID,
    ObjectRef,
    ObjectRefGenerator,
    PlacementGroupID,
    TaskID,
    UniqueID,
    WorkerID,
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
    timeline,
)
from ray_rust._private.decorator import remote
from ray_rust._private.worker import (
    LOCAL_MODE,
    RESTORE_WORKER_MODE,
    SCRIPT_MODE,
    SPILL_WORKER_MODE,
    WORKER_MODE,
    get_gpu_ids,
    init,
    is_initialized,
    shutdown,
)
from ray_rust._version import commit as __commit__
from ray_rust._version import version as __version__
from ray_rust.actor import method
from ray_rust.runtime_context import get_runtime_context
from ray_rust.task_result import TaskResult

if TYPE_CHECKING:
    import logging

    from ray_rust import cloudpickle, experimental, job_config, runtime_env, types, util, widgets
    from ray_rust._private.object_ref_generator import DynamicObjectRefGenerator
    from ray_rust._private.ray_logging.logging_config import LoggingConfig
    from ray_rust._raylet import Language
    from ray_rust.client_builder import ClientBuilder, client

    logger: logging.Logger

# As in Ray, which has two names for the same.
ObjectID = ObjectRef

__all__ = [
    "LOCAL_MODE",
    "RESTORE_WORKER_MODE",
    "SCRIPT_MODE",
    "SPILL_WORKER_MODE",
    "WORKER_MODE",
    "ActorClassID",
    "ActorID",
    "ClientBuilder",
    "ClusterID",
    "DynamicObjectRefGenerator",
    "FunctionID",
    "JobID",
    "Language",
    "LoggingConfig",
    "NodeID",
    "ObjectID",
    "ObjectRef",
    "ObjectRefGenerator",
    "PlacementGroupID",
    "TaskID",
    "TaskResult",
    "UniqueID",
    "WorkerID",
    "__commit__",
    "__version__",
    "actor",
    "available_resources",
    "cancel",
    "client",
    "cloudpickle",
    "cluster_resources",
    "exceptions",
    "experimental",
    "get",
    "get_actor",
    "get_gpu_ids",
    "get_runtime_context",
    "init",
    "install_as_ray",
    "internal",
    "is_initialized",
    "job_config",
    "kill",
    "logger",
    "method",
    "nodes",
    "put",
    "remote",
    "remote_function",
    "runtime_context",
    "runtime_env",
    "shutdown",
    "timeline",
    "types",
    "util",
    "wait",
    "widgets",
]


def install_as_ray() -> None:
    """From now on `import ray` gives this package: one module under both names, here and in workers of this driver.

    The environment variable RAY_RUST_AS_RAY=1 and `python -m ray_rust run PROGRAM` do it from the start. RuntimeError
    if Ray itself was imported before.
    """
    from ray_rust._private import as_ray

    as_ray.install()


# Imported when they are first looked at, so that importing this package stays cheap: modules below this one, and names
# with the module that has them.
_LATE_MODULES = (
    "client_builder",
    "cloudpickle",
    "experimental",
    "internal",
    "job_config",
    "runtime_env",
    "types",
    "util",
    "widgets",
)
_LATE_NAMES = {
    "ClientBuilder": "client_builder",
    "DynamicObjectRefGenerator": "_private.object_ref_generator",
    "Language": "_raylet",
    "LoggingConfig": "_private.ray_logging.logging_config",
    "client": "client_builder",
}
_OTHER_LANGUAGES = ("cpp_actor_class", "cpp_function", "java_actor_class", "java_function")

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        import importlib

        if name in _LATE_MODULES:
            return importlib.import_module(f"ray_rust.{name}")
        if name in _LATE_NAMES:
            value = globals()[name] = getattr(importlib.import_module(f"ray_rust.{_LATE_NAMES[name]}"), name)
            return value
        if name == "logger":
            import logging

            return logging.getLogger("ray")
        if name in _OTHER_LANGUAGES:
            raise AttributeError(f"ray_rust has no {name}: functions and classes of other languages are not supported")
        raise AttributeError(f"module 'ray_rust' has no attribute {name!r}")


def _install_if_asked() -> None:
    import os

    if os.environ.get("RAY_RUST_AS_RAY") == "1":
        install_as_ray()


_install_if_asked()
