"""Checks the Rust dependencies against the rules of deny.toml.

Uses cargo-deny where it is installed. Elsewhere it checks licences, banned crates and sources itself,
from what `cargo metadata` says, and prints what it therefore did not check.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from typing import Any

try:
    import tomllib
except ImportError:  # before Python 3.11; mypy brings it along
    import tomli as tomllib

# The fuzz targets are a workspace of their own.
MANIFESTS = ("Cargo.toml", "fuzz/Cargo.toml")
REGISTRY = "registry+https://github.com/rust-lang/crates.io-index"


def main() -> int:
    """Runs whichever check is possible; returns its exit status."""
    if shutil.which("cargo-deny"):
        return max(map(run_cargo_deny, MANIFESTS))
    print("cargo-deny is not installed: licences, bans and sources are checked by this script;")
    print("known vulnerabilities are not checked (`cargo install cargo-deny` for that)")
    return max(map(check_metadata, MANIFESTS))


def run_cargo_deny(manifest: str) -> int:
    """Everything, and advisories where their database can be fetched."""
    deny = ["cargo", "deny", "--manifest-path", manifest]
    check = [*deny, "check", "--config", os.path.abspath("deny.toml")]
    status = subprocess.run([*check, "licenses", "bans", "sources"], check=False).returncode
    fetched = subprocess.run([*deny, "fetch", "db"], check=False, capture_output=True, text=True)
    if fetched.returncode != 0:
        lines = fetched.stderr.strip().splitlines() or ["no reason given"]
        print(f"known vulnerabilities are not checked: the database cannot be fetched ({lines[-1]})")
        return status
    return subprocess.run([*check, "advisories"], check=False).returncode or status


def check_metadata(manifest: str) -> int:
    """Licences, banned crates and sources."""
    with open("deny.toml", "rb") as file:
        rules = tomllib.load(file)
    command = ["cargo", "metadata", "--format-version", "1", "--all-features", "--manifest-path", manifest]
    metadata = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    packages = metadata["packages"]
    problems = [problem for package in packages for problem in problems_of(package, rules)]
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{manifest}: {len(packages)} packages checked, {len(problems)} problems")
    return 1 if problems else 0


def problems_of(package: dict[str, Any], rules: dict[str, Any]) -> list[str]:
    """What the rules have against a package."""
    name = f"{package['name']} {package['version']}"
    found = []
    if not is_allowed(package["license"] or "", licences_for(package["name"], rules)):
        found.append(f"{name}: the licence {package['license']!r} is not allowed")
    found += [f"{name}: {ban['reason']}" for ban in rules["bans"]["deny"] if ban["name"] == package["name"]]
    if package["source"] not in {None, REGISTRY}:
        found.append(f"{name}: comes from {package['source']}")
    return found


def licences_for(package: str, rules: dict[str, Any]) -> set[str]:
    """The licences that a package may have."""
    allowed = set(rules["licenses"]["allow"])
    for exception in rules["licenses"]["exceptions"]:
        if exception["crate"] == package:
            allowed.update(exception["allow"])
    return allowed


def is_allowed(expression: str, allowed: set[str]) -> bool:
    """Whether an SPDX expression can be met with allowed licences; one that makes no sense cannot."""
    # Before SPDX, crates wrote a slash for "or".
    tokens = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))
    try:
        return _either(tokens, allowed) and not tokens
    except IndexError:
        return False


def _either(tokens: list[str], allowed: set[str]) -> bool:
    values = [_both(tokens, allowed)]
    while tokens[:1] == ["OR"]:
        del tokens[0]
        values.append(_both(tokens, allowed))
    return any(values)


def _both(tokens: list[str], allowed: set[str]) -> bool:
    values = [_one(tokens, allowed)]
    while tokens[:1] == ["AND"]:
        del tokens[0]
        values.append(_one(tokens, allowed))
    return all(values)


def _one(tokens: list[str], allowed: set[str]) -> bool:
    token = tokens.pop(0)
    if token == "(":
        value = _either(tokens, allowed)
        return tokens.pop(0) == ")" and value
    if tokens[:1] == ["WITH"]:
        token += f" {tokens.pop(0)} {tokens.pop(0)}"
    return token in allowed


if __name__ == "__main__":
    sys.exit(main())
