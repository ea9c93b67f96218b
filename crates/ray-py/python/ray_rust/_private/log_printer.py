"""Shows in the driver what workers print.

The same line of several processes is shown once, and after a moment how often it came in all, as in Ray:
`[repeated 5x across cluster]`. Lines count as the same if they differ in nothing but words with
numbers, and paths.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
from typing import NamedTuple, Optional, TextIO

# Only programs that have progress bars import what shows them.
_BARS = "ray_rust.experimental.tqdm_ray"
_MAGIC = "__ray_tqdm_magic_token__"

_PLAIN = "\x1b[0m"
_CYAN = "\x1b[36m"
_GREEN = "\x1b[32m"
# Of processes, by their ids, if each has its own.
_COLOURS = ("\x1b[35m", "\x1b[36m", "\x1b[33m", "\x1b[32m", "\x1b[34m", "\x1b[31m", "\x1b[96m")
_SCHEDULER = "\x1b[33m"
# Lines of which is remembered that they were shown; more of them are shown again.
_MAX_REMEMBERED = 10_000
# What may differ in lines that count as the same: words with numbers, and paths.
_VARIABLE = re.compile("[0-9/]")
# Longer lines are shown each time, in characters.
_MAX_COMPARED = 10_000

_NOTICE = " (what several processes print is shown once; RAY_DEDUP_LOGS=0 shows all)"
# Lines with this are always shown; libraries' tests put it into what they look for.
_NEVER = "__ray_testing_never_deduplicate__"


def _is_on(name: str, default: bool) -> bool:
    text = os.environ.get(name)
    return default if text is None else text.lower() not in ("0", "false", "")


class Shown(NamedTuple):
    """A line to be shown."""

    pid: int
    name: str
    is_stderr: bool
    line: str


class _Repeated:
    """A line that came from some process, and how often others, or it again, have said the same since."""

    __slots__ = ("count", "last", "pids", "since")

    def __init__(self, first: Shown, now: float) -> None:
        self.since = now
        self.count = 0
        self.pids = {first.pid}
        self.last = first


class Deduplicator:
    """Decides which lines are shown.

    A line is held back if another process has printed the same within the last window. At the end of the
    window one line says how many were held back. What a single process repeats is shown each time.
    """

    def __init__(
        self, window_s: float, allow: Optional[str] = None, skip: Optional[str] = None, enabled: bool = True
    ) -> None:
        self._window_s = window_s
        self._allow = re.compile(allow) if allow else None
        self._skip = re.compile(skip) if skip else None
        self._enabled = enabled
        self._recent: dict[str, _Repeated] = {}
        self._noticed = False

    @classmethod
    def from_environment(cls) -> Deduplicator:
        """As the variables say that Ray has for this."""
        return cls(
            float(os.environ.get("RAY_DEDUP_LOGS_AGG_WINDOW_S", "5")),
            os.environ.get("RAY_DEDUP_LOGS_ALLOW_REGEX", _NEVER) or None,
            os.environ.get("RAY_DEDUP_LOGS_SKIP_REGEX") or None,
            _is_on("RAY_DEDUP_LOGS", True),
        )

    def take(self, lines: list[Shown], now: float) -> list[Shown]:
        """Those to be shown now, after what is due."""
        if not self._enabled:
            return lines
        shown = self.due(now)
        for one in lines:
            if self._skip is not None and self._skip.search(one.line):
                continue
            key = self._key(one.line)
            if not key:
                shown.append(one)
                continue
            known = self._recent.get(key)
            if known is None:
                if len(self._recent) < _MAX_REMEMBERED:
                    self._recent[key] = _Repeated(one, now)
                shown.append(one)
            elif known.pids == {one.pid}:
                # To the end, so that they stay in the order of time.
                known.since = now
                self._recent[key] = self._recent.pop(key)
                shown.append(one)
            else:
                known.pids.add(one.pid)
                known.count += 1
                known.last = one
        return shown

    def due(self, now: float, at_end: bool = False) -> list[Shown]:
        """What was held back in windows that are over; all of it at the end."""
        shown = []
        while self._recent:
            key, known = next(iter(self._recent.items()))
            if not at_end and now - known.since < self._window_s:
                break
            del self._recent[key]
            if known.count > 0:
                shown.append(self._summary(known))
        return shown

    def _key(self, line: str) -> str:
        """What is the same in lines that count as the same; empty for those that are always shown."""
        if len(line) > _MAX_COMPARED or (self._allow is not None and self._allow.search(line)):
            return ""
        return " ".join(word for word in line.split() if not _VARIABLE.search(word))

    def _summary(self, known: _Repeated) -> Shown:
        if known.count == 1:
            return known.last
        notice = "" if self._noticed else _NOTICE
        self._noticed = True
        suffix = f" [repeated {known.count}x across cluster]{notice}"
        return known.last._replace(line=known.last.line + suffix)

    def next_due(self) -> Optional[float]:
        """When something that was held back is due."""
        since = next((known.since for known in self._recent.values() if known.count > 0), None)
        return None if since is None else since + self._window_s


class _Printer:
    """Writes what the deduplicator lets through, and later what it held back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._deduplicator = Deduplicator.from_environment()
        self._timer: Optional[threading.Timer] = None

    def take(self, lines: list[Shown]) -> None:
        with self._lock:
            now = time.monotonic()
            self._write(self._deduplicator.take(lines, now))
            self._wait(now)

    def flush(self) -> None:
        """Shows what was held back."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._write(self._deduplicator.due(time.monotonic(), at_end=True))

    def _on_due(self) -> None:
        with self._lock:
            self._timer = None
            now = time.monotonic()
            self._write(self._deduplicator.due(now))
            self._wait(now)

    def _wait(self, now: float) -> None:
        due = self._deduplicator.next_due()
        if due is not None and self._timer is None:
            self._timer = threading.Timer(max(due - now, 0.0), self._on_due)
            self._timer.daemon = True
            self._timer.start()

    def _write(self, lines: list[Shown]) -> None:
        if lines:
            bars = sys.modules.get(_BARS)
            with bars.around_output() if bars is not None else contextlib.nullcontext():
                self._write_to_streams(lines)

    def _write_to_streams(self, lines: list[Shown]) -> None:
        # In one piece for each stream, so that the lines of several workers and of the driver do not mix.
        for is_stderr in (False, True):
            text = [one for one in lines if one.is_stderr == is_stderr]
            stream: Optional[TextIO] = sys.stderr if is_stderr else sys.stdout
            if not text or stream is None:  # as under pythonw, or after the user closed it
                continue
            coloured = _is_terminal(stream) and os.environ.get("RAY_COLOR_PREFIX") != "0"
            try:
                stream.write("".join(self._line(one, coloured) for one in text))
                stream.flush()
            except (OSError, ValueError):
                pass  # the stream is closed: nobody wants to see it

    @staticmethod
    def _line(one: Shown, coloured: bool) -> str:
        inside = [one.name] if one.name else []
        if one.pid != 0:  # the scheduler is no process
            inside.append(f"pid={one.pid}")
        prefix = f"({' '.join(inside)})"
        line = one.line
        if coloured:
            prefix = f"{_colour(one)}{prefix}{_PLAIN}"
            line = re.sub(r"( \[repeated \d+x across cluster\].*)$", rf"{_GREEN}\1{_PLAIN}", line)
        return f"{prefix} {line}\n"


def _colour(one: Shown) -> str:
    if one.pid == 0:
        return _SCHEDULER
    if os.environ.get("RAY_COLOR_PREFIX") != "1":
        return _CYAN
    return _COLOURS[one.pid % len(_COLOURS)]


_printer: Optional[_Printer] = None


def print_lines(pid: int, name: str, is_stderr: bool, lines: list[str]) -> None:
    """Writes the lines, each after `(name pid=N)`, to the stream of this process that they went to there.

    Those that tell of a progress bar are shown as that.
    """
    if _BARS in sys.modules or any(_MAGIC in line for line in lines):
        from ray_rust.experimental import tqdm_ray

        lines = [line for line in lines if not tqdm_ray.take_line(line)]
        if not lines:
            return
    global _printer
    if _printer is None:
        _printer = _Printer()
    _printer.take([Shown(pid, name, is_stderr, line) for line in lines])


def print_bare_lines(_pid: int, _name: str, is_stderr: bool, lines: list[str]) -> None:
    """Writes the lines as they are, for those who parse them."""
    stream: Optional[TextIO] = sys.stderr if is_stderr else sys.stdout
    if stream is None:
        return
    try:
        stream.write("".join(f"{line}\n" for line in lines))
        stream.flush()
    except (OSError, ValueError):
        pass  # the stream is closed: nobody wants to see it


def flush() -> None:
    """Shows what was held back because it might be said by others too."""
    if _printer is not None:
        _printer.flush()


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):
        return False
