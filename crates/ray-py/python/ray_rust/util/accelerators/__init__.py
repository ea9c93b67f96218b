"""Types of accelerators, for `accelerator_type`: `ray.util.accelerators`."""

from typing import TYPE_CHECKING

from ray_rust.util.accelerators import accelerators
from ray_rust.util.accelerators.accelerators import *  # noqa: F403 - all of them

if TYPE_CHECKING:
    from ray_rust.util import tpu as tpu

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name == "tpu":
            import importlib

            return importlib.import_module("ray_rust.util.tpu")
        if name == "NVIDIA_TESLA_A100":
            import warnings

            from ray_rust.util.annotations import RayDeprecationWarning

            warnings.warn("use NVIDIA_A100 instead of NVIDIA_TESLA_A100", RayDeprecationWarning, stacklevel=2)
            return accelerators.NVIDIA_A100
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
