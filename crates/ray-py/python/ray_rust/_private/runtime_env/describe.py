"""An environment as a node understands it: local files uploaded, what is inherited added, in JSON."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Optional

from ray_rust._private.runtime_env import fields

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ray_rust._internal import CoreWorker
    from ray_rust._private.runtime_env.packages import Uploader

# A hook travels with the environment's description, which is sent whenever workers are asked for.
_MAX_HOOK_BYTES = 128 << 10
_INSTALLERS = ("pip", "uv", "py_executable")


def describe(runtime_env: Mapping[str, Any], core: CoreWorker) -> str:
    """The description of this environment, with what this process hands on to whom it asks for.

    Uploads what is local. RuntimeEnvSetupError or ValueError if that cannot be.
    """
    return _describe(runtime_env, core.runtime_env, core)


def describe_for_job(runtime_env: Mapping[str, Any]) -> Optional[str]:
    """The description of a job's environment, before there is a connection; None if one is needed."""
    if runtime_env.get("working_dir") or runtime_env.get("py_modules"):
        return None
    return _describe(runtime_env, "", None)


def _describe(runtime_env: Mapping[str, Any], inherited: str, core: Optional[CoreWorker]) -> str:
    from ray_rust.runtime_env import RuntimeEnv

    checked = RuntimeEnv(**runtime_env)
    fields.refuse_unsupported(checked)
    own = {name: value for name, value in checked.items() if not name.startswith("_")}
    excludes = own.pop("excludes", [])
    if core is not None:
        _upload(own, excludes, core)
    _export_hook(own)
    merged = merge(json.loads(inherited) if inherited else {}, own)
    return json.dumps(merged, sort_keys=True) if merged else ""


def merge(parent: Mapping[str, Any], child: Mapping[str, Any]) -> dict[str, Any]:
    """The child's fields over the parent's; variables are merged one by one."""
    merged = {**parent, **child}
    if any(name in child for name in _INSTALLERS):
        # It has one interpreter, the child's.
        for name in _INSTALLERS:
            if name not in child:
                merged.pop(name, None)
    if "worker_process_setup_hook" in child and "_setup_hook" not in child:
        merged.pop("_setup_hook", None)
    env_vars = {**parent.get("env_vars", {}), **child.get("env_vars", {})}
    if env_vars:
        merged["env_vars"] = env_vars
    return merged


def _upload(runtime_env: dict[str, Any], excludes: list[str], core: CoreWorker) -> None:
    working_dir: Optional[str] = runtime_env.get("working_dir")
    modules = [_path_of(module) for module in runtime_env.get("py_modules", [])]
    if modules:
        runtime_env["py_modules"] = modules
    if working_dir is None and not modules:
        return
    from ray_rust._private.runtime_env.packages import PREFIX, Uploader, default_excludes

    uploader = Uploader(core)
    for uri in filter(fields.is_uri, [*filter(None, [working_dir]), *modules]):
        if uri.startswith(PREFIX):
            uploader.note_use(uri)
    if working_dir is not None and not fields.is_uri(working_dir):
        if os.path.isdir(working_dir):
            runtime_env["working_dir"] = uploader.folder(working_dir, default_excludes() + excludes)
        else:
            runtime_env["working_dir"] = uploader.file(working_dir)
    if modules:
        runtime_env["py_modules"] = [
            path if fields.is_uri(path) else _upload_module(uploader, path, excludes) for path in modules
        ]


def _upload_module(uploader: Uploader, path: str, excludes: list[str]) -> str:
    if os.path.isdir(path):
        top = os.path.basename(os.path.abspath(path))
        return uploader.folder(path, ["__pycache__", *excludes], top)
    return uploader.module_file(path) if path.endswith(".py") else uploader.file(path)


def _path_of(module: Any) -> str:
    import types

    if not isinstance(module, types.ModuleType):
        return str(os.fspath(module))
    paths = list(getattr(module, "__path__", []))
    if len(paths) > 1:
        raise ValueError(
            f"py_modules of runtime_env: the package {module.__name__} lies in several folders "
            f"({', '.join(paths)}); give their paths"
        )
    path = paths[0] if paths else module.__file__
    if path is None:
        raise ValueError(f"py_modules of runtime_env: the module {module.__name__} has no file")
    return str(path)


def _export_hook(runtime_env: dict[str, Any]) -> None:
    hook = runtime_env.get("worker_process_setup_hook")
    if hook is None or isinstance(hook, str):
        return
    import base64

    from ray_rust._private.serialization import dumps_function

    name = getattr(hook, "__name__", type(hook).__name__)
    pickled, captured = dumps_function(hook, f"the setup hook {name!r}")
    if captured:
        raise ValueError(f"the setup hook {name!r} cannot refer to objects of the cluster (ObjectRef)")
    if len(pickled) > _MAX_HOOK_BYTES:
        raise ValueError(
            f"the setup hook {name!r} has {len(pickled)} bytes when it is pickled, more than {_MAX_HOOK_BYTES}: "
            "what it refers to travels with it"
        )
    runtime_env["worker_process_setup_hook"] = name
    runtime_env["_setup_hook"] = base64.b64encode(pickled).decode()


def of_job(given: Optional[Mapping[str, Any]]) -> Optional[Mapping[str, Any]]:
    """What a job asks for: `init`'s environment, that of whoever submitted the job, and what a hook makes of both."""
    injected = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR")
    runtime_env = given
    if injected:
        submitted = json.loads(injected).get("runtime_env") or {}
        runtime_env = _merge_with_submitted(submitted, given or {})
    hook = os.environ.get("RAY_RUNTIME_ENV_HOOK")
    if hook:
        runtime_env = load_named(hook)(dict(runtime_env) if runtime_env is not None else None)
    return runtime_env


def _merge_with_submitted(submitted: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    if os.environ.get("RAY_OVERRIDE_JOB_RUNTIME_ENV") != "1":
        variables = set(submitted.get("env_vars") or {}) & set(given.get("env_vars") or {})
        both = {*((set(submitted) & set(given)) - {"env_vars"}), *variables}
        if both:
            raise ValueError(
                f"the runtime_env of init() and that of the submitted job both set {', '.join(sorted(both))}; with "
                "RAY_OVERRIDE_JOB_RUNTIME_ENV=1 that of init() counts"
            )
    return merge(submitted, given)


def load_named(name: str) -> Any:
    """The object that "module.name" names."""
    import importlib

    module, _, attribute = name.rpartition(".")
    if not module:
        raise ValueError(f"{name!r} does not name a function: it has to be 'module.function'")
    return getattr(importlib.import_module(module), attribute)
