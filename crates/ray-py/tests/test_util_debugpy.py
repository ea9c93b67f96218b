"""The debugger of editors in tasks and actors."""

import contextlib
import importlib.util
import itertools
import json
import os
import socket
import sys
import types

import pytest

import ray_rust as ray
from conftest import DEADLINE_S, wait_until
from ray_rust.util.state import list_workers

# Not imported here, where it would take breakpoints for itself.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("debugpy") is None, reason="needs debugpy")


class Editor:
    """As much of an editor as speaks the Debug Adapter Protocol."""

    def __init__(self, port):
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
        self._file = self._socket.makefile("rb")
        self._numbers = itertools.count(1)
        self._events = []
        self._ask("initialize", adapterID="test", pathFormat="path")
        # Answered only when the program goes on.
        attach = self._send("attach", justMyCode=False)
        self.wait_for("initialized")
        # As editors have it unless they are told otherwise.
        self._ask("setExceptionBreakpoints", filters=["uncaught"])
        self._ask("configurationDone")
        self._reply_to(attach)

    def _send(self, command, **arguments):
        number = next(self._numbers)
        message = {"seq": number, "type": "request", "command": command, "arguments": arguments}
        body = json.dumps(message).encode()
        self._socket.sendall(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        return number

    def _ask(self, command, **arguments):
        return self._reply_to(self._send(command, **arguments))

    def _reply_to(self, number):
        while True:
            message = self._read()
            if message["type"] == "response" and message["request_seq"] == number:
                assert message["success"], message
                return message.get("body")
            if message["type"] == "event":
                self._events.append(message)

    def _read(self):
        length = 0
        while line := self._file.readline().strip():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        assert length, "the debugger has hung up"
        return json.loads(self._file.read(length))

    def wait_for(self, event):
        while True:
            for number, known in enumerate(self._events):
                if known["event"] == event:
                    return self._events.pop(number).get("body")
            message = self._read()
            if message["type"] == "event":
                self._events.append(message)

    def value_of(self, expression):
        """In the frame where the program has stopped next, and the place of that."""
        self._thread = self.wait_for("stopped")["threadId"]
        frame = self._ask("stackTrace", threadId=self._thread)["stackFrames"][0]
        value = self._ask("evaluate", expression=expression, frameId=frame["id"])["result"]
        return value, frame["name"], frame["line"]

    def go_on(self):
        self._ask("continue", threadId=self._thread)

    def close(self):
        self._ask("disconnect", terminateDebuggee=False)
        for end in (self._file, self._socket):
            end.close()


@contextlib.contextmanager
def attached(worker):
    editor = Editor(worker.debugger_port)
    try:
        yield editor
    finally:
        editor.close()


def waiting_worker():
    """The worker that waits for an editor, as the state API tells it."""
    return wait_until(lambda: next((w for w in list_workers(detail=True) if w.num_paused_threads), None))


@ray.remote
def work(x):
    y = x + 1
    breakpoint()  # noqa: T100 - it is what is tested
    return y


@ray.remote
def work_by_name(x):
    y = x + 1
    ray.util.ray_debugpy.set_trace()
    return y


@pytest.mark.parametrize("function", [work, work_by_name], ids=["breakpoint", "set_trace"])
def test_an_editor_finds_a_task_and_looks_at_it(cluster, function):
    first = function.remote(40)
    worker = waiting_worker()
    assert worker.is_alive
    assert worker.worker_type == "WORKER"
    assert ray.wait([first], timeout=0)[0] == []
    with attached(worker) as editor:
        value, name, _ = editor.value_of("('y is', y)")
        assert (value, name) == ("('y is', 41)", function.__name__)
        editor.go_on()
        assert ray.get(first, timeout=DEADLINE_S) == 41


def test_each_breakpoint_stops_an_actor_on_the_same_port(cluster):
    @ray.remote
    class Actor:
        def work(self, x):
            y = x + 1
            breakpoint()  # noqa: T100
            return y

    actor = Actor.remote()
    first = actor.work.remote(1)
    worker = waiting_worker()
    with attached(worker) as editor:
        assert editor.value_of("y")[0] == "2"
        editor.go_on()
        assert ray.get(first, timeout=DEADLINE_S) == 2
        second = actor.work.remote(2)
        assert editor.value_of("y")[0] == "3"
        editor.go_on()
        assert ray.get(second, timeout=DEADLINE_S) == 3
    # It has gone: the next one waits again.
    third = actor.work.remote(3)
    again = waiting_worker()
    assert (again.worker_id, again.debugger_port) == (worker.worker_id, worker.debugger_port)
    with attached(again) as editor:
        assert editor.value_of("y")[0] == "4"
        editor.go_on()
        assert ray.get(third, timeout=DEADLINE_S) == 4


def test_an_exception_that_a_task_raises_is_looked_at_where_it_was_raised(cluster):
    @ray.remote(runtime_env={"env_vars": {"RAY_DEBUG_POST_MORTEM": "1"}})
    def fail():
        number = 7
        raise ValueError(number)

    ref = fail.remote()
    with attached(waiting_worker()) as editor:
        value, name, _ = editor.value_of("f'number is {number}'")
        assert (value, name) == ("'number is 7'", "fail")
        editor.go_on()
        with pytest.raises(ValueError, match="7"):
            ray.get(ref, timeout=DEADLINE_S)


def test_a_task_that_waits_can_be_cancelled(cluster):
    ref = work.remote(1)
    waiting_worker()
    ray.cancel(ref)
    with pytest.raises(ray.exceptions.TaskCancelledError):
        ray.get(ref, timeout=DEADLINE_S)


def test_without_debugpy_the_breakpoint_is_passed_over_with_a_word(run_script, tmp_path):
    (tmp_path / "debugpy.py").write_text("raise ModuleNotFoundError('no', name='debugpy')\n")
    out = run_script(
        "import os, sys\n"
        "os.environ['RAY_DEBUG'] = '1'\n"
        "import ray_rust as ray\n"
        "sys.stderr = sys.stdout\n"
        "@ray.remote\n"
        "def work():\n"
        "    breakpoint()\n"
        "    return 5\n"
        "ray.init('local', num_cpus=1)\n"
        "print('got', ray.get(work.remote()))\n"
        "ray.shutdown()\n"
    )
    assert "got 5" in out
    assert "needs debugpy 1.8 or later, and it is not installed" in out


def test_an_old_debugpy_is_refused_with_its_version(monkeypatch):
    said = []
    monkeypatch.setattr(ray.util.ray_debugpy.logger, "error", lambda text, *args: said.append(text % args))
    monkeypatch.setitem(sys.modules, "debugpy", types.SimpleNamespace(__version__="1.7.9"))
    ray.util.ray_debugpy.set_trace()
    assert "version 1.7.9 is too old" in said[0]


@pytest.mark.parametrize(
    ("asked", "in_driver", "chosen"),
    [(None, False, True), (None, True, False), ("1", True, True), ("1", False, True), ("legacy", False, False)],
)
def test_which_debugger_is_meant(monkeypatch, asked, in_driver, chosen):
    if asked is None:
        monkeypatch.delenv("RAY_DEBUG", raising=False)
    else:
        monkeypatch.setenv("RAY_DEBUG", asked)
    assert ray.util.ray_debugpy.is_chosen(in_driver=in_driver) == chosen


def test_there_has_to_be_an_exception_to_look_at():
    with pytest.raises(ValueError, match="no exception"):
        ray.util.ray_debugpy.set_trace(ray.util.ray_debugpy.POST_MORTEM_ERROR_UUID)


def test_the_own_debugger_stays_where_it_is_asked_for(cluster):
    @ray.remote(runtime_env={"env_vars": {"RAY_DEBUG": "legacy"}})
    def legacy():
        breakpoint()  # noqa: T100
        return os.getpid()

    legacy.remote()
    folder = os.path.join(ray._private.session.current_session().core.session_dir, "sockets")

    def socket_of_debugger():
        return next((name for name in os.listdir(folder) if name.startswith("debugger-")), None)

    path = os.path.join(folder, wait_until(socket_of_debugger))
    with socket.socket(socket.AF_UNIX) as connection:
        wait_until(lambda: connection.connect_ex(path) == 0)
    assert not any(worker.num_paused_threads for worker in list_workers(detail=True))
