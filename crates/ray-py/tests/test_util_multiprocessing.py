"""A pool of actors with the interface of multiprocessing.Pool, and joblib on top of it."""

import multiprocessing
import os
import queue
import threading

import pytest

import ray_rust as ray
from conftest import DEADLINE_S, wait_until
from ray_rust.exceptions import RayActorError
from ray_rust.util.multiprocessing import Pool
from ray_rust.util.multiprocessing.pool import PoolTaskError


@pytest.fixture
def pool(cluster):
    with Pool(processes=3) as pool:
        yield pool


class Picky(Exception):
    """Does not load: its constructor takes other arguments than it hands on."""

    def __init__(self, code, reason):
        super().__init__(f"{code}: {reason}")
        self.code = code


def square(x):
    return x * x


def add(x, y=0, *, z=0):
    return x + y + z


def fail_at(x, bad=(3,)):
    if x in bad:
        raise ValueError(f"bad {x}")
    return x


def pid(_=None):
    return os.getpid()


def wait_for_file(path):
    while not os.path.exists(path):
        pass
    return "seen"


def test_apply(pool):
    assert pool.apply(square, (3,)) == 9
    assert pool.apply(add, (1,), {"z": 5}) == 6
    assert pool.apply(pid) != os.getpid()
    assert pool.apply_async(add, args=[1, 2]).get(timeout=DEADLINE_S) == 3


def test_calls_go_round(pool):
    assert len({pool.apply(pid) for _ in range(6)}) == 3


@pytest.mark.parametrize("chunksize", [None, 1, 7, 1000])
def test_map(pool, chunksize):
    assert pool.map(square, range(50), chunksize=chunksize) == [x * x for x in range(50)]
    assert pool.map(square, iter(range(5)), chunksize) == [0, 1, 4, 9, 16]
    assert pool.map_async(square, range(5), chunksize).get() == [0, 1, 4, 9, 16]
    assert pool.starmap(add, [(x, 1) for x in range(10)], chunksize=chunksize) == list(range(1, 11))
    assert pool.starmap_async(add, [(x, 1) for x in range(10)]).get() == list(range(1, 11))
    assert pool.map(square, []) == []


@pytest.mark.parametrize("chunksize", [None, 1, 4, 1000])
def test_imap(pool, chunksize):
    assert list(pool.imap(square, range(30), chunksize)) == [x * x for x in range(30)]
    assert sorted(pool.imap_unordered(square, range(30), chunksize)) == [x * x for x in range(30)]
    assert list(pool.imap(square, iter(range(5)), chunksize)) == [0, 1, 4, 9, 16]
    assert list(pool.imap(square, [], chunksize)) == []


def test_imap_takes_arguments_only_as_it_goes(pool):
    taken = []

    def endless():
        while True:
            taken.append(len(taken))
            yield len(taken)

    results = pool.imap(square, endless())
    assert [next(results) for _ in range(5)] == [1, 4, 9, 16, 25]
    assert len(taken) <= 5 + 3 * 4


def test_imap_gives_errors_in_the_place_of_results(pool):
    ordered = list(pool.imap(fail_at, range(6), chunksize=2))
    assert [result for result in ordered if not isinstance(result, PoolTaskError)] == [0, 1, 2, 4, 5]
    assert isinstance(ordered[3].underlying, ValueError)
    assert "bad 3" in str(ordered[3])
    assert "fail_at" in str(ordered[3])
    assert sum(isinstance(one, PoolTaskError) for one in pool.imap_unordered(fail_at, range(6))) == 1


