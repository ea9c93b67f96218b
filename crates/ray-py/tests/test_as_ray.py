"""`import ray` gives this package: by a call, a command, or a variable."""

import os
import pathlib
import subprocess
import sys

import pytest

WHOLE = """
import pickle, sys
import ray
import ray.exceptions, ray.actor, ray.remote_function, ray.runtime_context, ray.types, ray.job_config
import ray.util.actor_pool
import ray.util.placement_group
from ray.util.placement_group import PlacementGroup
from ray.util import ActorPool
from ray.exceptions import RayTaskError
from ray.experimental import internal_kv
import ray.experimental.rdt.rdt_manager, ray.experimental.rdt.util
from ray.experimental.rdt.tensor_transport_manager import TensorTransportManager
from ray._private import worker
import ray._private.worker
import ray_rust
import ray_rust.util.actor_pool

assert ray is ray_rust and ray.util is ray_rust.util
assert sys.modules["ray.util.actor_pool"] is sys.modules["ray_rust.util.actor_pool"]
assert ActorPool is ray_rust.util.ActorPool and RayTaskError is ray_rust.exceptions.RayTaskError
assert worker is ray_rust._private.worker
assert TensorTransportManager is ray_rust.experimental.TensorTransportManager
# A function with the name of its module.
assert ray.util.placement_group is sys.modules["ray.util.placement_group"].placement_group
assert ray.__spec__.name == "ray_rust" and ray.util.__spec__.name == "ray_rust.util"
assert isinstance(pickle.loads(pickle.dumps(ray.JobID.nil())), ray_rust.JobID)

class Mine(ray.exceptions.RayError):
    pass

@ray.remote
def inside(ref_in_list):
    import ray as here
    import ray_rust as there
    from ray.util import ActorPool as Pool
    from ray.exceptions import RayTaskError as Error
    assert here is there is ray
    assert Pool is there.util.ActorPool
    return isinstance(ref_in_list[0], here.ObjectRef), Error, Pool, here.get(ref_in_list[0])

found = ray.get(inside.remote([ray.put(7)]))
assert found == (True, RayTaskError, ActorPool, 7), found

@ray.remote
class Actor:
    def fail(self):
        import ray.exceptions
        raise Mine("so")

    def call(self, function):
        return function()

actor = Actor.remote()
try:
    ray.get(actor.fail.remote())
except Mine as error:
    assert isinstance(error, ray.exceptions.RayTaskError)
else:
    raise AssertionError
assert isinstance(actor, ray.actor.ActorHandle)
assert ray.get(actor.call.remote(lambda: sys.modules["ray"].__name__)) == "ray_rust"
print("whole", *sys.argv[1:], __name__)
"""


def test_installing_makes_both_names_one_module(run_script):
    assert "whole" in run_script("import ray_rust; ray_rust.install_as_ray(); ray_rust.install_as_ray()\n" + WHOLE)


def run_as_ray(*arguments, cwd, **variables):
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        cwd=cwd,
        env={**os.environ, **variables},
    )


def test_a_program_runs_without_changing_its_import(tmp_path, own_folder):
    (tmp_path / "neighbour.py").write_text("value = 3")
    program = tmp_path / "program.py"
    program.write_text("from neighbour import value\n" + WHOLE)
    done = run_as_ray("ray_rust", "run", str(program), "--flag", "x", cwd="/")
    assert (done.returncode, done.stdout) == (0, "whole --flag x __main__\n"), done.stderr


def test_a_module_runs_without_changing_its_import(tmp_path, own_folder):
    (tmp_path / "program.py").write_text(WHOLE)
    done = run_as_ray("ray_rust", "run", "-m", "program", "a", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "whole a __main__\n"), done.stderr


