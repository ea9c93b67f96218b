"""Runtime environments of jobs, tasks and actors, through real processes and without a network."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile

import pytest

import ray_rust
from conftest import processes_of, wait_until
from ray_rust.exceptions import ActorDiedError, RuntimeEnvSetupError
from ray_rust.runtime_env import RuntimeEnv, RuntimeEnvConfig


@ray_rust.remote
def variables(*names):
    return [os.environ.get(name) for name in names]


@ray_rust.remote
def pid_and_interpreter():
    return os.getpid(), sys.executable


@ray_rust.remote
def version_of(package):
    import importlib.metadata

    return importlib.metadata.version(package)


@ray_rust.remote
class Holder:
    def variables(self, *names):
        return [os.environ.get(name) for name in names]

    def variables_of_task(self, *names):
        return ray_rust.get(variables.remote(*names))

    def variables_of_actor(self, *names):
        other = Holder.options(runtime_env={"env_vars": {"INNER": "inner"}}).remote()
        return ray_rust.get(other.variables.remote(*names))

    def pid(self):
        return os.getpid()


def wheel(folder, name, version="1.0", source="VALUE = 1\n"):
    """A wheel with one module, written by hand."""
    path = os.path.join(folder, f"{name}-{version}-py3-none-any.whl")
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", source)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return path


BACKEND = """
import os, shutil, time

def _wait():
    with open({started!r} + f".{{os.getpid()}}", "w") as file:
        file.write(str(os.getppid()))
    while not os.path.exists({gate!r}):
        time.sleep(0.01)

def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    _wait()
    shutil.copy({wheel!r}, wheel_directory)
    return os.path.basename({wheel!r})
"""


class GatedPackage:
    """A source tree whose installation waits for a file, and says that it has begun."""

    def __init__(self, folder, name="gated"):
        self.folder = pathlib.Path(folder)
        self.gate = self.folder / "gate"
        self.tree = self.folder / "tree"
        self.tree.mkdir(parents=True)
        made = wheel(str(self.folder), name)
        backend = BACKEND.format(started=str(self.folder / "started"), gate=str(self.gate), wheel=made)
        (self.tree / "backend.py").write_text(backend)
        project = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        (self.tree / "pyproject.toml").write_text(project + f'[project]\nname = "{name}"\nversion = "1.0"\n')

    def pip(self):
        return {"packages": [str(self.tree)], "pip_install_options": ["--no-index", "--no-build-isolation", "-q"]}

    def installers(self):
        """Process ids of what has begun to build."""
        return [int(path.suffix[1:]) for path in self.folder.glob("started.*")]

    def wait_until_begun(self):
        wait_until(self.installers, what="the beginning of the installation")

    def open(self):
        self.gate.touch()


@pytest.fixture
def wheels(tmp_path):
    folder = tmp_path / "wheels"
    folder.mkdir()
    return folder


def pip(wheels, *packages, **more):
    return {"packages": list(packages), "pip_install_options": ["--no-index", "--find-links", str(wheels)], **more}


def session_dir():
    return pathlib.Path(ray_rust.get_runtime_context().get_session_dir())


def setup_logs():
    return "".join(path.read_text() for path in session_dir().glob("logs/runtime_env_setup-*.log"))


# Variables


def test_variables_of_the_job_reach_tasks_and_actors(no_cluster):
    os.environ.pop("NOT_SET", None)
    env_vars = {"OF_JOB": "job", "EXPANDED": "<${HOME}:${NOT_SET}>"}
    ray_rust.init("local", num_cpus=2, runtime_env={"env_vars": env_vars})
    assert "OF_JOB" not in os.environ
    expected = ["job", f"<{os.environ['HOME']}:>"]
    assert ray_rust.get(variables.remote("OF_JOB", "EXPANDED")) == expected
    assert ray_rust.get(Holder.remote().variables.remote("OF_JOB", "EXPANDED")) == expected


def test_variables_are_set_before_user_code_is_imported(cluster, tmp_path):
    (tmp_path / "reads_at_import.py").write_text("import os\nVALUE = os.environ['WHEN_IMPORTED']\n")

    @ray_rust.remote(runtime_env={"env_vars": {"WHEN_IMPORTED": "early"}})
    def read(folder):
        sys.path.insert(0, folder)
        import reads_at_import

        return reads_at_import.VALUE

    assert ray_rust.get(read.remote(str(tmp_path))) == "early"


def test_children_inherit_and_variables_are_merged(no_cluster):
    ray_rust.init("local", num_cpus=4, runtime_env={"env_vars": {"JOB": "job", "BOTH": "job"}})
    own = {"env_vars": {"BOTH": "actor", "ACTOR": "actor"}}
    holder = Holder.options(runtime_env=own).remote()
    names = ("JOB", "BOTH", "ACTOR", "INNER")
    assert ray_rust.get(holder.variables.remote(*names)) == ["job", "actor", "actor", None]
    assert ray_rust.get(holder.variables_of_task.remote(*names)) == ["job", "actor", "actor", None]
    assert ray_rust.get(holder.variables_of_actor.remote(*names)) == ["job", "actor", "actor", "inner"]
    assert ray_rust.get(variables.remote(*names)) == ["job", "job", None, None]

    @ray_rust.remote(runtime_env={"env_vars": {"BOTH": "task"}})
    def nested():
        return ray_rust.get(variables.options(runtime_env={"env_vars": {"INNER": "inner"}}).remote(*names))

    assert ray_rust.get(nested.remote()) == ["job", "task", None, "inner"]


def test_options_override_the_decorator(cluster):
    @ray_rust.remote(runtime_env={"env_vars": {"A": "decorator", "B": "decorator"}})
    def read():
        return os.environ.get("A"), os.environ.get("B")

    assert ray_rust.get(read.remote()) == ("decorator", "decorator")
    assert ray_rust.get(read.options(runtime_env={"env_vars": {"A": "options"}}).remote()) == ("options", None)
    for nothing in (None, {}):
        assert ray_rust.get(read.options(runtime_env=nothing).remote()) == ("decorator", "decorator")


def test_workers_are_not_shared_between_environments_but_within_one(cluster):
    pids = {}
    for _ in range(3):
        for value in (None, "one", "two"):
            env = {"env_vars": {"KIND": value}} if value else {}
            pid, _ = ray_rust.get(pid_and_interpreter.options(runtime_env=env).remote())
            assert pids.setdefault(value, pid) == pid
    assert len(set(pids.values())) == 3


def test_equal_environments_of_two_jobs_have_workers_of_their_own(run_script):
    source = """
