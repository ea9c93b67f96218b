"""Joining, starting and leaving clusters."""

import os
import pickle
import subprocess
import sys

import pytest

import ray_rust
from conftest import processes_of, wait_until
from ray_rust.exceptions import RaySystemError


def test_init_starts_a_cluster_and_shutdown_ends_it(no_cluster, own_folder):
    assert not ray_rust.is_initialized()
    context = ray_rust.init("local", num_cpus=3, num_gpus=2, resources={"gizmo": 1.5}, object_store_memory=200_000_000)
    assert ray_rust.is_initialized()
    total = ray_rust.cluster_resources()
    assert (total["CPU"], total["GPU"], total["gizmo"]) == (3, 2, 1.5)
    assert total["object_store_memory"] == pytest.approx(200_000_000, rel=0.05)
    assert ray_rust.available_resources()["CPU"] == 3
    assert context.address_info["gcs_address"] == context["gcs_address"]
    assert context["session_dir"].startswith(own_folder)
    ray_rust.shutdown()
    assert not ray_rust.is_initialized()
    assert processes_of(own_folder) == []
    ray_rust.shutdown()


def test_nodes_describe_the_cluster(cluster):
    (node,) = ray_rust.nodes()
    assert node["Alive"] is True
    assert node["NodeID"] == ray_rust.get_runtime_context().get_node_id()
    assert node["Resources"]["CPU"] == 4
    assert node["Resources"]["gizmo"] == 2
    assert node["Resources"]["memory"] > 0


def test_available_resources_follow_what_runs(cluster, tmp_path):
    path = str(tmp_path / "go")

    @ray_rust.remote(num_cpus=3, resources={"gizmo": 1})
    def hold():
        import time

        while not os.path.exists(path):
            time.sleep(0.01)

    ref = hold.remote()
    wait_until(lambda: ray_rust.available_resources().get("CPU", 0) == 1)
    wait_until(lambda: ray_rust.available_resources().get("gizmo") == 1)
    open(path, "w").close()
    ray_rust.get(ref)
    wait_until(lambda: ray_rust.available_resources().get("CPU", 0) == 4)


def test_a_second_init_is_refused_unless_expected(cluster):
    with pytest.raises(RuntimeError, match="ignore_reinit_error"):
        ray_rust.init()
    context = ray_rust.init(ignore_reinit_error=True)
    assert context["node_id"] == ray_rust.get_runtime_context().get_node_id()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"num_cpu": 1}, RuntimeError, "num_cpu"),
        ({"num_cpus": -1}, ValueError, "num_cpus"),
        ({"num_cpus": "1"}, TypeError, "num_cpus"),
        ({"resources": {"CPU": 1}}, ValueError, "num_cpus"),
        ({"object_store_memory": 0}, ValueError, "object_store_memory"),
        ({"labels": {"a": 1}}, TypeError, "labels"),
        ({"namespace": ""}, ValueError, "namespace"),
        ({"runtime_env": {"conda": "x"}}, NotImplementedError, "conda"),
        ({"runtime_env": {"env_vars": {"A": 1}}}, TypeError, "env_vars"),
        ({"local_mode": True}, RuntimeError, "local_mode"),
        ({"address": 5}, TypeError, "address"),
        ({"address": "ray://host:1"}, NotImplementedError, "ray://"),
        ({"address": "127.0.0.1:1"}, ConnectionError, "ray-rust start"),
        ({"address": "auto"}, ConnectionError, "no cluster runs"),
        ({"allow_multiple": True}, RuntimeError, "allow_multiple"),
        ({"storage": "/tmp"}, RuntimeError, "storage"),
        ({"_system_config": 1}, TypeError, "_system_config"),
        ({"_memory": -1}, ValueError, "memory"),
        ({"job_config": {}}, TypeError, "job_config"),
        ({"logging_level": "loud"}, ValueError, "loud"),
        ({"system_reserved_cpu": 1.0}, ValueError, "enable_resource_isolation"),
        ({"cgroup_path": "/x"}, ValueError, "enable_resource_isolation"),
        ({"enable_resource_isolation": True}, NotImplementedError, "enable_resource_isolation"),
    ],
)
def test_what_is_wrong_with_init_is_named(no_cluster, own_folder, arguments, error, words):
    with pytest.raises(error, match=words):
        ray_rust.init(**arguments)
    assert not ray_rust.is_initialized()
    assert processes_of(own_folder) == []


def test_settings_without_an_effect_are_accepted(no_cluster, own_folder):
    ray_rust.init("local", num_cpus=1, include_dashboard=False, configure_logging=True, logging_level="WARNING")


