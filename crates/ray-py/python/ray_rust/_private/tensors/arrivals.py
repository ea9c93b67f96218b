"""What became of transfers to this process."""

from __future__ import annotations

import collections
import threading
from typing import Any, Union

# Transfers that are over and remembered, so that what comes late is dropped.
_REMEMBERED = 1000

# The tensors, or why there are none.
Outcome = Union["list[Any]", Exception]


class TransferTimedOutError(Exception):
    """Tensors were not there in time."""


class Arrivals:
    """Outcomes of transfers, each of which one thread waits for. The first outcome counts."""

    def __init__(self) -> None:
        self._outcomes: dict[str, Outcome] = {}
        self._over: collections.OrderedDict[str, None] = collections.OrderedDict()
        self._changed = threading.Condition()

    def settle(self, transfer_id: str, outcome: Outcome) -> None:
        """Says what became of a transfer."""
        with self._changed:
            if transfer_id not in self._over:
                self._outcomes.setdefault(transfer_id, outcome)
                self._changed.notify_all()

    def is_settled(self, transfer_id: str) -> bool:
        """Whether it is known what became of a transfer."""
        with self._changed:
            return transfer_id in self._outcomes or transfer_id in self._over

    def wait(self, transfer_id: str, timeout: float) -> list[Any]:
        """The tensors that came. Raises why they did not, or TransferTimedOutError after so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: transfer_id in self._outcomes, timeout)
            outcome = self._outcomes.pop(transfer_id, None)
            self._over[transfer_id] = None
            if len(self._over) > _REMEMBERED:
                self._over.popitem(last=False)
        if outcome is None:
            raise TransferTimedOutError(
                f"the tensors were not there after {timeout:g} s, so their transfer is given up. "
                "RAY_rdt_fetch_fail_timeout_milliseconds says how long it may take"
            )
        if isinstance(outcome, Exception):
            raise outcome
        return outcome
