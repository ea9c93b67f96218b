"""`import ray` gives this package: one module object under both names.

A finder in front of all others answers for `ray` and everything below it with the module of the same name
below `ray_rust`. So classes, exceptions and pickles agree between both names. Pickles name `ray_rust`, so that
they can be read whether or not the reader has installed this.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from typing import TYPE_CHECKING, Optional

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

ALIAS = "ray"
REAL = "ray_rust"
VARIABLE = "RAY_RUST_AS_RAY"


class _Loader(importlib.abc.Loader):
    """Gives a module that is there already a second name."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self._spec = module.__spec__

    def create_module(self, _spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        # The import system has put the alias's there.
        module.__spec__ = self._spec


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, _path: Optional[Sequence[str]], _target: Optional[ModuleType] = None
    ) -> Optional[importlib.machinery.ModuleSpec]:
        top, _, rest = fullname.partition(".")
        if top != ALIAS:
            return None
        real = f"{REAL}.{rest}" if rest else REAL
        try:
            module = importlib.import_module(real)
        except ModuleNotFoundError as error:
            if error.name is None or not (real == error.name or real.startswith(error.name + ".")):
                raise  # something that the module needs is missing
            raise ModuleNotFoundError(
                f"no module named {fullname!r}: {ALIAS} is {REAL} in this process, which has no {real}", name=fullname
            ) from None
        _alias_all_that_is_loaded()
        is_package = hasattr(module, "__path__")
        return importlib.machinery.ModuleSpec(fullname, _Loader(module), is_package=is_package)


def _alias_all_that_is_loaded() -> None:
    """Gives every module that is there its second name.

    A module that is imported sets the attribute of its package, which may have given the name to something else
    since: `ray.util.placement_group` is a function and a module. One that is known is not imported again.
    """
    for name, module in list(sys.modules.items()):
        top, _, rest = name.partition(".")
        if top == REAL and rest:
            sys.modules.setdefault(f"{ALIAS}.{rest}", module)


def is_installed() -> bool:
    """Whether `import ray` gives this package."""
    return any(isinstance(finder, _Finder) for finder in sys.meta_path)


def install() -> None:
    """From now on `import ray`, and every module below it, gives this package, here and in workers of this driver.

    RuntimeError if Ray itself was imported before: its objects would be mixed with those of this package.
    """
    known = sys.modules.get(ALIAS)
    if known is not None and known is not sys.modules.get(REAL):
        origin = getattr(known, "__file__", None) or "an unknown place"
        raise RuntimeError(
            f"{ALIAS} was imported already, from {origin}: call {REAL}.install_as_ray() before anything "
            f"imports {ALIAS}, or start the program with 'python -m {REAL} run'"
        )
    if not is_installed():
        sys.meta_path.insert(0, _Finder())
