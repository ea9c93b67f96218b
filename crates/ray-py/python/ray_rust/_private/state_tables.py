"""The tables behind the state API, put together from what the parts of a cluster tell.

Tasks that have not ended are known to who waits for them, and those that run to who runs them; what has
ended stands in the control plane, but for the last second, which the processes still have to themselves.
So a list asks the control plane and every process of every node, and puts the answers together.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

from ray_rust._internal import child_prefix

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ray_rust._internal import CoreWorker

_NOBODY = "0" * 32
# What a process leaves to say how it ended, if nobody meant it to.
_CRASHED = ("its process was killed by signal", "its process was ended by signal", "its connection to the node")

Row = dict[str, Any]


class Node(NamedTuple):
    """What one node told."""

    node_id: str
    ip: str
    processes: list[Row]
    workers: list[Row]
    demands: dict[tuple[str, int], str]
    environments: list[Row]
    # What actors that the node makes wait for.
    placing: dict[str, str]


class _Event(NamedTuple):
    """Something that happened; at 0, it did not."""

    at_ms: int
    severity: str
    source: str
    message: str
    fields: dict[str, Any]


_UNFINISHED = ("DEPENDENCIES_UNREADY", "PENDING_CREATION", "RESTARTING")


class Tables:
    """What a cluster is now; each table is found out when it is asked for."""

    def __init__(self, core: CoreWorker, limit: int, timeout: float) -> None:
        self._core = core
        self._limit = limit
        self._timeout = timeout
        # Who did not answer.
        self.failures: list[str] = []
        # How many rows there are that are not listed, because there are too many.
        self.unlisted = 0
        self.counts: list[Row] = []

    def _inspect(self, *, tasks: bool = False, objects: bool = False) -> list[Node]:
        told = []
        for node in self._core.nodes():
            if not node["Alive"]:
                continue
            address = f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
            try:
                text = self._core.inspect_node(address, tasks, objects, self._limit, self._timeout)
            except Exception as error:  # noqa: BLE001 - whatever it is, the other nodes can be shown
                self.failures.append(f"node {node['NodeID']} at {address}: {error}")
                continue
            node_id, processes, silent, workers, demands, environments, placing = json.loads(text)
            self.failures.extend(f"{name} on node {node_id} did not answer in time" for name in silent)
            reasons = {(demand["worker_id"], demand["class"]): demand["reason"] for demand in demands}
            makes = {actor["actor_id"]: actor["reason"] for actor in placing}
            address = node["NodeManagerAddress"]
            told.append(Node(node_id, address, processes, workers, reasons, environments, makes))
        return told

    # Tasks

    def tasks(self, task_id: Optional[str] = None) -> list[Row]:
        """All tasks that are known, the oldest first; or the attempts of one."""
        wanted = bytes.fromhex(task_id) if task_id is not None else b""
        # The processes first: what ends in between is then in the table.
        nodes = self._inspect(tasks=True)
        batches = json.loads(self._core.task_events(self._limit, self._timeout, b"", wanted, b""))
        rows: dict[tuple[str, int], Row] = {}
        for batch in batches:
            self._add_batch(rows, batch)
        for node in nodes:
            for process in node.processes:
                if process["ended"] is not None:
                    self._add_batch(rows, process["ended"])
        workers = {worker["worker_id"]: (node, worker) for node in nodes for worker in node.workers}
        running = {
            task: (process, since) for node in nodes for process in node.processes for task, since in process["running"]
        }
        placing = _placing(nodes)
        for node in nodes:
            for process in node.processes:
                self.unlisted += process["pending_total"] - len(process["pending"])
                for pending in process["pending"]:
                    row = _pending_row(pending, process, node, running, workers)
                    if row["pending_reason"] and pending["actor_id"] in placing:
                        row["pending_reason"] += f"; {placing[pending['actor_id']]}"
                    rows.setdefault((row["task_id"], row["attempt_number"]), row)
        _add_parents(rows.values(), [process["root_task"] for node in nodes for process in node.processes])
        if task_id is not None:
            return [row for row in rows.values() if row["task_id"] == task_id]
        return sorted(rows.values(), key=lambda row: (row["creation_time_ms"], row["task_id"], row["attempt_number"]))

    def _add_batch(self, rows: dict[tuple[str, int], Row], batch: Row) -> None:
        teller, names = batch["teller"], batch["names"]
        for count in batch["counts"]:
            self.counts.append({**names[count["name"]], **count})
        for record in batch["records"]:
            row = _ended_row(record, names[record["name"]], teller)
            known = rows.get((row["task_id"], row["attempt_number"]))
            if known is None:
                rows[row["task_id"], row["attempt_number"]] = row
            else:
                # The process that ran it knows more, but not how it ended if it ended with it.
                ran, other = (row, known) if row["start_time_ms"] is not None else (known, row)
                known.update(ran)
                if other["error_type"] is not None:
                    error = other if ran["error_message"] in (None, "") else ran
                    known.update(state="FAILED", error_type=error["error_type"], error_message=error["error_message"])

    # Other tables

    def actors(self) -> list[Row]:
        """All actors, dead ones too."""
        rows = []
        actors = self._core.list_actors()
        placing: Row = {}
        if any(actor["state"] in _UNFINISHED for actor in actors):
            placing = _placing(self._inspect())
        for actor in actors:
            pending = actor["state"] in _UNFINISHED
            reason = placing.get(actor["actor_id"]) or actor["pending_reason"] or "it is being made"
            cause = None
            if actor["death_message"] is not None:
                cause = {"kind": actor["death_kind"], "error_message": actor["death_message"]}
            rows.append(
                {
                    **actor,
                    "pid": actor["pid"] or None,
                    "pending_reason": reason if pending else None,
                    "death_cause": cause,
                    "num_restarts_due_to_lineage_reconstruction": 0,
                    "num_restarts_due_to_node_preemption": 0,
                    "repr_name": "",
                }
            )
        return rows

    def nodes(self) -> list[Row]:
        """All nodes, dead ones too."""
        return [
            {
                "node_id": node["NodeID"],
                "node_ip": node["NodeManagerAddress"],
                "is_head_node": node["IsHeadNode"],
                "state": "ALIVE" if node["Alive"] else "DEAD",
                "state_message": node["DeathReason"],
                "node_name": node["NodeName"],
                "resources_total": node["Resources"],
                "labels": node["Labels"],
                "start_time_ms": node["StartTimeMs"],
                "end_time_ms": node["EndTimeMs"] or None,
            }
            for node in self._core.nodes()
        ]

    def jobs(self) -> list[Row]:
        """All jobs, ended ones too."""
        return [
            {
                "type": "DRIVER",
                "job_id": job["job_id"],
                "driver_info": {"id": job["job_id"], "node_ip_address": None, "pid": str(job["driver_pid"])},
                "status": "SUCCEEDED" if job["end_time_ms"] else "RUNNING",
                "entrypoint": job["entrypoint"],
                "message": job["end_reason"] or None,
                "start_time": job["start_time_ms"],
                "end_time": job["end_time_ms"] or None,
                "metadata": job["metadata"],
                "driver_node_id": job["node_id"],
            }
            for job in self._core.list_jobs()
        ]

    def workers(self) -> list[Row]:
        """All workers and drivers of living nodes, with those that ended lately."""
        rows = []
        for node in self._inspect():
            debuggers = {process["teller"]["worker_id"]: process["debugger"] for process in node.processes}
            for worker in node.workers:
                row, debugger = _worker_row(worker, node), debuggers.get(worker["worker_id"])
                if debugger is not None:
                    row.update(debugger_port=debugger["port"], num_paused_threads=debugger["paused_threads"])
                rows.append(row)
        return rows

    def objects(self, object_id: Optional[str] = None) -> list[Row]:
        """What processes refer to, once for each process."""
        nodes = self._inspect(tasks=True, objects=True)
        pending = {task["task_id"]: task for node in nodes for process in node.processes for task in process["pending"]}
        rows: list[Row] = []
        for node in nodes:
            for process in node.processes:
                self.unlisted += process["references_total"] - len(process["references"])
                rows.extend(_object_row(reference, process, node, pending) for reference in process["references"])
        return [row for row in rows if object_id is None or row["object_id"] == object_id]

    def placement_groups(self) -> list[Row]:
        """All placement groups."""
        groups = getattr(self._core, "placement_groups", None)
        if groups is None:
            return []
        return [
            {
                "placement_group_id": group["placement_group_id"],
                "name": group["name"],
                "creator_job_id": group.get("job_id"),
                "state": group["state"],
                "bundles": [
                    {"bundle_id": str(number), "node_id": node_id, "unit_resources": bundle}
                    for number, (bundle, node_id) in enumerate(zip(group["bundles"], group["bundle_nodes"]))
                ],
                "is_detached": group["is_detached"],
                "stats": {"scheduling_attempt": group.get("attempts"), "scheduling_state": group.get("pending_reason")},
            }
            for group in groups.list()
        ]

    def runtime_envs(self) -> list[Row]:
        """Runtime environments of the nodes."""
        return [
            {
                "runtime_env": json.loads(environment["description"] or "{}"),
                "success": environment["ready"],
                "creation_time_ms": _millis(environment["since_us"]),
                "node_id": node.node_id,
                "error": environment["error"] or None,
            }
            for node in self._inspect()
            for environment in node.environments
        ]

    def cluster_events(self) -> list[Row]:
        """What happened to nodes, jobs, actors and workers, the oldest first."""
        told = [*self._node_events(), *self._job_events(), *self._actor_events(), *self._worker_events()]
        told = sorted((event for event in told if event.at_ms), key=lambda event: event.at_ms)
        return [
            {
                "severity": event.severity,
                "time": _local_time(event.at_ms),
                "source_type": event.source,
                "message": event.message,
                "event_id": f"{event.source}-{event.at_ms}-{number}".lower(),
                "custom_fields": event.fields,
            }
            for number, event in enumerate(told)
        ]

    def _node_events(self) -> Iterator[_Event]:
        for node in self.nodes():
            name, fields = f"node {node['node_id']}", {"node_id": node["node_id"]}
            yield _Event(node["start_time_ms"], "INFO", "GCS", f"{name} has joined", fields)
            if node["state"] == "DEAD":
                yield _Event(
                    node["end_time_ms"] or 0, "ERROR", "GCS", f"{name} is dead: {node['state_message']}", fields
                )

    def _job_events(self) -> Iterator[_Event]:
        for job in self.jobs():
            name, fields = f"job {job['job_id']}", {"job_id": job["job_id"]}
            yield _Event(job["start_time"], "INFO", "JOBS", f"{name} has started", fields)
            if job["end_time"]:
                reason = job["message"] or "its driver has ended"
                yield _Event(job["end_time"], "INFO", "JOBS", f"{name} has ended: {reason}", fields)

    def _actor_events(self) -> Iterator[_Event]:
        for actor in self._core.list_actors():
            meant = actor["death_kind"] in ("KILLED", "JOB_FINISHED", "OUT_OF_SCOPE", "EXITED_BY_USER")
            message = f"actor {actor['class_name']} ({actor['actor_id']}) is dead: {actor['death_message']}"
            severity, fields = "INFO" if meant else "ERROR", {"actor_id": actor["actor_id"]}
            yield _Event(actor["death_time_ms"], severity, "CORE_WORKER", message, fields)

    def _worker_events(self) -> Iterator[_Event]:
        for worker in self.workers():
            if worker["exit_type"] == "SYSTEM_ERROR":
                message = f"worker {worker['worker_id']} (pid {worker['pid']}) has died: {worker['exit_detail']}"
                fields = {"worker_id": worker["worker_id"]}
                yield _Event(worker["end_time_ms"] or 0, "ERROR", "RAYLET", message, fields)


def _local_time(at_ms: int) -> str:
    from ray_rust.util.state.common import Humanify

    return Humanify.timestamp(at_ms)


def _millis(micros: int) -> Optional[int]:
    return micros // 1000 if micros else None


def _some(value: Optional[str]) -> Optional[str]:
    return None if value in (None, "", _NOBODY) else value


def _ended_row(record: Row, name: Row, teller: Row) -> Row:
    error = record["error"] or {}
    ran = record["start_us"] != 0
    end = "FAILED" if record["phase"] == "FAILED" else "FINISHED"
    times = [("PENDING_ARGS_AVAIL", record["created_us"]), ("RUNNING", record["start_us"]), (end, record["end_us"])]
    return {
        "task_id": record["task_id"],
        "attempt_number": record["attempt"],
        "name": name["name"],
        "state": end,
        "job_id": teller["job_id"],
        "actor_id": record["actor_id"],
        "type": record["kind"],
        "func_or_class_name": name["function"],
        "node_id": teller["node_id"] if ran else None,
        "worker_id": teller["worker_id"] if ran else None,
        "worker_pid": teller["pid"] if ran else None,
        "error_type": error.get("kind"),
        "error_message": error.get("message"),
        "language": "PYTHON",
        "events": [{"state": state, "created_ms": at / 1000} for state, at in times if at],
        "creation_time_ms": _millis(record["created_us"]) or 0,
        "start_time_ms": _millis(record["start_us"]),
        "end_time_ms": _millis(record["end_us"]),
        "start_us": record["start_us"],
        "end_us": record["end_us"],
    }


def _placing(nodes: list[Node]) -> dict[str, str]:
    """What actors that are being made wait for."""
    return {actor_id: reason for node in nodes for actor_id, reason in node.placing.items()}


def _pending_row(
    pending: Row, process: Row, node: Node, running: dict[str, tuple[Row, int]], workers: dict[str, tuple[Node, Row]]
) -> Row:
    state, reason = pending["phase"], pending["reason"]
    worker_id, node_id, pid, since = pending["worker_id"], None, None, 0
    if worker_id in workers:
        node_id, pid = workers[worker_id][0].node_id, workers[worker_id][1]["pid"]
    found = running.get(pending["task_id"])
    if found is not None:
        (teller, since) = (found[0]["teller"], found[1])
        state, worker_id, node_id, pid = "RUNNING", teller["worker_id"], teller["node_id"], teller["pid"]
    if state in ("RUNNING", "SUBMITTED_TO_WORKER"):
        reason = "" if state == "RUNNING" else "it is with its worker, behind others"
    elif not reason and pending["class"] is not None:
        owner = process["teller"]["worker_id"]
        reason = node.demands.get((owner, pending["class"]), "") or "it is next to be given to a worker"
    created = pending["created_us"]
    times = [("PENDING_ARGS_AVAIL", created), ("RUNNING", since)]
    return {
        "task_id": pending["task_id"],
        "attempt_number": pending["attempt"],
        "name": pending["name"]["name"],
        "state": state,
        "job_id": process["teller"]["job_id"],
        "actor_id": pending["actor_id"],
        "type": pending["kind"],
        "func_or_class_name": pending["name"]["function"],
        "node_id": node_id,
        "worker_id": worker_id,
        "worker_pid": pid,
        "error_type": None,
        "error_message": None,
        "pending_reason": reason or None,
        "missing": pending["missing"],
        "language": "PYTHON",
        "required_resources": dict(pending["resources"]),
        "events": [{"state": state, "created_ms": at / 1000} for state, at in times if at],
        "creation_time_ms": _millis(created) or 0,
        "start_time_ms": _millis(since),
        "end_time_ms": None,
    }


def _add_parents(rows: Iterable[Row], roots: list[str]) -> None:
    """The id of a task begins with a mark of its parent, so that nobody has to tell who that is."""
    rows = list(rows)
    parents = {child_prefix(bytes.fromhex(task_id)): task_id for task_id in {*roots, *(row["task_id"] for row in rows)}}
    for row in rows:
        prefix = bytes.fromhex(row["task_id"])[: len(next(iter(parents)))]
        row["parent_task_id"] = parents.get(prefix)


def _worker_row(worker: Row, node: Node) -> Row:
    alive = worker["state"] != "DEAD"
    detail = worker["exit_detail"] or None
    exit_type = None
    if not alive:
        if detail is not None and detail.startswith("its process exited with code 0"):
            exit_type = "INTENDED_USER_EXIT"
        elif detail is None or detail.startswith((*_CRASHED, "its process exited with code")):
            exit_type = "SYSTEM_ERROR"
        else:
            exit_type = "INTENDED_SYSTEM_EXIT"
    return {
        "worker_id": worker["worker_id"],
        "is_alive": alive,
        "worker_type": "DRIVER" if worker["is_driver"] else "WORKER",
        "exit_type": exit_type,
        "node_id": node.node_id,
        "ip": node.ip,
        "pid": worker["pid"] or 0,
        "exit_detail": detail,
        "start_time_ms": _millis(worker["start_us"]),
        "worker_launch_time_ms": _millis(worker["start_us"]),
        "worker_launched_time_ms": _millis(worker["start_us"]),
        "end_time_ms": _millis(worker["end_us"]),
    }


def _object_row(reference: Row, process: Row, node: Node, pending: dict[str, Row]) -> Row:
    object_id = reference["object_id"]
    # The id of an object begins with that of the task that makes it.
    maker = pending.get(object_id[:32])
    if reference["failed"]:
        status = "FAILED"
    elif reference["size"] is not None:
        status = "FINISHED"
    else:
        status = maker["phase"] if maker is not None else "NIL"
    if reference["is_handle"]:
        kind = "ACTOR_HANDLE"
    elif reference["pinned"]:
        kind = "PINNED_IN_MEMORY"
    elif reference["submitted"]:
        kind = "USED_BY_PENDING_TASK"
    elif reference["local"]:
        kind = "LOCAL_REFERENCE"
    elif reference["contained_in"]:
        kind = "CAPTURED_IN_OBJECT"
    else:
        kind = "UNKNOWN_STATUS"
    return {
        "object_id": object_id,
        "object_size": -1 if reference["size"] is None else reference["size"],
        "task_status": status,
        "attempt_number": 1 + (maker["attempt"] if maker is not None else 0),
        "reference_type": kind,
        "call_site": "disabled",
        "type": "Driver" if process["is_driver"] else "Worker",
        "pid": process["teller"]["pid"],
        "ip": node.ip,
    }


def logs_of(core: CoreWorker, node_id: Optional[str] = None, node_ip: Optional[str] = None) -> tuple[str, str]:
    """The folder of the logs of a node of this machine, and the node's id."""
    for node in core.nodes():
        if node_id not in (None, node["NodeID"]) or node_ip not in (None, node["NodeManagerAddress"]):
            continue
        if node_id is None and node_ip is None and node["NodeID"] != core.node_id.hex():
            continue
        # A session's folder has logs/ and sockets/ side by side.
        session = os.path.dirname(os.path.dirname(node["RayletSocketName"]))
        folder = os.path.join(session, "logs")
        if os.path.isdir(folder):
            return folder, node["NodeID"]
    wanted = node_id or node_ip or core.node_id.hex()
    raise LookupError(f"no node {wanted} has its logs on this machine")
