"""Errors of tasks, as they arrive in another process."""

import pickle
import sys
import threading

import pytest

from ray_rust import exceptions
from ray_rust._private import serialization
from ray_rust.exceptions import RayTaskError


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


@pytest.mark.parametrize("name", exceptions.__all__)
def test_every_error_is_made_with_a_message_and_survives_pickling(name):
    cls = getattr(exceptions, name)
    assert issubclass(cls, exceptions.RayError)
    if cls is RayTaskError:
        return
    error = cls("what happened")
    assert "what happened" in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls
    assert str(again) == str(error)


def test_the_tree_is_that_of_ray():
    assert issubclass(exceptions.GetTimeoutError, TimeoutError)
    assert issubclass(exceptions.ActorDiedError, exceptions.RayActorError)
    assert issubclass(exceptions.ActorUnavailableError, exceptions.RayActorError)
    assert issubclass(exceptions.OwnerDiedError, exceptions.ObjectLostError)
    assert issubclass(exceptions.ActorAlreadyExistsError, ValueError)


def test_an_actor_that_could_not_be_made_tells_its_cause():
    cause = RayTaskError("A.__init__", "ValueError: no", ValueError("no"))
    error = exceptions.ActorDiedError(cause)
    assert error.cause is cause
    assert error.actor_init_failed
    assert "ValueError: no" in str(error)
    assert isinstance(pickle.loads(pickle.dumps(error)).cause, RayTaskError)
