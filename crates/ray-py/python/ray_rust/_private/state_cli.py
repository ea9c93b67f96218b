"""`ray-rust list`, `get` and `summary`: the state API from a shell."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

_LISTED = (
    "actors",
    "jobs",
    "placement-groups",
    "nodes",
    "workers",
    "tasks",
    "objects",
    "runtime-envs",
    "cluster-events",
)
_GOT = ("actors", "jobs", "placement-groups", "nodes", "workers", "tasks", "objects")
_SUMMED_UP = ("tasks", "actors", "objects")
_FORMATS = ("default", "table", "json", "yaml")


def add_commands(commands: Any, add_temp_dir: Any) -> None:
    """Adds the commands to a parser's."""
    listing = commands.add_parser("list", help="list tasks, actors, objects, nodes, workers, jobs and others")
    listing.add_argument("resource", choices=_LISTED, metavar="RESOURCE", help=", ".join(_LISTED))
    listing.add_argument(
        "-f",
        "--filter",
        action="append",
        default=[],
        type=_filter,
        metavar="KEY=VALUE",
        help="or KEY!=VALUE; may be repeated",
    )
    listing.add_argument("--limit", type=int, default=100, metavar="N", help="the most that is listed (default: 100)")
    listing.add_argument("--detail", action="store_true", help="show all columns")
    listing.set_defaults(run=run_list)
    getting = commands.add_parser("get", help="show one task, actor, object, node, worker or job")
    getting.add_argument("resource", choices=_GOT, metavar="RESOURCE", help=", ".join(_GOT))
    getting.add_argument("id", help="its id")
    getting.set_defaults(run=run_get)
    summary = commands.add_parser("summary", help="count tasks, actors or objects by kind and state")
    summary.add_argument("resource", choices=_SUMMED_UP, metavar="RESOURCE", help=", ".join(_SUMMED_UP))
    summary.set_defaults(run=run_summary)
    for command in (listing, getting, summary):
        command.add_argument("--format", choices=_FORMATS, default="default", help="of the output")
        command.add_argument("--address", metavar="HOST:PORT", help="of the cluster (default: the one started by hand)")
        command.add_argument("--timeout", type=float, default=30.0, metavar="S", help="in seconds (default: 30)")
        add_temp_dir(command)


def _filter(text: str) -> tuple[str, str, str]:
    import argparse

    key, predicate, value = text.partition("!=")
    if not predicate:
        key, predicate, value = text.partition("=")
    if not predicate or not key:
        raise argparse.ArgumentTypeError(f"has to be KEY=VALUE or KEY!=VALUE, is {text!r}")
    return key, predicate, value


def _with_folder(options: argparse.Namespace) -> None:
    import os

    if options.temp_dir is not None:
        os.environ["RAY_RUST_TMPDIR"] = options.temp_dir


def run_list(options: argparse.Namespace) -> int:
    """Lists."""
    from ray_rust.util.state import StateApiClient
    from ray_rust.util.state.common import ListApiOptions, StateResource, resource_to_schema

    _with_folder(options)
    resource = StateResource(options.resource.replace("-", "_"))
    listing = ListApiOptions(
        limit=options.limit, timeout=options.timeout, detail=options.detail, filters=options.filter
    )
    rows = StateApiClient(options.address).list(resource, listing, raise_on_missing_output=False, _explain=False)
    schema = resource_to_schema(resource)
    columns = schema.list_columns(detail=options.detail)
    shown = [{column: row[column] for column in columns} for row in rows]
    form = options.format
    if form == "json":
        print(json.dumps(shown))
    elif form == "yaml" or (form == "default" and options.detail):
        print("\n".join(f"---\n{_yaml(schema.humanify(row))}" for row in shown))
    else:
        print(_table([schema.humanify(row) for row in shown], columns))
        print(f"{len(shown)} {options.resource}")
    return 0


def run_get(options: argparse.Namespace) -> int:
    """Shows one."""
    from ray_rust.util.state import StateApiClient
    from ray_rust.util.state.common import GetApiOptions, StateResource, resource_to_schema

    _with_folder(options)
    resource = StateResource(options.resource.replace("-", "_"))
    found = StateApiClient(options.address).get(resource, options.id, GetApiOptions(timeout=options.timeout))
    if found is None:
        raise ValueError(f"there is no {options.resource} with the id {options.id}")
    rows = [row.asdict() for row in (found if isinstance(found, list) else [found])]
    if options.format == "json":
        print(json.dumps(rows if isinstance(found, list) else rows[0]))
    else:
        schema = resource_to_schema(resource)
        print("\n".join(f"---\n{_yaml(schema.humanify(row))}" for row in rows))
    return 0


def run_summary(options: argparse.Namespace) -> int:
    """Counts."""
    from ray_rust.util import state

    _with_folder(options)
    summarize = getattr(state, f"summarize_{options.resource}")
    summary = summarize(options.address, timeout=options.timeout, raise_on_missing_output=False)["cluster"]
    if options.format == "json":
        print(json.dumps(summary))
    elif options.format == "yaml":
        print(_yaml(summary))
    else:
        totals = {name: value for name, value in summary.items() if name != "summary"}
        print("\n".join(f"{name}: {value}" for name, value in totals.items()))
        rows = [{"key": key, **row} for key, row in sorted(summary["summary"].items())]
        print(_table(rows, list(rows[0]) if rows else []))
    return 0


def _table(rows: list[dict[str, Any]], columns: list[str]) -> str:
    cells = [[column.upper() for column in columns]]
    cells += [[_cell(row[column]) for column in columns] for row in rows]
    widths = [max(len(line[at]) for line in cells) for at in range(len(columns))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {item}" for key, item in value.items())
    return "" if value is None else str(value).replace("\n", " ")


def _yaml(value: Any, indent: int = 0) -> str:
    """Plain values as YAML."""
    space = "  " * indent
    if isinstance(value, dict) and value:
        return "\n".join(f"{space}{key}:{_yaml_item(item, indent)}" for key, item in value.items())
    if isinstance(value, list) and value:
        return "\n".join(f"{space}-{_yaml_item(item, indent)}" for item in value)
    return f"{space}{_scalar(value)}"


def _yaml_item(value: Any, indent: int) -> str:
    if isinstance(value, (dict, list)) and value:
        return "\n" + _yaml(value, indent + 1)
    if isinstance(value, str) and "\n" in value:
        space = "  " * (indent + 1)
        return " |-\n" + "\n".join(space + line for line in value.rstrip("\n").split("\n"))
    return f" {_scalar(value)}"


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        plain = value != "" and value.replace("_", "").replace(".", "").replace("-", "").isalnum()
        # What looks like a number would be read as one.
        return value if plain and not value[0].isdigit() and value[0] not in "-." else json.dumps(value)
    return json.dumps(value) if not isinstance(value, (dict, list)) else ("{}" if isinstance(value, dict) else "[]")