def test_time_runs_out(pool, tmp_path):
    path = tmp_path / "gate"
    waiting = pool.apply_async(wait_for_file, (str(path),))
    ordered = pool.imap(wait_for_file, [str(path)])
    for wait in (waiting.get, ordered.next, pool.imap_unordered(wait_for_file, [str(path)]).next):
        with pytest.raises(multiprocessing.TimeoutError):
            wait(timeout=0)
    waiting.wait(timeout=0)
    assert not waiting.ready()
    with pytest.raises(ValueError, match="not ready"):
        waiting.successful()
    path.touch()
    assert waiting.get(timeout=DEADLINE_S) == "seen"
    assert waiting.ready()
    assert waiting.successful()
    assert ordered.next(timeout=DEADLINE_S) == "seen"


def test_the_users_exception_is_raised(pool):
    with pytest.raises(ValueError, match="bad 3") as caught:
        pool.apply(fail_at, (3,))
    assert "fail_at" in str(caught.value.__cause__)
    result = pool.map_async(fail_at, range(10))
    with pytest.raises(ValueError, match="bad 3"):
        result.get()
    assert not result.successful()

    def refuse(x):
        raise Picky(7, "full")

    with pytest.raises(Picky) as caught:
        pool.map(refuse, [1])
    assert caught.value.code == 7


def test_callbacks(pool):
    told = queue.Queue()
    result = pool.map_async(square, range(4), callback=told.put, error_callback=told.put)
    assert result.get() == [0, 1, 4, 9]
    assert told.get(timeout=DEADLINE_S) == [0, 1, 4, 9]
    pool.apply_async(square, (5,), callback=told.put)
    assert told.get(timeout=DEADLINE_S) == 25
    failed = pool.map_async(fail_at, range(8), callback=told.put, error_callback=told.put)
    failed.wait()
    assert isinstance(told.get(timeout=DEADLINE_S), ValueError)
    pool.starmap_async(add, [(1, 2)], callback=told.put).wait()
    assert told.get(timeout=DEADLINE_S) == [3]
    assert told.empty()


def test_a_callback_has_run_when_the_result_is_ready(pool):
    done = []
    gate = threading.Event()

    def callback(result):
        gate.wait()
        done.append(result)

    result = pool.apply_async(square, (2,), callback=callback)
    assert not result.ready()
    gate.set()
    assert result.get(timeout=DEADLINE_S) == 4
    assert done == [4]


def test_the_initializer_runs_in_each_process(cluster):
    def remember(value):
        os.environ["POOL_TEST"] = value

    with Pool(2, initializer=remember, initargs=["here"]) as pool:
        assert set(pool.map(lambda _: os.environ.get("POOL_TEST"), range(8), chunksize=1)) == {"here"}


def test_an_initializer_that_fails_is_reported(cluster):
    def refuse():
        raise ValueError("no")

    with pytest.raises(RayActorError, match="ValueError: no"):
        Pool(1, initializer=refuse)


def test_processes_are_replaced(cluster):
    with Pool(1, maxtasksperchild=2) as pool:
        pids = [pool.apply(pid) for _ in range(6)]
        assert len(set(pids)) == 3
        assert pids[0] == pids[1]
        assert len(set(pool.map(pid, range(8), chunksize=2))) == 2


def test_a_closed_pool_ends_its_work(cluster, tmp_path):
    path = tmp_path / "gate"
    pool = Pool(2)
    with pytest.raises(ValueError, match="still running"):
        pool.join()
    pids = set(pool.map(pid, range(20), chunksize=1))
    result = pool.apply_async(wait_for_file, (str(path),))
    pool.close()
    for call in (pool.apply, pool.map, pool.imap):
        with pytest.raises(ValueError, match="closed"):
            call(square, (1,))
    path.touch()
    assert result.get(timeout=DEADLINE_S) == "seen"
    pool.join()
    wait_until(lambda: not any(os.path.exists(f"/proc/{one}") for one in pids))


def test_a_terminated_pool_drops_its_work(cluster, tmp_path):
    pool = Pool(1)
    result = pool.apply_async(wait_for_file, (str(tmp_path / "never"),))
    pool.terminate()
    pool.terminate()
    pool.join()
    with pytest.raises(RayActorError):
        result.get(timeout=DEADLINE_S)
    assert not result.successful()
    with pytest.raises(ValueError, match="closed"):
        pool.__enter__()


