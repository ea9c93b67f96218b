"""Errors of tasks, as they arrive in another process."""

import json
import os
import pathlib
import pickle
import re
import signal
import sys
import threading

import numpy as np
import pytest

import ray_rust as ray
from conftest import wait_until
from ray_rust import TaskID, _internal, cloudpickle, exceptions
from ray_rust._private import serialization, session
from ray_rust.exceptions import RayTaskError
from ray_rust.util import state


def arrive(error, name="f"):
    """The exception that get() raises when a task has raised this one."""
    try:
        raise error
    except BaseException as raised:
        data = serialization.encode_error(raised, name)
    return serialization.decode_error(data)


class Picky(Exception):
    """Does not load: its constructor takes other arguments than it hands on."""

    def __init__(self, code, reason):
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason

    def describe(self):
        return f"{self.reason} ({self.code})"


class Final(Exception):
    def __init_subclass__(cls, **kwargs):
        raise TypeError("final")


class Slotted(Exception):
    __slots__ = ("level",)

    def __init__(self, level):
        super().__init__(level)
        self.level = level


def test_an_error_is_of_both_types_and_says_what_happened_where():
    error = arrive(ValueError("bad value"), "work")
    assert isinstance(error, RayTaskError)
    assert isinstance(error, ValueError)
    assert type(error).__name__ == "RayTaskError(ValueError)"
    assert error.function_name == "work"
    assert isinstance(error.cause, ValueError)
    assert error.args == ("bad value",)
    text = str(error)
    assert "work()" in text
    assert "ValueError: bad value" in text
    assert __file__ in text
    assert f"pid={error.pid}" in text


def test_the_class_for_a_type_is_made_once():
    assert type(arrive(KeyError(1))) is type(arrive(KeyError(2)))


def test_attributes_and_methods_of_the_cause_are_there():
    error = arrive(Picky(7, "full"))
    assert isinstance(error, Picky)
    assert (error.code, error.reason, error.describe()) == (7, "full", "full (7)")


