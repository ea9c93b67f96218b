"""Shows in the driver what workers print."""

from __future__ import annotations

import sys
from typing import Optional, TextIO

_CYAN = "\x1b[36m"
_PLAIN = "\x1b[0m"
# Only programs that have progress bars import what shows them.
_BARS = "ray_rust.experimental.tqdm_ray"
_MAGIC = "__ray_tqdm_magic_token__"


def print_lines(pid: int, name: str, is_stderr: bool, lines: list[str]) -> None:
    """Writes the lines, each after `(name pid=N)`, to the stream of this process that they went to there.

    Those that tell of a progress bar are shown as that.
    """
    if _BARS in sys.modules or any(_MAGIC in line for line in lines):
        from ray_rust.experimental import tqdm_ray

        lines = [line for line in lines if not tqdm_ray.take_line(line)]
        if lines:
            with tqdm_ray.around_output():
                _write(pid, name, is_stderr, lines)
    else:
        _write(pid, name, is_stderr, lines)


def print_bare_lines(_pid: int, _name: str, is_stderr: bool, lines: list[str]) -> None:
    """Writes the lines as they are, for those who parse them."""
    stream: Optional[TextIO] = sys.stderr if is_stderr else sys.stdout
    if stream is None:
        return
    try:
        stream.write("".join(f"{line}\n" for line in lines))
        stream.flush()
    except (OSError, ValueError):
        pass  # the stream is closed: nobody wants to see it


def _write(pid: int, name: str, is_stderr: bool, lines: list[str]) -> None:
    stream: Optional[TextIO] = sys.stderr if is_stderr else sys.stdout
    if stream is None:  # as under pythonw, or after the user closed it
        return
    prefix = f"({name} pid={pid})" if name else f"(pid={pid})"
    if _is_terminal(stream):
        prefix = f"{_CYAN}{prefix}{_PLAIN}"
    try:
        # In one piece, so that the lines of several workers and of the driver do not mix.
        stream.write("".join(f"{prefix} {line}\n" for line in lines))
        stream.flush()
    except (OSError, ValueError):
        pass  # the stream is closed: nobody wants to see it


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):
        return False
