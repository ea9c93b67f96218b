"""The module `cloudpickle.cloudpickle`, with this runtime's pickler."""

from cloudpickle import cloudpickle as _original

from ray_rust._private import pickler as _pickler

globals().update({name: value for name, value in vars(_original).items() if not name.startswith("__")})

CloudPickler = Pickler = _pickler.Pickler
