"""What the state API takes and returns. Names and fields are Ray's."""

from __future__ import annotations

import datetime as dt
import os
import warnings
from dataclasses import asdict, dataclass, field, fields
from enum import Enum, unique
from typing import Any, Callable, Optional, Union

DEFAULT_RPC_TIMEOUT = 30
DEFAULT_LIMIT = 100
DEFAULT_LOG_LIMIT = 1000
# The most that one call lists.
RAY_MAX_LIMIT_FROM_API_SERVER = int(os.environ.get("RAY_MAX_LIMIT_FROM_API_SERVER", "10000"))
# The most that is asked of one process or of the table of ended tasks.
RAY_MAX_LIMIT_FROM_DATA_SOURCE = int(os.environ.get("RAY_MAX_LIMIT_FROM_DATA_SOURCE", "10000"))

SupportedFilterType = Union[str, bool, int, float]
PredicateType = str
Filter = tuple[str, PredicateType, SupportedFilterType]


@unique
class StateResource(Enum):
    """What can be listed."""

    ACTORS = "actors"
    JOBS = "jobs"
    PLACEMENT_GROUPS = "placement_groups"
    NODES = "nodes"
    WORKERS = "workers"
    TASKS = "tasks"
    OBJECTS = "objects"
    RUNTIME_ENVS = "runtime_envs"
    CLUSTER_EVENTS = "cluster_events"


@unique
class SummaryResource(Enum):
    """What can be summed up."""

    ACTORS = "actors"
    TASKS = "tasks"
    OBJECTS = "objects"


