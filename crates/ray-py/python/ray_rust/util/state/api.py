"""The calls of `ray.util.state`.

They are answered by the control plane and the nodes themselves; there is no other process to ask.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
import warnings
from typing import TYPE_CHECKING, Any, Optional, Union, cast

from ray_rust._internal import ObjectRef
from ray_rust._private import session
from ray_rust._private.state_tables import Tables, logs_of
from ray_rust.util.state.common import (
    DEFAULT_LIMIT,
    DEFAULT_RPC_TIMEOUT,
    RAY_MAX_LIMIT_FROM_API_SERVER,
    RAY_MAX_LIMIT_FROM_DATA_SOURCE,
    ActorState,
    ActorSummaries,
    ActorSummaryPerClass,
    ClusterEventState,
    Filter,
    GetApiOptions,
    JobState,
    ListApiOptions,
    NodeState,
    ObjectState,
    ObjectSummaries,
    ObjectSummaryPerKey,
    PlacementGroupState,
    RuntimeEnvState,
    StateResource,
    StateSchema,
    SummaryApiOptions,
    SummaryResource,
    TaskState,
    TaskSummaries,
    TaskSummaryPerFuncOrClassName,
    WorkerState,
    dict_to_state,
    resource_to_schema,
)
from ray_rust.util.state.exception import RayStateApiException, ServerUnavailable

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from ray_rust._internal import CoreWorker

_MEBIBYTE = 1 << 20
_FOLLOW_S = 0.1
_ID_COLUMNS = {
    StateResource.NODES: "node_id",
    StateResource.ACTORS: "actor_id",
    StateResource.PLACEMENT_GROUPS: "placement_group_id",
    StateResource.WORKERS: "worker_id",
    StateResource.TASKS: "task_id",
    StateResource.OBJECTS: "object_id",
    StateResource.JOBS: "job_id",
}

Row = dict[str, Any]


@contextlib.contextmanager
def _connected(address: Optional[str]) -> Iterator[CoreWorker]:
    """The core of this process, which joins a cluster for as long as this takes if it has not."""
    import ray_rust

    known = session.get_session()
    if known is not None:
        if address not in (None, "auto", known.core.gcs_address):
            raise ServerUnavailable(
                f"this process is connected to {known.core.gcs_address}: it cannot ask the cluster at {address}"
            )
        yield known.core
        return
    from ray_rust._private import node as nodes

    if address in (None, "auto") and not os.environ.get("RAY_ADDRESS"):
        running = nodes.advertised_node(nodes.temp_dir(None))
        if running is None:
            raise ConnectionError("no cluster runs on this machine: start one, or call init() first")
        address = running.gcs_address
    ray_rust.init(address, log_to_driver=False)
    try:
        yield session.connected_core()
    finally:
        ray_rust.shutdown()


def _rows(tables: Tables, resource: StateResource, wanted_id: Optional[str]) -> list[Row]:
    if resource is StateResource.TASKS:
        return tables.tasks(wanted_id)
    if resource is StateResource.OBJECTS:
        return tables.objects(wanted_id)
    return cast("list[Row]", getattr(tables, resource.value)())


def _passes(row: Row, filters: Sequence[Filter]) -> bool:
    for column, predicate, wanted in filters:
        value = row.get(column)
        same = str(value).lower() == str(wanted).lower()
        if value is None:
            same = wanted is None or str(wanted).lower() == "none"
        if same != (predicate == "="):
            return False
    return True


def _check_columns(filters: Sequence[Filter], schema: type[StateSchema]) -> None:
    known = schema.filterable_columns()
    for column, _, _ in filters:
        if column not in known:
            raise RayStateApiException(
                f"The given filter column {column} is not supported. Supported filter columns: {sorted(known)}"
            )


def _wanted_id(resource: StateResource, filters: Sequence[Filter]) -> Optional[str]:
    column = _ID_COLUMNS.get(resource)
    exact = [str(value) for key, predicate, value in filters if key == column and predicate == "="]
    is_hex = bool(exact) and re.fullmatch(r"([0-9a-f]{2})+", exact[0]) is not None
    return exact[0] if is_hex else None


class StateApiClient:
    """Asks for the state of a cluster: of this process, or of the one at `address`."""

    def __init__(
        self,
        address: Optional[str] = None,
        cookies: Optional[dict[str, Any]] = None,
        headers: Optional[dict[str, Any]] = None,
    ) -> None:
        self._address = address
        # Ray's go with requests over HTTP, of which there are none here.
        del cookies, headers

    def list(
        self,
        resource: StateResource,
        options: ListApiOptions,
        raise_on_missing_output: bool,
        _explain: bool = False,
    ) -> list[Any]:
        """What passes the filters, as much as the limit allows."""
        if isinstance(options.limit, bool) or not isinstance(options.limit, int) or options.limit < 0:
            raise ValueError(f"limit has to be a number from 0 on, is {options.limit!r}")
        if options.limit > RAY_MAX_LIMIT_FROM_API_SERVER:
            raise RayStateApiException(
                f"Given limit {options.limit} exceeds the supported limit {RAY_MAX_LIMIT_FROM_API_SERVER}. "
                "Use a lower limit, or set the environment variable RAY_MAX_LIMIT_FROM_API_SERVER."
            )
        schema = resource_to_schema(resource)
        filters = options.filters or []
        _check_columns(filters, schema)
        if options.has_conflicting_filters():
            return []
        start = time.monotonic()
        with _connected(self._address) as core:
            tables = Tables(core, RAY_MAX_LIMIT_FROM_DATA_SOURCE, float(options.timeout))
            rows = _rows(tables, resource, _wanted_id(resource, filters))
        self._tell(tables, raise_on_missing_output, resource.value, _explain, time.monotonic() - start)
        rows = [row for row in rows if _passes(row, filters)]
        if len(rows) > options.limit and _explain:
            warnings.warn(f"{options.limit} of {len(rows)} {resource.value} are shown", UserWarning, stacklevel=3)
        shown = set(schema.list_columns(detail=options.detail))
        return [
            dict_to_state({name: value for name, value in row.items() if name in shown}, resource)
            for row in rows[: options.limit]
        ]

    def get(self, resource: StateResource, id: str, options: GetApiOptions, _explain: bool = False) -> Any:
        """The one with this id, or None; of objects all that refer to it, of tasks all attempts."""
        column = _ID_COLUMNS.get(resource)
        if column is None:
            raise ValueError(f"Can't get {resource.name} by id.")
        listing = ListApiOptions(
            limit=RAY_MAX_LIMIT_FROM_API_SERVER, timeout=options.timeout, detail=True, filters=[(column, "=", id)]
        )
        found = self.list(resource, listing, raise_on_missing_output=False, _explain=_explain)
        if not found:
            return None
        if resource is StateResource.OBJECTS or (resource is StateResource.TASKS and len(found) > 1):
            return found
        return found[0]

    def summary(
        self,
        resource: SummaryResource,
        *,
        options: SummaryApiOptions,
        raise_on_missing_output: bool,
        _explain: bool = False,
    ) -> dict[str, Any]:
        """How many there are of each kind, under "cluster"."""
        from dataclasses import asdict

        listed = StateResource(resource.value)
        _check_columns(options.filters or [], resource_to_schema(listed))
        start = time.monotonic()
        with _connected(self._address) as core:
            tables = Tables(core, RAY_MAX_LIMIT_FROM_DATA_SOURCE, float(options.timeout))
            rows = [row for row in _rows(tables, listed, None) if _passes(row, options.filters or [])]
        self._tell(tables, raise_on_missing_output, resource.value, _explain, time.monotonic() - start)
        if resource is SummaryResource.TASKS:
            summary: Any = _task_summaries(rows, [] if options.filters else tables.counts)
        elif resource is SummaryResource.ACTORS:
            summary = _actor_summaries(rows)
        else:
            summary = _object_summaries(rows)
        return {"cluster": asdict(summary)}

    def _tell(self, tables: Tables, strict: bool, what: str, explain: bool, took_s: float) -> None:
        """Says what is missing: as an error if that was asked for."""
        missing = list(tables.failures)
        if tables.unlisted:
            missing.append(f"{tables.unlisted} {what} are not listed because there are too many")
        if missing and strict:
            raise RayStateApiException(
                f"Failed to retrieve all {what}: {'; '.join(missing)}. To allow having missing data in the result, "
                "set raise_on_missing_output=False."
            )
        if explain:
            print(f"{what}: asked the control plane and the nodes for {took_s:.3f} s")  # noqa: T201
            for text in missing:
                warnings.warn(text, UserWarning, stacklevel=4)


def _task_summaries(rows: list[Row], counts: list[Row]) -> TaskSummaries:
    summary: dict[str, TaskSummaryPerFuncOrClassName] = {}
    totals = {"NORMAL_TASK": 0, "ACTOR_TASK": 0, "ACTOR_CREATION_TASK": 0}
    counted = [(row["func_or_class_name"], row["type"], row["state"], 1) for row in rows]
    counted += [(count["function"], count["kind"], count["phase"], count["count"]) for count in counts]
    for function, kind, state, count in counted:
        of_function = summary.setdefault(function, TaskSummaryPerFuncOrClassName(function, kind))
        of_function.state_counts[state] = of_function.state_counts.get(state, 0) + count
        totals[kind] += count
    return TaskSummaries(
        summary, totals["NORMAL_TASK"], totals["ACTOR_TASK"], totals["ACTOR_CREATION_TASK"], "func_name"
    )


def _actor_summaries(rows: list[Row]) -> ActorSummaries:
    summary: dict[str, ActorSummaryPerClass] = {}
    for row in rows:
        counts = summary.setdefault(row["class_name"], ActorSummaryPerClass(row["class_name"])).state_counts
        counts[row["state"]] = counts.get(row["state"], 0) + 1
    return ActorSummaries(summary, len(rows))


def _object_summaries(rows: list[Row]) -> ObjectSummaries:
    summary: dict[str, ObjectSummaryPerKey] = {}
    for key in {row["call_site"] for row in rows}:
        of_key = [row for row in rows if row["call_site"] == key]
        one = ObjectSummaryPerKey(
            total_objects=len(of_key),
            total_size_mb=_megabytes(of_key),
            total_num_workers=len({row["pid"] for row in of_key}),
            total_num_nodes=len({row["ip"] for row in of_key}),
        )
        for row in of_key:
            for counts, value in (
                (one.task_state_counts, row["task_status"]),
                (one.task_attempt_number_counts, str(row["attempt_number"])),
                (one.ref_type_counts, row["reference_type"]),
            ):
                counts[value] = counts.get(value, 0) + 1
        summary[key] = one
    return ObjectSummaries(summary, len(rows), _megabytes(rows), callsite_enabled="disabled" not in summary)


def _megabytes(rows: list[Row]) -> float:
    return float(sum(row["object_size"] for row in rows if row["object_size"] > 0)) / _MEBIBYTE


# One thing


def _get(resource: StateResource, address: Optional[str], id: str, timeout: float, explain: bool) -> Any:
    return StateApiClient(address).get(resource, id, GetApiOptions(timeout=timeout), _explain=explain)


def get_actor(
    id: str,
    address: Optional[str] = None,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    _explain: bool = False,
) -> Optional[ActorState]:
    """The actor of this id, with details; None if there is none."""
    return cast("Optional[ActorState]", _get(StateResource.ACTORS, address, id, timeout, _explain))


def get_job(
    id: str,
    address: Optional[str] = None,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    _explain: bool = False,
) -> Optional[JobState]:
    """The job of this id; None if there is none."""
    return cast("Optional[JobState]", _get(StateResource.JOBS, address, id, timeout, _explain))


def get_placement_group(
    id: str,
    address: Optional[str] = None,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    _explain: bool = False,
) -> Optional[PlacementGroupState]:
    """The placement group of this id; None if there is none."""
    return cast("Optional[PlacementGroupState]", _get(StateResource.PLACEMENT_GROUPS, address, id, timeout, _explain))


def get_node(
    id: str,
    address: Optional[str] = None,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    _explain: bool = False,
) -> Optional[NodeState]:
    """The node of this id; None if there is none."""
    return cast("Optional[NodeState]", _get(StateResource.NODES, address, id, timeout, _explain))


def get_worker(
    id: str,
    address: Optional[str] = None,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    _explain: bool = False,
) -> Optional[WorkerState]:
    """The worker or driver of this id; None if there is none."""
    return cast("Optional[WorkerState]", _get(StateResource.WORKERS, address, id, timeout, _explain))


def get_task(
    id: Union[str, ObjectRef],
    address: Optional[str] = None,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    _explain: bool = False,
) -> Union[TaskState, list[TaskState], None]:
    """The task of this id, or that makes this object: a list of its attempts if there were several."""
    task_id = id.task_id().hex() if isinstance(id, ObjectRef) else id
    return cast("Optional[TaskState]", _get(StateResource.TASKS, address, task_id, timeout, _explain))


def get_objects(
    id: str,
    address: Optional[str] = None,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    _explain: bool = False,
) -> list[ObjectState]:
    """What refers to the object of this id."""
    return cast("list[ObjectState]", _get(StateResource.OBJECTS, address, id, timeout, _explain) or [])


# Lists


def _list(
    resource: StateResource,
    address: Optional[str],
    filters: Optional[list[Filter]],
    limit: int,
    timeout: float,
    detail: bool,
    strict: bool,
    explain: bool,
) -> list[Any]:
    options = ListApiOptions(limit=limit, timeout=timeout, detail=detail, filters=filters)
    return StateApiClient(address).list(resource, options, raise_on_missing_output=strict, _explain=explain)


def list_actors(
    address: Optional[str] = None,
    filters: Optional[list[Filter]] = None,
    limit: int = DEFAULT_LIMIT,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    detail: bool = False,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> list[ActorState]:
    """Actors, dead ones too."""
    return _list(StateResource.ACTORS, address, filters, limit, timeout, detail, raise_on_missing_output, _explain)


def list_placement_groups(
    address: Optional[str] = None,
    filters: Optional[list[Filter]] = None,
    limit: int = DEFAULT_LIMIT,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    detail: bool = False,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> list[PlacementGroupState]:
    """Placement groups."""
    return _list(
        StateResource.PLACEMENT_GROUPS, address, filters, limit, timeout, detail, raise_on_missing_output, _explain
    )


def list_nodes(
    address: Optional[str] = None,
    filters: Optional[list[Filter]] = None,
    limit: int = DEFAULT_LIMIT,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    detail: bool = False,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> list[NodeState]:
    """Nodes, dead ones too."""
    return _list(StateResource.NODES, address, filters, limit, timeout, detail, raise_on_missing_output, _explain)


def list_jobs(
    address: Optional[str] = None,
    filters: Optional[list[Filter]] = None,
    limit: int = DEFAULT_LIMIT,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    detail: bool = False,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> list[JobState]:
    """Jobs, ended ones too."""
    return _list(StateResource.JOBS, address, filters, limit, timeout, detail, raise_on_missing_output, _explain)


def list_workers(
    address: Optional[str] = None,
    filters: Optional[list[Filter]] = None,
    limit: int = DEFAULT_LIMIT,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    detail: bool = False,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> list[WorkerState]:
    """Workers and drivers of living nodes, with those that ended lately."""
    return _list(StateResource.WORKERS, address, filters, limit, timeout, detail, raise_on_missing_output, _explain)


def list_tasks(
    address: Optional[str] = None,
    filters: Optional[list[Filter]] = None,
    limit: int = DEFAULT_LIMIT,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    detail: bool = False,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> list[TaskState]:
    """Tasks, each attempt by itself; of those that have ended the newest."""
    return _list(StateResource.TASKS, address, filters, limit, timeout, detail, raise_on_missing_output, _explain)


def list_objects(
    address: Optional[str] = None,
    filters: Optional[list[Filter]] = None,
    limit: int = DEFAULT_LIMIT,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    detail: bool = False,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> list[ObjectState]:
    """Objects, once for each process that refers to them."""
    return _list(StateResource.OBJECTS, address, filters, limit, timeout, detail, raise_on_missing_output, _explain)


def list_runtime_envs(
    address: Optional[str] = None,
    filters: Optional[list[Filter]] = None,
    limit: int = DEFAULT_LIMIT,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    detail: bool = False,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> list[RuntimeEnvState]:
    """Runtime environments of the nodes."""
    return _list(
        StateResource.RUNTIME_ENVS, address, filters, limit, timeout, detail, raise_on_missing_output, _explain
    )


def list_cluster_events(
    address: Optional[str] = None,
    filters: Optional[list[Filter]] = None,
    limit: int = DEFAULT_LIMIT,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    detail: bool = False,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> list[ClusterEventState]:
    """What happened to nodes, jobs, actors and workers, the oldest first."""
    return _list(
        StateResource.CLUSTER_EVENTS, address, filters, limit, timeout, detail, raise_on_missing_output, _explain
    )


# Summaries


def _summary(
    resource: SummaryResource, address: Optional[str], timeout: float, strict: bool, explain: bool
) -> dict[str, Any]:
    options = SummaryApiOptions(timeout=timeout)
    return StateApiClient(address).summary(resource, options=options, raise_on_missing_output=strict, _explain=explain)


def summarize_tasks(
    address: Optional[str] = None,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> dict[str, Any]:
    """Tasks by function and state; counts also those that were too many to be listed."""
    return _summary(SummaryResource.TASKS, address, timeout, raise_on_missing_output, _explain)


def summarize_actors(
    address: Optional[str] = None,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> dict[str, Any]:
    """Actors by class and state."""
    return _summary(SummaryResource.ACTORS, address, timeout, raise_on_missing_output, _explain)


def summarize_objects(
    address: Optional[str] = None,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> dict[str, Any]:
    """Objects by state and by what refers to them."""
    return _summary(SummaryResource.OBJECTS, address, timeout, raise_on_missing_output, _explain)


# Why something waits


def why(ref: ObjectRef, *, timeout: float = DEFAULT_RPC_TIMEOUT) -> Optional[str]:
    """Why an object has no value yet, down to the cause; None if it has one. Not of Ray.

    If the object waits for others, what those wait for is said too.
    """
    if not isinstance(ref, ObjectRef):
        raise TypeError(f"why() takes an ObjectRef, not a {type(ref).__name__}")
    with _connected(None) as core:
        if core.wait((ref,), 1, 0.0, False)[0]:
            return None
        tables = Tables(core, RAY_MAX_LIMIT_FROM_DATA_SOURCE, float(timeout))
        tasks = {row["task_id"]: row for row in tables.tasks()}
    return _explain_wait(ref.hex(), tasks, set())


def _explain_wait(object_id: str, tasks: dict[str, Row], seen: set[str]) -> str:
    task = tasks.get(object_id[:32])
    if task is None:
        return f"object {object_id} has no value yet, and the process that makes it did not say more"
    seen.add(object_id)
    what = f"task {task['name']!r} ({task['task_id']}) is {task['state']}"
    text = f"{what}: {task['pending_reason']}" if task.get("pending_reason") else what
    further = [_explain_wait(missing, tasks, seen) for missing in task.get("missing", ()) if missing not in seen]
    return "\n  because ".join([text, *further]) if further else text


# Logs


def list_logs(
    address: Optional[str] = None,
    node_id: Optional[str] = None,
    node_ip: Optional[str] = None,
    glob_filter: Optional[str] = None,
    timeout: float = DEFAULT_RPC_TIMEOUT,
) -> dict[str, list[str]]:
    """Names of the log files of a node of this machine, by the kind of process that wrote them."""
    import fnmatch

    del timeout
    with _connected(address) as core:
        folder, _ = _find_logs(core, node_id, node_ip)
    listed: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)):
        if glob_filter is None or fnmatch.fnmatch(name, glob_filter):
            listed.setdefault(_log_category(name), []).append(name)
    return listed


def _find_logs(core: CoreWorker, node_id: Optional[str], node_ip: Optional[str]) -> tuple[str, str]:
    try:
        return logs_of(core, node_id, node_ip)
    except LookupError as error:
        raise RayStateApiException(str(error)) from None


def _log_category(name: str) -> str:
    kind = name.split("-", maxsplit=1)[0].split(".", maxsplit=1)[0]
    if kind == "worker":
        return "worker_out" if name.endswith(".out") else "worker_err" if name.endswith(".err") else "core_worker"
    return {"node": "raylet", "driver": "driver"}.get(kind, "others")


def get_log(
    address: Optional[str] = None,
    node_id: Optional[str] = None,
    node_ip: Optional[str] = None,
    filename: Optional[str] = None,
    actor_id: Optional[str] = None,
    task_id: Optional[str] = None,
    pid: Optional[int] = None,
    follow: bool = False,
    tail: int = -1,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    suffix: str = "out",
    encoding: Optional[str] = "utf-8",
    errors: Optional[str] = "strict",
    submission_id: Optional[str] = None,
    attempt_number: int = 0,
    _interval: Optional[float] = None,
    filter_ansi_code: bool = False,
) -> Generator[Any, None, None]:
    """The log of a file, a process, an actor, or the process that ran a task, in pieces.

    `tail` takes the last lines only, `follow` goes on as the log grows. With `encoding` None the pieces are bytes.
    """
    if submission_id is not None:
        raise RayStateApiException("there are no submitted jobs, and so no log of one")
    if suffix not in ("out", "err"):
        raise ValueError(f"suffix has to be 'out' or 'err', is {suffix!r}")
    with _connected(address) as core:
        tables = Tables(core, RAY_MAX_LIMIT_FROM_DATA_SOURCE, float(timeout))
        worker_id = _worker_of_log(tables, actor_id, task_id, attempt_number, pid)
        if worker_id is None and filename is None:
            raise RayStateApiException("say which log: by filename, actor_id, task_id or pid")
        if worker_id is not None and node_id is None and node_ip is None:
            node_id = next((row["node_id"] for row in tables.workers() if row["worker_id"] == worker_id), None)
        folder, _ = _find_logs(core, node_id, node_ip)
    if worker_id is not None:
        filename = _log_of_worker(folder, worker_id, suffix)
    path = os.path.realpath(os.path.join(folder, str(filename)))
    if os.path.dirname(path) != os.path.realpath(folder) or not os.path.isfile(path):
        raise RayStateApiException(f"{filename!r} is no log file in {folder}")
    return _read_log(path, follow, tail, encoding, errors, _interval, filter_ansi_code)


def _worker_of_log(
    tables: Tables, actor_id: Optional[str], task_id: Optional[str], attempt: int, pid: Optional[int]
) -> Optional[str]:
    if actor_id is not None:
        rows = [row for row in tables.actors() if row["actor_id"] == actor_id]
        what = f"actor {actor_id}"
    elif task_id is not None:
        rows = [row for row in tables.tasks(task_id) if row["attempt_number"] == attempt]
        what = f"attempt {attempt} of task {task_id}"
    elif pid is not None:
        rows = [row for row in tables.workers() if row["pid"] == pid]
        what = f"process {pid}"
    else:
        return None
    worker_id = rows[-1].get("worker_id") if rows else None
    if worker_id is None:
        raise RayStateApiException(f"{what} has run in no process that is known")
    return str(worker_id)


def _log_of_worker(folder: str, worker_id: str, suffix: str) -> str:
    for name in os.listdir(folder):
        if worker_id in name and name.endswith(f".{suffix}"):
            return name
    raise RayStateApiException(f"worker {worker_id} has no log that ends with .{suffix}")


def _read_log(
    path: str,
    follow: bool,
    tail: int,
    encoding: Optional[str],
    errors: Optional[str],
    interval: Optional[float],
    filter_ansi_code: bool,
) -> Generator[Any, None, None]:
    with open(path, "rb") as file:
        lines = file.read().splitlines(keepends=True)
        piece = b"".join(lines[len(lines) - tail if 0 <= tail < len(lines) else 0 :])
        while True:
            # Who prints says whose the following lines are; that is for the driver.
            piece = re.sub(rb"^:(task|actor)_name:.*\n", b"", piece, flags=re.MULTILINE)
            if piece and filter_ansi_code:
                piece = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", piece)
            if piece:
                yield piece if encoding is None else piece.decode(encoding, errors or "strict")
            if not follow:
                return
            time.sleep(interval or _FOLLOW_S)
            piece = file.read()


# Ray's name of the module's client for those who look at what they can have.
__all__ = [name for name in sorted(vars(sys.modules[__name__])) if name.startswith(("list_", "get_", "summarize_"))] + [
    "StateApiClient",
    "why",
]
