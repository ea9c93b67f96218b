"""However a driver ends, nothing of its cluster is left two seconds later."""

import os
import signal
import time

import pytest

from conftest import processes_of, shared_memory, sockets_of

CLEANUP_DEADLINE_S = 2

PROGRAM = """
import os, signal, sys, time
import numpy as np
import ray_rust as ray

ray.init(num_cpus=2)

@ray.remote
def sleep():
    time.sleep(1000)

@ray.remote
def with_child():
    import subprocess
    return subprocess.Popen(["sleep", "1000"]).pid

@ray.remote
class Keeper:
    def ping(self):
        return os.getpid()

keeper = Keeper.remote()
large = ray.put(np.zeros(1 << 20))
ray.get([keeper.ping.remote(), with_child.remote()])
running = [sleep.remote() for _ in range(4)]
print("ready", flush=True)
"""

ENDINGS = {
    "shutdown": "ray.shutdown()",
    "normal exit": "",
    "exception": "raise RuntimeError('on purpose')",
    "sys.exit": "sys.exit(3)",
    "waiting": "ray.get(running)",
}


def assert_nothing_left(folder, memory_before):
    """Polls for as long as processes may take to end, not longer."""
    deadline = time.monotonic() + CLEANUP_DEADLINE_S
    while True:
        left = (processes_of(folder), sockets_of(folder), shared_memory() - memory_before)
        if not any(left):
            return
        assert time.monotonic() < deadline, f"left: processes {left[0]}, sockets {left[1]}, shared memory {left[2]}"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("ending", "status"), [("shutdown", 0), ("normal exit", 0), ("exception", 1), ("sys.exit", 3)], ids=str
)
def test_nothing_is_left_after(script, ending, status):
    before = shared_memory()
    started = script(PROGRAM + ENDINGS[ending])
    ended, _, err = started.finish()
    assert_nothing_left(started.folder, before)
    assert ended == status, err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_nothing_is_left_after_a_signal(script, number):
    before = shared_memory()
    started = script(PROGRAM + ENDINGS["waiting"])
    started.read_until("ready")
    assert len(processes_of(started.folder)) >= 4
    started.process.send_signal(number)
    _, _, err = started.finish()
    assert_nothing_left(started.folder, before)
    if number == signal.SIGINT:
        assert "KeyboardInterrupt" in err


def test_nothing_is_left_after_shutdown_while_the_program_goes_on(script):
    before = shared_memory()
    started = script(PROGRAM + "ray.shutdown()\nprint('done', flush=True)\ntime.sleep(1000)")
    started.read_until("done")
    deadline = time.monotonic() + CLEANUP_DEADLINE_S
    while [pid for pid in processes_of(started.folder) if pid != started.process.pid]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not sockets_of(started.folder)
    assert shared_memory() <= before
    descriptors = [
        os.readlink(f"/proc/{started.process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{started.process.pid}/fd")
    ]
    assert not [target for target in descriptors if "socket:" in target]


def test_nothing_is_left_after_the_daemon_is_killed(script):
    before = shared_memory()
    started = script(PROGRAM + "ray.get(running)")
    started.read_until("ready")
    with open(f"/proc/{started.process.pid}/task/{started.process.pid}/children") as file:
        daemon = int(file.read().split()[0])
    os.kill(daemon, signal.SIGKILL)
    status, _, err = started.finish()
    assert status == 1, err
    # Sockets in the file system are removed by the next daemon, as their owner cannot.
    deadline = time.monotonic() + CLEANUP_DEADLINE_S
    while left := [pid for pid in processes_of(started.folder) if not _is_sleep(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.01)
    assert shared_memory() <= before


def _is_sleep(pid):
    """What a task has started is looked after by the daemon, which is dead here."""
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip() == "sleep"
    except OSError:
        return True


def test_ctrl_c_ends_a_wait_at_once_and_the_program_can_go_on(script):
    # Inside of the `try` when it says so: the signal comes at once.
    source = PROGRAM.replace('print("ready", flush=True)', "") + (
        "try:\n    print('ready', flush=True)\n    ray.get(running)\nexcept KeyboardInterrupt:\n    print('interrupted', ray.get(ray.put(5)), flush=True)\n"
    )
    started = script(source)
    started.read_until("ready")
    started.process.send_signal(signal.SIGINT)
    assert started.read_until("interrupted") == "interrupted 5\n"
    status, _, err = started.finish()
    assert status == 0, err
