"""What `ray-rust microbenchmark` runs: small workloads, each to be compared with Ray's of the same name.

Names, sizes and what is counted are those of `ray microbenchmark`, so that figures of both can stand side
by side. Each workload has a cluster of its own: what one leaves behind, or breaks, is no matter to the next.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional

import ray_rust as ray
from ray_rust._internal import OPTIMIZED
from ray_rust._private.microbenchmark.workloads import WORKLOADS, Run

if TYPE_CHECKING:
    from collections.abc import Sequence

# The longest warm-up. Short windows have one of their own length.
_WARM_UP_S = 1.0


class Settings(NamedTuple):
    """How to measure."""

    # Of a window, in seconds, and how many windows.
    seconds: float
    rounds: int
    num_cpus: Optional[float] = None
    temp_dir: Optional[str] = None


class Result(NamedTuple):
    """What came of one workload."""

    name: str
    # One for each window, per second; empty if it could not be run.
    rates: list[float]
    # Why it could not be run, and whether that is because something is not there yet.
    problem: str = ""
    unsupported: bool = False

    @property
    def failed(self) -> bool:
        return bool(self.problem) and not self.unsupported

    def line(self) -> str:
        """For people."""
        if self.problem:
            reason = self.problem.splitlines()[-1].strip()
            return f"{self.name} {'not supported yet' if self.unsupported else 'failed'}: {reason}"
        mean, deviation = self._statistics()
        return f"{self.name} per second {mean:.2f} +- {deviation:.2f}"

    def fields(self) -> dict[str, Any]:
        """For programs."""
        if self.problem:
            return {"name": self.name, "not_supported" if self.unsupported else "failed": self.problem}
        mean, deviation = self._statistics()
        return {"name": self.name, "per_second": mean, "deviation": deviation, "windows": self.rates}

    def _statistics(self) -> tuple[float, float]:
        return statistics.fmean(self.rates), statistics.pstdev(self.rates)


def choose(patterns: str) -> list[str]:
    """The workloads that a comma list names, each by its whole name or a part of it; all if it is empty."""
    chosen: set[str] = set()
    for pattern in [part.strip() for part in patterns.split(",") if part.strip()]:
        matching = [pattern] if pattern in WORKLOADS else [name for name in WORKLOADS if pattern in name]
        if not matching:
            listed = "\n  ".join(WORKLOADS)
            raise ValueError(f"no workload has {pattern!r} in its name; there are\n  {listed}")
        chosen.update(matching)
    return [name for name in WORKLOADS if name in chosen or not chosen]


def run(chosen: Sequence[str], settings: Settings, say: Callable[[str], None], json_path: Optional[str]) -> bool:
    """Runs workloads and says what came of each; returns whether none failed.

    The file is written anew after each, so that one who gives up early has what there is.
    """
    report: dict[str, Any] = {
        "version": ray.__version__,
        "optimized": OPTIMIZED,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "num_cpus": settings.num_cpus,
        "seconds": settings.seconds,
        "rounds": settings.rounds,
        "results": [],
    }
    if not OPTIMIZED:
        say("this build is not optimized, and its figures mean nothing: build with `maturin develop --release`")
    good = True
    _write(json_path, report)
    for name in chosen:
        result = _run_one(name, settings)
        say(result.line())
        good = good and not result.failed
        report["results"].append(result.fields())
        _write(json_path, report)
    return good


def _write(path: Optional[str], report: dict[str, Any]) -> None:
    if path is None:
        return
    try:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=2)
            file.write("\n")
    except OSError as error:
        raise ValueError(f"the figures cannot be written: {error}") from error


def _run_one(name: str, settings: Settings) -> Result:
    try:
        ray.init(
            "local",
            num_cpus=settings.num_cpus,
            resources={"custom": 100},
            log_to_driver=False,
            _temp_dir=settings.temp_dir,
        )
        return Result(name, _measure(WORKLOADS[name](), settings))
    except NotImplementedError as error:
        return Result(name, [], str(error) or repr(error), unsupported=True)
    except Exception as error:  # noqa: BLE001 - a workload that fails is a result; the others go on
        return Result(name, [], f"{type(error).__name__}: {error}")
    finally:
        ray.shutdown()


def _measure(run: Run, settings: Settings) -> list[float]:
    calls = 0
    began = time.perf_counter()
    while calls == 0 or time.perf_counter() - began < min(settings.seconds, _WARM_UP_S):
        run.call()
        calls += 1
    # The clock is not looked at after each call, which may take less than the look.
    step = calls // 10 + 1
    return [_rate(run, step, settings.seconds) for _ in range(settings.rounds)]


def _rate(run: Run, step: int, seconds: float) -> float:
    call = run.call
    calls = 0
    began = time.perf_counter()
    while True:
        for _ in range(step):
            call()
        calls += step
        elapsed = time.perf_counter() - began
        if elapsed >= seconds:
            return run.amount * calls / elapsed
