"""Slices of TPUs: what is known of them, and how they are reserved. The chips are made up."""

import http.server
import threading

import pytest

import ray_rust
from conftest import wait_until
from ray_rust._private import tpu_topology
from ray_rust.cluster_utils import Cluster
from ray_rust.util import accelerators, tpu

# A v4 slice of 2x2x2 chips: two hosts of four, and two cores in each chip.
POD_TYPE = "v4-16"


def host(name, number, **more):
    resources = {"TPU": 4, f"TPU-{POD_TYPE}-head": 1} if number == 0 else {"TPU": 4}
    labels = {"ray.io/tpu-worker-id": str(number), "ray.io/tpu-pod-type": POD_TYPE, "ray.io/tpu-topology": "2x2x2"}
    if name is not None:
        labels["ray.io/tpu-slice-name"] = name
    return {"num_cpus": 2, "resources": resources, "labels": labels, **more}


@pytest.fixture
def slices(no_cluster):
    """Makes a cluster of a head and of such hosts, which this process joins."""
    made = []

    def make(*hosts):
        made.append(Cluster(initialize_head=True, head_node_args={"num_cpus": 1}))
        for one in hosts:
            made[-1].add_node(**one)
        ray_rust.init(made[-1].address, namespace="tests", log_to_driver=False)
        return made[-1]

    yield make
    ray_rust.shutdown()
    for cluster in made:
        cluster.shutdown()


@pytest.fixture
def two_slices(slices):
    return slices(host("east", 0), host("east", 1), host("west", 0), host("west", 1))


@ray_rust.remote
def slice_and_worker():
    node_id = ray_rust.get_runtime_context().get_node_id()
    labels = next(node["Labels"] for node in ray_rust.nodes() if node["NodeID"] == node_id)
    return labels["ray.io/tpu-slice-name"], labels["ray.io/tpu-worker-id"]


# What is known


def test_the_module_is_where_ray_has_it():
    assert accelerators.tpu is tpu


@pytest.mark.parametrize(
    ("name", "generation"), [("TPU-V6E", "v6e"), ("v4", "v4"), ("tpu7x", "v7x"), (" TPU-v5litepod", "v5litepod")]
)
def test_generations_have_several_names(name, generation):
    assert tpu.get_tpu_version_from_type(name) == generation


def test_other_accelerators_are_no_generation():
    with pytest.raises(ValueError, match="Invalid accelerator_type: 'H100'"):
        tpu.get_tpu_version_from_type("H100")


@pytest.mark.parametrize(
    ("topology", "generation", "workers", "resources"),
    [
        ("2x2x2", "v4", 2, {"CPU": 1, "TPU": 4}),
        ("4x4", "TPU-V6E", 4, {"CPU": 1, "TPU": 4}),
        ("2x4", "v6e", 1, {"CPU": 1, "TPU": 8}),
        ("1x1", "v5litepod", 1, {"CPU": 1, "TPU": 1}),
    ],
)
def test_a_worker_is_a_host_unless_it_is_said(topology, generation, workers, resources):
    assert tpu.get_tpu_worker_resources(topology, generation) == (workers, resources)


def test_workers_can_be_smaller_than_hosts_and_of_several_slices():
    assert tpu.get_tpu_worker_resources("2x2x2", "v4", {"TPU": 1, "CPU": 2}, num_slices=2) == (
        16,
        {"CPU": 2, "TPU": 1},
    )
    assert tpu.get_tpu_worker_resources("2x4", "v6e", chips_per_vm=4) == (2, {"CPU": 1, "TPU": 4})
    assert tpu.get_tpu_worker_resources("2x2x2", "v7x", tpu_resource_per_chip=2) == (2, {"CPU": 1, "TPU": 8})


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("2x2x2", "v4", {"TPU": 3}), "not divisible by a worker's"),
        (("2x2x2", "v4", {"TPU": 16}, 2), "do not divide evenly"),
        (("2x2x2", "v4", {"TPU": 0}), "must be positive"),
        (("2x2x2", "v4", None, 1, 0), "chips_per_vm must be positive"),
        (("2x2x2", "v4", None, 1, None, 0), "tpu_resource_per_chip"),
        (("two by two", "v4"), "is no topology of TPUs"),
    ],
)
def test_workers_that_do_not_fit_are_refused(args, message):
    with pytest.raises(ValueError, match=message):
        tpu.get_tpu_worker_resources(*args)


