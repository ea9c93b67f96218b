"""Joining and leaving a cluster."""

from __future__ import annotations

import atexit
import os
import sys
from typing import TYPE_CHECKING, Any, Callable, Optional, Union

from ray_rust._internal import CoreWorker, init_logging
from ray_rust._private import session as state
from ray_rust._private.context import RayContext
from ray_rust._private.global_worker import Worker, address_info, global_node
from ray_rust._private.session import Session

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ray_rust._private.node import NodeInfo, NodeProcess
    from ray_rust._private.ray_logging.logging_config import LoggingConfig
    from ray_rust.job_config import JobConfig
    from ray_rust.runtime_env import RuntimeEnv

# How long the end of a driver waits for what workers printed last, in seconds.
_FLUSH_TIMEOUT_S = 1.0


SCRIPT_MODE = 0
WORKER_MODE = 1
LOCAL_MODE = 2
SPILL_WORKER_MODE = 2
RESTORE_WORKER_MODE = 3

# Called at the end of each `init`, by libraries.
_post_init_hooks: list[Callable[[], object]] = []
# Libraries set it so that a blocking `get` in a coroutine is not warned of again.
blocking_get_inside_async_warned = False
global_worker = Worker()


def init(
    address: Optional[str] = None,
    *,
    num_cpus: Optional[float] = None,
    num_gpus: Optional[float] = None,
    resources: Optional[dict[str, float]] = None,
    labels: Optional[dict[str, str]] = None,
    object_store_memory: Optional[int] = None,
    local_mode: bool = False,
    ignore_reinit_error: bool = False,
    include_dashboard: Optional[bool] = None,
    dashboard_host: str = "127.0.0.1",
    dashboard_port: Optional[int] = None,
    job_config: Optional[JobConfig] = None,
    configure_logging: bool = True,
    logging_level: Union[int, str] = "info",
    logging_format: Optional[str] = None,
    logging_config: Optional[LoggingConfig] = None,
    log_to_driver: Optional[bool] = None,
    namespace: Optional[str] = None,
    runtime_env: Optional[Union[dict[str, Any], RuntimeEnv]] = None,
    enable_resource_isolation: bool = False,
    cgroup_path: Optional[str] = None,
    system_reserved_cpu: Optional[float] = None,
    system_reserved_memory: Optional[int] = None,
    proxy_server_url: Optional[str] = None,
    **kwargs: Any,
) -> RayContext:
    """Joins a cluster, or starts one for this process.

    `address` None joins the cluster that `RAY_ADDRESS` names, else the one that was started on this
    machine with `ray-rust start --head`, else starts one that ends with this process. "auto" does the
    first two, and fails where no cluster runs, unless a node is described. "local" always starts one.
    "host:port" joins the cluster of that address, of which a node has to run on this machine.

    `num_cpus`, `num_gpus`, `resources`, `labels` and `object_store_memory` (bytes) describe the node that
    is started; they are refused when one is joined. More GPUs than there are can be given: tasks then get
    numbers of devices without hardware behind them.

    `logging_level` and `logging_format` are those of the loggers "ray" and "ray_rust" of this process, unless
    `configure_logging` is false; `logging_config` makes the whole job log in a structured form. `log_to_driver`
    says whether what workers print is shown here. `job_config` gives what is not given by itself.

    RuntimeError if this process is connected already, unless with `ignore_reinit_error`.
    """
    from ray_rust._private import init_options, ray_logging

    hidden = init_options.take_hidden(kwargs)
    init_options.check_isolation(enable_resource_isolation, cgroup_path, system_reserved_cpu, system_reserved_memory)
    if configure_logging:
        ray_logging.setup_logger(logging_level, logging_format or ray_logging.LOGGER_FORMAT)
    else:
        ray_logging.leave_alone()
    init_options.check_address(address)
    if local_mode:
        raise RuntimeError(
            "local_mode is gone, as in Ray: to look into a task, call its function directly (f._function(...)), "
            "or put a breakpoint() into it"
        )
    if include_dashboard:
        _warn("there is no dashboard: include_dashboard has no effect")
    job = init_options.job_of(job_config, logging_config)
    described = {
        "num_cpus": num_cpus,
        "num_gpus": num_gpus,
        "resources": resources,
        "labels": labels,
        "object_store_memory": object_store_memory,
        **hidden.described,
    }
    described = {name: value for name, value in described.items() if value is not None}
    init_options.check_node_description(described)
    if not runtime_env and job.runtime_env:
        runtime_env = dict(job.runtime_env)
    job_env = init_options.runtime_env_of_job(runtime_env)
    namespace = namespace if namespace is not None else job.ray_namespace
    init_options.check_namespace(namespace)
    with state.lock:
        known = state.get_session()
        if known is not None:
            if ignore_reinit_error:
                return _context(known)
            raise RuntimeError(
                "init() was called already; call shutdown() first, or pass ignore_reinit_error=True if that is expected"
            )
        shown = init_options.shows_logs(log_to_driver)
        context = _connect(address, described, job_env, namespace, shown, hidden.temp_dir, job)
    for hook in _post_init_hooks[:]:
        hook()
    return context


