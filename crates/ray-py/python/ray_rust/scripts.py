"""The command `ray-rust`: start, stop and look at clusters from a shell, and measure on one."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
import types
from typing import TYPE_CHECKING, Any, Optional

from ray_rust._internal import __version__
from ray_rust._private import node as nodes
from ray_rust._private import state_cli

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_STOP_GRACE_S = 5.0
_POLL_S = 0.02


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Runs the command; returns its exit status."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.run
    if command is _run:
        return _run(options)  # whose errors are the program's
    try:
        return command(options)
    except (RuntimeError, ConnectionError, ValueError) as error:
        print(f"ray-rust: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ray-rust", description="Start, stop, look at and measure clusters.")
    parser.add_argument("--version", action="version", version=f"ray-rust {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    start = commands.add_parser("start", help="start a node on this machine")
    kind = start.add_mutually_exclusive_group(required=True)
    kind.add_argument("--head", action="store_true", help="start a new cluster, which init() then joins")
    kind.add_argument("--address", metavar="HOST:PORT", help="join the cluster of this address")
    start.add_argument("--port", type=int, help="of the head's control plane (default: a free one)")
    start.add_argument("--num-cpus", type=float, metavar="N", help="processors to offer (default: all)")
    start.add_argument("--num-gpus", type=float, metavar="N", help="graphics processors to offer (default: all)")
    start.add_argument("--resources", type=json.loads, metavar="JSON", help="of your own, as '{\"gizmo\": 2}'")
    start.add_argument("--labels", type=json.loads, metavar="JSON", help='as \'{"region": "eu"}\'')
    start.add_argument("--object-store-memory", type=int, metavar="BYTES", help="shared memory for objects")
    start.add_argument("--block", action="store_true", help="stay in the foreground until the node ends")
    _add_temp_dir(start)
    start.set_defaults(run=_start)

    run = commands.add_parser("run", help="run a program in which `import ray` gives this package")
    run.add_argument("-m", dest="is_module", action="store_true", help="PROGRAM is the name of a module")
    run.add_argument("program", metavar="PROGRAM", help="path of a script")
    run.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="of the program")
    run.set_defaults(run=_run)

    stop = commands.add_parser("stop", help="stop the nodes of this machine that were started by hand")
    stop.add_argument("--all", action="store_true", help="also those that belong to a running driver")
    stop.add_argument("--force", action="store_true", help="kill them at once")
    _add_temp_dir(stop)
    stop.set_defaults(run=_stop)

    status = commands.add_parser("status", help="show the nodes of a cluster and what is free")
    status.add_argument("--address", metavar="HOST:PORT", help="of the cluster (default: the one started by hand)")
    _add_temp_dir(status)
    status.set_defaults(run=_status)

    state_cli.add_commands(commands, _add_temp_dir)

    measure = commands.add_parser(
        "microbenchmark", help="measure rates of small tasks, calls and objects on this machine"
    )
    measure.add_argument(
        "--only", default="", metavar="NAMES", help="workloads, or parts of their names, with commas between"
    )
    measure.add_argument("--list", action="store_true", help="list the workloads")
    measure.add_argument("--seconds", type=_positive, default=2.0, metavar="S", help="length of a window (default: 2)")
    measure.add_argument("--rounds", type=_at_least_one, default=4, metavar="N", help="windows for each (default: 4)")
    measure.add_argument("--num-cpus", type=_at_least_one, metavar="N", help="processors to use (default: all)")
    measure.add_argument("--json", metavar="FILE", help="write the figures there too")
    _add_temp_dir(measure)
    measure.set_defaults(run=_microbenchmark)
    return parser


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"has to be a positive number, is {text!r}")
    return value


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"has to be a whole number from 1 on, is {text!r}")
    return int(text)


def _add_temp_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--temp-dir", metavar="DIR", help="where sessions are kept (default: /tmp/ray_rust)")


def _start(options: argparse.Namespace) -> int:
    directory = nodes.temp_dir(options.temp_dir)
    if options.head:
        running = nodes.advertised_node(directory)
        if running is not None:
            print(f"a cluster runs already at {running.gcs_address}; stop it first: ray-rust stop", file=sys.stderr)
            return 1
    node = nodes.start_node(
        nodes.node_config(
            directory,
            gcs_address=options.address,
            port=options.port,
            num_cpus=options.num_cpus,
            num_gpus=options.num_gpus,
            resources=options.resources,
            labels=options.labels,
            object_store_memory=options.object_store_memory,
        )
    )
    info = node.info
    print(f"node {info.node_id[:8]} runs (pid {info.pid}); its logs are in {info.session_dir}/logs")
    if options.head:
        print("to use it:           ray_rust.init()")
        print(f"to add a node:       ray-rust start --address={info.gcs_address}")
    print("to stop it:          ray-rust stop", flush=True)
    if not options.block:
        return 0
    try:
        return abs(node.wait_for_ever())
    except KeyboardInterrupt:
        _end([info], force=False)
        node.wait()
        return 0


def _run(options: argparse.Namespace) -> int:
    from ray_rust._private import as_ray

    as_ray.install()
    sys.argv = [options.program, *options.arguments]
    if options.is_module:
        import runpy

        sys.path.insert(0, os.getcwd())
        runpy.run_module(options.program, run_name="__main__", alter_sys=True)
        return 0
    try:
        with open(options.program, "rb") as file:
            source = file.read()
    except OSError as error:
        print(f"ray-rust: cannot read the program: {error}", file=sys.stderr)
        return 2
    # As Python has it: tracebacks and `__file__` are the same wherever the program goes.
    path = os.path.abspath(options.program)
    sys.path.insert(0, os.path.dirname(path))
    # It stays the main module until the process ends, for its threads and exit handlers.
    main_module = types.ModuleType("__main__")
    main_module.__file__ = path
    main_module.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = main_module
    exec(compile(source, path, "exec", dont_inherit=True), main_module.__dict__)  # noqa: S102 - what was asked for
    return 0


def _stop(options: argparse.Namespace) -> int:
    directory = nodes.temp_dir(options.temp_dir)
    living = [node for node in nodes.living_nodes(directory) if options.all or not node.owned_by_driver]
    if not living:
        print("no node runs")
        return 0
    left = _end(living, force=options.force)
    print(f"stopped {len(living) - len(left)} of {len(living)} nodes")
    return 1 if left else 0


def _end(living: list[nodes.NodeInfo], *, force: bool) -> list[nodes.NodeInfo]:
    """Ends these nodes; returns those that do not."""
    for number in [signal.SIGKILL] if force else [signal.SIGTERM, signal.SIGKILL]:
        living = [node for node in living if nodes.is_alive(node)]
        for node in living:
            try:
                os.kill(node.pid, number)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + _STOP_GRACE_S
        while living and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            living = [node for node in living if nodes.is_alive(node)]
    return living


def _status(options: argparse.Namespace) -> int:
    import ray_rust

    directory = nodes.temp_dir(options.temp_dir)
    address = options.address
    if address is None:
        node = nodes.advertised_node(directory)
        if node is None:
            print("no cluster runs on this machine (clusters that belong to a driver are shown with --address)")
            return 1
        address = node.gcs_address
    ray_rust.init(address, log_to_driver=False, _temp_dir=directory)
    try:
        print(_describe(address, ray_rust.nodes(), ray_rust.cluster_resources(), ray_rust.available_resources()))
    finally:
        ray_rust.shutdown()
    return 0


def _describe(address: str, members: list[dict[str, Any]], total: dict[str, float], available: dict[str, float]) -> str:
    lines = [f"cluster at {address}", "nodes:"]
    for member in members:
        state = "alive" if member["Alive"] else "dead"
        lines.append(f"  {member['NodeID'][:8]}  {state:5}  {member.get('NodeManagerAddress', '')}")
    lines.append("resources (used of total):")
    for name in sorted(total):
        used = total[name] - available.get(name, 0.0)
        lines.append(f"  {_amount(name, used)} of {_amount(name, total[name])} {name}")
    return "\n".join(lines)


def _microbenchmark(options: argparse.Namespace) -> int:
    from ray_rust._private import microbenchmark

    chosen = microbenchmark.choose(options.only)
    if options.list:
        print("\n".join(chosen))
        return 0
    settings = microbenchmark.Settings(options.seconds, options.rounds, options.num_cpus, options.temp_dir)
    return 0 if microbenchmark.run(chosen, settings, lambda line: print(line, flush=True), options.json) else 1


_GIB = 1 << 30


def _amount(name: str, value: float) -> str:
    return f"{value / _GIB:.2f} GiB" if name.endswith("memory") else f"{value:g}"


if __name__ == "__main__":
    sys.exit(main())
