"""Which implementation of the interface a benchmark runs on: this one, or Ray where it is installed."""

from __future__ import annotations

import argparse
import importlib
import json
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that all benchmarks have."""
    parser.add_argument("--impl", choices=["ray_rust", "ray"], default="ray_rust", help="what to measure")
    parser.add_argument("--workers", type=at_least_one, default=2, metavar="N", help="worker processes (default: 2)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")


def at_least_one(text: str) -> int:
    """A number of things."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"has to be a whole number from 1 on, is {text!r}")
    return int(text)


def start(name: str, workers: int) -> Any:
    """The module, connected to a cluster of its own in which that many tasks run at a time."""
    ray = importlib.import_module(name)
    quiet = {"include_dashboard": False, "logging_level": "ERROR"} if name == "ray" else {}
    ray.init("local", num_cpus=workers, log_to_driver=False, **quiet)
    return ray


def write(path: str | None, figures: dict[str, Any]) -> None:
    """Writes the figures, if a file is given."""
    if path is not None:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=2)
            file.write("\n")
