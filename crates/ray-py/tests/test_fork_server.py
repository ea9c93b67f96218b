"""The process that makes workers, driven by the test in place of the node."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time

import pytest

from conftest import DEADLINE_S, is_running, wait_until

# A worker that prints what it got, then waits for its end.
SERVER = """
import os, signal, socket, sys, time
from ray_rust._private import default_worker, fork_server

def run(order):
    default_worker._redirect_output(order["stdout"], order["stderr"])
    print(order["env"]["GREETING"], signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
    if order["env"].get("EXIT"):
        return int(order["env"]["EXIT"])
    if order["env"].get("RAISE"):
        raise RuntimeError(order["env"]["RAISE"])
    time.sleep(1000)

default_worker.run = run
fork_server.serve(socket.socket(fileno=int(sys.argv[1])))
"""


class Server:
    def __init__(self, folder):
        self.folder = folder
        self.connection, other = socket.socketpair()
        with other:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVER, str(other.fileno())], pass_fds=[other.fileno()]
            )
        self._input = b""

    def fork(self, number, **env):
        order = {
            "worker_id": f"{number:032x}",
            "stdout": str(self.folder / f"{number}.out"),
            "stderr": str(self.folder / f"{number}.err"),
            "env": {"GREETING": "hello", **env},
        }
        self.connection.sendall(json.dumps({"fork": order}).encode() + b"\n")

    def receive(self):
        deadline = time.monotonic() + DEADLINE_S
        while b"\n" not in self._input:
            ready, _, _ = select.select([self.connection], [], [], max(0, deadline - time.monotonic()))
            assert ready, "the fork server said nothing"
            received = self.connection.recv(4096)
            assert received, "the fork server is gone"
            self._input += received
        line, _, self._input = self._input.partition(b"\n")
        return json.loads(line)

    def output(self, number, kind="out"):
        path = self.folder / f"{number}.{kind}"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    yield server
    server.connection.close()
    server.process.wait(DEADLINE_S)


def test_a_worker_is_forked_with_its_files_and_variables(server):
    server.fork(1)
    forked = server.receive()["forked"]
    assert forked["worker_id"] == f"{1:032x}"
    wait_until(lambda: server.output(1) == "hello True\n")
    assert is_running(forked["pid"])


def test_exits_and_kills_are_told(server):
    server.fork(1, EXIT="3")
    pid = server.receive()["forked"]["pid"]
    assert server.receive() == {"exited": {"pid": pid, "code": 3, "signal": None}}
    server.fork(2)
    pid = server.receive()["forked"]["pid"]
    os.kill(pid, signal.SIGKILL)
    assert server.receive() == {"exited": {"pid": pid, "code": None, "signal": 9}}


def test_a_worker_that_fails_leaves_its_traceback_and_the_server_goes_on(server):
    server.fork(1, RAISE="broken")
    pid = server.receive()["forked"]["pid"]
    assert server.receive() == {"exited": {"pid": pid, "code": 1, "signal": None}}
    assert "RuntimeError: broken" in server.output(1, "err")
    server.fork(2, EXIT="0")
    assert "forked" in server.receive()


def test_many_orders_at_once_are_all_carried_out(server):
    for number in range(20):
        server.fork(number, EXIT="0")
    messages = [server.receive() for _ in range(40)]
    assert len({message["forked"]["pid"] for message in messages if "forked" in message}) == 20
    assert sum("exited" in message for message in messages) == 20


def test_workers_end_when_the_node_closes_the_connection(server):
    pids = []
    for number in range(3):
        server.fork(number)
        pids.append(server.receive()["forked"]["pid"])
    server.connection.close()
    assert server.process.wait(DEADLINE_S) == 0
    wait_until(lambda: not any(is_running(pid) for pid in pids))


def test_workers_end_with_a_fork_server_that_is_killed(server):
    server.fork(1)
    pid = server.receive()["forked"]["pid"]
    wait_until(lambda: server.output(1))
    server.process.kill()
    wait_until(lambda: not is_running(pid))
