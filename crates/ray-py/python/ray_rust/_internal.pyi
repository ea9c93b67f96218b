"""The compiled core: ids, object references and the core worker of this process."""

import builtins
from asyncio import Future as AsyncioFuture
from collections.abc import Callable, Coroutine, Generator, Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any, Generic, NoReturn, Optional, Protocol, Union, final, overload, type_check_only

from typing_extensions import Self, TypeVar, disjoint_base

_R = TypeVar("_R")
_R_co = TypeVar("_R_co", covariant=True, default=Any)

_Waitable = TypeVar("_Waitable", bound=Union[ObjectRef, ObjectRefGenerator])

__version__: str
OPTIMIZED: bool
"""Whether the build is an optimized one, so that times mean something."""

@type_check_only
class BaseID:
    """A fixed-size identifier; equal, ordered and hashed by its bytes.

    For type checkers only: at run time each kind is a class of its own, without a common base.
    """

    def __new__(cls, binary: bytes) -> Self: ...
    @classmethod
    def from_binary(cls, id_bytes: bytes) -> Self: ...
    @classmethod
    def from_hex(cls, hex_id: str) -> Self: ...
    @classmethod
    def from_random(cls) -> Self: ...
    @classmethod
    def nil(cls) -> Self: ...
    @classmethod
    def size(cls) -> int: ...
    @classmethod
    def __class_getitem__(cls, _item: Any) -> Any: ...
    def binary(self) -> bytes: ...
    def hex(self) -> str: ...
    def is_nil(self) -> bool: ...
    def __lt__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

@disjoint_base
class TaskID(BaseID): ...

@disjoint_base
class ActorID(BaseID): ...

@disjoint_base
class NodeID(BaseID): ...

@disjoint_base
class JobID(BaseID):
    @classmethod
    def from_int(cls, value: int) -> Self:
        """The job of this number."""

    def int(self) -> builtins.int:
        """Its number."""

@disjoint_base
class WorkerID(BaseID): ...

@disjoint_base
class PlacementGroupID(BaseID): ...

@disjoint_base
class FunctionID(BaseID): ...

@disjoint_base
class UniqueID(BaseID): ...

@disjoint_base
class ActorClassID(BaseID): ...

@disjoint_base
class ClusterID(BaseID): ...

@disjoint_base
class ObjectRef(Generic[_R_co]):
    """A reference to a value that exists or will exist somewhere in the cluster.

    Counted: the value is freed when the last reference to it goes away, in whichever process.
    `await` gives the value, as `get` does.
    """

    def __new__(cls, id: bytes) -> Self:
        """One more reference to an object that this process refers to."""

    @classmethod
    def nil(cls) -> ObjectRef: ...
    @classmethod
    def from_binary(cls, id_bytes: bytes) -> ObjectRef: ...
    @classmethod
    def from_hex(cls, hex_id: str) -> ObjectRef: ...
    @classmethod
    def from_random(cls) -> ObjectRef: ...
    @classmethod
    def size(cls) -> int: ...
    @classmethod
    def __class_getitem__(cls, _item: Any) -> Any: ...
    def binary(self) -> bytes: ...
    def hex(self) -> str: ...
    def is_nil(self) -> bool: ...
    def task_id(self) -> TaskID: ...
    def job_id(self) -> JobID: ...
    @staticmethod
    def call_site() -> str: ...
    def __await__(self) -> Generator[Any, None, _R_co]: ...
    def future(self) -> Future[_R_co]:
        """The value as a future of `concurrent.futures`; to cancel it does not cancel the task."""

    def as_future(self, _internal: bool = False) -> AsyncioFuture[_R_co]:
        """The value as a future of the running event loop."""

    def _as_argument(self) -> None:
        """Called before a reference of an inheriting class becomes an argument: raises TypeError if it cannot."""

    def _readiness(self) -> AsyncioFuture[None]:
        """A future of the running loop that is done when there is a value, or none will be."""

    def _ready(self) -> Coroutine[Any, Any, ObjectRef]:
        """Waits until there is a value, without reading it."""

    def _settle(self, future: Future[Any]) -> None:
        """Settles the future with the value, in the thread of callbacks."""

    def _on_completed(self, py_callback: Callable[[Any], Any]) -> ObjectRef:
        """Calls it with the value or the exception, in the thread of callbacks."""

    def _on_ready(self, py_callback: Callable[[Optional[Exception]], Any]) -> Callable[[], None]:
        """Calls it with None once there is a value, or with the exception if that is lost.

        Returns what takes the callback back.
        """

    def __hash__(self) -> int: ...

