"""What code can ask about where it runs."""

import os
import threading

import pytest

import ray_rust
from conftest import wait_until


def everything(context):
    """All getters that never fail in a worker."""
    return {
        "job": context.get_job_id(),
        "node": context.get_node_id(),
        "worker": context.get_worker_id(),
        "task": context.get_task_id(),
        "task_name": context.get_task_name(),
        "function": context.get_task_function_name(),
        "actor": context.get_actor_id(),
        "actor_name": context.get_actor_name(),
        "namespace": context.namespace,
        "gcs": context.gcs_address,
        "session": context.get_session_name(),
        "temp": context.get_temp_dir(),
        "labels": context.get_node_labels(),
        "resources": context.get_assigned_resources(),
        "env": context.runtime_env.env_vars(),
    }


@pytest.fixture
def labelled(own_folder):
    ray_rust.init(
        "local",
        num_cpus=2,
        resources={"gizmo": 2},
        labels={"zone": "a"},
        namespace="tests",
        runtime_env={"env_vars": {"X": "1"}},
    )
    return ray_rust.get_runtime_context()


def test_a_driver_knows_where_it_is(labelled, own_folder):
    assert labelled.namespace == "tests"
    assert labelled.get_node_id() == ray_rust.nodes()[0]["NodeID"]
    assert labelled.get_node_labels()["zone"] == "a"
    assert labelled.get_temp_dir() == own_folder
    assert os.path.isdir(os.path.join(own_folder, labelled.get_session_name()))
    assert labelled.runtime_env.env_vars() == {"X": "1"}
    assert "X" in labelled.get_runtime_env_string()
    assert labelled.get_task_id() is None
    assert labelled.get_task_name() is None
    assert labelled.get_task_function_name() is None
    assert labelled.get_actor_id() is None
    assert labelled.get_actor_name() is None
    assert labelled.get_accelerator_ids()["GPU"] == []
    assert labelled.worker.mode == ray_rust.SCRIPT_MODE


def test_what_only_workers_have_is_refused_in_a_driver(labelled):
    with pytest.raises(AssertionError, match="driver"):
        labelled.get_assigned_resources()
    with pytest.raises(AssertionError, match="actors only"):
        labelled.was_current_actor_reconstructed  # noqa: B018
    with pytest.raises(RuntimeError, match="actors only"):
        labelled.current_actor  # noqa: B018
    with pytest.raises(RuntimeError, match="driver"):
        labelled.is_canceled()


def test_a_task_knows_itself(labelled):
    @ray_rust.remote(num_cpus=0.5, resources={"gizmo": 1})
    def look():
        return everything(ray_rust.get_runtime_context())

    ref = look.options(name="named").remote()
    found = ray_rust.get(ref)
    assert found["job"] == labelled.get_job_id()
    assert found["node"] == labelled.get_node_id()
    assert found["worker"] != labelled.get_worker_id()
    assert found["task"] == ref.task_id().hex()
    assert found["task_name"] == "named"
    assert found["function"] == f"{__name__}.test_a_task_knows_itself.<locals>.look"
    assert (found["actor"], found["actor_name"]) == (None, None)
    assert found["namespace"] == "tests"
    assert found["gcs"] == labelled.gcs_address
    assert found["session"] == labelled.get_session_name()
    assert found["labels"]["zone"] == "a"
    assert found["resources"] == {"CPU": 0.5, "gizmo": 1.0}
    assert found["env"] == {"X": "1"}


def test_resources_are_those_of_each_task_though_workers_are_shared(labelled):
    @ray_rust.remote
    def look():
        return ray_rust.get_runtime_context().get_assigned_resources()

    amounts = [0.5, 1, 2, 0.5]
    found = [ray_rust.get(look.options(num_cpus=amount).remote()) for amount in amounts]
    assert found == [{"CPU": amount} for amount in amounts]


@ray_rust.remote
class Looker:
    def look(self):
        return everything(ray_rust.get_runtime_context())

    def look_from_thread(self):
        found = []
        thread = threading.Thread(target=lambda: found.append(self.look()))
        thread.start()
        thread.join()
        return found[0]

    def handle(self):
        return ray_rust.get_runtime_context().current_actor

    def restarted(self):
        return ray_rust.get_runtime_context().was_current_actor_reconstructed

    def end(self):
        os._exit(1)


