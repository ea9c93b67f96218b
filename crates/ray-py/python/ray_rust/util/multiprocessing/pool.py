"""A pool of actors with the interface of `multiprocessing.Pool`.

A call is one batch of function calls for one actor. References are all that is kept of it here: results
are fetched by whoever asks for them, and a thread waits for them only where there is a callback.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sized
from multiprocessing import TimeoutError  # noqa: A004 - the name is that of the standard library
from typing import TYPE_CHECKING, Any, Callable, Optional, Union, cast

import ray_rust
from ray_rust.exceptions import RayError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from ray_rust import ObjectRef
    from ray_rust.actor import ActorHandle

    # Arguments of one function call.
    Call = tuple[Iterable[Any], dict[str, Any]]

__all__ = ["AsyncResult", "OrderedIMapIterator", "Pool", "PoolTaskError", "UnorderedIMapIterator"]

_CHUNKS_PER_ACTOR = 4
# How many chunks for each actor `imap` may be ahead of the result that is asked for.
_CHUNKS_AHEAD = 4


class PoolTaskError(Exception):
    """What a function raised in the pool: `underlying`."""

    def __init__(self, underlying: BaseException, traceback_str: str = "") -> None:
        super().__init__(underlying, traceback_str)
        self.underlying = underlying
        self.traceback_str = traceback_str

    def __str__(self) -> str:
        return f"\n{self.traceback_str}" if self.traceback_str else repr(self.underlying)

    def __reduce__(self) -> tuple[Any, ...]:
        from ray_rust._private.serialization import pack_exception

        # The exception may be one that cannot be pickled or loaded; this one always can.
        return (_load_task_error, (pack_exception(self.underlying), self.traceback_str))


def _load_task_error(packed: Any, traceback_str: str) -> PoolTaskError:
    from ray_rust._private.serialization import unpack_exception

    return PoolTaskError(unpack_exception(packed), traceback_str)


class PoolActor:
    """A process of a pool."""

    def __init__(self, initializer: Optional[Callable[..., Any]] = None, initargs: Iterable[Any] = ()) -> None:
        if initializer is not None:
            initializer(*initargs)

    def ping(self) -> None:
        """Returns when the actor is there."""

    def run_batch(self, func: Callable[..., Any], batch: list[Call]) -> list[Any]:
        """The results of all calls; `PoolTaskError` for those that raised."""
        results: list[Any] = []
        for args, kwargs in batch:
            try:
                results.append(func(*args, **kwargs))
            except Exception as error:  # noqa: BLE001 - code of the user
                results.append(PoolTaskError(error, traceback.format_exc()))
        return results


class AsyncResult:
    """The results of calls that may be under way; made by the pool's `..._async` methods."""

    def __init__(
        self,
        chunk_object_refs: list[ObjectRef],
        callback: Optional[Callable[[Any], Any]] = None,
        error_callback: Optional[Callable[[BaseException], Any]] = None,
        single_result: bool = False,
    ) -> None:
        self._refs = chunk_object_refs
        self._single_result = single_result
        self._called_back: Optional[threading.Event] = None
        if callback is not None or error_callback is not None:
            self._called_back = threading.Event()
            threading.Thread(
                target=self._call_back,
                args=(callback, error_callback, self._called_back),
                name="pool-callback",
                daemon=True,
            ).start()

    def wait(self, timeout: Optional[float] = None) -> None:
        """Returns when all results are there and the callback has run, or after `timeout` seconds."""
        self._wait(timeout)

    def _wait(self, timeout: Optional[float]) -> bool:
        if self._called_back is not None:
            return self._called_back.wait(timeout)
        if not self._refs:
            return True
        timeout = None if timeout is None else max(0, timeout)
        ready, _ = ray_rust.wait(self._refs, num_returns=len(self._refs), timeout=timeout)
        return len(ready) == len(self._refs)

    def get(self, timeout: Optional[float] = None) -> Any:
        """The result or results; raises what a call raised. TimeoutError after `timeout` seconds."""
        if not self._wait(timeout):
            raise TimeoutError(f"the results were not there after {timeout} s")
        results = []
        for batch in map(_fetch, self._refs):
            error = _first_error(batch)
            if error is not None:
                raise_error(error)
            results.extend(batch)
        return results[0] if self._single_result else results

    def ready(self) -> bool:
        """Whether all calls have ended."""
        return self._wait(0)

    def successful(self) -> bool:
        """Whether no call raised. ValueError if one is still under way."""
        if not self.ready():
            raise ValueError(f"{self!r} is not ready")
        return all(_first_error(_fetch(ref)) is None for ref in self._refs)

    def _call_back(
        self,
        callback: Optional[Callable[[Any], Any]],
        error_callback: Optional[Callable[[BaseException], Any]],
        called_back: threading.Event,
    ) -> None:
        """Calls one of them, once: with the results, or with what was raised first."""
        try:
            error = self._first_raised()
            if error is not None:
                if error_callback is not None:
                    error_callback(underlying(error))
            elif callback is not None:
                results = [result for ref in self._refs for result in _fetch(ref)]
                callback(results[0] if self._single_result else results)
        finally:
            called_back.set()

    def _first_raised(self) -> Optional[Union[PoolTaskError, _ActorFailure]]:
        """What was raised first in time, as soon as it is known; None when all results are there."""
        waiting = self._refs
        while waiting:
            ready, waiting = ray_rust.wait(waiting)
            error = _first_error(_fetch(ready[0]))
            if error is not None:
                return error
        return None