def _connect(
    address: Optional[str],
    described: dict[str, Any],
    runtime_env: Optional[Mapping[str, Any]],
    namespace: Optional[str],
    log_to_driver: bool,
    given_temp_dir: Optional[str],
    job: JobConfig,
) -> RayContext:
    from ray_rust._private import gpus
    from ray_rust._private import node as nodes

    directory = nodes.temp_dir(given_temp_dir)
    info = _find_cluster(address, directory, may_start=bool(described))
    process: Optional[NodeProcess] = None
    if info is None:
        gpus.check_request(described.get("num_gpus"))
        if described.pop("_system_config", None):
            _warn("_system_config is for Ray's own processes, and has no effect here")
        # The daemon watches this process, and ends when it does, however it does.
        config = nodes.node_config(directory, owner_pid=os.getpid(), **described)
        process = nodes.start_node(config, meanwhile=_prepare_for_calls)
        info = process.info
    elif described:
        raise ValueError(
            f"{', '.join(sorted(described))} cannot be set when joining the cluster at {info.gcs_address}: "
            "they describe a node that is started"
        )
    else:
        _prepare_for_calls()
    namespace = namespace or os.urandom(16).hex()
    core: Optional[CoreWorker] = None
    try:
        described_env = _describe_runtime_env(runtime_env)
        core = CoreWorker.connect_driver(
            info.socket_path,
            namespace,
            _entrypoint(),
            _job_description(namespace, job),
            _line_printer(job) if log_to_driver else _ignore_lines,
            _warn,
            "" if described_env is None else described_env,
        )
        if described_env is None:
            _upload_runtime_env(runtime_env, core)
    except BaseException:
        if core is not None:
            core.shutdown(process is not None)
        if process is not None:
            process.wait(0)
        raise
    init_logging("driver", os.path.join(core.session_dir, "logs"))
    lifetime = job._default_actor_lifetime  # noqa: SLF001 - Ray's name
    session = Session(core, namespace, process, is_driver=True, actor_lifetime=lifetime)
    state.set_session(session)
    # Last registered runs first: before what was registered earlier, such as the end of logging.
    atexit.register(shutdown)
    return _context(session)


def _prepare_for_calls() -> None:
    """What the first call of a function needs; it takes longer than a hundred calls."""
    import gc

    from ray_rust._private import serialization, signature

    signature.Signature.of(_prepare_for_calls).check("", (), {})
    serialization.dumps_function(lambda: None, "a function")
    # What the imports have made is looked at now, and not in the midst of the first call.
    gc.collect(1)


def _find_cluster(address: Optional[str], directory: str, *, may_start: bool) -> Optional[NodeInfo]:
    """The node to join, or None if one has to be started.

    "auto" asks for one that runs, unless the node to start is described (`may_start`).
    """
    from ray_rust._private import node as nodes

    has_to_run = address == "auto" and not may_start
    if address in (None, "", "auto"):
        address = os.environ.get("RAY_ADDRESS") or "auto"
    if address == "local":
        return None
    if address == "auto":
        advertised = nodes.advertised_node(directory)
        if advertised is None and has_to_run:
            raise ConnectionError(
                f"no cluster runs on this machine (looked in {directory}): start one with 'ray-rust start --head', "
                "name one by RAY_ADDRESS, or leave out the address, and one is started for this program"
            )
        return advertised
    node = nodes.find_node(directory, address)
    if node is None:
        running = sorted({node.gcs_address for node in nodes.living_nodes(directory)})
        hint = f"; running here: {', '.join(running)}" if running else ""
        raise ConnectionError(
            f"no node of the cluster at {address} runs on this machine (looked in {directory}){hint}. "
            f"Start one with 'ray-rust start --address={address}', or a cluster with 'ray-rust start --head'"
        )
    return node


