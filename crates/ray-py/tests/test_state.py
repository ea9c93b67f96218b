"""`ray.util.state` and what it rests on: tasks, actors, objects, nodes, workers, jobs, logs."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

import ray_rust
from conftest import wait_until
from ray_rust.util import state
from ray_rust.util.state.common import ListApiOptions, StateResource, TaskState
from ray_rust.util.state.exception import RayStateApiException


@pytest.fixture
def gate(tmp_path):
    """A path; `opened(path)` is true once the test has made the file."""
    return str(tmp_path / "gate")


def open_gate(path):
    with open(path, "w"):
        pass


def wait_for_gate(path):
    while not os.path.exists(path):
        time.sleep(0.01)


def rows(listed):
    return {(row.name, row.state) for row in listed}


def test_a_task_is_seen_at_each_step_of_its_life(cluster, gate):
    @cluster.remote
    def first(path):
        wait_for_gate(path)
        return os.getpid()

    @cluster.remote
    def second(value):
        return value

    ref = first.remote(gate)
    dependent = second.remote(ref)

    def is_running():
        return state.get_task(ref.task_id().hex()).state == "RUNNING"

    wait_until(is_running)
    running = state.get_task(ref.task_id().hex())
    waiting = state.get_task(dependent)
    assert isinstance(running, TaskState)
    assert (running.name, running.func_or_class_name, running.type) == ("first", "first", "NORMAL_TASK")
    assert running.attempt_number == 0
    assert running.job_id == cluster.get_runtime_context().get_job_id()
    assert running.required_resources == {"CPU": 1.0}
    assert running.start_time_ms >= running.creation_time_ms - 20
    assert running.end_time_ms is None
    assert waiting.state == "PENDING_ARGS_AVAIL"
    assert ref.hex() in waiting.pending_reason
    assert "first" in waiting.pending_reason

    open_gate(gate)
    pid = cluster.get(dependent)
    # Seen at once, though the control plane hears of it within a second.
    ended = state.get_task(ref.task_id().hex())
    assert ended.state == "FINISHED"
    assert ended.worker_pid == pid
    assert ended.worker_id == running.worker_id
    assert ended.node_id == cluster.get_runtime_context().get_node_id()
    assert ended.end_time_ms >= ended.start_time_ms
    assert [event["state"] for event in ended.events] == ["PENDING_ARGS_AVAIL", "RUNNING", "FINISHED"]
    assert ended.pending_reason is None
    assert state.get_task(dependent).state == "FINISHED"


def test_failures_are_told_with_their_kind_and_text(cluster, tmp_path):
    @cluster.remote(max_retries=0)
    def raises():
        raise ValueError("no such thing")

    @cluster.remote(max_retries=0)
    def dies():
        os.kill(os.getpid(), signal.SIGKILL)

    @cluster.remote(max_retries=1, retry_exceptions=True)
    def flaky(path):
        if not os.path.exists(path):
            open_gate(path)
            raise RuntimeError("once")

    raised, retried = raises.remote(), flaky.remote(str(tmp_path / "seen"))
    with pytest.raises(ValueError, match="no such thing"):
        cluster.get(raised)
    cluster.get(retried)
    failed = state.get_task(raised)
    assert (failed.state, failed.error_type) == ("FAILED", "TASK_EXECUTION_EXCEPTION")
    assert "ValueError: no such thing" in failed.error_message
    assert failed.worker_pid is not None
    attempts = sorted(state.get_task(retried), key=lambda row: row.attempt_number)
    assert [(row.attempt_number, row.state) for row in attempts] == [(0, "FAILED"), (1, "FINISHED")]
    assert "once" in attempts[0].error_message

    died = dies.remote()
    with pytest.raises(ray_rust.exceptions.WorkerCrashedError):
        cluster.get(died)
    crashed = state.get_task(died)
    assert (crashed.state, crashed.error_type) == ("FAILED", "WORKER_DIED")
    assert "SIGKILL" in crashed.error_message
    # Also of what ran in the same process a moment before, its caller knows how it ended.
    assert state.get_task(raised).state == "FAILED"


def test_names_parents_and_actor_tasks(cluster):
    @cluster.remote
    def leaf():
        return ray_rust.get_runtime_context().get_task_id()

    @cluster.remote
    def tree():
        return ray_rust.get(leaf.remote()), ray_rust.get_runtime_context().get_task_id()

    @cluster.remote
    class Adder:
        def __init__(self):
            self.total = 0

        def add(self, value):
            self.total += value
            return self.total

    leaf_id, tree_id = cluster.get(tree.options(name="named tree").remote())
    assert state.get_task(leaf_id).parent_task_id == tree_id
    named = state.get_task(tree_id)
    assert (named.name, named.func_or_class_name) == ("named tree", "tree")
    assert named.parent_task_id is not None

    adder = Adder.remote()
    call = adder.add.remote(3)
    assert cluster.get(call) == 3
    row = state.get_task(call)
    assert (row.type, row.name, row.func_or_class_name) == ("ACTOR_TASK", "Adder.add", "Adder.add")
    assert row.actor_id == adder._actor_id.hex()
    creations = state.list_tasks(filters=[("actor_id", "=", row.actor_id), ("type", "=", "ACTOR_CREATION_TASK")])
    assert rows(creations) == {("Adder.__init__", "FINISHED")}


def test_filters_limits_and_details(cluster):
    @cluster.remote
    def filtered(value):
        return value

    cluster.get([filtered.remote(n) for n in range(5)])
    listed = state.list_tasks(filters=[("name", "=", "filtered")])
    assert len(listed) == 5
    assert listed[0].creation_time_ms is None, "that is a detail"
    assert state.list_tasks(filters=[("name", "=", "filtered")], detail=True)[0].creation_time_ms > 0
    assert len(state.list_tasks(filters=[("name", "=", "filtered")], limit=2)) == 2
    assert not state.list_tasks(filters=[("name", "=", "filtered"), ("state", "!=", "finished")])
    others = state.list_tasks(filters=[("name", "!=", "filtered")], limit=10_000)
    assert "filtered" not in {row.name for row in others}
    with pytest.warns(UserWarning, match="both"):
        assert state.list_tasks(filters=[("name", "=", "one"), ("name", "=", "two")]) == []
    with pytest.raises(ValueError, match="predicate"):
        state.list_tasks(filters=[("name", "<", "filtered")])
    with pytest.raises(ValueError, match="tuples"):
        state.list_tasks(filters=["name"])
    with pytest.raises(RayStateApiException, match="not supported"):
        state.list_tasks(filters=[("colour", "=", "red")])
    with pytest.raises(RayStateApiException, match="limit"):
        state.list_tasks(limit=10_001)
    with pytest.raises(ValueError, match="timeout"):
        state.list_tasks(timeout=0)
    client = state.StateApiClient()
    tasks = client.list(StateResource.TASKS, ListApiOptions(limit=1), raise_on_missing_output=True)
    assert len(tasks) == 1
    assert tasks[0]["task_id"] == tasks[0].task_id == tasks[0].asdict()["task_id"]
    with pytest.raises(ValueError, match="by id"):
        client.get(StateResource.RUNTIME_ENVS, "1", None)


def test_tasks_without_events_leave_no_trace(cluster):
    @cluster.remote(enable_task_events=False)
    def quiet():
        return 1

    @cluster.remote
    class Quiet:
        @ray_rust.method(enable_task_events=False)
        def call(self):
            return 1

        def loud(self):
            return 1

    actor = Quiet.remote()
    refs = [quiet.remote(), actor.call.remote(), actor.loud.options(enable_task_events=False).remote()]
    cluster.get(refs)
    assert [state.get_task(ref) for ref in refs] == [None] * 3
    loud = actor.loud.remote()
    cluster.get(loud)
    assert state.get_task(loud).state == "FINISHED"
    with pytest.raises(TypeError, match="enable_task_events"):
        cluster.remote(enable_task_events=1)(lambda: 1)


def test_more_tasks_than_are_listed_are_counted(script):
    source = """