@final
class ObjectRefGenerator:
    """What a call of a generator returns: a reference to each thing that it yields, as it comes.

    Iterate over it with `for` or `async for`; `next` waits for the next item. What the generator raises is its
    last item: `get` of that reference raises it. If the task fails in another way, such as by the end of
    its process, the last reference stands for that. When this is gone, what is unread is dropped; the generator
    stops at its next `yield`, unless a reference of `completed()` is left. One thread at a time may use it.
    """

    @classmethod
    def __class_getitem__(cls, _item: Any) -> type[ObjectRefGenerator]: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> ObjectRef: ...
    def __aiter__(self) -> Self: ...
    def __anext__(self) -> Coroutine[Any, Any, ObjectRef]: ...
    def completed(self) -> ObjectRef:
        """A reference that is ready when the task has ended; `get` of it raises if the task failed."""

    def next_ready(self) -> bool:
        """Whether `next` gives a reference at once, and `get` of that its value."""

    def is_finished(self) -> bool:
        """Whether all was read, and `next` would raise StopIteration."""

    def _next_sync(self, timeout_s: Optional[float] = None) -> ObjectRef:
        """As `next`, but nil if nothing comes within so many seconds (None or -1: for ever)."""

    def _next_async(self, timeout_s: Optional[float] = None) -> Coroutine[Any, Any, ObjectRef]:
        """The same without blocking the event loop."""

    @property
    def _generator_ref(self) -> ObjectRef: ...
    def _stream_exhausted(self) -> bool:
        """Whether all items were read and no more come; the failure of the task may be unread."""

    def _get_next_object_id_binary(self) -> bytes: ...
    def _get_next_ref_n(self, num_refs: int) -> list[ObjectRef]:
        """References to the next places, whether anything is there yet or not; nothing counts as read.

        Those behind the last item raise ObjectRefStreamEndOfStreamError, or what the task failed with.
        """

    def _consume_next_ref_n(self, num_refs: int) -> None:
        """Counts the next places as read. ValueError if one of them is not there yet."""

    def _peek(self, num_refs: int) -> list[tuple[ObjectRef, bool]]:
        """As `_get_next_ref_n`, with whether something is there, or never will be."""

    def send(self, value: Any) -> None: ...
    def throw(self, value: Any) -> None: ...
    def close(self) -> None: ...
    def asend(self, value: Any) -> None: ...
    def athrow(self, value: Any) -> None: ...
    def aclose(self) -> None: ...
    def __reduce__(self) -> NoReturn: ...

@final
class StreamingGeneratorStats:
    """What a generator gets for what it yields: `stats = yield value`."""

    def __new__(cls, object_creation_dur_s: float) -> Self: ...
    @property
    def object_creation_dur_s(self) -> float:
        """How long it took to store and send it, in seconds."""

@final
class ExportedFunction:
    """A pickled function or class, named by its content; sent to each process once."""

    def __new__(cls, pickled: bytes, name: str, max_calls: int = 0) -> Self: ...
    @property
    def name(self) -> str: ...
    @property
    def function_id(self) -> bytes: ...

@final
class SchedulingConstraint:
    """Where a task or actor may run."""

    @staticmethod
    def default() -> SchedulingConstraint:
        """Anywhere."""

    @staticmethod
    def spread() -> SchedulingConstraint:
        """On the node that is used least."""

    @staticmethod
    def on_node(node_id: str, soft: bool, when_busy: str) -> SchedulingConstraint:
        """On one node. `when_busy`: wait, spill or fail."""

    @staticmethod
    def in_group(group_id: PlacementGroupID, index: Optional[int], capture: bool) -> SchedulingConstraint:
        """In a placement group; in any of its bundles without an index."""

    def with_selectors(self, selectors: Sequence[Sequence[tuple[str, str, Sequence[str]]]]) -> SchedulingConstraint:
        """This, on nodes whose labels are as one of these wants them; the first that some node fulfils counts.

        Each has keys with an operator (in, not in, exists, does not exist) and its values.
        """

