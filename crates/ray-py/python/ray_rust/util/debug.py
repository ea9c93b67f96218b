"""Saying things once."""

from __future__ import annotations

import time
from typing import Optional

__all__ = ["disable_log_once_globally", "enable_periodic_logging", "log_once", "reset_log_once"]

# With periodic logging, everything may be said again after so many seconds.
_PERIOD_S = 60.0

_logged: set[str] = set()
_disabled = False
_periodic_log = False
_last_logged = 0.0


def log_once(key: str) -> bool:
    """Whether this is the first call with this key, so that something may be logged."""
    global _last_logged
    if _disabled:
        return False
    if key not in _logged:
        _logged.add(key)
        _last_logged = time.monotonic()
        return True
    if _periodic_log and time.monotonic() - _last_logged > _PERIOD_S:
        # From the next call on.
        _logged.clear()
        _last_logged = time.monotonic()
    return False


def disable_log_once_globally() -> None:
    """From now on `log_once` is always False in this process."""
    global _disabled
    _disabled = True


def enable_periodic_logging() -> None:
    """From now on `log_once` is True again for each key every minute or so."""
    global _periodic_log
    _periodic_log = True


def reset_log_once(key: Optional[str] = None) -> None:
    """Forgets this key, or all of them."""
    if key is None:
        _logged.clear()
    else:
        _logged.discard(key)