def _fetch(ref: ObjectRef) -> list[Any]:
    """The results of a batch; if its actor failed, that as the only one."""
    try:
        batch: list[Any] = ray_rust.get(ref)
    except RayError as error:
        return [_ActorFailure(error)]
    return batch


class _ActorFailure:
    """In the place of the results of a batch: why there are none."""

    def __init__(self, error: RayError) -> None:
        self.error = error


def _first_error(batch: list[Any]) -> Optional[Union[PoolTaskError, _ActorFailure]]:
    return next((result for result in batch if isinstance(result, (PoolTaskError, _ActorFailure))), None)


def underlying(error: Union[PoolTaskError, _ActorFailure]) -> BaseException:
    """The exception that the user knows."""
    if isinstance(error, _ActorFailure):
        return error.error
    # Shown with where it was raised, in the other process.
    error.underlying.__cause__ = error
    return error.underlying


def raise_error(error: Union[PoolTaskError, _ActorFailure]) -> None:
    """Raises what the user's function raised."""
    raise underlying(error)


class IMapIterator:
    """Results of `imap` and `imap_unordered`: each actor has one chunk at a time."""

    def __init__(self, pool: Pool, func: Callable[..., Any], iterable: Iterable[Any], chunksize: Optional[int]) -> None:
        self._pool = pool
        self._func = func
        if chunksize is None:
            chunksize = pool.chunk_size_for(iterable) if isinstance(iterable, Sized) else 1
        self._chunks = _chunks(iterable, chunksize)
        self._submitted = 0
        self._delivered = 0
        # By reference: the number of the chunk, and which actor works on it.
        self._in_flight: dict[ObjectRef, tuple[int, int]] = {}
        self._idle = deque(range(pool.size))
        self._results: deque[Any] = deque()
        self._submit()

    def _submit(self) -> None:
        """Gives a chunk to each idle actor, but does not run far ahead of what was delivered."""
        while self._idle and self._submitted - self._delivered < _CHUNKS_AHEAD * self._pool.size:
            chunk = next(self._chunks, None)
            if chunk is None:
                return
            actor_index = self._idle.popleft()
            ref = self._pool.submit_batch(actor_index, self._func, [((value,), {}) for value in chunk])
            self._in_flight[ref] = (self._submitted, actor_index)
            self._submitted += 1

    def _deliver(self, batch: list[Any]) -> None:
        self._results.extend(batch)
        self._delivered += 1
        self._submit()

    def _await_chunk(self, timeout: Optional[float]) -> tuple[int, list[Any]]:
        """The number and results of the next chunk that is done."""
        ready, _ = ray_rust.wait(list(self._in_flight), timeout=timeout)
        if not ready:
            raise TimeoutError("the next result is not there yet")
        index, actor_index = self._in_flight.pop(ready[0])
        batch = _fetch(ready[0])
        self._idle.append(actor_index)
        self._submit()
        return index, [result.error if isinstance(result, _ActorFailure) else result for result in batch]

    def __iter__(self) -> IMapIterator:
        return self

    def __next__(self) -> Any:
        return self.next()

    def next(self, timeout: Optional[float] = None) -> Any:
        """The next result, or the `PoolTaskError` in its place. TimeoutError after `timeout` seconds."""
        raise NotImplementedError