import os, subprocess, sys
import ray_rust as ray
ray.init(runtime_env={"env_vars": {"SAME": "same"}}, **({"num_cpus": 1} if len(sys.argv) == 1 else {}),
         address="local" if len(sys.argv) == 1 else sys.argv[1])

@ray.remote
def f():
    return os.getpid(), os.environ["SAME"]

pid, value = ray.get(f.remote())
assert value == "same"
print(pid)
if len(sys.argv) == 1:
    address = ray.get_runtime_context().gcs_address
    other = subprocess.run([sys.executable, __file__, address], capture_output=True, text=True, check=True)
    assert int(other.stdout) != pid, other.stdout
    print("done")
"""
    assert "done" in run_script(source)


def test_variables_that_the_interpreter_reads_at_its_start_count(cluster):
    @ray_rust.remote(runtime_env={"env_vars": {"PYTHONHASHSEED": "7", "PYTHONPATH": "/from/variable"}})
    def look():
        return os.environ["PYTHONHASHSEED"], hash("text"), "/from/variable" in sys.path

    command = [sys.executable, "-c", "print(hash('text'))"]
    expected = subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": "7"}, capture_output=True, check=True)
    assert ray_rust.get(look.remote()) == ("7", int(expected.stdout), True)


def test_the_runtime_context_tells_the_environment(cluster):
    @ray_rust.remote(runtime_env={"env_vars": {"A": "1"}})
    def look():
        return ray_rust.get_runtime_context().runtime_env

    env = ray_rust.get(look.remote())
    assert isinstance(env, RuntimeEnv)
    assert env == {"env_vars": {"A": "1"}}
    assert ray_rust.get_runtime_context().runtime_env == {}


# Checks


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"envvars": {}}, ValueError, "'envvars', which is not known; the fields are working_dir, py_modules"),
        ({"env_vars": {"A": 1}}, TypeError, "'A' is 1 of type int"),
        ({"env_vars": {"A": None}}, TypeError, "'A' is None"),
        ({"env_vars": {1: "A"}}, TypeError, "the key 1"),
        ({"env_vars": []}, TypeError, "dict of strings"),
        ({"env_vars": {"A=B": "x"}}, ValueError, "cannot be set"),
        ({"working_dir": 1}, TypeError, "working_dir"),
        ({"working_dir": "/does/not/exist"}, ValueError, "no folder or file /does/not/exist"),
        ({"working_dir": "ftp://x/y.zip"}, ValueError, "'ftp'"),
        ({"working_dir": "https://x/y.exe"}, ValueError, ".zip, .tar.gz"),
        ({"py_modules": "x"}, TypeError, "list"),
        ({"py_modules": [1]}, TypeError, "int"),
        ({"py_modules": [__file__ + "x"]}, ValueError, "no folder or file"),
        ({"excludes": "x"}, TypeError, "excludes"),
        ({"pip": 1}, TypeError, "pip"),
        ({"pip": {"packages": ["x"], "check": True}}, ValueError, "check"),
        ({"pip": {"pip_check": True}}, ValueError, "'packages'"),
        ({"pip": {"packages": ["x"], "pip_check": 1}}, TypeError, "pip_check"),
        ({"pip": "/no/requirements.txt"}, ValueError, "requirements"),
        ({"uv": {"packages": "x"}}, ValueError, "packages"),
        ({"pip": ["x"], "uv": ["y"]}, ValueError, "not several at the same time"),
        ({"pip": ["x"], "py_executable": "python"}, ValueError, "not both"),
        ({"worker_process_setup_hook": 1}, TypeError, "hook"),
        ({"worker_process_setup_hook": "name"}, ValueError, "module.function"),
        ({"config": 1}, TypeError, "config"),
        ({"config": {"setup_timeout_seconds": 0}}, ValueError, "setup_timeout_seconds"),
        ({"config": {"setup_timeout_seconds": "1"}}, TypeError, "setup_timeout_seconds"),
        ({"config": {"eager_install": 1}}, TypeError, "eager_install"),
        ({"conda": "env"}, NotImplementedError, "conda"),
        ({"container": {"image": "x"}}, NotImplementedError, "container"),
        ({"image_uri": "x"}, NotImplementedError, "container"),
        ({"_nsight": "default"}, NotImplementedError, "profiler"),
        ({"java_jars": ["x.jar"]}, NotImplementedError, "Java"),
    ],
)
def test_what_is_wrong_is_said_where_it_is_written(no_cluster, given, error, words):
    with pytest.raises(error) as raised:
        variables.options(runtime_env=given)
    assert words in str(raised.value)
    with pytest.raises(error):
        Holder.options(runtime_env=given)
    with pytest.raises(error):
        ray_rust.init("local", runtime_env=given)
    assert not ray_rust.is_initialized()


def test_the_description_is_a_dict_and_keeps_what_it_was_given(tmp_path):
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("a\nb\na\n")
    env = RuntimeEnv(pip=str(requirements), env_vars={"A": "1"}, config=RuntimeEnvConfig(setup_timeout_seconds=5))
    assert isinstance(env, dict)
    assert env["pip"] == {"packages": ["a", "b"], "pip_check": False}
    assert env.get("config")["setup_timeout_seconds"] == 5
    assert RuntimeEnv.deserialize(env.serialize()) == env
    assert env.to_dict()["env_vars"] == {"A": "1"}
    env["pip"] = ["c"]
    env.set("uv", None)
    assert env.pip_config() == {"packages": ["c"], "pip_check": False}
    assert "uv" not in env
    assert RuntimeEnv() == {}
    assert RuntimeEnv(env_vars={}, excludes=[]) == {}
    import pickle

    assert pickle.loads(pickle.dumps(env)) == env
    with pytest.raises(ValueError, match="not known"):
        env["nonsense"] = 1
    assert env.pip_uri().startswith("pip://")
    assert (env.uv_uri(), env.conda_env_name(), env.has_py_container()) == (None, None, False)
    boxed = RuntimeEnv(container={"image": "i"}, env_vars={"A": "1"})
    assert (boxed.py_container_image(), boxed.py_container_run_options()) == ("i", [])


# Folders and packages


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "project"
    (folder / "package").mkdir(parents=True)
    (folder / "data").mkdir()
    (folder / "package" / "__init__.py").write_text("NAME = 'package of the project'\n")
    (folder / "data" / "text.txt").write_text("content")
    (folder / "data" / "large.bin").write_text("large")
    (folder / "data" / "secret.key").write_text("secret")
    (folder / ".gitignore").write_text("*.bin\n")
    (folder / ".rayignore").write_text("*.key\n!keep.key\n")
    (folder / "keep.key").write_text("kept")
    (folder / "tool.sh").write_text("#!/bin/sh\necho ran\n")
    (folder / "tool.sh").chmod(0o755)
    (folder / "empty").mkdir()
    return folder


@ray_rust.remote
def look_around():
    import package

    files = sorted(os.path.join(parent, name) for parent, _, names in os.walk(".") for name in names)
    files = [file for file in files if "__pycache__" not in file]
    ran = subprocess.run(["./tool.sh"], capture_output=True, text=True, check=True).stdout
    return package.NAME, files, sys.path[0] == os.getcwd(), ran, os.path.isdir("empty")


EXPECTED_FILES = [
    "./.gitignore",
    "./.rayignore",
    "./data/text.txt",
    "./keep.key",
    "./package/__init__.py",
    "./tool.sh",
]


def test_a_folder_becomes_the_working_directory_of_a_job(no_cluster, project):
    ray_rust.init("local", num_cpus=2, runtime_env={"working_dir": str(project)})
    name, files, first_on_path, ran, has_empty = ray_rust.get(look_around.remote())
    assert (name, first_on_path, ran, has_empty) == ("package of the project", True, "ran\n", True)
    assert files == EXPECTED_FILES
    uri = ray_rust.get_runtime_context().runtime_env["working_dir"]
    assert uri.startswith("gcs://_ray_pkg_") and uri.endswith(".zip")
    assert os.getcwd() != str(project)


def test_excludes_leave_files_out(cluster, project):
    env = {"working_dir": str(project), "excludes": ["/data/", "*.key"]}
    _, files, *_ = ray_rust.get(look_around.options(runtime_env=env).remote())
    assert files == [file for file in EXPECTED_FILES if "data" not in file and ".key" not in file]


def test_archives_and_addresses_become_working_directories(cluster, project, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "archive"), "zip", project)
    tar = str(tmp_path / "archive.tar.gz")
    with tarfile.open(tar, "w:gz") as file:
        file.add(project, arcname="top")

    @ray_rust.remote
    def name():
        import package

        return package.NAME, os.path.exists("data/text.txt")

    for working_dir in (archive, f"file://{archive}", f"file://{tar}", f"local://{project}"):
        env = {"working_dir": working_dir}
        assert ray_rust.get(name.options(runtime_env=env).remote()) == ("package of the project", True), working_dir


def test_a_package_is_fetched_by_http(cluster, project, tmp_path):
    import functools
    import http.server
    import threading

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    shutil.make_archive(str(tmp_path / "served"), "zip", project)
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            env = {"working_dir": f"{url}/served.zip"}
            assert ray_rust.get(look_around.options(runtime_env=env).remote())[0] == "package of the project"
            missing = look_around.options(runtime_env={"working_dir": f"{url}/missing.zip"}, max_retries=0).remote()
            with pytest.raises(RuntimeEnvSetupError, match=r"fetching http.*404"):
                ray_rust.get(missing)
        finally:
            server.shutdown()


def test_equal_folders_are_uploaded_and_unpacked_once(cluster, project, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(project, copy)

    @ray_rust.remote
    def uri_and_folder():
        return ray_rust.get_runtime_context().runtime_env["working_dir"], os.getcwd()

    def run(folder, value):
        env = {"working_dir": str(folder), "env_vars": {"VALUE": value}}
        return ray_rust.get(uri_and_folder.options(runtime_env=env).remote())

    first = run(project, "1")
    assert run(copy, "2") == first
    (copy / "new.txt").write_text("new")
    assert run(copy, "3")[0] != first[0]


def test_a_package_that_is_too_large_is_refused_with_its_largest_files(cluster, tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "noise.dat").write_bytes(os.urandom(300_000))
    monkeypatch.setenv("RAY_max_grpc_message_size", "200000")
    with pytest.raises(ValueError, match=r"more than the 0\.2 MiB.*excludes.*noise\.dat"):
        variables.options(runtime_env={"working_dir": str(folder)}).remote("A")


def test_large_packages_travel_in_parts(cluster, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    noise = os.urandom(20 << 20)
    (folder / "noise.dat").write_bytes(noise)

    @ray_rust.remote
    def read():
        with open("noise.dat", "rb") as file:
            return hash(file.read())

    # The hash of bytes is that of the process: both read it in a worker.
    env = {"working_dir": str(folder), "env_vars": {"PYTHONHASHSEED": "0"}}
    size = ray_rust.remote(lambda: os.path.getsize("noise.dat"))
    assert ray_rust.get(size.options(runtime_env=env).remote()) == len(noise)


def test_modules_can_be_imported_whatever_they_are(cluster, project, wheels, tmp_path):
    (tmp_path / "single.py").write_text("NAME = 'single file'\n")
    made = wheel(str(wheels), "wheeled", source="NAME = 'wheel'\n")
    archive = tmp_path / "zipped.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("zipped/__init__.py", "NAME = 'zip'\n")
    sys.path.insert(0, str(tmp_path))
    try:
        import single
    finally:
        sys.path.remove(str(tmp_path))

    @ray_rust.remote
    def names():
        import package
        import single
        import wheeled
        import zipped

        return package.NAME, single.NAME, wheeled.NAME, zipped.NAME

    modules = [str(project / "package"), single, made, str(archive)]
    refs = names.options(runtime_env={"py_modules": modules}).remote()
    assert ray_rust.get(refs) == ("package of the project", "single file", "wheel", "zip")


def test_processes_that_tasks_start_find_the_modules_too(cluster, project):
    @ray_rust.remote
    def run():
        command = [sys.executable, "-c", "import package; print(package.NAME)"]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stdout.strip()

    for env in ({"working_dir": str(project)}, {"py_modules": [str(project / "package")]}):
        assert ray_rust.get(run.options(runtime_env=env).remote()) == "package of the project"


def test_links_that_lead_back_are_no_trap(cluster, tmp_path):
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "file.txt").write_text("text")
    (folder / "inner" / "file.txt").write_text("text")
    (folder / "inner" / "back").symlink_to(folder)
    (folder / "nowhere").symlink_to(tmp_path / "missing")
    (folder / "link.txt").symlink_to(folder / "file.txt")
    names = ray_rust.remote(lambda: sorted(os.listdir(".")))
    found = ray_rust.get(names.options(runtime_env={"working_dir": str(folder)}).remote())
    assert found == ["file.txt", "inner", "link.txt"]


def test_packages_end_with_the_last_job_that_uses_them(no_cluster, own_folder, project, tmp_path):
    def command(*arguments):
        program = [sys.executable, "-m", "ray_rust.scripts", *arguments]
        return subprocess.run(program, check=True, capture_output=True, text=True).stdout

    def keys():
        return ray_rust.get_runtime_context() and core().kv_keys(b"runtime_env_packages", b"")

    def core():
        from ray_rust._private import session

        return session.connected_core()

    other = tmp_path / "other"
    other.mkdir()
    (other / "file.txt").write_text("text")
    command("start", "--head", "--num-cpus", "2")
    try:
        ray_rust.init(runtime_env={"working_dir": str(project)}, namespace="n")
        uri = core().runtime_env
        keeper = Holder.options(lifetime="detached", name="keeper", runtime_env={"working_dir": str(other)}).remote()
        ray_rust.get(keeper.pid.remote())
        assert sum(key.startswith(b"uri/") for key in keys()) == 2
        ray_rust.shutdown()
        # The detached actor still needs its own.
        ray_rust.init(namespace="n")
        wait_until(lambda: sum(key.startswith(b"uri/") for key in keys()) == 1, what="the removal of a package")
        assert not any(json.loads(uri)["working_dir"].encode() in key for key in keys())
        ray_rust.kill(ray_rust.get_actor("keeper"))
        ray_rust.shutdown()
        ray_rust.init(namespace="n")
        wait_until(lambda: not keys(), what="the removal of all packages")
    finally:
        ray_rust.shutdown()
        command("stop")


def test_a_package_that_is_not_in_the_cluster_is_named(cluster):
    ref = variables.options(runtime_env={"working_dir": "gcs://_ray_pkg_0123.zip"}).remote("A")
    with pytest.raises(RuntimeEnvSetupError, match=r"_ray_pkg_0123\.zip is not in the cluster"):
        ray_rust.get(ref)


# Packages of installers


def test_pip_packages_are_there_in_an_interpreter_of_their_own(cluster, wheels):
    for version in ("1.0", "2.0"):
        wheel(str(wheels), "versioned", version)

    @ray_rust.remote
    def look():
        import versioned

        script = "import versioned; print(versioned.VALUE)"
        ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
        return versioned.VALUE, sys.prefix != sys.base_prefix, os.environ["VIRTUAL_ENV"] in sys.executable, ran

    env = {"pip": pip(wheels, "versioned==1.0")}
    assert ray_rust.get(look.options(runtime_env=env).remote()) == (1, True, True, "1\n")
    for version in ("1.0", "2.0"):
        env = {"pip": pip(wheels, f"versioned=={version}")}
        assert ray_rust.get(version_of.options(runtime_env=env).remote("versioned")) == version
    holder = Holder.options(runtime_env={**env, "env_vars": {"A": "1"}}).remote()
    assert ray_rust.get(holder.variables.remote("A")) == ["1"]
    with pytest.raises(ImportError):
        import versioned  # noqa: F401 - the driver's own packages stay as they are


def test_a_virtual_environment_is_made_once_whoever_asks(cluster, tmp_path):
    package = GatedPackage(tmp_path / "gated", "askers")
    envs = [{"pip": package.pip(), "env_vars": {"ASKER": str(number)}} for number in range(3)]
    refs = [version_of.options(runtime_env=env).remote("askers") for env in envs]
    holder = Holder.options(runtime_env=envs[0]).remote()
    pid = holder.pid.remote()
    package.wait_until_begun()
    # Others go on meanwhile: nobody holds a CPU while packages are installed.
    assert len(ray_rust.get([pid_and_interpreter.remote() for _ in range(8)], timeout=30)) == 8
    assert ray_rust.wait([*refs, pid], timeout=0, num_returns=1)[0] == []
    package.open()
    assert ray_rust.get(refs) == ["1.0"] * 3
    assert ray_rust.get(pid) > 0
    assert setup_logs().count("pip install -r") - before_count(package) == 1
    assert len(package.installers()) == 1


def before_count(package):
    """Installations in the logs that are not of this package."""
    tree = str(package.tree)
    logs = session_dir().glob("logs/runtime_env_setup-*.log")
    return sum(log.read_text().count("pip install -r") for log in logs if tree not in log.read_text())


def test_environments_with_one_interpreter_share_what_forks_their_workers(cluster, wheels):
    wheel(str(wheels), "shared")

    @ray_rust.remote
    def processes():
        return os.getpid(), os.getppid(), os.environ["VALUE"]

    asked = pip(wheels, "shared")
    envs = [{"pip": asked, "env_vars": {"VALUE": value}} for value in ("1", "2")]
    one, other = (ray_rust.get(processes.options(runtime_env=env).remote()) for env in envs)
    assert (one[1], one[2], other[2]) == (other[1], "1", "2")
    assert one[0] != other[0]


def test_what_forks_the_workers_of_an_environment_may_die(cluster, wheels):
    wheel(str(wheels), "survivor")

    @ray_rust.remote(runtime_env={"pip": pip(wheels, "survivor")})
    def processes():
        return os.getpid(), os.getppid()

    first = ray_rust.get(processes.remote())
    os.kill(first[1], signal.SIGKILL)
    # Its worker ends with it, a moment later.
    folder = os.environ["RAY_RUST_TMPDIR"]
    wait_until(lambda: not {*first} & {*processes_of(folder)}, what="the end of both processes")
    second = ray_rust.get(processes.remote())
    assert not {*first} & {*second}
    assert ray_rust.get(pid_and_interpreter.remote())


def test_many_environments_leave_few_processes(no_cluster, own_folder):
    ray_rust.init("local", num_cpus=2)
    for number in range(40):
        value = str(number)
        assert ray_rust.get(variables.options(runtime_env={"env_vars": {"A": value}}).remote("A")) == [value]
    # The daemon, its fork server, four idle workers of environments, and the one without.
    wait_until(lambda: len(processes_of(own_folder)) <= 9, what="the end of idle workers")


def test_a_package_that_cannot_be_installed_fails_tasks_and_actors_with_the_installers_words(cluster, wheels):
    env = {"pip": pip(wheels, "no-such-package-anywhere"), "env_vars": {"TOKEN": "secret"}}
    refs = [variables.options(runtime_env=env).remote("A") for _ in range(3)]
    holder = Holder.options(runtime_env=env).remote()
    for ref in [*refs, holder.pid.remote()]:
        with pytest.raises(RuntimeEnvSetupError) as raised:
            ray_rust.get(ref)
        text = str(raised.value)
        assert "installing no-such-package-anywhere with pip" in text
        assert "No matching distribution found for no-such-package-anywhere" in text
        assert "secret" not in text
    # The failure is remembered for a moment: no storm of installations.
    with pytest.raises(RuntimeEnvSetupError):
        ray_rust.get(variables.options(runtime_env=env).remote("A"))
    tries = [
        log
        for log in session_dir().glob("logs/runtime_env_setup-*.log")
        if "no-such-package-anywhere" in log.read_text()
    ]
    assert sum(log.read_text().count("$ ") for log in tries) == 1


def test_what_failed_is_tried_again_after_a_moment(no_cluster, wheels, monkeypatch):
    monkeypatch.setenv("RAY_RUST_RAYLET_RUNTIME_ENV_RETRY_MS", "1")
    ray_rust.init("local", num_cpus=1)
    env = {"pip": pip(wheels, "comes_later")}
    task = version_of.options(runtime_env=env)
    with pytest.raises(RuntimeEnvSetupError):
        ray_rust.get(task.remote("comes_later"))
    wheel(str(wheels), "comes_later")

    def succeeds():
        try:
            return ray_rust.get(task.remote("comes_later"))
        except RuntimeEnvSetupError:
            return None

    assert wait_until(succeeds) == "1.0"


def test_pip_check_finds_what_does_not_fit(cluster, wheels):
    made = wheel(str(wheels), "needy")
    with zipfile.ZipFile(made, "a") as archive:
        archive.writestr("needy-1.0.dist-info/requires.txt", "")
    metadata = "Metadata-Version: 2.1\nName: needy\nVersion: 1.0\nRequires-Dist: missing_dependency\n"
    rewritten = str(wheels / "needy-1.1-py3-none-any.whl")
    with zipfile.ZipFile(rewritten, "w") as archive:
        archive.writestr("needy.py", "")
        archive.writestr("needy-1.1.dist-info/METADATA", metadata.replace("1.0\n", "1.1\n"))
        archive.writestr("needy-1.1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("needy-1.1.dist-info/RECORD", "needy.py,,\n")
    options = ["--no-index", "--find-links", str(wheels), "--no-deps"]
    checked = {"packages": ["needy==1.1"], "pip_install_options": options, "pip_check": True}
    with pytest.raises(RuntimeEnvSetupError, match=r"pip check(?s:.*)needy 1.1 requires missing.dependency"):
        ray_rust.get(version_of.options(runtime_env={"pip": checked}).remote("needy"))
    unchecked = {**checked, "pip_check": False}
    assert ray_rust.get(version_of.options(runtime_env={"pip": unchecked}).remote("needy")) == "1.1"


def test_uv_installs_packages_too(cluster, wheels, tmp_path, monkeypatch):
    import importlib.util

    if importlib.util.find_spec("uv") is None and shutil.which("uv") is None:
        pytest.skip("uv is not installed here: nothing to install with")
    wheel(str(wheels), "by_uv")
    asked = {"packages": ["by_uv"], "uv_pip_install_options": ["--no-index", "--find-links", str(wheels), "--no-cache"]}
    assert ray_rust.get(version_of.options(runtime_env={"uv": asked}).remote("by_uv")) == "1.0"
    asked = {**asked, "packages": ["not_there_for_uv"]}
    with pytest.raises(RuntimeEnvSetupError, match=r"with uv(?s:.*)not[-_]there[-_]for[-_]uv"):
        ray_rust.get(version_of.options(runtime_env={"uv": asked}).remote("x"))


def test_a_child_with_an_installer_of_its_own_does_not_inherit_the_others(no_cluster, wheels):
    wheel(str(wheels), "of_parent")
    ray_rust.init("local", num_cpus=2, runtime_env={"pip": pip(wheels, "of_parent")})
    assert ray_rust.get(version_of.remote("of_parent")) == "1.0"
    own = {"py_executable": sys.executable}

    @ray_rust.remote
    def look():
        return "pip" in ray_rust.get_runtime_context().runtime_env, sys.executable

    assert ray_rust.get(look.options(runtime_env=own).remote()) == (False, sys.executable)


def test_a_task_can_have_another_interpreter(cluster, tmp_path):
    import venv

    folder = tmp_path / "venv"
    venv.EnvBuilder(symlinks=True).create(folder)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "paths.pth").write_text("\n".join(path for path in sys.path if path))
    python = str(folder / "bin" / "python")
    assert ray_rust.get(pid_and_interpreter.options(runtime_env={"py_executable": python}).remote())[1] == python
    broken = {"py_executable": "/no/such/python"}
    with pytest.raises(RuntimeEnvSetupError, match=r"/no/such/python.*No such file"):
        ray_rust.get(pid_and_interpreter.options(runtime_env=broken).remote())
    with pytest.raises(RuntimeEnvSetupError, match=r"can run workers"):
        ray_rust.get(pid_and_interpreter.options(runtime_env={"py_executable": "/bin/false"}).remote())


# Hooks


def test_a_hook_prepares_each_worker_before_its_first_task(no_cluster, tmp_path):
    def hook():
        os.environ["PREPARED"] = "by hook"

    ray_rust.init("local", num_cpus=2, runtime_env={"worker_process_setup_hook": hook})
    assert ray_rust.get(variables.remote("PREPARED")) == ["by hook"]
    holder = Holder.remote()
    assert ray_rust.get(holder.variables.remote("PREPARED")) == ["by hook"]
    assert ray_rust.get_runtime_context().runtime_env["worker_process_setup_hook"] == "hook"


def test_a_hook_can_be_named(cluster, project):
    (project / "hooks.py").write_text("import os\ndef run():\n    os.environ['PREPARED'] = 'by name'\n")
    env = {"worker_process_setup_hook": "hooks.run", "py_modules": [str(project / "hooks.py")]}
    assert ray_rust.get(variables.options(runtime_env=env).remote("PREPARED")) == ["by name"]


def test_a_hook_that_raises_fails_its_tasks_and_actors(cluster):
    def broken():
        raise ValueError("the hook is broken")

    env = {"worker_process_setup_hook": broken}
    for _ in range(2):
        with pytest.raises(RuntimeEnvSetupError, match=r"ValueError: the hook is broken"):
            ray_rust.get(variables.options(runtime_env=env).remote("A"))
    with pytest.raises(ActorDiedError, match="the hook is broken"):
        ray_rust.get(Holder.options(runtime_env=env).remote().pid.remote())


# Failures of the set-up


def test_a_setup_that_takes_too_long_is_ended_and_names_its_step(no_cluster, own_folder, tmp_path):
    package = GatedPackage(tmp_path / "gated")
    ray_rust.init("local", num_cpus=1)
    env = {"pip": package.pip(), "config": {"setup_timeout_seconds": 3}}
    ref = variables.options(runtime_env=env).remote("A")
    with pytest.raises(RuntimeEnvSetupError, match=r"took longer than 3 s.*setup_timeout_seconds.*while "):
        ray_rust.get(ref)
    # What it had started is gone with it.
    wait_until(lambda: not {*package.installers()} & {*processes_of(own_folder)}, what="the end of the installer")


def test_an_installer_that_is_killed_is_an_error_that_says_so(cluster, tmp_path):
    package = GatedPackage(tmp_path / "gated", "killed_installer")
    ref = variables.options(runtime_env={"pip": package.pip()}).remote("A")
    package.wait_until_begun()
    (started,) = package.folder.glob("started.*")
    # What builds is a child of pip.
    os.kill(int(wait_until(started.read_text)), signal.SIGKILL)
    package.open()
    with pytest.raises(RuntimeEnvSetupError, match=r"pip install .* was killed by signal 9"):
        ray_rust.get(ref)


def test_a_setup_whose_process_is_killed_is_an_error_that_says_so(no_cluster, own_folder, tmp_path):
    package = GatedPackage(tmp_path / "gated", "killed_setup")
    ray_rust.init("local", num_cpus=1)
    ref = variables.options(runtime_env={"pip": package.pip()}).remote("A")
    package.wait_until_begun()
    os.kill(os.getpgid(package.installers()[0]), signal.SIGKILL)
    with pytest.raises(RuntimeEnvSetupError, match=r"while installing .*killed by signal 9"):
        ray_rust.get(ref)
    wait_until(lambda: not {*package.installers()} & {*processes_of(own_folder)}, what="the end of the installer")


def test_a_disk_that_refuses_is_named(no_cluster, project):
    ray_rust.init("local", num_cpus=1)
    resources = session_dir() / "runtime_resources"
    resources.mkdir()
    (resources / "packages").write_text("a file where a folder has to be")
    ref = variables.options(runtime_env={"working_dir": str(project)}).remote("A")
    with pytest.raises(RuntimeEnvSetupError, match=r"runtime_resources/packages"):
        ray_rust.get(ref)


def test_a_driver_that_ends_amid_a_setup_leaves_nothing(script, tmp_path):
    package = GatedPackage(tmp_path / "gated")
    source = """
