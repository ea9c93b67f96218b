"""Checks arguments against a signature before anything is sent."""

from __future__ import annotations

import inspect
from typing import Any, Callable, Optional

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

    __slots__ = ("_most", "_needed", "_signature", "_without_keywords")

    def __init__(self, signature: Optional[inspect.Signature]) -> None:
        self._signature = signature
        self._needed = 0
        self._most: float = 0
        # Whether counting is enough for calls without keywords.
        self._without_keywords = signature is not None
        for parameter in signature.parameters.values() if signature else ():
            has_default = parameter.default is not inspect.Parameter.empty
            if parameter.kind in _POSITIONAL:
                self._most += 1
                self._needed += not has_default
            elif parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                self._most = float("inf")
            elif parameter.kind is inspect.Parameter.KEYWORD_ONLY and not has_default:
                self._without_keywords = False

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
        if not kwargs and self._without_keywords and self._needed <= len(args) <= self._most:
            return
        if self._signature is None:
            return
        try:
            self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{name}(): {error}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        # Defaults and annotations may be unpicklable, and only their presence matters here.
        if self._signature is None:
            return (_rebuild, (None,))
        parameters = self._signature.parameters.values()
        return (_rebuild, ([(p.name, int(p.kind), p.default is not inspect.Parameter.empty) for p in parameters],))


def _rebuild(parameters: Optional[list[tuple[str, int, bool]]]) -> Signature:
    if parameters is None:
        return Signature(None)
    rebuilt = [
        inspect.Parameter(name, _KINDS[kind], default=None if has_default else inspect.Parameter.empty)
        for name, kind, has_default in parameters
    ]
    return Signature(inspect.Signature(rebuilt))
