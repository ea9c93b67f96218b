"""Compares the public names of Ray Core with those of this package, and writes docs/compatibility.md.

    python .ci/compatibility.py                     writes the table, from the snapshot of Ray's names
    python .ci/compatibility.py --peer PYTHON       renews the snapshot first, with an interpreter that has Ray
    python .ci/compatibility.py --check             only says whether the table is what it should be

The snapshot (docs/compatibility/ray.json) holds names and signatures of the official wheel, so that comparing
needs no wheel. Reasons for what differs or is absent stand in docs/compatibility/reasons.json.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import subprocess
import sys
import unittest.mock
import warnings
from typing import Any, NamedTuple, Optional

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FOLDER = os.path.join(ROOT, "docs", "compatibility")
SNAPSHOT = os.path.join(FOLDER, "ray.json")
REASONS = os.path.join(FOLDER, "reasons.json")
TABLE = os.path.join(ROOT, "docs", "compatibility.md")

# What of Ray is Ray Core to its users. Libraries on top (data, train, tune, serve, rllib, dag, util.collective), the
# dashboard and the launcher of clusters are not.
MODULES = (
    "ray",
    "ray.actor",
    "ray.cluster_utils",
    "ray.exceptions",
    "ray.experimental",
    "ray.experimental.dynamic_resources",
    "ray.experimental.internal_kv",
    "ray.experimental.locations",
    "ray.experimental.tqdm_ray",
    "ray.internal",
    "ray.job_config",
    "ray.remote_function",
    "ray.runtime_context",
    "ray.runtime_env",
    "ray.types",
    "ray.util",
    "ray.util.accelerators",
    "ray.util.actor_pool",
    "ray.util.annotations",
    "ray.util.check_serialize",
    "ray.util.debug",
    "ray.util.joblib",
    "ray.util.metrics",
    "ray.util.multiprocessing",
    "ray.util.placement_group",
    "ray.util.queue",
    "ray.util.rpdb",
    "ray.util.scheduling_strategies",
    "ray.util.serialization",
    "ray.util.state",
    "ray.util.tracing",
    "ray.widgets",
)
# Names that programs use although no list or definition in the module shows them.
MORE_NAMES = {
    "ray": (
        "ClusterID",
        "RESTORE_WORKER_MODE",
        "SPILL_WORKER_MODE",
        "__commit__",
        "cloudpickle",
        "exceptions",
        "experimental",
        "job_config",
        "logger",
        "remote_function",
        "runtime_context",
        "runtime_env",
    ),
    "ray.experimental.internal_kv": (
        "_internal_kv_del",
        "_internal_kv_exists",
        "_internal_kv_get",
        "_internal_kv_initialized",
        "_internal_kv_list",
        "_internal_kv_put",
    ),
    "ray.util.placement_group": ("VALID_PLACEMENT_GROUP_STRATEGIES",),
    "ray.util.queue": ("Queue",),
}
# Methods whose arguments are those of the user's function or class.
_FREE = frozenset({"remote", "bind"})
# What lists of public names hold without being it, or Ray Core.
_OTHER_LIBRARIES = frozenset({"autoscaler", "collective", "data", "workflow", "_config"})
_PLAIN = (bool, int, float, str, bytes, type(None))


# What a package has


def describe_ray() -> dict[str, Any]:
    """All public names of Ray Core, and the options of tasks and actors."""
    modules = {}
    for name in MODULES:
        module = importlib.import_module(name)
        found = {public: _describe_value(_value_of(module, public)) for public in _public_names(module)}
        modules[name] = {public: described for public, described in found.items() if described["kind"] != "missing"}
    return {"modules": modules, "options": _options_of_ray()}


def describe_this(theirs: dict[str, Any]) -> dict[str, Any]:
    """What is here of the names that Ray has."""
    # Sets how warnings of deprecated names are shown, which must not happen while they are ignored.
    importlib.import_module("ray_rust.util.annotations")
    modules = {}
    for name, public in theirs["modules"].items():
        module = _module_or_none("ray_rust" + name[len("ray") :])
        if module is not None:
            modules[name] = {one: _describe_value(_value_of(module, one), known) for one, known in public.items()}
    return {"modules": modules, "options": _options_of_this()}


def _module_or_none(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise
        return None


def _value_of(module: Any, name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are deprecated
        try:
            return getattr(module, name)
        except (AttributeError, ImportError) as error:
            return error


def _public_names(module: Any) -> list[str]:
    """Those of `__all__`; without it those that were made there."""
    more = MORE_NAMES.get("ray" + module.__name__[len(module.__name__.partition(".")[0]) :], ())
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return sorted({*listed, *more} - _OTHER_LIBRARIES)

    def is_own(value: Any) -> bool:
        return (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__ == module.__name__

    return sorted({*(name for name, value in vars(module).items() if name[0] != "_" and is_own(value)), *more})


def _describe_value(value: Any, known: Optional[dict[str, Any]] = None) -> dict[str, Any]:
    mark = getattr(value, "_annotated_type", None) if "_annotated" in getattr(value, "__dict__", {}) else None
    described: dict[str, Any] = {"mark": mark.value} if mark is not None else {}
    if inspect.isclass(value):
        described.update(kind="class", signature=_signature(value), members=_members(value, known))
    elif inspect.ismodule(value):
        described.update(kind="module")
    elif isinstance(value, (AttributeError, ImportError)):
        described.update(kind="missing")
    elif callable(value):
        described.update(kind="function", signature=_signature(value))
    else:
        described.update(kind="value")
        if isinstance(value, (int, bool)):
            described["value"] = repr(value)
    return described


def _members(cls: type, known: Optional[dict[str, Any]]) -> dict[str, Any]:
    """Public ones that come from Ray; with `known`, those of them that are here."""
    found: dict[str, Any] = {}
    for name in known.get("members", {}) if known is not None else dir(cls):
        owner = next((base for base in cls.__mro__ if name in vars(base)), None)
        if name[0] == "_" or owner is None or not (known is not None or _is_rays(owner)):
            continue
        member = vars(owner)[name]
        is_method = callable(member) or isinstance(member, (staticmethod, classmethod))
        found[name] = (
            {"kind": "method", "signature": _signature(getattr(cls, name))} if is_method else {"kind": "attribute"}
        )
    return found


def _is_rays(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "ray"


def _signature(value: Any) -> Optional[list[list[Any]]]:
    """Parameters as [name, kind, default or null]; null where it is not known, or the class takes anything."""
    try:
        parameters = list(inspect.signature(value).parameters.values())
    except (ValueError, TypeError):
        return None
    described = []
    for parameter in parameters:
        # The object itself; and what is not public.
        if parameter.name[0] == "_" or parameter.name in ("self", "cls"):
            continue
        default = None if parameter.default is parameter.empty else _default_of(parameter.default)
        described.append([parameter.name, parameter.kind.name, default])
    return described


def _default_of(value: Any) -> str:
    if isinstance(value, str) and " " in value:
        return "..."  # words for people
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, (list, dict, tuple, set)) and not value:
        return repr(value)
    return "..."


def _options_of_ray() -> dict[str, list[str]]:
    try:
        from ray._common import ray_option_utils as utils
    except ImportError:
        from ray._private import ray_option_utils as utils
    return {
        "@remote of a function": sorted(utils.task_options),
        "@remote of a class": sorted(utils.actor_options),
        "@method": sorted(_METHOD_OPTIONS),
    }


# Ray checks them in the decorator's body, where nothing lists them.
_METHOD_OPTIONS = (
    "concurrency_group",
    "enable_task_events",
    "max_task_retries",
    "num_returns",
    "retry_exceptions",
    "tensor_transport",
    "_generator_backpressure_num_objects",
    "_num_objects_per_yield",
)


def _options_of_this() -> dict[str, list[str]]:
    from ray_rust._private import options

    return {
        "@remote of a function": sorted(options.TASK_OPTIONS),
        "@remote of a class": sorted(options.ACTOR_OPTIONS),
        "@method": sorted(options.METHOD_OPTIONS),
    }


# How they compare


class Row(NamedTuple):
    """One line of the table."""

    name: str
    state: str
    how: str


def compare(theirs: dict[str, Any], ours: dict[str, Any], reasons: dict[str, Any]) -> dict[str, list[Row]]:
    """The table's sections: rows by module, then options."""
    sections = {}
    for module, names in theirs["modules"].items():
        own = ours["modules"].get(module)
        if own is None:
            own = {}
        sections[module] = [
            _row(f"{module}.{name}", described, own.get(name), reasons) for name, described in sorted(names.items())
        ]
    for kind, names in theirs["options"].items():
        rows = []
        for name in names:
            full = f"{kind}: {name}"
            if name not in ours["options"][kind]:
                rows.append(_absent(full, {}, reasons, shown=name))
            else:
                reason = reasons["differs"].get(full, "")
                rows.append(Row(name, "differs" if reason else "same", reason))
        sections[f"Options of {kind}"] = rows
    return sections


