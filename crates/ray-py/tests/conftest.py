"""What the tests share: clusters, scripts that run as processes of their own, and waiting."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time

import pytest

import ray_rust

# Long enough for a loaded machine; only a test that fails waits so long.
DEADLINE_S = 30


def wait_until(condition, timeout=DEADLINE_S, what="the condition"):
    """Polls until the condition is true and returns its value."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what} did not become true within {timeout} s"
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def no_address(monkeypatch):
    """Tests choose their cluster themselves."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture(scope="session", autouse=True)
def sessions_folder():
    """Sessions of the tests are kept apart; the path is short, because paths of sockets have to be."""
    folder = tempfile.mkdtemp(prefix="rr-")
    os.environ["RAY_RUST_TMPDIR"] = folder
    yield folder
    ray_rust.shutdown()
    wait_until(lambda: not processes_of(folder), what=f"the end of all processes of {folder}")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def own_folder(monkeypatch):
    """A folder of sessions for one test, which may start and kill what it likes there."""
    ray_rust.shutdown()
    folder = tempfile.mkdtemp(prefix="rr-")
    monkeypatch.setenv("RAY_RUST_TMPDIR", folder)
    yield folder
    ray_rust.shutdown()
    for pid in processes_of(folder):
        kill_quietly(pid)
    wait_until(lambda: not processes_of(folder))
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def _module_cluster(sessions_folder):
    ray_rust.shutdown()
    ray_rust.init("local", num_cpus=4, resources={"gizmo": 2}, namespace="tests")
    yield
    ray_rust.shutdown()


@pytest.fixture
def cluster(_module_cluster):
    """A cluster of 4 CPUs that the tests of a module share; made again if a test has shut it down."""
    if not ray_rust.is_initialized():
        ray_rust.init("local", num_cpus=4, resources={"gizmo": 2}, namespace="tests")
    return ray_rust


@pytest.fixture
def no_cluster():
    """Not connected, before and after."""
    ray_rust.shutdown()
    yield
    ray_rust.shutdown()


def processes_of(folder):
    """Process ids of all processes, but for this one, whose sessions are in the folder."""
    marker = f"RAY_RUST_TMPDIR={folder}".encode()
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                if marker not in file.read().split(b"\0"):
                    continue
            with open(f"/proc/{name}/stat", "rb") as file:
                state = file.read().rpartition(b")")[2].split()[0]
        except OSError:
            continue
        if state not in (b"Z", b"X"):
            found.append(int(name))
    return found


def is_running(pid):
    """Whether the process has not ended; one that nobody has reaped yet has."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


def sockets_of(folder):
    """Sockets in the file system that sessions in the folder have."""
    return [
        os.path.join(parent, name)
        for parent, _, names in os.walk(folder)
        for name in names
        if name.endswith(".sock") or "sockets" in parent
    ]


def shared_memory():
    """Named shared memory on this machine."""
    return {name for name in os.listdir("/dev/shm") if "ray" in name}


def kill_quietly(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 9)


class Script:
    """A program that runs in a process of its own, with its own folder of sessions."""

    def __init__(self, tmp_path, source, folder, *arguments):
        self.path = tmp_path / "script.py"
        self.path.write_text(source)
        self.folder = folder
        environment = {**os.environ, "RAY_RUST_TMPDIR": folder, "PYTHONUNBUFFERED": "1"}
        environment.pop("RAY_ADDRESS", None)
        self.process = subprocess.Popen(
            [sys.executable, str(self.path), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=environment,
        )

    def finish(self, timeout=50):
        """Exit status, output and error output."""
        out, err = self.process.communicate(timeout=timeout)
        return self.process.returncode, out, err

    def read_until(self, text):
        """Reads its output up to the line that contains the text."""
        for line in self.process.stdout:
            if text in line:
                return line
        raise AssertionError(f"the script ended without {text!r}: {self.process.communicate()[1]}")

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@pytest.fixture
def script(tmp_path):
    """Starts a script; ends it, and whatever it left, after the test."""
    folder = tempfile.mkdtemp(prefix="rr-")
    started = []

    def start(source, *arguments):
        started.append(Script(tmp_path, source, folder, *arguments))
        return started[-1]

    yield start
    for one in started:
        one.close()
    for pid in processes_of(folder):
        kill_quietly(pid)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def run_script(script):
    """Runs a script to its end, which has to be a good one, and returns what it printed."""

    def run(source, *arguments):
        status, out, err = script(source, *arguments).finish()
        assert status == 0, f"the script failed ({status}):\n{out}\n{err}"
        return out

    return run