def test_an_actor_knows_itself_also_from_its_threads(labelled):
    looker = Looker.options(name="looking", num_cpus=0, resources={"gizmo": 1}).remote()
    for method in (looker.look, looker.look_from_thread):
        ref = method.remote()
        found = ray_rust.get(ref)
        assert found["actor"] == looker._actor_id.hex()
        assert found["actor_name"] == "looking"
        assert found["resources"] == {"gizmo": 1.0}
        assert found["job"] == labelled.get_job_id()
    found = ray_rust.get(looker.look.options(name="other").remote())
    assert (found["task_name"], found["function"]) == ("other", f"{__name__}.Looker.look")
    nameless = Looker.remote()
    assert ray_rust.get(nameless.look.remote())["actor_name"] == ""


def test_calls_side_by_side_know_themselves(labelled):
    @ray_rust.remote
    class Together:
        def __init__(self):
            import asyncio

            self.both = asyncio.Event()
            self.count = 0

        async def look(self):
            before = everything(ray_rust.get_runtime_context())
            self.count += 1
            if self.count == 2:
                self.both.set()
            await self.both.wait()
            assert everything(ray_rust.get_runtime_context()) == before
            return before

    together = Together.remote()
    refs = [together.look.options(name=name).remote() for name in ("one", "two")]
    found = ray_rust.get(refs)
    assert [one["task_name"] for one in found] == ["one", "two"]
    assert [one["task"] for one in found] == [ref.task_id().hex() for ref in refs]
    assert all(one["function"].endswith("Together.look") for one in found)
    threaded = Looker.options(max_concurrency=2).remote()
    refs = [threaded.look.options(name=name).remote() for name in ("three", "four")]
    assert [one["task_name"] for one in ray_rust.get(refs)] == ["three", "four"]


def test_an_actor_can_hand_out_itself(labelled):
    looker = Looker.remote()
    again = ray_rust.get(looker.handle.remote())
    assert again._actor_id == looker._actor_id
    assert ray_rust.get(again.restarted.remote()) is False


def test_an_actor_knows_that_it_was_restarted(labelled):
    looker = Looker.options(max_restarts=1, max_task_retries=2).remote()
    assert ray_rust.get(looker.restarted.remote()) is False
    looker.end.options(max_task_retries=0).remote()
    wait_until(lambda: ray_rust.get(looker.restarted.remote()))


def test_a_task_can_ask_whether_it_was_cancelled(labelled, tmp_path):
    started, answers = tmp_path / "started", tmp_path / "answers"

    @ray_rust.remote
    def patient():
        import time

        first = ray_rust.get_runtime_context().is_canceled()
        try:
            started.touch()
            while True:
                time.sleep(0.01)
        except KeyboardInterrupt:
            answers.write_text(f"{first} {ray_rust.get_runtime_context().is_canceled()}")

    ref = patient.remote()
    wait_until(started.exists)
    ray_rust.cancel(ref)
    assert wait_until(lambda: answers.exists() and answers.read_text()) == "False True"


def test_deprecated_getters_say_what_to_use(labelled):
    from ray_rust.util.annotations import RayDeprecationWarning

    with pytest.warns(RayDeprecationWarning, match="get_job_id"):
        assert labelled.job_id.hex() == labelled.get_job_id()
    with pytest.warns(RayDeprecationWarning, match="get_node_id"):
        assert labelled.node_id.hex() == labelled.get_node_id()
    with pytest.warns(RayDeprecationWarning, match="get_"):
        assert labelled.get()["namespace"] == "tests"
    with pytest.warns(RayDeprecationWarning, match="get_accelerator_ids"):
        assert labelled.get_resource_ids()["GPU"] == []
    with pytest.warns(RayDeprecationWarning), pytest.raises(AssertionError):
        labelled.task_id  # noqa: B018
    with pytest.warns(RayDeprecationWarning), pytest.raises(AssertionError):
        labelled.actor_id  # noqa: B018


def test_without_a_connection_there_are_no_ids(no_cluster):
    context = ray_rust.runtime_context.RuntimeContext()
    with pytest.raises(RuntimeError, match="not connected"):
        context.get_job_id()
    with pytest.raises(RuntimeError, match="not connected"):
        context.get_node_id()
