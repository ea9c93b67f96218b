"""Sets one environment up on a node: fetches its packages, makes its interpreter.

Runs in a process of its own, forked for this; the node kills it, and what it has started, when its time is over
or nobody waits any more. What it makes is named by content and kept:

    <root>/packages/<name>/   an unpacked package
    <root>/venvs/<hash>/      a virtual environment
        content/              what it is
        complete              its size; absent as long as it is being made
    <root>/locks/             whoever makes one holds its lock

What came of it, or what it is doing, stands in the file `outcome` at any time:

    {"doing": {"step": text, "resources": [..]}}, {"failed": {"step": text, "reason": text, "resources": [..]}},
    {"ready": {"command": [..], "context": {..}, "resources": [{"path": .., "bytes": ..}]}}
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import sys
from typing import TYPE_CHECKING, Any, Callable, Optional

from ray_rust import _internal
from ray_rust._private.runtime_env import packages

if TYPE_CHECKING:
    from collections.abc import Iterator

_FORK_SERVER = "ray_rust._private.env_fork_server"
_LAST_LINES = 40
_REMOTE = ("http", "https", "file", "s3", "gs", "azure", "abfss")


def main(order: dict[str, Any]) -> None:
    """Sets up what the order describes."""
    _redirect_output(order["log"])
    step = _Step(order["outcome"])
    try:
        prepared = _Setup(order, step).run()
    except Exception as error:  # noqa: BLE001 - whatever it is, those who wait have to be told
        import traceback

        traceback.print_exc()
        step.write("failed", {"step": step.text, "reason": _reason(error)})
        return
    step.write("ready", prepared)


def is_read_at_start(variable: str) -> bool:
    """Whether a variable counts only if it is set before the interpreter starts."""
    return variable.startswith(("LD_", "PYTHON")) and variable != "PYTHONPATH"


class _SetupError(Exception):
    """Of which the text says all."""


def _reason(error: Exception) -> str:
    if isinstance(error, _SetupError):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}"
    return f"{type(error).__name__}: {error}"


def _redirect_output(log: str) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


class _Step:
    """What is being done, for those who ask when it takes too long."""

    def __init__(self, outcome: str) -> None:
        self._outcome = outcome
        self.text = ""
        # Size of what was made or found, by path.
        self.resources: dict[str, int] = {}
        os.makedirs(os.path.dirname(outcome), exist_ok=True)

    def begin(self, text: str) -> None:
        self.text = text
        print(f"{text} ...", flush=True)  # noqa: T201 - goes to the log
        self.write("doing", {"step": text})

    def write(self, kind: str, outcome: dict[str, Any]) -> None:
        resources = [{"path": path, "bytes": size} for path, size in self.resources.items()]
        part = f"{self._outcome}.part"
        with open(part, "w", encoding="utf-8") as file:
            json.dump({kind: {**outcome, "resources": resources}}, file)
        os.replace(part, self._outcome)


class _Setup:
    def __init__(self, order: dict[str, Any], step: _Step) -> None:
        self._fields: dict[str, Any] = json.loads(order["runtime_env"])
        self._root = order["root"]
        self._gcs_address = order["gcs_address"]
        self._step = step
        self._kv: Any = None

    def run(self) -> dict[str, Any]:
        context: dict[str, Any] = {}
        working_dir = self._fields.get("working_dir")
        if working_dir:
            context["working_dir"] = self._package(working_dir)
        modules = self._fields.get("py_modules")
        if modules:
            context["py_modules"] = [self._package(uri) for uri in modules]
        variables = self._variables(context.get("working_dir"))
        command = self._interpreter(context, variables)
        at_start = {name: text for name, text in variables.items() if is_read_at_start(name)}
        at_start = {name: text for name, text in at_start.items() if name in self._fields.get("env_vars", {})}
        if at_start and not command:
            command = [sys.executable, "-m", _FORK_SERVER]
        if at_start:
            command = [shutil.which("env") or "/usr/bin/env", *(f"{n}={t}" for n, t in at_start.items()), *command]
        return {"command": command, "context": context}

    def _variables(self, working_dir: Optional[str]) -> dict[str, str]:
        """The environment of installers."""
        variables = dict(os.environ)
        for name, text in self._fields.get("env_vars", {}).items():
            variables[name] = os.path.expandvars(text)
        if working_dir:
            # As in Ray: requirements may name files of the working directory by it.
            variables["RAY_RUNTIME_ENV_CREATE_WORKING_DIR"] = working_dir
        return variables

    def _interpreter(self, context: dict[str, Any], variables: dict[str, str]) -> list[str]:
        """How to start an interpreter that forks workers; empty if the node's own will do."""
        executable = self._fields.get("py_executable")
        if executable:
            context["own_interpreter"] = True
            return self._given_interpreter(executable)
        for name in ("pip", "uv"):
            asked = self._fields.get(name)
            if asked:
                venv = self._virtual_environment(name, asked, context.get("working_dir"), variables)
                context["own_interpreter"] = True
                context["venv"] = venv
                return [_python_of(venv), "-m", _FORK_SERVER]
        return []

    def _given_interpreter(self, executable: str) -> list[str]:
        import shlex

        command = shlex.split(os.path.expandvars(executable))
        self._step.begin(f"looking whether {executable} can run workers")
        _run([*command, "-c", "import ray_rust._private.env_fork_server"], dict(os.environ), "/")
        return [*command, "-m", _FORK_SERVER]

    # Packages

    def _package(self, uri: str) -> str:
        """The folder of a package, which is fetched and unpacked if it is not here yet."""
        protocol = uri.partition("://")[0].lower()
        if protocol == "local":
            folder = uri.partition("://")[2]
            self._step.begin(f"looking for {folder}")
            if not os.path.isdir(folder):
                raise _SetupError(f"there is no folder {folder} on this node")
            return folder
        name = hashlib.sha1(uri.encode(), usedforsecurity=False).hexdigest()
        return self._get_or_make("packages", name, lambda content: self._fetch(uri, protocol, content))

    def _fetch(self, uri: str, protocol: str, content: str) -> None:
        shown = uri.partition("?")[0]
        self._step.begin(f"fetching {shown}")
        file = os.path.join(os.path.dirname(content), os.path.basename(shown))
        if protocol == "gcs":
            if self._kv is None:
                self._kv = _internal.GcsKv(self._gcs_address)
            packages.download(self._kv, uri, file)
        elif protocol in _REMOTE:
            _download(uri, protocol, file)
        else:
            raise _SetupError(f"the protocol {protocol!r} is not known")
        self._step.begin(f"unpacking {shown}")
        if shown.endswith(".whl"):
            self._install_wheel(file, content)
        else:
            _unpack(file, content, strip=protocol in _REMOTE)
        os.unlink(file)

    def _install_wheel(self, wheel: str, content: str) -> None:
        self._step.begin(f"installing {os.path.basename(wheel)} with pip")
        pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-cache-dir"]
        _run([*pip, "--target", content, wheel], self._variables(None), "/")

    # Interpreters

    def _virtual_environment(
        self, installer: str, asked: dict[str, Any], working_dir: Optional[str], variables: dict[str, str]
    ) -> str:
        identity: dict[str, Any] = {installer: asked, "python": sys.version, "path": sys.path}
        if any("RAY_RUNTIME_ENV_CREATE_WORKING_DIR" in package for package in asked["packages"]):
            identity["working_dir"] = working_dir
        text = json.dumps(identity, sort_keys=True)
        name = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

        def make(content: str) -> None:
            self._make_virtual_environment(installer, asked, content, variables)

        return self._get_or_make("venvs", name, make)

    def _make_virtual_environment(
        self, installer: str, asked: dict[str, Any], content: str, variables: dict[str, str]
    ) -> None:
        import venv

        self._step.begin("making a virtual environment")
        venv.EnvBuilder(system_site_packages=True, symlinks=True).create(content)
        _inherit_packages(content)
        folder = os.path.dirname(content)
        requirements = os.path.join(folder, "requirements.txt")
        with open(requirements, "w", encoding="utf-8") as file:
            file.write("\n".join(asked["packages"]) + "\n")
        python = _python_of(content)
        variables = {**variables, "VIRTUAL_ENV": content}
        names = ", ".join(asked["packages"])
        install = self._pip if installer == "pip" else self._uv
        install(asked, names, python, requirements, variables)

    def _pip(
        self, asked: dict[str, Any], names: str, python: str, requirements: str, variables: dict[str, str]
    ) -> None:
        folder = os.path.dirname(requirements)
        pip = self._own_pip(python, asked.get("pip_version"), folder, variables)
        self._step.begin(f"installing {names} with pip")
        options = asked.get("pip_install_options", ["--disable-pip-version-check", "--no-cache-dir"])
        _run([*pip, "install", "-r", requirements, *options], variables, folder)
        if asked.get("pip_check"):
            self._step.begin(f"checking what was installed with {names} (pip check)")
            _run([*pip, "check", "--disable-pip-version-check"], variables, folder)

    def _own_pip(self, python: str, version: Optional[str], folder: str, variables: dict[str, str]) -> list[str]:
        import importlib.util

        pip = [python, "-m", "pip"]
        if importlib.util.find_spec("pip") is None:
            self._step.begin("installing pip")
            _run([python, "-m", "ensurepip", "--default-pip"], variables, folder)
        if version:
            self._step.begin(f"installing pip{version}")
            _run([*pip, "install", "--disable-pip-version-check", f"pip{version}"], variables, folder)
        return pip

    def _uv(self, asked: dict[str, Any], names: str, python: str, requirements: str, variables: dict[str, str]) -> None:
        folder = os.path.dirname(requirements)
        uv = self._own_uv(python, asked.get("uv_version"), folder, variables)
        self._step.begin(f"installing {names} with uv")
        options = asked.get("uv_pip_install_options", ["--no-cache"])
        _run([*uv, "pip", "install", "--python", python, "-r", requirements, *options], variables, folder)
        if asked.get("uv_check"):
            self._step.begin(f"checking what was installed with {names} (uv pip check)")
            _run([*uv, "pip", "check", "--python", python], variables, folder)

    def _own_uv(self, python: str, version: Optional[str], folder: str, variables: dict[str, str]) -> list[str]:
        import importlib.util

        if not version:
            if importlib.util.find_spec("uv") is not None:
                return [sys.executable, "-m", "uv"]
            found = shutil.which("uv", path=variables.get("PATH"))
            if found:
                return [found]
        pip = self._own_pip(python, None, folder, variables)
        self._step.begin(f"installing uv{version or ''} with pip")
        _run([*pip, "install", "--disable-pip-version-check", f"uv{version or ''}"], variables, folder)
        return [python, "-m", "uv"]

    # What is kept

    def _get_or_make(self, kind: str, name: str, make: Callable[[str], None]) -> str:
        """The content of this name; whoever comes first makes it, and the others wait."""
        folder = os.path.join(self._root, kind, name)
        content, complete = os.path.join(folder, "content"), os.path.join(folder, "complete")
        self._step.begin(f"waiting for another set-up that makes the same ({kind})")
        with _lock(os.path.join(self._root, "locks", f"{kind}-{name}")):
            if not os.path.exists(complete):
                # Left by a set-up that was killed.
                shutil.rmtree(folder, ignore_errors=True)
                os.makedirs(content)
                try:
                    make(content)
                    with open(complete, "w", encoding="utf-8") as file:
                        file.write(str(_size_of(folder)))
                except BaseException:
                    shutil.rmtree(folder, ignore_errors=True)
                    raise
            with open(complete, encoding="utf-8") as file:
                self._step.resources[folder] = int(file.read())
        return content


