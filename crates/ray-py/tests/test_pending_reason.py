"""Why something waits: `util.state.why`, pending reasons, and what is printed on the driver."""

import os
import re
import time

import pytest

import ray_rust
from conftest import wait_until
from ray_rust.util import state


def wait_for_gate(path):
    while not os.path.exists(path):
        time.sleep(0.01)


@pytest.fixture
def gate(tmp_path):
    return str(tmp_path / "gate")


def reason_of(ref, pattern):
    def found():
        text = state.why(ref)
        return text if text is not None and re.search(pattern, text) else None

    return wait_until(found, what=f"a reason that matches {pattern!r}")


def test_an_object_that_has_a_value_waits_for_nothing(cluster):
    ref = cluster.remote(lambda: 1).remote()
    cluster.get(ref)
    assert state.why(ref) is None
    assert state.why(cluster.put(1)) is None
    with pytest.raises(TypeError, match="ObjectRef"):
        state.why("abc")


def test_a_resource_that_no_node_has_is_named(cluster):
    @cluster.remote(num_gpus=1)
    def needs_gpu():
        return 1

    ref = needs_gpu.remote()
    text = reason_of(ref, "GPU")
    assert 'they need {"CPU": 1, "GPU": 1}, and no node has any "GPU"' in text
    assert "needs_gpu" in text
    assert "PENDING_NODE_ASSIGNMENT" in text
    assert state.get_task(ref).pending_reason in text
    cluster.cancel(ref)


def test_a_resource_that_others_take_is_named_with_them(cluster, gate):
    @cluster.remote(resources={"gizmo": 2})
    class Holder:
        def ready(self):
            return True

    @cluster.remote(resources={"gizmo": 1}, num_cpus=0)
    def waits():
        return 1

    holder = Holder.remote()
    cluster.get(holder.ready.remote())
    ref = waits.remote()
    text = reason_of(ref, "taken")
    assert 'of 2 "gizmo" 0 are free (taken: 2 by actors)' in text
    cluster.kill(holder)
    assert cluster.get(ref) == 1


def test_a_chain_of_dependencies_is_followed_to_its_cause(cluster, gate):
    @cluster.remote(resources={"unobtainium": 1})
    def cause():
        return 1

    @cluster.remote
    def link(value):
        return value

    first = cause.remote()
    last = link.options(name="last link").remote(link.remote(first))
    text = reason_of(last, "unobtainium")
    assert re.search(r"last link.*PENDING_ARGS_AVAIL.*\n  because .*link.*\n  because .*cause.*unobtainium", text), text
    cluster.cancel(first)


def test_a_running_task_says_so(cluster, gate):
    @cluster.remote
    def runs(path):
        wait_for_gate(path)

    ref = runs.remote(gate)
    reason_of(ref, "is RUNNING")
    with open(gate, "w"):
        pass
    cluster.get(ref)


def test_calls_wait_for_an_actor_that_is_not_made(cluster):
    @cluster.remote(resources={"unobtainium": 1})
    class Never:
        def call(self):
            return 1

    actor = Never.remote()
    ref = actor.call.remote()
    text = reason_of(ref, "unobtainium")
    assert "actor Never" in text
    assert "not made yet" in text
    cluster.kill(actor)
    with pytest.raises(ray_rust.exceptions.RayActorError):
        cluster.get(ref)


def test_calls_wait_for_an_earlier_call_whose_argument_is_missing(cluster, gate):
    @cluster.remote
    def slow(path):
        wait_for_gate(path)
        return 1

    @cluster.remote
    class Ordered:
        def take(self, value):
            return value

    actor = Ordered.remote()
    cluster.get(actor.take.remote(0))
    first = actor.take.remote(slow.remote(gate))
    second = actor.take.remote(2)
    text = reason_of(second, "earlier call")
    assert first.task_id().hex() in text
    with open(gate, "w"):
        pass
    assert cluster.get([first, second]) == [1, 2]


SOON = """
import os
os.environ["RAY_RUST_WORKER_PENDING_WARNING_MS"] = "300"
import sys, time
import ray_rust as ray
ray.init(num_cpus=2, resources={"gizmo": 1})

class Watched:
    "Standard error, and whether something was written there."
    def __init__(self, stream):
        self.stream, self.text = stream, ""
    def write(self, text):
        self.text += text
        return self.stream.write(text)
    def flush(self):
        self.stream.flush()
    def isatty(self):
        return False
    def wait_for(self, text):
        deadline = time.monotonic() + 30
        while text not in self.text:
            assert time.monotonic() < deadline, text
            time.sleep(0.01)

sys.stderr = Watched(sys.stderr)
"""


def test_a_task_that_waits_is_told_once(script):
    source = (
        SOON
        + """
@ray.remote(resources={"gizmo": 1})
class Holder:
    def ready(self):
        pass

holder = Holder.remote()
ray.get(holder.ready.remote())

@ray.remote(resources={"gizmo": 1}, num_cpus=0)
def f():
    return 1

refs = [f.remote() for _ in range(3)]
sys.stderr.wait_for("tasks")
# Several times as long as it took until it was said.
assert ray.wait(refs, timeout=1.5)[0] == []
ray.kill(holder)
print(ray.get(refs))
"""
    )
    status, out, err = script(source).finish()
    assert status == 0, err
    assert out == "[1, 1, 1]\n"
    told = re.findall(r"^\(scheduler\) .*$", err, re.MULTILINE)
    assert told == [
        '(scheduler) 3 tasks "f" wait: they need {"gizmo": 1}, and of 1 "gizmo" 0 are free (taken: 1 by actors)'
    ]


def test_an_actor_that_waits_is_told_once(script):
    source = (
        SOON
        + """
@ray.remote(resources={"gizmo": 1})
class Holder:
    def ready(self):
        pass

holder = Holder.remote()
ray.get(holder.ready.remote())
second = Holder.options(name="second").remote()
ref = second.ready.remote()
sys.stderr.wait_for("actor Holder")
assert ray.wait([ref], timeout=1)[0] == []
ray.kill(holder)
ray.get(ref)
"""
    )
    status, _, err = script(source).finish()
    assert status == 0, err
    told = re.findall(r"^\(scheduler\) .*$", err, re.MULTILINE)
    assert len(told) == 1, err
    assert re.match(r"\(scheduler\) actor Holder \([0-9a-f]+\) waits: .*gizmo", told[0]), told


def test_tasks_of_tasks_that_wait_are_told_by_their_worker(script):
    source = (
        SOON
        + """
@ray.remote(resources={"gizmo": 1}, num_cpus=0)
def holds():
    return ray.get(inner.remote())

@ray.remote(resources={"gizmo": 1}, num_cpus=0)
def inner():
    return 1

ref = holds.remote()
sys.stderr.wait_for("inner")
ray.cancel(ref, force=True)
"""
    )
    status, _, err = script(source).finish()
    assert status == 0, err
    assert re.search(r'^\(.*holds pid=\d+\) \(scheduler\) 1 task "inner" waits: .*gizmo', err, re.MULTILINE), err


def test_what_makes_progress_is_not_told(script):
    source = (
        SOON
        + """
@ray.remote
def sleep():
    time.sleep(0.2)

ray.get([sleep.remote() for _ in range(12)])
"""
    )
    status, _, err = script(source).finish()
    assert status == 0, err
    assert "(scheduler)" not in err
