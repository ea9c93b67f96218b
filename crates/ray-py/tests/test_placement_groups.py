"""Placement groups, through real processes."""

import os
import pickle
import time

import pytest

import ray_rust as ray
from conftest import wait_until
from ray_rust import exceptions
from ray_rust.util import (
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray_rust.util.placement_group import PlacementGroup
from ray_rust.util.scheduling_strategies import PlacementGroupSchedulingStrategy

pytestmark = pytest.mark.usefixtures("cluster")


def within(group, index=-1, capture=None):
    return PlacementGroupSchedulingStrategy(group, index, capture)


@pytest.fixture
def make_group():
    """Makes groups that are removed after the test."""
    made = []

    def make(bundles, *args, **kwargs):
        made.append(placement_group(bundles, *args, **kwargs))
        return made[-1]

    yield make
    for group in made:
        remove_placement_group(group)
    wait_until(lambda: ray.available_resources().get("CPU") == 4, what="all CPUs to be free")


def free_cpus():
    return ray.available_resources().get("CPU", 0)


@ray.remote
def current():
    group = get_current_placement_group()
    return group.id.hex() if group is not None else None


@ray.remote
def hold(path):
    """Runs until the file is gone."""
    with open(path + ".started", "w") as file:
        file.write(str(os.getpid()))
    while os.path.exists(path):
        time.sleep(0.01)


@ray.remote
class Member:
    def pid(self):
        return os.getpid()

    def group(self):
        group = get_current_placement_group()
        return group.id.hex() if group is not None else None

    def child_group(self, **options):
        return ray.get(current.options(**options).remote())


# Creation


@pytest.mark.parametrize("strategy", ["PACK", "SPREAD", "STRICT_PACK"])
def test_a_group_reserves_its_bundles_and_is_ready_then(make_group, strategy):
    group = make_group([{"CPU": 1}, {"CPU": 0.5, "gizmo": 1}], strategy)
    assert group.wait(30)
    ready = ray.get(group.ready(), timeout=30)
    assert ready == group
    assert ready is not group
    assert hash(ready) == hash(group)
    assert group.bundle_specs == [{"CPU": 1.0}, {"CPU": 0.5, "gizmo": 1.0}]
    assert group.bundle_count == 2
    wait_until(lambda: free_cpus() == 2.5)
    assert ray.available_resources()["gizmo"] == 1
    assert ray.cluster_resources()["CPU"] == 4


def test_a_group_that_does_not_fit_waits_says_why_and_is_made_when_it_does(make_group):
    first = make_group([{"CPU": 3}])
    assert first.wait(30)
    second = make_group([{"CPU": 2}])
    assert not second.wait(0.05)
    ready = second.ready()
    assert ray.wait([ready], timeout=0.05) == ([], [ready])
    row = placement_group_table(second)
    assert row["state"] == "PENDING"
    assert row["stats"]["scheduling_state"] == "NO_RESOURCES"
    assert "bundle 0, {CPU: 2}, is free on no node" in row["reason"]
    remove_placement_group(first)
    assert second.wait(30)
    assert ray.get(ready, timeout=30) == second


def test_a_group_that_no_node_can_hold_says_so(make_group):
    group = make_group([{"CPU": 3}, {"CPU": 3}], "STRICT_PACK")
    assert not group.wait(0.05)
    row = placement_group_table(group)
    assert row["stats"]["scheduling_state"] == "INFEASIBLE"
    assert "all its bundles together, {CPU: 6}" in row["reason"]
    spread = make_group([{"CPU": 1}, {"CPU": 1}], "STRICT_SPREAD")
    assert not spread.wait(0.05)
    assert "no node without another bundle" in placement_group_table(spread)["reason"]


def test_the_table_has_the_shape_that_libraries_read(make_group):
    group = make_group([{"CPU": 1}], name="shaped", strategy="SPREAD")
    assert group.wait(30)
    row = placement_group_table(group)
    assert row["placement_group_id"] == group.id.hex()
    assert (row["name"], row["strategy"], row["state"]) == ("shaped", "SPREAD", "CREATED")
    assert row["bundles"] == {0: {"CPU": 1.0}}
    assert row["bundles_to_node_id"] == {0: ray.get_runtime_context().get_node_id()}
    assert row["stats"]["scheduling_state"] == "FINISHED"
    assert placement_group_table()[group.id.hex()] == row
    remove_placement_group(group)
    assert placement_group_table(group)["state"] == "REMOVED"
    assert placement_group_table(group)["stats"]["scheduling_state"] == "REMOVED"
    assert placement_group_table(PlacementGroup(ray.PlacementGroupID.from_random())) == {}


def test_a_bundle_goes_to_a_node_with_its_labels(make_group):
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    assert make_group([{"CPU": 1}], bundle_label_selector=[here]).wait(30)
    nowhere = make_group([{"CPU": 1}], bundle_label_selector=[{"region": "moon"}])
    assert not nowhere.wait(0.05)
    assert "{region: in(moon)}" in placement_group_table(nowhere)["reason"]
    node_id = ray.get_runtime_context().get_node_id()
    assert make_group([{"CPU": 1}], "STRICT_PACK", _soft_target_node_id=node_id).wait(30)


@pytest.mark.parametrize(
    ("bundles", "options", "named"),
    [
        ({}, {}, "list"),
        ([], {}, "needs bundles"),
        ([{}], {}, "empty"),
        ([{"CPU": 0}], {}, "only 0"),
        ([{"CPU": "1"}], {}, "CPU"),
        ([{"CPU": -1}], {}, "-1"),
        ([{"CPU": 1}], {"strategy": "AROUND"}, "AROUND"),
        ([{"CPU": 1}], {"lifetime": "long"}, "lifetime"),
        ([{"CPU": 1}], {"_soft_target_node_id": "ab" * 16}, "STRICT_PACK"),
        ([{"CPU": 1}], {"bundle_label_selector": [{}, {}]}, "as many"),
        ([{"CPU": 1}], {"bundle_label_selector": [{"a": "in("}]}, "in("),
    ],
)
def test_what_makes_no_group_is_refused_at_once(bundles, options, named):
    with pytest.raises(ValueError) as caught:
        placement_group(bundles, **options)
    assert named in str(caught.value)


# Names and lifetime


def test_a_named_group_is_found_until_it_is_removed(make_group):
    group = make_group([{"CPU": 1}], name="known")
    assert get_placement_group("known") == group
    assert get_placement_group("known").bundle_specs == [{"CPU": 1.0}]
    with pytest.raises(ValueError, match="known"):
        placement_group([{"CPU": 1}], name="known")
    remove_placement_group(group)
    with pytest.raises(ValueError, match="known"):
        get_placement_group("known")
    again = make_group([{"CPU": 1}], name="known")
    assert get_placement_group("known") == again
    with pytest.raises(ValueError, match="not empty"):
        get_placement_group("")


def test_handles_travel(make_group):
    group = make_group([{"CPU": 1}])
    copy = pickle.loads(pickle.dumps(group))
    assert copy == group
    assert copy.bundle_specs == group.bundle_specs

    @ray.remote
    def wait_there(group):
        return group.wait(30), group.bundle_count, ray.get(group.ready()) == group

    assert ray.get(wait_there.remote(group), timeout=30) == (True, 1, True)
    bare = PlacementGroup(group.id)
    assert bare.bundle_specs == [{"CPU": 1.0}]


def test_no_group_is_one_too():
    empty = PlacementGroup.empty()
    assert empty.is_empty
    assert ray.get(empty.ready()) == empty
    assert empty != PlacementGroup(ray.PlacementGroupID.from_random())
    assert ray.get(current.options(scheduling_strategy=within(None)).remote()) is None


LIFETIME = """
import sys
import ray_rust as ray
from ray_rust.util import placement_group, get_placement_group, remove_placement_group
from ray_rust.util.scheduling_strategies import PlacementGroupSchedulingStrategy

ray.init(sys.argv[1], namespace="shared")
if sys.argv[2] == "make":
    assert placement_group([{"CPU": 1}], name="kept", lifetime="detached").wait(30)
    assert placement_group([{"CPU": 1}], name="lost").wait(30)
else:
    group = get_placement_group("kept")

    @ray.remote(scheduling_strategy=PlacementGroupSchedulingStrategy(group))
    def f():
        return ray.util.get_current_placement_group() == group

    assert ray.get(f.remote(), timeout=30)
    try:
        get_placement_group("lost")
    except ValueError:
        pass
    else:
        raise AssertionError("it should have ended with its job")
    remove_placement_group(group)
    assert ray.util.placement_group_table(group)["state"] == "REMOVED"
"""


def test_a_group_ends_with_its_job_unless_it_is_detached(own_folder, tmp_path):
    import subprocess
    import sys

    from ray_rust._private import node as nodes

    head = nodes.start_node(nodes.node_config(own_folder, num_cpus=2))
    address = head.info.gcs_address
    path = tmp_path / "lifetime.py"
    path.write_text(LIFETIME)
    try:
        subprocess.run([sys.executable, path, address, "make"], check=True, timeout=60)
        ray.init(address)
        wait_until(lambda: free_cpus() == 1, what="the end of the group that is not detached")
        ray.shutdown()
        subprocess.run([sys.executable, path, address, "use"], check=True, timeout=60)
        ray.init(address)
        wait_until(lambda: free_cpus() == 2)
        ray.shutdown()
    finally:
        os.kill(head.info.pid, 15)
        head.wait()


# Tasks and actors


def test_tasks_run_in_the_bundles_of_their_group(make_group, tmp_path):
    group = make_group([{"CPU": 1}, {"CPU": 1}])
    assert group.wait(30)
    wait_until(lambda: free_cpus() == 2)
    in_group = current.options(scheduling_strategy=within(group))
    assert ray.get([in_group.remote() for _ in range(10)], timeout=30) == [group.id.hex()] * 10
    assert ray.get(current.remote()) is None
    path = tmp_path / "go"
    path.touch()
    inside = hold.options(scheduling_strategy=within(group, 0))
    running = inside.remote(str(path))
    wait_until(lambda: os.path.exists(f"{path}.started"))
    # Bundle 0 is full, bundle 1 is not, and what is beside the group is not touched.
    assert ray.wait([inside.remote(str(path))], timeout=0.2)[0] == []
    assert ray.get(current.options(scheduling_strategy=within(group, 1)).remote(), timeout=30) == group.id.hex()
    assert free_cpus() == 2
    path.unlink()
    ray.get(running, timeout=30)


def test_a_task_waits_for_its_group_to_be_created(make_group):
    first = make_group([{"CPU": 4}])
    assert first.wait(30)
    second = make_group([{"CPU": 1}])
    task = current.options(scheduling_strategy=within(second)).remote()
    actor = Member.options(scheduling_strategy=within(second), num_cpus=0).remote()
    call = actor.group.remote()
    assert ray.wait([task, call], num_returns=2, timeout=0.2)[0] == []
    remove_placement_group(first)
    assert ray.get([task, call], timeout=30) == [second.id.hex()] * 2


def test_what_cannot_fit_its_bundle_is_refused_at_once(make_group):
    group = make_group([{"CPU": 1}, {"gizmo": 1}])
    with pytest.raises(ValueError, match="fit into"):
        current.options(num_cpus=2, scheduling_strategy=within(group)).remote()
    with pytest.raises(ValueError, match="fit into bundle 1"):
        current.options(scheduling_strategy=within(group, 1)).remote()
    with pytest.raises(ValueError, match="index 2"):
        current.options(scheduling_strategy=within(group, 2)).remote()
    with pytest.raises(ValueError, match="fit into"):
        Member.options(num_cpus=2, scheduling_strategy=within(group)).remote()
    with pytest.raises(ValueError, match="fit into bundle 1"):
        Member.options(scheduling_strategy=within(group, 1)).remote()
    assert group.wait(30)

    @ray.remote(num_cpus=1)
    def parent():
        # Captured, so that it is looked at when it is scheduled.
        return ray.get(current.options(num_cpus=2).remote())

    with pytest.raises(exceptions.RayTaskError) as caught:
        ray.get(parent.options(scheduling_strategy=within(group, capture=True)).remote(), timeout=30)
    assert isinstance(caught.value.cause, exceptions.TaskUnschedulableError)
    assert "{CPU: 2} fits no bundle" in str(caught.value)


def test_actors_live_in_their_bundle(make_group):
    group = make_group([{"CPU": 1}, {"CPU": 1}])
    members = [Member.options(num_cpus=1, scheduling_strategy=within(group)).remote() for _ in range(3)]
    # Any two of them may be first.
    calls = {member.group.remote(): member for member in members}
    ready, waiting = ray.wait(list(calls), num_returns=2, timeout=30)
    assert ray.get(ready) == [group.id.hex()] * 2
    assert ray.wait(waiting, timeout=0.2)[0] == []
    ray.kill(calls[ready[0]])
    assert ray.get(waiting, timeout=30) == [group.id.hex()]


def test_an_actor_without_needs_takes_a_cpu_only_to_be_placed(make_group):
    group = make_group([{"CPU": 1}])
    members = [Member.options(scheduling_strategy=within(group, 0)).remote() for _ in range(3)]
    assert ray.get([member.group.remote() for member in members], timeout=60) == [group.id.hex()] * 3


def test_a_restarted_actor_is_in_its_group_again(make_group):
    group = make_group([{"CPU": 1}])
    member = Member.options(num_cpus=1, max_restarts=1, scheduling_strategy=within(group)).remote()
    pid = ray.get(member.pid.remote(), timeout=30)
    os.kill(pid, 9)

    def moved():
        try:
            return ray.get(member.pid.remote(), timeout=30) != pid
        except exceptions.ActorUnavailableError:
            return False

    wait_until(moved)
    assert ray.get(member.group.remote(), timeout=30) == group.id.hex()


def test_cpus_are_given_back_to_the_bundle_while_a_task_waits(make_group):
    group = make_group([{"CPU": 1}])

    @ray.remote
    def nested(depth):
        if depth == 0:
            return get_current_placement_group().id.hex()
        return ray.get(nested.options(scheduling_strategy=within(group)).remote(depth - 1))

    assert ray.get(nested.options(scheduling_strategy=within(group)).remote(3), timeout=60) == group.id.hex()


def test_the_old_options_still_work_and_are_said_to_be_old(make_group):
    group = make_group([{"CPU": 1}, {"CPU": 1}])
    with pytest.warns(DeprecationWarning, match="PlacementGroupSchedulingStrategy") as warned:
        old = current.options(placement_group=group, placement_group_bundle_index=1)
    assert [str(one.message).partition(" ")[0] for one in warned] == ["placement_group", "placement_group_bundle_index"]
    assert {one.filename for one in warned} == {__file__}
    assert ray.get(old.remote(), timeout=30) == group.id.hex()
    capturing = Member.options(placement_group=group, placement_group_capture_child_tasks=True)
    with pytest.warns(DeprecationWarning, match="is deprecated") as warned:
        member = capturing.remote()
    assert "placement_group_capture_child_tasks" in str(warned[1].message)
    assert {one.filename for one in warned} == {__file__}
    assert ray.get(member.child_group.remote(), timeout=30) == group.id.hex()
    with pytest.raises(ValueError, match="cannot both be given"):
        current.options(placement_group=group, scheduling_strategy="SPREAD")
    with pytest.raises(TypeError, match="PlacementGroup"):
        current.options(placement_group="mine")
    with pytest.warns(DeprecationWarning, match="placement_group is deprecated"):
        free = current.options(placement_group=None)
    assert ray.get(free.remote(), timeout=30) is None


@pytest.mark.filterwarnings("ignore:placement_group is deprecated")
def test_no_group_goes_with_any_strategy(make_group):
    group = make_group([{"CPU": 1}])
    assert ray.get(current.options(placement_group=None, scheduling_strategy="SPREAD").remote(), timeout=30) is None
    both = current.options(placement_group=None, scheduling_strategy=within(group))
    assert ray.get(both.remote(), timeout=30) == group.id.hex()


# Capture


def test_children_are_captured_if_asked_and_unless_they_say_otherwise(make_group):
    group = make_group([{"CPU": 2}])
    member = Member.options(num_cpus=1, scheduling_strategy=within(group, capture=True)).remote()
    assert ray.get(member.child_group.remote(), timeout=30) == group.id.hex()
    assert ray.get(member.child_group.remote(scheduling_strategy="DEFAULT"), timeout=30) is None
    assert ray.get(member.child_group.remote(scheduling_strategy="SPREAD"), timeout=30) is None
    assert ray.get(member.child_group.remote(placement_group=None), timeout=30) is None
    free = Member.options(num_cpus=1, scheduling_strategy=within(group)).remote()
    assert ray.get(free.child_group.remote(), timeout=30) is None
    assert ray.get(free.group.remote(), timeout=30) == group.id.hex()


def test_capture_goes_on_through_tasks_and_actors(make_group):
    group = make_group([{"CPU": 4}])

    @ray.remote
    def parent():
        member = Member.remote()
        return ray.get([member.group.remote(), member.child_group.remote()])

    captured = parent.options(scheduling_strategy=within(group, capture=True))
    assert ray.get(captured.remote(), timeout=30) == [group.id.hex()] * 2
    assert get_current_placement_group() is None


# Removal


def test_removal_ends_what_runs_in_the_group_and_says_so(make_group, tmp_path):
    group = make_group([{"CPU": 1}, {"CPU": 1}])
    member = Member.options(num_cpus=1, scheduling_strategy=within(group, 0)).remote()
    pid = ray.get(member.pid.remote(), timeout=30)
    path = tmp_path / "go"
    path.touch()
    inside = hold.options(max_retries=0, scheduling_strategy=within(group, 1))
    running = inside.remote(str(path))
    waiting = inside.remote(str(path))
    retried = hold.options(scheduling_strategy=within(group, 1)).remote(str(path))
    wait_until(lambda: os.path.exists(f"{path}.started"))
    remove_placement_group(group)
    with pytest.raises(exceptions.WorkerCrashedError, match=group.id.hex()) as ended:
        ray.get(running, timeout=30)
    assert isinstance(ended.value, exceptions.TaskPlacementGroupRemoved)
    for task in (waiting, retried):
        with pytest.raises(exceptions.TaskPlacementGroupRemoved, match=group.id.hex()):
            ray.get(task, timeout=30)
    with pytest.raises(exceptions.ActorDiedError, match=group.id.hex()) as died:
        ray.get(member.pid.remote(), timeout=30)
    assert isinstance(died.value, exceptions.ActorPlacementGroupRemoved)
    assert pickle.loads(pickle.dumps(died.value)).args == died.value.args
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"))
    wait_until(lambda: free_cpus() == 4)


def test_nothing_starts_in_a_group_that_was_removed(make_group):
    group = make_group([{"CPU": 1}])
    assert group.wait(30)
    remove_placement_group(group)
    remove_placement_group(group)
    with pytest.raises(exceptions.TaskPlacementGroupRemoved):
        ray.get(current.options(scheduling_strategy=within(group)).remote(), timeout=30)
    member = Member.options(scheduling_strategy=within(group)).remote()
    with pytest.raises(exceptions.ActorPlacementGroupRemoved, match="removed"):
        ray.get(member.pid.remote(), timeout=30)
    with pytest.raises(ValueError, match="removed"):
        group.wait(30)
    with pytest.raises(exceptions.TaskPlacementGroupRemoved, match="removed"):
        ray.get(group.ready(), timeout=30)


def test_those_who_wait_for_a_group_hear_of_its_removal(make_group):
    first = make_group([{"CPU": 4}])
    assert first.wait(30)
    second = make_group([{"CPU": 1}])
    ready = second.ready()
    task = current.options(scheduling_strategy=within(second)).remote()
    member = Member.options(scheduling_strategy=within(second)).remote()
    call = member.pid.remote()
    remove_placement_group(second)
    for waiting in (ready, task):
        with pytest.raises(exceptions.TaskPlacementGroupRemoved):
            ray.get(waiting, timeout=30)
    with pytest.raises(exceptions.ActorPlacementGroupRemoved):
        ray.get(call, timeout=30)


def test_the_wait_for_a_group_can_be_given_up(make_group):
    group = make_group([{"CPU": 100}])
    ready = group.ready()
    ray.cancel(ready)
    assert ray.wait([ready], timeout=0)[0] == []
    del ready
    assert not group.wait(0)


def test_a_group_is_used_removed_and_told_of_before_the_control_plane_has_answered(make_group):
    @ray.remote(num_cpus=1)
    class Actor:
        def group(self):
            return get_current_placement_group()

    @ray.remote(num_cpus=0)
    def wait(group):
        return group.wait(30)

    for _ in range(20):
        group = make_group([{"CPU": 1}])
        actor = Actor.options(scheduling_strategy=within(group)).remote()
        told = wait.remote(group)
        assert ray.get([actor.group.remote(), told], timeout=30) == [group, True]
        remove_placement_group(group)
        gone = make_group([{"CPU": 1}])
        remove_placement_group(gone)
        assert placement_group_table(gone)["state"] == "REMOVED"
        with pytest.raises(ValueError, match="removed"):
            gone.wait(30)


def test_tasks_know_their_group(make_group):
    @ray.remote(num_cpus=0)
    def own():
        context = ray.get_runtime_context()
        captures = context.should_capture_child_tasks_in_placement_group
        return context.get_placement_group_id(), context.current_placement_group_id, captures

    group = make_group([{"CPU": 1}])
    assert ray.get(own.options(scheduling_strategy=within(group)).remote()) == (group.id.hex(), group.id, False)
    capturing = own.options(scheduling_strategy=within(group, capture=True))
    assert ray.get(capturing.remote())[2] is True
    assert ray.get(own.remote()) == (None, ray.PlacementGroupID.nil(), False)
    assert ray.get_runtime_context().get_placement_group_id() is None


def test_many_groups_come_and_go(make_group):
    for _ in range(5):
        groups = [make_group([{"CPU": 0.01}]) for _ in range(40)]
        assert all(group.wait(30) for group in groups)
        for group in groups:
            remove_placement_group(group)
    states = {row["state"] for row in placement_group_table().values()}
    assert states == {"REMOVED"}
