"""Iterating over results as they come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional

import ray_rust

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ray_rust import ObjectRef
    from ray_rust.remote_function import RemoteFunction

__all__ = ["as_completed", "map_unordered"]

# How many results are waited for at once, and how many tasks are under way at most.
DEFAULT_CHUNK_SIZE = 10
DEFAULT_BACKPRESSURE_SIZE = 100


def as_completed(
    refs: Sequence[ObjectRef],
    *,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    yield_obj_refs: bool = False,
    **kwargs: Any,
) -> Iterator[Any]:
    """The results of all references, as they come: whenever `chunk_size` of them are there.

    With `yield_obj_refs`, the references instead. Other options (`timeout`, `fetch_local`) are those of
    `wait`.
    """
    _check(chunk_size, kwargs)
    waiting = list(refs)
    while waiting:
        ready, waiting = _take(waiting, chunk_size, yield_obj_refs, kwargs)
        yield from ready


def map_unordered(
    fn: RemoteFunction,
    items: Iterable[Any],
    *,
    backpressure_size: Optional[int] = DEFAULT_BACKPRESSURE_SIZE,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    yield_obj_refs: bool = False,
    **kwargs: Any,
) -> Iterator[Any]:
    """The results of `fn.remote(item)` for each item, as they come.

    At most `backpressure_size` tasks are under way; None means all at once. The other options are those
    of `as_completed`.
    """
    if backpressure_size is not None and backpressure_size <= 0:
        raise ValueError(f"backpressure_size has to be positive, is {backpressure_size}")
    _check(chunk_size, kwargs)
    waiting: list[ObjectRef] = []
    for item in items:
        waiting.append(fn.remote(item))
        if backpressure_size is not None and len(waiting) >= backpressure_size:
            ready, waiting = _take(waiting, chunk_size, yield_obj_refs, kwargs)
            yield from ready
    yield from as_completed(waiting, chunk_size=chunk_size, yield_obj_refs=yield_obj_refs, **kwargs)


def _check(chunk_size: int, kwargs: dict[str, Any]) -> None:
    if chunk_size < 1:
        raise ValueError(f"chunk_size has to be at least 1, is {chunk_size}")
    if "num_returns" in kwargs:
        raise ValueError("how many results are waited for is said by chunk_size, not by num_returns")


def _take(
    waiting: list[ObjectRef], chunk_size: int, yield_obj_refs: bool, kwargs: dict[str, Any]
) -> tuple[list[Any], list[ObjectRef]]:
    ready, waiting = ray_rust.wait(waiting, num_returns=min(chunk_size, len(waiting)), **kwargs)
    return (ready if yield_obj_refs else ray_rust.get(ready)), waiting
