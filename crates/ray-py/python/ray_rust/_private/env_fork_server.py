"""The main program of a fork server for one runtime environment: started with the environment's interpreter.

Its orders come by the socket that is its standard input.
"""

from __future__ import annotations

import os
import socket
import sys

from ray_rust._private import fork_server


def main() -> None:
    """Serves until the node closes the socket."""
    connection = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    # `-m` searches the working directory first, which means nothing to workers.
    if sys.path and sys.path[0] in ("", os.getcwd()):
        del sys.path[0]
    fork_server.serve(connection)


if __name__ == "__main__":
    main()
