"""Progress bars of tasks and actors, all shown by the driver.

A bar in a worker prints its state as a line of JSON with a magic token, at most once in a while. The
driver, which shows what workers print, takes these lines for its bars, one below the other.
"""

from __future__ import annotations

import builtins
import contextlib
import json
import logging
import os
import sys
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any, Optional

from ray_rust._private import session
from ray_rust._private.services import get_node_ip_address
from ray_rust.util.debug import log_once

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["instance", "safe_print", "tqdm"]

# What a bar says of itself.
ProgressBarState = dict[str, Any]

# Ray's word, so that lines of its programs are known too.
RAY_TQDM_MAGIC = "__ray_tqdm_magic_token__"

_DIM_CYAN = "\x1b[2m\x1b[36m"
_PLAIN = "\x1b[0m"

_print = builtins.print
_manager: Optional[_BarManager] = None
_manager_lock = threading.Lock()


def safe_print(*args: Any, **kwargs: Any) -> None:
    """As `print`, but does not write into a bar.

    Takes the place of `print` when the first bar is shown, unless `RAY_TQDM_PATCH_PRINT` is 0.
    """
    if kwargs.get("file") in (None, sys.stdout, sys.stderr):
        with instance().hidden_bars():
            _print(*args, **kwargs)
    else:
        _print(*args, **kwargs)


class tqdm:  # noqa: N801 - the name is that of the package
    """A progress bar, in the driver, a task or an actor; takes some of the arguments of the package `tqdm`.

    Its state is shown at most every `flush_interval_s` seconds (1 by default), and at its end.
    """

    DEFAULT_FLUSH_INTERVAL_SECONDS = 1.0

    def __init__(
        self,
        iterable: Optional[Iterable[Any]] = None,
        desc: Optional[str] = None,
        total: Optional[int] = None,
        unit: Optional[str] = None,
        position: Optional[int] = None,
        flush_interval_s: Optional[float] = None,
    ) -> None:
        if total is None and iterable is not None:
            with contextlib.suppress(TypeError, AttributeError):
                total = len(iterable)  # type: ignore[arg-type] # some have no length
        self._iterable = iterable
        self._desc = desc or ""
        self._total = total
        self._unit = unit or "it"
        self._ip = get_node_ip_address()
        self._pid = os.getpid()
        self._pos = position or 0
        self._uuid = uuid.uuid4().hex
        self._x = 0
        self._closed = False
        self._flush_interval_s = self.DEFAULT_FLUSH_INTERVAL_SECONDS if flush_interval_s is None else flush_interval_s
        self._last_flush_time = float("-inf")

    def set_description(self, desc: str) -> None:
        """Changes the words before the bar."""
        self._desc = desc
        self._dump_state()

    def update(self, n: int = 1) -> None:
        """`n` more are done."""
        self._x += n
        self._dump_state()

    def close(self) -> None:
        """The bar is at its end."""
        self._closed = True
        self._dump_state(force_flush=True)

    def refresh(self) -> None:
        """Shows it now, if the last time is long enough ago."""
        self._dump_state()

    @property
    def total(self) -> Optional[int]:
        """How many there are, if that is known."""
        return self._total

    @total.setter
    def total(self, total: Optional[int]) -> None:
        self._total = total

    @property
    def n(self) -> int:
        """How many are done."""
        return self._x

    @n.setter
    def n(self, n: int) -> None:
        self._x = n

    def __iter__(self) -> Iterator[Any]:
        if self._iterable is None:
            raise ValueError("there is nothing to iterate over: tqdm() was called without an iterable")
        for value in self._iterable:
            self.update(1)
            yield value

    def _dump_state(self, force_flush: bool = False) -> None:
        now = time.monotonic()
        if not force_flush and now - self._last_flush_time < self._flush_interval_s:
            return
        self._last_flush_time = now
        if _is_worker():
            # The end of the line is part of the text, so that nobody writes in between.
            _print(json.dumps(self._get_state()) + "\n", end="")
        else:
            instance().process_state_update(self._get_state())

    def _get_state(self) -> ProgressBarState:
        return {
            "__magic_token__": RAY_TQDM_MAGIC,
            "x": self._x,
            "pos": self._pos,
            "desc": self._desc,
            "total": self._total,
            "unit": self._unit,
            "ip": self._ip,
            "pid": self._pid,
            "uuid": self._uuid,
            "closed": self._closed,
        }


def _is_worker() -> bool:
    connection = session.get_session()
    return connection is not None and not connection.is_driver


def take_line(line: str) -> bool:
    """Shows the bar that a line of a worker tells of. Returns whether it is such a line."""
    if RAY_TQDM_MAGIC not in line:
        return False
    try:
        state = json.loads(line)
    except ValueError:
        return False
    if not isinstance(state, dict) or state.get("__magic_token__") != RAY_TQDM_MAGIC:
        return False
    try:
        instance().process_state_update(state)
    except (KeyError, TypeError, ValueError):
        return False  # something else printed it; it is shown as it is
    return True