@pytest.mark.parametrize(
    ("cause", "attributes"),
    [
        (FileNotFoundError(2, "no such file", "/x"), {"errno": 2, "strerror": "no such file", "filename": "/x"}),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), {"start": 0, "end": 1, "reason": "invalid"}),
        (StopIteration(3), {"value": 3}),
        (ImportError("no", name="module"), {"name": "module", "msg": "no"}),
        (Slotted(4), {"level": 4}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_fields_that_are_not_in_the_dict_are_there(cause, attributes):
    error = arrive(cause)
    assert isinstance(error, type(cause))
    assert {name: getattr(error, name) for name in attributes} == attributes


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups came with Python 3.11")
def test_an_exception_group_stays_one():
    group = ExceptionGroup("several", [ValueError(1), KeyError(2)])  # noqa: F821
    error = arrive(group)
    assert isinstance(error, ExceptionGroup)  # noqa: F821
    assert [type(one) for one in error.exceptions] == [ValueError, KeyError]


def test_a_type_that_cannot_be_subclassed_arrives_as_the_cause():
    error = arrive(Final("x"))
    assert type(error) is RayTaskError
    assert isinstance(error.cause, Final)
    assert "Final: x" in str(error)


def test_an_exit_does_not_end_the_process_that_waits():
    error = arrive(SystemExit(3))
    assert type(error) is RayTaskError
    assert isinstance(error.cause, SystemExit)


def test_parts_that_cannot_be_pickled_do_not_take_the_type_away():
    cause = ValueError("with a lock", threading.Lock())
    cause.lock = threading.Lock()
    cause.number = 5
    error = arrive(cause)
    assert isinstance(error, ValueError)
    assert error.args[0] == "with a lock"
    assert "lock" in error.args[1]
    assert error.number == 5


def test_a_type_that_exists_nowhere_else_arrives_as_text():
    class Local(Exception):
        def __reduce__(self):
            raise TypeError("not today")

        def __new__(cls, *args):
            if len(args) != 1:
                raise TypeError("one argument")
            return super().__new__(cls, *args)

    cause = Local("gone")
    cause.args = ()
    error = arrive(cause)
    assert type(error).__mro__[1] is RayTaskError
    assert isinstance(error.cause, exceptions.UnserializableException)
    assert "Local" in str(error)


def test_the_first_cause_comes_through_nested_tasks():
    inner = arrive(KeyError("deep"), "inner")
    outer = arrive(inner, "outer")
    assert isinstance(outer, KeyError)
    assert outer.function_name == "outer"
    assert "inner()" in str(outer)
    assert type(outer.cause) is KeyError


@pytest.mark.parametrize("cause", [ValueError("x"), Picky(1, "y"), Final("z")], ids=lambda value: type(value).__name__)
def test_errors_survive_pickling(cause):
    error = arrive(cause, "work")
    again = pickle.loads(pickle.dumps(error))
    assert type(again).__name__ == type(error).__name__
    assert again.function_name == "work"
    assert str(again) == str(error)
    assert type(again.cause) is type(cause)


# The tree

BASES = {
    "ActorAlreadyExistsError": ("ValueError", "RayError"),
    "ActorDiedError": ("RayActorError",),
    "ActorHandleNotFoundError": ("ValueError", "RayError"),
    "ActorUnavailableError": ("RayActorError",),
    "GetTimeoutError": ("RayError", "TimeoutError"),
    "ObjectFetchTimedOutError": ("ObjectLostError",),
    "ObjectFreedError": ("ObjectLostError",),
    "ObjectReconstructionFailedError": ("ObjectLostError",),
    "OwnerDiedError": ("ObjectLostError",),
    "RayCgraphCapacityExceeded": ("RaySystemError",),
    "RayChannelError": ("RaySystemError",),
    "RayChannelTimeoutError": ("RayChannelError", "TimeoutError"),
    "RayDirectTransportError": ("RaySystemError",),
    "RayError": ("Exception",),
    "ReferenceCountingAssertionError": ("ObjectLostError", "AssertionError"),
    "StreamingGeneratorReplayInconsistentError": ("RaySystemError",),
}

TASK_ID = TaskID(b"t" * TaskID.size())
ACTOR_ID = b"a" * 16

# Arguments, as programs written for Ray give them, and the attributes that they become.
MADE = {
    "ActorAlreadyExistsError": (("taken",), {"error_message": "taken"}),
    "ActorDiedError": ((), {"actor_id": None, "actor_init_failed": False, "preempted": False}),
    "ActorHandleNotFoundError": (("gone",), {"error_message": "gone"}),
    "ActorUnavailableError": (("away", ACTOR_ID), {"actor_id": ACTOR_ID.hex(), "preempted": False}),
    "ActorUnschedulableError": (("no node",), {"error_message": "no node"}),
    "AuthenticationError": (("no token",), {"message": "no token"}),
    "NodeDiedError": (("gone",), {"message": "gone"}),
    "ObjectFetchTimedOutError": (("ab", None, "x.py:3"), {"object_ref_hex": "ab", "call_site": "x.py:3"}),
    "ObjectFreedError": (("ab", None, ""), {"object_ref_hex": "ab"}),
    "ObjectLostError": (("ab", b"owner", ""), {"object_ref_hex": "ab", "owner_address": b"owner", "call_site": ""}),
    "ObjectReconstructionFailedError": (
        ("ab", "OBJECT_UNRECONSTRUCTABLE_PUT"),
        {"object_ref_hex": "ab", "reason": "OBJECT_UNRECONSTRUCTABLE_PUT", "owner_address": None, "call_site": ""},
    ),
    "OutOfMemoryError": (("no memory",), {"message": "no memory"}),
    "OwnerDiedError": (("ab", None, ""), {"object_ref_hex": "ab"}),
    "RayActorError": (
        ("ab", "why", True, True),
        {"actor_id": "ab", "error_msg": "why", "actor_init_failed": True, "preempted": True},
    ),
    "RayCgraphCapacityExceeded": (("full",), {"client_exc": "full"}),
    "RayChannelError": (("broken",), {"client_exc": "broken"}),
    "RayChannelTimeoutError": (("late",), {"client_exc": "late"}),
    "RayDirectTransportError": (("broken",), {"client_exc": "broken"}),
    "RaySystemError": (("broken", "trace"), {"client_exc": "broken", "traceback_str": "trace"}),
    "ReferenceCountingAssertionError": (("ab", None, ""), {"object_ref_hex": "ab"}),
    "RpcError": (("refused", 14), {"message": "refused", "rpc_code": 14}),
    "RuntimeEnvSetupError": (("no pip",), {"error_message": "no pip"}),
    "StreamingGeneratorReplayInconsistentError": (("fewer",), {"client_exc": "fewer"}),
    "TaskCancelledError": ((TASK_ID, "by hand"), {"task_id": TASK_ID, "error_message": "by hand"}),
    "TaskUnschedulableError": (("no node",), {"error_message": "no node"}),
    "UnserializableException": (("trace",), {"_original_stack_trace": "trace"}),
}
# These say what happened without being told.
WITHOUT_ARGUMENTS = [
    "ActorDiedError",
    "ActorPlacementGroupRemoved",
    "LocalRayletDiedError",
    "ObjectStoreFullError",
    "OutOfDiskError",
    "RuntimeEnvSetupError",
    "TaskCancelledError",
    "TaskPlacementGroupRemoved",
    "WorkerCrashedError",
]


@pytest.mark.parametrize("name", exceptions.__all__)
def test_every_error_has_its_place_in_the_tree(name):
    cls = getattr(exceptions, name)
    bases = [base for base in cls.__mro__ if base.__name__ in BASES.get(name, ("RayError",))]
    assert [base.__name__ for base in bases] == list(BASES.get(name, ("RayError",)))
    assert name == "RayError" or issubclass(cls, exceptions.RayError)
    assert cls.__doc__


@pytest.mark.parametrize("name", [name for name in exceptions.__all__ if name != "RayTaskError"])
def test_every_error_is_made_as_in_ray_and_survives_pickling(name):
    args, attributes = MADE.get(name, (("what happened",), {}))
    error = getattr(exceptions, name)(*args)
    for again in (error, pickle.loads(pickle.dumps(error)), exceptions.RayError.from_bytes(error.to_bytes())):
        assert type(again) is type(error)
        assert {attribute: getattr(again, attribute) for attribute in attributes} == attributes
        assert str(again) == str(error)
    for text in args:
        if isinstance(text, str) and text and not text.startswith("OBJECT") and name != "RayActorError":
            assert text in str(error)


@pytest.mark.parametrize("name", WITHOUT_ARGUMENTS)
def test_some_say_what_happened_by_themselves(name):
    assert str(getattr(exceptions, name)())


def test_errors_can_be_derived_from():
    class Own(exceptions.UserCodeException):
        def __init__(self, code, *, hint):
            super().__init__(f"code {code}")
            self.hint = hint

    again = cloudpickle.loads(cloudpickle.dumps(Own(3, hint="look")))
    assert (str(again), again.hint) == ("code 3", "look")


def test_what_cannot_be_loaded_is_said():
    assert isinstance(exceptions.RayError.from_bytes(b"nonsense"), exceptions.UnserializableException)
    data = exceptions.RaySystemError("broken").to_bytes().replace(b"RaySystemError", b"RaySystemErroX")
    assert isinstance(exceptions.RayError.from_bytes(data), exceptions.UnserializableException)


def test_the_list_of_types_is_complete_but_for_what_ray_leaves_out():
    assert set(exceptions.RAY_EXCEPTION_TYPES) <= {getattr(exceptions, name) for name in exceptions.__all__}


def test_an_actor_that_could_not_be_made_tells_its_cause():
    cause = RayTaskError("A.__init__", "ValueError: no", ValueError("no"), actor_id="ab")
    error = exceptions.ActorDiedError(cause)
    assert error.cause is cause
    assert error.actor_init_failed
    assert error.actor_id == "ab"
    assert "ValueError: no" in str(error)
    assert isinstance(exceptions.ActorDiedError.from_task_error(cause), exceptions.ActorDiedError)
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again.cause, RayTaskError)
    assert (again.actor_id, again.actor_init_failed) == ("ab", True)


