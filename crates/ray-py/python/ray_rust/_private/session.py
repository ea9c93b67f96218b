"""The connection of this process to a cluster, if it has one."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, NamedTuple, Optional

from ray_rust._internal import forget_membership
from ray_rust.exceptions import RaySystemError

if TYPE_CHECKING:
    from ray_rust._internal import CoreWorker
    from ray_rust._private.node import NodeProcess


class Session(NamedTuple):
    """One connection of this process, and what came with it."""

    core: CoreWorker
    namespace: str
    # The daemon, if this process started it.
    node: Optional[NodeProcess]
    is_driver: bool
    # Of actors that are made without one: "detached" or "non_detached".
    actor_lifetime: str = "non_detached"


# Read on the way of every call; `_session.core`, kept apart for speed.
_core: Optional[CoreWorker] = None
_session: Optional[Session] = None
# Held while a connection is made or ended.
lock = threading.RLock()
# Connections of the parent process. They are never used, and never dropped: that would speak to the
# node on a socket that belongs to the parent.
_inherited: list[Session] = []


def connected_core() -> CoreWorker:
    """The connection; makes one as `init()` does if there is none."""
    core = _core
    return core if core is not None else _auto_init()


def current_session() -> Session:
    """The connection and what came with it; connects if need be."""
    connected_core()
    session = _session
    if session is None:  # another thread shut down just now
        raise RaySystemError("the connection is being shut down")
    return session


def _auto_init() -> CoreWorker:
    if _inherited:
        raise RaySystemError(
            "this process was forked from one that was connected, and cannot use its connection; "
            "call ray_rust.init() in this process first"
        )
    if os.environ.get("RAY_ENABLE_AUTO_CONNECT") == "0":
        raise RaySystemError("not connected to a cluster; call ray_rust.init() first")
    from ray_rust._private.worker import init

    with lock:
        if _core is None:
            init()
        core = _core
    if core is None:
        raise RaySystemError("the connection is being shut down")
    return core


def get_session() -> Optional[Session]:
    """The connection and what came with it, if there is one."""
    return _session


def set_session(session: Optional[Session]) -> None:
    """Makes this the connection of the process."""
    global _core, _session
    _session = session
    _core = session.core if session is not None else None


def _forget_parent() -> None:
    global lock
    lock = threading.RLock()  # another thread of the parent may have held it
    if _session is not None:
        _inherited.append(_session)
        forget_membership()
        set_session(None)


os.register_at_fork(after_in_child=_forget_parent)


def is_initialized() -> bool:
    """Whether this process is connected to a cluster."""
    return _core is not None
