"""An older name of `cloudpickle.cloudpickle`, for pickles and programs that know it."""

from ray_rust.cloudpickle import cloudpickle as _current

globals().update({name: value for name, value in vars(_current).items() if not name.startswith("__")})