@contextlib.contextmanager
def _lock(path: str) -> Iterator[None]:
    import fcntl

    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _size_of(folder: str) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_blocks * 512
    return total


def _python_of(venv: str) -> str:
    return os.path.join(venv, "bin", "python")


def _inherit_packages(venv: str) -> None:
    """What the node's own interpreter can import can be imported there too, after what is installed there."""
    version = "python{}.{}".format(*sys.version_info[:2])
    site_packages = os.path.join(venv, "lib", version, "site-packages")
    standard = os.path.dirname(os.__file__)
    inherited = [
        entry
        for entry in sys.path
        if os.path.isdir(entry) and entry not in (standard, os.path.join(standard, "lib-dynload"))
    ]
    with open(os.path.join(site_packages, "ray_rust_inherited.pth"), "w", encoding="utf-8") as file:
        file.write("\n".join(inherited) + "\n")


def _run(command: list[str], variables: dict[str, str], folder: str) -> None:
    """Runs a command to its end; _SetupError with its last words if that is not a good one."""
    import collections
    import subprocess

    def die_with_parent() -> None:
        _internal.set_parent_death_signal(signal.SIGKILL)

    shown = " ".join(command)
    print(f"$ {shown}", flush=True)  # noqa: T201 - goes to the log
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=variables,
            cwd=folder,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - this process has one thread
        )
    except OSError as error:
        raise _SetupError(f"cannot run {shown}: {error.strerror}") from error
    last: collections.deque[str] = collections.deque(maxlen=_LAST_LINES)
    with process:
        for line in process.stdout or ():
            text = line.decode(errors="replace")
            sys.stdout.write(text)
            last.append(text)
    sys.stdout.flush()
    status = process.returncode
    if status != 0:
        ended = f"was killed by signal {-status}" if status < 0 else f"failed ({status})"
        raise _SetupError(f"{shown} {ended}; its last lines:\n{''.join(last).strip()}")


