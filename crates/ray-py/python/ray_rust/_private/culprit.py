"""Finds what inside a value keeps it from being pickled, and how to get there."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

# Looking costs a pickling attempt for each part; values beyond this are described by their type alone.
_MAX_ATTEMPTS = 2000
_MAX_DEPTH = 20


class Culprit(NamedTuple):
    """The innermost part that cannot be pickled."""

    path: tuple[str, ...]
    value: Any

    def describe(self) -> str:
        """Such as "the 'lock' attribute of Foo in item 0 of list is a _thread.lock"."""
        cls = type(self.value)
        name = cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
        return f"{', in '.join(reversed(self.path))} is a {name}, which cannot be pickled"


def find_culprit(value: Any) -> Culprit:
    """The innermost part of `value` that cannot be pickled; `value` itself with no path if none is found."""
    search = _Search()
    path: list[str] = []
    while len(path) < _MAX_DEPTH:
        step = search.first_bad_part(value)
        if step is None:
            break
        description, value = step
        path.append(description)
    return Culprit(tuple(path), value)


class Part(NamedTuple):
    """Something that is pickled with a value."""

    # Such as "lock", "[0]".
    name: str
    # Such as "the 'lock' attribute of Foo".
    description: str
    value: Any


class _Search:
    def __init__(self) -> None:
        self._attempts = 0
        # Parts that were looked at, kept alive so that their ids stay theirs.
        self._seen: dict[int, Any] = {}

    def first_bad_part(self, value: Any) -> Any:
        self._seen[id(value)] = value
        for part in parts_of(value):
            if id(part.value) in self._seen:
                continue
            if self._attempts >= _MAX_ATTEMPTS:
                return None
            self._attempts += 1
            if not is_picklable(part.value):
                return part.description, part.value
        return None


def is_picklable(value: Any) -> bool:
    """Whether the value can be sent to another process."""
    from ray_rust._private.captured import pickle_function

    try:
        pickle_function(value)
    except Exception:  # noqa: BLE001 - whatever the reason
        return False
    return True


def parts_of(value: Any) -> Iterator[Part]:
    """What pickling `value` pickles."""
    if isinstance(value, types.FunctionType):
        yield from _parts_of_function(value)
    elif isinstance(value, types.MethodType):
        yield Part("__self__", f"the object of method {value.__name__!r}", value.__self__)
        yield Part("__func__", f"the function of method {value.__name__!r}", value.__func__)
    elif isinstance(value, type):
        for name, member in list(vars(value).items()):
            if name not in ("__dict__", "__weakref__", "__module__", "__doc__"):
                yield Part(name, f"the {name!r} member of class {value.__qualname__}", _unwrapped(member))
    elif isinstance(value, dict):
        for key, item in list(value.items()):
            yield Part(f"key {_short(key)}", f"the key {_short(key)} of a dict", key)
            yield Part(f"[{_short(key)}]", f"the value of key {_short(key)} of a dict", item)
    elif isinstance(value, (list, tuple, set, frozenset)):
        kind = type(value).__name__
        for index, item in enumerate(value):
            yield Part(f"[{index}]", f"item {index} of a {kind}", item)
    else:
        yield from _parts_of_object(value)


def _parts_of_function(function: types.FunctionType) -> Iterator[Part]:
    name = function.__qualname__
    for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
        try:
            content = cell.cell_contents
        except ValueError:
            continue  # not assigned yet
        yield Part(variable, f"the variable {variable!r} that function {name!r} closes over", content)
    for variable in sorted(_global_names(function.__code__)):
        if variable in function.__globals__:
            content = function.__globals__[variable]
            yield Part(variable, f"the global variable {variable!r} that function {name!r} uses", content)
    for index, default in enumerate(function.__defaults__ or ()):
        yield Part(f"__defaults__[{index}]", f"default value {index} of function {name!r}", default)
    for parameter, default in (function.__kwdefaults__ or {}).items():
        yield Part(parameter, f"the default value of {parameter!r} of function {name!r}", default)
    for attribute, item in vars(function).items():
        yield Part(attribute, f"the {attribute!r} attribute of function {name!r}", item)


def _global_names(code: types.CodeType) -> set[str]:
    """Names that the code and the functions in it may look up; attributes' names are among them."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names


def _parts_of_object(value: Any) -> Iterator[Part]:
    owner = type(value).__qualname__
    for name, item in list(getattr(value, "__dict__", {}).items()):
        yield Part(name, f"the {name!r} attribute of {owner}", item)
    for base in type(value).__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            if hasattr(value, name) and name not in ("__dict__", "__weakref__"):
                yield Part(name, f"the {name!r} attribute of {owner}", getattr(value, name))


def _unwrapped(member: Any) -> Any:
    if isinstance(member, (staticmethod, classmethod)):
        return member.__func__
    return member.fget if isinstance(member, property) else member


def _short(key: Any) -> str:
    try:
        text = repr(key)
    except Exception:  # noqa: BLE001 - code of the user
        return f"<{type(key).__name__}>"
    return text if len(text) <= 60 else text[:57] + "..."
