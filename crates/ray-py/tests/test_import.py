"""Importing the package is cheap, because nothing heavy is imported with it."""

import subprocess
import sys

import pytest

import ray_rust


def modules_after(statement):
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def test_nothing_heavy_is_imported():
    # What the interpreter itself has at its start (editable installs import some) does not count.
    new = modules_after("import ray_rust") - modules_after("pass")
    heavy = {"numpy", "asyncio", "cloudpickle", "subprocess", "socket", "logging", "inspect", "tempfile", "json"}
    assert not new & heavy


@pytest.mark.parametrize("name", ray_rust.__all__)
def test_every_public_name_exists_and_is_documented(name):
    value = getattr(ray_rust, name)
    assert name == "__version__" or value.__doc__
