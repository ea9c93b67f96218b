"""`ray.util.metrics`: recorded in processes, read over HTTP."""

import pickle
import re
import urllib.error
import urllib.request

import pytest

import ray_rust
from conftest import wait_until
from ray_rust.util.metrics import Counter, Gauge, Histogram, Metric


def scrape(port, path="/metrics"):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        return answer.read().decode()


def port_of(cluster):
    (node,) = cluster.nodes()
    return node["MetricsExportPort"]


def series(cluster, name):
    """Values by tags."""
    found = {}
    for line in scrape(port_of(cluster)).splitlines():
        match = re.fullmatch(rf"{name}(\{{.*\}})? (\S+)", line)
        if match:
            tags = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[1] or ""))
            found[frozenset(tags.items())] = float(match[2])
    return found


def test_counters_add_up_over_processes(cluster):
    @cluster.remote
    class Counting:
        def __init__(self):
            self.counter = Counter("test_calls", description="calls of the test", tag_keys=("kind",))

        def count(self, kind, times):
            for _ in range(times):
                self.counter.inc(tags={"kind": kind})

    actors = [Counting.remote() for _ in range(2)]
    cluster.get([actor.count.remote("one", 1000) for actor in actors])
    cluster.get(actors[0].count.remote("two", 3))
    mine = Counter("test_calls", tag_keys=("kind",)).set_default_tags({"kind": "one"})
    mine.inc(2.5)

    expected = {frozenset({("kind", "one")}): 2002.5, frozenset({("kind", "two")}): 3.0}
    wait_until(lambda: series(cluster, "ray_test_calls_total") == expected)
    for actor in actors:
        cluster.kill(actor)
    wait_until(lambda: series(cluster, "ray_test_calls_total") == expected)
    assert "# HELP ray_test_calls_total calls of the test" in scrape(port_of(cluster))
    assert "# TYPE ray_test_calls_total counter" in scrape(port_of(cluster))


def test_a_gauge_is_its_processes_own(cluster):
    @cluster.remote
    class Gauging:
        def set(self, value):
            Gauge("test_level", tag_keys=("place",)).set(value, tags={"place": "actor"})
            return ray_rust.get_runtime_context().get_worker_id()

    gauge = Gauge("test_level", tag_keys=("place",))
    gauge.set(1, tags={"place": "driver"})
    gauge.set(7, tags={"place": "driver"})
    gauge.set(None, tags={"place": "driver"})
    actor = Gauging.remote()
    worker_id = cluster.get(actor.set.remote(3))

    def values():
        return {dict(tags)["place"]: value for tags, value in series(cluster, "ray_test_level").items()}

    wait_until(lambda: values() == {"driver": 7.0, "actor": 3.0})
    assert worker_id in {dict(tags)["WorkerId"] for tags in series(cluster, "ray_test_level")}
    cluster.kill(actor)
    wait_until(lambda: values() == {"driver": 7.0})


def test_a_histogram_counts_by_size(cluster):
    histogram = Histogram("test_sizes", boundaries=[1.0, 10.0], tag_keys=("a",))
    for value in (0.5, 1, 5, 50):
        histogram.observe(value, tags={"a": 'b"\\'})
    tags = {("a", 'b\\"\\\\')}
    expected = {frozenset(tags | {("le", end)}): count for end, count in (("1.0", 2.0), ("10.0", 3.0), ("+Inf", 4.0))}
    wait_until(lambda: series(cluster, "ray_test_sizes_bucket") == expected)
    assert series(cluster, "ray_test_sizes_sum") == {frozenset(tags): 56.5}
    assert series(cluster, "ray_test_sizes_count") == {frozenset(tags): 4.0}


def test_the_node_tells_of_itself(cluster):
    cluster.get(cluster.remote(lambda: 1).remote())
    large = cluster.put(b"x" * 1_000_000)
    cpus = {
        dict(tags)["State"]: value
        for tags, value in series(cluster, "ray_resources").items()
        if ("Name", "CPU") in tags
    }
    assert cpus.keys() == {"AVAILABLE", "USED"}
    assert sum(cpus.values()) == 4
    stored = {dict(tags)["Location"]: value for tags, value in series(cluster, "ray_object_store_memory").items()}
    assert stored["MMAP_SHM"] >= 1_000_000
    assert stored["SPILLED"] == 0
    (workers,) = series(cluster, "ray_node_workers").values()
    assert workers >= 1
    del large


