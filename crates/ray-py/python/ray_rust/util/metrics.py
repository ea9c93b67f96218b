"""Metrics of programs: counters, gauges and histograms, read from each node in Prometheus' text format.

The address is `http://127.0.0.1:PORT/metrics` with the PORT that `init()` returns as "metrics_export_port".
Records are kept in the process and told to its node once a second. Counters and histograms add up over the
processes of a node; a gauge is its process's own, which its tag WorkerId tells.
"""

from __future__ import annotations

import re
import warnings
from typing import Any, Optional

from ray_rust._internal import Metric as _CoreMetric

__all__ = ["Counter", "Gauge", "Histogram", "Metric"]

_VALID_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_VALID_TAG = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


def _is_valid_name(name: str) -> bool:
    if not isinstance(name, str):
        raise TypeError(f"the name of a metric has to be a string, is {name!r}")
    if not name:
        raise ValueError("Empty name is not allowed. Please provide a metric name.")
    if _VALID_NAME.fullmatch(name) is None:
        warnings.warn(
            f"Invalid metric name: {name}. The metric is discarded: names have letters, digits, _ and :, "
            "and do not begin with a digit.",
            UserWarning,
            stacklevel=4,
        )
        return False
    if ":" in name:
        warnings.warn(
            f"the metric name {name} has a colon, which Prometheus keeps for its own rules", FutureWarning, stacklevel=4
        )
    return True


class Metric:
    """What all metrics have in common."""

    _kind = ""

    def __init__(
        self,
        name: str,
        description: str = "",
        tag_keys: Optional[tuple[str, ...]] = None,
        _boundaries: tuple[float, ...] = (),
    ) -> None:
        keep = _is_valid_name(name)
        self._name = name
        self._description = description
        self._default_tags: dict[str, str] = {}
        self._tag_keys = tag_keys or ()
        if not isinstance(self._tag_keys, tuple):
            raise TypeError(f"tag_keys should be a tuple type, got: {type(self._tag_keys)}")
        for key in self._tag_keys:
            if not isinstance(key, str):
                raise TypeError(f"Tag keys must be str, got {type(key)}.")
            if _VALID_TAG.fullmatch(key) is None:
                raise ValueError(f"the tag key {key!r} is not made of letters, digits and _")
        self._metric = _CoreMetric(self._kind, name, description, list(_boundaries)) if keep and self._kind else None
        self._warned = False

    def set_default_tags(self, default_tags: dict[str, str]) -> Metric:
        """Values of tags where a record gives none. Returns the metric."""
        for key, value in default_tags.items():
            if key not in self._tag_keys:
                raise ValueError(f"Unrecognized tag key {key}.")
            if not isinstance(value, str):
                raise TypeError(f"Tag values must be str, got {type(value)}.")
        self._default_tags = default_tags
        return self

    def _record(self, value: float, tags: Optional[dict[str, str]] = None) -> None:
        if self._metric is None:
            return
        given = self._default_tags
        if tags:
            for text in tags.values():
                if not isinstance(text, str):
                    raise TypeError(f"Tag values must be str, got {type(text)}.")
            given = {**given, **tags}
        if len(given) != len(self._tag_keys) or self._tag_keys:
            self._check_tags(given)
        if not self._metric.record(value, given) and not self._warned:
            self._warned = True
            warnings.warn(
                f"the metric {self._name} has too many series, or another kind in this process: its records are "
                "dropped. Use tags of fewer values.",
                UserWarning,
                stacklevel=3,
            )

    def _check_tags(self, given: dict[str, str]) -> None:
        missing = [key for key in self._tag_keys if key not in given]
        if missing:
            raise ValueError(f"Missing value for tag key(s): {','.join(missing)}.")
        for key in given:
            if key not in self._tag_keys:
                raise ValueError(f"Unrecognized tag key {key}.")

    @property
    def info(self) -> dict[str, Any]:
        """Its name, description, tag_keys and default_tags."""
        return {
            "name": self._name,
            "description": self._description,
            "tag_keys": self._tag_keys,
            "default_tags": self._default_tags,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return (_restored, (type(self), (self._name, self._description, self._tag_keys), self._default_tags))


def _restored(kind: type[Metric], arguments: tuple[Any, ...], default_tags: dict[str, str]) -> Metric:
    return kind(*arguments).set_default_tags(default_tags)


def _check_number(value: float) -> None:
    if not isinstance(value, (int, float)):
        raise TypeError(f"value must be int or float, got {type(value)}.")


class Counter(Metric):
    """Only grows. Prometheus reads it with "_total" behind its name."""

    _kind = "counter"

    def inc(self, value: float = 1.0, tags: Optional[dict[str, str]] = None) -> None:
        """Adds `value`, which has to be more than 0."""
        _check_number(value)
        if not value > 0:
            raise ValueError(f"value must be >0, got {value}")
        self._record(value, tags)


class Gauge(Metric):
    """Is what it was set to last."""

    _kind = "gauge"

    def set(self, value: Optional[float], tags: Optional[dict[str, str]] = None) -> None:
        """Sets it; None leaves it as it is."""
        if value is None:
            return
        _check_number(value)
        self._record(value, tags)


class Histogram(Metric):
    """Counts values by size."""

    _kind = "histogram"

    def __init__(
        self,
        name: str,
        description: str = "",
        boundaries: Optional[list[float]] = None,
        tag_keys: Optional[tuple[str, ...]] = None,
    ) -> None:
        if not boundaries:
            raise ValueError(
                "boundaries argument should be provided when using the Histogram class. e.g., "
                'Histogram("name", boundaries=[1.0, 2.0])'
            )
        for index, boundary in enumerate(boundaries):
            if not boundary > 0:
                raise ValueError(
                    f"Invalid `boundaries` argument at index {index}, {boundaries}. "
                    "Use positive values for the arguments."
                )
        if list(boundaries) != sorted(boundaries):
            raise ValueError(f"boundaries have to be in ascending order, are {boundaries}")
        super().__init__(name, description, tag_keys, tuple(float(boundary) for boundary in boundaries))
        self.boundaries = boundaries

    def observe(self, value: float, tags: Optional[dict[str, str]] = None) -> None:
        """Counts a value."""
        _check_number(value)
        self._record(value, tags)

    @property
    def info(self) -> dict[str, Any]:
        """As of every metric, and the boundaries."""
        return {**super().info, "boundaries": self.boundaries}

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = (self._name, self._description, self.boundaries, self._tag_keys)
        return (_restored, (type(self), arguments, self._default_tags))