class OrderedIMapIterator(IMapIterator):
    """Results in the order of the arguments."""

    def __init__(self, pool: Pool, func: Callable[..., Any], iterable: Iterable[Any], chunksize: Optional[int]) -> None:
        self._arrived: dict[int, list[Any]] = {}
        super().__init__(pool, func, iterable, chunksize)

    def next(self, timeout: Optional[float] = None) -> Any:
        """The next result, or the `PoolTaskError` in its place. TimeoutError after `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._results:
            if self._delivered in self._arrived:
                self._deliver(self._arrived.pop(self._delivered))
                continue
            if not self._in_flight:
                raise StopIteration
            index, batch = self._await_chunk(None if deadline is None else max(0.0, deadline - time.monotonic()))
            self._arrived[index] = batch
        return self._results.popleft()


class UnorderedIMapIterator(IMapIterator):
    """Results as they come."""

    def next(self, timeout: Optional[float] = None) -> Any:
        """The next result, or the `PoolTaskError` in its place. TimeoutError after `timeout` seconds."""
        if not self._results:
            if not self._in_flight:
                raise StopIteration
            self._deliver(self._await_chunk(timeout)[1])
        return self._results.popleft()


class _Worker:
    """One place of a pool: the actor in it now, and how many batches that was given."""

    def __init__(self, actor: ActorHandle) -> None:
        self.actor = actor
        self.count = 0


class Pool:
    """A pool of actors that run functions, with the interface of `multiprocessing.Pool`.

    `processes` is by default the number of CPUs in the cluster. `initializer(*initargs)` runs at the
    start of each. After `maxtasksperchild` batches an actor is replaced by another one. `ray_address` is
    for `init`, if that was not called; `ray_remote_args` are options of the actors.
    """

    def __init__(
        self,
        processes: Optional[int] = None,
        initializer: Optional[Callable[..., Any]] = None,
        initargs: Optional[Iterable[Any]] = None,
        maxtasksperchild: Optional[int] = None,
        context: Any = None,
        ray_address: Optional[str] = None,
        ray_remote_args: Optional[dict[str, Any]] = None,
    ) -> None:
        if maxtasksperchild is not None and maxtasksperchild != -1 and maxtasksperchild < 1:
            raise ValueError(f"maxtasksperchild has to be at least 1, is {maxtasksperchild}")
        self._closed = False
        self._initializer = initializer
        self._initargs = tuple(initargs or ())
        self._maxtasksperchild = -1 if maxtasksperchild is None else maxtasksperchild
        # Calls that end actors; each is done when its actor is gone.
        self._endings: list[ObjectRef] = []
        # Those with callbacks that may not have run yet.
        self._calling_back: list[AsyncResult] = []
        self._next_actor = 0
        if context is not None:
            _warn_of_context()
        processes = _init_ray(processes, ray_address)
        self._actor_class = ray_rust.remote(num_cpus=0)(PoolActor).options(**(ray_remote_args or {}))
        self._actor_pool = [_Worker(self._new_actor()) for _ in range(processes)]
        ray_rust.get([worker.actor.ping.remote() for worker in self._actor_pool])

    @property
    def size(self) -> int:
        """How many actors there are."""
        return len(self._actor_pool)

    def _new_actor(self) -> ActorHandle:
        return cast("ActorHandle", self._actor_class.remote(self._initializer, self._initargs))

    def submit_batch(self, actor_index: int, func: Callable[..., Any], batch: list[Call]) -> ObjectRef:
        """Gives a batch of calls to an actor; the reference is of the list of their results."""
        self._check_running()
        worker = self._actor_pool[actor_index]
        ref: ObjectRef = worker.actor.run_batch.remote(func, batch)
        worker.count += 1
        if worker.count == self._maxtasksperchild:
            self._end(worker.actor)
            self._actor_pool[actor_index] = _Worker(self._new_actor())
        return ref

    def _end(self, actor: ActorHandle) -> None:
        """Ends an actor behind the calls that it was given."""
        if self._endings:
            _, self._endings = ray_rust.wait(self._endings, num_returns=len(self._endings), timeout=0)
        self._endings.append(actor.__ray_terminate__.remote())

    def apply(
        self, func: Callable[..., Any], args: Optional[Iterable[Any]] = None, kwargs: Optional[dict[str, Any]] = None
    ) -> Any:
        """The result of `func(*args, **kwargs)` in one of the actors."""
        return self.apply_async(func, args, kwargs).get()

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Optional[Iterable[Any]] = None,
        kwargs: Optional[dict[str, Any]] = None,
        callback: Optional[Callable[[Any], Any]] = None,
        error_callback: Optional[Callable[[BaseException], Any]] = None,
    ) -> AsyncResult:
        """As `apply`, without waiting. One of the callbacks gets the result, or what the function raised."""
        self._check_running()
        actor_index = self._next_actor
        self._next_actor = (actor_index + 1) % self.size
        ref = self.submit_batch(actor_index, func, [(tuple(args or ()), kwargs or {})])
        return self._result([ref], callback, error_callback, single_result=True)

    def _result(
        self,
        refs: list[ObjectRef],
        callback: Optional[Callable[[Any], Any]],
        error_callback: Optional[Callable[[BaseException], Any]],
        single_result: bool = False,
    ) -> AsyncResult:
        result = AsyncResult(refs, callback, error_callback, single_result)
        if callback is not None or error_callback is not None:
            self._calling_back = [one for one in self._calling_back if not one.ready()]
            self._calling_back.append(result)
        return result

    def map(self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: Optional[int] = None) -> list[Any]:
        """The results of `func(value)` for each value, in order; `chunksize` of them are one batch."""
        results: list[Any] = self.map_async(func, iterable, chunksize).get()
        return results

    def map_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: Optional[int] = None,
        callback: Optional[Callable[[list[Any]], Any]] = None,
        error_callback: Optional[Callable[[BaseException], Any]] = None,
    ) -> AsyncResult:
        """As `map`, without waiting. One of the callbacks gets all results, or what was raised first."""
        calls: list[Call] = [((value,), {}) for value in iterable]
        return self._result(self._submit_all(func, calls, chunksize), callback, error_callback)

    def starmap(
        self, func: Callable[..., Any], iterable: Iterable[Iterable[Any]], chunksize: Optional[int] = None
    ) -> list[Any]:
        """As `map`, with `func(*value)`."""
        calls: list[Call] = [(tuple(value), {}) for value in iterable]
        results: list[Any] = AsyncResult(self._submit_all(func, calls, chunksize)).get()
        return results

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        callback: Optional[Callable[[list[Any]], Any]] = None,
        error_callback: Optional[Callable[[BaseException], Any]] = None,
    ) -> AsyncResult:
        """As `map_async`, with `func(*value)`."""
        calls: list[Call] = [(tuple(value), {}) for value in iterable]
        return self._result(self._submit_all(func, calls, None), callback, error_callback)

    def _submit_all(self, func: Callable[..., Any], calls: list[Call], chunksize: Optional[int]) -> list[ObjectRef]:
        """Batches of the calls, to one actor after the other."""
        self._check_running()
        batches = _chunks(calls, chunksize if chunksize is not None else self.chunk_size_for(calls))
        return [self.submit_batch(index % self.size, func, batch) for index, batch in enumerate(batches)]

    def chunk_size_for(self, iterable: Sized) -> int:
        """How many calls make a batch, if the user does not say: so many that each actor gets a few batches."""
        return max(1, -(-len(iterable) // (self.size * _CHUNKS_PER_ACTOR)))

    def imap(
        self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: Optional[int] = 1
    ) -> OrderedIMapIterator:
        """As `map`, but the arguments are taken and sent, and the results fetched, as the iterator proceeds.

        In the place of a call that raised there is a `PoolTaskError`.
        """
        self._check_running()
        return OrderedIMapIterator(self, func, iterable, chunksize)

    def imap_unordered(
        self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: Optional[int] = 1
    ) -> UnorderedIMapIterator:
        """As `imap`, but the results as they come."""
        self._check_running()
        return UnorderedIMapIterator(self, func, iterable, chunksize)

    def _check_running(self) -> None:
        if self._closed:
            raise ValueError("the pool is closed and takes no more calls")

    def __enter__(self) -> Pool:  # noqa: PYI034 - typing.Self comes with Python 3.11
        self._check_running()
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.terminate()

    def close(self) -> None:
        """No more calls are taken; those under way go on."""
        if self._closed:
            return
        self._closed = True
        for worker in self._actor_pool:
            self._end(worker.actor)

    def terminate(self) -> None:
        """Ends all actors at once, with what they run."""
        self.close()
        for worker in self._actor_pool:
            ray_rust.kill(worker.actor)

    def join(self) -> None:
        """Waits until all actors of a closed pool are gone and callbacks have run. ValueError if it is not closed."""
        if not self._closed:
            raise ValueError("the pool is still running; close() or terminate() comes first")
        if self._endings:
            ray_rust.wait(self._endings, num_returns=len(self._endings))
            self._endings = []
        for result in self._calling_back:
            result.wait()
        self._calling_back = []


def _chunks(values: Iterable[Any], size: int) -> Iterator[list[Any]]:
    if size < 1:
        raise ValueError(f"chunksize has to be at least 1, is {size}")
    iterator = iter(values)
    # To the first empty one.
    return iter(lambda: list(itertools.islice(iterator, size)), [])


def _warn_of_context() -> None:
    import logging

    from ray_rust.util.debug import log_once

    if log_once("context_argument_warning"):
        logging.getLogger("ray_rust").warning("Pool() has no use for 'context': its processes are actors")


def _init_ray(processes: Optional[int], ray_address: Optional[str]) -> int:
    """Connects if need be. Returns how many actors to start."""
    if processes is not None and processes <= 0:
        raise ValueError(f"the pool has to have at least one process, got {processes}")
    if not ray_rust.is_initialized():
        address = ray_address or os.environ.get("RAY_ADDRESS")
        # Where a node is started it is made large enough; one that runs already is as large as it is.
        starts_node = address == "local" or (address is None and _find_running_node() is None)
        ray_rust.init(ray_address, num_cpus=processes if starts_node else None)
    cpus = int(ray_rust.cluster_resources().get("CPU", 0))
    if processes is None:
        processes = cpus
    if cpus < processes:
        raise ValueError(f"a pool of {processes} processes needs as many CPUs, but the cluster has {cpus}")
    return processes


def _find_running_node() -> Any:
    from ray_rust._private import node

    return node.advertised_node(node.temp_dir(None))