def test_only_metrics_are_served(cluster):
    with pytest.raises(urllib.error.HTTPError) as refused:
        scrape(port_of(cluster), "/secrets")
    assert refused.value.code == 404
    refused.value.close()
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{port_of(cluster)}/metrics", data=b"x", timeout=30)
    assert refused.value.code == 405
    refused.value.close()


def test_the_port_is_known_from_the_start(run_script):
    source = """
import ray_rust as ray
context = ray.init(num_cpus=1)
print(context.address_info["metrics_export_port"] == ray.nodes()[0]["MetricsExportPort"] > 0)
"""
    assert run_script(source) == "True\n"


def test_metrics_are_kept_until_a_cluster_is_joined(run_script):
    source = """
from ray_rust.util.metrics import Counter
Counter("early").inc(3)
import ray_rust as ray, time, urllib.request
port = ray.init(num_cpus=1).address_info["metrics_export_port"]
deadline = time.monotonic() + 30
while True:
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    if "ray_early_total 3.0" in text:
        break
    assert time.monotonic() < deadline
    time.sleep(0.01)
"""
    assert run_script(source) == ""


def test_too_many_series_are_refused_and_said(script):
    source = """
import os
os.environ["RAY_RUST_RAYLET_MAX_METRIC_SERIES"] = "10"
import ray_rust as ray, time, urllib.request
from ray_rust.util.metrics import Counter
port = ray.init(num_cpus=1).address_info["metrics_export_port"]
counter = Counter("wide", tag_keys=("n",))
for n in range(25):
    counter.inc(tags={"n": str(n)})
deadline = time.monotonic() + 30
while True:
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    if text.count("ray_wide_total{") == 10:
        break
    assert time.monotonic() < deadline, text
    time.sleep(0.01)
refused = [line for line in text.splitlines() if line.startswith("ray_metric_series_refused_total")]
print(refused[0].split()[-1])
"""
    status, out, err = script(source).finish()
    assert status == 0, err
    assert out == "15\n"


def test_a_process_with_too_many_series_warns_once():
    counter = Counter("test_unbounded", tag_keys=("n",))
    with pytest.warns(UserWarning, match="too many series") as caught:
        for n in range(10_100):
            counter.inc(tags={"n": str(n)})
    assert len(caught) == 1


def test_bad_input_is_refused_at_once():
    with pytest.raises(ValueError, match="Empty name"):
        Counter("")
    with pytest.warns(UserWarning, match="Invalid metric name"):
        discarded = Counter("no spaces")
    discarded.inc()
    with pytest.raises(TypeError, match="tag_keys"):
        Gauge("test_bad", tag_keys="abc")
    with pytest.raises(TypeError, match="Tag keys"):
        Gauge("test_bad", tag_keys=(1,))
    counter = Counter("test_bad_counter", tag_keys=("a",))
    with pytest.raises(ValueError, match="Missing value for tag key"):
        counter.inc()
    with pytest.raises(ValueError, match="Unrecognized tag key b"):
        counter.set_default_tags({"b": "1"})
    with pytest.raises(TypeError, match="Tag values"):
        counter.set_default_tags({"a": 1})
    with pytest.raises(TypeError, match="Tag values"):
        counter.inc(tags={"a": 1})
    with pytest.raises(TypeError, match="int or float"):
        counter.inc("1", tags={"a": "1"})
    for value in (0, -1):
        with pytest.raises(ValueError, match="value must be >0"):
            counter.inc(value, tags={"a": "1"})
    with pytest.raises(TypeError, match="int or float"):
        Gauge("test_bad_gauge").set("high")
    with pytest.raises(ValueError, match="boundaries"):
        Histogram("test_bad_histogram")
    with pytest.raises(ValueError, match="positive"):
        Histogram("test_bad_histogram", boundaries=[0, 1])


def test_info_defaults_and_pickles():
    counter = Counter("test_info", "what it is", tag_keys=("a", "b"))
    assert isinstance(counter, Metric)
    assert counter.set_default_tags({"a": "1"}) is counter
    expected = {"name": "test_info", "description": "what it is", "tag_keys": ("a", "b"), "default_tags": {"a": "1"}}
    assert counter.info == expected
    assert pickle.loads(pickle.dumps(counter)).info == expected
    histogram = Histogram("test_info_sizes", boundaries=[1.0], tag_keys=("a",))
    assert pickle.loads(pickle.dumps(histogram)).info == {
        "name": "test_info_sizes",
        "description": "",
        "tag_keys": ("a",),
        "default_tags": {},
        "boundaries": [1.0],
    }