def test_a_task_error_is_made_as_in_ray():
    error = RayTaskError("f", "Traceback", ValueError("x"), "ray::f", 5, "10.0.0.1", "A(1)", "ab")
    assert (error.proctitle, error.pid, error.ip, error.actor_repr) == ("ray::f", 5, "10.0.0.1", "A(1)")
    assert "ray::f() (pid=5, ip=10.0.0.1, actor_id=ab, repr=A(1))" in str(error)
    assert isinstance(error.make_dual_exception_instance(), ValueError)
    with pytest.raises(TypeError, match="Final"):
        RayTaskError("f", "Traceback", Final("x")).make_dual_exception_instance()


# Which test has what raises a class, in this file unless another is named.
RAISED = {
    "ActorAlreadyExistsError": "test_a_name_that_is_taken",
    "ActorDiedError": "test_the_end_of_an_actor",
    "ActorHandleNotFoundError": "test_a_handle_of_another_cluster",
    "ActorPlacementGroupRemoved": "test_placement_groups.test_nothing_starts_in_a_group_that_was_removed",
    "ActorUnavailableError": "test_an_actor_that_comes_back",
    "ActorUnschedulableError": (
        "test_scheduling_strategies.test_an_unknown_node_is_an_error_that_names_it_unless_another_will_do"
    ),
    "GetTimeoutError": "test_time_runs_out",
    "LocalRayletDiedError": "test_the_end_of_the_node",
    "NodeDiedError": "test_cluster.test_a_task_without_retries_says_which_node_was_killed",
    "ObjectLostError": "test_store_full.test_an_object_whose_copy_on_the_disk_is_gone_is_lost",
    "ObjectRefStreamEndOfStreamError": "test_generators.test_references_are_there_before_their_items",
    "ObjectStoreFullError": "test_store_full.test_memory_that_readers_keep_cannot_be_given_to_others",
    "OufOfBandObjectRefSerializationException": "test_out_of_band.test_out_of_band_can_be_forbidden",
    "OutOfDiskError": "test_store_full.test_a_generator_whose_items_find_no_room_ends_with_the_error",
    "OutOfMemoryError": "test_memory_that_runs_low",
    "OwnerDiedError": "test_the_end_of_an_owner",
    "PendingCallsLimitExceeded": "test_actors.test_no_more_calls_are_pending_than_the_limit",
    "RaySystemError": "test_concurrent_actors.test_an_unknown_group_is_refused",
    "RayTaskError": "test_a_task_that_raises_names_its_process",
    "ReferenceCountingAssertionError": "test_an_object_that_was_freed_behind_ones_back",
    "RuntimeEnvSetupError": (
        "test_runtime_env.test_a_package_that_cannot_be_installed_fails_tasks_and_actors_with_the_installers_words"
    ),
    "TaskCancelledError": "test_cancel.test_an_argument_that_was_cancelled_is_told_to_who_waits_for_it",
    "TaskPlacementGroupRemoved": "test_placement_groups.test_nothing_starts_in_a_group_that_was_removed",
    "TaskUnschedulableError": (
        "test_scheduling_strategies.test_an_unknown_node_is_an_error_that_names_it_unless_another_will_do"
    ),
    "UnserializableException": "test_an_exception_that_only_exists_there_arrives_as_text",
    "WorkerCrashedError": "test_failures.test_without_retries_the_first_crash_is_the_last",
}
# Why nothing raises the others here, which are there for programs that name them.
NOT_RAISED = {
    "AsyncioActorExit": "leads out of a call of an async actor that leaves, and reaches nobody",
    "AuthenticationError": "there are no tokens",
    "CrossLanguageError": "there is one language",
    "ObjectFetchTimedOutError": "who waits for an object of another node gets it, or hears that it is lost",
    "ObjectFreedError": "nothing frees objects that are referred to: Ray has no public function for it either",
    "ObjectReconstructionFailedError": "lost objects are not made again yet",
    "PlasmaObjectNotAvailable": "is for Ray's own processes: those who wait for an object get it, or its failure",
    "RayActorError": "the base of those that are raised",
    "RayCgraphCapacityExceeded": "there are no compiled graphs",
    "RayChannelError": "there are no compiled graphs",
    "RayChannelTimeoutError": "there are no compiled graphs",
    "RayDirectTransportError": "tensors travel through the object store",
    "RayError": "the base of those that are raised",
    "RpcError": "is for Ray's own processes: who cannot reach the control plane gets ConnectionError",
    "StreamingGeneratorReplayInconsistentError": "generators are not run again for lost items yet",
    "UserCodeException": "is raised by libraries only",
}


