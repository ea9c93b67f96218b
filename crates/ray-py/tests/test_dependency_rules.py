"""The check of the Rust dependencies' licences reads licence expressions as they are meant."""

import importlib.util
import os

import pytest

PATH = os.path.join(os.path.dirname(__file__), "..", "..", "..", ".ci", "check_dependencies.py")
ALLOWED = {"MIT", "Apache-2.0", "Unicode-3.0", "Apache-2.0 WITH LLVM-exception"}


@pytest.fixture(scope="module")
def rules():
    spec = importlib.util.spec_from_file_location("check_dependencies", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("GPL-3.0", False),
        ("", False),
        ("GPL-3.0 OR MIT", True),
        ("MIT/GPL-3.0", True),
        ("MIT AND GPL-3.0", False),
        ("(MIT OR GPL-3.0) AND Unicode-3.0", True),
        ("(MIT OR GPL-3.0) AND GPL-2.0", False),
        ("GPL-3.0 OR MIT AND Unicode-3.0", True),
        ("Apache-2.0 WITH LLVM-exception OR GPL-3.0", True),
        ("GPL-3.0 WITH LLVM-exception", False),
        ("MIT OR", False),
        ("(MIT", False),
        ("MIT WITH", False),
    ],
)
def test_licence_expressions(rules, expression, allowed):
    assert rules.is_allowed(expression, ALLOWED) is allowed


def test_an_exception_is_for_one_package(rules):
    exceptions = [{"allow": ["NCSA"], "crate": "libfuzzer-sys"}]
    deny = {"licenses": {"allow": ["MIT"], "exceptions": exceptions}}
    assert rules.licences_for("libfuzzer-sys", deny) == {"MIT", "NCSA"}
    assert rules.licences_for("serde", deny) == {"MIT"}
