"""The version of Ray whose interface this is, and what provides it."""

from __future__ import annotations

from ray_rust._internal import __version__ as _build

version = "2.60.0"
commit = f"ray-rust-{_build}"

__all__ = ["commit", "version"]
