"""Errors of tasks for whose result nobody asks."""

import re


def run(script, body, **environment):
    source = f"""
import os, sys, time
os.environ.update({environment!r})
import ray_rust as ray
ray.init(num_cpus=2)

@ray.remote(max_retries=0)
def fails():
    raise ValueError("nobody listens")

@ray.remote(max_retries=0)
def dies():
    os._exit(3)
{body}
"""
    status, out, err = script(source).finish()
    assert status == 0, err
    return out, re.findall(r"Unhandled error \(suppress with 'RAY_IGNORE_UNHANDLED_ERRORS=1'\): .*", err), err


def test_a_failure_whose_reference_is_dropped_is_told_once(script):
    body = """
ref = fails.remote()
ray.wait([ref])
del ref
ray.wait([crashed := dies.remote()])
del crashed
"""
    _, told, err = run(script, body)
    assert len(told) == 2, err
    assert err.count("ValueError: nobody listens") >= 1
    assert "fails" in err
    assert "pid=" in err
    assert any("dies" in line for line in told)


def test_a_failure_of_which_the_reference_is_gone_already_is_told(script):
    body = """
fails.remote()
ray.get(ray.remote(lambda: 1).remote())
deadline = time.monotonic() + 30
from ray_rust.util.state import list_tasks
while not any(task.name == "fails" and task.state == "FAILED" for task in list_tasks()):
    assert time.monotonic() < deadline
    time.sleep(0.01)
"""
    _, told, err = run(script, body)
    assert len(told) == 1, err


def test_who_has_seen_an_error_is_not_told_again(script):
    body = """
seen = fails.remote()
try:
    ray.get(seen)
except ValueError:
    print("seen")
del seen

@ray.remote
def use(value):
    return value

passed_on = use.remote(fails.remote())
try:
    ray.get(passed_on)
except ValueError:
    print("passed on")
del passed_on

cancelled = ray.remote(lambda: time.sleep(100)).remote()
ray.cancel(cancelled)
del cancelled
kept = fails.remote()
ray.wait([kept])
"""
    out, told, err = run(script, body)
    assert out == "seen\npassed on\n"
    assert told == [], err


def test_it_can_be_suppressed(script):
    body = """
ref = fails.remote()
ray.wait([ref])
del ref
"""
    _, told, _ = run(script, body, RAY_IGNORE_UNHANDLED_ERRORS="1")
    assert told == []
