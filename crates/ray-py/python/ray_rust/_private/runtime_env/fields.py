"""What may be in a runtime environment. Types that do not fit give TypeError, values ValueError, as in Ray."""

from __future__ import annotations

import os
from typing import Any, Callable, Optional

# In the order in which errors list them.
PUBLIC = (
    "working_dir",
    "py_modules",
    "excludes",
    "pip",
    "uv",
    "py_executable",
    "env_vars",
    "worker_process_setup_hook",
    "config",
)

_NO_CONDA = (
    "environments of conda are not made by this system; install with 'pip' or 'uv', or name the interpreter of an "
    "existing one by 'py_executable'"
)
_NO_CONTAINER = "workers are forked from a process of the node and cannot be moved into a container"
_NO_PROFILER = "workers are forked, not started, and cannot be started under a profiler"
# Fields that Ray has and this system refuses, with the reason.
REFUSED = {
    "conda": _NO_CONDA,
    "container": _NO_CONTAINER,
    "image_uri": _NO_CONTAINER,
    "_nsight": _NO_PROFILER,
    "nsight": _NO_PROFILER,
    "_rocprof_sys": _NO_PROFILER,
    "rocprof_sys": _NO_PROFILER,
    "java_jars": "there are no workers in Java",
    "mpi": "tasks across processes of MPI are not supported",
}
# Notes of Ray to itself, and the pickled form of a hook.
_PRIVATE = ("_ray_release", "_ray_commit", "_inject_current_ray", "_setup_hook")
KNOWN = (*PUBLIC, *REFUSED, *_PRIVATE)

WORKING_DIR_EXTENSIONS = (".zip", ".tar.gz", ".tgz", ".tar.xz")
PY_MODULES_EXTENSIONS = (".zip", ".whl", ".tar.gz", ".tgz", ".tar.xz")
# Where packages may come from. Of the last ones Ray fetches with libraries that have to be installed.
PROTOCOLS = ("gcs", "http", "https", "file", "local", "s3", "gs", "azure", "abfss")


def check(name: str, value: Any) -> Any:
    """The value in its full form, or None if it is as if it was not given."""
    if name not in KNOWN:
        raise ValueError(f"runtime_env has a field {name!r}, which is not known; the fields are {', '.join(PUBLIC)}")
    return _CHECKS.get(name, _as_is)(value) if value is not None else None


def check_together(given: dict[str, Any]) -> None:
    """Refuses fields that cannot stand beside each other."""
    installers = [name for name in ("pip", "uv", "conda") if given.get(name) is not None]
    if len(installers) > 1:
        raise ValueError(
            f"runtime_env can have one of 'pip', 'uv' and 'conda', not several at the same time; given are "
            f"{', '.join(f'{name}={given[name]!r}' for name in installers)}"
        )
    if installers and given.get("py_executable") is not None:
        raise ValueError(
            f"runtime_env can have 'py_executable' or {installers[0]!r}, not both: the packages are installed for an "
            "interpreter of their own"
        )
    for name in ("container", "image_uri"):
        others = sorted(set(given) - {name, "config", "env_vars"})
        if given.get(name) and others:
            raise ValueError(f"the field {name!r} of runtime_env cannot be used together with {', '.join(others)}")


def refuse_unsupported(runtime_env: dict[str, Any]) -> None:
    """Says what of an environment that is to be used cannot be had here."""
    for name, reason in REFUSED.items():
        if runtime_env.get(name):
            raise NotImplementedError(f"runtime_env[{name.lstrip('_')!r}] is not supported: {reason}")


def is_uri(text: str) -> bool:
    """Whether this names a package somewhere else, rather than a local file."""
    return "://" in text


def protocol_of(uri: str) -> str:
    """Such as "https"; ValueError for one that means nothing."""
    protocol = uri.partition("://")[0].lower()
    if protocol not in PROTOCOLS:
        raise ValueError(
            f"{uri!r} in runtime_env has the protocol {protocol!r}, which is not known; the protocols are "
            f"{', '.join(PROTOCOLS)}"
        )
    return protocol


def check_uri(field: str, uri: str, extensions: tuple[str, ...]) -> None:
    """Refuses a URI that does not name a package for this field."""
    if protocol_of(uri) == "local":
        if not uri.partition("://")[2].startswith("/"):
            raise ValueError(f"{uri!r} in runtime_env has to name an absolute path, as local:///path/on/each/node")
        return
    shown = uri.partition("?")[0]
    if not shown.endswith(extensions):
        raise ValueError(f"{field} of runtime_env takes URIs of {', '.join(extensions)} files only, not {shown}")


def _as_is(value: Any) -> Any:
    return value


def _check_working_dir(value: Any) -> str:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        raise TypeError(f"working_dir of runtime_env has to be a string, is a {type(value).__name__}")
    if is_uri(value):
        check_uri("working_dir", value, WORKING_DIR_EXTENSIONS)
    elif not os.path.exists(value):
        raise ValueError(f"working_dir of runtime_env: there is no folder or file {os.path.abspath(value)}")
    elif not os.path.isdir(value) and not value.endswith(WORKING_DIR_EXTENSIONS):
        raise ValueError(
            f"working_dir of runtime_env has to be a folder or a file of {', '.join(WORKING_DIR_EXTENSIONS)}, "
            f"is {value!r}"
        )
    return value


