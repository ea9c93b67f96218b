"""What happens when there is no room: in shared memory, because readers keep it, and on the disk to spill to."""

import pathlib
import shutil
import subprocess

import numpy as np
import pytest

import ray_rust
from conftest import wait_until
from ray_rust import exceptions

MB = 1 << 20
CAPACITY = 80 * MB


def array(megabytes, number=0):
    return np.full(megabytes * MB, number, dtype=np.uint8)


@ray_rust.remote
def make(megabytes, number):
    return array(megabytes, number)


def is_refused(error, *words):
    """Whether an error says what happened and what to do."""
    text = str(error)
    assert all(word in text for word in words), text
    return True


def put_until_refused(error):
    refs = []
    try:
        while len(refs) < 100:
            refs.append(ray_rust.put(array(10, len(refs))))
    except error as raised:
        # Not the error itself: its traceback would keep the references.
        return refs, str(raised)
    raise AssertionError(f"nothing was refused: {len(refs)} arrays were taken")


def assert_room_again():
    """Space that was freed is used again, for `put` and for results; it may take a moment to be free."""

    def stored():
        try:
            return ray_rust.get([ray_rust.put(array(20, 7)), make.remote(20, 8)], timeout=60)
        except (exceptions.ObjectStoreFullError, exceptions.OutOfDiskError):
            return None

    first, second = wait_until(stored)
    assert first[0] == 7
    assert second[-1] == 8


def test_what_is_larger_than_the_store_is_refused_at_once(no_cluster):
    ray_rust.init("local", num_cpus=1, object_store_memory=CAPACITY)
    with pytest.raises(exceptions.ObjectStoreFullError) as caught:
        ray_rust.put(array(100))
    assert is_refused(caught.value, "object_store_memory", str(CAPACITY))
    with pytest.raises(exceptions.ObjectStoreFullError) as caught:
        ray_rust.get(make.remote(100, 1), timeout=60)
    assert is_refused(caught.value, "object_store_memory", str(CAPACITY))
    assert_room_again()


def test_memory_that_readers_keep_cannot_be_given_to_others(no_cluster):
    ray_rust.init("local", num_cpus=1, object_store_memory=CAPACITY)
    kept = [ray_rust.get(ray_rust.put(array(20, number))) for number in range(3)]
    with pytest.raises(exceptions.ObjectStoreFullError) as caught:
        ray_rust.put(array(30))
    assert is_refused(caught.value, "object_store_memory", " uses ", "drop")
    with pytest.raises(exceptions.ObjectStoreFullError) as caught:
        ray_rust.get(make.remote(30, 1), timeout=60)
    assert is_refused(caught.value, "object_store_memory", " uses ")
    assert [int(value[0]) for value in kept] == [0, 1, 2]
    del kept
    assert_room_again()


@pytest.fixture
def small_disk(own_folder, tmp_path):
    """A file system of 24 MiB, if this user may mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = shutil.which("mount")
    mounted = mount and subprocess.run([mount, "-t", "tmpfs", "-o", "size=24m", "tmpfs", path], check=False)
    if not mounted or mounted.returncode != 0:
        pytest.skip("no file system can be mounted here")
    yield path
    ray_rust.shutdown()
    subprocess.run(["umount", "-l", path], check=True)


def first_and_last(ref):
    try:
        value = ray_rust.get(ref, timeout=60)
    except exceptions.OutOfDiskError:
        return None  # what makes room for it is on its way to the disk, or from it
    return int(value[0]), int(value[-1])


def fill_and_empty(place):
    refs, error = put_until_refused(exceptions.OutOfDiskError)
    # What fits in memory and on the disk, not exactly: other files are there too.
    assert 8 <= len(refs) <= 11
    assert is_refused(error, place, "object_spilling_directory")
    with pytest.raises(exceptions.OutOfDiskError) as caught:
        ray_rust.get(make.remote(20, 1), timeout=60)
    assert is_refused(caught.value, place, "object_spilling_directory")
    # Nothing that was taken is lost by it, wherever it is: with room to bring it back from the disk, all is there.
    del refs[-2:]
    for number, ref in enumerate(refs):
        assert wait_until(lambda ref=ref: first_and_last(ref)) == (number, number)
    del refs, ref
    assert_room_again()


def test_a_full_disk_is_told_and_used_again_when_it_has_room(small_disk):
    ray_rust.init("local", num_cpus=1, object_store_memory=CAPACITY, object_spilling_directory=str(small_disk))
    fill_and_empty(str(small_disk))


def test_a_limit_of_what_may_be_spilled_is_like_a_full_disk(own_folder, monkeypatch):
    monkeypatch.setenv("RAY_RUST_OBJECT_STORE_MAX_SPILL_BYTES", str(24 * MB))
    ray_rust.init("local", num_cpus=1, object_store_memory=CAPACITY)
    fill_and_empty("spill")


def test_a_generator_whose_items_find_no_room_ends_with_the_error(own_folder, monkeypatch):
    monkeypatch.setenv("RAY_RUST_OBJECT_STORE_MAX_SPILL_BYTES", str(10 * MB))
    ray_rust.init("local", num_cpus=1, object_store_memory=CAPACITY)

    @ray_rust.remote(max_retries=0)
    def items():
        for number in range(20):
            yield array(20, number)

    *refs, last = list(items.remote())
    with pytest.raises(exceptions.OutOfDiskError):
        ray_rust.get(last, timeout=60)
    assert [int(ray_rust.get(ref, timeout=60)[0]) for ref in refs] == list(range(len(refs)))


def test_nothing_is_left_on_the_disk(own_folder):
    ray_rust.init("local", num_cpus=1, object_store_memory=CAPACITY)
    refs = [ray_rust.put(array(20, number)) for number in range(8)]

    wait_until(lambda: spilled(own_folder))
    del refs
    wait_until(lambda: not spilled(own_folder))
    assert_room_again()


def test_an_object_whose_copy_on_the_disk_is_gone_is_lost(own_folder):
    ray_rust.init("local", num_cpus=1, object_store_memory=CAPACITY)
    refs = [ray_rust.put(array(20, number)) for number in range(8)]
    wait_until(lambda: spilled(own_folder))
    for path in spilled(own_folder):
        path.unlink()
    ends = []
    for ref in refs:
        try:
            ends.append(int(ray_rust.get(ref, timeout=60)[0]))
        except exceptions.ObjectLostError as error:
            assert error.object_ref_hex == ref.hex()
            ends.append("lost")
    assert "lost" in ends
    assert [end for end in ends if end != "lost"] == [number for number, end in enumerate(ends) if end != "lost"]
    assert len(ends) > ends.count("lost")


def spilled(folder):
    """The files of spilled objects."""
    folders = [path for path in pathlib.Path(folder).rglob("spilled*") if path.is_dir()]
    return [path for folder in folders for path in folder.rglob("*") if path.is_file()]