@final
class PlacementGroups:
    """The placement groups of a cluster, by way of this process's membership."""

    def create(
        self,
        bundles: Sequence[tuple[dict[str, float], Sequence[tuple[str, str, Sequence[str]]]]],
        strategy: str,
        name: str,
        namespace: str,
        detached: bool,
        soft_target_node_id: Optional[str],
    ) -> PlacementGroupID:
        """Registers the group; its resources are reserved later. ValueError if the name is taken.

        A group without a name may not be known to the control plane yet: see `settle`. Each bundle is its resources and
        what the labels of its node have to be.
        """

    def wait(self, group_id: PlacementGroupID, timeout: Optional[float]) -> bool:
        """Whether the group is created within `timeout` seconds. ValueError if it is removed."""

    def ready(self, group_id: PlacementGroupID, value: Any) -> ObjectRef:
        """A reference that becomes `value`, which refers to no objects, when the group is created."""

    def remove(self, group_id: PlacementGroupID) -> None:
        """Does not wait for it."""

    def settle(self) -> None:
        """Waits until the control plane knows what this process has created and removed."""

    def get(self, group_id: PlacementGroupID) -> Optional[dict[str, Any]]:
        """What is known of a group; None if nothing is."""

    def get_named(self, name: str, namespace: str) -> Optional[dict[str, Any]]:
        """The group of this name that is not removed."""

    def list(self) -> builtins.list[dict[str, Any]]:
        """What is known of all groups, also of some that were removed."""

    def current(self) -> Optional[tuple[PlacementGroupID, bool]]:
        """The group in which this code runs, and whether it captures what this code submits."""

@final
class TaskOptions:
    """What a task or actor needs. Amounts were validated by the caller; resources holds all custom ones.

    `num_returns` >= 0; `max_retries` -1 = without limit. `runtime_env` is a description in JSON, or None for that of
    the process that asks. Without a `constraint` it runs in the placement group of the task that submits it, if that
    captures its children.
    """

    def __new__(
        cls,
        *,
        name: str,
        num_cpus: float,
        num_gpus: float,
        memory: float,
        resources: dict[str, float],
        num_returns: int,
        max_retries: int,
        retry_exceptions: Union[bool, bytes],
        runtime_env: Optional[str] = None,
        task_events: bool = True,
        generator: Optional[tuple[bool, int, int, int]] = None,
        constraint: Optional[SchedulingConstraint] = None,
    ) -> Self:
        """For `generator` see `_private.options.Returns`, for `retry_exceptions` `_private.options.retried`."""

    @property
    def has_runtime_env(self) -> bool:
        """Whether it is for another environment than that of the process that asks."""

@final
class GcsKv:
    """Keys and values of the control plane at "host:port", for processes that are not members of the cluster."""

    def __new__(cls, address: str) -> Self: ...
    def get(self, namespace: bytes, key: bytes) -> Optional[bytes]:
        """The value of a key, or None."""

    def living_nodes(self) -> list[str]:
        """The ids of the nodes that are alive, in hexadecimal."""

    def put(self, namespace: bytes, key: bytes, value: bytes) -> None:
        """Sets a value."""

@final
class Autoscaler:
    """Looks after the cluster whose control plane is at "host:port": which nodes it lacks, and which it can do without.

    Node types are their name, resources, labels, how many there are at least and at most, and for how many seconds
    one may be idle.
    """

    def __new__(cls, address: str, types: Sequence[tuple[Any, ...]], max_workers: int) -> Self: ...
    def look(self, started: dict[str, int], timeout: float) -> tuple[list[int], list[str], list[str]]:
        """Types of nodes that are to be started, ids of nodes that are to end, and what was not found out.

        `started` has the types of the nodes that may end, by their ids; `timeout` in seconds is for each node to
        answer.
        """

    def launch_failed(self, node_type: int) -> None:
        """A node of this type could not be started: the next one has to wait."""