def test_workers_need_so_many_slices():
    assert tpu.get_tpu_num_slices_for_workers("2x2x2", "v4", 5) == 3
    assert tpu.get_tpu_num_slices_for_workers("2x2x2", "v4", 0) == 1
    assert tpu.get_tpu_num_slices_for_workers("", "v4", 5) == 1
    assert tpu.get_tpu_num_slices_for_workers("2x2x2", "H100", 5) == 1


def test_several_slices_are_told_of_one_another():
    assert tpu.get_tpu_coordinator_env_vars("10.0.0.1", 2, 1) == {
        "MEGASCALE_COORDINATOR_ADDRESS": "10.0.0.1",
        "MEGASCALE_PORT": "8081",
        "MEGASCALE_NUM_SLICES": "2",
        "MEGASCALE_SLICE_ID": "1",
    }


def test_chips_can_count_as_several(monkeypatch):
    monkeypatch.setenv("RAY_TPU_RESOURCE_PER_CHIP", "2")
    assert tpu.get_tpu_worker_resources("2x2x2", "v7x") == (2, {"CPU": 1, "TPU": 8})
    monkeypatch.setenv("RAY_TPU_RESOURCE_PER_CHIP", "many")
    with pytest.raises(ValueError, match="RAY_TPU_RESOURCE_PER_CHIP must be a positive integer, got: 'many'"):
        tpu.get_tpu_worker_resources("2x2x2", "v7x")


# This machine


def test_the_environment_says_which_slice_this_machine_belongs_to(monkeypatch):
    monkeypatch.setenv("TPU_NAME", "east")
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v4-16")
    monkeypatch.setattr(tpu_topology, "own_chips", lambda: 4)
    assert tpu.get_current_pod_name() == "east"
    assert tpu.get_num_tpu_chips_on_node() == 4
    assert tpu.get_current_pod_worker_count() == 2
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "tpu7x-64")
    assert tpu.get_current_pod_worker_count() == 8


def test_the_cloud_says_which_slice_this_machine_belongs_to(monkeypatch):
    asked = []

    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers["Metadata-Flavor"]))
            answer = {"/instance-id": b"west"}.get(self.path)
            self.send_response(200 if answer else 404)
            self.end_headers()
            self.wfile.write(answer or b"")

        def log_message(self, *args):
            pass

    for name in ("TPU_NAME", "TPU_ACCELERATOR_TYPE"):
        monkeypatch.delenv(name, raising=False)
    with http.server.HTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(tpu_topology, "_METADATA", f"http://127.0.0.1:{server.server_port}/")
        assert tpu.get_current_pod_name() == "west"
        assert tpu.get_current_pod_worker_count() is None
        server.shutdown()
    assert asked == [("/instance-id", "Google"), ("/accelerator-type", "Google")]


# The nodes of a cluster


def test_slices_are_told_from_their_nodes(two_slices):
    assert sorted(map(str, map(tpu.get_tpu_slice_name_from_node, ray_rust.nodes()))) == [
        "None",
        "east",
        "east",
        "west",
        "west",
    ]
    assert len(tpu.get_tpu_nodes_for_slice("east")) == 2
    assert tpu.get_tpu_nodes_for_slice("north") == []
    assert tpu.get_num_tpu_slices("2x2x2", "TPU-V4") == 2
    assert tpu.get_num_tpu_slices("2x2x4", "TPU-V4") == 0
    assert tpu.get_num_tpu_slices("2x2x2", "TPU-V4", tpu_resource_per_chip=2) == 0
    assert tpu.get_num_ready_tpu_slices("2x2x2", "TPU-V4") == 2


def test_a_slice_that_lacks_a_host_does_not_count(slices):
    slices(host("east", 0), host("east", 1), host("west", 0), host("north", 1), host("north", 2))
    assert tpu.get_num_tpu_slices("2x2x2", "v4") == 1


