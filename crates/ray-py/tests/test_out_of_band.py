"""References and handles that travel by other ways than as arguments, and how long what they stand for stays."""

import gc
import os
import pickle

import cloudpickle
import numpy as np
import pytest

import ray_rust as ray
from conftest import DEADLINE_S, wait_until
from ray_rust import exceptions
from ray_rust._private.session import connected_core


@pytest.fixture
def counter(cluster):
    @ray.remote(num_cpus=0)
    class Counter:
        def __init__(self):
            self.value = 0
            self.kept = None

        def add(self, x=1):
            self.value += x
            return self.value

        def pid(self):
            return os.getpid()

        def keep(self, what):
            self.kept = what

        def drop(self):
            self.kept = None

        def dumps(self):
            return cloudpickle.dumps(self.kept)

        def call_kept(self):
            return ray.get(self.kept.add.remote())

    return Counter


def is_alive(pid):
    return os.path.exists(f"/proc/{pid}")


def wait_for_end(pid):
    wait_until(lambda: not is_alive(pid), what=f"the end of the actor's process {pid}")


def test_a_reference_pickled_by_itself_keeps_its_object(cluster):
    for value in (["small"], np.arange(300_000)):
        reference = ray.put(value)
        for dumps in (pickle.dumps, cloudpickle.dumps):
            data = dumps({"nested": [reference]})
        name = reference.hex()
        del reference
        gc.collect()
        again = pickle.loads(data)["nested"][0]
        assert again.hex() == name
        assert np.array_equal(ray.get(again), value)


def test_a_reference_in_bytes_is_read_in_another_process(cluster):
    @ray.remote(num_cpus=0)
    def read(data):
        return ray.get(pickle.loads(data))

    @ray.remote(num_cpus=0)
    def pack(refs):
        return cloudpickle.dumps(refs[0])

    reference = ray.put(42)
    data = cloudpickle.dumps(reference)
    del reference
    assert ray.get(read.remote(data)) == 42
    # Out of a process that only borrows it.
    reference = ray.put(43)
    data = ray.get(pack.remote([reference]))
    assert ray.get(read.remote(data)) == 43


def test_a_reference_read_from_bytes_is_registered_with_its_owner(cluster, counter):
    """Whoever pickled it may end, once another one has read it."""

    @ray.remote(num_cpus=0)
    class Packer:
        def pack(self, refs):
            return cloudpickle.dumps(refs[0])

    owner, packer = counter.remote(), Packer.remote()
    # The object belongs to `owner`.
    put = owner.__ray_call__.remote(lambda _self: [ray.put("kept")])
    refs = ray.get(put)
    data = ray.get(packer.pack.remote(refs))
    again = pickle.loads(data)
    del refs, put
    # Answered by the owner after what this process has asked it before.
    ray.get(owner.add.remote())
    ray.kill(packer)
    assert ray.get(again, timeout=DEADLINE_S) == "kept"


def test_references_in_closures_globals_and_exceptions(cluster):
    reference = ray.put(5)
    nested = {"list": [reference]}

    @ray.remote(num_cpus=0)
    def look():
        return ray.get(nested["list"][0])

    assert ray.get(look.remote()) == 5

    @ray.remote(num_cpus=0)
    def fail(refs):
        raise ValueError(refs)

    with pytest.raises(ValueError, match="ObjectRef") as caught:
        ray.get(fail.remote([reference]))
    assert ray.get(caught.value.cause.args[0][0]) == 5


def test_out_of_band_can_be_forbidden(cluster, monkeypatch):
    reference = ray.put(1)
    monkeypatch.setenv("RAY_allow_out_of_band_object_ref_serialization", "0")
    with pytest.raises(exceptions.OufOfBandObjectRefSerializationException, match="as an argument"):
        pickle.dumps(reference)

    @ray.remote(num_cpus=0)
    def read(refs):
        return ray.get(refs[0])

    assert ray.get(read.remote([reference])) == 1


def test_references_in_band_leave_nothing_behind(cluster):
    @ray.remote(num_cpus=0)
    def pass_on(x):
        return [x, [x]]

    core = connected_core()
    before = core.reference_usage()[0]
    refs = [ray.put([number]) for number in range(20)]
    results = ray.get([pass_on.remote([ref]) for ref in refs])
    assert ray.get(results[3][1][0][0]) == [3]
    del refs, results
    gc.collect()
    wait_until(lambda: core.reference_usage()[0] == before)