def test_every_class_has_a_test_that_shows_what_raises_it_or_a_reason():
    assert sorted([*RAISED, *NOT_RAISED]) == sorted(exceptions.__all__)
    here = pathlib.Path(__file__)
    for name, test in RAISED.items():
        module, _, function = test.rpartition(".")
        text = (here.with_name(f"{module}.py") if module else here).read_text()
        _, found, after = text.partition(f"\ndef {function}(")
        assert found, f"{test}, which is to show {name}, is not there"
        # It goes up to the next definition that is not inside of it.
        body = re.split(r"\n(?=\w|@)", after)[0]
        assert name in body, f"{test} does not speak of {name}"


# Raised by what happens


@ray.remote
class Victim:
    def __init__(self, fail=False):
        if fail:
            raise ValueError("not today")

    def die(self):
        os._exit(3)

    def fail(self):
        raise KeyError("lost")

    def pid(self):
        return os.getpid()

    def keep(self, box):
        self.kept = box

    def make(self):
        return [ray.put(np.zeros(200_000))]

    def read(self):
        return ray.get(self.kept[0], timeout=30)


def get(ref):
    return ray.get(ref, timeout=60)


def test_a_task_that_raises_names_its_process(cluster):
    @ray.remote
    def work():
        raise ValueError(os.getpid())

    with pytest.raises(ValueError) as caught:
        get(work.remote())
    error = caught.value
    assert isinstance(error, RayTaskError)
    assert error.pid == error.cause.args[0] != os.getpid()
    assert error.ip == ray.util.get_node_ip_address()
    assert error.function_name == "work"
    assert error.proctitle == "ray::work"
    assert "raise ValueError" in error.traceback_str
    assert "actor_id" not in str(error)


