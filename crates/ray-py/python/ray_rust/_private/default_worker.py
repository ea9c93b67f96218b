"""A worker process: what the compiled core asks of Python while it runs tasks."""

from __future__ import annotations

import io
import json
import os
import pickle
import signal
import sys
import types
from typing import TYPE_CHECKING, Any, Callable, Optional

from ray_rust import _internal
from ray_rust._private import called, gpus, serialization, session
from ray_rust._private import options as option_checks
from ray_rust._private.runtime_env.apply import Environment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ray_rust._private.event_loops import EventLoops


def run(order: dict[str, Any]) -> int:
    """Works until the node says that it is enough. Returns the exit status."""
    os.environ.update(order.get("env", {}))
    environment = Environment(order.get("runtime_env", ""), order.get("context", {}))
    environment.set_variables()
    gpus.visibility()
    logs = os.path.dirname(order["stdout"])
    worker_id = bytes.fromhex(order["worker_id"])
    speaker = _redirect_output(order["stdout"], order["stderr"])
    _enable_crash_reports()
    sys.breakpointhook = _wait_for_debugger
    # Functions of the driver's script say that they are of `__main__`, which is not the daemon's here.
    sys.modules["__main__"] = types.ModuleType("__main__")
    sys.argv = [""]
    _internal.init_logging("worker", logs)
    executor = _Executor(speaker, environment)
    core = _internal.CoreWorker.connect_worker(order["socket"], worker_id, executor, environment.text)
    session.set_session(session.Session(core, "", None, is_driver=False))
    executor.core = core
    _listen_to_cancellation(core)
    if core.run():
        executor.run_event_loops()
    return 0


class _Speaker:
    """Whom output belongs to; each stream says so before the first line of another."""

    __slots__ = ("announcement",)

    def __init__(self) -> None:
        self.announcement = ""


class _OutputStream(io.TextIOWrapper):
    """Standard output of a worker: a file, in which lines say whose the following are.

    The line is written only when something is printed, so that tasks that print nothing cost nothing.
    """

    def __init__(self, buffer: Any, speaker: _Speaker) -> None:
        super().__init__(buffer, encoding="utf-8", errors="backslashreplace", line_buffering=True)
        self._speaker = speaker
        self._announced = ""
        self._at_line_start = True

    def write(self, text: str) -> int:
        announcement = self._speaker.announcement
        if announcement != self._announced:
            self._announced = announcement
            super().write(announcement if self._at_line_start else "\n" + announcement)
        written = super().write(text)
        if text:
            self._at_line_start = text[-1] == "\n"
            if not self._at_line_start:
                # Whoever prints a progress bar, or dies in the middle of a line, wants it seen.
                self.flush()
        return written


def _redirect_output(stdout: str, stderr: str) -> _Speaker:
    speaker = _Speaker()
    for descriptor, path in ((1, stdout), (2, stderr)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        # Code that is not Python writes to the descriptors themselves.
        os.dup2(file, descriptor)
        os.close(file)
    sys.stdout = _OutputStream(open(1, "wb", closefd=False), speaker)  # noqa: SIM115 - lives as long as the process
    sys.stderr = _OutputStream(open(2, "wb", closefd=False), speaker)  # noqa: SIM115
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr  # type: ignore[misc]
    return speaker


def _listen_to_cancellation(core: _internal.CoreWorker) -> None:
    """The core sends this process SIGINT when the running task is cancelled."""

    def interrupt(_number: int, _frame: Optional[types.FrameType]) -> None:
        # The task may have ended in the meantime, and another one must not pay for it.
        if core.is_task_cancelled():
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)


def _wait_for_debugger(*_args: Any, **_kwargs: Any) -> None:
    """`breakpoint()`: there is no console here."""
    from ray_rust.util import rpdb

    rpdb.break_at(sys._getframe(1))  # noqa: SLF001 - debuggers need it


def _enable_crash_reports() -> None:
    """A process that a fault kills leaves its Python stack among its output."""
    import faulthandler

    faulthandler.enable(file=2)


class _Executor:
    """See `_internal.Executor`."""

    def __init__(self, speaker: _Speaker, environment: Environment) -> None:
        self._speaker = speaker
        self._environment = environment
        self.core: Optional[_internal.CoreWorker] = None
        self._event_loops: Optional[EventLoops] = None

    def set_job(self, job_config: bytes) -> None:
        config = json.loads(job_config)
        # The driver's order comes first: what it imports is what its tasks import.
        self._environment.enter(config["sys_path"], config["working_dir"])
        if config["as_ray"]:
            from ray_rust._private import as_ray

            as_ray.install()
        core = self.core or session.connected_core()
        lifetime = config["default_actor_lifetime"]
        session.set_session(session.Session(core, config["namespace"], None, is_driver=False, actor_lifetime=lifetime))
        if config["logging"] is not None:
            from ray_rust._private.ray_logging.logging_config import LoggingConfig

            LoggingConfig.from_dict(config["logging"])._apply()  # noqa: SLF001 - Ray's name
        try:
            self._environment.run_hook()
        except BaseException:  # noqa: BLE001 - whatever it is, tasks have to be told
            import traceback

            raise RuntimeError(
                f"the hook that prepares workers (worker_process_setup_hook) failed:\n{traceback.format_exc()}"
            ) from None

    def set_devices(self, devices: Sequence[int]) -> None:
        gpus.visibility().show(list(devices))

    def load(self, pickled: bytes, function_id: bytes) -> Callable[..., Any]:
        function: Callable[..., Any] = pickle.loads(pickled)
        called.remember(function_id, function)
        return function

    def is_listed(self, error: BaseException, types: bytes) -> bool:
        return option_checks.is_retried(error, types)

    def announce(self, kind: str, name: str) -> None:
        self._speaker.announcement = f":{kind}_name:{name}\n"

    def start_threads(self, group: int, count: int) -> None:
        import threading

        core = session.connected_core()

        def serve() -> None:
            core.run_thread(group)

        for _ in range(count):
            try:
                threading.Thread(target=serve, name="actor thread", daemon=True).start()
            except RuntimeError as error:
                print(f"a thread for calls of this actor cannot be started: {error}", file=sys.stderr)  # noqa: T201
                core.on_thread_not_started(group)

    def make_async_actor(
        self, actor_class: type, args: tuple[Any, ...], kwargs: dict[str, Any], groups: list[str]
    ) -> Any:
        from ray_rust._private.event_loops import EventLoops

        self._event_loops = EventLoops(session.connected_core(), groups)
        return self._event_loops.construct(actor_class, args, kwargs)

    def run_event_loops(self) -> None:
        if self._event_loops is not None:
            self._event_loops.run()

    def start_call(
        self,
        call: _internal.StartedCall,
        method: Optional[Callable[..., Any]],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        if self._event_loops is not None:
            self._event_loops.start(call, method, args, kwargs)

    def cancel_call(self, key: int) -> None:
        if self._event_loops is not None:
            self._event_loops.cancel(key)

    def resume_call(self, key: int) -> None:
        if self._event_loops is not None:
            self._event_loops.resume(key)

    def encode_error(self, error: BaseException, task_name: str) -> bytes:
        if os.environ.get("RAY_DEBUG_POST_MORTEM") == "1" and isinstance(error, Exception):
            from ray_rust.util import rpdb

            rpdb.stop_at_error(error)
        actor_id = self.core.current_actor_id() if self.core is not None else None
        return serialization.encode_error(error, task_name, actor_id.hex() if actor_id is not None else None)
