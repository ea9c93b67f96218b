"""Patterns of files that are left out, as git understands them in `.gitignore`."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class Patterns:
    """A list of patterns; the last that fits a path decides."""

    def __init__(self, lines: Iterable[str]) -> None:
        parsed = (_parse(line) for line in lines)
        self._rules = [rule for rule in parsed if rule is not None]

    def __bool__(self) -> bool:
        return bool(self._rules)

    def excludes(self, path: str, *, is_folder: bool) -> bool:
        """Whether this path, relative to where the patterns stand, is left out."""
        excluded = False
        for pattern, folders_only, excludes in self._rules:
            if excludes != excluded and (is_folder or not folders_only) and pattern.fullmatch(path):
                excluded = excludes
        return excluded


def _parse(line: str) -> tuple[re.Pattern[str], bool, bool] | None:
    """What it fits, whether it fits folders only, and whether what it fits is left out."""
    line = line.rstrip("\n").rstrip("\r")
    while line.endswith(" ") and not line.endswith("\\ "):
        line = line[:-1]
    if not line or line.startswith("#"):
        return None
    excludes = not line.startswith("!")
    if not excludes:
        line = line[1:]
    folders_only = line.endswith("/")
    line = line.rstrip("/")
    if not line:
        return None
    anchored = "/" in line
    line = line.lstrip("/")
    return _compile(line if anchored else "**/" + line), folders_only, excludes


@functools.lru_cache(maxsize=1024)
def _compile(pattern: str) -> re.Pattern[str]:
    parts = []
    at = 0
    while at < len(pattern):
        if pattern.startswith("**/", at) and (at == 0 or pattern[at - 1] == "/"):
            parts.append("(?:[^/]+/)*")
            at += 3
        elif pattern[at:] == "**" and (at == 0 or pattern[at - 1] == "/"):
            parts.append(".+")
            at += 2
        else:
            text, at = _one(pattern, at)
            parts.append(text)
    return re.compile("".join(parts), re.DOTALL)


def _one(pattern: str, at: int) -> tuple[str, int]:
    """The expression for what stands at this place, and where the next begins."""
    character = pattern[at]
    if character == "*":
        return "[^/]*", at + 1
    if character == "?":
        return "[^/]", at + 1
    if character == "\\" and at + 1 < len(pattern):
        return re.escape(pattern[at + 1]), at + 2
    if character == "[":
        end = pattern.find("]", at + 2)
        if end > 0:
            inside = pattern[at + 1 : end].replace("\\", "\\\\")
            if inside[0] in "!^":
                inside = "^/" + inside[1:]
            return f"[{inside}]", end + 1
    return re.escape(character), at + 1