def test_a_process_that_dies_is_reported(pool):
    told = queue.Queue()
    result = pool.apply_async(os._exit, (1,), error_callback=told.put)
    with pytest.raises(RayActorError):
        result.get(timeout=DEADLINE_S)
    assert isinstance(told.get(timeout=DEADLINE_S), RayActorError)


def test_options_of_the_actors(cluster):
    with Pool(2, ray_remote_args={"num_cpus": 1}) as pool:
        assert pool.map(square, [1, 2]) == [1, 4]
        wait_until(lambda: ray.available_resources().get("CPU", 0) == 2)


def test_wrong_sizes_are_refused(cluster):
    with pytest.raises(ValueError, match="at least one"):
        Pool(0)
    with pytest.raises(ValueError, match="1000"):
        Pool(1000)
    with pytest.raises(ValueError, match="maxtasksperchild"):
        Pool(1, maxtasksperchild=0)


def test_a_pool_starts_a_node_of_its_size(run_script):
    out = run_script(
        "import ray_rust as ray\n"
        "from ray_rust.util.multiprocessing import Pool\n"
        "with Pool(3) as pool:\n"
        "    print(pool.map(abs, [-1, 2]), ray.cluster_resources()['CPU'], pool.size)\n"
        "with Pool(context=1) as pool:\n"
        "    print(pool.size)\n"
    )
    assert out.splitlines() == ["[1, 2] 3.0 3", "3"]


# joblib


@pytest.fixture
def backend(cluster):
    joblib = pytest.importorskip("joblib")
    from ray_rust.util.joblib import register_ray

    register_ray()
    with joblib.parallel_config("ray"):
        yield joblib


def test_joblib_runs_in_actors(backend):
    results = backend.Parallel(n_jobs=3)(backend.delayed(pid)(x) for x in range(20))
    assert len(results) == 20
    assert os.getpid() not in results
    assert backend.Parallel(n_jobs=-1)(backend.delayed(square)(x) for x in range(10)) == [x * x for x in range(10)]
    assert backend.Parallel(n_jobs=1)(backend.delayed(square)(x) for x in range(3)) == [0, 1, 4]


def test_joblib_raises_what_a_function_raises(backend):
    with pytest.raises(ValueError, match="bad 3"):
        backend.Parallel(n_jobs=2)(backend.delayed(fail_at)(x) for x in range(10))
    assert backend.Parallel(n_jobs=2)(backend.delayed(square)(x) for x in range(3)) == [0, 1, 4]


def test_joblib_puts_a_large_argument_once(backend, monkeypatch):
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(100_000)
    puts = []
    put = ray.put
    monkeypatch.setattr(ray, "put", lambda value: puts.append(1) or put(value))
    sums = backend.Parallel(n_jobs=2, batch_size=1)(
        backend.delayed(lambda data, x: int(data.sum()) + x)(array, x) for x in range(6)
    )
    assert sums == [int(array.sum()) + x for x in range(6)]
    assert len(puts) == 1


def test_joblib_counts_the_clusters_cpus(backend):
    from ray_rust.util.joblib.ray_backend import RayBackend

    one = RayBackend(nesting_level=0)
    assert [one.effective_n_jobs(n) for n in (-1, -2, 3, None)] == [4, 3, 3, 1]
    with pytest.raises(ValueError, match="0"):
        one.effective_n_jobs(0)


def test_joblib_gives_the_actors_options(backend):
    parallel = backend.Parallel(n_jobs=2, backend="ray", ray_remote_args={"num_cpus": 0.5})
    with parallel:
        assert parallel(backend.delayed(square)(x) for x in range(3)) == [0, 1, 4]
        wait_until(lambda: ray.available_resources().get("CPU", 0) == 3)
