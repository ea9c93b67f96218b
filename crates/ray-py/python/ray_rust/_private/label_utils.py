"""Labels of nodes, and selectors of them, as users write them.

A selector maps keys to conditions: `"eu"`, `"!eu"`, `"in(eu, us)"`, `"!in(eu, us)"`. Keys and values follow the rules
of Kubernetes, as in Ray.
"""

from __future__ import annotations

import re
from typing import Any, Optional

# Reserved for labels that the system sets.
RESERVED_PREFIX = "ray.io/"

# One condition on a label, as the core takes it: key, operator, values.
Expression = tuple[str, str, list[str]]

_NAME = r"[a-zA-Z0-9](?:[a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"
_NAME_RULE = "1 to 63 letters, digits, '-', '_' and '.', of which the first and last are letters or digits"
_is_name = re.compile(_NAME).fullmatch
_is_prefix = re.compile(rf"(?:{_NAME})(?:\.{_NAME})*").fullmatch
_CONDITION = re.compile(rf"(!?)(?:in\(({_NAME}(?:, ?{_NAME})*)\)|({_NAME}))")
_LONGEST_PREFIX = 253


def validate_label_key(key: str) -> Optional[str]:
    """What is wrong with the key of a label; None if nothing is."""
    prefix, slash, name = key.rpartition("/")
    if slash and (len(prefix) > _LONGEST_PREFIX or not _is_prefix(prefix)):
        return f"the prefix {prefix!r} of the label key {key!r} is not a name of a domain"
    if not _is_name(name):
        return f"the label key {key!r} has to be {_NAME_RULE}"
    return None


def validate_label_selector(label_selector: Optional[dict[str, str]]) -> Optional[str]:
    """What is wrong with a selector; None if nothing is."""
    for key, condition in (label_selector or {}).items():
        problem = validate_label_key(key) or validate_label_selector_value(condition)
        if problem:
            return problem
    return None


def validate_label_selector_value(selector: str) -> Optional[str]:
    """What is wrong with the condition on one label; None if nothing is."""
    if selector and not _CONDITION.fullmatch(selector):
        return (
            f"the label selector {selector!r} has to be a value, '!value', 'in(value, value)' or '!in(value, value)', "
            f"where a value is {_NAME_RULE}"
        )
    return None


def validate_fallback_strategy(fallback_strategy: Optional[list[dict[str, Any]]]) -> Optional[str]:
    """What is wrong with a list of fallbacks; None if nothing is."""
    for fallback in fallback_strategy or []:
        if not isinstance(fallback, dict) or not fallback:
            return f"each element of fallback_strategy has to be a dict that is not empty, one is {fallback!r}"
        unknown = sorted(set(fallback) - {"label_selector"})
        if unknown:
            return f"fallback_strategy knows only 'label_selector', not {', '.join(map(repr, unknown))}"
        selector = fallback["label_selector"]
        if not isinstance(selector, dict):
            return f"the label_selector of a fallback_strategy has to be a dict, is {selector!r}"
        problem = validate_label_selector(selector)
        if problem:
            return problem
    return None


def validate_node_labels(labels: Optional[dict[str, str]]) -> None:
    """ValueError if a node cannot be given these labels."""
    for key, value in (labels or {}).items():
        if key.startswith(RESERVED_PREFIX):
            raise ValueError(f"the label {key!r} begins with {RESERVED_PREFIX!r}, which is kept for the system's own")
        problem = validate_label_key(key)
        if problem is None and value and not _is_name(value):
            problem = f"the value {value!r} of the label {key!r} has to be {_NAME_RULE}"
        if problem:
            raise ValueError(problem)


def parse(label_selector: dict[str, str]) -> list[Expression]:
    """A valid selector as the core takes it."""
    return [_parse(key, condition) for key, condition in label_selector.items()]


def _parse(key: str, condition: str) -> Expression:
    match = _CONDITION.fullmatch(condition)
    if match is None:  # the empty value
        return (key, "in", [""])
    negated, several, one = match.groups()
    values = [one] if one is not None else re.split(", ?", several)
    return (key, "not in" if negated else "in", values)
