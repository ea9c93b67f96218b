"""Joining and leaving a cluster."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Callable, Optional, Union

from ray_rust._internal import CoreWorker, init_logging
from ray_rust._private import session as state
from ray_rust._private.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from ray_rust._private.node import NodeInfo, NodeProcess

# How long the end of a driver waits for what workers printed last, in seconds.
_FLUSH_TIMEOUT_S = 1.0


class RayContext(Mapping[str, Any]):
    """What `init` returns: how the cluster can be reached; in a `with` statement, shuts down at its end."""

    dashboard_url: Optional[str] = None

    def __init__(self, address_info: dict[str, Any]) -> None:
        self.address_info = address_info
        self.python_version = "{}.{}.{}".format(*sys.version_info[:3])

    def __getitem__(self, key: str) -> Any:
        return self.address_info[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.address_info)

    def __len__(self) -> int:
        return len(self.address_info)

    def __enter__(self) -> RayContext:  # noqa: PYI034 - typing.Self comes with Python 3.11
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.disconnect()

    def disconnect(self) -> None:
        """Shuts down."""
        shutdown()

    def __repr__(self) -> str:
        return f"RayContext({self.address_info!r})"


# Keywords of Ray's init that change nothing about results here.
_IGNORED = frozenset(
    {
        "configure_logging",
        "dashboard_host",
        "dashboard_port",
        "include_dashboard",
        "logging_config",
        "logging_format",
        "_metrics_export_port",
        "_node_ip_address",
        "_system_config",
        "_tracing_startup_hook",
    }
)


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
    logging_level: Union[int, str, None] = None,
    log_to_driver: Optional[bool] = None,
    namespace: Optional[str] = None,
    runtime_env: Optional[dict[str, Any]] = None,
    _temp_dir: Optional[str] = None,
    **kwargs: Any,
) -> RayContext:
    """Joins a cluster, or starts one for this process.

    `address` None joins the cluster that `RAY_ADDRESS` names, else the one that was started on this
    machine with `ray-rust start --head`, else starts one that ends with this process. "auto" does the
    same (in Ray it fails where no cluster runs). "local" always starts one. "host:port" joins the cluster
    of that address, of which a node has to run on this machine.

    `num_cpus`, `num_gpus`, `resources`, `labels` and `object_store_memory` (bytes) describe the node that
    is started; they are refused when one is joined.
    """
    unknown = sorted(set(kwargs) - _IGNORED)
    if unknown:
        raise TypeError(f"init() got unexpected keyword arguments: {', '.join(unknown)}")
    if local_mode:
        raise NotImplementedError("local_mode is not supported")
    if logging_level is not None:
        import logging

        logging.getLogger("ray_rust").setLevel(logging_level)
    described = {
        "num_cpus": num_cpus,
        "num_gpus": num_gpus,
        "resources": resources,
        "labels": labels,
        "object_store_memory": object_store_memory,
    }
    described = {name: value for name, value in described.items() if value is not None}
    _check_node_description(described)
    job_env = _runtime_env_of_job(runtime_env)
    if namespace is not None and (not isinstance(namespace, str) or not namespace):
        raise ValueError(f"namespace has to be text that is not empty, is {namespace!r}")
    with state.lock:
        known = state.get_session()
        if known is not None:
            if ignore_reinit_error:
                return _context(known)
            raise RuntimeError(
                "init() was called already; call shutdown() first, or pass ignore_reinit_error=True if that is expected"
            )
        return _connect(address, described, job_env, namespace, log_to_driver, _temp_dir)


def _connect(
    address: Optional[str],
    described: dict[str, Any],
    runtime_env: Optional[Mapping[str, Any]],
    namespace: Optional[str],
    log_to_driver: Optional[bool],
    given_temp_dir: Optional[str],
) -> RayContext:
    from ray_rust._private import node as nodes

    directory = nodes.temp_dir(given_temp_dir)
    info = _find_cluster(address, directory)
    process: Optional[NodeProcess] = None
    if info is None:
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
            _job_config(namespace),
            _ignore_lines if log_to_driver is False else _line_printer(),
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
    session = Session(core, namespace, process, is_driver=True)
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


def _find_cluster(address: Optional[str], directory: str) -> Optional[NodeInfo]:
    """The node to join, or None if one has to be started."""
    from ray_rust._private import node as nodes

    if address is not None and not isinstance(address, str):
        raise TypeError(f"address has to be a string, is {address!r} of type {type(address).__name__}")
    if address in (None, "", "auto"):
        address = os.environ.get("RAY_ADDRESS") or "auto"
    if address == "local":
        return None
    if address == "auto":
        return nodes.advertised_node(directory)
    if "://" in address:
        raise ValueError(f"the address {address!r} is not supported: give host:port, 'auto' or 'local'")
    node = nodes.find_node(directory, address)
    if node is None:
        running = sorted({node.gcs_address for node in nodes.living_nodes(directory)})
        hint = f"; running here: {', '.join(running)}" if running else ""
        raise ConnectionError(
            f"no node of the cluster at {address} runs on this machine (looked in {directory}){hint}. "
            f"Start one with 'ray-rust start --address={address}', or a cluster with 'ray-rust start --head'"
        )
    return node


def _check_node_description(described: dict[str, Any]) -> None:
    from ray_rust._private import options

    options.check_init_amount("num_cpus", described.get("num_cpus"))
    options.check_init_amount("num_gpus", described.get("num_gpus"))
    if "resources" in described:
        options.check_resources("resources", described["resources"])
    memory = described.get("object_store_memory")
    if memory is not None and (isinstance(memory, bool) or not isinstance(memory, (int, float)) or memory <= 0):
        raise ValueError(f"object_store_memory has to be a positive number of bytes, is {memory!r}")
    if memory is not None:
        described["object_store_memory"] = int(memory)
    labels = described.get("labels", {})
    if not isinstance(labels, dict) or not all(isinstance(text, str) for pair in labels.items() for text in pair):
        raise TypeError(f"labels has to be a dict of strings, is {labels!r}")


def _runtime_env_of_job(given: Optional[dict[str, Any]]) -> Optional[Mapping[str, Any]]:
    """What was asked for by whoever may ask for it, checked."""
    runtime_env: Optional[Mapping[str, Any]] = given
    if "RAY_RUNTIME_ENV_HOOK" in os.environ or "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        from ray_rust._private.runtime_env.describe import of_job

        runtime_env = of_job(given)
    if runtime_env is not None:
        from ray_rust._private import options

        options.check_runtime_env("runtime_env", runtime_env)
    return runtime_env


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


def _job_config(namespace: str) -> bytes:
    """What workers need so that they can import what this process can."""
    import json

    directory = os.getcwd()
    # Entries are absolute there, where the working directory may be another one for a moment.
    path = [os.path.join(directory, entry) for entry in sys.path]
    config = {"sys_path": path, "working_dir": directory, "namespace": namespace}
    return json.dumps(config).encode()


def _line_printer() -> Callable[[int, str, bool, list[str]], None]:
    from ray_rust._private.log_printer import print_lines

    return print_lines


def _ignore_lines(pid: int, name: str, is_stderr: bool, lines: list[str]) -> None:
    """For drivers that do not want to see what workers print."""


def _warn(text: str) -> None:
    import logging

    logging.getLogger("ray_rust").warning("ray_rust: %s", text)


def _context(session: Session) -> RayContext:
    core = session.core
    return RayContext(
        {
            "address": core.gcs_address,
            "gcs_address": core.gcs_address,
            "node_id": core.node_id.hex(),
            "node_ip_address": core.gcs_address.rpartition(":")[0],
            "session_dir": core.session_dir,
            "namespace": session.namespace,
            "webui_url": None,
        }
    )


def shutdown(*, wait_for_processes: bool = True, _exiting_interpreter: bool = False) -> None:
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
            state.set_session(None)
            atexit.unregister(shutdown)
            _leave(session)


def _leave(session: Session) -> None:
    try:
        session.core.shutdown(session.node is not None)
    finally:
        if session.node is not None:
            session.node.wait()
