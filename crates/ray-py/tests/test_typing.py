"""Type checkers understand programs: what is right passes, and what is wrong is found where it is."""

import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import pytest

import ray_rust

FOLDER = pathlib.Path(__file__).parent / "typing"
CONFIGURATION = pathlib.Path(__file__).parent.parent / "pyproject.toml"


def lines_of_mypy(path):
    command = [sys.executable, "-m", "mypy", "--config-file", str(CONFIGURATION), "--no-error-summary", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=CONFIGURATION.parent)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return {int(line) for line in re.findall(r"^\S+?:(\d+): error", done.stdout, re.MULTILINE)}, done.stdout


def lines_of_pyright(path):
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=CONFIGURATION.parent)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = json.loads(done.stdout)["generalDiagnostics"]
    errors = [entry for entry in found if entry["severity"] == "error"]
    return {entry["range"]["start"]["line"] + 1 for entry in errors}, done.stdout


CHECKERS = {"mypy": lines_of_mypy, "pyright": lines_of_pyright}


@pytest.fixture(params=CHECKERS)
def lines_of(request):
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed: 'make lint' installs it")
    return CHECKERS[request.param]


@pytest.mark.timeout(300)
def test_right_programs_pass(lines_of):
    lines, output = lines_of(FOLDER / "program.py")
    assert not lines, output


@pytest.mark.timeout(300)
def test_mistakes_are_found_where_they_are(lines_of):
    source = (FOLDER / "mistakes.py").read_text().splitlines()
    wrong = {number for number, line in enumerate(source, 1) if "# wrong" in line}
    lines, output = lines_of(FOLDER / "mistakes.py")
    assert lines == wrong, output


def test_what_the_checkers_saw_runs(run_script):
    assert run_script((FOLDER / "program.py").read_text()) == "typed\n"


def test_types_cost_nothing_at_run_time():
    @ray_rust.remote
    def f():
        """Nothing."""

    assert type(f) is ray_rust.remote_function.RemoteFunction
    assert "ray_rust._private.typed" not in sys.modules
    assert "typing_extensions" not in (module.split(".")[0] for module in modules_of("import ray_rust"))


def modules_of(statement):
    source = f"import sys; before = set(sys.modules); {statement}; print(*set(sys.modules) - before)"
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True).stdout.split()


def test_annotations_of_users_can_be_evaluated():
    assert ray_rust.ObjectRef[int] is not None
    assert ray_rust.actor.ActorHandle[int] is not None
    assert ray_rust.actor.ActorClass[int] is not None
    assert ray_rust.actor.ActorProxy[int] is not None


def test_a_bare_method_decorator_changes_nothing():
    def f(self):
        """Nothing."""

    assert ray_rust.method(f) is f
