"""The event loops of an actor with coroutine methods.

Each concurrency group has a loop: that of calls without a group runs on the main thread, the others on threads
of their own, so that code that blocks one loop does not block the others. A loop waits for the sockets of the
core itself, and asks the core to start the calls that have come (`CoreWorker.serve_loop`).
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import selectors
import sys
import threading
import types
from typing import TYPE_CHECKING, Any, Callable, Optional

from ray_rust import _internal

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine, Sequence

# What `StartedCall.send` and `flow` say beside "go on".
_WAIT = 1
_STOP = 2

# Times that only calls are looked for before everything else that the loop waits for is.
_LOOKS_IN_A_ROW = 8

_key: contextvars.ContextVar[Optional[int]] = contextvars.ContextVar("ray_rust_running_call", default=None)


class EventLoops:
    """All loops of this process's actor."""

    def __init__(self, core: _internal.CoreWorker, group_names: Sequence[str]) -> None:
        self._core = core
        self._groups = ["", *group_names]
        self._selectors = {name: _ServingSelector() for name in self._groups}
        self._loops = {name: asyncio.SelectorEventLoop(selector) for name, selector in self._selectors.items()}
        # Replies that were not written when a call ended, by loop: they are, when the loop has done what it can.
        self._unwritten: set[str] = set()
        self._tasks: dict[int, tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = {}
        # Generator calls that wait for their readers.
        self._paused: dict[int, tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = {}
        asyncio.set_event_loop(self._loops[""])
        _internal.set_task_variable(_key)

    def construct(self, actor_class: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Makes the actor inside its loop, for constructors start tasks there, or are coroutines."""
        return self._loops[""].run_until_complete(_construct(actor_class, args, kwargs))

    def start(
        self, call: _internal.StartedCall, method: Optional[Callable[..., Any]], args: tuple[Any, ...], kwargs: Any
    ) -> None:
        """Starts a call, on the thread of its loop."""
        loop = self._loops[call.group]
        task = _start_task(loop, self._run(call, method, args, kwargs), getattr(method, "__name__", "call"))
        if not task.done():
            # The loop itself would let go of a task that waits.
            self._tasks[call.key] = (loop, task)

    async def _run(
        self, call: _internal.StartedCall, method: Optional[Callable[..., Any]], args: tuple[Any, ...], kwargs: Any
    ) -> None:
        key, group = call.key, call.group
        _key.set(key)
        try:
            if method is None:
                call.succeed(True)
                return
            result = method(*args, **kwargs)
            if isinstance(result, types.CoroutineType):
                result = await result
            if not call.is_generator:
                call.succeed(result)
            elif await self._produce(call, result):
                call.succeed(None)
            else:
                call.stop()
        except GeneratorExit:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the caller's
            call.fail(error)
        finally:
            self._tasks.pop(key, None)
            if group not in self._unwritten:
                self._unwritten.add(group)
                self._loops[group].call_soon(self._write, group)

    async def _produce(self, call: _internal.StartedCall, iterated: Any) -> bool:
        """Sends what a method yields. Returns whether that was all; else nobody wants the rest.

        Between two items of an asynchronous generator, and while its reader falls behind, other calls go on.
        """
        items = _items_of(iterated)
        stats: Any = None
        try:
            while True:
                try:
                    value = await items.asend(stats)
                except StopAsyncIteration:
                    return True
                flow, stats = call.send(value)
                # Nothing refers to what was sent while the next is awaited.
                del value
                if flow == _WAIT:
                    flow = await self._flow_after_wait(call)
                if flow == _STOP:
                    return False
        finally:
            await items.aclose()

    async def _flow_after_wait(self, call: _internal.StartedCall) -> int:
        loop = asyncio.get_running_loop()
        while True:
            resumed = loop.create_future()
            self._paused[call.key] = (loop, resumed)
            try:
                flow = call.flow()
                if flow != _WAIT:
                    return flow
                await resumed
            finally:
                self._paused.pop(call.key, None)

    def resume(self, key: int) -> None:
        """A generator that has waited may look whether it can go on; from any thread."""
        found = self._paused.get(key)
        if found is not None:
            loop, resumed = found
            loop.call_soon_threadsafe(_resolve, resumed)

    def _write(self, group: str) -> None:
        self._unwritten.discard(group)
        self._core.flush_replies()

    def cancel(self, key: int) -> None:
        """Cancels a call, from any thread."""
        found = self._tasks.get(key)
        if found is not None:
            loop, task = found
            loop.call_soon_threadsafe(task.cancel)

    def run(self) -> None:
        """Serves until the process has nothing left to do."""
        for index, name in enumerate(self._groups):
            if name:
                threading.Thread(
                    target=self._serve, args=(index, name), name=f"concurrency group {name}", daemon=True
                ).start()
        self._serve(0, "")

    def _serve(self, index: int, name: str) -> None:
        loop = self._loops[name]
        asyncio.set_event_loop(loop)

        def serve() -> None:
            go_on = False
            # It writes the replies of what it starts.
            self._unwritten.add(name)
            try:
                go_on = self._core.serve_loop(index)
            finally:
                self._unwritten.discard(name)
                if not go_on:
                    loop.stop()

        descriptors = self._core.loop_descriptors(index)
        for descriptor in descriptors:
            loop.add_reader(descriptor, serve)
        self._selectors[name].serve_by(loop, descriptors, lambda: self._core.look_for_calls(index), serve)
        loop.call_soon(serve)
        loop.run_forever()


class _ServingSelector(selectors.DefaultSelector):
    """What a loop waits by, which starts the calls that come while the loop has nothing to do.

    Most of them end with their first step, and so do without a round of the loop, which costs more than they do.
    """

    def __init__(self) -> None:
        super().__init__()
        self._serve: Optional[Callable[[], None]] = None
        self._turns = 0

    def serve_by(
        self,
        loop: asyncio.AbstractEventLoop,
        descriptors: Sequence[int],
        look: Callable[[], bool],
        serve: Callable[[], None],
    ) -> None:
        """From now on `serve` is called when `look` finds something, or only these descriptors are ready."""
        self._look = look
        self._loop = loop
        self._descriptors = frozenset(descriptors)
        self._serve = serve

    def select(self, timeout: Optional[float] = None) -> list[tuple[selectors.SelectorKey, int]]:
        serve = self._serve
        if serve is None or timeout is not None:
            ready: list[tuple[selectors.SelectorKey, int]] = super().select(timeout)
            return ready
        # The loop has nothing to do, and no timer: it waits for what happens outside.
        while True:
            self._turns += 1
            # Calls that come without a pause must not hide the rest.
            if self._turns % _LOOKS_IN_A_ROW == 0 and self._is_foreign(ready := super().select(0)):
                return ready
            if not self._look() and self._is_foreign(ready := super().select(None)):
                return ready
            try:
                serve()
            except Exception as error:  # noqa: BLE001 - the loop has to go on
                self._loop.call_exception_handler({"message": "calls could not be started", "exception": error})
            if self._has_work():
                return []

    def _is_foreign(self, ready: list[tuple[selectors.SelectorKey, int]]) -> bool:
        return not all(key.fd in self._descriptors for key, _ in ready)

    def _has_work(self) -> bool:
        # Other loops than those of the standard library tell nobody, and look themselves.
        loop: Any = self._loop
        return bool(getattr(loop, "_ready", True)) or bool(loop._scheduled) or loop._stopping  # noqa: SLF001


def _start_task(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """A task that has made its first step already, outside of any other, in a context of its own.

    Most calls end with it, and so do without a round of the loop, which costs more than they do.
    """
    # A name that is given need not be made.
    if sys.version_info >= (3, 12):
        return asyncio.Task(coroutine, loop=loop, name=name, context=contextvars.Context(), eager_start=True)
    task: asyncio.Task[None]
    if sys.version_info >= (3, 11):
        task = asyncio.Task(coroutine, loop=loop, name=name, context=contextvars.Context())
    else:
        task = contextvars.Context().run(functools.partial(asyncio.Task, coroutine, loop=loop, name=name))
    # What `eager_start` does since Python 3.12: the step that was queued last is run now. Other loops than
    # those of the standard library have no such queue.
    queue = getattr(loop, "_ready", None)
    if queue:
        queue.pop()._run()  # noqa: SLF001
    return task


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _items_of(iterated: Any) -> AsyncGenerator[Any, Any]:
    """What a method has returned, as an asynchronous generator."""
    if isinstance(iterated, types.AsyncGeneratorType):
        return iterated
    if hasattr(iterated, "__anext__"):
        return _from_async_iterator(iterated)
    if hasattr(iterated, "__next__"):
        return _from_iterator(iterated)
    raise ValueError(
        'it was called as a generator (num_returns is "streaming" or "dynamic"), and so has to yield or return an '
        f"iterator, but it returned a value of type {type(iterated).__name__}"
    )


async def _from_async_iterator(iterator: Any) -> AsyncGenerator[Any, Any]:
    async for value in iterator:
        yield value


async def _from_iterator(iterator: Any) -> AsyncGenerator[Any, Any]:
    stats: Any = None
    try:
        while True:
            try:
                # While it is amid a `yield from` of what is no generator, nothing can be sent into it.
                takes = isinstance(iterator, types.GeneratorType) and iterator.gi_yieldfrom is None
                value = iterator.send(stats) if takes else next(iterator)
            except StopIteration:
                return
            stats = yield value
    finally:
        if isinstance(iterator, types.GeneratorType):
            iterator.close()


async def _construct(actor_class: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    constructor: Any = actor_class.__init__  # type: ignore[misc]
    if not asyncio.iscoroutinefunction(constructor):
        return actor_class(*args, **kwargs)
    make: Any = actor_class.__new__
    # That of `object` refuses arguments, which are the constructor's.
    actor = make(actor_class) if make is object.__new__ else make(actor_class, *args, **kwargs)
    await constructor(actor, *args, **kwargs)
    return actor
