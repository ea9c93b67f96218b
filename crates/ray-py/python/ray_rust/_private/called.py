"""What runs in a worker, by its full name."""

from __future__ import annotations

from typing import Any, Optional

from ray_rust._private import session

_names: dict[bytes, str] = {}
_actor_class = ""


def remember(function_id: bytes, function: Any) -> None:
    """The function, or the actor's class, of this id was loaded."""
    global _actor_class
    _names[function_id] = name = f"{function.__module__}.{getattr(function, '__qualname__', type(function).__name__)}"
    if isinstance(function, type):
        _actor_class = name


def function_name() -> Optional[str]:
    """Of the function or method that runs, with its module; None if nothing does."""
    call = session.connected_core().current_call()
    if call is None:
        return None
    function_id, method = call
    if function_id is not None:
        return _names.get(function_id)
    return f"{_actor_class}.{method}"
