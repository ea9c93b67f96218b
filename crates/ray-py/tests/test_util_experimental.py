"""Names of actors, keys and values, where objects are, and progress bars."""

import builtins
import io
import json
import os
import sys
import threading

import numpy as np
import pytest

import ray_rust as ray
from conftest import wait_until
from ray_rust._private import log_printer
from ray_rust.exceptions import GetTimeoutError, RaySystemError
from ray_rust.experimental import get_local_object_locations, get_object_locations, internal_kv, set_resource, tqdm_ray
from ray_rust.experimental.internal_kv import (
    _internal_kv_del,
    _internal_kv_exists,
    _internal_kv_get,
    _internal_kv_initialized,
    _internal_kv_list,
    _internal_kv_put,
)
from ray_rust.util import get_node_instance_id, get_node_ip_address, list_named_actors

MB = 1024 * 1024


@ray.remote(num_cpus=0)
class Named:
    def ping(self):
        return list_named_actors()


# Names


def test_names_of_actors_by_namespace(cluster):
    first = Named.options(name="first").remote()
    second = Named.options(name="second", namespace="elsewhere").remote()
    unnamed = Named.remote()
    assert ray.get(first.ping.remote()) == ["first"]
    assert list_named_actors() == ["first"]
    both = list_named_actors(all_namespaces=True)
    assert sorted(both, key=lambda one: one["name"]) == [
        {"name": "first", "namespace": "tests"},
        {"name": "second", "namespace": "elsewhere"},
    ]
    ray.get([second.ping.remote(), unnamed.ping.remote()])
    for actor in (first, second):
        ray.kill(actor)
    wait_until(lambda: list_named_actors(all_namespaces=True) == [])


def test_the_node_has_an_address(cluster, monkeypatch):
    @ray.remote
    def address():
        return get_node_ip_address()

    assert ray.get(address.remote()) == get_node_ip_address() == "127.0.0.1"
    monkeypatch.setenv("RAY_CLOUD_INSTANCE_ID", "i-1")
    assert get_node_instance_id() == "i-1"


def test_resources_cannot_be_set_later():
    with pytest.raises(DeprecationWarning):
        set_resource("gizmo", 1)


# Keys and values


@pytest.mark.parametrize("namespace", [None, "text", b"binary"])
def test_keys_have_values(cluster, namespace):
    assert _internal_kv_get("k", namespace=namespace) is None
    assert not _internal_kv_exists("k", namespace=namespace)
    assert _internal_kv_put("k", "first", namespace=namespace) is False
    assert _internal_kv_get(b"k", namespace=namespace) == b"first"
    assert _internal_kv_put(b"k", b"\0second", namespace=namespace) is True
    assert _internal_kv_put("k", "third", overwrite=False, namespace=namespace) is True
    assert _internal_kv_get("k", namespace=namespace) == b"\0second"
    assert _internal_kv_exists("k", namespace=namespace)
    assert _internal_kv_get("k", namespace="another") is None
    for key in ("k1", "k2", "l"):
        _internal_kv_put(key, "", namespace=namespace)
    assert _internal_kv_list("k", namespace=namespace) == [b"k", b"k1", b"k2"]
    assert _internal_kv_del("k", namespace=namespace) == 1
    assert _internal_kv_del("k", namespace=namespace) == 0
    assert _internal_kv_del("k", del_by_prefix=True, namespace=namespace) == 2
    assert _internal_kv_list("", namespace=namespace) == [b"l"]
    assert _internal_kv_del("", del_by_prefix=True, namespace=namespace) == 1


def test_workers_share_them(cluster):
    @ray.remote
    def leave(value):
        assert _internal_kv_initialized()
        _internal_kv_put("left", value)

    ray.get(leave.remote("here"))
    assert _internal_kv_get("left") == b"here"
    client = internal_kv.internal_kv_get_gcs_client()
    assert client.internal_kv_get(b"left", None) == b"here"
    assert client.internal_kv_multi_get([b"left", b"nothing"]) == {b"left": b"here"}
    assert client.internal_kv_put(b"left", b"", True, None) == 0
    assert client.internal_kv_exists(b"left")
    assert client.internal_kv_keys(b"le") == [b"left"]
    assert client.internal_kv_del(b"left", False, None) == 1