def test_the_context_shuts_down_at_the_end_of_its_block(no_cluster, own_folder):
    with ray_rust.init("local", num_cpus=1) as context:
        assert dict(context)["node_id"]
        assert ray_rust.is_initialized()
    assert not ray_rust.is_initialized()


def test_the_first_use_connects(no_cluster, own_folder):
    assert ray_rust.get(ray_rust.put(1)) == 1
    assert ray_rust.is_initialized()


def test_the_first_use_does_not_connect_where_that_is_switched_off(no_cluster, monkeypatch):
    monkeypatch.setenv("RAY_ENABLE_AUTO_CONNECT", "0")
    with pytest.raises(RaySystemError, match="init"):
        ray_rust.put(1)


def test_init_again_and_again(no_cluster, own_folder):
    @ray_rust.remote
    def work(x):
        return x + 1

    for i in range(3):
        ray_rust.init("local", num_cpus=1)
        assert ray_rust.get(work.remote(i)) == i + 1
        ray_rust.shutdown()
    assert processes_of(own_folder) == []


def test_references_of_a_former_connection_are_an_error(no_cluster, own_folder):
    ray_rust.init("local", num_cpus=1)
    ref = ray_rust.put(1)
    ray_rust.shutdown()
    ray_rust.init("local", num_cpus=1)
    with pytest.raises(ray_rust.exceptions.RayError):
        ray_rust.get(ref, timeout=10)
    del ref
    assert ray_rust.get(ray_rust.put(2)) == 2


def test_waiting_ends_with_the_connection(no_cluster, own_folder):
    import threading

    ray_rust.init("local", num_cpus=1)

    @ray_rust.remote
    def sleep():
        import time

        time.sleep(1000)

    ref = sleep.remote()
    caught = []

    def wait():
        try:
            ray_rust.get(ref)
        except ray_rust.exceptions.RayError as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    ray_rust.shutdown()
    thread.join(20)
    assert caught


def test_env_vars_reach_the_workers(run_script):
    out = run_script(
        """
import os
import ray_rust as ray
ray.init(num_cpus=1, runtime_env={"env_vars": {"FLAVOUR": "sweet"}})
print(ray.get(ray.remote(lambda: os.environ["FLAVOUR"]).remote()))
"""
    )
    assert out == "sweet\n"


def test_functions_and_classes_of_a_script_work(run_script):
    out = run_script(
        """
import ray_rust as ray

class Point:
    def __init__(self, x):
        self.x = x

class PointError(Exception):
    pass

def helper(x):
    return Point(x * 2)

@ray.remote
def f(point):
    if point.x > 100:
        raise PointError("too far")
    return helper(point.x)

@ray.remote
class Keeper:
    def keep(self, point):
        assert type(point) is Point
        self.point = point
        return self.point

if __name__ == "__main__":
    point = ray.get(f.remote(Point(4)))
    assert type(point) is Point
    assert type(ray.get(Keeper.remote().keep.remote(point))) is Point
    try:
        ray.get(f.remote(Point(101)))
    except PointError as error:
        print(point.x, type(error).__name__)
"""
    )
    assert out == "8 RayTaskError(PointError)\n"


def test_modules_beside_a_script_can_be_imported_by_its_tasks(run_script, tmp_path):
    (tmp_path / "neighbour.py").write_text("def f():\n    return __name__\n")
    (tmp_path / "data.txt").write_text("content")
    out = run_script(
        """
import ray_rust as ray
import neighbour
print(ray.get(ray.remote(neighbour.f).remote()), ray.get(ray.remote(lambda: open("data.txt").read()).remote()))
"""
    )
    assert out == "neighbour content\n"


def test_modules_named_like_those_of_the_standard_library_do_no_harm(run_script, tmp_path):
    (tmp_path / "socket.py").write_text("raise RuntimeError('not me')")
    out = run_script("import ray_rust as ray\nprint(ray.get(ray.put(1)))\nray.init(ignore_reinit_error=True)")
    assert out == "1\n"


def test_a_forked_child_does_not_use_its_parents_connection(run_script):
    out = run_script(
        """
import os
import ray_rust as ray
ray.init(num_cpus=1)
ref = ray.put("mine")
if os.fork() == 0:
    try:
        ray.get(ref)
    except ray.exceptions.RaySystemError as error:
        assert "forked" in str(error)
        assert not ray.is_initialized()
        del ref
        os._exit(7)
_, status = os.wait()
print(os.WEXITSTATUS(status), ray.get(ref), ray.get(ray.remote(lambda: "works").remote()))
"""
    )
    assert out == "7 mine works\n"


