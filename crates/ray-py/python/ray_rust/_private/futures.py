"""Futures that stand for references."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray_rust._internal import ObjectRef


def future_of(ref: ObjectRef) -> Future[Any]:
    """The value as a future. To cancel it does not cancel the task."""
    future: Future[Any] = Future()
    # Where users of Ray look for it.
    future.object_ref = ref  # type: ignore[attr-defined]
    ref._settle(future)  # noqa: SLF001
    return future


async def ready(ref: ObjectRef) -> ObjectRef:
    """Waits until there is a value or an error, without reading it."""
    await ref._readiness()  # noqa: SLF001
    return ref
