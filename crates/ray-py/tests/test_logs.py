"""What workers print reaches the driver's console, with the name and process it came from."""

import os
import pathlib
import pty
import re
import subprocess
import sys

import pytest

from ray_rust._private.log_printer import Deduplicator, Shown


def test_prints_of_tasks_and_actors_are_prefixed(script, monkeypatch):
    monkeypatch.setenv("RAY_DEDUP_LOGS", "0")
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


def on_terminal(source):
    """What a program shows that runs in a terminal."""
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
    return text


def test_prefixes_are_coloured_on_a_terminal(own_folder):
    text = on_terminal("import ray_rust as ray\nray.get(ray.remote(lambda: print('hello')).remote())")
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


SAME = """
import sys
import time
import ray_rust as ray
ray.init(num_cpus=4)

@ray.remote
class Speaker:
    def speak(self, number):
        print("the same from all", number)
        print("its own" + "!" * number)
        return 1

speakers = [Speaker.remote() for _ in range(4)]
ray.get([speaker.speak.remote(number) for number, speaker in enumerate(speakers)])
"""


def test_what_several_processes_print_is_shown_once(script):
    status, out, err = script(SAME).finish()
    assert status == 0, err
    same = re.findall(r"^\(Speaker pid=\d+\) the same from all \d(.*)$", out, re.MULTILINE)
    assert sorted(len(rest) > 0 for rest in same) == [False, True]
    assert max(same).startswith(" [repeated 3x across cluster]")
    assert out.count("RAY_DEDUP_LOGS=0") == 1
    assert len(re.findall(r"its own!*$", out, re.MULTILINE)) == 4


def test_deduplication_can_be_turned_off_and_lines_left_out(script, monkeypatch):
    monkeypatch.setenv("RAY_DEDUP_LOGS", "0")
    _, out, _ = script(SAME).finish()
    assert len(re.findall(r"the same from all \d$", out, re.MULTILINE)) == 4
    monkeypatch.delenv("RAY_DEDUP_LOGS")
    monkeypatch.setenv("RAY_DEDUP_LOGS_ALLOW_REGEX", "the same")
    monkeypatch.setenv("RAY_DEDUP_LOGS_SKIP_REGEX", "its own")
    _, out, _ = script(SAME).finish()
    assert len(re.findall(r"the same from all \d$", out, re.MULTILINE)) == 4
    assert "its own" not in out


def test_what_was_held_back_is_told_at_the_end_of_its_window(script, monkeypatch):
    monkeypatch.setenv("RAY_DEDUP_LOGS_AGG_WINDOW_S", "0.2")
    source = SAME.replace("import sys\n", WATCH) + 'sys.stdout.wait_for("[repeated 3x")\n'
    status, _, err = script(source).finish()
    assert status == 0, err


WATCH = """
import sys, time
class Watched:
    def __init__(self, stream):
        self.stream, self.text = stream, ""
    def write(self, text):
        self.text += text
        return self.stream.write(text)
    def flush(self):
        self.stream.flush()
    def isatty(self):
        return False
    def wait_for(self, text):
        deadline = time.monotonic() + 30
        while text not in self.text:
            assert time.monotonic() < deadline, text
            time.sleep(0.01)
sys.stdout = Watched(sys.stdout)
"""


def test_one_process_may_say_the_same_again_and_windows_end():
    deduplicator = Deduplicator(5.0)
    first, again = Shown(1, "f", False, "hello 1"), Shown(1, "f", False, "hello 2")
    other = Shown(2, "f", False, "hello 3")
    assert deduplicator.take([first, again], 0.0) == [first, again]
    assert deduplicator.take([other], 1.0) == []
    assert deduplicator.next_due() == 5.0
    assert deduplicator.take([first], 4.0) == []
    (summary,) = deduplicator.take([], 5.0)
    assert summary.line.startswith("hello 1 [repeated 2x across cluster]")
    assert deduplicator.next_due() is None
    assert deduplicator.take([other], 5.0) == [other]
    # What is nothing but numbers is never the same.
    numbers = [Shown(pid, "f", False, "17 /tmp/18") for pid in (1, 2)]
    assert deduplicator.take(numbers, 5.0) == numbers
    # A single one that was held back is shown as it was.
    assert deduplicator.take([first], 6.0) == []
    assert deduplicator.due(6.0, at_end=True) == [first]


@pytest.mark.parametrize(("value", "colour"), [("1", rb"\x1b\[\d+m"), ("0", b"")])
def test_prefixes_have_the_colour_that_is_asked_for(own_folder, monkeypatch, value, colour):
    monkeypatch.setenv("RAY_COLOR_PREFIX", value)
    text = on_terminal("import ray_rust as ray\nray.get(ray.remote(lambda: print('hello')).remote())")
    end = rb"\x1b\[0m" if colour else b""
    assert re.search(colour + rb"\(.* pid=\d+\)" + end + b" hello", text), text
