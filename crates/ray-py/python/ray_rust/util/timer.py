"""How long something takes, on average."""

from __future__ import annotations

import time
from collections import deque
from typing import Optional


class _Timer:
    """Times its `with` blocks, one at a time, and keeps the last few."""

    def __init__(self, window_size: int = 10) -> None:
        self._window_size = window_size
        self._samples: deque[float] = deque(maxlen=window_size)
        self._units_processed: deque[float] = deque(maxlen=window_size)
        self._start_time: Optional[float] = None
        self._total_time = 0.0
        self.count = 0

    def __enter__(self) -> None:
        if self._start_time is not None:
            raise AssertionError("a timer times one block at a time")
        self._start_time = time.monotonic()

    def __exit__(self, *_: object) -> None:
        if self._start_time is None:
            raise AssertionError("the timer was not started")
        self.push(time.monotonic() - self._start_time)
        self._start_time = None

    def push(self, time_delta: float) -> None:
        """Adds a duration in seconds."""
        self._samples.append(time_delta)
        self.count += 1
        self._total_time += time_delta

    def push_units_processed(self, n: float) -> None:
        """Says how much was done in one of the blocks."""
        self._units_processed.append(n)

    def has_units_processed(self) -> bool:
        """Whether anything was said of how much was done."""
        return bool(self._units_processed)

    @property
    def mean(self) -> float:
        """Seconds per block."""
        return _mean(self._samples)

    @property
    def mean_units_processed(self) -> float:
        """Units per block."""
        return _mean(self._units_processed)

    @property
    def mean_throughput(self) -> float:
        """Units per second."""
        seconds = sum(self._samples)
        return float(sum(self._units_processed) / seconds) if seconds else 0.0


def _mean(values: deque[float]) -> float:
    return sum(values) / len(values) if values else 0.0
