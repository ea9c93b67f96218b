"""The timeline: which task ran where and when, as Chrome and Perfetto show traces."""

from __future__ import annotations

import json
from typing import Any, Optional

from ray_rust._private.session import connected_core
from ray_rust._private.state_tables import Tables

# Names of colours of the trace viewer.
_FAILED = "terrible"
_COLOURS = {"NORMAL_TASK": "generic_work", "ACTOR_TASK": "cq_build_passed", "ACTOR_CREATION_TASK": "startup"}
_TIMEOUT_S = 30.0


def timeline(filename: Optional[str] = None) -> Optional[list[dict[str, Any]]]:
    """The tasks that have ended and those that run, as events of Chrome's trace format.

    With `filename` they are written there, to be opened in ui.perfetto.dev or chrome://tracing, and None is returned.
    Of very many tasks the newest are shown.
    """
    core = connected_core()
    events = _events(core)
    if filename is None:
        return events
    with open(filename, "w") as file:
        json.dump(events, file)
    return None


def _events(core: Any) -> list[dict[str, Any]]:
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in core.nodes()}
    events: list[dict[str, Any]] = []
    named = set()
    # Rows with the microseconds that the state API leaves out.
    for row in Tables(core, 1_000_000, _TIMEOUT_S).tasks():
        start_us, end_us = row.get("start_us"), row.get("end_us")
        if not start_us or not end_us:
            continue
        process = f"node:{nodes.get(row['node_id'], row['node_id'])}"
        thread = f"worker:{row['worker_id']}"
        if (process, thread) not in named:
            named.add((process, thread))
            meta = {"ph": "M", "pid": process, "tid": thread}
            events.append({**meta, "name": "process_name", "args": {"name": process}})
            events.append({**meta, "name": "thread_name", "args": {"name": f"{thread} (pid {row['worker_pid']})"}})
        arguments = {name: row[name] for name in ("task_id", "job_id", "attempt_number", "actor_id", "parent_task_id")}
        events.append(
            {
                "cat": "task",
                "name": row["name"],
                "ph": "X",
                "pid": process,
                "tid": thread,
                "ts": start_us,
                "dur": end_us - start_us,
                "cname": _FAILED if row["state"] == "FAILED" else _COLOURS[row["type"]],
                "args": {**arguments, "name": row["func_or_class_name"], "state": row["state"]},
            }
        )
    return events
