"""`multiprocessing.Pool` whose processes are actors, on all nodes of a cluster."""

from multiprocessing import JoinableQueue, TimeoutError  # noqa: A004 - the name is that of the standard library

from ray_rust.util.multiprocessing.pool import Pool

__all__ = ["JoinableQueue", "Pool", "TimeoutError"]