def test_nothing_is_counted_without_a_cluster(no_cluster):
    assert tpu.get_num_tpu_slices("2x2x2", "v4") == 0
    assert tpu.get_tpu_nodes_for_slice("east") == []


# Reserving


def test_a_slice_is_reserved_with_all_of_its_hosts(two_slices):
    reserved = tpu.slice_placement_group("2x2x2", "v4", name="training", strategy="STRICT_SPREAD")
    assert reserved.slice_placement_group.wait(30)
    (name,) = {selector["ray.io/tpu-slice-name"] for selector in reserved.bundle_label_selector}
    assert name in ("east", "west")
    assert (reserved.num_hosts, reserved.num_bundles, reserved.num_slices) == (2, 2, 1)
    assert (reserved.chips_per_host, reserved.devices_per_host, reserved.tpu_resource_per_chip) == (4, 4, 1)
    assert (reserved.topology, reserved.accelerator_version) == ("2x2x2", "v4")
    assert reserved.bundle_resources == {"CPU": 1, "TPU": 4}
    assert reserved.placement_group is reserved.slice_placement_group
    with pytest.raises(ValueError, match="pg_per_slice=False"):
        _ = reserved.slice_placement_groups
    assert tpu.get_num_tpu_slices("2x2x2", "v4") == 2

    def ready():
        return tpu.get_num_ready_tpu_slices("2x2x2", "v4")

    wait_until(lambda: ready() == 1)
    # The other slice is still to be had, then none is.
    other = tpu.slice_placement_group("2x2x2", "v4")
    assert other.bundle_label_selector[0]["ray.io/tpu-slice-name"] != name
    with pytest.raises(TimeoutError, match="no slice of type v4-16 was free within"):
        tpu.slice_placement_group("2x2x2", "v4", head_reservation_timeout_s=0.2)
    other.shutdown()
    reserved.shutdown()
    reserved.shutdown()
    assert reserved.slice_placement_group is None
    wait_until(lambda: ready() == 2)
    wait_until(lambda: ray_rust.available_resources().get(f"TPU-{POD_TYPE}-head") == 2)


def test_several_slices_are_reserved_in_one_group_or_in_one_each(two_slices):
    reserved = tpu.SlicePlacementGroup("2x2x2", "v4", num_slices=2, head_reservation_timeout_s=None)
    assert reserved.placement_group.wait(30)
    assert len(reserved.placement_group.bundle_specs) == reserved.num_hosts == 4
    assert len(reserved.head_placement_groups) == 2
    reserved.release_head_pgs(0)
    assert len(reserved.head_placement_groups) == 1
    with pytest.raises(ValueError, match="Invalid slice_index: 2"):
        reserved.release_head_pgs(2)
    reserved.shutdown()
    each = tpu.SlicePlacementGroup("2x2x2", "v4", num_slices=2, pg_per_slice=True, name="job")
    assert [len(group.bundle_specs) for group in each.slice_placement_groups] == [2, 2]
    assert ray_rust.util.get_placement_group("job_slice_1").id == each.slice_placement_groups[1].id
    with pytest.raises(ValueError, match="pg_per_slice=True"):
        _ = each.slice_placement_group
    each.shutdown()
    assert each.slice_placement_groups == []


def test_bundles_can_ask_for_labels_and_for_a_slice(two_slices):
    wanted = [{"ray.io/tpu-slice-name": "west", "ray.io/tpu-worker-id": str(number)} for number in (1, 0)]
    reserved = tpu.SlicePlacementGroup("2x2x2", "v4", bundle_label_selector=wanted)
    assert reserved.bundle_label_selector == wanted
    # Nobody had to be asked which slice it is.
    assert reserved.head_placement_groups == []
    refs = tpu.run_on_slice(slice_and_worker, tpu_slice=reserved)
    assert ray_rust.get(refs) == [("west", "1"), ("west", "0")]
    reserved.shutdown()


