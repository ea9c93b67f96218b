"""The examples run, and check their own results."""

import os
import subprocess
import sys

import pytest

EXAMPLES = os.path.join(os.path.dirname(__file__), "..", "..", "..", "examples")


@pytest.mark.parametrize("name", sorted(os.listdir(EXAMPLES)))
def test_an_example_runs(name, own_folder):
    done = subprocess.run(
        [sys.executable, os.path.join(EXAMPLES, name)], capture_output=True, text=True, timeout=55, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "results are equal" in done.stdout
    # Without a terminal the bar is drawn once, when it is full.
    assert done.stderr.count("[####") == 1
