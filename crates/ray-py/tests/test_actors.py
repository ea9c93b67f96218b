"""Actors: state, order, handles, names, the end."""

import gc
import os
import threading
import time

import pytest

import ray_rust
from conftest import kill_quietly, wait_until
from ray_rust import exceptions


class Base:
    def inherited(self):
        return "inherited"


@ray_rust.remote
class Counter(Base):
    """Counts."""

    START = 0

    def __init__(self, start=0):
        self.value = start

    def increment(self, by=1):
        self.value += by
        return self.value

    def get(self):
        return self.value

    @ray_rust.method(num_returns=2)
    def pair(self):
        return self.value, -self.value

    def pid(self):
        return os.getpid()

    def fail(self):
        raise KeyError("in the actor")

    @staticmethod
    def static(x):
        return x

    @classmethod
    def name(cls):
        return cls.__name__

    def __call__(self, x):
        return x * 2


def test_an_actor_keeps_its_state(cluster):
    counter = Counter.remote(10)
    assert cluster.get([counter.increment.remote() for _ in range(3)]) == [11, 12, 13]
    assert cluster.get(counter.get.remote()) == 13


def test_calls_run_in_the_order_in_which_they_were_made(cluster):
    @cluster.remote
    class Log:
        def __init__(self):
            self.seen = []

        def add(self, x):
            self.seen.append(x)

        def read(self):
            return self.seen

    @cluster.remote
    def slow(x):
        time.sleep(0.05)
        return x

    log = Log.remote()
    for i in range(2000):
        log.add.remote(i)
    assert cluster.get(log.read.remote()) == list(range(2000))
    # Also where arguments come late.
    log = Log.remote()
    log.add.remote(slow.remote(0))
    for i in range(1, 10):
        log.add.remote(i)
    assert cluster.get(log.read.remote()) == list(range(10))


def test_each_actor_has_its_own_process(cluster):
    actors = [Counter.remote() for _ in range(3)]
    pids = cluster.get([actor.pid.remote() for actor in actors])
    assert len({*pids, os.getpid()}) == 4


def test_many_actors_need_no_processor_each(cluster):
    actors = [Counter.remote(i) for i in range(12)]
    assert cluster.get([actor.get.remote() for actor in actors]) == list(range(12))


def test_methods_of_all_kinds(cluster):
    counter = Counter.remote(5)
    assert cluster.get(counter.inherited.remote()) == "inherited"
    assert cluster.get(counter.static.remote(3)) == 3
    assert cluster.get(counter.name.remote()) == "Counter"
    assert cluster.get(counter.__call__.remote(4)) == 8
    assert cluster.get(counter.pair.remote()) == [5, -5]
    assert cluster.get(counter.pair.options(num_returns=1).remote()) == (5, -5)
    assert counter.get.options(num_returns=0).remote() is None


def test_methods_that_every_actor_has(cluster):
    counter = Counter.remote(5)
    assert cluster.get(counter.__ray_ready__.remote()) is True
    assert cluster.get(counter.__ray_call__.remote(lambda self, x: self.value + x, 1)) == 6


def test_a_method_that_is_not_there_is_named(cluster):
    with pytest.raises(AttributeError, match="actor class Counter has no method 'nothing_like_it'"):
        Counter.remote().nothing_like_it  # noqa: B018
    with pytest.raises(TypeError, match=r"increment\.remote"):
        Counter.remote().increment()
    with pytest.raises(TypeError, match=r"Counter\.increment\(\)"):
        Counter.remote().increment.remote(1, 2, 3)


def test_an_exception_in_a_method_does_not_end_the_actor(cluster):
    counter = Counter.remote(1)
    with pytest.raises(KeyError, match="in the actor") as caught:
        cluster.get(counter.fail.remote())
    assert "Counter.fail()" in str(caught.value)
    assert cluster.get(counter.get.remote()) == 1