def _check_py_modules(value: Any) -> list[Any]:
    import types

    if not isinstance(value, list):
        raise TypeError(f"py_modules of runtime_env has to be a list, is a {type(value).__name__}")
    for module in value:
        if isinstance(module, types.ModuleType):
            continue
        path = os.fspath(module) if isinstance(module, os.PathLike) else module
        if not isinstance(path, str):
            raise TypeError(
                f"py_modules of runtime_env has to be a list of paths, URIs or modules, "
                f"but has a {type(module).__name__}"
            )
        if is_uri(path):
            check_uri("py_modules", path, PY_MODULES_EXTENSIONS)
        elif not os.path.exists(path):
            raise ValueError(f"py_modules of runtime_env: there is no folder or file {os.path.abspath(path)}")
        elif not os.path.isdir(path) and not path.endswith((".py", *PY_MODULES_EXTENSIONS)):
            raise ValueError(
                f"py_modules of runtime_env has to have folders or files of .py, "
                f"{', '.join(PY_MODULES_EXTENSIONS)}; got {path!r}"
            )
    return value


def _check_excludes(value: Any) -> Optional[list[str]]:
    if not isinstance(value, list) or not all(isinstance(pattern, str) for pattern in value):
        raise TypeError(f"excludes of runtime_env has to be a list of strings, is {value!r}")
    return value or None


def _check_env_vars(value: Any) -> Optional[dict[str, str]]:
    if not isinstance(value, dict):
        raise TypeError(f"env_vars of runtime_env has to be a dict of strings, is a {type(value).__name__}")
    for name, text in value.items():
        if not isinstance(name, str):
            raise TypeError(
                f"env_vars of runtime_env has to be a dict of strings, but the key {name!r} is a {type(name).__name__}"
            )
        if not isinstance(text, str):
            raise TypeError(
                f"env_vars of runtime_env has to be a dict of strings, but the value of {name!r} is {text!r} of type "
                f"{type(text).__name__}"
            )
        if not name or "=" in name or "\0" in name + text:
            raise ValueError(f"env_vars of runtime_env: {name!r}={text!r} cannot be set as a variable")
    return dict(value) or None


def _check_py_executable(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"py_executable of runtime_env has to be a string, is a {type(value).__name__}")
    if not value.strip():
        raise ValueError("py_executable of runtime_env cannot be empty")
    return value


def _check_hook(value: Any) -> Any:
    if not isinstance(value, str) and not callable(value):
        raise TypeError(
            f"worker_process_setup_hook of runtime_env has to be a function or 'module.function', is {value!r} of "
            f"type {type(value).__name__}"
        )
    if isinstance(value, str) and "." not in value.strip("."):
        raise ValueError(
            f"worker_process_setup_hook of runtime_env names a function as 'module.function', not as {value!r}"
        )
    return value


_PIP_FIELDS: dict[str, Any] = {
    "packages": (list, str),
    "pip_check": bool,
    "pip_install_options": list,
    "pip_version": str,
}
_UV_FIELDS: dict[str, Any] = {
    "packages": (list,),
    "uv_check": bool,
    "uv_pip_install_options": list,
    "uv_version": str,
}


def _installer(name: str, known: dict[str, Any]) -> Callable[[Any], Optional[dict[str, Any]]]:
    def check_installer(value: Any) -> Optional[dict[str, Any]]:
        if isinstance(value, (str, list)):
            value = {"packages": value}
        else:
            _check_installer_fields(f"runtime_env[{name!r}]", value, known)
        checked: dict[str, Any] = {**value, "packages": _requirements_in(value["packages"])}
        checked.setdefault(f"{name}_check", False)
        for field, items in checked.items():
            if isinstance(items, list) and not all(isinstance(item, str) for item in items):
                raise TypeError(f"runtime_env[{name!r}][{field!r}] has to be a list of strings, is {items!r}")
        # The order may matter to the installer; what is there twice does not.
        checked["packages"] = list(dict.fromkeys(checked["packages"]))
        return checked if checked["packages"] else None

    return check_installer


def _check_installer_fields(what: str, value: Any, known: dict[str, Any]) -> None:
    if not isinstance(value, dict):
        raise TypeError(
            f"{what} has to be a list of packages, the path of a requirements file, or a dict, "
            f"is a {type(value).__name__}"
        )
    unknown = sorted(set(value) - set(known))
    if unknown:
        raise ValueError(f"{what} can only have the fields {', '.join(known)}, but has {', '.join(unknown)}")
    if "packages" not in value:
        raise ValueError(f"{what} has to have the field 'packages', but is {value!r}")
    for field, kind in known.items():
        if field in value and not isinstance(value[field], kind):
            error = ValueError if field == "packages" else TypeError
            raise error(f"{what}[{field!r}] cannot be a {type(value[field]).__name__}")


def _requirements_in(path: Any) -> list[str]:
    """The packages that a file lists; a list is one already."""
    if not isinstance(path, str):
        return list(path)
    if not os.path.isfile(path):
        raise ValueError(f"{path!r} in runtime_env is not a requirements file: there is no such file")
    with open(path, encoding="utf-8") as file:
        return file.read().strip().split("\n")


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "working_dir": _check_working_dir,
    "py_modules": _check_py_modules,
    "excludes": _check_excludes,
    "pip": _installer("pip", _PIP_FIELDS),
    "uv": _installer("uv", _UV_FIELDS),
    "py_executable": _check_py_executable,
    "env_vars": _check_env_vars,
    "worker_process_setup_hook": _check_hook,
}
