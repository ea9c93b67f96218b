"""How a task ended, as a value instead of an exception."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional

from ray_rust._private import api
from ray_rust.exceptions import GetTimeoutError, RayError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ray_rust._internal import ObjectRef

__all__ = ["TaskResult"]


class TaskResult:
    """The value of a task, or the error that stands in its place.

    For those who start many tasks and want all their ends, good and bad:

        for result in TaskResult.of_all(refs):
            print(result.value if result.ok else result.error)
    """

    __slots__ = ("error", "object_ref", "value")

    def __init__(self, object_ref: ObjectRef, value: Any = None, error: Optional[BaseException] = None) -> None:
        self.object_ref = object_ref
        self.value = value
        self.error = error

    @classmethod
    def of(cls, object_ref: ObjectRef, *, timeout: Optional[float] = None) -> TaskResult:
        """Waits for the end of a task; GetTimeoutError if it has none after `timeout` seconds."""
        try:
            return cls(object_ref, api.get(object_ref, timeout=timeout))
        except GetTimeoutError:
            raise
        except RayError as error:
            return cls(object_ref, error=error)

    @classmethod
    def of_all(cls, object_refs: Iterable[ObjectRef], *, timeout: Optional[float] = None) -> list[TaskResult]:
        """Waits for the ends of all, in order; `timeout` seconds are for all of them together."""
        import time

        deadline = None if timeout is None else time.monotonic() + timeout
        results = []
        for object_ref in object_refs:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            results.append(cls.of(object_ref, timeout=left))
        return results

    @property
    def ok(self) -> bool:
        """Whether the task returned."""
        return self.error is None

    def unwrap(self) -> Any:
        """The value; raises the error if there is one."""
        if self.error is not None:
            raise self.error
        return self.value

    def __repr__(self) -> str:
        outcome = f"value={self.value!r}" if self.ok else f"error={type(self.error).__name__}"
        return f"TaskResult({self.object_ref!r}, {outcome})"
