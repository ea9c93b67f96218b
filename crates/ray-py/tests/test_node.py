"""Finding the nodes that live, among those that do not."""

import fcntl
import json

import pytest

from ray_rust._private import node


def make_session(folder, name, address, *, content=None):
    session = folder / f"session_{name}"
    session.mkdir()
    (session / "lock").touch()
    info = {
        "gcs_address": address,
        "socket_path": str(session / "sockets" / "node.sock"),
        "session_dir": str(session),
        "node_id": "ab" * 16,
        "pid": 1,
        "owned_by_driver": False,
    }
    (session / "node.json").write_text(json.dumps(info) if content is None else content)
    return session


@pytest.fixture
def hold():
    """Locks a session as its daemon does."""
    files = []

    def lock(session):
        files.append(open(session / "lock", "w"))  # noqa: SIM115 - closed below
        fcntl.flock(files[-1], fcntl.LOCK_EX)

    yield lock
    for file in files:
        file.close()


def test_only_locked_sessions_live(tmp_path, hold):
    hold(make_session(tmp_path, "1", "h:1"))
    make_session(tmp_path, "2", "h:2")
    assert [found.gcs_address for found in node.living_nodes(str(tmp_path))] == ["h:1"]
    assert node.find_node(str(tmp_path), "h:1").node_id == "ab" * 16
    assert node.find_node(str(tmp_path), "h:2") is None


def test_looking_does_not_take_the_lock(tmp_path, hold):
    session = make_session(tmp_path, "1", "h:1")
    assert list(node.living_nodes(str(tmp_path))) == []
    hold(session)
    assert len(list(node.living_nodes(str(tmp_path)))) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_sessions_that_are_not_ready_are_passed_over(tmp_path, hold, content):
    hold(make_session(tmp_path, "1", "h:1", content=content))
    assert list(node.living_nodes(str(tmp_path))) == []


def test_a_missing_folder_has_no_nodes(tmp_path):
    assert list(node.living_nodes(str(tmp_path / "nowhere"))) == []
    assert node.advertised_node(str(tmp_path / "nowhere")) is None


def test_the_advertisement_of_a_dead_cluster_counts_for_nothing(tmp_path, hold):
    advertisement = tmp_path / node.ADVERTISEMENT
    dead = make_session(tmp_path, "1", "h:1")
    advertisement.write_text((dead / "node.json").read_text())
    assert node.advertised_node(str(tmp_path)) is None
    hold(dead)
    assert node.advertised_node(str(tmp_path)).gcs_address == "h:1"
    advertisement.write_text("nonsense")
    assert node.advertised_node(str(tmp_path)) is None


def test_a_configuration_names_only_what_was_given():
    assert node.node_config("/t") == {"temp_dir": "/t", "config": {}}
    config = node.node_config("/t", owner_pid=5, num_cpus=2, object_store_memory=10)
    assert config["owner_pid"] == 5
    assert config["config"] == {"raylet": {"num_cpus": 2}, "object_store": {"capacity_bytes": 10}}