def test_an_exception_in_the_constructor_ends_the_actor_and_is_told(cluster):
    @cluster.remote
    class Broken:
        def __init__(self):
            raise ValueError("cannot be made")

        def method(self):
            pass

    broken = Broken.remote()
    for _ in range(2):
        with pytest.raises(exceptions.ActorDiedError, match="ValueError: cannot be made"):
            cluster.get(broken.method.remote(), timeout=30)


def test_constructor_arguments_may_be_references(cluster):
    assert cluster.get(Counter.remote(cluster.put(7)).get.remote()) == 7


def test_handles_can_be_passed_on(cluster):
    @cluster.remote
    def use(handle, times):
        for _ in range(times):
            ray_rust.get(handle.increment.remote())
        return handle

    counter = Counter.remote()
    same = cluster.get(use.remote(counter, 3))
    assert same == counter
    assert hash(same) == hash(counter)
    assert cluster.get(same.get.remote()) == 3
    cluster.get([use.remote(counter, 5) for _ in range(4)])
    assert cluster.get(counter.get.remote()) == 23


def test_a_handle_in_a_closure(cluster):
    counter = Counter.remote()

    @cluster.remote
    def use():
        return ray_rust.get(counter.increment.remote())

    assert cluster.get(use.remote()) == 1


def test_actors_make_actors(cluster):
    @cluster.remote
    class Parent:
        def __init__(self):
            self.child = Counter.remote(5)

        def ask(self):
            return ray_rust.get(self.child.increment.remote())

    assert cluster.get(Parent.remote().ask.remote()) == 6


def test_actor_context(cluster):
    @cluster.remote
    class Look:
        def look(self):
            return ray_rust.get_runtime_context().get_actor_id()

    look = Look.remote()
    assert cluster.get(look.look.remote()) == look._actor_id.hex()


# Names


def test_a_named_actor_is_found(cluster):
    counter = Counter.options(name="found").remote(3)
    assert cluster.get_actor("found") == counter
    assert cluster.get(cluster.get_actor("found").increment.remote()) == 4

    @cluster.remote
    def look():
        return ray_rust.get(ray_rust.get_actor("found").get.remote())

    assert cluster.get(look.remote()) == 4


def test_a_name_is_taken_once(cluster):
    first = Counter.options(name="taken").remote(1)
    with pytest.raises(ValueError, match="taken"):
        Counter.options(name="taken").remote(2)
    same = Counter.options(name="taken", get_if_exists=True).remote(3)
    assert same == first
    other = Counter.options(name="taken", namespace="elsewhere").remote(4)
    assert other != first
    assert cluster.get_actor("taken", namespace="elsewhere") == other


def test_a_name_is_free_after_the_end(cluster):
    counter = Counter.options(name="again").remote(1)
    cluster.get(counter.get.remote())
    cluster.kill(counter)
    wait_until(lambda: not _exists("again"))
    assert cluster.get(Counter.options(name="again").remote(2).get.remote()) == 2


def _exists(name):
    try:
        ray_rust.get_actor(name)
    except ValueError:
        return False
    return True


def test_a_name_that_nobody_has_is_an_error(cluster):
    with pytest.raises(ValueError, match="nobody"):
        cluster.get_actor("nobody")


# The end


def test_calls_on_a_killed_actor_fail(cluster):
    # Several, for their processes may take a moment to go.
    for _ in range(5):
        counter = Counter.remote()
        cluster.get(counter.get.remote())
        cluster.kill(counter)
        for _ in range(3):
            with pytest.raises(exceptions.ActorDiedError, match="was killed"):
                cluster.get(counter.get.remote(), timeout=30)


def test_a_call_that_runs_when_its_actor_is_killed_fails(cluster, tmp_path):
    @cluster.remote
    class Sleeper:
        def sleep(self, path):
            open(path, "w").close()
            time.sleep(1000)

    sleeper = Sleeper.remote()
    path = str(tmp_path / "started")
    refs = [sleeper.sleep.remote(path) for _ in range(3)]
    wait_until(lambda: os.path.exists(path))
    cluster.kill(sleeper)
    for ref in refs:
        with pytest.raises(exceptions.ActorDiedError):
            cluster.get(ref, timeout=30)


