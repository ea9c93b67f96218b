"""The command that measures: it runs workloads for real, for a moment, and says what came of each."""

import json
import os
import re
import subprocess
import sys

import pytest

from ray_rust import scripts
from ray_rust._private import microbenchmark
from ray_rust._private.microbenchmark.workloads import WORKLOADS, Run


def command(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "ray_rust.scripts", "microbenchmark", *arguments],
        env={**os.environ, "RAY_RUST_TMPDIR": folder},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


MEASURED = re.compile(r"(.+) per second ([0-9.]+) \+- ([0-9.]+)")


def test_figures_are_printed_and_written(own_folder, tmp_path):
    path = tmp_path / "figures.json"
    names = ["single client put calls (Plasma Store)", "single client tasks sync", "1:1 actor calls sync"]
    absent = "client: put calls"
    only = ",".join([absent, *names])
    done = command(own_folder, "--only", only, "--seconds", "0.05", "--rounds", "2", "--num-cpus", "2", "--json", path)
    assert done.returncode == 0, done.stderr
    # An unoptimized build says first that it is one.
    lines = [line for line in done.stdout.splitlines() if "not optimized" not in line]
    assert [MEASURED.fullmatch(line)[1] for line in lines[:-1]] == names
    assert lines[-1].startswith(f"{absent} not supported yet: ")

    report = json.loads(path.read_text())
    assert (report["seconds"], report["rounds"], report["num_cpus"]) == (0.05, 2, 2)
    *measured, unsupported = report["results"]
    for line, result in zip(lines, measured):
        name, mean, deviation = MEASURED.fullmatch(line).groups()
        assert (result["name"], f"{result['per_second']:.2f}", f"{result['deviation']:.2f}") == (name, mean, deviation)
        assert len(result["windows"]) == 2
        assert min(result["windows"]) > 0
    assert unsupported == {"name": absent, "not_supported": lines[-1].partition(": ")[2].partition(": ")[2]}


def test_an_unknown_workload_is_named_with_those_that_there_are(own_folder):
    done = command(own_folder, "--only", "tasks sync,no such")
    assert done.returncode == 1
    assert "'no such'" in done.stderr
    assert all(name in done.stderr for name in WORKLOADS)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "arguments", [("--seconds", "0"), ("--seconds", "long"), ("--rounds", "0"), ("--num-cpus", "0")]
)
def test_a_wrong_amount_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        scripts.main(["microbenchmark", *arguments])
    assert ended.value.code == 2
    assert repr(arguments[1]) in capsys.readouterr().err


def test_a_whole_name_means_that_workload_alone():
    assert microbenchmark.choose("1:1 actor calls sync") == ["1:1 actor calls sync"]
    assert microbenchmark.choose("calls sync") == [name for name in WORKLOADS if "calls sync" in name]
    assert microbenchmark.choose("") == list(WORKLOADS)


def test_the_list_is_that_of_what_was_chosen(capsys):
    assert scripts.main(["microbenchmark", "--list", "--only", "gigabytes"]) == 0
    assert capsys.readouterr().out.splitlines() == [name for name in WORKLOADS if "gigabytes" in name]


def test_a_workload_that_fails_is_told_and_the_next_one_runs(no_cluster, own_folder, monkeypatch, capsys):
    def fail():
        raise ValueError("the first line\nthe reason")

    monkeypatch.setitem(WORKLOADS, "failing", fail)
    monkeypatch.setitem(WORKLOADS, "working", lambda: Run(lambda: None))
    arguments = ["--only", "failing,working", "--seconds", "0.01", "--rounds", "1", "--num-cpus", "1"]
    assert scripts.main(["microbenchmark", *arguments]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if "not optimized" not in line]
    assert lines[0] == "failing failed: the reason"
    assert MEASURED.fullmatch(lines[1])[1] == "working"


def test_without_numpy_the_workload_that_needs_it_says_so(no_cluster, own_folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "numpy", None)
    arguments = ["--only", "single client put gigabytes", "--num-cpus", "1"]
    assert scripts.main(["microbenchmark", *arguments]) == 1
    assert "needs numpy" in capsys.readouterr().out


def test_a_file_that_cannot_be_written_is_told_before_anything_runs(own_folder, tmp_path, capsys):
    assert scripts.main(["microbenchmark", "--json", str(tmp_path / "absent" / "file")]) == 1
    assert "absent" in capsys.readouterr().err
