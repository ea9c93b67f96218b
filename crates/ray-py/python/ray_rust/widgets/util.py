"""Tables, and where rich output can be shown."""

from __future__ import annotations

import functools
import html
import importlib.util
import logging
import re
import sys
from typing import TYPE_CHECKING, Any, Callable, Optional, TypeVar

from ray_rust.widgets.render import Template

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["in_ipython_shell", "in_notebook", "make_table_html_repr", "repr_with_fallback"]

F = TypeVar("F", bound=Callable[..., Any])

logger = logging.getLogger("ray_rust")


def make_table_html_repr(obj: Any, title: Optional[str] = None, max_height: str = "none") -> str:
    """The attributes of an object as an HTML table, those with attributes or items of their own as one inside.

    `max_height` is the CSS property; a higher table scrolls.
    """
    rows = []
    for name, value in vars(obj).items():
        if isinstance(value, (str, bool, int, float)):
            rows.append((name, html.escape(str(value))))
        elif isinstance(value, dict) or hasattr(value, "__dict__"):
            members = value if isinstance(value, dict) else vars(value)
            rows.append((name, _table([(key, html.escape(str(item))) for key, item in members.items()], "none")))
    table = _table(rows, max_height)
    return Template("title_data.html.j2").render(title=html.escape(title), data=table) if title else table


def _table(rows: Iterable[tuple[Any, str]], max_height: str) -> str:
    """A table of names and their values, which are HTML."""
    head = "<thead><tr><th>Setting</th><th>Value</th></tr></thead>"
    body = "".join(f"<tr><td>{html.escape(str(name))}</td><td>{value}</td></tr>" for name, value in rows)
    table = f"<table>{head}<tbody>{body}</tbody></table>"
    return Template("scrollableTable.html.j2").render(table=table, max_height=max_height)


def repr_with_fallback(*notebook_deps: Sequence[Optional[str]]) -> Callable[[F], F]:
    """Decorator of a method that returns a mime bundle: outside of notebooks the bundle is plain text.

    So it is also where one of `notebook_deps`, given as (package, least version), is missing.
    """
    shows_widgets = in_notebook() and not _unmet(notebook_deps)

    def decorate(function: F) -> F:
        if shows_widgets:
            return function

        @functools.wraps(function)
        def plain(self: Any, *args: Any, **kwargs: Any) -> dict[str, str]:
            return {"text/plain": repr(self)}

        return plain  # type: ignore[return-value] # as it is called in the place of the other

    return decorate


def _unmet(dependencies: Iterable[Sequence[Optional[str]]]) -> list[str]:
    """Packages that are missing or too old; the user is told."""
    unmet = []
    for package, least in dependencies:
        if package is None:
            continue
        if importlib.util.find_spec(package) is None:
            unmet.append(package)
        elif least is not None and _version(getattr(importlib.import_module(package), "__version__", "0")) < _version(
            least
        ):
            unmet.append(f"{package}>={least}")
    if unmet:
        logger.info("for rich output in this notebook: pip install -U %s, and restart the notebook", " ".join(unmet))
    return unmet


def _version(text: str) -> tuple[int, ...]:
    """The numbers at the beginning of a version."""
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, match.group().split("."))) if match else ()


def _get_ipython_shell_name() -> str:
    ipython = sys.modules.get("IPython")
    return type(ipython.get_ipython()).__name__ if ipython is not None else ""


def in_notebook(shell_name: Optional[str] = None) -> bool:
    """Whether this is a Jupyter notebook or console, by the name of IPython's shell."""
    return (shell_name or _get_ipython_shell_name()) == "ZMQInteractiveShell"


def in_ipython_shell(shell_name: Optional[str] = None) -> bool:
    """Whether this is IPython in a terminal."""
    return (shell_name or _get_ipython_shell_name()) == "TerminalInteractiveShell"
