"""The main program of a node daemon.

    python -m ray_rust._private.node_main <configuration in JSON> <descriptor to tell of readiness>

It forks once, before anything has started a thread: the child becomes the fork server, which makes
workers; the parent runs the daemon in the compiled core.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import NoReturn

from ray_rust import _internal
from ray_rust._private import fork_server, gpus


def main(arguments: list[str]) -> int:
    """Returns when the daemon has ended."""
    config, ready = arguments[0], int(arguments[1])
    _forget_start_directory()
    daemon_end, server_end = socket.socketpair()
    if os.fork() == 0:
        daemon_end.close()
        os.close(ready)
        _serve(server_end)
    server_end.close()

    def on_ready(text: str) -> None:
        os.write(ready, text.encode())
        os.close(ready)

    _internal.run_node(_with_found_gpus(config), daemon_end.detach(), on_ready)
    return 0


def _with_found_gpus(config: str) -> str:
    """The configuration with the graphics processors of this machine, in case it does not say how many to use."""
    count, kind = gpus.found()
    if not count:
        return config
    import json

    return json.dumps({**json.loads(config), "found_gpus": count, "found_gpu_type": kind})


def _serve(connection: socket.socket) -> NoReturn:
    status = 1
    try:
        fork_server.serve(connection)
        status = 0
    except BaseException:  # noqa: BLE001 - also SystemExit must not lead back into the daemon's code
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def _forget_start_directory() -> None:
    """`-m` searches the working directory first, which means nothing to workers."""
    if sys.path and sys.path[0] in ("", os.getcwd()):
        del sys.path[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
