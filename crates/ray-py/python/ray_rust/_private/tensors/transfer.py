"""When a transfer of tensors has failed so that somebody has to be told."""

from __future__ import annotations

import threading
from typing import Optional

from ray_rust._private.tensors.arrivals import TransferTimedOutError
from ray_rust.exceptions import RayTaskError


class TransferWatch:
    """One transfer, as the process sees it that has asked two actors for it.

    Where a method returns text, both actors have to be stopped, for that reason; once at most. `wants_deadline` says
    that the receiver is done and the sender is not.
    """

    def __init__(self, *, is_one_sided: bool) -> None:
        self._is_sent = is_one_sided
        self._began = False
        self._arrival_is_known = False
        self._is_over = False
        self._lock = threading.Lock()

    def begin(self, *, is_sent: bool = False) -> bool:
        """The value is there, `is_sent` if nothing is to be sent. Returns whether the actors are to be asked."""
        with self._lock:
            self._began = not self._is_over
            self._is_sent = self._is_sent or is_sent
            return self._began

    @property
    def wants_deadline(self) -> bool:
        """Whether all that is waited for is the end of sending."""
        with self._lock:
            return self._began and self._arrival_is_known and not self._is_sent and not self._is_over

    def on_sent(self, error: Optional[BaseException]) -> Optional[str]:
        """The sender is done."""
        with self._lock:
            self._is_sent = True
            return None if error is None else self._fail(f"sending failed: {_cause(error)}")

    def on_arrival(self, error: Optional[BaseException]) -> Optional[str]:
        """The receiver is done."""
        with self._lock:
            self._arrival_is_known = True
            if not self._began:
                # The value was not made, or the receiver died before there was anything to receive.
                self._is_over = True
                return None
            # What receiving raised is told to who waits for it; the sender may have done its part.
            is_raised = isinstance(error, RayTaskError) and not isinstance(error.cause, TransferTimedOutError)
            if error is None or is_raised:
                return None
            return self._fail(f"receiving failed: {_cause(error)}")

    def on_deadline(self, timeout: float) -> Optional[str]:
        """The sender had so many seconds after the receiver was done."""
        with self._lock:
            return None if self._is_sent else self._fail(f"sending has not ended {timeout:g} s after receiving has")

    def _fail(self, reason: str) -> Optional[str]:
        if self._is_over:
            return None
        self._is_over = True
        return reason


def _cause(error: BaseException) -> str:
    cause = error.cause if isinstance(error, RayTaskError) and error.cause is not None else error
    return f"{type(cause).__name__}: {cause}"
