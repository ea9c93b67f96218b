"""The debugger `pdb` in tasks and actors.

`ray.util.pdb.set_trace()`, or `breakpoint()`, in a worker waits until somebody connects to it; what it
prints says how:

    python -m ray_rust.util.rpdb SOCKET

The socket belongs to the user who runs the cluster; nobody else can connect. Where `debugpy` is installed, or the
environment variable RAY_DEBUG is 1, breakpoints are for editors instead (`ray.util.ray_debugpy`), unless RAY_DEBUG is
`legacy`.
"""

from __future__ import annotations

import contextlib
import os
import pdb  # noqa: T100 - this is one
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any, Optional

from ray_rust._private import session
from ray_rust.util import debugpy

if TYPE_CHECKING:
    from types import FrameType, TracebackType

__all__ = ["post_mortem", "set_trace"]


def set_trace(breakpoint_uuid: Optional[bytes] = None) -> None:
    """Stops here, for a debugger: in a driver at the console, in a worker for who connects to it."""
    break_at(sys._getframe(1))  # noqa: SLF001 - debuggers need it


def break_at(frame: FrameType) -> None:
    """Stops in this frame."""
    if debugpy.is_chosen(in_driver=_is_driver()):
        debugpy.break_at(frame)
        return
    _debugger(frame.f_code.co_filename, frame.f_lineno).set_trace(frame)


def post_mortem() -> None:
    """Looks at the exception that is being handled. ValueError if there is none."""
    error = sys.exc_info()[1]
    if error is None:
        raise ValueError("no exception is being handled here")
    stop_at_error(error)


def stop_at_error(error: BaseException) -> None:
    """Looks at this exception."""
    if debugpy.is_chosen(in_driver=_is_driver()):
        debugpy.stop_at_error(error)
        return
    trace = error.__traceback__
    if trace is None:
        raise ValueError(f"the exception {error!r} was not raised")
    debugger = _debugger(*_place_of(trace))
    debugger.reset()
    debugger.interaction(None, trace)


def _place_of(trace: TracebackType) -> tuple[str, int]:
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_code.co_filename, trace.tb_lineno


def _is_driver() -> bool:
    connection = session.get_session()
    return connection is None or connection.is_driver


def _debugger(file: str, line: int) -> pdb.Pdb:
    connection = session.get_session()
    if connection is None or connection.is_driver:
        return pdb.Pdb()
    path = os.path.join(connection.core.session_dir, "sockets", f"debugger-{os.getpid()}.sock")
    return _RemotePdb(_wait_for_debugger(path, f"{file}:{line}"))


def _wait_for_debugger(path: str, place: str) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    with socket.socket(socket.AF_UNIX) as listener:
        mask = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(mask)
        try:
            listener.listen(1)
            sys.stderr.write(f"{place} waits for a debugger: {sys.executable} -m ray_rust.util.rpdb {path}\n")
            sys.stderr.flush()
            connection, _ = listener.accept()
        finally:
            os.unlink(path)
    return connection


class _RemotePdb(pdb.Pdb):
    """A debugger whose console is at the other end of a socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        # Two files: one for both ways would forget what it has read ahead when it is written to.
        self._input = connection.makefile("r", encoding="utf-8", errors="replace")
        self._output = connection.makefile("w", encoding="utf-8", errors="replace")
        super().__init__(stdin=self._input, stdout=self._output)
        self.prompt = "(Pdb) "

    def interaction(self, *args: Any) -> None:
        """Takes commands until the program is to go on."""
        try:
            super().interaction(*args)
        except OSError:
            self.do_EOF("")

    def do_continue(self, arg: str) -> Optional[bool]:
        """Goes on; without another breakpoint the console is closed."""
        result = super().do_continue(arg)
        if not self.breaks:
            self._close()
        return result

    do_c = do_cont = do_continue

    def do_EOF(self, arg: str) -> Optional[bool]:  # noqa: N802 - as pdb has it
        """Whoever was connected has gone: the program goes on as if there were no breakpoint."""
        self.clear_all_breaks()
        return self.do_continue(arg)

    def do_quit(self, arg: str) -> Optional[bool]:
        """Ends the task, which fails with BdbQuit."""
        result = super().do_quit(arg)
        self._close()
        return result

    do_q = do_exit = do_quit

    def _close(self) -> None:
        for file in (self._input, self._output, self._connection):
            with contextlib.suppress(OSError):
                file.close()


def _attach(path: str) -> None:
    """Connects this process's console to a debugger that waits."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)

        def send() -> None:
            with contextlib.suppress(OSError):
                for line in sys.stdin:
                    connection.sendall(line.encode())
                connection.shutdown(socket.SHUT_WR)

        threading.Thread(target=send, daemon=True).start()
        while data := connection.recv(1 << 16):
            sys.stdout.write(data.decode(errors="replace"))
            sys.stdout.flush()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m ray_rust.util.rpdb SOCKET")
    _attach(sys.argv[1])
