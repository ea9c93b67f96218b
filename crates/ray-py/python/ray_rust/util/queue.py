"""A queue that tasks and actors of all nodes share."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Optional

import ray_rust

if TYPE_CHECKING:
    from ray_rust.actor import ActorHandle

__all__ = ["Empty", "Full", "Queue"]


class Empty(queue.Empty):
    """There is nothing in the queue, or less than was asked for."""


class Full(queue.Full):
    """The queue has no room."""


class Queue:
    """A queue, first in, first out, that lives in an actor of its own. It can be sent to tasks and actors.

    `maxsize` is how many items it holds, 0 for any number. `actor_options` are those of its actor, such as
    `{"num_cpus": 1}` or a name.

    Who waits in `put` or `get` takes up one of the calls that the actor has at a time (`max_concurrency`,
    1000 by default).
    """

    def __init__(self, maxsize: int = 0, actor_options: Optional[dict[str, Any]] = None) -> None:
        self.maxsize = maxsize
        self.actor: Any = ray_rust.remote(_QueueActor).options(**(actor_options or {})).remote(maxsize)

    def __len__(self) -> int:
        return self.size()

    def size(self) -> int:
        """How many items are in it."""
        return int(ray_rust.get(self._actor.qsize.remote()))

    def qsize(self) -> int:
        """How many items are in it."""
        return self.size()

    def empty(self) -> bool:
        """Whether there is no item in it."""
        return bool(ray_rust.get(self._actor.empty.remote()))

    def full(self) -> bool:
        """Whether it has no room."""
        return bool(ray_rust.get(self._actor.full.remote()))

    def put(self, item: Any, block: bool = True, timeout: Optional[float] = None) -> None:
        """Adds an item; waits for room if need be, at most `timeout` seconds. Full if there is none."""
        try:
            ray_rust.get(self._put_call(item, block, timeout))
        except Full as error:
            raise _plain(error) from None

    async def put_async(self, item: Any, block: bool = True, timeout: Optional[float] = None) -> None:
        """As `put`, to be awaited."""
        try:
            await self._put_call(item, block, timeout)
        except Full as error:
            raise _plain(error) from None

    def get(self, block: bool = True, timeout: Optional[float] = None) -> Any:
        """Takes the next item; waits for one if need be, at most `timeout` seconds. Empty if there is none."""
        try:
            return ray_rust.get(self._get_call(block, timeout))
        except Empty as error:
            raise _plain(error) from None

    async def get_async(self, block: bool = True, timeout: Optional[float] = None) -> Any:
        """As `get`, to be awaited."""
        try:
            return await self._get_call(block, timeout)
        except Empty as error:
            raise _plain(error) from None

    def put_nowait(self, item: Any) -> None:
        """As `put(item, block=False)`."""
        self.put(item, block=False)

    def put_nowait_batch(self, items: Iterable[Any]) -> None:
        """Adds all items in order, or none: Full if there is no room for all."""
        if not isinstance(items, Iterable):
            raise TypeError(f"items has to be something to iterate over, is a {type(items).__name__}")
        try:
            ray_rust.get(self._actor.put_nowait_batch.remote(list(items)))
        except Full as error:
            raise _plain(error) from None

    def get_nowait(self) -> Any:
        """As `get(block=False)`."""
        return self.get(block=False)

    def get_nowait_batch(self, num_items: int) -> list[Any]:
        """Takes the next `num_items` items, or none: Empty if there are fewer."""
        if isinstance(num_items, bool) or not isinstance(num_items, int):
            raise TypeError(f"num_items has to be a whole number, is {num_items!r}")
        if num_items < 0:
            raise ValueError(f"num_items cannot be negative, is {num_items}")
        try:
            items: list[Any] = ray_rust.get(self._actor.get_nowait_batch.remote(num_items))
        except Empty as error:
            raise _plain(error) from None
        return items

    def shutdown(self, force: bool = False, grace_period_s: int = 5) -> None:
        """Ends the queue's actor: at once with `force`, else when its calls are done, or after `grace_period_s`."""
        if self.actor is None:
            return
        actor, self.actor = self.actor, None
        if not force:
            done, _ = ray_rust.wait([actor.__ray_terminate__.remote()], timeout=grace_period_s)
            if done:
                return
        ray_rust.kill(actor, no_restart=True)

    @property
    def _actor(self) -> ActorHandle:
        if self.actor is None:
            raise RuntimeError("the queue was shut down")
        actor: ActorHandle = self.actor
        return actor

    def _put_call(self, item: Any, block: bool, timeout: Optional[float]) -> Any:
        _check_timeout(block, timeout)
        return self._actor.put.remote(item, timeout) if block else self._actor.put_nowait.remote(item)

    def _get_call(self, block: bool, timeout: Optional[float]) -> Any:
        _check_timeout(block, timeout)
        return self._actor.get.remote(timeout) if block else self._actor.get_nowait.remote()


def _check_timeout(block: bool, timeout: Optional[float]) -> None:
    if block and timeout is not None and timeout < 0:
        raise ValueError(f"timeout cannot be negative, is {timeout}")


def _plain(error: BaseException) -> BaseException:
    """The error as the user of a queue expects it: without the traceback of the queue's actor."""
    kind = Full if isinstance(error, Full) else Empty
    return kind(*error.args)


class _QueueActor:
    """Holds the items. All of it runs on one event loop, so that nothing has to be locked."""

    def __init__(self, maxsize: int) -> None:
        self.maxsize = maxsize
        self.queue: asyncio.Queue[Any] = asyncio.Queue(maxsize)

    def qsize(self) -> int:
        return self.queue.qsize()

    def empty(self) -> bool:
        return self.queue.empty()

    def full(self) -> bool:
        return self.queue.full()

    async def put(self, item: Any, timeout: Optional[float] = None) -> None:
        try:
            await asyncio.wait_for(self.queue.put(item), timeout)
        except asyncio.TimeoutError:
            raise Full(f"the queue has had no room for {timeout} s") from None

    async def get(self, timeout: Optional[float] = None) -> Any:
        try:
            return await asyncio.wait_for(self.queue.get(), timeout)
        except asyncio.TimeoutError:
            raise Empty(f"nothing has come into the queue for {timeout} s") from None

    def put_nowait(self, item: Any) -> None:
        try:
            self.queue.put_nowait(item)
        except asyncio.QueueFull:
            raise Full(f"the queue holds {self.maxsize} items already") from None

    def put_nowait_batch(self, items: list[Any]) -> None:
        if self.maxsize > 0 and len(items) + self.qsize() > self.maxsize:
            raise Full(f"{len(items)} items do not fit: the queue holds {self.qsize()} of at most {self.maxsize}")
        for item in items:
            self.queue.put_nowait(item)

    def get_nowait(self) -> Any:
        try:
            return self.queue.get_nowait()
        except asyncio.QueueEmpty:
            raise Empty("the queue is empty") from None

    def get_nowait_batch(self, num_items: int) -> list[Any]:
        if num_items > self.qsize():
            raise Empty(f"the queue holds {self.qsize()} items, fewer than {num_items}")
        return [self.queue.get_nowait() for _ in range(num_items)]
