"""A fixed set of actors that share work: `ActorPool`."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Callable, Optional, Union

import ray_rust
from ray_rust.exceptions import ActorDiedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ray_rust import ObjectRef
    from ray_rust.actor import ActorHandle

    # What a submitted function returns: the reference, or the list of them, of one call.
    Future = Union[ObjectRef, list[ObjectRef]]
    Submit = Callable[[ActorHandle, Any], Future]

__all__ = ["ActorPool"]


class ActorPool:
    """Spreads calls over actors, each of which has one call at a time; further calls wait for a free one.

        pool = ActorPool([Worker.remote() for _ in range(4)])
        results = list(pool.map(lambda actor, x: actor.double.remote(x), range(100)))

    An actor that dies takes no more part.
    """

    def __init__(self, actors: Iterable[ActorHandle]) -> None:
        self._idle_actors: list[ActorHandle] = list(actors)
        # By future (as a tuple where it is a list): number of the call, and the actor that runs it.
        self._future_to_actor: dict[Any, tuple[int, ActorHandle]] = {}
        self._index_to_future: dict[int, Future] = {}
        self._next_task_index = 0
        self._next_return_index = 0
        self._pending_submits: deque[tuple[Submit, Any]] = deque()

    def map(self, fn: Submit, values: Iterable[Any]) -> Iterator[Any]:
        """The results of `fn(actor, value)` for each value, in the order of the values.

        What was submitted before and not fetched is dropped. The iterator has to be followed to its
        end for all to be computed.
        """
        self._drop_submitted()
        for value in values:
            self.submit(fn, value)
        return self._results(self.get_next)

    def map_unordered(self, fn: Submit, values: Iterable[Any]) -> Iterator[Any]:
        """As `map`, but each result as soon as it is there."""
        self._drop_submitted()
        for value in values:
            self.submit(fn, value)
        return self._results(self.get_next_unordered)

    def _results(self, get_next: Callable[[], Any]) -> Iterator[Any]:
        while self.has_next():
            yield get_next()
        if self._pending_submits:
            raise RuntimeError(
                f"no actor of the pool is left for {len(self._pending_submits)} submitted value(s): all died, "
                "or were taken out by pop_idle(); push() adds another one"
            )

    def _drop_submitted(self) -> None:
        """Forgets all calls; their actors take the next ones, behind what they still run."""
        self._pending_submits.clear()
        self._idle_actors.extend(actor for _, actor in self._future_to_actor.values())
        self._future_to_actor.clear()
        self._index_to_future.clear()
        self._next_return_index = self._next_task_index

    def submit(self, fn: Submit, value: Any) -> None:
        """Calls `fn(actor, value)` with a free actor, or as soon as there is one; `get_next` has the result."""
        if not self._idle_actors:
            self._pending_submits.append((fn, value))
            return
        actor = self._idle_actors.pop()
        try:
            future = fn(actor, value)
        except BaseException:
            self._idle_actors.append(actor)
            raise
        self._future_to_actor[_key(future)] = (self._next_task_index, actor)
        self._index_to_future[self._next_task_index] = future
        self._next_task_index += 1

    def has_next(self) -> bool:
        """Whether a call is under way whose result was not fetched yet."""
        return bool(self._future_to_actor)

    def get_next(self, timeout: Optional[float] = None, ignore_if_timedout: bool = False) -> Any:
        """The next result in the order of submission.

        TimeoutError if it is not there after `timeout` seconds; with `ignore_if_timedout` that call is
        given up, and the next time it is the turn of the one after it.
        """
        self._check_has_next()
        future = self._index_to_future.get(self._next_return_index)
        if future is None:
            raise ValueError("get_next() cannot be called after get_next_unordered(): the next in order was fetched")
        if timeout is not None:
            references = future if isinstance(future, list) else [future]
            ready, _ = ray_rust.wait(references, num_returns=len(references), timeout=timeout)
            if len(ready) < len(references):
                self._on_timeout(future, give_up=ignore_if_timedout)
        return self._take(future)

    def get_next_unordered(self, timeout: Optional[float] = None, ignore_if_timedout: bool = False) -> Any:
        """Any result, the first that is there.

        TimeoutError if there is none after `timeout` seconds; with `ignore_if_timedout` the oldest call
        is given up then.
        """
        self._check_has_next()
        # The last reference of a call with several is as good as any other: they come together.
        futures = {future[-1] if isinstance(future, list) else future: future for future in self._in_flight()}
        ready, _ = ray_rust.wait(list(futures), num_returns=1, timeout=timeout)
        if not ready:
            self._on_timeout(self._in_flight()[0], give_up=ignore_if_timedout)
        return self._take(futures[ready[0]])

    def _check_has_next(self) -> None:
        if not self.has_next():
            raise StopIteration("there is no result to wait for")

    def _in_flight(self) -> list[Future]:
        return list(self._index_to_future.values())

    def _on_timeout(self, future: Future, *, give_up: bool) -> None:
        if not give_up:
            raise TimeoutError("the result is not there yet")
        _, actor = self._forget(future)
        self._return_actor(actor)
        raise TimeoutError(f"the result was not there in time, and its call was given up: {future}")

    def _take(self, future: Future) -> Any:
        _, actor = self._forget(future)
        is_alive = True
        try:
            return ray_rust.get(future)
        except ActorDiedError:
            is_alive = False
            raise
        finally:
            self._return_actor(actor, is_alive=is_alive)

    def _forget(self, future: Future) -> tuple[int, ActorHandle]:
        index, actor = self._future_to_actor.pop(_key(future))
        del self._index_to_future[index]
        self._next_return_index = max(self._next_return_index, index + 1)
        return index, actor

    def _return_actor(self, actor: ActorHandle, *, is_alive: bool = True) -> None:
        if is_alive:
            self._idle_actors.append(actor)
        if self._pending_submits and self._idle_actors:
            self.submit(*self._pending_submits.popleft())

    def has_free(self) -> bool:
        """Whether an actor is idle and nothing waits for one."""
        return bool(self._idle_actors) and not self._pending_submits

    def pop_idle(self) -> Optional[ActorHandle]:
        """Takes an idle actor out of the pool; None if there is none."""
        return self._idle_actors.pop() if self.has_free() else None

    def push(self, actor: ActorHandle) -> None:
        """Adds an actor. ValueError if it is in the pool already."""
        if actor in self._idle_actors or any(actor == busy for _, busy in self._future_to_actor.values()):
            raise ValueError("the actor is in this pool already")
        self._return_actor(actor)


def _key(future: Future) -> Any:
    return tuple(future) if isinstance(future, list) else future
