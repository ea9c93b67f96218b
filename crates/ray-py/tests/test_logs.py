"""What workers print reaches the driver's console, with the name and process it came from."""

import os
import pathlib
import pty
import re
import subprocess
import sys


def test_prints_of_tasks_and_actors_are_prefixed(script):
    source = """
import sys
import ray_rust as ray
ray.init(num_cpus=2)

@ray.remote
def speak(n):
    print("line", n)
    print("to stderr", n, file=sys.stderr)

@ray.remote
class Parrot:
    def say(self, what):
        print(what)

ray.get([speak.remote(i) for i in range(3)])
ray.get(Parrot.remote().say.remote("polly\\nwants\\na cracker"))
# In one write: the driver's and the workers' lines come from two threads.
sys.stdout.write("the driver's own\\n")
"""
    status, out, err = script(source).finish()
    assert status == 0, err
    for n in range(3):
        assert re.search(rf"^\(speak pid=\d+\) line {n}$", out, re.MULTILINE), out
        assert re.search(rf"^\(speak pid=\d+\) to stderr {n}$", err, re.MULTILINE), err
    for line in ("polly", "wants", "a cracker"):
        assert re.search(rf"^\(Parrot pid=\d+\) {line}$", out, re.MULTILINE), out
    assert re.search(r"^the driver's own$", out, re.MULTILINE)
    assert "task_name" not in out
    assert "\x1b" not in out


def test_the_last_line_before_the_end_is_shown(script):
    source = """
import ray_rust as ray
ray.init(num_cpus=1)
ray.get(ray.remote(lambda: print("last words", end="")).remote())
"""
    status, out, err = script(source).finish()
    assert status == 0, err
    assert re.search(r"pid=\d+\) last words$", out, re.MULTILINE), out


def test_names_follow_the_task_that_prints(script):
    source = """
import os
import ray_rust as ray
ray.init(num_cpus=1)

@ray.remote
def first():
    print("from first")

@ray.remote
def silent():
    pass

@ray.remote
def second():
    os.system("echo from a child of second")
    print("from second")

for function in (first, silent, second, first):
    ray.get(function.remote())
"""
    status, out, err = script(source).finish()
    assert status == 0, err
    names = re.findall(r"^\((\w+) pid=\d+\) from (.*)$", out, re.MULTILINE)
    assert ("first", "first") in names
    assert ("second", "second") in names
    assert names.count(("first", "first")) == 2
    assert not [name for name, text in names if name == "silent"]


def test_nothing_is_shown_if_not_wanted(script):
    source = """
import ray_rust as ray
ray.init(num_cpus=1, log_to_driver=False)
ray.get(ray.remote(lambda: print("unheard")).remote())
"""
    status, out, err = script(source).finish()
    assert status == 0, err
    assert "unheard" not in out + err


def test_text_of_any_kind_comes_through(script):
    source = """
import sys
import ray_rust as ray
ray.init(num_cpus=1)

@ray.remote
def speak():
    print("žluťoučký \\ud800 kůň")
    sys.stdout.buffer.write(b"\\xff raw\\n")
    print("x" * 100_000)

ray.get(speak.remote())
"""
    status, out, err = script(source).finish()
    assert status == 0, err
    assert "žluťoučký" in out
    assert "raw" in out
    assert out.count("x") >= 100_000


def test_prefixes_are_coloured_on_a_terminal(own_folder):
    source = "import ray_rust as ray\nray.get(ray.remote(lambda: print('hello')).remote())"
    master, slave = pty.openpty()
    with os.fdopen(master, "rb", buffering=0) as terminal:
        process = subprocess.Popen([sys.executable, "-c", source], stdout=slave, stderr=slave)
        os.close(slave)
        text = b""
        while True:
            try:
                part = terminal.read(4096)
            except OSError:  # the other side is closed
                break
            if not part:
                break
            text += part
        assert process.wait(30) == 0
    assert re.search(rb"\x1b\[36m\(.* pid=\d+\)\x1b\[0m hello", text), text


def test_each_process_has_a_log_file(cluster):
    import ray_rust

    ray_rust.get(ray_rust.remote(lambda: 1).remote())
    logs = os.listdir(os.path.join(ray_rust.get_runtime_context().get_session_dir(), "logs"))
    assert any("node" in name for name in logs), logs
    assert any("worker" in name for name in logs), logs


def test_each_process_has_a_log_file_and_rust_log_is_respected(script, monkeypatch):
    source = """
import os
import ray_rust as ray
ray.init(num_cpus=1)
ray.get(ray.remote(os.getpid).remote())
"""
    monkeypatch.setenv("RUST_LOG", "debug")
    started = script(source)
    status, _, err = started.finish()
    assert status == 0, err
    (logs,) = pathlib.Path(started.folder).glob("session_*/logs")
    names = {path.name.split("-")[0] for path in logs.glob("*.log")}
    assert names == {"node", "worker", "driver"}
    (node,) = logs.glob("node-*.log")
    assert " DEBUG " in node.read_text()