def _row(name: str, theirs: dict[str, Any], own: Optional[dict[str, Any]], reasons: dict[str, Any]) -> Row:
    if own is None or own["kind"] == "missing":
        return _absent(name, theirs, reasons)
    differences = _differences(name, theirs, own, reasons)
    reason = reasons["differs"].get(name, "")
    if not differences and not reason:
        return Row(name, "same", "")
    return Row(name, "differs", "; ".join([*differences, *([reason] if reason else [])]))


def _absent(name: str, theirs: dict[str, Any], reasons: dict[str, Any], shown: str = "") -> Row:
    reason = reasons["absent"].get(name)
    if reason is None and theirs.get("mark") == "Deprecated":
        reason = "deprecated"
    return Row(shown or name, "absent", reason if reason is not None else "not yet")


def _differences(name: str, theirs: dict[str, Any], own: dict[str, Any], reasons: dict[str, Any]) -> list[str]:
    if theirs["kind"] != own["kind"]:
        return [f"a {own['kind']} instead of a {theirs['kind']}"]
    found = []
    if theirs.get("value") != own.get("value"):
        found.append(f"{own.get('value')} instead of {theirs.get('value')}")
    if name not in reasons["made by the system"]:
        found += _signature_differences(theirs.get("signature"), own.get("signature"))
    members, own_members = theirs.get("members", {}), own.get("members", {})
    lacking = sorted(set(members) - set(own_members) - set(reasons["members"]))
    if lacking:
        found.append(f"lacks {', '.join(f'`{name}`' for name in lacking)}")
    for member in sorted(set(members) & set(own_members) - _FREE):
        one, other = members[member], own_members[member]
        if one["kind"] != other["kind"]:
            found.append(f"`{member}` is a {other['kind']} instead of a {one['kind']}")
        else:
            inner = _signature_differences(one.get("signature"), other.get("signature"))
            found += [f"`{member}`: {difference}" for difference in inner]
    return found


