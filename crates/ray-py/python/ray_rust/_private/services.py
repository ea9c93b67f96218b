"""What is known of the node that this process is on."""

from __future__ import annotations

import functools
import json
import os
from typing import Optional

from ray_rust._private import session

_LOOPBACK = "127.0.0.1"


def get_node_ip_address(address: Optional[str] = None) -> str:
    """The address of this process's node; the loopback interface's if it has not joined a cluster."""
    connection = session.get_session()
    return _LOOPBACK if connection is None else _address_of(connection.core.session_dir)


@functools.lru_cache(maxsize=8)
def _address_of(session_dir: str) -> str:
    with open(os.path.join(session_dir, "node.json"), encoding="utf-8") as file:
        node_address: str = json.load(file)["node_address"]
    return node_address.rpartition(":")[0]


def get_node_instance_id() -> str:
    """What the cloud calls this machine, if it has told."""
    return os.environ.get("RAY_CLOUD_INSTANCE_ID", "")
