"""What a driver says of its job: `ray.job_config`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional, Union

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ray_rust._private.ray_logging.logging_config import LoggingConfig

__all__ = ["JobConfig"]

_LIFETIMES = ("detached", "non_detached")


class JobConfig:
    """Settings of a job, for `init(job_config=)`.

    `runtime_env` and `ray_namespace` count where `init` is not given its own. `default_actor_lifetime` is that
    of actors that are made without one. `code_search_path` and `_py_driver_sys_path` are folders that workers
    import from, before the driver's own. `metadata` is kept with the job. `jvm_options` has no effect: there are
    no workers in Java.
    """

    def __init__(
        self,
        jvm_options: Optional[list[str]] = None,
        code_search_path: Optional[list[str]] = None,
        runtime_env: Optional[dict[str, Any]] = None,
        _client_job: bool = False,
        metadata: Optional[dict[str, str]] = None,
        ray_namespace: Optional[str] = None,
        default_actor_lifetime: str = "non_detached",
        _disable_job_level_lineage_reconstruction: bool = False,
        _py_driver_sys_path: Optional[list[str]] = None,
    ) -> None:
        if code_search_path is not None and not isinstance(code_search_path, (list, tuple)):
            raise TypeError(f"code_search_path has to be a list of folders, is a {type(code_search_path).__name__}")
        self.jvm_options = jvm_options or []
        self.code_search_path = code_search_path or []
        self._client_job = _client_job
        self.metadata = metadata or {}
        self.ray_namespace = ray_namespace
        self.set_runtime_env(runtime_env)
        self.set_default_actor_lifetime(default_actor_lifetime)
        self._disable_job_level_lineage_reconstruction = _disable_job_level_lineage_reconstruction
        self._py_driver_sys_path = _py_driver_sys_path or []
        self.py_logging_config: Optional[LoggingConfig] = None

    def set_metadata(self, key: str, value: str) -> None:
        """Adds to what is kept with the job."""
        self.metadata[key] = value

    def set_runtime_env(self, runtime_env: Optional[Mapping[str, Any]], validate: bool = False) -> None:
        """What the job's processes run in; checked at once with `validate`, else by `init`."""
        if validate and runtime_env is not None:
            from ray_rust._private import options

            options.check_runtime_env("runtime_env", runtime_env)
        self.runtime_env: Mapping[str, Any] = runtime_env if runtime_env is not None else {}

    def set_py_logging_config(self, logging_config: Optional[LoggingConfig] = None) -> None:
        """How the job's processes log."""
        self.py_logging_config = logging_config

    def ensure_logging_config(self, logging_config: Optional[Union[dict[str, Any], LoggingConfig]] = None) -> None:
        """How the job's processes log, unless that is said already."""
        if logging_config is None or self.py_logging_config is not None:
            return
        if isinstance(logging_config, dict):
            from ray_rust._private.ray_logging.logging_config import LoggingConfig

            logging_config = LoggingConfig.from_dict(logging_config)
        self.set_py_logging_config(logging_config)

    def set_ray_namespace(self, ray_namespace: str) -> None:
        """Where names of the job's actors are looked up."""
        self.ray_namespace = ray_namespace

    def set_default_actor_lifetime(self, default_actor_lifetime: str) -> None:
        """Of actors that are made without one: "detached" or "non_detached"."""
        if default_actor_lifetime not in _LIFETIMES:
            raise ValueError(
                f"default_actor_lifetime has to be 'detached' or 'non_detached', is {default_actor_lifetime!r}"
            )
        self._default_actor_lifetime = default_actor_lifetime

    @classmethod
    def from_json(cls, job_config_json: Mapping[str, Any]) -> JobConfig:
        """From the form in which job submission passes it on."""
        return cls(
            jvm_options=job_config_json.get("jvm_options"),
            code_search_path=job_config_json.get("code_search_path"),
            runtime_env=job_config_json.get("runtime_env"),
            metadata=job_config_json.get("metadata"),
            ray_namespace=job_config_json.get("ray_namespace"),
            _client_job=job_config_json.get("client_job", False),
            default_actor_lifetime=job_config_json.get("default_actor_lifetime", "non_detached"),
            _py_driver_sys_path=job_config_json.get("py_driver_sys_path"),
        )

    def __repr__(self) -> str:
        shown: dict[str, Union[str, Mapping[str, Any], None]] = {
            "ray_namespace": self.ray_namespace,
            "runtime_env": self.runtime_env,
            "default_actor_lifetime": self._default_actor_lifetime,
            "metadata": self.metadata,
        }
        return f"JobConfig({', '.join(f'{name}={value!r}' for name, value in shown.items())})"
