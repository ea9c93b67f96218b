"""`joblib` on a cluster: `register_ray()`, then `with joblib.parallel_backend("ray"): ...`."""

__all__ = ["register_ray"]


def register_ray() -> None:
    """Makes the backend "ray" known to joblib. ImportError if joblib is not installed."""
    from joblib.parallel import register_parallel_backend

    from ray_rust.util.joblib.ray_backend import RayBackend

    register_parallel_backend("ray", RayBackend)
