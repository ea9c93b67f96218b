"""The parts of generators of references that are Python."""

from __future__ import annotations

import collections
import contextlib
from typing import TYPE_CHECKING, Optional

from ray_rust._internal import ObjectRefGenerator

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ray_rust._internal import ObjectRef

__all__ = ["DynamicObjectRefGenerator", "ObjectRefGenerator"]


class DynamicObjectRefGenerator:
    """The value of a task with num_returns="dynamic": references to all that it yielded."""

    def __init__(self, refs: Iterable[ObjectRef]) -> None:
        self._refs = collections.deque(refs)

    def __iter__(self) -> Iterator[ObjectRef]:
        while self._refs:
            yield self._refs.popleft()

    def __len__(self) -> int:
        return len(self._refs)


async def next_async(generator: ObjectRefGenerator, timeout_s: Optional[float]) -> ObjectRef:
    """The next reference, without blocking the event loop; nil if none came in time."""
    import asyncio

    loop = asyncio.get_running_loop()
    deadline = None if timeout_s is None or timeout_s < 0 else loop.time() + timeout_s
    while True:
        try:
            ref = generator._next_sync(0)  # noqa: SLF001
        except StopIteration:
            raise StopAsyncIteration from None
        if not ref.is_nil():
            return ref
        left = None if deadline is None else deadline - loop.time()
        if left is not None and left <= 0:
            return ref
        await _place_ready(generator, left)


async def _place_ready(generator: ObjectRefGenerator, timeout_s: Optional[float]) -> None:
    """Waits until something is at the place of the next item, at most so long."""
    import asyncio

    (place,) = generator._get_next_ref_n(1)  # noqa: SLF001
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(place._readiness(), timeout_s)  # noqa: SLF001
