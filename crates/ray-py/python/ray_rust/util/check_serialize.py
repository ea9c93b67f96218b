"""What inside a value keeps it from being sent to another process."""

from __future__ import annotations

from typing import Any, Optional

from ray_rust._private.culprit import is_picklable, parts_of

__all__ = ["FailureTuple", "inspect_serializability"]

_MAX_SHOWN = 200
# Those who see so many know enough.
_MAX_FAILURES = 20


class FailureTuple:
    """A part that cannot be pickled.

    `obj` is the part, `path` the names that lead to it, `parent` what refers to it (None for the value
    itself).
    """

    def __init__(self, obj: Any, path: tuple[str, ...], parent: Any) -> None:
        self.obj = obj
        self.path = path
        self.parent = parent

    def __repr__(self) -> str:
        path = [str(name) if name is not None else "unknown" for name in self.path] or ["unknown"]
        return f"FailTuple({path[-1]} [path={' -> '.join(path)}, obj={_short(self.obj)}, parent={_short(self.parent)}])"


def inspect_serializability(
    base_obj: Any, name: Optional[str] = None, depth: int = 3, print_file: Optional[Any] = None
) -> tuple[bool, set[FailureTuple]]:
    """Whether a value can be sent to other processes, and the parts because of which it cannot.

    Looks `depth` steps into the value: variables that functions use, attributes, members of classes,
    items. What it does is printed to `print_file`, by default to the standard output.
    """
    inspection = _Inspection(print_file)
    title = f"Can {_short(base_obj)} be sent to another process?"
    inspection.say(title)
    inspection.say("=" * min(len(title), 80))
    path = () if name is None else (name,)
    serializable = inspection.look(base_obj, path, None, depth)
    if not serializable:
        inspection.say("It cannot, because of:")
        for failure in inspection.failures:
            inspection.say(f"    {failure!r}")
        inspection.say("There may be more. Leave them out, or make them in the function or class that uses them.")
    else:
        inspection.say("It can.")
    return serializable, set(inspection.failures)


class _Inspection:
    def __init__(self, print_file: Optional[Any]) -> None:
        self.failures: list[FailureTuple] = []
        self._print_file = print_file
        self._level = 0
        # Parts that were looked at, kept alive so that their ids stay theirs.
        self._seen: dict[int, Any] = {}

    def say(self, text: str) -> None:
        print("    " * self._level + text, file=self._print_file)

    def look(self, value: Any, path: tuple[str, ...], parent: Any, depth: int) -> bool:
        """Whether the value can be pickled; if not, the innermost parts because of which are among the failures."""
        self._seen[id(value)] = value
        if is_picklable(value):
            return True
        self.say(f"{' -> '.join(path) or 'It'} cannot be pickled: {_short(value)}")
        found = False
        if depth > 0:
            self._level += 1
            for part in parts_of(value):
                if id(part.value) in self._seen or len(self.failures) >= _MAX_FAILURES:
                    continue
                found |= not self.look(part.value, (*path, part.name), value, depth - 1)
            self._level -= 1
        if not found:
            self.failures.append(FailureTuple(value, path, parent))
        return False


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - code of the user
        text = f"<{type(value).__qualname__}>"
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."
