"""Starting a node's daemon, and finding those that run.

A daemon keeps a session folder `<temp_dir>/session_*` with a `node.json` that says how to reach it, and
holds a lock on the file `lock` there while it lives. So whoever looks knows the living from the dead
without asking anyone. The daemon of a head that was started by hand writes the same to
`<temp_dir>/ray_current_cluster`, which advertises it; clusters that belong to a driver are not advertised.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from typing import IO, TYPE_CHECKING, Any, Optional

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

ADVERTISEMENT = "ray_current_cluster"
_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 5.0
_TAIL_BYTES = 4000


def temp_dir(given: Optional[str] = None) -> str:
    """Where sessions are kept: as given, else `RAY_RUST_TMPDIR`, else /tmp/ray_rust."""
    return os.path.abspath(given or os.environ.get("RAY_RUST_TMPDIR") or "/tmp/ray_rust")  # noqa: S108


class NodeInfo:
    """What a daemon says of itself in `node.json`."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.fields = fields
        self.gcs_address: str = fields["gcs_address"]
        self.is_head: bool = fields.get("node_address") == fields["gcs_address"]
        self.socket_path: str = fields["socket_path"]
        self.session_dir: str = fields["session_dir"]
        self.node_id: str = fields["node_id"]
        self.pid: int = fields["pid"]
        # Whether it ends with the driver that started it.
        self.owned_by_driver: bool = fields["owned_by_driver"]


# Nodes that run


def living_nodes(directory: str) -> Iterator[NodeInfo]:
    """The nodes of this machine whose daemons live, newest first."""
    try:
        names = sorted((name for name in os.listdir(directory) if name.startswith("session_")), reverse=True)
    except OSError:
        return
    for name in names:
        session = os.path.join(directory, name)
        if not _is_locked(os.path.join(session, "lock")):
            continue
        try:
            with open(os.path.join(session, "node.json"), encoding="utf-8") as file:
                yield NodeInfo(json.load(file))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not ready yet, or just gone


def find_node(directory: str, gcs_address: str) -> Optional[NodeInfo]:
    """A living node of this machine that belongs to the cluster of this address: the head if it is here."""
    members = [node for node in living_nodes(directory) if node.gcs_address == gcs_address]
    # The head's services and the control plane share a port. Of the others, the one that was started first.
    return next((node for node in members if node.is_head), members[-1] if members else None)


def is_alive(node: NodeInfo) -> bool:
    """Whether its daemon still lives."""
    return _is_locked(os.path.join(node.session_dir, "lock"))


def _is_locked(path: str) -> bool:
    import fcntl

    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
    return False


