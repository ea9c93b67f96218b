"""Marks for what is public: `PublicAPI`, `DeveloperAPI` and `Deprecated`, as libraries of Ray use them.

A mark says in the documentation how stable a name is, and leaves `_annotated`, `_annotated_type` and
`_annotated_api_group` for tools.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import sys
import warnings
from typing import Any, Callable, Optional, TypeVar, overload

__all__ = ["AnnotationType", "Deprecated", "DeveloperAPI", "PublicAPI", "RayDeprecationWarning"]

F = TypeVar("F", bound=Callable[..., Any])


class AnnotationType(enum.Enum):
    """How far a name can be relied on."""

    PUBLIC_API = "PublicAPI"
    DEVELOPER_API = "DeveloperAPI"
    DEPRECATED = "Deprecated"
    UNKNOWN = "Unknown"


class RayDeprecationWarning(DeprecationWarning):
    """Something is used that will go away; a class of its own, so that it can be filtered."""


if not sys.warnoptions:
    # Once for each module that uses something deprecated; Python by itself would show none of them.
    warnings.filterwarnings("module", category=RayDeprecationWarning)


@overload
def PublicAPI(obj: F, /) -> F: ...
@overload
def PublicAPI(*, stability: str = "stable", api_group: str = "Others") -> Callable[[F], F]: ...
def PublicAPI(obj: Any = None, *, stability: str = "stable", api_group: str = "Others") -> Any:  # noqa: N802
    """Decorator: users may rely on this; on what is "alpha" or "beta" with care."""
    if stability not in ("stable", "beta", "alpha"):
        raise AssertionError(f"stability has to be 'stable', 'beta' or 'alpha', is {stability!r}")

    def mark(marked: Any) -> Any:
        if stability != "stable":
            _append_doc(marked, f"**PublicAPI ({stability}):** this may still change before it is stable.")
        _mark_annotated(marked, AnnotationType.PUBLIC_API, api_group)
        return marked

    return mark if obj is None else mark(obj)


@overload
def DeveloperAPI(obj: F, /) -> F: ...
@overload
def DeveloperAPI() -> Callable[[F], F]: ...
def DeveloperAPI(obj: Any = None) -> Any:  # noqa: N802
    """Decorator: libraries may use this, and it may change with a minor version."""

    def mark(marked: Any) -> Any:
        _append_doc(marked, "**DeveloperAPI:** this may change with any minor version.")
        _mark_annotated(marked, AnnotationType.DEVELOPER_API)
        return marked

    return mark if obj is None else mark(obj)


@overload
def Deprecated(obj: F, /) -> F: ...
@overload
def Deprecated(*, message: str = ..., warning: bool = False) -> Callable[[F], F]: ...
def Deprecated(obj: Any = None, *, message: str = "", warning: bool = False, **unknown: Any) -> Any:  # noqa: N802
    """Decorator: this will go away; with `warning`, each use says so."""
    if unknown:
        raise ValueError(f"Deprecated() got unknown keyword arguments: {', '.join(sorted(unknown))}")
    hint = f"\n{message}" if message else ""

    def mark(marked: Any) -> Any:
        _append_doc(marked, f"**DEPRECATED**: this is going to be removed.{hint}", directive="warning")
        _mark_annotated(marked, AnnotationType.DEPRECATED)
        return _warning(marked, hint) if warning else marked

    return mark if obj is None else mark(obj)


def _warning(marked: Any, hint: str) -> Any:
    name = getattr(marked, "__qualname__", repr(marked))
    text = f"{name} is deprecated and is going to be removed.{hint}"
    is_class = isinstance(marked, type)
    function = marked.__init__ if is_class else marked

    def warned(*args: Any, **kwargs: Any) -> Any:
        warnings.warn(text, RayDeprecationWarning, stacklevel=2)
        return function(*args, **kwargs)

    # Not of properties: inspect.unwrap would lead to something that cannot be called.
    wrapper = functools.wraps(function)(warned) if callable(function) else warned
    if is_class:
        marked.__init__ = wrapper
        return marked
    return wrapper


def _append_doc(obj: Any, message: str, directive: Optional[str] = None) -> None:
    doc = (obj.__doc__ or "").rstrip()
    indent = " " * _get_indent(doc)
    inner = indent
    head = ""
    if directive is not None:
        inner = indent + "    "
        head = f"{indent}.. {directive}::\n\n"
    body = inner + message.replace("\n", "\n" + inner)
    # Of some things, such as methods, it cannot be changed.
    with contextlib.suppress(AttributeError, TypeError):
        obj.__doc__ = f"{doc}\n\n{head}{body}\n{indent}"


def _get_indent(doc: str) -> int:
    """How far the lines after the first are indented."""
    lines = [line for line in doc.splitlines() if line.strip()]
    return len(lines[1]) - len(lines[1].lstrip()) if len(lines) > 1 else 0


def _mark_annotated(obj: Any, type: AnnotationType = AnnotationType.UNKNOWN, api_group: str = "Others") -> None:
    if hasattr(obj, "__name__"):
        obj._annotated = obj.__name__  # noqa: SLF001 - the names are known to Ray's libraries
        obj._annotated_type = type  # noqa: SLF001
        obj._annotated_api_group = api_group  # noqa: SLF001


def _is_annotated(obj: Any) -> bool:
    # A subclass inherits the mark, which names the class that it is for.
    return bool(getattr(obj, "_annotated", None) == obj.__name__)


def _get_annotation_type(obj: Any) -> Optional[str]:
    if not _is_annotated(obj):
        return None
    kind: AnnotationType = obj._annotated_type  # noqa: SLF001
    return str(kind.value)
