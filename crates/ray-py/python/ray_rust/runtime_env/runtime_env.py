"""The description of a runtime environment: a dict with known fields, checked when it is made."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, is_dataclass
from typing import Any, Callable, ClassVar, Optional, Union

from ray_rust._private.runtime_env import fields

__all__ = ["RuntimeEnv", "RuntimeEnvConfig"]

_SETUP_TIMEOUT_S = 600


class RuntimeEnvConfig(dict[str, Any]):
    """How an environment is set up; no part of what it is.

    `setup_timeout_seconds`: how long the set-up on a node may take, -1 for any time. `eager_install`: whether
    a job's environment is set up when the job starts. `log_files`: files of the workers' logs to show.
    """

    known_fields: ClassVar[set[str]] = {"setup_timeout_seconds", "eager_install", "log_files"}

    def __init__(
        self,
        setup_timeout_seconds: int = _SETUP_TIMEOUT_S,
        eager_install: bool = True,
        log_files: Optional[list[str]] = None,
    ) -> None:
        super().__init__()
        if isinstance(setup_timeout_seconds, bool) or not isinstance(setup_timeout_seconds, int):
            raise TypeError(
                f"setup_timeout_seconds has to be a whole number of seconds, is {setup_timeout_seconds!r} "
                f"of type {type(setup_timeout_seconds).__name__}"
            )
        if setup_timeout_seconds <= 0 and setup_timeout_seconds != -1:
            raise ValueError(
                f"setup_timeout_seconds has to be more than 0, or -1 for no limit, is {setup_timeout_seconds}"
            )
        if not isinstance(eager_install, bool):
            raise TypeError(f"eager_install has to be True or False, is {eager_install!r}")
        if log_files is not None and not isinstance(log_files, list):
            raise TypeError(f"log_files has to be a list of strings or None, is {log_files!r}")
        if not all(isinstance(name, str) for name in log_files or []):
            raise TypeError(f"each item of log_files has to be a string, got {log_files!r}")
        self["setup_timeout_seconds"] = setup_timeout_seconds
        self["eager_install"] = eager_install
        self["log_files"] = log_files if log_files is not None else []

    @staticmethod
    def parse_and_validate_runtime_env_config(config: Any) -> RuntimeEnvConfig:
        """The configuration in this dict. TypeError or ValueError naming what is wrong."""
        if isinstance(config, RuntimeEnvConfig):
            return config
        if not isinstance(config, dict):
            raise TypeError(
                f"runtime_env['config'] has to be a dict or a RuntimeEnvConfig, is a {type(config).__name__}"
            )
        unknown = sorted(set(config) - RuntimeEnvConfig.known_fields)
        if unknown:
            import logging

            logging.getLogger("ray_rust").warning(
                "runtime_env['config'] has fields that mean nothing and are ignored: %s (known: %s)",
                ", ".join(map(str, unknown)),
                ", ".join(sorted(RuntimeEnvConfig.known_fields)),
            )
        return RuntimeEnvConfig(**{name: value for name, value in config.items() if name not in unknown})

    @classmethod
    def default_config(cls) -> RuntimeEnvConfig:
        """The configuration that holds where none is given."""
        return cls()

    def to_dict(self) -> dict[str, Any]:
        """A plain copy."""
        return copy.deepcopy(dict(self))


class RuntimeEnv(dict[str, Any]):
    """What the processes of tasks and actors need beside the job's code; may be given wherever a dict may.

    `env_vars`: variables, in which `${NAME}` stands for the value in the worker. `working_dir`: folder or archive
    that becomes the workers' working directory, first on their module path. `py_modules`: folders,
    files, wheels or modules that they can import. `pip`, `uv`: packages, installed once on each node. `excludes`:
    patterns of files, as in .gitignore, that are not uploaded. `py_executable`: the interpreter to run
    workers with. `worker_process_setup_hook`: a function, or "module.function", that is called in each
    worker before the first task. `config`: see `RuntimeEnvConfig`.

    A task or actor has the environment of whoever asks for it; fields of its own replace those, and `env_vars`
    are added to them.
    """

    known_fields: ClassVar[set[str]] = set(fields.KNOWN)
    extensions_fields: ClassVar[set[str]] = {"_ray_release", "_ray_commit", "_inject_current_ray"}

    def __init__(
        self,
        *,
        py_modules: Optional[list[Any]] = None,
        py_executable: Optional[str] = None,
        working_dir: Optional[str] = None,
        pip: Any = None,
        conda: Union[dict[str, str], str, None] = None,
        container: Optional[dict[str, str]] = None,
        env_vars: Optional[dict[str, str]] = None,
        worker_process_setup_hook: Union[Callable[[], Any], str, None] = None,
        nsight: Union[str, dict[str, str], None] = None,
        rocprof_sys: Union[str, dict[str, dict[str, str]], None] = None,
        config: Union[dict[str, Any], RuntimeEnvConfig, None] = None,
        _validate: bool = True,
        image_uri: Optional[str] = None,
        uv: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        given = {
            "py_modules": py_modules,
            "py_executable": py_executable,
            "working_dir": working_dir,
            "pip": pip,
            "uv": uv,
            "conda": conda,
            "_nsight": nsight,
            "_rocprof_sys": rocprof_sys,
            "container": container,
            "env_vars": env_vars,
            "config": config,
            "worker_process_setup_hook": worker_process_setup_hook,
            "image_uri": image_uri,
        }
        given = {**kwargs, **{name: value for name, value in given.items() if value is not None}}
        if not _validate:
            self.update(given)
            return
        fields.check_together(given)
        for name, value in given.items():
            if value is not None:
                self[name] = value

    def __setitem__(self, key: str, value: Any) -> None:
        plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        checked = (
            RuntimeEnvConfig.parse_and_validate_runtime_env_config(plain)
            if key == "config"
            else fields.check(key, plain)
        )
        if checked is not None:
            super().__setitem__(key, checked)

    def set(self, name: str, value: Any) -> None:
        """As `self[name] = value`."""
        self[name] = value

    def get(self, name: str, default: Any = None, data_class: Any = None) -> Any:
        """The value of a field, as a `data_class` if one is given."""
        if name not in self:
            return default
        value = self[name]
        return value if data_class is None else data_class(**value)

    @classmethod
    def deserialize(cls, serialized_runtime_env: str) -> RuntimeEnv:
        """The environment that `serialize` wrote."""
        return cls(_validate=False, **json.loads(serialized_runtime_env))

    def serialize(self) -> str:
        """This as JSON."""
        return json.dumps(type(self)(**self), sort_keys=True)

    def to_dict(self) -> dict[str, Any]:
        """A plain copy."""
        return copy.deepcopy({name: dict(value) if name == "config" else value for name, value in self.items()})

    def __deepcopy__(self, memo: dict[int, Any]) -> RuntimeEnv:
        return type(self)(_validate=False, **{name: copy.deepcopy(value, memo) for name, value in self.items()})

    def __reduce__(self) -> tuple[Any, ...]:
        return (_unpickle, (type(self), dict(self)))

    # What Ray's libraries ask

    def has_working_dir(self) -> bool:
        """Whether it has a working directory."""
        return self.get("working_dir") is not None

    def working_dir_uri(self) -> Optional[str]:
        """The working directory."""
        uri: Optional[str] = self.get("working_dir")
        return uri

    def working_dir(self) -> str:
        """The working directory; empty if there is none."""
        return str(self.get("working_dir", ""))

    def py_modules(self) -> list[str]:
        """The modules."""
        return list(self.get("py_modules", []))

    def py_modules_uris(self) -> list[str]:
        """The modules."""
        return self.py_modules()

    def py_executable(self) -> Optional[str]:
        """The interpreter, unless it is the node's own."""
        executable: Optional[str] = self.get("py_executable")
        return executable

    def env_vars(self) -> dict[str, str]:
        """The variables."""
        return dict(self.get("env_vars", {}))

    def has_pip(self) -> bool:
        """Whether it has packages to install with pip."""
        return bool(self.get("pip"))

    def pip_config(self) -> dict[str, Any]:
        """What to install with pip, and how."""
        return dict(self.get("pip", {}))

    def has_uv(self) -> bool:
        """Whether it has packages to install with uv."""
        return bool(self.get("uv"))

    def uv_config(self) -> dict[str, Any]:
        """What to install with uv, and how."""
        return dict(self.get("uv", {}))

    def has_conda(self) -> bool:
        """Whether it names a conda environment."""
        return bool(self.get("conda"))

    def virtualenv_name(self) -> Optional[str]:
        """Always None: environments of pip have no names of their own."""
        return None

    def pip_uri(self) -> Optional[str]:
        """Names the packages of pip by their description."""
        return _uri_of("pip", self.get("pip"))

    def uv_uri(self) -> Optional[str]:
        """Names the packages of uv by their description."""
        return _uri_of("uv", self.get("uv"))

    def plugin_uris(self) -> list[str]:
        """Of fields that are not known here; there are none."""
        return []

    def get_extension(self, key: str) -> Optional[str]:
        """One of Ray's notes to itself."""
        if key not in self.extensions_fields:
            raise ValueError(f"an extension is one of {', '.join(sorted(self.extensions_fields))}, not {key!r}")
        value: Optional[str] = self.get(key)
        return value

    # Fields that can be described, and are refused when they are used

    def conda_env_name(self) -> Optional[str]:
        """The name of the conda environment, if it has one."""
        conda = self.get("conda")
        return conda if isinstance(conda, str) else None

    def conda_config(self) -> Optional[str]:
        """The description of the conda environment in JSON, if it has one."""
        conda = self.get("conda")
        return json.dumps(conda, sort_keys=True) if isinstance(conda, dict) else None

    def conda_uri(self) -> Optional[str]:
        """Names the conda environment by its description."""
        return _uri_of("conda", self.get("conda"))

    def java_jars(self) -> list[str]:
        """Archives for workers in Java."""
        return list(self.get("java_jars", []))

    def nsight(self) -> Union[str, dict[str, str], None]:
        """Options of a profiler."""
        options: Union[str, dict[str, str], None] = self.get("_nsight")
        return options

    def rocprof_sys(self) -> Union[str, dict[str, Any], None]:
        """Options of a profiler."""
        options: Union[str, dict[str, Any], None] = self.get("_rocprof_sys")
        return options

    def has_py_container(self) -> bool:
        """Whether it names a container."""
        return bool(self.get("container"))

    def py_container_image(self) -> Optional[str]:
        """The image of the container."""
        image: Optional[str] = self._of_container("image", "")
        return image

    def py_container_worker_path(self) -> Optional[str]:
        """The program of workers in the container."""
        path: Optional[str] = self._of_container("worker_path", "")
        return path

    def py_container_run_options(self) -> Optional[list[str]]:
        """Options to run the container with."""
        options: Optional[list[str]] = self._of_container("run_options", [])
        return options

    def _of_container(self, name: str, default: Any) -> Any:
        return self["container"].get(name, default) if self.has_py_container() else None

    def image_uri(self) -> Optional[str]:
        """The container image."""
        uri: Optional[str] = self.get("image_uri")
        return uri

    def plugins(self) -> list[tuple[str, Any]]:
        """Fields that are not known here; there are none."""
        return [(name, value) for name, value in self.items() if name not in self.known_fields]


def _uri_of(kind: str, asked: Any) -> Optional[str]:
    import hashlib

    if not asked:
        return None
    text = json.dumps(asked, sort_keys=True)
    return f"{kind}://{hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()}"


def _unpickle(cls: type[RuntimeEnv], values: dict[str, Any]) -> RuntimeEnv:
    return cls(_validate=False, **values)
