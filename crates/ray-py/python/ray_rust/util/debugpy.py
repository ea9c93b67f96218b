"""The debugger of editors in tasks and actors: `ray.util.ray_debugpy`.

With `debugpy` installed, `breakpoint()` and `ray.util.pdb.set_trace()` in a worker wait until an editor attaches; what
the worker prints says where, and so does the state API (`debugger_port` of workers). The environment variable
`RAY_DEBUG` chooses the debugger: `1` this one, `legacy` the one of `ray.util.pdb`; without it, it is this one where
`debugpy` is installed.

Who can reach the port can do whatever the program can, as everywhere with `debugpy`: it is for machines whose users
trust each other.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import sys
import threading
from typing import TYPE_CHECKING, Any, Optional

from ray_rust._private import session

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType, TracebackType

__all__ = ["POST_MORTEM_ERROR_UUID", "set_trace"]

POST_MORTEM_ERROR_UUID = "post_mortem_error_uuid"
# The first that can be told where to stop as it is done here.
_MIN_VERSION = (1, 8)

logger = logging.getLogger("ray")


def set_trace(breakpoint_uuid: Optional[str] = None) -> None:
    """Stops here until an editor has attached and lets the program go on.

    Without `debugpy` that is said in an error's place in the log, and the program goes on, as in Ray.
    """
    if breakpoint_uuid == POST_MORTEM_ERROR_UUID:
        error = sys.exc_info()[1]
        if error is None:
            raise ValueError("no exception is being handled here")
        stop_at_error(error)
    else:
        break_at(sys._getframe(1))  # noqa: SLF001 - debuggers need it


def is_chosen(*, in_driver: bool) -> bool:
    """Whether breakpoints are for this debugger: in a driver, which has a console, only if it is asked for."""
    asked = os.environ.get("RAY_DEBUG")
    if asked is None:
        return not in_driver and importlib.util.find_spec("debugpy") is not None
    return asked == "1"


def break_at(frame: FrameType) -> None:
    """Stops in this frame."""
    if _wait_for_editor(f"{frame.f_code.co_filename}:{frame.f_lineno}"):
        import pydevd

        pydevd.settrace(suspend=True, trace_only_current_thread=True, patch_multiprocessing=False, stop_at_frame=frame)


def stop_at_error(error: BaseException) -> None:
    """Stops where this exception was raised."""
    trace: Optional[TracebackType] = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else "an exception"
    if not _wait_for_editor(f"{place} ({type(error).__name__})"):
        return
    import pydevd

    debugger, thread = pydevd.get_global_debugger(), threading.current_thread()
    info = debugger.set_additional_thread_info(thread)
    # What the debugger itself does is not to be traced.
    info.is_tracing += 1
    try:
        debugger.stop_on_unhandled_exception(debugger, thread, info, (type(error), error, error.__traceback__))
    finally:
        info.is_tracing -= 1


class _Port:
    """Where this process waits for editors, once it does."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._address: Optional[tuple[str, int]] = None
        self._paused = 0

    def open(self, debugpy: Any) -> str:
        """Host and port, which are opened by the first who asks."""
        with self._lock:
            if self._address is None:
                from ray_rust._private.services import get_node_ip_address

                with _own_breakpoints():
                    self._address = debugpy.listen((get_node_ip_address(), 0))
                self._tell()
            host, port = self._address
            return f"{host}:{port}"

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """One thread more waits for an editor."""
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def _count(self, more: int) -> None:
        with self._lock:
            self._paused += more
            self._tell()

    def _tell(self) -> None:
        known = session.get_session()
        if known is not None:
            known.core.set_debugger(self._address[1] if self._address is not None else None, self._paused)


_port = _Port()


def _wait_for_editor(place: str) -> bool:
    """Returns once one has attached; False if there is no debugger."""
    debugpy = _debugpy()
    if debugpy is None:
        return False
    address = _port.open(debugpy)
    if not debugpy.is_client_connected():
        sys.stderr.write(f"{place} waits for a debugger: attach one that speaks to debugpy to {address}\n")
        sys.stderr.flush()
        with _port.paused():
            debugpy.wait_for_client()
    return True


def _debugpy() -> Any:
    try:
        with _own_breakpoints():
            import debugpy  # noqa: T100 - for breakpoints of users
    except ModuleNotFoundError as error:
        if error.name != "debugpy":
            raise
        return _missing("it is not installed")
    version = tuple(int(part) for part in debugpy.__version__.split(".")[:2] if part.isdigit())
    if version < _MIN_VERSION:
        return _missing(f"version {debugpy.__version__} is too old")
    return debugpy


def _missing(why: str) -> None:
    logger.error(
        "the breakpoint in process %d is passed over, for the debugger needs debugpy 1.8 or later, and %s: "
        "pip install 'debugpy>=1.8', or set RAY_DEBUG=legacy for the debugger of ray.util.pdb",
        os.getpid(),
        why,
    )


@contextlib.contextmanager
def _own_breakpoints() -> Iterator[None]:
    """`debugpy` takes `breakpoint()` for itself, and then passes over all of them while no editor is attached."""
    hook = sys.breakpointhook
    try:
        yield
    finally:
        sys.breakpointhook = hook
