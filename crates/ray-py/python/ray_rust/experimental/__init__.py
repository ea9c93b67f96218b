"""What may still change: `ray.experimental`."""