@final
class Metric:
    """One metric of this process's programs; `kind` is "counter", "gauge" or "histogram"."""

    def __new__(cls, kind: str, name: str, description: str, boundaries: list[float]) -> Self: ...
    def record(self, value: float, tags: dict[str, str]) -> bool:
        """Records a value. Returns false if the process has no room for its series, or it has another kind."""

def child_prefix(task_id: bytes) -> bytes:
    """What the ids of all tasks begin with that this task submits."""

@final
class CallShape:
    """What arguments have to look like: the quick answer to whether they fit a signature."""

    def __new__(cls, parameters: Sequence[tuple[str, int, bool]]) -> Self:
        """Parameters in order: name, `inspect.Parameter.kind`, and whether there is a default."""

    def fits(self, args: tuple[Any, ...], kwargs: Optional[dict[str, Any]]) -> bool:
        """Whether they certainly fit; if not, the signature itself has to be asked."""

@disjoint_base
class RemoteCall:
    """A remote function. What inherits has `_submit(args, kwargs)` for calls that are out of the ordinary."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Self: ...
    def _prepare(self, shape: Optional[CallShape], function: ExportedFunction, options: TaskOptions) -> None:
        """From now on an ordinary call needs nothing but this."""

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Submits a task. Returns a reference; None with num_returns=0, a list of references with more than 1."""

@final
class MethodDescription:
    """A method of actors of one class: its name and concurrency group; `max_task_retries` None is the actor's own."""

    def __new__(
        cls,
        method: tuple[str, str],
        task_name: str,
        shape: Optional[CallShape],
        num_returns: int,
        max_task_retries: Optional[int],
        generator: Optional[tuple[bool, int, int, int]] = None,
        *,
        task_events: bool = True,
        retry_exceptions: Union[bool, bytes] = ...,
    ) -> Self: ...

@disjoint_base
class HandleCall:
    """A handle to an actor: its attribute `name` is `method_class(handle, methods[name])`.

    Attributes of its own begin with an underscore and come first.
    """

    def __new__(
        cls,
        class_name: str,
        methods: dict[str, MethodDescription],
        method_class: Callable[[Any, MethodDescription], Any],
    ) -> Self: ...
    def __getattribute__(self, name: str, /) -> Any: ...

