"""What may still change: `ray.experimental`."""

from ray_rust.experimental.dynamic_resources import set_resource
from ray_rust.experimental.locations import get_local_object_locations, get_object_locations

__all__ = ["get_local_object_locations", "get_object_locations", "set_resource"]