def _signature_differences(theirs: Optional[list[list[Any]]], own: Optional[list[list[Any]]]) -> list[str]:
    if theirs is None or own is None:
        return []
    known, wanted = {entry[0]: entry for entry in own}, {entry[0]: entry for entry in theirs}
    takes_any = any(kind == "VAR_KEYWORD" for _, kind, _ in own)
    found = []
    lacking = [
        name
        for name, (_, kind, _) in wanted.items()
        if name not in known and not kind.startswith("VAR_") and not takes_any
    ]
    if lacking:
        found.append(f"lacks the parameters {', '.join(f'`{name}`' for name in lacking)}")
    for name, (_, kind, default) in wanted.items():
        if name in known and not kind.startswith("VAR_"):
            _, own_kind, own_default = known[name]
            if default != own_default:
                meant, here = ("required" if one is None else f"by default {one}" for one in (default, own_default))
                found.append(f"`{name}` is {here} instead of {meant}")
            if kind != own_kind and (kind, own_kind) != ("POSITIONAL_ONLY", "POSITIONAL_OR_KEYWORD"):
                found.append(f"`{name}` is {_KINDS[own_kind]} instead of {_KINDS[kind]}")
    needed = [
        name for name, kind, default in own if name not in wanted and default is None and not kind.startswith("VAR_")
    ]
    if needed and not any(kind.startswith("VAR_") for _, kind, _ in theirs):
        found.append(f"needs the parameters {', '.join(f'`{name}`' for name in needed)}")
    return found


_KINDS = {
    "POSITIONAL_ONLY": "by position only",
    "POSITIONAL_OR_KEYWORD": "by position or name",
    "KEYWORD_ONLY": "by name only",
    "VAR_POSITIONAL": "variadic",
    "VAR_KEYWORD": "variadic",
}


