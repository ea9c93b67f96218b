"""Transports of tensors between actors on several nodes."""

import gc

import numpy as np
import pytest

import ray_rust as ray
from conftest import kill_quietly, wait_until
from ray_rust.cluster_utils import Cluster
from ray_rust.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from test_tensor_transport import FOLDER, Actor, register_here, store

MB = 1_000_000


@pytest.fixture
def nodes(no_cluster, monkeypatch, tmp_path):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    monkeypatch.setenv("RAY_RUST_GCS_HEARTBEAT_INTERVAL_MS", "200")
    monkeypatch.setenv("RAY_RUST_GCS_NODE_DEAD_AFTER_MS", "3000")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    other = cluster.add_node(num_cpus=2)
    ray.init(cluster.address, log_to_driver=False)
    register_here()
    yield cluster.head_node, other
    ray.shutdown()
    cluster.shutdown()


def on(node):
    return Actor.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False)).remote()


def is_dead(actor):
    try:
        ray.get(actor.pid.remote())
    except ray.exceptions.RayActorError as error:
        return isinstance(error, ray.exceptions.ActorDiedError)
    return False


def kept(actor):
    return ray.get(actor.kept.remote())


def test_tensors_go_between_nodes_and_are_freed(nodes):
    one, other = on(nodes[0]), on(nodes[1])
    # The part that is no tensor is large enough to lie in shared memory.
    text = "x" * MB
    for method in ("by_file", "by_socket"):
        ref = getattr(other, method).remote([np.arange(MB), text])
        tensor, rest = ray.get(one.plain.remote(ref))
        assert tensor.sum() == np.arange(MB).sum()
        assert rest == text
        assert ray.get(ref, _use_object_store=True)[0].sum() == tensor.sum()
        del ref
    gc.collect()
    wait_until(lambda: kept(one) == kept(other) == 0)
    (put,) = ray.get(other.put.remote(np.ones(3)))
    assert ray.get(one.total_of.remote([put, put])) == 6
    del put
    gc.collect()
    wait_until(lambda: kept(other) == 0)


def test_tensors_of_a_node_that_died_are_lost(nodes):
    one, other = on(nodes[0]), on(nodes[1])
    by_socket, by_file = other.by_socket.remote(np.ones(3)), one.make.remote(2)
    # The other node has a reference, which ends with it.
    ray.get(other.total_of.remote([by_file]))
    ray.wait([by_socket, by_file], num_returns=2)
    kill_quietly(nodes[1].pid)
    # Its processes end when they notice.
    wait_until(lambda: is_dead(other), 30)
    with pytest.raises((RuntimeError, ray.exceptions.RayError), match=r"sending failed|died"):
        ray.get(one.total.remote(by_socket))
    with pytest.raises(ray.exceptions.RayError):
        ray.get(by_socket, _use_object_store=True)
    del by_file
    gc.collect()
    assert ray.get(one.wait_freed.remote(), timeout=30) == "freed"


def test_what_a_driver_has_put_ends_with_its_connection(nodes):
    one = on(nodes[1])
    tensor = np.ones(3)
    ref = ray.put(tensor, _tensor_transport="FILE")
    assert ray.get(one.total.remote(ref)) == 3
    assert store().has_tensor(tensor)
    ray.shutdown()
    wait_until(lambda: not store().has_tensor(tensor))
    ray.init(nodes[0].gcs_address, log_to_driver=False)
    with pytest.raises(ray.exceptions.RaySystemError, match="has left"):
        ray.get(ref)
