"""Resources that come and go: Ray has taken this away."""

from __future__ import annotations

from typing import NoReturn, Optional

__all__ = ["set_resource"]


def set_resource(resource_name: str, capacity: float, node_id: Optional[str] = None) -> NoReturn:
    """Raises DeprecationWarning, as in Ray."""
    raise DeprecationWarning(
        "resources of a node can be set only when it starts, by 'resources' of init() or of 'ray-rust start'; "
        "placement groups reserve some of them for later"
    )
