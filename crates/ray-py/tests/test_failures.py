"""What goes wrong says so: processes that die, resources that nobody has."""

import os
import signal
import subprocess
import sys

import pytest

import ray_rust
from conftest import wait_until
from ray_rust import exceptions


@ray_rust.remote
def die_until(path, count):
    """Kills its own process until it has been started `count` times."""
    with open(path, "a") as file:
        file.write("x")
    if os.path.getsize(path) < count:
        os.kill(os.getpid(), signal.SIGKILL)
    return os.path.getsize(path)


def test_a_task_whose_process_is_killed_is_tried_again(cluster, tmp_path):
    assert cluster.get(die_until.remote(str(tmp_path / "starts"), 3), timeout=50) == 3


def test_a_task_is_tried_no_more_often_than_allowed(cluster, tmp_path):
    path = tmp_path / "starts"
    with pytest.raises(exceptions.WorkerCrashedError):
        cluster.get(die_until.options(max_retries=2).remote(str(path), 100), timeout=50)
    assert path.stat().st_size == 3


def test_without_retries_the_first_crash_is_the_last(cluster, tmp_path):
    path = tmp_path / "starts"
    with pytest.raises(exceptions.WorkerCrashedError, match=r"9|SIGKILL|kill"):
        cluster.get(die_until.options(max_retries=0).remote(str(path), 100), timeout=50)
    assert path.stat().st_size == 1


def test_retries_without_limit(cluster, tmp_path):
    assert cluster.get(die_until.options(max_retries=-1).remote(str(tmp_path / "starts"), 6), timeout=50) == 6


def test_a_worker_that_exits_is_a_crash(cluster):
    @cluster.remote(max_retries=0)
    def leave():
        os._exit(7)

    with pytest.raises(exceptions.WorkerCrashedError):
        cluster.get(leave.remote(), timeout=50)


def test_a_segmentation_fault_is_a_crash(cluster):
    @cluster.remote(max_retries=0)
    def fault():
        os.kill(os.getpid(), signal.SIGSEGV)

    with pytest.raises(exceptions.WorkerCrashedError):
        cluster.get(fault.remote(), timeout=50)


def test_other_tasks_do_not_notice_a_crash(cluster):
    @cluster.remote
    def square(x):
        return x * x

    @cluster.remote(max_retries=0)
    def crash():
        os.kill(os.getpid(), signal.SIGKILL)

    crashes = [crash.remote() for _ in range(3)]
    assert cluster.get([square.remote(i) for i in range(500)], timeout=50) == [i * i for i in range(500)]
    for ref in crashes:
        with pytest.raises(exceptions.WorkerCrashedError):
            cluster.get(ref, timeout=50)


INFEASIBLE = """
import ray_rust as ray
ray.init(num_cpus=2)

@ray.remote(num_cpus=64, resources={"unobtainium": 1})
def f():
    return 1

ref = f.remote()
print("submitted")
while "unobtainium" not in open("stderr").read():
    try:
        ray.get(ref, timeout=0.1)
    except ray.exceptions.GetTimeoutError:
        pass
print("warned")
"""


def test_resources_that_no_node_has_are_named_in_a_warning(tmp_path, own_folder):
    with open(tmp_path / "stderr", "w") as stderr:
        done = subprocess.run(
            [sys.executable, "-c", INFEASIBLE],
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=tmp_path,
            timeout=50,
            check=True,
        )
    assert done.stdout == b"submitted\nwarned\n"
    text = (tmp_path / "stderr").read_text()
    assert "unobtainium" in text


def test_an_actor_that_no_node_can_hold_is_warned_of_by_name(script):
    source = """
import ray_rust as ray
ray.init(num_cpus=1)

@ray.remote(resources={"unobtainium": 1})
class Big:
    def method(self):
        pass

big = Big.remote()
try:
    ray.get(big.method.remote(), timeout=1)
except ray.exceptions.GetTimeoutError:
    print("not ready")
"""
    status, out, err = script(source).finish()
    assert status == 0, err
    assert out == "not ready\n"
    assert "actor Big" in err
    assert "unobtainium" in err
    assert err.count("cannot be scheduled") == 1


def test_a_daemon_that_dies_is_an_error_and_no_silent_hang(script):
    source = """
import ray_rust as ray, os, signal, time
ray.init(num_cpus=1)

@ray.remote
def sleep():
    time.sleep(1000)

ref = sleep.remote()
children = open(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read().split()
print("daemon", children[0], flush=True)
try:
    ray.get(ref)
except ray.exceptions.RayError as error:
    print("told:", type(error).__name__)
"""
    started = script(source)
    pid = int(started.read_until("daemon").split()[1])
    os.kill(pid, signal.SIGKILL)
    status, out, err = started.finish()
    assert "told:" in out, err
    assert status == 0


def test_a_crashing_worker_leaves_its_stack_in_the_log(cluster):
    @cluster.remote(max_retries=0)
    def fault_here():
        os.kill(os.getpid(), signal.SIGSEGV)

    with pytest.raises(exceptions.WorkerCrashedError):
        cluster.get(fault_here.remote(), timeout=50)
    logs = os.path.join(ray_rust.get_runtime_context().get_session_dir(), "logs")

    def found():
        for name in os.listdir(logs):
            with open(os.path.join(logs, name), errors="replace") as file:
                if "fault_here" in file.read():
                    return True
        return False

    wait_until(found)
