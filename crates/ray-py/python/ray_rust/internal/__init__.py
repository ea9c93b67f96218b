"""`ray.internal`: there for programs that import it, with nothing public in it, as in Ray."""

from __future__ import annotations

__all__: list[str] = []
