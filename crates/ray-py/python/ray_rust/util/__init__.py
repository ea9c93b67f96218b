"""Tools on top of tasks and actors: `ray.util`."""