import os
os.environ["RAY_RUST_WORKER_MAX_TASK_EVENTS"] = "50"
os.environ["RAY_RUST_GCS_TASK_EVENTS_KEPT"] = "80"
import ray_rust as ray
from ray_rust.util.state import list_tasks, summarize_tasks
ray.init(num_cpus=1)

@ray.remote
def many():
    return 1

for _ in range(3):
    ray.get([many.remote() for _ in range(200)])
summary = summarize_tasks()["cluster"]
print(summary["summary"]["many"]["state_counts"], summary["total_tasks"])
listed = [task for task in list_tasks(limit=1000) if task.name == "many"]
assert 0 < len(listed) <= 130, len(listed)
"""
    status, out, err = script(source).finish()
    assert status == 0, err
    assert out == "{'FINISHED': 600} 600\n"


def test_events_can_be_turned_off(script):
    source = """
import os
os.environ["RAY_RUST_WORKER_TASK_EVENTS"] = "false"
import ray_rust as ray
from ray_rust.util.state import list_tasks
ray.init(num_cpus=1)
ray.get(ray.remote(lambda: 1).remote())
print(list_tasks(), ray.timeline())
"""
    status, out, err = script(source).finish()
    assert status == 0, err
    assert out == "[] []\n"


def test_actors_are_listed_in_every_state(cluster):
    @cluster.remote
    class Lives:
        def pid(self):
            return os.getpid()

    @cluster.remote(resources={"unobtainium": 1})
    class Waits:
        pass

    @cluster.remote
    class Fails:
        def __init__(self):
            raise ValueError("not this one")

    lives, waits, fails = Lives.options(name="the living").remote(), Waits.remote(), Fails.remote()
    pid = cluster.get(lives.pid.remote())
    found = state.get_actor(lives._actor_id.hex())
    assert (found.state, found.class_name, found.name, found.pid) == ("ALIVE", "Lives", "the living", pid)
    assert found.ray_namespace == "tests"
    assert found.num_restarts == 0
    assert found.pending_reason is None

    def waiting():
        row = state.get_actor(waits._actor_id.hex())
        return row if row is not None and "unobtainium" in (row.pending_reason or "") else None

    assert wait_until(waiting).state == "PENDING_CREATION"

    def dead():
        row = state.get_actor(fails._actor_id.hex())
        return row if row is not None and row.state == "DEAD" else None

    assert "not this one" in wait_until(dead).death_cause["error_message"]
    assert state.get_actor("00" * 16) is None
    classes = state.summarize_actors()["cluster"]["summary"]
    assert classes["Lives"]["state_counts"]["ALIVE"] >= 1
    assert classes["Fails"]["state_counts"]["DEAD"] >= 1
    cluster.kill(waits)
    cluster.kill(lives)


def test_objects_are_told_by_who_refers_to_them(cluster, gate):
    @cluster.remote
    def use(value, path):
        wait_for_gate(path)

    @cluster.remote
    def slow(path):
        wait_for_gate(path)
        return 1

    small, large = cluster.put("x" * 1000), cluster.put(b"y" * 500_000)
    outer = cluster.put([small])
    task, made = use.remote(large, gate), slow.remote(gate)
    data = cluster.get(large)
    (row,) = [row for row in state.get_objects(small.hex()) if row.type == "Driver"]
    assert row.object_size > 1000
    assert (row.reference_type, row.task_status, row.pid) == ("LOCAL_REFERENCE", "FINISHED", os.getpid())
    (row,) = [row for row in state.get_objects(large.hex()) if row.type == "Driver"]
    assert row.object_size > 500_000
    assert row.reference_type in ("PINNED_IN_MEMORY", "USED_BY_PENDING_TASK")
    (row,) = state.get_objects(made.hex())
    assert (row.object_size, row.task_status) == (-1, row.task_status)
    assert row.task_status in ("PENDING_NODE_ASSIGNMENT", "SUBMITTED_TO_WORKER")
    del small
    summary = state.summarize_objects()["cluster"]
    assert summary["total_objects"] >= 4
    assert summary["summary"]["disabled"]["total_size_mb"] > 0.4
    assert len(state.list_objects(filters=[("pid", "=", os.getpid())])) >= 4
    open_gate(gate)
    cluster.get([task, made])
    del outer, data


def test_nodes_workers_and_jobs(cluster):
    @cluster.remote(max_retries=0)
    def die():
        os._exit(7)

    with pytest.raises(ray_rust.exceptions.WorkerCrashedError):
        cluster.get(die.remote())
    (node,) = state.list_nodes()
    assert node.state == "ALIVE"
    assert node.is_head_node
    assert node.resources_total["CPU"] == 4
    assert state.get_node(node.node_id).start_time_ms > 0
    workers = state.list_workers(detail=True)
    (driver,) = [worker for worker in workers if worker.worker_type == "DRIVER" and worker.is_alive]
    assert (driver.pid, driver.node_id) == (os.getpid(), node.node_id)
    dead = [worker for worker in workers if not worker.is_alive and "code 7" in (worker.exit_detail or "")]
    assert dead
    assert dead[0].exit_type == "SYSTEM_ERROR"
    assert dead[0].end_time_ms >= dead[0].start_time_ms
    assert state.get_worker(dead[0].worker_id).pid == dead[0].pid
    job = state.get_job(cluster.get_runtime_context().get_job_id())
    assert (job.status, job.type) == ("RUNNING", "DRIVER")
    events = state.list_cluster_events(limit=1000)
    assert any("code 7" in event.message and event.severity == "ERROR" for event in events)
    assert any("has joined" in event.message for event in events)


def test_logs_are_found_by_file_process_task_and_actor(cluster):
    @cluster.remote
    class Speaker:
        def speak(self):
            print("spoken by an actor")
            print("and aside", file=sys.stderr)
            return os.getpid()

    speaker = Speaker.remote()
    call = speaker.speak.remote()
    pid = cluster.get(call)
    by_actor = "".join(state.get_log(actor_id=speaker._actor_id.hex()))
    assert by_actor == "spoken by an actor\n"
    assert "".join(state.get_log(pid=pid)) == by_actor
    assert "".join(state.get_log(task_id=call.task_id().hex())) == by_actor
    assert "and aside" in "".join(state.get_log(pid=pid, suffix="err"))
    names = state.list_logs()
    assert any(name.startswith("node") for name in names["raylet"])
    assert names["worker_out"]
    assert state.list_logs(glob_filter="node*").keys() == {"raylet"}
    (name,) = names["raylet"][:1]
    assert "".join(state.get_log(filename=name, tail=1)).count("\n") <= 1
    assert isinstance(next(state.get_log(filename=name, encoding=None)), bytes)
    with pytest.raises(RayStateApiException, match="no log file"):
        state.get_log(filename="../node.json")
    with pytest.raises(RayStateApiException, match="which log"):
        state.get_log()
    with pytest.raises(RayStateApiException, match="99"):
        list(state.get_log(task_id="99" * 16))


def test_what_does_not_answer_is_missing_output(cluster):
    @cluster.remote
    class Stopped:
        def pid(self):
            return os.getpid()

    stopped = Stopped.remote()
    pid = cluster.get(stopped.pid.remote())
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(RayStateApiException, match=f"process {pid}"):
            state.list_tasks(timeout=0.2)
        assert isinstance(state.list_tasks(timeout=0.2, raise_on_missing_output=False), list)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert isinstance(state.list_tasks(), list)


def run_cli(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "ray_rust.scripts", *arguments], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_line_lists_gets_and_sums_up(cluster):
    @cluster.remote
    def shown():
        return 1

    ref = shown.remote()
    cluster.get(ref)
    address = ["--address", cluster.get_runtime_context().gcs_address]
    only = ["--filter", "name=shown", "--limit", "1000"]
    table = run_cli("list", "tasks", *only, *address)
    assert ref.task_id().hex() in table
    assert "FINISHED" in table
    (row,) = json.loads(run_cli("list", "tasks", *only, "--format", "json", *address))
    assert row["name"] == "shown"
    assert "creation_time_ms" not in row
    (row,) = json.loads(run_cli("list", "tasks", *only, "--format", "json", "--detail", *address))
    assert row["creation_time_ms"]
    assert "name: shown" in run_cli("list", "tasks", *only, "--format", "yaml", *address)
    assert "name: shown" in run_cli("get", "tasks", ref.task_id().hex(), *address)
    assert "shown" in run_cli("summary", "tasks", *address)
    assert not json.loads(run_cli("list", "tasks", "--filter", "state!=FINISHED", "--format", "json", *only, *address))


def test_without_a_cluster_there_is_nothing_to_list(no_cluster, own_folder):
    with pytest.raises(ConnectionError, match="no cluster"):
        state.list_tasks()


def test_what_is_lost_with_its_caller_or_cancelled_is_told(cluster, gate):
    @cluster.remote
    def blocks(path):
        wait_for_gate(path)

    ref = blocks.options(resources={"gizmo": 2}).remote(gate)
    queued = blocks.options(resources={"gizmo": 2}).remote(gate)
    wait_until(lambda: state.get_task(ref).state == "RUNNING")
    cluster.cancel(queued)
    with pytest.raises(ray_rust.exceptions.TaskCancelledError):
        cluster.get(queued)
    assert state.get_task(queued).error_type == "TASK_CANCELLED"
    open_gate(gate)
    cluster.get(ref)


def test_runtime_environments_are_listed(cluster):
    @cluster.remote(runtime_env={"env_vars": {"LISTED": "yes"}})
    def listed():
        return os.environ["LISTED"]

    assert cluster.get(listed.remote()) == "yes"
    (environment,) = [
        environment
        for environment in state.list_runtime_envs()
        if environment.runtime_env.get("env_vars") == {"LISTED": "yes"}
    ]
    assert environment.success
    assert environment.error is None
    assert environment.node_id == cluster.get_runtime_context().get_node_id()


def test_handles_of_actors_are_told_from_objects(cluster):
    @cluster.remote
    class Held:
        def ready(self):
            return True

    held = Held.remote()
    cluster.get(held.ready.remote())
    assert "ACTOR_HANDLE" in {row.reference_type for row in state.list_objects(limit=10_000)}
    del held
