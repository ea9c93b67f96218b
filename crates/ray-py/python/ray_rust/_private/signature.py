"""Checks arguments against a signature before anything is sent."""

from __future__ import annotations

import inspect
from typing import Any, Callable, Optional

from ray_rust._internal import CallShape

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
# By number, which is how they are pickled.
_KINDS = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.VAR_POSITIONAL,
    inspect.Parameter.KEYWORD_ONLY,
    inspect.Parameter.VAR_KEYWORD,
)


class Signature:
    """The parameters of a function, or None inside if they are unknown, as of some built-in functions."""

    __slots__ = ("_signature", "shape")

    def __init__(self, signature: Optional[inspect.Signature]) -> None:
        self._signature = signature
        # What arguments are checked against first; None if any will do.
        self.shape = CallShape(_described(signature)) if signature is not None else None

    @classmethod
    def of(cls, function: Callable[..., Any], *, skip_self: bool = False) -> Signature:
        """Of a function; with `skip_self` without its first parameter."""
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):
            return cls(None)
        if skip_self:
            parameters = list(signature.parameters.values())
            if parameters and parameters[0].kind in _POSITIONAL:
                parameters = parameters[1:]
            signature = signature.replace(parameters=parameters)
        return cls(signature)

    def check(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """TypeError, worded for a call of `name`, if they do not fit."""
        if self._signature is None or (self.shape is not None and self.shape.fits(args, kwargs)):
            return
        try:
            self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{name}(): {error}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        # Defaults and annotations may be unpicklable, and only their presence matters here.
        if self._signature is None:
            return (_rebuild, (None,))
        return (_rebuild, (_described(self._signature),))


def _described(signature: inspect.Signature) -> list[tuple[str, int, bool]]:
    """Of each parameter its name, kind, and whether it has a default."""
    parameters = signature.parameters.values()
    return [(p.name, int(p.kind), p.default is not inspect.Parameter.empty) for p in parameters]


def _rebuild(parameters: Optional[list[tuple[str, int, bool]]]) -> Signature:
    if parameters is None:
        return Signature(None)
    rebuilt = [
        inspect.Parameter(name, _KINDS[kind], default=None if has_default else inspect.Parameter.empty)
        for name, kind, has_default in parameters
    ]
    return Signature(inspect.Signature(rebuilt))
