"""The environment of a worker, put in place before the job's code runs in it.

The node hands over its description, and what the set-up has made for it:

    {"working_dir": folder or null, "py_modules": [folders], "venv": folder or null}
"""

from __future__ import annotations

import json
import os
import re
import sys
from typing import Any

_VARIABLE = re.compile(r"\$\{[A-Za-z0-9_]+\}")
_INSTALLED = re.compile(r"(^|/)(lib|lib64)/python3(\.\d+)?(/|$)|(site|dist)-packages|/python3\d+\.zip$")


class Environment:
    """What one worker was made with."""

    def __init__(self, runtime_env: str, context: dict[str, Any]) -> None:
        self.text = runtime_env
        self._fields: dict[str, Any] = json.loads(runtime_env) if runtime_env else {}
        self._working_dir = context.get("working_dir")
        self._py_modules: list[str] = context.get("py_modules", [])
        self._venv = context.get("venv")
        self._own_interpreter = context.get("own_interpreter", False)

    def set_variables(self) -> None:
        """First of all: variables are read when modules are imported."""
        if self._venv:
            os.environ["VIRTUAL_ENV"] = self._venv
            os.environ["PATH"] = os.pathsep.join(
                [os.path.join(self._venv, "bin"), *filter(None, [os.environ.get("PATH")])]
            )
        for name, text in self._fields.get("env_vars", {}).items():
            # As in Ray: what is not set counts as empty.
            os.environ[name] = _VARIABLE.sub("", os.path.expandvars(text))
        folders = self._folders()
        if folders:
            # For the Python processes that tasks start.
            known = os.environ.get("PYTHONPATH")
            os.environ["PYTHONPATH"] = os.pathsep.join([*folders, *filter(None, [known])])
        if "PYTHONPATH" in self._fields.get("env_vars", {}) and not self._own_interpreter:
            sys.path[:0] = [entry for entry in os.environ["PYTHONPATH"].split(os.pathsep) if entry not in sys.path]

    def enter(self, driver_path: list[str], driver_dir: str) -> None:
        """Makes modules importable, and goes to the working directory."""
        own = self._folders()
        if self._own_interpreter:
            # What the driver has installed comes last: this interpreter was chosen for having something else.
            code = [entry for entry in driver_path if not _INSTALLED.search(entry)]
            installed = [entry for entry in driver_path if _INSTALLED.search(entry)]
            path = [*own, *code, *sys.path, *(installed if _same_python(installed) else [])]
        else:
            path = [*own, *driver_path, *sys.path]
        sys.path[:] = dict.fromkeys(path)
        try:
            os.chdir(self._working_dir or driver_dir)
        except OSError as error:
            if self._working_dir:
                raise
            print(f"the driver's working directory is not here: {error}", file=sys.stderr)  # noqa: T201

    def run_hook(self) -> None:
        """Calls the hook, if there is one."""
        hook = self._fields.get("worker_process_setup_hook")
        if not hook:
            return
        pickled = self._fields.get("_setup_hook")
        if pickled:
            import base64
            import pickle

            function = pickle.loads(base64.b64decode(pickled))
        else:
            from ray_rust._private.runtime_env.describe import load_named

            function = load_named(hook)
        function()

    def _folders(self) -> list[str]:
        return [*filter(None, [self._working_dir]), *self._py_modules]


def _same_python(installed: list[str]) -> bool:
    """Whether what is installed there is for a Python of this version."""
    version = "python{}.{}".format(*sys.version_info[:2])
    versions = {found.group() for entry in installed for found in [re.search(r"python3\.\d+", entry)] if found}
    return versions <= {version}