def test_an_actor_ends_with_its_last_handle(counter):
    actor = counter.remote()
    pid = ray.get(actor.pid.remote())
    copy = actor
    del actor
    assert ray.get(copy.add.remote()) == 1
    del copy
    wait_for_end(pid)


def test_an_actor_ends_after_the_calls_made(counter):
    actor = counter.remote()
    results = [actor.add.remote() for _ in range(50)]
    pid = actor.pid.remote()
    del actor
    assert ray.get(results) == list(range(1, 51))
    wait_for_end(ray.get(pid))


def test_an_actor_ends_when_a_handle_that_was_passed_goes(counter):
    actor, keeper = counter.remote(), counter.remote()
    pid = ray.get(actor.pid.remote())
    ray.get(keeper.keep.remote([actor]))
    ray.get(keeper.keep.remote(actor))
    del actor
    gc.collect()
    assert ray.get([keeper.call_kept.remote() for _ in range(3)]) == [1, 2, 3]
    assert is_alive(pid)
    ray.get(keeper.drop.remote())
    wait_for_end(pid)


def test_an_actor_made_in_a_task_lives_as_long_as_the_handle_that_it_returns(counter):
    @ray.remote(num_cpus=0)
    def make():
        return counter.remote()

    actor = ray.get(make.remote())
    pid = ray.get(actor.pid.remote())
    assert ray.get(actor.add.remote()) == 1
    del actor
    wait_for_end(pid)

    @ray.remote(num_cpus=0)
    def make_and_drop():
        return ray.get(counter.remote().pid.remote())

    wait_for_end(ray.get(make_and_drop.remote()))


def test_a_handle_that_is_put_or_unread_keeps_its_actor(counter):
    actor = counter.remote()
    pid = ray.get(actor.pid.remote())
    stored = ray.put({"actor": actor})
    del actor
    gc.collect()
    assert ray.get(ray.get(stored)["actor"].add.remote()) == 1
    assert is_alive(pid)
    del stored
    wait_for_end(pid)


def test_calls_of_others_are_waited_for(counter, tmp_path):
    """The last handle goes in a process other than that whose call still runs."""

    @ray.remote(num_cpus=0)
    class Slow:
        def wait_for(self, path):
            import time

            while not os.path.exists(path):
                time.sleep(0.005)
            return os.getpid()

    actor, keeper = Slow.remote(), counter.remote()
    pid = ray.get(actor.__ray_call__.remote(lambda _self: os.getpid()))
    path = str(tmp_path / "gate")
    ray.get(keeper.keep.remote(actor))

    def call(self, path):
        self.result = self.kept.wait_for.remote(path)
        self.kept = None

    ray.get(keeper.__ray_call__.remote(call, path))
    del actor
    gc.collect()
    assert is_alive(pid)
    open(path, "w").close()
    assert ray.get(keeper.__ray_call__.remote(lambda self: ray.get(self.result))) == pid
    wait_for_end(pid)


def test_a_handle_pickled_by_itself_keeps_its_actor(counter):
    actor = counter.remote()
    data = cloudpickle.dumps([actor])
    del actor
    gc.collect()
    again = pickle.loads(data)[0]
    assert ray.get(again.add.remote()) == 1

    @ray.remote(num_cpus=0)
    def use(data):
        return ray.get(pickle.loads(data)[0].add.remote())

    assert ray.get(use.remote(data)) == 2
    ray.kill(again)


def test_handles_that_were_looked_up_are_weak(counter):
    actor = counter.options(name="looked up").remote()
    pid = ray.get(actor.pid.remote())
    weak = ray.get_actor("looked up")
    assert weak == actor
    assert hash(weak) == hash(actor)
    assert {weak: 1}[actor] == 1
    assert ray.get(weak.add.remote()) == 1
    del actor
    wait_for_end(pid)
    with pytest.raises(exceptions.ActorDiedError):
        ray.get(weak.add.remote())


def test_detached_actors_stay(counter):
    actor = counter.options(name="stays", lifetime="detached").remote()
    pid = ray.get(actor.pid.remote())
    del actor
    gc.collect()
    again = ray.get_actor("stays")
    assert ray.get(again.pid.remote()) == pid
    ray.kill(again)
    wait_for_end(pid)


def test_a_name_that_is_taken_costs_nothing(counter):
    core = connected_core()
    actor = counter.options(name="taken").remote()
    before = core.reference_usage()[0]
    with pytest.raises(ValueError, match="taken"):
        counter.options(name="taken").remote()
    assert core.reference_usage()[0] == before
    assert ray.get(actor.add.remote()) == 1
