"""What users say about how their values are pickled, and why a value cannot be."""

import io
import pickle
import sys
import threading

import pytest

import ray_rust as ray
from ray_rust import cloudpickle
from ray_rust._private.serialization import dumps, loads
from ray_rust._private.serialization_context import get_serialization_context
from ray_rust.util import deregister_serializer, inspect_serializability, register_serializer
from ray_rust.util.serialization import StandaloneSerializationContext


class Locked:
    def __init__(self, x):
        self.x = x
        self.lock = threading.Lock()


class Reduced:
    """Says itself how it is pickled."""

    def __init__(self, x):
        self.x = x

    def __reduce__(self):
        return (Reduced, (self.x + 1,))


@pytest.fixture
def locked():
    register_serializer(Locked, serializer=lambda value: value.x, deserializer=Locked)
    yield
    deregister_serializer(Locked)


def test_a_registered_class_travels(cluster, locked):
    @ray.remote
    def look(value, nested):
        return [value.x, nested["in"].x]

    assert ray.get(look.remote(Locked(1), {"in": Locked(2)})) == [1, 2]
    assert ray.get(ray.put(Locked(7))).x == 7


def test_a_function_that_refers_to_an_instance_travels(cluster, locked):
    value = Locked(5)

    @ray.remote
    def look():
        return value.x

    assert ray.get(look.remote()) == 5


def test_workers_register_for_themselves(cluster):
    @ray.remote
    def make():
        register_serializer(Locked, serializer=lambda value: value.x, deserializer=Locked)
        return Locked(4)

    assert ray.get(make.remote()).x == 4


def test_what_is_deregistered_is_refused_again():
    register_serializer(Locked, serializer=lambda value: value.x, deserializer=Locked)
    deregister_serializer(Locked)
    deregister_serializer(Locked)
    with pytest.raises(TypeError, match=r"_thread\.lock"):
        dumps(Locked(1))


def test_it_is_for_the_class_alone(locked):
    class Derived(Locked):
        pass

    with pytest.raises(TypeError, match=r"_thread\.lock"):
        dumps(Derived(1))


def test_a_registered_way_goes_before_the_classes_own():
    assert loads(*dumps(Reduced(1))).x == 2
    register_serializer(Reduced, serializer=lambda value: value.x, deserializer=Reduced)
    try:
        assert loads(*dumps(Reduced(1))).x == 1
        assert pickle.loads(cloudpickle.dumps([Reduced(1), lambda: 0]))[0].x == 1
    finally:
        deregister_serializer(Reduced)


def test_nonsense_is_refused_at_once():
    with pytest.raises(TypeError, match="serializer"):
        register_serializer(Locked, serializer=1, deserializer=Locked)
    with pytest.raises(TypeError, match="class"):
        register_serializer("Locked", serializer=repr, deserializer=eval)


@pytest.mark.parametrize("context", [StandaloneSerializationContext(), get_serialization_context()])
def test_contexts_take_reducers(context):
    context._register_cloudpickle_reducer(Locked, lambda value: (Locked, (value.x + 10,)))
    try:
        assert loads(*dumps(Locked(1))).x == 11
    finally:
        context._unregister_cloudpickle_reducer(Locked)


def test_a_context_tells_how_large_a_value_is():
    serialized = get_serialization_context().serialize(bytearray(1000))
    assert 1000 < serialized.total_bytes < 1100
    assert len(serialized.to_bytes()) == serialized.total_bytes
    numpy = pytest.importorskip("numpy")
    assert get_serialization_context().serialize(numpy.zeros(1000)).total_bytes > 8000


def test_copyreg_counts(cluster):
    import copyreg

    copyreg.pickle(Locked, lambda value: (Locked, (value.x,)))
    try:
        assert ray.get(ray.put(Locked(8))).x == 8
        register_serializer(Reduced, serializer=lambda value: value.x, deserializer=Reduced)
        assert [value.x for value in ray.get(ray.put([Locked(9), Reduced(1)]))] == [9, 1]
    finally:
        del copyreg.dispatch_table[Locked]
        deregister_serializer(Reduced)