def advertised_node(directory: str) -> Optional[NodeInfo]:
    """A living node of the advertised cluster."""
    try:
        with open(os.path.join(directory, ADVERTISEMENT), encoding="utf-8") as file:
            address = json.load(file)["gcs_address"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return find_node(directory, address)


# A daemon of our own


def node_config(
    directory: str,
    *,
    gcs_address: Optional[str] = None,
    port: Optional[int] = None,
    owner_pid: Optional[int] = None,
    announce: Optional[bool] = None,
    num_cpus: Optional[float] = None,
    num_gpus: Optional[float] = None,
    resources: Optional[dict[str, float]] = None,
    labels: Optional[dict[str, str]] = None,
    object_store_memory: Optional[int] = None,
    memory: Optional[int] = None,
    spill_directory: Optional[str] = None,
) -> dict[str, Any]:
    """The configuration of a daemon; what is None is left to the settings of the machine.

    Without `gcs_address` the node is the head of a new cluster. With `owner_pid` it ends with that process,
    however that ends. With `announce` drivers of this machine that name no cluster join it.
    """
    raylet = {
        "num_cpus": num_cpus,
        "num_gpus": num_gpus,
        "memory_bytes": memory,
        "resources": resources,
        "labels": labels,
    }
    object_store = {"capacity_bytes": object_store_memory, "spill_directory": spill_directory}
    node = {"temp_dir": directory, "gcs_address": gcs_address, "port": port, "owner_pid": owner_pid}
    node["announce"] = announce
    sections = {"raylet": _given(raylet), "object_store": _given(object_store)}
    return {**_given(node), "config": {name: section for name, section in sections.items() if section}}


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


class NodeProcess:
    """A daemon that this process started."""

    def __init__(self, process: subprocess.Popen[bytes], info: NodeInfo) -> None:
        self._process = process
        self.info = info
        # It was told to end by a call here.
        self.was_ended = False

    def is_running(self) -> bool:
        """Whether the daemon has not ended yet."""
        return self._process.poll() is None

    def kill(self) -> None:
        """Kills the daemon, and everything below it with it; returns when it is gone."""
        self.was_ended = True
        self._process.kill()
        self._process.wait()

    def terminate(self) -> None:
        """Tells the daemon to end; returns when it is gone."""
        self.was_ended = True
        self._process.terminate()
        self.wait()

    def wait(self, timeout: float = _STOP_TIMEOUT_S) -> None:
        """Returns once the daemon has ended; kills it when the time (seconds) is over."""
        import subprocess

        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            # Everything below it ends with it: each process asked the kernel for that.
            self._process.kill()
            self._process.wait()

    def wait_for_ever(self) -> int:
        """The exit status, once it has one."""
        return self._process.wait()


def start_node(
    config: dict[str, Any],
    timeout: float = _START_TIMEOUT_S,
    meanwhile: Callable[[], None] = lambda: None,
    env_vars: Optional[dict[str, str]] = None,
) -> NodeProcess:
    """Starts a daemon and waits until it is ready, after a call of `meanwhile`.

    It has this process's environment, changed by `env_vars`. RuntimeError with its last words if it fails.
    """
    import subprocess
    import tempfile

    os.makedirs(config["temp_dir"], exist_ok=True)
    ready, ready_writer = os.pipe()
    with tempfile.TemporaryFile() as output, os.fdopen(ready, "rb", buffering=0) as ready_pipe:
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "ray_rust._private.node_main", json.dumps(config), str(ready_writer)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # `-m` searches the working directory first: not the user's, whose files may have any name.
                cwd="/",
                env={**_environment(), **(env_vars or {})},
                pass_fds=(ready_writer,),
                # Ctrl-C in the terminal is for the driver, which then ends the daemon.
                start_new_session=True,
            )
        finally:
            os.close(ready_writer)
        try:
            meanwhile()
            text = _read_to_end(ready_pipe, time.monotonic() + timeout)
            return NodeProcess(process, NodeInfo(json.loads(text)))
        except (TimeoutError, ValueError, KeyError) as error:
            raise RuntimeError(_explain(error, _end(process), timeout, output)) from None
        except BaseException:  # such as Ctrl-C
            process.kill()
            process.wait()
            raise


def _environment() -> dict[str, str]:
    """This process's, in which the daemon finds this package as this process did."""
    import site

    environment = dict(os.environ)
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if root not in [*site.getsitepackages(), site.getusersitepackages()]:
        known = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = known + os.pathsep + root if known else root
    return environment


def _read_to_end(pipe: IO[bytes], deadline: float) -> bytes:
    """What the daemon writes; it closes its end when all is said."""
    import select

    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    text = b""
    while True:
        remaining = deadline - time.monotonic()
        if remaining <= 0 or not poll.poll(remaining * 1000):
            raise TimeoutError
        part = pipe.read(65536)
        if not part:
            return text
        text += part


def _end(process: subprocess.Popen[bytes]) -> Optional[int]:
    """The exit status of a process that ended by itself; else kills it."""
    import subprocess

    try:
        # Its end of the pipe closes a moment before the process is gone.
        return process.wait(0.5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None


def _explain(error: Exception, status: Optional[int], timeout: float, output: IO[bytes]) -> str:
    if status is not None and status < 0:
        what = f"was killed by signal {-status} before it was ready"
    elif status is not None:
        what = f"ended with exit status {status} before it was ready"
    elif isinstance(error, TimeoutError):
        what = f"was not ready within {timeout:g} s"
    else:
        what = f"did not say how to reach it ({error!r})"
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - _TAIL_BYTES))
    tail = output.read().decode(errors="replace").strip()
    return f"the node daemon {what}" + (f"; its last words:\n{tail}" if tail else " and said nothing")