def test_an_actor_whose_process_is_killed_is_dead(cluster):
    counter = Counter.remote()
    pid = cluster.get(counter.pid.remote())
    os.kill(pid, 9)
    with pytest.raises(exceptions.ActorDiedError):
        while True:
            cluster.get(counter.get.remote(), timeout=30)


def test_an_actor_is_restarted_as_often_as_allowed(cluster):
    counter = Counter.options(max_restarts=1, max_task_retries=-1).remote(5)
    first = cluster.get(counter.pid.remote())
    cluster.get(counter.increment.remote())
    os.kill(first, 9)
    wait_until(lambda: cluster.get(counter.pid.remote(), timeout=30) != first)
    assert cluster.get(counter.get.remote()) == 5
    os.kill(cluster.get(counter.pid.remote()), 9)
    with pytest.raises(exceptions.ActorDiedError):
        while True:
            cluster.get(counter.get.options(max_task_retries=0).remote(), timeout=30)


def test_an_actor_ends_after_its_calls_when_its_handle_is_gone(cluster):
    counter = Counter.remote()
    pid = cluster.get(counter.pid.remote())
    refs = [counter.increment.remote() for _ in range(100)]
    del counter
    gc.collect()
    assert cluster.get(refs) == list(range(1, 101))
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), what="the end of the actor")


def test_actors_that_come_and_go_give_their_resources_back(cluster):
    for i in range(10):
        counter = Counter.options(num_cpus=4).remote(i)
        assert cluster.get(counter.get.remote(), timeout=30) == i


def test_an_actor_can_leave(cluster):
    @cluster.remote
    class Leaver:
        def leave(self):
            ray_rust.actor.exit_actor()

        def stay(self):
            return 1

    leaver = Leaver.remote()
    assert cluster.get(leaver.stay.remote()) == 1
    with pytest.raises(exceptions.ActorDiedError):
        cluster.get(leaver.leave.remote(), timeout=30)
    with pytest.raises(exceptions.ActorDiedError):
        cluster.get(leaver.stay.remote(), timeout=30)


def test_terminate_ends_an_actor_after_its_calls(cluster):
    counter = Counter.remote()
    before = [counter.increment.remote() for _ in range(10)]
    end = counter.__ray_terminate__.remote()
    assert cluster.get(before) == list(range(1, 11))
    with pytest.raises(exceptions.ActorDiedError):
        cluster.get(end, timeout=30)


def test_an_unpicklable_class_names_the_culprit(cluster):
    lock = threading.Lock()

    @cluster.remote
    class HasLock:
        guard = lock

        def method(self):
            pass

    with pytest.raises(TypeError, match=r"'HasLock'.*'guard'"):
        HasLock.remote()


def test_an_actor_that_was_just_made_can_be_killed(cluster):
    @cluster.remote(num_cpus=0)
    class Short:
        def ping(self):
            return 1

    # Many times: the registration is still under way then, mostly.
    for _ in range(20):
        actor = Short.remote()
        cluster.kill(actor)
        with pytest.raises(exceptions.ActorDiedError, match="kill"):
            cluster.get(actor.ping.remote(), timeout=30)


def test_others_hear_of_an_actor_that_is_never_made(cluster, tmp_path):
    gate = tmp_path / "gate"

    @ray_rust.remote
    def never(path):
        while not os.path.exists(path):
            time.sleep(0.002)
        raise ValueError("no argument")

    @ray_rust.remote
    class Actor:
        def __init__(self, argument):
            pass

        def call(self):
            return 1

    @ray_rust.remote
    def call(handles):
        (handle,) = handles
        return ray_rust.get(handle.call.remote())

    handle = Actor.remote(never.remote(str(gate)))
    ref = call.remote([handle])
    assert ray_rust.wait([ref], timeout=0.1) == ([], [ref])
    gate.touch()
    with pytest.raises(exceptions.ActorDiedError, match="no argument"):
        ray_rust.get(ref, timeout=30)