import json, sys
import ray_rust as ray
ray.init(num_cpus=1)
@ray.remote(runtime_env={"pip": json.loads(sys.argv[1])})
def f(): pass
ref = f.remote()
print("asked", flush=True)
ray.get(ref)
"""
    running = script(source, json.dumps(package.pip()))
    running.read_until("asked")
    package.wait_until_begun()
    running.process.kill()
    wait_until(lambda: not processes_of(running.folder), what="the end of all processes")


def test_a_setup_ends_with_the_last_who_waits_for_it(no_cluster, own_folder, tmp_path):
    package = GatedPackage(tmp_path / "gated")
    ray_rust.init("local", num_cpus=1)
    ref = variables.options(runtime_env={"pip": package.pip()}).remote("A")
    package.wait_until_begun()
    ray_rust.cancel(ref)
    wait_until(lambda: not {*package.installers()} & {*processes_of(own_folder)}, what="the end of the installer")
    # And begins anew for the next.
    package.open()
    assert ray_rust.get(version_of.options(runtime_env={"pip": package.pip()}).remote("gated")) == "1.0"


def test_that_an_environment_is_being_set_up_is_told_as_the_reason_of_a_wait(no_cluster, tmp_path):
    from ray_rust.util import state

    package = GatedPackage(tmp_path / "gated")
    ray_rust.init("local", num_cpus=1)
    env = {"pip": package.pip()}
    ref = version_of.options(runtime_env=env).remote("gated")
    holder = Holder.options(runtime_env=env).remote()
    call = holder.pid.remote()
    package.wait_until_begun()
    for waiting in (ref, call):
        wait_until(lambda waiting=waiting: "environment is being set up" in (state.why(waiting) or ""))
    (actor,) = state.list_actors(detail=True)
    assert "environment is being set up" in actor.pending_reason
    package.open()
    assert ray_rust.get([ref, call])[0] == "1.0"
    assert state.why(ref) is None


def test_the_environment_of_a_job_is_set_up_when_it_starts(no_cluster, tmp_path):
    package = GatedPackage(tmp_path / "gated")
    ray_rust.init("local", num_cpus=1, runtime_env={"pip": package.pip()})
    package.wait_until_begun()
    package.open()
    assert ray_rust.get(version_of.remote("gated")) == "1.0"


# What is kept


def test_idle_environments_are_retired_and_come_back_from_the_disk(no_cluster, wheels, monkeypatch, own_folder):
    monkeypatch.setenv("RAY_RUST_RAYLET_IDLE_WORKER_TIMEOUT_MS", "100")
    monkeypatch.setenv("RAY_RUST_RAYLET_IDLE_RUNTIME_ENV_TIMEOUT_MS", "100")
    wheel(str(wheels), "kept")
    ray_rust.init("local", num_cpus=1)

    @ray_rust.remote(runtime_env={"pip": pip(wheels, "kept")})
    def processes():
        return os.getpid(), os.getppid()

    first = ray_rust.get(processes.remote())
    wait_until(lambda: not {*first} & {*processes_of(own_folder)}, what="the end of the environment's processes")
    second = ray_rust.get(processes.remote())
    assert not {*first} & {*second}
    assert setup_logs().count("pip install -r") == 1


def test_the_disk_is_cleared_of_what_nobody_uses(no_cluster, wheels, monkeypatch):
    monkeypatch.setenv("RAY_RUST_RAYLET_IDLE_WORKER_TIMEOUT_MS", "100")
    monkeypatch.setenv("RAY_RUST_RAYLET_IDLE_RUNTIME_ENV_TIMEOUT_MS", "100")
    monkeypatch.setenv("RAY_RUST_RAYLET_RUNTIME_ENV_CACHE_BYTES", "1")
    wheel(str(wheels), "cleared")
    ray_rust.init("local", num_cpus=1)
    task = version_of.options(runtime_env={"pip": pip(wheels, "cleared")})
    assert ray_rust.get(task.remote("cleared")) == "1.0"
    venvs = session_dir() / "runtime_resources" / "venvs"
    wait_until(lambda: not any(venvs.iterdir()), what="the removal of the virtual environment")
    assert ray_rust.get(task.remote("cleared")) == "1.0"


def test_nothing_of_an_environment_is_left_after_the_session(no_cluster, project):
    ray_rust.init("local", num_cpus=1, runtime_env={"working_dir": str(project)})
    ray_rust.get(variables.remote("A"))
    folder = session_dir()
    assert (folder / "runtime_resources").is_dir()
    ray_rust.shutdown()
    assert not (folder / "runtime_resources").exists()


# Jobs that others submit


def test_a_hook_of_the_driver_rewrites_the_environment_of_its_job(run_script, tmp_path):
    source = """
