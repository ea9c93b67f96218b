"""Checks what `init` is given, before anything is started."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ray_rust._private.ray_logging.logging_config import LoggingConfig
    from ray_rust.job_config import JobConfig

# What Ray's init takes beside its parameters, with what it means here: part of the description of a node, or nothing.
_DESCRIPTIONS = {"_memory": "memory", "object_spilling_directory": "spill_directory"}
_WITHOUT_EFFECT = frozenset(
    {
        "_driver_object_store_memory",
        "_enable_object_reconstruction",
        "_metrics_export_port",
        "_node_ip_address",
        "_node_name",
        "_plasma_directory",
        "_redis_password",
        "_redis_username",
        "_skip_env_hook",
        "_tracing_startup_hook",
    }
)


class Hidden(NamedTuple):
    """The arguments of `init` that are no parameters."""

    temp_dir: Optional[str]
    described: dict[str, Any]


def take_hidden(given: dict[str, Any]) -> Hidden:
    """Sorts them. RuntimeError for one that nobody knows."""
    given = dict(given)
    temp_dir = given.pop("_temp_dir", None)
    system_config = given.pop("_system_config", None)
    described = {meaning: given.pop(name, None) for name, meaning in _DESCRIPTIONS.items()}
    if system_config is not None and not isinstance(system_config, dict):
        raise TypeError(f"_system_config has to be a dict, is a {type(system_config).__name__}")
    if system_config:
        described["_system_config"] = system_config
    if given.pop("allow_multiple", None):
        raise RuntimeError("allow_multiple is for Ray Client, which is not supported")
    if given.pop("storage", None):
        raise RuntimeError("init(storage=) is gone, as in Ray since 2.48")
    unknown = sorted(set(given) - _WITHOUT_EFFECT)
    if unknown:
        raise RuntimeError(f"init() got unknown keyword arguments: {', '.join(unknown)}")
    return Hidden(temp_dir, described)


def check_isolation(enabled: bool, cgroup_path: Optional[str], cpu: Optional[float], memory: Optional[int]) -> None:
    """Resource isolation by control groups is not there."""
    given = {"cgroup_path": cgroup_path, "system_reserved_cpu": cpu, "system_reserved_memory": memory}
    needless = [name for name, value in given.items() if value is not None]
    if needless and not enabled:
        raise ValueError(f"{', '.join(needless)} can only be given with enable_resource_isolation=True")
    if enabled:
        raise NotImplementedError(
            "enable_resource_isolation is not supported: workers are not put into control groups of their own"
        )


def check_address(address: Optional[str]) -> None:
    """Whether it can be one that `init` takes."""
    if address is not None and not isinstance(address, str):
        raise TypeError(f"address has to be a string, is {address!r} of type {type(address).__name__}")
    if address in (None, "auto"):
        address = os.environ.get("RAY_ADDRESS")
    if address is not None and "://" in address:
        from ray_rust.client_builder import refuse

        refuse(address)


def check_namespace(namespace: Optional[str]) -> None:
    """Whether it can be one."""
    if namespace is not None and (not isinstance(namespace, str) or not namespace):
        raise ValueError(f"namespace has to be text that is not empty, is {namespace!r}")


def shows_logs(given: Optional[bool]) -> bool:
    """Whether what workers print is shown."""
    return os.environ.get("RAY_LOG_TO_DRIVER", "1").lower() in ("1", "true") if given is None else given


def job_of(given: Optional[JobConfig], logging_config: Optional[LoggingConfig]) -> JobConfig:
    """What is known of the job. Applies its logging to this process."""
    from ray_rust.job_config import JobConfig

    if given is not None and not isinstance(given, JobConfig):
        raise TypeError(f"job_config has to be a JobConfig, is a {type(given).__name__}")
    job = given if given is not None else JobConfig()
    structured = logging_config or job.py_logging_config or default_logging()
    if structured is not None:
        structured._apply()  # noqa: SLF001 - Ray's name
        job.set_py_logging_config(structured)
    return job


def default_logging() -> Optional[LoggingConfig]:
    """What the environment asks for."""
    encoding = os.environ.get("RAY_LOGGING_CONFIG_ENCODING")
    if not encoding:
        return None
    from ray_rust._private.ray_logging.logging_config import LoggingConfig

    return LoggingConfig(encoding=encoding)


def check_node_description(described: dict[str, Any]) -> None:
    from ray_rust._private import options

    options.check_init_amount("num_cpus", described.get("num_cpus"))
    options.check_init_amount("num_gpus", described.get("num_gpus"))
    if "resources" in described:
        options.check_resources("resources", described["resources"])
    for name in ("object_store_memory", "memory"):
        size = described.get(name)
        if size is not None and (isinstance(size, bool) or not isinstance(size, (int, float)) or size <= 0):
            raise ValueError(f"{name} has to be a positive number of bytes, is {size!r}")
        if size is not None:
            described[name] = int(size)
    labels = described.get("labels", {})
    if not isinstance(labels, dict) or not all(isinstance(text, str) for pair in labels.items() for text in pair):
        raise TypeError(f"labels has to be a dict of strings, is {labels!r}")


def runtime_env_of_job(given: Optional[dict[str, Any]]) -> Optional[Mapping[str, Any]]:
    """What was asked for by whoever may ask for it, checked."""
    runtime_env: Optional[Mapping[str, Any]] = given
    if "RAY_RUNTIME_ENV_HOOK" in os.environ or "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        from ray_rust._private.runtime_env.describe import of_job

        runtime_env = of_job(given)
    if runtime_env is not None:
        from ray_rust._private import options

        options.check_runtime_env("runtime_env", runtime_env)
    return runtime_env