def test_others_hear_that_whoever_was_to_make_an_actor_has_ended(cluster, tmp_path):
    gate = tmp_path / "gate"

    @ray_rust.remote
    def wait(path):
        while not os.path.exists(path):
            time.sleep(0.002)

    @ray_rust.remote
    class Actor:
        def __init__(self, argument):
            pass

        def call(self):
            return 1

    @ray_rust.remote
    class Maker:
        def make(self, path):
            return os.getpid(), Actor.remote(wait.remote(path))

    maker = Maker.remote()
    pid, handle = ray_rust.get(maker.make.remote(str(gate)))
    ref = handle.call.remote()
    kill_quietly(pid)
    with pytest.raises(exceptions.ActorDiedError, match="was to create it"):
        ray_rust.get(ref, timeout=30)


def test_an_actor_whose_argument_is_not_there_can_be_killed(cluster, tmp_path):
    path = str(tmp_path / "gate")
    made = str(tmp_path / "made")

    @cluster.remote(num_cpus=0)
    def wait():
        while not os.path.exists(path):
            pass
        return made

    @cluster.remote(num_cpus=0)
    class Late:
        def __init__(self, file):
            open(file, "w").close()

        def ping(self):
            return 1

    argument = wait.remote()
    actor = Late.remote(argument)
    call = actor.ping.remote()
    cluster.kill(actor)
    with pytest.raises(exceptions.ActorDiedError, match="before its constructor"):
        cluster.get(call, timeout=30)
    open(path, "w").close()
    cluster.get(argument, timeout=30)
    with pytest.raises(exceptions.ActorDiedError):
        cluster.get(actor.ping.remote(), timeout=30)
    assert not os.path.exists(made)


def test_no_more_calls_are_pending_than_the_limit(cluster, tmp_path):
    gate = tmp_path / "gate"
    slow = Slow.options(max_pending_calls=3).remote()
    refs = [slow.wait.remote(str(gate)) for _ in range(3)]
    with pytest.raises(exceptions.PendingCallsLimitExceeded, match=r"Slow\.wait.*3 calls.*max_pending_calls") as caught:
        slow.wait.remote(str(gate))
    assert slow._actor_id.hex() in str(caught.value)
    with pytest.raises(exceptions.PendingCallsLimitExceeded):
        slow.wait.options(name="other").remote(str(gate))

    @ray_rust.remote
    def call(actor, gate):
        """Calls of other processes are counted apart."""
        refs = [actor.wait.remote(gate) for _ in range(3)]
        try:
            actor.wait.remote(gate)
        except exceptions.PendingCallsLimitExceeded:
            return "refused", refs
        return "taken", refs

    outcome = ray_rust.get(call.remote(slow, str(gate)), timeout=60)
    assert outcome[0] == "refused"
    gate.touch()
    assert ray_rust.get(refs, timeout=60) == ["passed"] * 3
    assert ray_rust.get(slow.wait.remote(str(gate)), timeout=60) == "passed"
    # Its end is no call of the program.
    del slow, refs, outcome


def test_a_limit_of_pending_calls_holds_for_who_looks_the_actor_up(cluster, tmp_path):
    gate = tmp_path / "gate"
    slow = Slow.options(max_pending_calls=1, name="limited").remote()

    @ray_rust.remote
    def call(gate):
        actor = ray_rust.get_actor("limited")
        first = actor.wait.remote(gate)
        try:
            actor.wait.remote(gate)
        except exceptions.PendingCallsLimitExceeded:
            return "refused", [first]

    assert ray_rust.get(call.remote(str(gate)), timeout=60)[0] == "refused"
    gate.touch()
    assert ray_rust.get(slow.wait.remote(str(gate)), timeout=60) == "passed"


@ray_rust.remote
class Slow:
    def wait(self, gate):
        wait_until(lambda: os.path.exists(gate))
        return "passed"
