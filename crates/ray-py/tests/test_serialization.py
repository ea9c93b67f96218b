"""Values to bytes and back, and what is said of values that cannot be pickled."""

import subprocess
import sys
import threading

import cloudpickle
import numpy as np
import pytest

from ray_rust._private import serialization
from ray_rust._private.serialization import NotPicklableError, dumps, dumps_function, loads


class Holder:
    def __init__(self, value):
        self.value = value


class SlottedHolder:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


def there_and_back(value):
    data, buffers = dumps(value)
    return loads(data, buffers)


@pytest.mark.parametrize("value", [None, 1, "text", b"bytes", [1, {"a": (2, 3)}], {1, 2}, 1.5, 2**100, ...], ids=repr)
def test_values_come_back(value):
    assert there_and_back(value) == value


def test_large_buffers_are_not_copied_into_the_pickle():
    array = np.arange(100_000, dtype=np.float64)
    data, buffers = dumps({"array": array})
    assert len(data) < 1000
    assert [memoryview(buffer).nbytes for buffer in buffers] == [array.nbytes]
    again = loads(data, buffers)["array"]
    assert np.shares_memory(again, array)


def test_functions_without_a_module_are_sent_by_value():
    factor = 3
    assert there_and_back(lambda x: x * factor)(2) == 6


def test_buffers_of_a_refused_attempt_are_not_kept():
    array = np.zeros(10)
    data, buffers = dumps((array, lambda: None))
    assert len(buffers) == 1
    again, _ = loads(data, buffers)
    assert again.shape == (10,)


def test_what_a_script_pickled_loads_in_another_process(tmp_path):
    first = "from ray_rust._private.serialization import dumps\nclass Local:\n    x = 5\nopen('p', 'wb').write(dumps([Local()])[0])"
    second = "from ray_rust._private.serialization import loads\nassert loads(open('p', 'rb').read())[0].x == 5"
    for source in (first, second):
        subprocess.run([sys.executable, "-c", source], cwd=tmp_path, check=True)


def test_modules_registered_by_value_are_sent_by_value():
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    try:
        data, _ = dumps(Holder(1))
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    assert b"__init__" in data


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Holder(threading.Lock()), ["'value' attribute of Holder"]),
        (SlottedHolder(threading.Lock()), ["'value' attribute of SlottedHolder"]),
        ([1, {"key": Holder(threading.Lock())}], ["item 1 of a list", "key 'key'", "'value' attribute of Holder"]),
        ((threading.Lock(),), ["item 0 of a tuple"]),
    ],
    ids=["attribute", "slot", "nested", "tuple"],
)
def test_the_culprit_in_a_value_is_named(value, words):
    with pytest.raises(TypeError, match=r"_thread\.lock") as caught:
        dumps(value)
    for word in words:
        assert word in str(caught.value)


def test_the_culprit_of_a_function_is_named():
    lock = threading.Lock()

    def closes_over():
        return lock

    with pytest.raises(NotPicklableError, match=r"'work'.*'lock'.*closes over"):
        dumps_function(closes_over, "the remote function 'work'")


def test_the_culprit_among_globals_is_named(tmp_path):
    source = (
        "import threading\nfrom ray_rust._private.serialization import dumps_function\n"
        "lock = threading.Lock()\ndef f():\n    return lock\n"
        "try:\n    dumps_function(f, 'f')\nexcept TypeError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert "global variable 'lock'" in done.stdout


def test_a_value_that_contains_itself_is_no_endless_search():
    loop = [threading.Lock()]
    loop.insert(0, loop)
    with pytest.raises(TypeError, match="item 1 of a list"):
        dumps(loop)


def test_what_the_users_own_code_says_is_passed_on():
    class Refuses:
        def __reduce__(self):
            raise RuntimeError("never pickle me")

    with pytest.raises(TypeError, match="RuntimeError: never pickle me"):
        serialization.dumps(Refuses())
