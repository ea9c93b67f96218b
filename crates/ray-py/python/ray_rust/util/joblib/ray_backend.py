"""Runs joblib's batches in a pool of actors."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Callable, Optional

from joblib._parallel_backends import FallbackToBackend, MultiprocessingBackend, SequentialBackend

import ray_rust
from ray_rust._internal import ObjectRef
from ray_rust.util.multiprocessing.pool import AsyncResult, Pool

if TYPE_CHECKING:
    from joblib import Parallel
    from joblib.parallel import BatchedCalls

__all__ = ["RayBackend"]

# Smaller arguments travel with each batch; larger ones are put once, and read by all that need them.
_SMALLEST_SHARED_BYTES = 100 * 1024


class RayBackend(MultiprocessingBackend):  # type: ignore[misc] # joblib has no types
    """joblib's backend "ray". `ray_remote_args` are options of the actors."""

    def __init__(
        self,
        nesting_level: Optional[int] = None,
        inner_max_num_threads: Optional[int] = None,
        ray_remote_args: Optional[dict[str, Any]] = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads, **kwargs)
        self.ray_remote_args = ray_remote_args
        self._shared = _SharedArguments()

    def effective_n_jobs(self, n_jobs: Optional[int]) -> int:
        """How many actors there will be: for -1, as many as the cluster has CPUs; for -2, one less."""
        if n_jobs == 0:
            raise ValueError("n_jobs of 0 has no meaning")
        if n_jobs is None:
            return 1
        if n_jobs > 0:
            return n_jobs
        if not ray_rust.is_initialized():
            ray_rust.init()
        return max(1, int(ray_rust.cluster_resources().get("CPU", 1)) + 1 + n_jobs)

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Optional[Parallel] = None,
        prefer: Optional[str] = None,
        require: Optional[str] = None,
        ray_remote_args: Optional[dict[str, Any]] = None,
        **memmappingpool_args: Any,
    ) -> int:
        """Starts the actors; `ray_remote_args` goes before that of the constructor."""
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        options = ray_remote_args if ray_remote_args is not None else self.ray_remote_args
        self._pool = Pool(n_jobs, ray_remote_args=options)
        self.parallel = parallel
        return n_jobs

    def submit(self, func: BatchedCalls, callback: Optional[Callable[[Any], Any]] = None) -> AsyncResult:
        """Runs a batch in one of the actors; the callback gets its results or what it raised."""
        # The reference keeps the size, which joblib asks for.
        result: AsyncResult = self._pool.apply_async(
            _Batch(self._shared.replace(func), func), callback=callback, error_callback=callback
        )
        return result

    def retrieve_result_callback(self, out: Any) -> Any:
        """What a callback got, as joblib wants it."""
        if isinstance(out, BaseException):
            raise out
        return out

    def terminate(self) -> None:
        """Ends the actors; no callback runs afterwards, when joblib may use this for another call."""
        pool = self._pool
        super().terminate()
        if pool is not None:
            pool.join()
        self._shared = _SharedArguments()


class _SharedArguments:
    """Large arguments, each of which is put once however many calls have it."""

    def __init__(self) -> None:
        # By identity: large arguments are mostly arrays, which have no hash. The value is kept, for
        # that its id stays its own.
        self._known: dict[int, tuple[Any, ObjectRef]] = {}

    def replace(self, batch: BatchedCalls) -> list[tuple[Any, list[Any], dict[str, Any]]]:
        """The calls of a batch with references in the place of large arguments."""
        return [
            (function, [self._share(value) for value in args], {name: self._share(v) for name, v in kwargs.items()})
            for function, args, kwargs in batch.items
        ]

    def _share(self, value: Any) -> Any:
        if isinstance(value, ObjectRef) or _size(value) < _SMALLEST_SHARED_BYTES:
            return value
        known = self._known.get(id(value))
        if known is None:
            known = self._known[id(value)] = (value, ray_rust.put(value))
        return _Shared(known[1])


class _Shared:
    """Stands for an argument that was put; a user's own references are something else."""

    __slots__ = ("ref",)

    def __init__(self, ref: ObjectRef) -> None:
        self.ref = ref

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Shared, (self.ref,))


def _size(value: Any) -> int:
    size: Any = getattr(value, "nbytes", None)
    return size if isinstance(size, int) else sys.getsizeof(value, 0)


def _resolve(value: Any) -> Any:
    return ray_rust.get(value.ref) if isinstance(value, _Shared) else value


class _Batch:
    """A batch of joblib's, to be called in an actor."""

    def __init__(self, calls: list[tuple[Any, list[Any], dict[str, Any]]], batch: BatchedCalls) -> None:
        self._calls = calls
        self._backend_and_jobs = (batch._backend, batch._n_jobs)  # noqa: SLF001 - joblib gives them to no one else

    def __call__(self) -> list[Any]:
        from joblib import parallel_config

        backend, n_jobs = self._backend_and_jobs
        with parallel_config(backend=backend, n_jobs=n_jobs):
            return [
                function(*map(_resolve, args), **{name: _resolve(value) for name, value in kwargs.items()})
                for function, args, kwargs in self._calls
            ]
