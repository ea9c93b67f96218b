"""Where objects are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ray_rust
from ray_rust._private import session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ray_rust import ObjectRef
    from ray_rust._internal import CoreWorker

__all__ = ["get_local_object_locations", "get_object_locations"]


def get_object_locations(obj_refs: Sequence[ObjectRef], timeout_ms: int = -1) -> dict[ObjectRef, dict[str, Any]]:
    """Where each object is: `node_ids`, `object_size`, `did_spill`.

    `node_ids` are those of the nodes that have it in shared memory, in hexadecimal digits: none for an
    object of up to 100 KB, which its owner keeps. `object_size` is in bytes, and None as long as the
    object has no value. Of objects that another process owns, their values are waited for, at most
    `timeout_ms` milliseconds (for ever if that is negative), then GetTimeoutError is raised.
    """
    core = _core()
    unknown = [ref for ref in obj_refs if core.location_of(ref) is None]
    if unknown:
        timeout = timeout_ms / 1000 if timeout_ms >= 0 else None
        unknown = _unique(unknown)
        _, missing = ray_rust.wait(unknown, num_returns=len(unknown), timeout=timeout, fetch_local=False)
        if missing:
            raise ray_rust.exceptions.GetTimeoutError(
                f"the owners of {len(missing)} object(s), among them {missing[0].hex()}, have not said where "
                f"they are within {timeout_ms} ms"
            )
    return get_local_object_locations(obj_refs)


def get_local_object_locations(obj_refs: Sequence[ObjectRef]) -> dict[ObjectRef, dict[str, Any]]:
    """As `get_object_locations`, as far as this process knows; it asks nobody, and leaves out what it does not know.

    Whether an object was spilled is known to its owner.
    """
    core = _core()
    found = ((ref, core.location_of(ref)) for ref in obj_refs)
    return {ref: location for ref, location in found if location is not None}


def _core() -> CoreWorker:
    if not ray_rust.is_initialized():
        raise RuntimeError("this process has not joined a cluster; call init() first")
    return session.connected_core()


def _unique(refs: list[ObjectRef]) -> list[ObjectRef]:
    return list(dict.fromkeys(refs))