class _Bar:
    """One bar of a process, on the screen."""

    def __init__(self, make: Any, state: ProgressBarState, prefix: str, offset: int) -> None:
        self._prefix = prefix
        self._state = state
        self.position = int(state["pos"])
        self._bar = make(
            desc=prefix + state["desc"],
            total=state["total"],
            unit=state["unit"],
            position=offset + self.position,
            initial=state["x"],
            dynamic_ncols=True,
            unit_scale=True,
        )

    def update(self, state: ProgressBarState) -> None:
        if state["desc"] != self._state["desc"]:
            self._bar.set_description(self._prefix + state["desc"], refresh=False)
        self._bar.total = state["total"]
        self._bar.update(state["x"] - self._state["x"])
        self._bar.refresh()
        self._state = state

    def move(self, offset: int) -> None:
        line = -(offset + self.position)  # as the package keeps it
        if self._bar.pos != line:
            self._bar.clear()
            self._bar.pos = line
            self._bar.refresh()

    def hide(self) -> None:
        self._bar.clear()

    def show(self) -> None:
        self._bar.refresh()

    def close(self) -> None:
        self._bar.close()


class _BarManager:
    """All bars of a driver: each process has a block of lines, and its bars their places in that."""

    def __init__(self) -> None:
        self._ip = get_node_ip_address()
        self._pid = os.getpid()
        # By process, then by the bar's own id.
        self._groups: dict[tuple[str, int], dict[str, _Bar]] = {}
        self._lock = threading.RLock()
        self._hidden = 0
        self._make = _real_tqdm()

    def process_state_update(self, state: ProgressBarState) -> None:
        """Shows the new state of a bar, which may be a new bar or one that is at its end."""
        if self._make is None:
            if log_once("no_tqdm"):
                logging.getLogger("ray_rust").warning("progress bars are not shown: the package tqdm is not installed")
            return
        with self._lock:
            process = (state["ip"], state["pid"])
            group = self._groups.setdefault(process, {})
            bar = group.get(state["uuid"])
            if bar is None:
                bar = group[state["uuid"]] = _Bar(self._make, state, self._prefix(*process), self._offset_of(process))
            else:
                bar.update(state)
            if state["closed"]:
                with self.hidden_bars():
                    bar.close()
                    del group[state["uuid"]]
            if not group:
                del self._groups[process]
            self._place()

    def _prefix(self, ip: str, pid: int) -> str:
        if ip == self._ip and pid == self._pid:
            return ""
        text = f"(pid={pid}) " if ip == self._ip else f"(pid={pid}, ip={ip}) "
        from ray_rust.widgets.util import in_notebook

        # In notebooks bars are widgets, which know no colours of terminals.
        return text if in_notebook() else f"{_DIM_CYAN}{text}{_PLAIN}"

    def _offset_of(self, process: tuple[str, int]) -> int:
        offset = 0
        for other, group in self._groups.items():
            if other == process:
                break
            offset += _height(group)
        return offset

    def _place(self) -> None:
        offset = 0
        for group in self._groups.values():
            for bar in group.values():
                bar.move(offset)
            offset += _height(group)

    @contextlib.contextmanager
    def hidden_bars(self) -> Iterator[None]:
        """Within it, other things may be written."""
        with self._lock:
            self.hide_bars()
            try:
                yield
            finally:
                self.unhide_bars()

    def hide_bars(self) -> None:
        """Takes all bars off the screen, until `unhide_bars` was called as often as this."""
        with self._lock:
            self._hidden += 1
            if self._hidden == 1:
                for bar in self._bars():
                    bar.hide()

    def unhide_bars(self) -> None:
        """Shows them again."""
        with self._lock:
            self._hidden = max(0, self._hidden - 1)
            if self._hidden == 0:
                for bar in self._bars():
                    bar.show()

    def _bars(self) -> list[_Bar]:
        return [bar for group in self._groups.values() for bar in group.values()]


def _height(group: dict[str, _Bar]) -> int:
    """How many lines the bars of a process take."""
    return 1 + max((bar.position for bar in group.values()), default=-1)


def _real_tqdm() -> Any:
    try:
        import tqdm.auto
    except ImportError:
        return None
    return tqdm.auto.tqdm


def instance() -> _BarManager:
    """All bars of this process."""
    global _manager
    with _manager_lock:
        if _manager is None:
            _manager = _BarManager()
            if os.environ.get("RAY_TQDM_PATCH_PRINT", "1").lower() not in ("0", "false"):
                builtins.print = safe_print
        return _manager


def around_output() -> contextlib.AbstractContextManager[None]:
    """For who writes lines of workers: within it, no bar is in the way."""
    return contextlib.nullcontext() if _manager is None else _manager.hidden_bars()