def test_keys_need_a_cluster_and_the_right_types(no_cluster):
    assert not _internal_kv_initialized()
    assert internal_kv.internal_kv_get_gcs_client() is None
    with pytest.raises(RaySystemError, match="init"):
        _internal_kv_get("k")
    assert not ray.is_initialized()
    with pytest.raises(TypeError, match="key"):
        _internal_kv_get(3)
    with pytest.raises(TypeError, match="value"):
        _internal_kv_put("k", 3)
    with pytest.raises(TypeError, match="overwrite"):
        _internal_kv_put("k", "v", 1)


# Locations


def test_where_objects_are(cluster):
    gate = threading.Event()

    @ray.remote
    def fail():
        raise ValueError

    small, large, failed = ray.put(1), ray.put(np.zeros(MB)), fail.remote()
    ray.wait([failed])
    here = ray.get_runtime_context().get_node_id()
    found = get_object_locations([small, large, failed, small])
    assert found[small]["node_ids"] == []
    assert 0 < found[small]["object_size"] < 100
    assert found[large]["node_ids"] == [here]
    assert 8 * MB < found[large]["object_size"] < 8 * MB + 1000
    assert found[failed] == {"node_ids": [], "object_size": None, "did_spill": False}
    assert get_local_object_locations([small, large, failed]) == found
    assert not gate.is_set()


def test_where_the_result_of_a_task_is(cluster, tmp_path):
    path = str(tmp_path / "gate")

    @ray.remote
    def make():
        while not os.path.exists(path):
            pass
        return np.zeros(MB)

    ref = make.remote()
    assert get_object_locations([ref]) == {ref: {"node_ids": [], "object_size": None, "did_spill": False}}
    open(path, "w").close()
    ray.wait([ref])
    assert get_object_locations([ref])[ref]["object_size"] > 8 * MB


def test_who_does_not_own_an_object_asks_its_owner(cluster, tmp_path):
    path = str(tmp_path / "gate")

    @ray.remote
    def make():
        while not os.path.exists(path):
            pass
        return np.zeros(MB)

    @ray.remote
    def look(box, timeout_ms):
        [ref] = box
        before = get_local_object_locations([ref])
        return before, list(get_object_locations([ref], timeout_ms).values())

    ref = make.remote()
    with pytest.raises(GetTimeoutError, match=ref.hex()):
        ray.get(look.remote([ref], 10))
    open(path, "w").close()
    before, [location] = ray.get(look.remote([ref], -1))
    assert before == {}
    assert location["node_ids"] == [ray.get_runtime_context().get_node_id()]


