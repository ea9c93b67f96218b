"""Makes workers: a process that has imported what they need, and forks.

Forking takes milliseconds where starting Python takes tenths of a second. It works only as long as
this process has a single thread, so it imports nothing that starts one, and waits in one place for
both its orders and the ends of its children.

    node -> here   {"fork": {"worker_id": hex, "socket": path, "stdout": path, "stderr": path, "env": {name: text},
                             "runtime_env": text, "context": {}}}    (the last two: if it has one)
                   {"setup": {"runtime_env_id": hex, "runtime_env": text, "outcome": path, ...}}
    here -> node   {"forked": {"worker_id": hex, "pid": pid}}
                   {"setup_started": {"runtime_env_id": hex, "pid": pid}}
                   {"setup_failed": {"runtime_env_id": hex, "reason": text}}    (there is no process)
                   {"exited": {"pid": pid, "code": code or null, "signal": number or null}}

One message per line, in JSON. When the node closes the connection, the workers are killed.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import sys
from typing import TYPE_CHECKING, Any, Callable, Optional

from ray_rust import _internal

if TYPE_CHECKING:
    import socket
    from types import FrameType

_READ_BYTES = 65536
_IMPORT_AFTER_MS = 500


def serve(connection: socket.socket) -> None:
    """Takes orders until the connection ends. In a worker it does not return."""
    parent = os.getppid()
    _internal.set_parent_death_signal(signal.SIGKILL)
    if os.getppid() != parent:  # the daemon ended before the kernel was told
        return
    _preimport()
    # What is here now stays for ever: collections in workers neither visit nor copy it.
    gc.collect()
    gc.freeze()
    _ForkServer(connection).run()


def _preimport() -> None:
    """What every worker needs, and nothing that starts a thread."""
    import faulthandler  # noqa: F401
    import inspect  # noqa: F401
    import logging  # noqa: F401
    import pickle  # noqa: F401
    import traceback  # noqa: F401

    import cloudpickle  # noqa: F401

    import ray_rust  # noqa: F401
    from ray_rust._private import default_worker, serialization, signature  # noqa: F401


def _preimport_more() -> None:
    """What many workers need, but takes too long for the first ones to wait for."""
    import asyncio  # noqa: F401

    gc.collect()
    gc.freeze()


class _ForkServer:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._input = b""
        self._children: set[int] = set()
        # When to import what is not urgent, in milliseconds from the last event; None if that is done.
        self._import_after: Optional[int] = _IMPORT_AFTER_MS
        # A child's end writes a byte here, which ends the wait.
        self._wakeup, self._wakeup_writer = os.pipe()
        os.set_blocking(self._wakeup, False)
        os.set_blocking(self._wakeup_writer, False)
        signal.signal(signal.SIGCHLD, _on_signal)
        # The daemon ends us by closing the connection; a signal sent to its group is for it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.set_wakeup_fd(self._wakeup_writer, warn_on_full_buffer=False)

    def run(self) -> None:
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        poll.register(self._wakeup, select.POLLIN)
        try:
            connected = True
            while connected:
                ready = poll.poll(self._import_after)
                if not ready and self._import_after is not None:
                    self._import_after = None
                    _preimport_more()
                for descriptor, _ in ready:
                    if descriptor == self._wakeup:
                        self._drain_wakeup()
                    else:
                        connected = self._read()
                self._reap()
        except (BrokenPipeError, ConnectionResetError):
            pass  # the daemon is gone
        finally:
            self._kill_all()

    def _drain_wakeup(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wakeup, 4096):
                pass

    def _read(self) -> bool:
        """Whether the connection is still there."""
        received = self._connection.recv(_READ_BYTES)
        if not received:
            return False
        *lines, self._input = (self._input + received).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "fork" in message:
                self._fork(message["fork"])
            else:
                self._set_up(message["setup"])
        return True

    def _fork(self, order: dict[str, Any]) -> None:
        pid = self._fork_child(lambda: _work(order))
        if pid is not None:
            self._send({"forked": {"worker_id": order["worker_id"], "pid": pid}})

    def _set_up(self, order: dict[str, Any]) -> None:
        pid = self._fork_child(lambda: _set_up(order))
        if pid is None:
            reason = "no process could be made for it: there are too many, or no memory is left"
            self._send({"setup_failed": {"runtime_env_id": order["runtime_env_id"], "reason": reason}})
        else:
            with contextlib.suppress(OSError):  # it does the same, and one of both comes first
                os.setpgid(pid, pid)
            self._send({"setup_started": {"runtime_env_id": order["runtime_env_id"], "pid": pid}})

    def _fork_child(self, program: Callable[[], int]) -> Optional[int]:
        """The process that runs the program; None if there is none."""
        server = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            # The node notices that the process does not report, and tries again later.
            print(f"cannot fork: {error}", file=sys.stderr, flush=True)  # noqa: T201 - goes to the log
            return None
        if pid == 0:
            self._become(program, server)
        self._children.add(pid)
        return pid

    def _become(self, program: Callable[[], int], server: int) -> None:
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            _internal.set_parent_death_signal(signal.SIGKILL)
            if os.getppid() == server:
                self._connection.close()
                os.close(self._wakeup)
                os.close(self._wakeup_writer)
                status = program()
        except BaseException:  # noqa: BLE001 - also SystemExit must not lead back into the server's loop
            import traceback

            traceback.print_exc()
        finally:
            _flush_streams()
            os._exit(status)

    def _reap(self) -> None:
        while self._children:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._children.discard(pid)
            code, killed_by = _ending(status)
            self._send({"exited": {"pid": pid, "code": code, "signal": killed_by}})

    def _send(self, message: dict[str, Any]) -> None:
        self._connection.sendall(json.dumps(message).encode() + b"\n")

    def _kill_all(self) -> None:
        for pid in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _work(order: dict[str, Any]) -> int:
    from ray_rust._private import default_worker

    return default_worker.run(order)


def _set_up(order: dict[str, Any]) -> int:
    """A process group of its own, so that it ends with all that it has started."""
    os.setpgid(0, 0)
    from ray_rust._private.runtime_env import setup

    setup.main(order)
    return 0


def _ending(status: int) -> tuple[Optional[int], Optional[int]]:
    """Exit code, or number of the signal."""
    if os.WIFSIGNALED(status):
        return None, os.WTERMSIG(status)
    return os.WEXITSTATUS(status), None


def _on_signal(number: int, frame: Optional[FrameType]) -> None:
    """Without a handler in Python the wake-up descriptor is not written."""


def _flush_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