def test_a_program_ends_as_it_would_by_itself(tmp_path, own_folder):
    program = tmp_path / "program.py"
    program.write_text("import sys, ray\nsys.exit(5)")
    assert run_as_ray("ray_rust", "run", str(program), cwd=tmp_path).returncode == 5
    program.write_text("import ray\ndef fail():\n    1 / 0\nfail()")
    done = run_as_ray("ray_rust", "run", str(program), cwd=tmp_path)
    assert done.returncode == 1
    assert "program.py" in done.stderr
    assert "ZeroDivisionError" in done.stderr
    done = run_as_ray("ray_rust", "run", str(tmp_path / "none.py"), cwd=tmp_path)
    assert done.returncode == 2
    assert "none.py" in done.stderr


def test_a_program_knows_its_path_as_if_python_had_started_it(tmp_path, own_folder):
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\nprint(__file__, sys.argv)\nos.chdir('/')\nprint(len(open(__file__).read()))\n1 / 0\n"
    )
    by_python = subprocess.run(
        [sys.executable, "program.py", "x"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    done = run_as_ray("ray_rust", "run", "program.py", "x", cwd=tmp_path)
    assert done.stdout == by_python.stdout
    assert f'File "{program}", line 5' in done.stderr


def test_the_variable_installs_it_when_the_package_is_imported(tmp_path, own_folder):
    (tmp_path / "program.py").write_text("import ray_rust\n" + WHOLE)
    done = run_as_ray("program", cwd=tmp_path, RAY_RUST_AS_RAY="1")
    assert done.returncode == 0, done.stderr


def test_the_wheel_brings_what_reads_the_variable(tmp_path):
    # What an installed wheel puts beside the packages, which development builds do not install.
    line = pathlib.Path(__file__).parent.parent / "data" / "purelib" / "ray_rust_as_ray.pth"
    (tmp_path / "ray_rust_as_ray.pth").write_text(line.read_text())
    source = f"import site; site.addsitedir({str(tmp_path)!r}); import ray; print(ray.__name__)"
    environment = {**os.environ, "RAY_RUST_AS_RAY": "1"}
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout == "ray_rust\n", done.stderr
    environment["RAY_RUST_AS_RAY"] = "0"
    quiet = f"import site, sys; site.addsitedir({str(tmp_path)!r}); print('ray_rust' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", quiet], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "False\n"


def test_ray_itself_is_refused_if_it_was_imported_before(tmp_path):
    (tmp_path / "ray.py").write_text("kind = 'another'")
    source = """
import ray, ray_rust
try:
    ray_rust.install_as_ray()
except RuntimeError as error:
    assert "ray.py" in str(error) and ray.kind == "another"
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", source], check=True, cwd=tmp_path)


def test_what_is_not_there_is_named_and_an_installed_ray_is_not_mixed_in(tmp_path):
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").write_text("kind = 'another'")
    (tmp_path / "ray" / "data.py").write_text("kind = 'another'")
    source = """
import ray_rust
ray_rust.install_as_ray()
import ray
assert not hasattr(ray, "kind")
try:
    import ray.data
except ModuleNotFoundError as error:
    assert error.name == "ray.data" and "ray_rust" in str(error), error
else:
    raise AssertionError
try:
    import ray.util.nothing
except ModuleNotFoundError as error:
    assert error.name == "ray.util.nothing", error
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", source], check=True, cwd=tmp_path)


def test_workers_of_other_drivers_are_left_alone(run_script):
    source = """
import ray_rust

@ray_rust.remote
def look():
    import sys
    return any("as_ray" in type(finder).__module__ for finder in sys.meta_path)

ray_rust.init("local", num_cpus=1)
assert ray_rust.get(look.remote()) is False
"""
    run_script(source)


@pytest.mark.parametrize("name", ["exceptions", "actor", "remote_function", "runtime_context", "util", "_private"])
def test_classes_say_where_they_are_to_be_found(name):
    import importlib

    module = importlib.import_module(f"ray_rust.{name}")
    for value in vars(module).values():
        if isinstance(value, type):
            assert value.__module__.split(".")[0] != "ray"
