"""The debugger in tasks and actors."""

import os
import socket
import stat
import subprocess
import sys
import warnings

import pytest

import ray_rust as ray
from conftest import DEADLINE_S, wait_until
from ray_rust._private import session
from ray_rust.util import accelerators


@pytest.fixture(scope="module", autouse=True)
def _this_debugger():
    """Where debugpy is installed, it would be that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_DEBUG", "legacy")
        yield


@pytest.fixture
def sockets(cluster):
    folder = os.path.join(session.current_session().core.session_dir, "sockets")

    def find():
        return [os.path.join(folder, name) for name in os.listdir(folder) if name.startswith("debugger-")]

    yield lambda: wait_until(find)[0]
    assert find() == []


def talk(path, text):
    """Sends lines to a debugger and returns what it says until it hangs up."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(DEADLINE_S)
        wait_until(lambda: connection.connect_ex(path) == 0)
        connection.sendall(text.encode())
        said = b""
        while data := connection.recv(4096):
            said += data
    return said.decode()


@ray.remote
def by_name(x):
    y = x + 1
    ray.util.pdb.set_trace()
    return y


@ray.remote
def by_builtin(x):
    y = x + 1
    breakpoint()  # noqa: T100 - it is what is tested
    return y


@pytest.mark.parametrize("function", [by_name, by_builtin], ids=["set_trace", "breakpoint"])
def test_a_task_waits_for_a_debugger(sockets, function):
    ref = function.remote(1)
    path = sockets()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert ray.wait([ref], timeout=0)[0] == []
    said = talk(path, "p ('x is', x)\ny = 40\nc\n")
    assert "('x is', 1)" in said
    assert "return y" in said
    assert ray.get(ref, timeout=DEADLINE_S) == 40


def test_the_task_goes_on_when_the_debugger_hangs_up(sockets):
    ref = by_name.remote(1)
    path = sockets()
    with socket.socket(socket.AF_UNIX) as connection:
        wait_until(lambda: connection.connect_ex(path) == 0)
    assert ray.get(ref, timeout=DEADLINE_S) == 2


def test_quitting_ends_the_task(sockets):
    ref = by_name.remote(1)
    talk(sockets(), "q\n")
    with pytest.raises(Exception, match="BdbQuit"):
        ray.get(ref, timeout=DEADLINE_S)


def test_a_task_that_waits_can_be_cancelled(sockets):
    ref = by_name.remote(1)
    sockets()
    ray.cancel(ref)
    with pytest.raises(ray.exceptions.TaskCancelledError):
        ray.get(ref, timeout=DEADLINE_S)


def test_an_exception_can_be_looked_at(sockets):
    @ray.remote
    def work():
        try:
            number = 7
            raise ValueError(number)
        except ValueError:
            ray.util.pdb.post_mortem()
        return "done"

    ref = work.remote()
    assert "number is 7" in talk(sockets(), "p f'number is {number}'\nc\n")
    assert ray.get(ref, timeout=DEADLINE_S) == "done"
    with pytest.raises(ValueError, match="no exception"):
        ray.util.pdb.post_mortem()


def test_the_command_connects(sockets):
    ref = by_name.remote(1)
    done = subprocess.run(
        [sys.executable, "-m", "ray_rust.util.rpdb", sockets()],
        input="p 'here it is'\ny = 41\nc\n",
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE_S,
    )
    assert "here it is" in done.stdout
    assert ray.get(ref, timeout=DEADLINE_S) == 41


def test_the_driver_is_told_where(run_script):
    out = run_script(
        "import contextlib, socket, sys, io\n"
        "import ray_rust as ray\n"
        "from ray_rust._private import log_printer\n"
        "sys.stderr = sys.stdout\n"
        "@ray.remote\n"
        "def work():\n"
        "    breakpoint()\n"
        "    return 5\n"
        "ray.init('local', num_cpus=1)\n"
        "shown = []\n"
        "import glob, os, time\n"
        "ref = work.remote()\n"
        "pattern = os.path.join(ray._private.session.current_session().core.session_dir, 'sockets', 'debugger-*')\n"
        "while not glob.glob(pattern): pass\n"
        "connection = socket.socket(socket.AF_UNIX)\n"
        "while connection.connect_ex(glob.glob(pattern)[0]): pass\n"
        "connection.sendall(b'c\\n')\n"
        "print('got', ray.get(ref))\n"
        "ray.shutdown()\n"
    )
    assert "got 5" in out
    assert "script.py:7 waits for a debugger: " in out
    assert "-m ray_rust.util.rpdb /" in out


def test_types_of_accelerators_have_names():
    assert accelerators.NVIDIA_TESLA_V100 == "V100"
    assert accelerators.AMD_INSTINCT_MI300x == "AMD-Instinct-MI300X-OAM"
    with pytest.warns(DeprecationWarning, match="NVIDIA_A100"):
        assert accelerators.NVIDIA_TESLA_A100 == "A100"
    with pytest.raises(AttributeError), warnings.catch_warnings():
        _ = accelerators.NVIDIA_ABACUS