def test_an_actor_that_raises_is_named(cluster):
    victim = Victim.remote()
    with pytest.raises(KeyError, match="lost") as caught:
        get(victim.fail.remote())
    assert caught.value._actor_id == victim._actor_id.hex()
    assert f"actor_id={victim._actor_id.hex()}, repr=Victim" in str(caught.value)
    assert get(victim.pid.remote())


def test_an_error_that_is_passed_on_is_of_the_first_type(cluster):
    @ray.remote
    def inner():
        raise ZeroDivisionError("deep")

    @ray.remote
    def outer():
        return ray.get(inner.remote())

    @ray.remote
    def takes(value):
        return value

    for ref in (outer.remote(), takes.remote(inner.remote())):
        with pytest.raises(ZeroDivisionError, match="deep") as caught:
            get(ref)
        assert type(caught.value.cause) is ZeroDivisionError


def test_errors_of_this_module_that_user_code_raises_keep_their_attributes(cluster):
    @ray.remote
    def work():
        raise exceptions.RpcError("refused", 14)

    with pytest.raises(exceptions.RpcError, match="refused") as caught:
        get(work.remote())
    assert caught.value.rpc_code == 14

    @ray.remote
    def wrapped():
        try:
            raise ValueError("inside")
        except ValueError as error:
            raise exceptions.UserCodeException from error

    with pytest.raises(exceptions.UserCodeException, match="inside"):
        get(wrapped.remote())