def test_a_slice_without_a_name_is_not_claimed(slices):
    slices(host(None, 0, env_vars={"TPU_NAME": ""}), host(None, 1))
    with pytest.raises(RuntimeError, match="has neither the label"):
        tpu.slice_placement_group("2x2x2", "v4")
    wait_until(lambda: ray_rust.available_resources().get(f"TPU-{POD_TYPE}-head") == 1)


def test_a_host_without_the_label_is_asked_by_a_task(slices):
    slices(host(None, 0, env_vars={"TPU_NAME": "north"}), host("north", 1))
    name, head = tpu._reserve_slice("2x2x2", "v4", 30)
    assert name == "north"
    ray_rust.util.remove_placement_group(head)


@pytest.mark.parametrize(
    ("args", "settings", "message"),
    [
        (("3x3", "v4"), {"resources_per_bundle": {"TPU": 1}}, "Invalid accelerator topology: '3x3' .* 'v4'"),
        (("2x2x2", "v4"), {"bundle_label_selector": [{}]}, r"length \(1\) must match the number of bundles \(2\)"),
        (("2x2x2", "v1"), {}, "Invalid accelerator_type"),
    ],
)
def test_slices_that_there_are_not_are_refused(two_slices, args, settings, message):
    with pytest.raises(ValueError, match=message):
        tpu.SlicePlacementGroup(*args, **settings)


# Running


def test_a_function_runs_on_every_host_of_a_slice(two_slices):
    refs = tpu.run_on_slice(slice_and_worker, topology="2x2x2", accelerator_version="v4")
    places = ray_rust.get(refs)
    assert len({name for name, _ in places}) == 1
    assert sorted(number for _, number in places) == ["0", "1"]


def test_a_function_runs_on_one_slice_of_several(two_slices):
    each = tpu.SlicePlacementGroup("2x2x2", "v4", num_slices=2, pg_per_slice=True)
    assert len(ray_rust.get(tpu.run_on_slice(slice_and_worker, tpu_slice=each))) == 4
    ((first, _), (second, _)) = ray_rust.get(tpu.run_on_slice(slice_and_worker, tpu_slice=each, slice_index=1))
    assert first == second == each.bundle_label_selector[2]["ray.io/tpu-slice-name"]
    with pytest.raises(ValueError, match="Invalid slice_index 2"):
        tpu.run_on_slice(slice_and_worker, tpu_slice=each, slice_index=2)
    each.shutdown()
    with pytest.raises(ValueError, match="was shut down"):
        tpu.run_on_slice(slice_and_worker, tpu_slice=each)


def test_a_function_takes_its_arguments_to_every_host(two_slices):
    add = ray_rust.remote(lambda one, *, other: one + other)
    refs = tpu.run_on_slice(add, 1, other=2, topology="2x2x2", accelerator_version="v4")
    assert ray_rust.get(refs) == [3, 3]


def test_a_slice_in_use_is_waited_for_as_long_as_said(two_slices):
    # One host of each slice has work.
    @ray_rust.remote
    class Holder:
        def hold(self):
            return True

    holders = [
        Holder.options(
            num_cpus=0,
            resources={"TPU": 1},
            label_selector={"ray.io/tpu-slice-name": name, "ray.io/tpu-worker-id": "1"},
        ).remote()
        for name in ("east", "west")
    ]
    ray_rust.get([holder.hold.remote() for holder in holders])
    with pytest.raises(TimeoutError, match="were not there within"):
        tpu.run_on_slice(slice_and_worker, topology="2x2x2", accelerator_version="v4", pg_ready_timeout_s=0.2)
    # Nothing of it is left.
    wait_until(lambda: ray_rust.available_resources().get(f"TPU-{POD_TYPE}-head") == 2)


def test_what_cannot_be_run_on_a_slice_is_refused():
    with pytest.raises(TypeError, match="has no"):
        tpu.run_on_slice(len, topology="2x2x2", accelerator_version="v4")
    with pytest.raises(ValueError, match="are required"):
        tpu.run_on_slice(slice_and_worker, topology="2x2x2")
    with pytest.raises(ValueError, match="an existing tpu_slice"):
        tpu.run_on_slice(slice_and_worker, topology="2x2x2", accelerator_version="v4", slice_index=0)