def _describe_runtime_env(runtime_env: Optional[Mapping[str, Any]]) -> Optional[str]:
    """As nodes understand it; None if something has to be uploaded first."""
    if not runtime_env:
        return ""
    from ray_rust._private.runtime_env.describe import describe_for_job

    return describe_for_job(runtime_env)


def _upload_runtime_env(runtime_env: Optional[Mapping[str, Any]], core: CoreWorker) -> None:
    from ray_rust._private.runtime_env.describe import describe

    core.set_runtime_env(describe(runtime_env or {}, core))


def _entrypoint() -> str:
    import shlex

    return " ".join(shlex.quote(argument) for argument in [sys.executable, *sys.argv])


def _job_description(namespace: str, job: JobConfig) -> bytes:
    """What workers need so that they can import what this process can, and behave as its job wants."""
    import json

    from ray_rust._private import as_ray

    directory = os.getcwd()
    folders = [*job.code_search_path, *job._py_driver_sys_path, *sys.path]  # noqa: SLF001 - Ray's name
    # Entries are absolute there, where the working directory may be another one for a moment.
    path = [os.path.join(directory, entry) for entry in folders]
    logging_config = job.py_logging_config
    config = {
        "sys_path": path,
        "working_dir": directory,
        "namespace": namespace,
        "as_ray": as_ray.is_installed(),
        "default_actor_lifetime": job._default_actor_lifetime,  # noqa: SLF001 - Ray's name
        "logging": logging_config.to_dict() if logging_config is not None else None,
    }
    return json.dumps(config).encode()


def _line_printer(job: JobConfig) -> Callable[[int, str, bool, list[str]], None]:
    from ray_rust._private import log_printer

    if job.py_logging_config is not None or os.environ.get("RAY_DISABLE_WORKER_LOG_PREFIX") == "1":
        # Lines have to stay whole for those who parse them.
        return log_printer.print_bare_lines
    return log_printer.print_lines


def _ignore_lines(pid: int, name: str, is_stderr: bool, lines: list[str]) -> None:
    """For drivers that do not want to see what workers print."""


def _warn(text: str) -> None:
    import logging

    logging.getLogger("ray_rust").warning("ray_rust: %s", text)


def _context(session: Session) -> RayContext:
    return RayContext(address_info(session))


def shutdown(*, wait_for_processes: bool = False, _exiting_interpreter: bool = False) -> None:
    """Leaves the cluster. One that `init` started ends: its processes are gone when this returns.

    References and handles of this connection are of no use afterwards.
    """
    with state.lock:
        session = state.get_session()
        if session is None or not session.is_driver:
            return
        try:
            session.core.flush_logs(_FLUSH_TIMEOUT_S)
        except Exception:  # noqa: BLE001 - the node may be gone, and with it what was not shown yet
            pass
        finally:
            _show_held_back_lines()
            state.set_session(None)
            atexit.unregister(shutdown)
            _leave(session)
            shelf = sys.modules.get("ray_rust._private.tensors.shelf")
            if shelf is not None:
                shelf.clear()


def _show_held_back_lines() -> None:
    """Those that wait for others that say the same."""
    printer = sys.modules.get("ray_rust._private.log_printer")
    if printer is not None:
        printer.flush()


def _leave(session: Session) -> None:
    try:
        session.core.shutdown(session.node is not None)
    finally:
        if session.node is not None:
            session.node.wait()


def is_initialized() -> bool:
    """Whether this process is connected to a cluster."""
    return state.is_initialized()


def get_gpu_ids() -> Union[list[int], list[str]]:
    """The graphics processors that this task or actor is to use; none in a driver.

    Numbers from 0, or entries of `CUDA_VISIBLE_DEVICES` if that was set for the node. Several tasks that take
    parts of a device get the same one.
    """
    from ray_rust._private import gpus

    session = state.current_session()
    return [] if session.is_driver else gpus.visibility().ids(session.core.leased()[1])


def _mode() -> Optional[int]:
    return global_worker.mode


def get_dashboard_url() -> Optional[str]:
    """None: there is no dashboard."""
    return None


if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name == "_global_node":
            return global_node()
        if name in ("get", "put", "wait", "remote", "kill", "cancel", "get_actor"):
            import ray_rust

            return getattr(ray_rust, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
