"""How programs log: the loggers "ray" and "ray_rust" of drivers, and the structured logs of a job."""

from __future__ import annotations

import logging
from typing import Optional, Union

from ray_rust._private.ray_constants import LOGGER_FORMAT

__all__ = ["LOGGER_FORMAT", "NAMES", "leave_alone", "setup_logger"]

NAMES = ("ray", "ray_rust")

_handler: Optional[logging.Handler] = None


class _StderrHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to what `sys.stderr` is when something is logged, which may be replaced meanwhile."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> object:
        import sys

        return sys.stderr

    @stream.setter
    def stream(self, _stream: object) -> None:
        """Nothing else is written to."""


def setup_logger(logging_level: Union[int, str], logging_format: str = LOGGER_FORMAT) -> None:
    """Lets the loggers of this package write to standard error; whatever the application's loggers do.

    `logging_level` is a number, or a name in any case. ValueError for a name that is none.
    """
    global _handler
    level = logging.getLevelName(logging_level.upper()) if isinstance(logging_level, str) else logging_level
    if isinstance(level, bool) or not isinstance(level, int):
        raise ValueError(  # noqa: TRY004 - text may be wrong too
            f"logging_level has to be a number or the name of a level, is {logging_level!r}"
        )
    if _handler is None:
        _handler = _StderrHandler()
    _handler.setFormatter(logging.Formatter(logging_format))
    for name in NAMES:
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.propagate = False
        if _handler not in logger.handlers:
            logger.addHandler(_handler)


def leave_alone() -> None:
    """The application configures these loggers itself."""
    for name in NAMES:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
