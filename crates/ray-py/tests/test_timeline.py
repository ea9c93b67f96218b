"""`ray.timeline`: Chrome's trace format."""

import json
import os
import time

import ray_rust


def test_tasks_are_spans_of_their_worker(cluster, tmp_path):
    @cluster.remote
    def span():
        time.sleep(0.05)
        return os.getpid()

    @cluster.remote(max_retries=0)
    def fails():
        raise ValueError

    before = time.time() * 1e6
    pid = cluster.get(span.options(name="a span").remote())
    cluster.wait([failed := fails.remote()])
    after = time.time() * 1e6
    events = cluster.timeline()
    (event,) = [event for event in events if event["name"] == "a span"]
    assert event["ph"] == "X"
    assert event["dur"] >= 50_000
    assert before - 20_000 <= event["ts"] <= event["ts"] + event["dur"] <= after + 20_000
    assert event["args"]["state"] == "FINISHED"
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert f"pid {pid}" in names[event["tid"]]
    (event,) = [event for event in events if event["args"].get("task_id") == failed.task_id().hex()]
    assert event["args"]["state"] == "FAILED"

    path = tmp_path / "trace.json"
    assert cluster.timeline(str(path)) is None
    written = json.loads(path.read_text())
    assert "a span" in {event["name"] for event in written}
    assert all({"ph", "pid", "tid", "name"} <= event.keys() for event in written)
    # What Perfetto asks of a file: it takes spans with whole microseconds, names without a time, and no arrays.
    for event in written:
        assert not any(isinstance(value, list) for value in event.values())
        if event["ph"] == "M":
            assert event["name"] in {"process_name", "thread_name"}
            assert event["args"]["name"]
        else:
            assert event["ph"] == "X"
            assert type(event["ts"]) is type(event["dur"]) is int
            assert event["ts"] > 0 and event["dur"] >= 0


def test_spans_of_one_worker_do_not_overlap(cluster):
    @cluster.remote
    def short(n):
        return n

    cluster.get([short.remote(n) for n in range(300)])
    spans = {}
    for event in ray_rust.timeline():
        if event["ph"] == "X" and event["name"] == "short":
            spans.setdefault(event["tid"], []).append((event["ts"], event["dur"]))
    assert sum(len(of_worker) for of_worker in spans.values()) >= 300
    for of_worker in spans.values():
        of_worker.sort()
        for (start, length), (following, _) in zip(of_worker, of_worker[1:]):
            assert start + length <= following + 1
