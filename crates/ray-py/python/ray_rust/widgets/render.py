"""HTML with gaps to be filled in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Union

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Template"]

_FOLDER = Path(__file__).parent / "templates"


class Template:
    """One of the files in `templates`, such as "scrollableTable.html.j2"."""

    def __init__(self, file: str) -> None:
        self.template = (_FOLDER / file).read_text(encoding="utf-8")

    def render(self, **kwargs: Union[str, list[str], None]) -> str:
        """The text with each `{{ name }}` replaced by the argument of that name; a list by its parts.

        Arguments are HTML: who has text escapes it.
        """
        rendered = self.template
        for name, value in kwargs.items():
            text = "".join(value) if isinstance(value, list) else value
            rendered = rendered.replace(f"{{{{ {name} }}}}", text or "")
        return rendered

    @staticmethod
    def list_templates() -> Iterator[Path]:
        """Paths of all templates."""
        return _FOLDER.glob("*.html.j2")