@disjoint_base
class MethodCall:
    """A method of one actor. What inherits has `_submit(args, kwargs)` for calls that are out of the ordinary."""

    def __new__(cls, handle: Any, description: MethodDescription) -> Self:
        """`handle` has `_actor_id` and `_max_task_retries`, and lives as long as this."""

    @property
    def _handle(self) -> Any: ...
    @property
    def _name(self) -> str: ...
    @property
    def _task_name(self) -> str: ...
    @property
    def _concurrency_group(self) -> str: ...
    def _call(
        self, core: CoreWorker, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Union[ObjectRef, list[ObjectRef], ObjectRefGenerator, None]:
        """As `remote`, but TypeError for what cannot be pickled."""

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Calls it. Returns a reference; None with num_returns=0, a list of references with more than 1."""

@final
class CoreWorker:
    """This process as a member of a cluster. All methods release the GIL while they wait.

    Errors are raised as `ray_rust.exceptions.*`; waiting is ended by Ctrl-C.
    """

    @staticmethod
    def connect_driver(
        socket_path: str,
        namespace: str,
        entrypoint: str,
        job_config: bytes,
        on_log: Callable[[int, str, bool, list[str]], None],
        on_warning: Callable[[str], None],
        runtime_env: str = "",
    ) -> CoreWorker:
        """Joins the node that listens at `socket_path` as the driver of a new job.

        `job_config` reaches `Executor.set_job` in every worker of the job. `on_log(pid, name,
        is_stderr, lines)` gets what workers print; `on_warning(text)` what the user should know
        (such as resources that no node has). Both are called from a background thread. `runtime_env` (JSON) is
        what the job's processes need.
        """

    @staticmethod
    def connect_worker(socket_path: str, worker_id: bytes, executor: Executor, runtime_env: str = "") -> CoreWorker:
        """Joins the node as a worker, made with this environment (JSON); `run` then serves."""

    @property
    def job_id(self) -> JobID: ...
    @property
    def node_id(self) -> NodeID: ...
    @property
    def worker_id(self) -> WorkerID: ...
    @property
    def runtime_env(self) -> str:
        """In JSON: what this process was made with; in a driver, what its job asks for. Empty for nothing."""

    def set_runtime_env(self, runtime_env: str) -> None:
        """What the tasks and actors of this driver need from now on unless they say otherwise; in JSON."""

    @property
    def session_dir(self) -> str: ...
    @property
    def gcs_address(self) -> str: ...
    @property
    def placement_groups(self) -> PlacementGroups: ...
    def current_task_id(self) -> Optional[TaskID]: ...
    def current_actor_id(self) -> Optional[ActorID]: ...
    def current_task_name(self) -> Optional[str]: ...
    def current_call(self) -> Optional[tuple[Optional[bytes], Optional[str]]]:
        """Id of the function that runs, or the name of the method; None in a driver."""

    def own_description(self) -> Optional[tuple[str, int, bytes]]:
        """Name, number of restarts and handle metadata of the actor that this process is."""

    def leased(self) -> tuple[dict[str, float], list[int]]:
        """What this worker may use of its node, and the numbers of the graphics processors among it."""

    def put(self, value: Any) -> ObjectRef: ...
    def watch(self, reference: ObjectRef) -> bool:
        """Has the end of an object of this process told to `_private.tensors.shelf.on_released`.

        Returns whether there is an end to tell of.
        """

    def get(self, refs: Sequence[ObjectRef], timeout: Optional[float]) -> list[Any]:
        """The values in order. Raises the first error met, in the order of `refs`."""

    def wait(
        self,
        refs: Sequence[_Waitable],
        num_returns: int,
        timeout: Optional[float],
        fetch_local: bool,
    ) -> tuple[list[_Waitable], list[_Waitable]]: ...
    def submit_task(
        self, function: ExportedFunction, args: tuple[Any, ...], kwargs: dict[str, Any], options: TaskOptions
    ) -> Union[ObjectRef, list[ObjectRef], ObjectRefGenerator, None]:
        """None for num_returns=0, a reference for 1, a list for more."""

    def create_actor(
        self,
        actor_class: ExportedFunction,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: TaskOptions,
        *,
        placement_cpus: float,
        max_restarts: int,
        max_task_retries: int,
        max_concurrency: int,
        concurrency_groups: list[tuple[str, int]],
        is_async: bool,
        out_of_order: bool,
        max_pending_calls: int,
        actor_name: str,
        namespace: str,
        detached: bool,
        handle_metadata: bytes,
    ) -> tuple[ActorID, Optional[ObjectRef]]:
        """Registers the actor; its constructor runs later. ValueError if the name is taken.

        Also returns the reference that keeps it: the actor ends when that and its copies are gone. A detached
        one has none.

        `options` says what it takes while it lives, `placement_cpus` how many CPUs it takes in
        addition until it is placed. `handle_metadata` is given to those who look the actor up.
        """

    def attach_actor(self, actor_id: ActorID, class_name: str, out_of_order: bool, max_pending_calls: int) -> None:
        """Gets ready to call an actor that another process has made; `out_of_order`: its calls may overtake.

        `max_pending_calls` of this process may be without an answer; 0 for any number.
        """

    def exit_actor(self, reason: str) -> None:
        """Ends the actor that this process is, once its running call has ended; that call fails."""

    def kill_actor(self, actor_id: ActorID, no_restart: bool) -> None: ...
    def get_named_actor(self, name: str, namespace: str) -> Optional[tuple[ActorID, bytes]]:
        """The id and handle metadata of a living actor of that name."""

    def cancel_task(self, reference: ObjectRef, force: bool, recursive: bool) -> None:
        """ValueError if it is a call of an actor and `force` is given."""

    def is_task_cancelled(self) -> bool:
        """Whether the task that this worker runs was cancelled."""

    def nodes(self) -> list[dict[str, Any]]:
        """As `ray.nodes()`: NodeID, Alive, NodeManagerAddress, Resources, Labels, ..."""

    def cluster_resources(self) -> dict[str, float]: ...
    def available_resources_per_node(self) -> dict[str, dict[str, float]]:
        """What of each living node is free now, by its id in hexadecimal."""

    def available_resources(self) -> dict[str, float]: ...
    def named_actors(self) -> list[tuple[str, str]]:
        """Namespace and name of every living actor that has a name."""

    def kv_put(self, namespace: bytes, key: bytes, value: bytes, overwrite: bool) -> bool:
        """Sets a value of the control plane; one that exists is kept unless `overwrite`. Whether the key is new."""

    def kv_get(self, namespace: bytes, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The values of those keys that exist."""

    def kv_del(self, namespace: bytes, key: bytes, prefix: bool) -> int:
        """Removes a key, or all that begin with it. How many were removed."""

    def kv_keys(self, namespace: bytes, prefix: bytes) -> list[bytes]: ...
    def location_of(self, reference: ObjectRef) -> Optional[dict[str, Any]]:
        """What this process knows of it: `node_ids`, `object_size`, `did_spill`; None if that is nothing."""

    def reference_usage(self) -> tuple[int, int]:
        """How many objects this process refers to, and how many bytes of small values it keeps."""

    def inspect_node(self, address: str, tasks: bool, objects: bool, limit: int, timeout: float) -> str:
        """What the node at "host:port" and its processes do and keep, as JSON: see `_private.state_tables`.

        `limit` is the number of tasks and objects that each process lists; `timeout` in seconds.
        """

    def task_events(self, limit: int, timeout: float, job_id: bytes, task_id: bytes, actor_id: bytes) -> str:
        """Batches of the newest tasks that have ended, as JSON; those of a job, task or actor if an id is not empty."""

    def list_actors(self) -> list[dict[str, Any]]:
        """All actors, dead ones too."""

    def list_jobs(self) -> list[dict[str, Any]]:
        """All jobs, ended ones too."""

    def flush_logs(self, timeout: float) -> None:
        """Waits until everything that workers printed so far was given to `on_log`."""

    def shutdown(self, stop_node: bool) -> None:
        """Leaves the cluster; with `stop_node`, asks the node to end. Everything waiting gets an error."""

    def run(self) -> bool:
        """In a worker's main thread: executes tasks until told to exit.

        Returns True if it has become an actor whose calls run in event loops, which remain to be run.
        """

    def run_thread(self, group: int) -> None:
        """Executes calls of a concurrency group on the calling thread until told to exit."""

    def set_debugger(self, port: Optional[int], paused_threads: int) -> None:
        """Where this process serves debuggers, and how many of its threads wait for one; for the state API."""

    def on_thread_not_started(self, group: int) -> None:
        """A thread that `Executor.start_threads` was asked for is not there."""

    def loop_descriptors(self, group: int) -> list[int]:
        """What the event loop of a group waits for, to call `serve_loop` when one of them is readable."""

    def serve_loop(self, group: int) -> bool:
        """Starts the calls that have come for the event loop of a group; False if the loop should end."""

    def look_for_calls(self, group: int) -> bool:
        """Before the event loop of a group sleeps: whether it has something to serve instead."""

    def flush_replies(self) -> None:
        """Writes what was not written yet."""

@final
class StartedCall:
    """A call of an actor that runs in an event loop. One of `succeed` and `fail` is called, once."""

    @property
    def key(self) -> int:
        """Names it among the calls that run."""

    @property
    def group(self) -> str:
        """Its concurrency group; empty for that of calls without one."""

    @property
    def is_generator(self) -> bool:
        """Whether what it gives is to be iterated over, and sent item by item."""

    def send(self, value: Any) -> tuple[int, StreamingGeneratorStats]:
        """Sends what it has yielded. Whether it goes on (0), waits (1) or stops (2), and what its `yield` gives."""

    def flow(self) -> int:
        """Whether it goes on, as of `send`; if it has to wait, `resume_call` is called when to ask again."""

    def stop(self) -> None:
        """Nobody wants what it would still yield. In place of `succeed` and `fail`."""

    def succeed(self, value: Any) -> None:
        """It has returned; of a generator, it has yielded all."""

    def fail(self, error: BaseException) -> None:
        """It has raised."""

@type_check_only
class Executor(Protocol):
    """What `connect_worker` needs of its `executor` argument (any object with these methods)."""

    def set_job(self, job_config: bytes) -> None:
        """Before the first task of a job: makes the driver's modules importable."""

    def set_devices(self, devices: Sequence[int]) -> None:
        """What runs from now on is to use these graphics processors of the node, by number."""

    def load(self, pickled: bytes, function_id: bytes) -> Callable[..., Any]:
        """The function or class of an ExportedFunction."""

    def is_listed(self, error: BaseException, types: bytes) -> bool:
        """Whether an exception is of one of the types that `_private.options.retried` has pickled."""

    def announce(self, kind: str, name: str) -> None:
        """The following output belongs to this "task" or "actor"; cheap, called before every task."""

    def make_async_actor(
        self, actor_class: type, args: tuple[Any, ...], kwargs: dict[str, Any], groups: list[str]
    ) -> Any:
        """An actor whose calls run in event loops, one for each group and one for calls without."""

    def start_call(
        self,
        call: StartedCall,
        method: Optional[Callable[..., Any]],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        """Starts a call in its event loop; without a method it only answers True."""

    def cancel_call(self, key: int) -> None:
        """A call that runs in an event loop was cancelled; any thread."""

    def resume_call(self, key: int) -> None:
        """A generator call that runs in an event loop, and had to wait, may ask for its `flow`; any thread."""

    def start_threads(self, group: int, count: int) -> None:
        """Threads are wanted that call `CoreWorker.run_thread`; any thread."""

    def encode_error(self, error: BaseException, task_name: str) -> bytes:
        """A pickled ray_rust.exceptions.RayTaskError (or RayError) that stands for `error`."""

# Called by the core through the module ray_rust._private.serialization:
#   dumps(value) -> tuple[bytes, list[PickleBuffer]]   pickle 5, out-of-band buffers; TypeError naming the culprit
#   loads(data, buffers) -> value
#   decode_error(data: bytes) -> BaseException to raise from get

def _restore_ref(object_id: bytes, owner: bytes) -> ObjectRef:
    """Reads a pickled reference."""

@overload
def get(
    object_refs: ObjectRefGenerator, *, timeout: Optional[float] = None, _use_object_store: bool = False
) -> ObjectRefGenerator: ...
@overload
def get(object_refs: ObjectRef[_R], *, timeout: Optional[float] = None, _use_object_store: bool = False) -> _R: ...
@overload
def get(
    object_refs: Sequence[ObjectRef[_R]], *, timeout: Optional[float] = None, _use_object_store: bool = False
) -> list[_R]:
    """The value of a reference, or the list of values of a list; waits until they are there.

    Raises what the task raised, or GetTimeoutError after `timeout` seconds.
    """

def put(value: _R, *, _tensor_transport: Optional[str] = None) -> ObjectRef[_R]:
    """Stores a value; tasks that get the reference, here and elsewhere, read it without a copy if it is large.

    With `_tensor_transport`, its tensors stay in this process, and go to others by that transport.
    """

def wait(
    ray_waitables: Sequence[_Waitable],
    *,
    num_returns: int = 1,
    timeout: Optional[float] = None,
    fetch_local: bool = True,
    timeout_ms: Optional[float] = None,
) -> tuple[list[_Waitable], list[_Waitable]]:
    """Waits until `num_returns` of the references are ready, at most `timeout` seconds.

    A generator of references is ready when its next item is, or when there is none.

    Returns those that are ready, at most `num_returns`, and the others, both in the order given.
    `timeout_ms` says the time in milliseconds instead.
    """

def set_task_variable(variable: ContextVar[Optional[int]]) -> None:
    """From now on this variable says which `StartedCall` code works for, by its key."""

def forget_membership() -> None:
    """In a forked process: the connection of the parent is not used, and not dropped either."""

def run_node(config_json: str, fork_server_fd: int, on_ready: Callable[[str], None]) -> None:
    """Runs the node daemon on the calling thread until it ends; `on_ready` gets node.json's text."""

def set_parent_death_signal(signal: int) -> None:
    """Asks the kernel to send `signal` to this process when its parent thread ends."""

def init_logging(process_name: str, directory: Optional[str]) -> None: ...