import os, sys, types
module = types.ModuleType("rewriting")
def rewrite(runtime_env):
    return {**(runtime_env or {}), "env_vars": {"REWRITTEN": "yes"}}
module.rewrite = rewrite
sys.modules["rewriting"] = module
os.environ["RAY_RUNTIME_ENV_HOOK"] = "rewriting.rewrite"
import ray_rust as ray
ray.init(num_cpus=1)
print(ray.get(ray.remote(lambda: os.environ.get("REWRITTEN")).remote()))
"""
    assert "yes" in run_script(source)


def test_what_the_submitter_of_a_job_asked_for_is_merged(no_cluster, monkeypatch):
    submitted = {"runtime_env": {"env_vars": {"SUBMITTED": "1", "BOTH": "submitted"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(submitted))
    with pytest.raises(ValueError, match=r"both set BOTH.*RAY_OVERRIDE_JOB_RUNTIME_ENV"):
        ray_rust.init("local", num_cpus=1, runtime_env={"env_vars": {"BOTH": "driver"}})
    monkeypatch.setenv("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
    ray_rust.init("local", num_cpus=1, runtime_env={"env_vars": {"BOTH": "driver"}})
    assert ray_rust.get(variables.remote("SUBMITTED", "BOTH")) == ["1", "driver"]


# Actors


def test_a_detached_actor_keeps_its_environment_when_it_is_made_again(script, tmp_path, project):
    source = """