# The table


def render(sections: dict[str, list[Row]], version: str, reasons: dict[str, Any]) -> str:
    """The document."""
    rows = [row for section in sections.values() for row in section]
    count = {state: sum(row.state == state for row in rows) for state in ("same", "differs", "absent")}
    not_yet = sum((row.state, row.how) == ("absent", "not yet") for row in rows)
    summary = f"{len(rows)} names: {count['same']} same, {count['differs']} differ, {count['absent']} absent"
    lines = [
        "# Compatibility with Ray Core",
        "",
        f"Every public name of Ray Core {version} and how it is here. `make compat` writes this file, by comparing",
        "names, parameters and their defaults with the official wheel; a test says when it is out of date. Types of",
        "parameters are not compared, and parameters that are only here, or not public, are not shown.",
        "",
        "*same*: is there, with the same signature. *differs*: is there, and how it differs. *absent*: is not there,",
        "and why; *not yet* stands for what is still to come.",
        "",
        f"{summary}, of which {not_yet} not yet.",
    ]
    lines += ["", "Left out, because only Ray's own processes use them, or another library:", ""]
    lines += [f"* `{name}`: {why}" for name, why in reasons["members"].items()]
    for section, members in sections.items():
        if not members:
            continue
        lines += ["", f"## {section}", "", "| name | | how, or why |", "|---|---|---|"]
        lines += [f"| `{row.name}` | {row.state} | {row.how.replace('|', chr(92) + '|')} |" for row in members]
    return "\n".join(lines) + "\n"


def read(path: str) -> Any:
    """A file of JSON."""
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def current_table() -> str:
    """What the table should be."""
    snapshot, reasons = read(SNAPSHOT), read(REASONS)
    return render(compare(snapshot, describe_this(snapshot), reasons), snapshot["version"], reasons)


def _renew_snapshot(peer: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_RUST_AS_RAY")}
    done = subprocess.run(
        [peer, os.path.abspath(__file__), "--describe"], stdout=subprocess.PIPE, check=True, text=True, env=environment
    )
    with open(SNAPSHOT, "w", encoding="utf-8") as file:
        file.write(_one_name_a_line(json.loads(done.stdout)))


def _one_name_a_line(snapshot: dict[str, Any]) -> str:
    """In JSON, so that a difference between two versions can be read."""
    parts = []
    for module, names in snapshot["modules"].items():
        lines = ",\n".join(
            f"   {json.dumps(name)}: {json.dumps(names[name], sort_keys=True)}" for name in sorted(names)
        )
        parts.append(f"  {json.dumps(module)}: {{\n{lines}\n  }}")
    modules = ",\n".join(parts)
    options = json.dumps(snapshot["options"], sort_keys=True)
    version = json.dumps(snapshot["version"])
    return f'{{\n "version": {version},\n "options": {options},\n "modules": {{\n{modules}\n }}\n}}\n'


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", metavar="PYTHON", help="an interpreter that has the official wheel of Ray")
    parser.add_argument("--check", action="store_true", help="write nothing, and fail if the table is out of date")
    parser.add_argument("--describe", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.describe:
        # Not this folder's files, of which one may have the name of a module.
        sys.path[:] = [
            entry for entry in sys.path if os.path.abspath(entry) != os.path.dirname(os.path.abspath(__file__))
        ]
        import ray

        # One of Ray's modules needs it, but nothing of it.
        sys.modules.update({name: unittest.mock.MagicMock() for name in ("joblib", "joblib.parallel")})
        print(json.dumps({"version": ray.__version__, **describe_ray()}))
        return 0
    if options.peer:
        _renew_snapshot(options.peer)
    table = current_table()
    if options.check:
        with open(TABLE, encoding="utf-8") as file:
            is_current = file.read() == table
        print(
            "docs/compatibility.md is up to date" if is_current else "docs/compatibility.md is out of date: make compat"
        )
        return 0 if is_current else 1
    with open(TABLE, "w", encoding="utf-8") as file:
        file.write(table)
    print(table.split("\n\n")[3])
    return 0


if __name__ == "__main__":
    sys.exit(main())