def test_the_owner_knows_what_was_spilled(no_cluster):
    ray.init("local", num_cpus=1, object_store_memory=80 * MB)

    @ray.remote
    def make():
        return np.zeros(20 * MB // 8)

    refs = [ray.put(np.zeros(20 * MB // 8)), make.remote()]
    ray.wait(refs, num_returns=2)
    assert not any(location["did_spill"] for location in get_local_object_locations(refs).values())
    more = [ray.put(np.zeros(20 * MB // 8)) for _ in range(5)]
    wait_until(lambda: all(location["did_spill"] for location in get_local_object_locations(refs).values()))
    assert ray.get(refs[0]).shape == ray.get(refs[1]).shape
    # A copy stays on disk.
    assert get_local_object_locations(refs)[refs[0]]["did_spill"]
    assert len(more) == 5


def test_locations_need_a_cluster(no_cluster):
    for function in (get_object_locations, get_local_object_locations):
        with pytest.raises(RuntimeError, match="init"):
            function([])


# Progress bars


class Screen:
    """What bars (`err`) and `print` (`out`) have written so far."""

    def __init__(self, capsys):
        self._capsys = capsys
        self._out = self._err = ""

    def _read(self):
        new = self._capsys.readouterr()
        self._out += new.out
        self._err += new.err

    @property
    def out(self):
        self._read()
        return self._out

    @property
    def err(self):
        self._read()
        return self._err


@pytest.fixture
def screen(monkeypatch, capsys):
    pytest.importorskip("tqdm")
    monkeypatch.setattr(tqdm_ray, "_manager", None)
    monkeypatch.setattr(builtins, "print", builtins.print)
    yield Screen(capsys)
    # What the patched print would show from now on is nobody's.
    builtins.print = tqdm_ray._print


def test_a_bar_of_the_driver(cluster, screen):
    with_bar = list(tqdm_ray.tqdm(range(5), desc="work", flush_interval_s=0))
    assert with_bar == list(range(5))
    assert "work" in screen.err
    assert "5.00/5.00" in screen.err


def test_a_bar_can_be_moved_by_hand(cluster, screen):
    bar = tqdm_ray.tqdm(desc="one", total=10, unit="rows", position=1, flush_interval_s=0)
    bar.update(3)
    bar.set_description("two")
    bar.total = 20
    bar.n = 15
    bar.refresh()
    assert (bar.n, bar.total) == (15, 20)
    bar.close()
    assert "two" in screen.err
    assert "15.0/20.0" in screen.err
    assert "rows" in screen.err
    with pytest.raises(ValueError, match="iterable"):
        list(tqdm_ray.tqdm(total=3))
    # Nothing is kept of bars that are closed.
    assert tqdm_ray.instance()._groups == {}


def test_bars_of_tasks_are_shown_by_the_driver(run_script):
    pytest.importorskip("tqdm")
    out = run_script(
        "import ray_rust as ray, sys, contextlib, io\n"
        "from ray_rust.experimental import tqdm_ray\n"
        "sys.stderr = sys.stdout\n"
        "@ray.remote\n"
        "def work(name):\n"
        "    for _ in tqdm_ray.tqdm(range(7), desc=name, flush_interval_s=0): pass\n"
        "    bar = tqdm_ray.tqdm(desc=name + ' done', total=7)\n"
        "    bar.update(7)\n"
        "    bar.close()\n"
        "    print('said', name)\n"
        "ray.init('local', num_cpus=2)\n"
        "ray.get([work.remote('left'), work.remote('right')])\n"
        "ray.shutdown()\n"
        "print('the end')\n"
    )
    for text in ("left", "right", "7.00/7.00", "said left", "said right", "(pid=", "the end"):
        assert text in out
    assert "magic" not in out


def test_lines_of_bars_are_told_from_others(screen):
    state = tqdm_ray.tqdm(desc="remote", total=3)._get_state()
    state.update(pid=1, x=2)
    broken = [
        "__ray_tqdm_magic_token__",
        '{"__magic_token__": "__ray_tqdm_magic_token__"}',
        '["__ray_tqdm_magic_token__"]',
        '{"__ray_tqdm_magic_token__": 1}',
    ]
    log_printer.print_lines(5, "f", False, ["before", json.dumps(state), *broken, "after"])
    shown = screen.out
    assert [line.partition(") ")[2] for line in shown.splitlines()] == ["before", *broken, "after"]
    assert "remote" in screen.err
    state["closed"] = True
    log_printer.print_lines(5, "f", False, [json.dumps(state)])
    assert tqdm_ray.instance()._groups == {}


def test_bars_of_several_processes_do_not_share_lines(screen):
    manager = tqdm_ray.instance()
    states = []
    for pid in (1, 2):
        for pos in (0, 1):
            state = tqdm_ray.tqdm(desc=f"{pid}.{pos}", total=3, position=pos)._get_state()
            state["pid"] = pid
            states.append(state)
            manager.process_state_update(state)
    assert sorted(bar._bar.pos for bar in manager._bars()) == [-3, -2, -1, 0]
    for state in states[:2]:
        manager.process_state_update({**state, "closed": True})
    assert sorted(bar._bar.pos for bar in manager._bars()) == [-1, 0]


def test_print_goes_around_bars(screen, monkeypatch):
    assert builtins.print is tqdm_ray._print
    monkeypatch.setenv("RAY_TQDM_PATCH_PRINT", "0")
    tqdm_ray.instance()
    assert builtins.print is tqdm_ray._print
    monkeypatch.setattr(tqdm_ray, "_manager", None)
    monkeypatch.delenv("RAY_TQDM_PATCH_PRINT")
    tqdm_ray.instance()
    assert builtins.print is tqdm_ray.safe_print
    print("hello")
    file = io.StringIO()
    print("aside", file=file)
    assert file.getvalue() == "aside\n"
    assert screen.out == "hello\n"


def test_without_the_package_bars_are_left_out(screen, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    assert list(tqdm_ray.tqdm(range(3), desc="work", flush_interval_s=0)) == [0, 1, 2]
    assert "work" not in screen.err