import os, signal, sys
import ray_rust as ray
ray.init(num_cpus=2, namespace="n")
@ray.remote(max_restarts=-1, max_task_retries=-1, lifetime="detached", name="keeper",
            runtime_env={"env_vars": {"KEPT": "kept"}, "working_dir": sys.argv[1]})
class Keeper:
    def look(self): return os.environ["KEPT"], os.path.exists("keep.key"), os.getpid()
keeper = Keeper.remote()
kept, there, pid = ray.get(keeper.look.remote())
assert (kept, there) == ("kept", True)
os.kill(pid, signal.SIGKILL)
again = ray.get(ray.get_actor("keeper").look.remote())
assert again[:2] == ("kept", True) and again[2] != pid, again
print("done")
"""
    status, out, err = script(source, str(project)).finish()
    assert status == 0, err
    assert "done" in out


def test_patterns_are_those_of_git(tmp_path):
    from ray_rust._private.runtime_env.ignore import Patterns

    cases = [
        (["*.log"], "a/b.log", False, True),
        (["*.log", "!keep.log"], "keep.log", False, False),
        (["/top"], "sub/top", False, False),
        (["/top"], "top", False, True),
        (["folder/"], "folder", False, False),
        (["folder/"], "sub/folder", True, True),
        (["a/**/b"], "a/x/y/b", False, True),
        (["a/**/b"], "a/b", False, True),
        (["**/c"], "x/c", False, True),
        (["x/**"], "x/y/z", False, True),
        (["a?c"], "abc", False, True),
        (["a?c"], "a/c", False, False),
        (["[ab].txt"], "b.txt", False, True),
        (["[!ab].txt"], "b.txt", False, False),
        (["# comment", "", "a\\ "], "a ", False, True),
        (["doc/*.txt"], "doc/sub/a.txt", False, False),
    ]
    for lines, path, is_folder, expected in cases:
        assert Patterns(lines).excludes(path, is_folder=is_folder) is expected, (lines, path)