class Humanify:
    """Values in a form for people."""

    @staticmethod
    def timestamp(value: float) -> str:
        """Milliseconds since the epoch as local time."""
        return str(dt.datetime.fromtimestamp(value / 1000))  # noqa: DTZ006 - as Ray shows it

    @staticmethod
    def memory(value: float) -> str:
        """Bytes in the largest unit that fits."""
        for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
            if value >= size:
                return f"{value / size:.3f} {unit}"
        return f"{value:.3f} B"

    @staticmethod
    def duration(value: float) -> str:
        """Milliseconds as hours, minutes and seconds."""
        return str(dt.timedelta(milliseconds=value))

    @staticmethod
    def events(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Events of a task with their times as local time."""
        return [
            {**event, "created_ms": Humanify.timestamp(event["created_ms"])} if "created_ms" in event else event
            for event in events
        ]

    @staticmethod
    def node_resources(resources: dict[str, Any]) -> dict[str, Any]:
        """Resources with memory in the largest unit that fits."""
        return {name: Humanify.memory(amount) if "memory" in name else amount for name, amount in resources.items()}


def _check_options(timeout: float, filters: Optional[list[Filter]]) -> list[Filter]:
    if not timeout > 0:
        raise ValueError(f"the timeout has to be more than 0 seconds, is {timeout!r}")
    checked = []
    for one in filters or []:
        if not isinstance(one, (tuple, list)) or len(one) != 3:
            raise ValueError(
                f"The given filter has incorrect input type, {one!r}. Provide (key, predicate, value) tuples."
            )
        if one[1] not in ("=", "!="):
            raise ValueError(f"Unsupported filter predicate {one[1]} is given. Available predicates: =, !=.")
        checked.append((one[0], one[1], one[2]))
    return checked


@dataclass
class ListApiOptions:
    """How to list."""

    # The most that is returned.
    limit: int = DEFAULT_LIMIT
    # In seconds.
    timeout: float = DEFAULT_RPC_TIMEOUT
    # Whether columns are filled that take longer to find out, or that few want to see.
    detail: bool = False
    # All of them have to hold.
    filters: Optional[list[Filter]] = field(default_factory=list)
    exclude_driver: bool = True
    server_timeout_multiplier: float = 0.8

    def __post_init__(self) -> None:
        self.filters = _check_options(self.timeout, self.filters)

    def has_conflicting_filters(self) -> bool:
        """Whether two filters want one column to have two values."""
        wanted: dict[str, SupportedFilterType] = {}
        for key, predicate, value in self.filters or []:
            if predicate == "=" and wanted.setdefault(key, value) != value:
                warnings.warn(
                    f"the filters want {key!r} to be {wanted[key]!r} and {value!r}: nothing can be both",
                    UserWarning,
                    stacklevel=2,
                )
                return True
        return False


@dataclass
class GetApiOptions:
    """How to get one thing."""

    timeout: float = DEFAULT_RPC_TIMEOUT
    server_timeout_multiplier: float = 0.8

    def __post_init__(self) -> None:
        _check_options(self.timeout, None)


@dataclass
class SummaryApiOptions:
    """How to sum up."""

    timeout: float = DEFAULT_RPC_TIMEOUT
    filters: Optional[list[Filter]] = field(default_factory=list)
    # Tasks: by func_name; actors: by class; objects: by callsite.
    summary_by: Optional[str] = None

    def __post_init__(self) -> None:
        self.filters = _check_options(self.timeout, self.filters)


@dataclass
class GetLogOptions:
    """Which log, and how much of it."""

    timeout: float
    node_id: Optional[str] = None
    node_ip: Optional[str] = None
    media_type: str = "file"
    filename: Optional[str] = None
    download_filename: str = "file.txt"
    actor_id: Optional[str] = None
    task_id: Optional[str] = None
    attempt_number: int = 0
    pid: Optional[int] = None
    lines: int = DEFAULT_LOG_LIMIT
    interval: Optional[float] = None
    suffix: str = "out"
    submission_id: Optional[str] = None


def state_column(
    *, filterable: bool, detail: bool = False, format_fn: Optional[Callable[[Any], Any]] = None, **kwargs: Any
) -> Any:
    """A field of a state: whether filters may name it, whether only details have it, how people read it."""
    if detail:
        kwargs.setdefault("default", None)
    metadata = {**kwargs.pop("metadata", {}), "detail": detail, "filterable": filterable, "format_fn": format_fn}
    return field(metadata=metadata, **kwargs)


class StateSchema:
    """One thing as the state API shows it; its fields can be had as attributes and as items."""

    @classmethod
    def humanify(cls, state: dict[str, Any]) -> dict[str, Any]:
        """`state` with its values in a form for people."""
        readable = dict(state)
        for column in _fields(cls):
            form = column.metadata.get("format_fn")
            if form is not None and readable.get(column.name) is not None:
                readable[column.name] = form(readable[column.name])
        return readable

    @classmethod
    def list_columns(cls, detail: bool = True) -> list[str]:
        """All columns in order, or those without details."""
        return [column.name for column in _fields(cls) if detail or not column.metadata.get("detail", False)]

    @classmethod
    def columns(cls) -> set[str]:
        """All columns."""
        return set(cls.list_columns())

    @classmethod
    def filterable_columns(cls) -> set[str]:
        """Those that filters may name."""
        return {column.name for column in _fields(cls) if column.metadata.get("filterable", False)}

    @classmethod
    def base_columns(cls) -> set[str]:
        """Those that are shown without `detail`."""
        return set(cls.list_columns(detail=False))

    @classmethod
    def detail_columns(cls) -> set[str]:
        """Those that are shown with `detail`."""
        return set(cls.list_columns(detail=True))

    def asdict(self) -> dict[str, Any]:
        """All columns."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    def __getitem__(self, key: str) -> Any:
        return getattr(self, key)

    def __setitem__(self, key: str, value: Any) -> None:
        setattr(self, key, value)

    def get(self, key: str, default: Any = None) -> Any:
        """A column, or `default` if there is none of this name."""
        return getattr(self, key, default)


def _fields(cls: type) -> tuple[Any, ...]:
    return fields(cls)


def filter_fields(data: dict[str, Any], state_dataclass: type[StateSchema], detail: bool) -> dict[str, Any]:
    """The columns of `data` that are shown; those that it lacks are None."""
    return {column: data.get(column) for column in state_dataclass.list_columns(detail=detail)}


@dataclass
class ActorState(StateSchema):
    """An actor."""

    actor_id: str = state_column(filterable=True)
    class_name: str = state_column(filterable=True)
    state: str = state_column(filterable=True)
    job_id: str = state_column(filterable=True)
    name: Optional[str] = state_column(filterable=True)
    node_id: Optional[str] = state_column(filterable=True)
    pid: Optional[int] = state_column(filterable=True)
    ray_namespace: Optional[str] = state_column(filterable=True)
    # What a pending or restarting actor waits for. Not of Ray.
    pending_reason: Optional[str] = state_column(filterable=True, default=None)
    serialized_runtime_env: Optional[str] = state_column(filterable=False, detail=True)
    required_resources: Optional[dict[str, float]] = state_column(filterable=False, detail=True)
    death_cause: Optional[dict[str, Any]] = state_column(filterable=False, detail=True)
    is_detached: Optional[bool] = state_column(filterable=False, detail=True)
    placement_group_id: Optional[str] = state_column(detail=True, filterable=True)
    repr_name: Optional[str] = state_column(detail=True, filterable=True)
    num_restarts: Optional[int] = state_column(filterable=False, detail=True)
    num_restarts_due_to_lineage_reconstruction: Optional[int] = state_column(filterable=False, detail=True)
    num_restarts_due_to_node_preemption: Optional[int] = state_column(filterable=False, detail=True)
    call_site: Optional[str] = state_column(detail=True, filterable=False)
    label_selector: Optional[dict[str, Any]] = state_column(detail=True, filterable=False)
    fallback_strategy: Optional[list[Any]] = state_column(detail=True, filterable=False)


@dataclass
class PlacementGroupState(StateSchema):
    """A placement group."""

    placement_group_id: str = state_column(filterable=True)
    name: str = state_column(filterable=True)
    creator_job_id: str = state_column(filterable=True)
    state: str = state_column(filterable=True)
    bundles: Optional[list[dict[str, Any]]] = state_column(filterable=False, detail=True)
    is_detached: Optional[bool] = state_column(filterable=True, detail=True)
    stats: Optional[dict[str, Any]] = state_column(filterable=False, detail=True)
    topology_strategy: Optional[dict[str, Any]] = state_column(filterable=False, detail=True)
    topology_assignments: Optional[dict[str, Any]] = state_column(filterable=False, detail=True)


@dataclass
class NodeState(StateSchema):
    """A node."""

    node_id: str = state_column(filterable=True)
    node_ip: str = state_column(filterable=True)
    is_head_node: bool = state_column(filterable=True)
    state: str = state_column(filterable=True)
    state_message: Optional[str] = state_column(filterable=False)
    node_name: str = state_column(filterable=True)
    resources_total: dict[str, float] = state_column(filterable=False, format_fn=Humanify.node_resources)
    labels: dict[str, str] = state_column(filterable=False)
    start_time_ms: Optional[int] = state_column(filterable=False, detail=True, format_fn=Humanify.timestamp)
    end_time_ms: Optional[int] = state_column(filterable=False, detail=True, format_fn=Humanify.timestamp)


@dataclass
class JobState(StateSchema):
    """A job."""

    type: str = state_column(filterable=True, default="DRIVER")
    job_id: Optional[str] = state_column(filterable=True, default=None)
    submission_id: Optional[str] = state_column(filterable=True, default=None)
    driver_info: Optional[dict[str, Any]] = state_column(filterable=False, default=None)
    status: str = state_column(filterable=True, default="RUNNING")
    entrypoint: str = state_column(filterable=True, default="")
    message: Optional[str] = state_column(filterable=False, default=None)
    error_type: Optional[str] = state_column(filterable=True, default=None)
    start_time: Optional[int] = state_column(filterable=False, default=None, format_fn=Humanify.timestamp)
    end_time: Optional[int] = state_column(filterable=False, default=None, format_fn=Humanify.timestamp)
    metadata: Optional[dict[str, str]] = state_column(filterable=False, default=None)
    runtime_env: Optional[dict[str, Any]] = state_column(filterable=False, default=None)
    driver_agent_http_address: Optional[str] = state_column(filterable=False, detail=True)
    driver_node_id: Optional[str] = state_column(filterable=False, detail=True)
    driver_exit_code: Optional[int] = state_column(filterable=False, detail=True)


@dataclass
class WorkerState(StateSchema):
    """A worker process or a driver."""

    worker_id: str = state_column(filterable=True)
    is_alive: bool = state_column(filterable=True)
    worker_type: str = state_column(filterable=True)
    exit_type: Optional[str] = state_column(filterable=True)
    node_id: str = state_column(filterable=True)
    ip: str = state_column(filterable=True)
    pid: int = state_column(filterable=True)
    exit_detail: Optional[str] = state_column(detail=True, filterable=False)
    worker_launch_time_ms: Optional[int] = state_column(filterable=False, detail=True, format_fn=Humanify.timestamp)
    worker_launched_time_ms: Optional[int] = state_column(filterable=False, detail=True, format_fn=Humanify.timestamp)
    start_time_ms: Optional[int] = state_column(filterable=False, detail=True, format_fn=Humanify.timestamp)
    end_time_ms: Optional[int] = state_column(filterable=False, detail=True, format_fn=Humanify.timestamp)
    debugger_port: Optional[int] = state_column(filterable=True, detail=True)
    num_paused_threads: Optional[int] = state_column(filterable=True, detail=True)


@dataclass
class ClusterEventState(StateSchema):
    """Something that happened to the cluster."""

    severity: str = state_column(filterable=True)
    time: str = state_column(filterable=False)
    source_type: str = state_column(filterable=True)
    message: str = state_column(filterable=False)
    event_id: str = state_column(filterable=True)
    custom_fields: Optional[dict[str, Any]] = state_column(filterable=False, detail=True)


@dataclass
class TaskState(StateSchema):
    """An attempt of a task."""

    task_id: str = state_column(filterable=True)
    attempt_number: int = state_column(filterable=True)
    name: str = state_column(filterable=True)
    state: str = state_column(filterable=True)
    job_id: str = state_column(filterable=True)
    actor_id: Optional[str] = state_column(filterable=True)
    type: str = state_column(filterable=True)
    func_or_class_name: str = state_column(filterable=True)
    parent_task_id: Optional[str] = state_column(filterable=True)
    node_id: Optional[str] = state_column(filterable=True)
    worker_id: Optional[str] = state_column(filterable=True)
    worker_pid: Optional[int] = state_column(filterable=True)
    error_type: Optional[str] = state_column(filterable=True)
    # What a pending task waits for. Not of Ray.
    pending_reason: Optional[str] = state_column(filterable=True, default=None)
    language: Optional[str] = state_column(detail=True, filterable=True)
    required_resources: Optional[dict[str, float]] = state_column(detail=True, filterable=False)
    runtime_env_info: Optional[dict[str, Any]] = state_column(detail=True, filterable=False)
    placement_group_id: Optional[str] = state_column(detail=True, filterable=True)
    events: Optional[list[dict[str, Any]]] = state_column(detail=True, filterable=False, format_fn=Humanify.events)
    profiling_data: Optional[dict[str, Any]] = state_column(detail=True, filterable=False)
    creation_time_ms: Optional[int] = state_column(detail=True, filterable=False, format_fn=Humanify.timestamp)
    start_time_ms: Optional[int] = state_column(detail=True, filterable=False, format_fn=Humanify.timestamp)
    end_time_ms: Optional[int] = state_column(detail=True, filterable=False, format_fn=Humanify.timestamp)
    task_log_info: Optional[dict[str, Any]] = state_column(detail=True, filterable=False)
    error_message: Optional[str] = state_column(detail=True, filterable=False)
    is_debugger_paused: Optional[bool] = state_column(detail=True, filterable=True)
    call_site: Optional[str] = state_column(detail=True, filterable=False)
    label_selector: Optional[dict[str, Any]] = state_column(detail=True, filterable=False)
    fallback_strategy: Optional[list[Any]] = state_column(detail=True, filterable=False)


@dataclass
class ObjectState(StateSchema):
    """An object as one process refers to it."""

    object_id: str = state_column(filterable=True)
    # In bytes; -1: not known yet.
    object_size: int = state_column(filterable=True, format_fn=Humanify.memory)
    task_status: str = state_column(filterable=True)
    attempt_number: int = state_column(filterable=True)
    reference_type: str = state_column(filterable=True)
    call_site: str = state_column(filterable=True)
    type: str = state_column(filterable=True)
    pid: int = state_column(filterable=True)
    ip: str = state_column(filterable=True)


@dataclass
class RuntimeEnvState(StateSchema):
    """A runtime environment on a node."""

    runtime_env: dict[str, Any] = state_column(filterable=True)
    success: bool = state_column(filterable=True)
    creation_time_ms: Optional[float] = state_column(filterable=False, format_fn=Humanify.timestamp)
    node_id: str = state_column(filterable=True)
    ref_cnt: Optional[int] = state_column(detail=True, filterable=False)
    error: Optional[str] = state_column(detail=True, filterable=True)


@dataclass
class ListApiResponse:
    """What a list was made from."""

    # How many there are in the cluster.
    total: int
    # How many of them were looked at.
    num_after_truncation: int
    # How many of those passed the filters.
    num_filtered: int
    result: list[dict[str, Any]]
    # What did not answer.
    partial_failure_warning: Optional[str] = ""
    warnings: Optional[list[str]] = None


@dataclass
class TaskSummaryPerFuncOrClassName:
    """Tasks of one function or method."""

    func_or_class_name: str
    type: str
    state_counts: dict[str, int] = field(default_factory=dict)


@dataclass
class TaskSummaries:
    """Tasks by function or method."""

    summary: dict[str, TaskSummaryPerFuncOrClassName]
    total_tasks: int
    total_actor_tasks: int
    total_actor_scheduled: int
    summary_by: str = "func_name"


@dataclass
class ActorSummaryPerClass:
    """Actors of one class."""

    class_name: str
    state_counts: dict[str, int] = field(default_factory=dict)


@dataclass
class ActorSummaries:
    """Actors by class."""

    summary: dict[str, ActorSummaryPerClass]
    total_actors: int
    summary_by: str = "class"


@dataclass
class ObjectSummaryPerKey:
    """Objects of one call site."""

    total_objects: int
    total_size_mb: float
    total_num_workers: int
    total_num_nodes: int
    task_state_counts: dict[str, int] = field(default_factory=dict)
    task_attempt_number_counts: dict[str, int] = field(default_factory=dict)
    ref_type_counts: dict[str, int] = field(default_factory=dict)


@dataclass
class ObjectSummaries:
    """Objects by call site."""

    summary: dict[str, ObjectSummaryPerKey]
    total_objects: int
    total_size_mb: float
    callsite_enabled: bool
    summary_by: str = "callsite"


@dataclass
class StateSummary:
    """Summaries by node; what is not of one node is under "cluster"."""

    node_id_to_summary: dict[str, Union[TaskSummaries, ActorSummaries, ObjectSummaries]]


@dataclass
class SummaryApiResponse:
    """What a summary was made from; see `ListApiResponse`."""

    total: int
    num_after_truncation: int
    num_filtered: int
    result: Optional[StateSummary] = None
    partial_failure_warning: Optional[str] = ""
    warnings: Optional[list[str]] = None


_SCHEMAS: dict[StateResource, type[StateSchema]] = {
    StateResource.ACTORS: ActorState,
    StateResource.JOBS: JobState,
    StateResource.PLACEMENT_GROUPS: PlacementGroupState,
    StateResource.NODES: NodeState,
    StateResource.WORKERS: WorkerState,
    StateResource.TASKS: TaskState,
    StateResource.OBJECTS: ObjectState,
    StateResource.RUNTIME_ENVS: RuntimeEnvState,
    StateResource.CLUSTER_EVENTS: ClusterEventState,
}


def resource_to_schema(resource: StateResource) -> type[StateSchema]:
    """The class of what a list of `resource` holds."""
    return _SCHEMAS[resource]


def dict_to_state(d: dict[str, Any], state_resource: StateResource) -> StateSchema:
    """A row as the class of its resource."""
    schema = resource_to_schema(state_resource)
    return schema(**{name: d.get(name) for name in schema.list_columns()})