# cloudpickle


def test_the_facade_pickles_what_only_cloudpickle_can():
    factor = 3
    data = cloudpickle.dumps(lambda x: x * factor)
    assert cloudpickle.loads(data)(2) == 6
    file = io.BytesIO()
    cloudpickle.dump({"f": lambda: 1}, file)
    file.seek(0)
    assert cloudpickle.load(file)["f"]() == 1
    assert issubclass(cloudpickle.CloudPickler, pickle.Pickler)
    assert cloudpickle.cloudpickle.CloudPickler is cloudpickle.CloudPickler
    assert cloudpickle.cloudpickle_fast.CloudPickler is cloudpickle.CloudPickler


def test_buffers_go_out_of_band():
    numpy = pytest.importorskip("numpy")
    buffers = []
    array = numpy.arange(1000)
    data = cloudpickle.dumps(array, protocol=5, buffer_callback=buffers.append)
    assert len(data) < 500
    assert numpy.shares_memory(pickle.loads(data, buffers=buffers), array)


def test_reducers_are_added_as_libraries_do_it():
    cloudpickle.CloudPickler.dispatch[Locked] = lambda value: (Locked, (value.x,))
    try:
        assert pickle.loads(cloudpickle.dumps(Locked(6))).x == 6
        assert loads(*dumps(Locked(6))).x == 6
    finally:
        cloudpickle.CloudPickler.dispatch.pop(Locked)


def test_modules_by_value():
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    try:
        assert __name__ in cloudpickle.list_registry_pickle_by_value()
        assert b"__init__" in cloudpickle.dumps(Reduced)
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def test_the_debug_form_says_where_it_is(capsys, monkeypatch):
    monkeypatch.delenv("RAY_PICKLE_VERBOSE_DEBUG", raising=False)
    assert pickle.loads(cloudpickle.dumps_debug([1])) == [1]
    with pytest.raises(TypeError, match="'lock' attribute of Locked"):
        cloudpickle.dumps_debug(Locked(1))
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("RAY_PICKLE_VERBOSE_DEBUG", "1")
    with pytest.raises(TypeError, match="'lock' attribute of Locked"):
        cloudpickle.dump_debug(Locked(1), io.BytesIO())
    assert "lock" in capsys.readouterr().out


# inspect_serializability


def test_what_can_be_sent_has_no_failures(capsys):
    assert inspect_serializability([1, lambda: 2]) == (True, set())
    assert "It can." in capsys.readouterr().out


def test_the_part_is_found_with_the_way_to_it():
    holder = Locked(1)
    out = io.StringIO()
    serializable, failures = inspect_serializability(holder, name="holder", print_file=out)
    assert not serializable
    [failure] = failures
    assert failure.obj is holder.lock
    assert failure.parent is holder
    assert failure.path == ("holder", "lock")
    assert "FailTuple(lock [path=holder -> lock" in repr(failure)
    assert "lock" in out.getvalue()


def test_variables_of_functions_are_looked_at(capsys):
    lock = threading.Lock()

    def uses_lock():
        return lock

    serializable, failures = inspect_serializability(uses_lock)
    assert not serializable
    assert [(failure.obj, failure.parent) for failure in failures] == [(lock, uses_lock)]


def test_several_parts_are_all_found(capsys):
    locks = [threading.Lock(), 1, threading.Lock()]
    _, failures = inspect_serializability(locks)
    assert {failure.path for failure in failures} == {("[0]",), ("[2]",)}


def test_the_depth_is_a_limit(capsys):
    nested = [[[threading.Lock()]]]
    _, [failure] = inspect_serializability(nested, depth=1)
    assert failure.obj is nested[0]
    _, [failure] = inspect_serializability(nested, depth=0)
    assert (failure.obj, failure.parent) == (nested, None)