def test_a_daemon_that_cannot_start_says_why(no_cluster, own_folder, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises((RuntimeError, OSError), match="file"):
        ray_rust.init("local", num_cpus=1, _temp_dir=str(blocked / "below"))


# The command


def command(folder, *arguments):
    environment = {**os.environ, "RAY_RUST_TMPDIR": folder}
    return subprocess.run(
        [sys.executable, "-m", "ray_rust.scripts", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_a_cluster_started_by_hand_is_joined_and_outlives_its_drivers(no_cluster, own_folder):
    started = command(own_folder, "start", "--head", "--num-cpus", "3", "--resources", '{"gizmo": 2}')
    assert started.returncode == 0, started.stderr
    assert command(own_folder, "start", "--head").returncode == 1
    addresses = []
    for address in (None, "auto"):
        context = ray_rust.init(address)
        addresses.append(context["gcs_address"])
        assert ray_rust.cluster_resources()["CPU"] == 3
        assert ray_rust.get(ray_rust.remote(lambda: 5).remote()) == 5
        ray_rust.shutdown()
        assert processes_of(own_folder)
    ray_rust.init(addresses[0])
    ray_rust.shutdown()
    assert len(set(addresses)) == 1
    status = command(own_folder, "status")
    assert "alive" in status.stdout, status.stderr
    assert "gizmo" in status.stdout
    stopped = command(own_folder, "stop")
    assert stopped.returncode == 0, stopped.stderr
    wait_until(lambda: not processes_of(own_folder))
    assert command(own_folder, "status").returncode == 1
    assert "no node runs" in command(own_folder, "stop").stdout


def test_settings_of_a_node_are_refused_when_joining(no_cluster, own_folder):
    assert command(own_folder, "start", "--head", "--num-cpus", "1").returncode == 0
    with pytest.raises(ValueError, match="num_cpus"):
        ray_rust.init(num_cpus=2)
    context = ray_rust.init("local", num_cpus=2)
    assert ray_rust.cluster_resources()["CPU"] == 2
    ray_rust.shutdown()
    assert context["gcs_address"] != ray_rust.init()["gcs_address"]
    ray_rust.shutdown()
    command(own_folder, "stop", "--force")


def test_the_address_can_come_from_the_environment(no_cluster, own_folder, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    for address in (None, "auto"):
        with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:1"):
            ray_rust.init(address)
    ray_rust.init("local", num_cpus=1)


def test_actors_of_drivers_meet_only_in_a_namespace(no_cluster, own_folder):
    assert command(own_folder, "start", "--head", "--num-cpus", "2").returncode == 0
    make = """
import ray_rust as ray
ray.init(namespace="shared")

@ray.remote
class Keeper:
    def get(self):
        return "kept"

Keeper.options(name="keeper", lifetime="detached").remote()
keeper = ray.get_actor("keeper")
ray.get(keeper.get.remote())
Keeper.options(name="mortal").remote()
"""
    environment = {**os.environ, "RAY_RUST_TMPDIR": own_folder}
    subprocess.run([sys.executable, "-c", make], env=environment, check=True, timeout=50)
    ray_rust.init(namespace="other")
    with pytest.raises(ValueError, match="keeper"):
        ray_rust.get_actor("keeper")
    assert ray_rust.get(ray_rust.get_actor("keeper", namespace="shared").get.remote()) == "kept"

    def mortal_is_gone():
        try:
            ray_rust.get_actor("mortal", namespace="shared")
        except ValueError:
            return True
        return False

    wait_until(mortal_is_gone)
    ray_rust.shutdown()
    command(own_folder, "stop")


def test_settings_of_the_node_come_from_variables_too(script, monkeypatch):
    monkeypatch.setenv("RAY_RUST_RAYLET_NUM_CPUS", "7")
    monkeypatch.setenv("RAY_RUST_OBJECT_STORE_CAPACITY_BYTES", "50000000")
    source = """
import ray_rust as ray
ray.init()
resources = ray.cluster_resources()
print(resources["CPU"], resources["object_store_memory"])
ray.shutdown()
ray.init(num_cpus=3)
print(ray.cluster_resources()["CPU"])
"""
    status, out, err = script(source).finish()
    assert status == 0, err
    assert out.split() == ["7.0", "50000000.0", "3.0"]


def test_a_wrong_setting_is_named(script, monkeypatch):
    monkeypatch.setenv("RAY_RUST_RAYLET_NUM_CPUS", "many")
    status, _, err = script("import ray_rust\nray_rust.init()").finish()
    assert status != 0
    assert "RAY_RUST_RAYLET_NUM_CPUS" in err


def test_the_context_describes_the_connection_and_ends_it(no_cluster, own_folder):
    with ray_rust.init("local", num_cpus=1) as context:
        assert context.python_version == ".".join(str(part) for part in sys.version_info[:3])
        assert context.ray_version == ray_rust.__version__ == "2.60.0"
        assert context.ray_commit == ray_rust.__commit__
        assert context.dashboard_url is None
        assert dict(context) == context.address_info
        assert len(context) == len(list(context)) > 5
        assert context.python_version in context._repr_html_()
        assert "2.60.0" in repr(context)
    assert not ray_rust.is_initialized()
    context = ray_rust.init("local", num_cpus=1)
    context.disconnect()
    assert not ray_rust.is_initialized()


def test_hooks_run_at_the_end_of_init(no_cluster, own_folder, monkeypatch):
    from ray_rust._private import worker

    seen = []
    monkeypatch.setattr(worker, "_post_init_hooks", [lambda: seen.append(ray_rust.is_initialized())])
    ray_rust.init("local", num_cpus=1)
    ray_rust.init(ignore_reinit_error=True)
    assert seen == [True]


def test_a_job_config_gives_what_init_is_not_given(no_cluster, own_folder, tmp_path):
    from ray_rust.job_config import JobConfig

    (tmp_path / "only_there.py").write_text("answer = 42")
    config = JobConfig(
        ray_namespace="mine",
        runtime_env={"env_vars": {"FROM_JOB": "yes"}},
        code_search_path=[str(tmp_path)],
        default_actor_lifetime="detached",
    )
    ray_rust.init("local", num_cpus=1, job_config=config)

    @ray_rust.remote
    def look():
        import only_there

        context = ray_rust.get_runtime_context()
        return only_there.answer, os.environ["FROM_JOB"], context.namespace

    assert ray_rust.get(look.remote()) == (42, "yes", "mine")
    ray_rust.shutdown()
    ray_rust.init("local", num_cpus=1, job_config=config, namespace="other")
    assert ray_rust.get_runtime_context().namespace == "other"
    with pytest.raises(ValueError, match="default_actor_lifetime"):
        JobConfig(default_actor_lifetime="for ever")
    with pytest.raises(TypeError, match="code_search_path"):
        JobConfig(code_search_path="x")
    assert JobConfig.from_json({"ray_namespace": "n", "metadata": {"a": "b"}}).metadata == {"a": "b"}


STRUCTURED = """
import logging, sys
import ray_rust as ray

ray.init("local", num_cpus=1, logging_config=ray.LoggingConfig(
    encoding=sys.argv[1], additional_log_standard_attrs=["name"]))
logging.getLogger("mine").info("from the driver", extra={"color": "red"})

@ray.remote
def chat():
    logging.getLogger("mine").info("from a task")
    logging.getLogger("mine").debug("nothing")

ray.get(chat.options(name="named").remote())
"""


def test_structured_logs_of_a_job_are_json_everywhere(script):
    import json

    status, out, err = script(STRUCTURED, "JSON").finish()
    assert status == 0, err
    records = [json.loads(line) for line in (out + err).splitlines()]
    (driver,) = [record for record in records if record["message"] == "from the driver"]
    (task,) = [record for record in records if record["message"] == "from a task"]
    assert driver["color"] == "red"
    assert driver["name"] == task["name"] == "mine"
    assert driver["job_id"] == task["job_id"]
    assert (task["task_name"], task["task_func_name"]) == ("named", "__main__.chat")
    assert task["levelname"] == "INFO"
    assert task["timestamp_ns"] > 0
    assert "task_id" not in driver


def test_structured_logs_of_a_job_as_text(script):
    status, out, err = script(STRUCTURED, "TEXT").finish()
    assert status == 0, err
    lines = (out + err).splitlines()
    assert any("INFO" in line and "from the driver" in line and "color=red" in line for line in lines)
    assert any("-- from a task" in line and "task_name=named" in line for line in lines)


def test_a_logging_config_names_what_is_wrong():
    with pytest.raises(ValueError, match="XML"):
        ray_rust.LoggingConfig(encoding="XML")
    with pytest.raises(ValueError, match="nothing"):
        ray_rust.LoggingConfig(additional_log_standard_attrs=["nothing"])
    config = ray_rust.LoggingConfig("JSON", "DEBUG", ["name"])
    assert ray_rust.LoggingConfig.from_dict({**config.to_dict(), "new": 1}) == config


def test_loggers_are_configured_unless_told_otherwise(run_script):
    source = """
import logging, sys
import ray_rust as ray
sys.stderr = sys.stdout
ray.init("local", num_cpus=1, logging_level="warning", logging_format="<%(message)s>")
ray.logger.info("too little")
ray.logger.warning("enough")
logging.getLogger("ray_rust").warning("this too")
ray.shutdown()
ray.init("local", num_cpus=1, configure_logging=False)
assert ray.logger is logging.getLogger("ray") and not ray.logger.handlers and ray.logger.propagate
"""
    assert run_script(source).splitlines() == ["<enough>", "<this too>"]


def test_the_state_of_the_process_is_there_for_libraries(no_cluster, own_folder):
    from ray_rust._private import worker

    facade = worker.global_worker
    assert (facade.connected, facade.mode, facade.node, worker._global_node) == (False, None, None, None)
    assert facade.actor_id.is_nil()
    with pytest.raises(RaySystemError):
        facade.check_connected()
    ray_rust.init("local", num_cpus=1, namespace="here")
    facade.check_connected()
    assert (facade.mode, worker._mode(), facade.namespace) == (worker.SCRIPT_MODE, ray_rust.SCRIPT_MODE, "here")
    node = worker._global_node
    assert os.path.isdir(node.get_session_dir_path())
    assert os.path.isdir(node.get_logs_dir_path())
    assert node.session_name == ray_rust.get_runtime_context().get_session_name()
    assert node.is_head()
    assert node.address_info["webui_url"] is None
    assert facade.get_serialization_context().serialize([1]).total_bytes > 0

    @ray_rust.remote
    class Looker:
        def look(self):
            inside = worker.global_worker
            return inside.mode, inside.actor_id, inside.current_task_id.is_nil()

    looker = Looker.remote()
    assert ray_rust.get(looker.look.remote()) == (ray_rust.WORKER_MODE, looker._actor_id, False)


def test_the_cluster_can_be_asked_as_ray_does_inside(cluster):
    from ray_rust._private import state

    @ray_rust.remote
    class Asked:
        def ping(self):
            return True

    asked = Asked.options(name="asked").remote()
    ray_rust.get(asked.ping.remote())
    row = state.actors(asked._actor_id.hex())
    assert (row["Name"], row["State"], row["ActorClassName"]) == ("asked", "ALIVE", "Asked")
    assert row["JobID"] == ray_rust.get_runtime_context().get_job_id()
    assert asked._actor_id.hex() in state.actors(actor_state_name="ALIVE")
    assert asked._actor_id.hex() not in state.actors(actor_state_name="DEAD")
    assert state.actors("00" * 16) == {}
    node_id = ray_rust.get_runtime_context().get_node_id()
    assert state.total_resources_per_node()[node_id]["CPU"] == 4
    assert state.state.cluster_resources() == state.cluster_resources() == ray_rust.cluster_resources()
    assert set(state.state.available_resources()) <= set(state.available_resources()) | {"CPU"}
    assert state.state.get_draining_nodes() == {}
    assert len(state.jobs()) >= 1
    assert state.node_ids()[0] in ray_rust.cluster_resources()
    keys = {
        "NodeManagerHostname",
        "ObjectManagerPort",
        "ObjectStoreSocketName",
        "RuntimeEnvAgentPort",
        "DeathReasonMessage",
    }
    assert keys <= set(ray_rust.nodes()[0])


@pytest.mark.parametrize("call", ["put(1)", "get([])", "wait([])", "get_gpu_ids()", "get_runtime_context()"])
def test_the_first_use_of_any_call_connects(run_script, call):
    source = f"""
import ray_rust as ray
assert not ray.is_initialized()
ray.{call}
assert ray.is_initialized()
"""
    run_script(source)


def test_other_languages_and_ray_client_are_refused_by_name():
    with pytest.raises(AttributeError, match="java_function"):
        ray_rust.java_function  # noqa: B018
    with pytest.raises(NotImplementedError, match="Ray Client"):
        ray_rust.client("ray://host:10001")
    with pytest.raises(NotImplementedError, match="Ray Client"):
        ray_rust.ClientBuilder("host").env({"pip": []}).namespace("mine").connect()


def test_languages_have_numbers():
    language = ray_rust.Language
    assert [one.value() for one in (language.PYTHON, language.JAVA, language.CPP)] == [0, 1, 2]
    assert language(1) == language.JAVA != language.CPP
    assert {language.PYTHON: "mine"}[language(0)] == "mine"
    assert str(language.CPP) == "CPP"
    assert pickle.loads(pickle.dumps(language.JAVA)) == language.JAVA
    with pytest.raises(ValueError, match="no language of number 7"):
        language(7)