def test_an_exception_that_only_exists_there_arrives_as_text(cluster):
    @ray.remote
    def work():
        kept = threading.Lock()

        class Local(Exception):
            lock = kept  # the class cannot be sent

        raise Local("only here")

    with pytest.raises(RayTaskError, match="Local") as caught:
        get(work.remote())
    assert isinstance(caught.value.cause, exceptions.UnserializableException)


def test_the_end_of_a_tasks_process(cluster):
    @ray.remote(max_retries=0)
    def die():
        os._exit(7)

    with pytest.raises(exceptions.WorkerCrashedError, match=r"die.*7"):
        get(die.remote())


def test_the_end_of_an_actor(cluster):
    victim = Victim.remote()
    with pytest.raises(exceptions.ActorDiedError) as caught:
        get(victim.die.remote())
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):
        assert error.actor_id == victim._actor_id.hex()
        assert not error.actor_init_failed
        assert not error.preempted
        assert "Victim" in str(error)
    killed = Victim.remote()
    get(killed.pid.remote())
    ray.kill(killed)
    with pytest.raises(exceptions.ActorDiedError, match="kill"):
        get(killed.pid.remote())


def test_an_actor_whose_constructor_raises(cluster):
    victim = Victim.remote(fail=True)
    with pytest.raises(exceptions.ActorDiedError, match="not today") as caught:
        get(victim.pid.remote())
    error = caught.value
    assert error.actor_init_failed
    assert error.actor_id == victim._actor_id.hex()
    assert isinstance(error.cause, ValueError)


def test_an_actor_that_comes_back(cluster):
    victim = Victim.options(max_restarts=1).remote()
    get(victim.pid.remote())
    with pytest.raises(exceptions.ActorUnavailableError) as caught:
        get(victim.die.remote())
    assert caught.value.actor_id == victim._actor_id.hex()
    assert "may have run or not" in str(caught.value)
    assert get(victim.pid.remote())


def test_a_name_that_is_taken(cluster):
    first = Victim.options(name="only").remote()
    with pytest.raises(exceptions.ActorAlreadyExistsError, match="only") as caught:
        Victim.options(name="only").remote()
    assert isinstance(caught.value, ValueError)
    ray.kill(first)


def test_a_handle_of_another_cluster(no_cluster):
    ray.init("local", num_cpus=1)
    victim = Victim.remote()
    get(victim.pid.remote())
    ray.shutdown()
    ray.init("local", num_cpus=1)
    with pytest.raises(exceptions.ActorHandleNotFoundError, match=victim._actor_id.hex()):
        ray.kill(victim)


def test_the_end_of_an_owner(cluster):
    victim, keeper = Victim.remote(), Victim.remote()
    box = get(victim.make.remote())
    get(keeper.keep.remote(box))
    pid = get(victim.pid.remote())
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"))
    with pytest.raises(exceptions.OwnerDiedError) as caught:
        get(keeper.read.remote())
    error = caught.value if not isinstance(caught.value, RayTaskError) else caught.value.cause
    assert error.object_ref_hex == box[0].hex()
    assert error.owner_address
    assert error.owner_address.hex() in str(error)


def test_an_object_that_was_freed_behind_ones_back(cluster):
    core = session.current_session().core
    owner = core.worker_id.binary() + core.node_id.binary()

    @ray.remote
    def look(binary):
        # A reference that nobody has counted.
        return ray.get(_internal._restore_ref(binary, owner), timeout=30)

    ref = ray.put("here")
    assert get(look.remote(ref.binary())) == "here"
    binary, digits = ref.binary(), ref.hex()
    del ref
    with pytest.raises(exceptions.ReferenceCountingAssertionError, match="freed") as caught:
        get(look.remote(binary))
    assert isinstance(caught.value, exceptions.ObjectLostError)
    assert isinstance(caught.value, AssertionError)
    assert caught.value.object_ref_hex == digits


