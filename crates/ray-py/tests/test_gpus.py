"""Graphics processors: who gets which, and what their processes see. None has to be there."""

import os
import subprocess
import sys

import pytest

import ray_rust
from conftest import wait_until
from ray_rust._private import gpus


@pytest.fixture
def four_gpus(own_folder, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    ray_rust.init("local", num_cpus=8, num_gpus=4)


def seen():
    return os.environ.get("CUDA_VISIBLE_DEVICES"), ray_rust.get_gpu_ids()


@ray_rust.remote
class Seer:
    def seen(self):
        return seen()


def test_tasks_and_actors_get_devices_of_their_own(four_gpus):
    seers = [Seer.options(num_gpus=1).remote() for _ in range(2)]
    answers = ray_rust.get([seer.seen.remote() for seer in seers])
    task = ray_rust.get(ray_rust.remote(seen).options(num_gpus=2).remote())
    devices = [device for _, ids in [*answers, task] for device in ids]
    assert sorted(devices) == [0, 1, 2, 3]
    for variable, ids in [*answers, task]:
        assert variable == ",".join(map(str, ids))


def test_who_asks_for_none_sees_what_is_there_anyway(four_gpus):
    assert ray_rust.get(ray_rust.remote(seen).remote()) == (None, [])
    assert ray_rust.get_gpu_ids() == []


def test_parts_of_a_device_are_shared_and_exact(four_gpus):
    seers = [Seer.options(num_gpus=0.25, num_cpus=0).remote() for _ in range(4)]
    assert [ids for _, ids in ray_rust.get([seer.seen.remote() for seer in seers])] == [[0]] * 4
    wait_until(lambda: ray_rust.available_resources()["GPU"] == 3)
    more = Seer.options(num_gpus=0.25, num_cpus=0).remote()
    assert ray_rust.get(more.seen.remote())[1] == [1]
    whole = Seer.options(num_gpus=2, num_cpus=0).remote()
    assert sorted(ray_rust.get(whole.seen.remote())[1]) == [2, 3]
    # Three quarters are free, but on a device that is shared: it takes the end of `more` to have a whole one.
    another = Seer.options(num_gpus=1, num_cpus=0).remote()
    ref = another.seen.remote()
    assert ray_rust.wait([ref], timeout=0.5)[0] == []
    ray_rust.kill(more)
    assert ray_rust.get(ref)[1] == [1]


def test_a_worker_forgets_the_devices_of_the_task_before(own_folder):
    ray_rust.init("local", num_cpus=1, num_gpus=1)

    def look():
        return os.getpid(), seen()

    looking = ray_rust.remote(look)
    with_gpu = ray_rust.get(looking.options(num_gpus=1).remote())
    without = ray_rust.get(looking.remote())
    again = ray_rust.get(looking.options(num_gpus=1).remote())
    assert with_gpu[0] == without[0] == again[0]
    assert with_gpu[1] == again[1] == ("0", [0])
    assert without[1] == (None, [])


def test_a_restarted_actor_gets_devices_again(four_gpus):
    @ray_rust.remote(num_gpus=2, max_restarts=1, max_task_retries=1)
    class Fragile:
        def seen(self):
            return seen()

        def end(self):
            if not ray_rust.get_runtime_context().was_current_actor_reconstructed:
                os._exit(1)

    fragile = Fragile.remote()
    before = ray_rust.get(fragile.seen.remote())
    ray_rust.get(fragile.end.remote())
    after = ray_rust.get(fragile.seen.remote())
    assert len(before[1]) == len(after[1]) == 2
    wait_until(lambda: ray_rust.available_resources()["GPU"] == 2)


def test_devices_that_the_node_may_use_keep_their_names(own_folder, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-abc")
    with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES"):
        ray_rust.init("local", num_gpus=3)
    ray_rust.init("local", num_cpus=2, num_gpus=2)
    whole = ray_rust.get(ray_rust.remote(seen).options(num_gpus=2).remote())
    assert whole == ("5,GPU-abc", ["5", "GPU-abc"])
    assert ray_rust.get(ray_rust.remote(seen).remote()) == ("5,GPU-abc", [])

    @ray_rust.remote(num_gpus=1)
    def kinds():
        return ray_rust.get_runtime_context().get_accelerator_ids()

    found = ray_rust.get(kinds.remote())
    assert len(found["GPU"]) == 1
    assert found["TPU"] == found["neuron_cores"] == []


@pytest.mark.parametrize(
    ("variable", "gpus_asked", "expected"),
    [
        ("RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES", 1, (None, [0])),
        ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", 0, ("", [])),
    ],
)
def test_variables_change_what_is_set(own_folder, monkeypatch, variable, gpus_asked, expected):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv(variable, "1")
    ray_rust.init("local", num_cpus=1, num_gpus=1)
    first = ray_rust.get(ray_rust.remote(seen).options(num_gpus=1).remote())
    assert first[1] == [0]
    assert ray_rust.get(ray_rust.remote(seen).options(num_gpus=gpus_asked).remote()) == expected


def test_types_are_abbreviated_as_in_ray():
    names = {
        "Tesla V100-SXM2-16GB": "V100",
        "NVIDIA A100-SXM4-40GB": "A100",
        "NVIDIA H100 80GB HBM3": "H100",
        "NVIDIA RTX PRO 6000 Blackwell Server Edition": "RTX-PRO-6000",
        "NVIDIA GeForce RTX 5090": "GeForce-RTX-5090",
        "": None,
    }
    assert {name: gpus.accelerator_type(name) for name in names} == names


def test_devices_are_found_as_the_vendor_lists_them(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        listed = []
    count, kind = gpus.found()
    assert count == len([line for line in listed if line.startswith("GPU ")])
    assert (kind is not None) == (count > 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus.found() == (0, None)


class FakeNvml:
    """Three devices, as the library would tell."""

    def __init__(self):
        self.ended = False

    def nvmlDeviceGetCount_v2(self, count):
        count._obj.value = 3
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index, device):
        return 0

    def nvmlDeviceGetName(self, device, name, size):
        name.value = b"NVIDIA H100 80GB HBM3"
        return 0

    def nvmlShutdown(self):
        self.ended = True


def test_the_library_is_asked_and_left(monkeypatch, tmp_path):
    library = FakeNvml()
    driver = tmp_path / "nvidiactl"
    driver.touch()
    monkeypatch.setattr(gpus, "_DRIVER_FILES", (str(driver),))
    monkeypatch.setattr(gpus, "_load_nvml", lambda: library)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus.found() == (3, "H100")
    assert library.ended
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2")
    assert gpus.found() == (2, "H100")


def test_nothing_is_loaded_where_no_driver_is(monkeypatch):
    monkeypatch.setattr(gpus, "_DRIVER_FILES", ("/nowhere",))
    done = subprocess.run(
        [sys.executable, "-c", "import ray_rust._private.gpus, sys; print('ctypes' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"
    assert gpus.found() == (0, None)
