"""What the core tells the user on its own account."""

from __future__ import annotations

import os
import sys

_IGNORE_UNHANDLED = "RAY_IGNORE_UNHANDLED_ERRORS"


def report_unhandled(error: BaseException) -> None:
    """A task failed, and nobody will ever ask for its result."""
    if os.environ.get(_IGNORE_UNHANDLED) == "1":
        return
    import logging

    logging.getLogger("ray_rust").error("Unhandled error (suppress with '%s=1'): %s", _IGNORE_UNHANDLED, error)


def report_pending(text: str) -> None:
    """Why tasks of this worker wait; its standard error is shown by the driver."""
    if sys.stderr is not None:
        print(f"(scheduler) {text}", file=sys.stderr, flush=True)  # noqa: T201
