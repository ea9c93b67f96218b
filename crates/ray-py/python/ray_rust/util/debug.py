"""Saying things once, and looking for code that keeps more memory each time it runs."""

from __future__ import annotations

import gc
import time
import tracemalloc
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

__all__ = ["Suspect", "disable_log_once_globally", "enable_periodic_logging", "log_once", "reset_log_once"]

# With periodic logging, everything may be said again after so many seconds.
_PERIOD_S = 60.0

_logged: set[str] = set()
_disabled = False
_periodic_log = False
_last_logged = 0.0


def log_once(key: str) -> bool:
    """Whether this is the first call with this key, so that something may be logged."""
    global _last_logged
    if _disabled:
        return False
    if key not in _logged:
        _logged.add(key)
        _last_logged = time.monotonic()
        return True
    if _periodic_log and time.monotonic() - _last_logged > _PERIOD_S:
        # From the next call on.
        _logged.clear()
        _last_logged = time.monotonic()
    return False


def disable_log_once_globally() -> None:
    """From now on `log_once` is always False in this process."""
    global _disabled
    _disabled = True


def enable_periodic_logging() -> None:
    """From now on `log_once` is True again for each key every minute or so."""
    global _periodic_log
    _periodic_log = True


def reset_log_once(key: Optional[str] = None) -> None:
    """Forgets this key, or all of them."""
    if key is None:
        _logged.clear()
    else:
        _logged.discard(key)


class Suspect(NamedTuple):
    """A place that allocates more memory than is given back."""

    # The frames of the allocation, the innermost last.
    traceback: tracemalloc.Traceback
    # Bytes that it holds more after the last run than after the first.
    memory_increase: int
    # Of the line through `hist`: bytes for each run.
    slope: float
    # How well that line fits: 1 is perfectly.
    rvalue: float
    # Bytes that it held after each run.
    hist: list[int]


# How many frames of an allocation tell it from another.
_FRAMES = 20
# How many places are watched, the largest first.
_WATCHED = 100
# Less is noise, in bytes.
_NOISE_BYTES = 1000
# What is a leak, as (slope above, fit above): the slower it grows, the surer it has to be. Ray's.
_LEAKS = ((60.0, 0.875), (20.0, 0.9), (10.0, 0.95))
# Allocations of those who measure.
_MEASURING = ("tracemalloc", "pycharm", "thirdparty_files/psutil", "ray_rust/util/debug.py")


def _test_some_code_for_memory_leaks(
    desc: str,
    init: Optional[Callable[[], None]],
    code: Callable[[], None],
    repeats: int,
    max_num_trials: int = 1,
    min_memory_increase: int = 0,
) -> list[Suspect]:
    """Runs `code` again and again and returns where memory grows steadily, the worst first; empty if nowhere.

    `init` prepares each trial. A suspicion is checked by further trials, up to `max_num_trials`, each of `repeats`
    runs more, in which only the suspects are watched. What grows by less than `min_memory_increase` bytes is none.
    """
    suspects: list[Suspect] = []
    for trial in range(1, max_num_trials + 1):
        runs = repeats * trial
        _say(f"{desc}: {runs} runs, trial {trial} of at most {max_num_trials}")
        held = _memory_after_runs(init, code, runs, {suspect.traceback for suspect in suspects})
        found = [_suspect(place, hist) for place, hist in held.items()]
        suspects = [one for one in found if one is not None and one.memory_increase >= min_memory_increase]
        suspects.sort(key=lambda one: one.memory_increase, reverse=True)
        if not suspects:
            _say("no place holds more and more memory")
            break
        for one in suspects[:10]:
            _say(f"+{one.memory_increase} B, {one.slope:.1f} B a run, fit {one.rvalue:.3f}: {one.traceback[-1]}")
    if suspects:
        _say("the worst is allocated here:\n" + "\n".join(suspects[0].traceback.format()))
    return suspects


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - for whoever looks for a leak


def _memory_after_runs(
    init: Optional[Callable[[], None]], code: Callable[[], None], runs: int, only: Collection[Any]
) -> dict[tracemalloc.Traceback, list[int]]:
    """How much each place held after each run, in bytes; of the places `only`, or of all if there are none."""
    held: dict[tracemalloc.Traceback, list[int]] = {}
    tracemalloc.start(_FRAMES)
    try:
        if init is not None:
            init()
        for _ in range(runs):
            # What only waits for the collector is not held.
            gc.collect()
            code()
            gc.collect()
            for statistic in tracemalloc.take_snapshot().statistics("traceback")[:_WATCHED]:
                if not only or statistic.traceback in only:
                    held.setdefault(statistic.traceback, []).append(statistic.size)
    finally:
        tracemalloc.stop()
    return held


def _suspect(place: tracemalloc.Traceback, hist: list[int]) -> Optional[Suspect]:
    """Whether memory that was held like this is a leak."""
    increase = hist[-1] - hist[0]
    if increase <= _NOISE_BYTES or any(own in str(place[-1]) for own in _MEASURING):
        return None
    slope, fit = _line_through(hist)
    if not any(slope > steep and fit > sure for steep, sure in _LEAKS):
        return None
    return Suspect(place, increase, slope, fit, hist)


def _line_through(values: list[int]) -> tuple[float, float]:
    """Slope of the line of least squares through values at 0, 1, 2..., and how well it fits (Pearson's r)."""
    count = len(values)
    mid_x, mid_y = (count - 1) / 2, sum(values) / count
    both = sum((x - mid_x) * (y - mid_y) for x, y in enumerate(values))
    wide = sum((x - mid_x) ** 2 for x in range(count))
    high = sum((y - mid_y) ** 2 for y in values)
    if not wide or not high:
        return 0.0, 0.0
    fit: float = both / (wide * high) ** 0.5
    return both / wide, fit
