"""docs/compatibility.md says what is so: it is compared with this package, and with what is known of Ray."""

import importlib.util
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def compatibility():
    spec = importlib.util.spec_from_file_location("compatibility", ROOT / ".ci" / "compatibility.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def snapshot(compatibility):
    return compatibility.read(compatibility.SNAPSHOT)


@pytest.fixture(scope="module")
def reasons(compatibility):
    return compatibility.read(compatibility.REASONS)


def test_the_table_is_up_to_date(compatibility):
    pytest.importorskip("joblib", reason="ray.util.joblib cannot be looked at without joblib")
    expected = compatibility.current_table()
    assert pathlib.Path(compatibility.TABLE).read_text() == expected, "out of date: run 'make compat'"


def test_every_reason_is_about_something_that_ray_has(snapshot, reasons):
    names = {f"{module}.{name}" for module, found in snapshot["modules"].items() for name in found}
    names |= {f"{kind}: {name}" for kind, found in snapshot["options"].items() for name in found}
    members = {
        one for found in snapshot["modules"].values() for entry in found.values() for one in entry.get("members", ())
    }
    given = {*reasons["differs"], *reasons["absent"], *reasons["made by the system"]}
    assert given <= names
    assert set(reasons["members"]) <= members


def test_what_stands_for_ray_core_is_known(compatibility, snapshot):
    assert snapshot["version"] == "2.60.0"
    assert set(snapshot["modules"]) == set(compatibility.MODULES)
    assert {"get", "put", "wait", "remote", "init", "kill"} <= set(snapshot["modules"]["ray"])
    assert "max_retries" in snapshot["options"]["@remote of a function"]


def parameter(name, default=None, kind="POSITIONAL_OR_KEYWORD"):
    return [name, kind, default]


def function(*parameters, **more):
    return {"kind": "function", "signature": list(parameters), **more}


NOTHING = {"differs": {}, "absent": {}, "members": {}, "made by the system": []}


@pytest.mark.parametrize(
    ("theirs", "own", "state", "how"),
    [
        (function(parameter("a")), function(parameter("a")), "same", ""),
        (function(parameter("a")), function(parameter("a"), parameter("b", "1")), "same", ""),
        (function(parameter("a")), None, "absent", "not yet"),
        (function(mark="Deprecated"), None, "absent", "deprecated"),
        (function(), {"kind": "missing"}, "absent", "not yet"),
        (
            function(parameter("a"), parameter("b", "1")),
            function(parameter("a")),
            "differs",
            "lacks the parameters `b`",
        ),
        (function(parameter("a")), function(parameter("b")), "differs", "needs the parameters `b`"),
        (
            function(parameter("a", "1")),
            function(parameter("a", "2")),
            "differs",
            "by default 2 instead of by default 1",
        ),
        (function(parameter("a")), function(parameter("a", kind="KEYWORD_ONLY")), "differs", "by name only"),
        (function(parameter("a")), {"kind": "value"}, "differs", "a value instead of a function"),
        (
            {"kind": "class", "members": {"m": {"kind": "method"}}},
            {"kind": "class", "members": {}},
            "differs",
            "lacks `m`",
        ),
        (
            {"kind": "class", "members": {"m": {"kind": "method", "signature": [parameter("a")]}}},
            {"kind": "class", "members": {"m": {"kind": "method", "signature": []}}},
            "differs",
            "`m`: lacks the parameters `a`",
        ),
    ],
)
def test_differences_are_seen_and_named(compatibility, theirs, own, state, how):
    known = {"ray": {"name": own} if own is not None else {}}
    sections = compatibility.compare(
        {"modules": {"ray": {"name": theirs}}, "options": {}}, {"modules": known, "options": {}}, NOTHING
    )
    (row,) = sections["ray"]
    assert (row.name, row.state) == ("ray.name", state)
    assert how in row.how


def test_reasons_stand_in_the_table(compatibility):
    theirs = {"modules": {"ray": {"a": function(), "b": function()}}, "options": {"@remote": ["x", "y"]}}
    own = {"modules": {"ray": {"a": function()}}, "options": {"@remote": ["x"]}}
    reasons = {**NOTHING, "differs": {"ray.a": "it hums"}, "absent": {"ray.b": "Java", "@remote: y": "C++"}}
    text = compatibility.render(compatibility.compare(theirs, own, reasons), "1", reasons)
    assert "| `ray.a` | differs | it hums |" in text
    assert "| `ray.b` | absent | Java |" in text
    assert "| `y` | absent | C++ |" in text
    assert "4 names: 1 same, 1 differ, 2 absent, of which 0 not yet." in text
