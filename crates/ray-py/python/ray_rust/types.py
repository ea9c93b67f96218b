"""Types for annotations: `ray.types`."""

from ray_rust._internal import ObjectRef

__all__ = ["ObjectRef"]