def _download(uri: str, protocol: str, target: str) -> None:
    if protocol in ("http", "https", "file"):
        import urllib.request

        with urllib.request.urlopen(uri) as source, open(target, "wb") as file:  # noqa: S310 - the user's own choice
            shutil.copyfileobj(source, file)
        return
    try:
        from smart_open import open as open_remote  # type: ignore[import-not-found]
    except ImportError as error:
        raise _SetupError(
            f"to fetch packages by {protocol}://, smart_open has to be installed on each node "
            "(pip install 'smart_open[all]')"
        ) from error
    with open_remote(uri, "rb") as source, open(target, "wb") as file:
        shutil.copyfileobj(source, file)


def _unpack(archive: str, content: str, *, strip: bool) -> None:
    """Unpacks an archive; with `strip`, without the folder that holds everything, if there is one."""
    import tarfile
    import zipfile

    if archive.endswith(".zip"):
        with zipfile.ZipFile(archive) as packed:
            for entry in packed.infolist():
                path = packed.extract(entry, content)
                mode = entry.external_attr >> 16
                if mode and not entry.is_dir():
                    os.chmod(path, mode & 0o777)
    else:
        with tarfile.open(archive) as packed_tar:
            if hasattr(tarfile, "data_filter"):
                packed_tar.extractall(content, filter="data")
            else:
                packed_tar.extractall(content)  # noqa: S202 - as far as this Python can
    shutil.rmtree(os.path.join(content, "__MACOSX"), ignore_errors=True)
    names = os.listdir(content)
    if strip and len(names) == 1 and os.path.isdir(os.path.join(content, names[0])):
        holder = os.path.join(os.path.dirname(content), "stripped")
        os.rename(os.path.join(content, names[0]), holder)
        os.rmdir(content)
        os.rename(holder, content)