def test_time_runs_out(cluster):
    @ray.remote
    def never():
        threading.Event().wait()

    ref = never.remote()
    with pytest.raises(exceptions.GetTimeoutError) as caught:
        ray.get(ref, timeout=0.01)
    assert isinstance(caught.value, TimeoutError)
    ray.cancel(ref, force=True)
    with pytest.raises(exceptions.TaskCancelledError) as cancelled:
        get(ref)
    assert cancelled.value.task_id == ref.task_id()
    assert ref.task_id().hex() in str(cancelled.value)


def test_a_store_that_is_full(no_cluster):
    ray.init("local", num_cpus=1, object_store_memory=80 * 1024 * 1024)
    with pytest.raises(exceptions.ObjectStoreFullError, match="bytes"):
        ray.put(np.zeros(100 * 1024 * 1024 // 8))

    @ray.remote
    def too_much():
        return np.zeros(100 * 1024 * 1024 // 8)

    with pytest.raises(exceptions.ObjectStoreFullError, match="bytes"):
        get(too_much.remote())


@pytest.fixture
def little_memory(no_cluster, monkeypatch):
    """A node that finds that memory runs low whatever is in use."""
    monkeypatch.setenv("RAY_RUST_RAYLET_MEMORY_USAGE_THRESHOLD", "0.000001")
    monkeypatch.setenv("RAY_RUST_RAYLET_MEMORY_CHECK_INTERVAL_MS", "20")
    ray.init("local", num_cpus=1)


def test_memory_that_runs_low(little_memory):
    @ray.remote(max_retries=1)
    def hold():
        threading.Event().wait()

    with pytest.raises(exceptions.OutOfMemoryError, match=r"hold.*ran low on memory.*retries") as caught:
        get(hold.remote())
    assert "MiB" in caught.value.message


def test_memory_that_runs_low_ends_actors_too(little_memory):
    victim = Victim.remote()
    with pytest.raises(exceptions.OutOfMemoryError, match=r"Victim.*ran low on memory") as caught:
        while True:
            get(victim.pid.remote())
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):
        assert isinstance(error, exceptions.ActorDiedError)
        assert error.actor_id == victim._actor_id.hex()
        assert error.message == str(error)


def test_an_actor_that_memory_pressure_has_ended_is_made_again(no_cluster, monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_RUST_RAYLET_MEMORY_USAGE_THRESHOLD", "0.000001")
    monkeypatch.setenv("RAY_RUST_RAYLET_MEMORY_CHECK_INTERVAL_MS", "20")
    ray.init("local", num_cpus=1)
    made = tmp_path / "made"

    @ray.remote(max_restarts=2)
    class Counted:
        def __init__(self):
            with open(made, "a") as file:
                file.write("x")

        def ping(self):
            return "pong"

    counted = Counted.remote()

    def is_over():
        try:
            get(counted.ping.remote())
        except exceptions.OutOfMemoryError:
            return True
        except exceptions.ActorUnavailableError:
            return False
        return False

    wait_until(is_over)
    # Each may end before its constructor has run.
    assert len(made.read_text() if made.exists() else "") <= 3
    wait_until(lambda: state.get_actor(counted._actor_id.hex()).num_restarts == 2)


def test_the_end_of_the_node(no_cluster):
    context = ray.init("local", num_cpus=1)
    with open(os.path.join(context["session_dir"], "node.json")) as file:
        pid = json.load(file)["pid"]
    ref = ray.put(1)
    os.kill(pid, signal.SIGKILL)

    def use():
        try:
            ray.cluster_resources()
        except exceptions.LocalRayletDiedError as error:
            return error
        return None

    assert str(wait_until(use))
    with pytest.raises(exceptions.LocalRayletDiedError):
        ray.get(ref)
