"""The benchmarks run and write their figures; what these are is not looked at."""

import json
import os
import subprocess
import sys

FOLDER = os.path.join(os.path.dirname(__file__), "..", "..", "..", "benchmarks")


def figures(tmp_path, name, *arguments):
    path = tmp_path / "figures.json"
    command = [sys.executable, os.path.join(FOLDER, name), *arguments, "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=55, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text())


def test_mixed_tasks(own_folder, tmp_path):
    written = figures(tmp_path, "mixed_tasks.py", "--short", "5", "--long", "2", "--rounds", "2")
    assert len(written["rounds"]) == 2
    for one in written["rounds"]:
        # Sleeping tasks cannot be faster than their sleep.
        assert one["seconds"] >= one["best_seconds"] <= one["in_order_seconds"]


def test_queued_tasks(own_folder, tmp_path):
    written = figures(tmp_path, "queued_tasks.py", "--tasks", "10,200")
    assert [row["tasks"] for row in written["rows"]] == [10, 200]
    assert all(row["seconds"] >= row["submit_seconds"] for row in written["rows"])


def test_hops(own_folder, tmp_path):
    written = figures(tmp_path, "hops.py", "--seconds", "0.05")
    assert "f.remote(), queued" in written
    assert all(figure >= 0 for figure in written.values())


def test_side_by_side_of_nothing_to_compare_with(own_folder, tmp_path):
    path = tmp_path / "table.json"
    arguments = ["--rounds", "1", "--seconds", "0.1", "--only", "tasks sync /s,get small /s", "--json", str(path)]
    command = [sys.executable, os.path.join(FOLDER, "side_by_side.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=55, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    ours, ray, limit = json.loads(path.read_text())["tasks sync /s"]
    assert (ours > 0, ray, limit > 0) == (True, None, True)
