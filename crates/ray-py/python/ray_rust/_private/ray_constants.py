"""Names and defaults that libraries of Ray look up here."""

from __future__ import annotations

import os

LOGGER_FORMAT = "%(asctime)s\t%(levelname)s %(filename)s:%(lineno)s -- %(message)s"

CPU = "CPU"
GPU = "GPU"
MEMORY = "memory"
OBJECT_STORE_MEMORY = "object_store_memory"
HEAD_NODE_RESOURCE_NAME = "node:__internal_head__"
NODE_ID_PREFIX = "node:"
NODE_DEFAULT_IP = "127.0.0.1"
RAY_ADDRESS_ENVIRONMENT_VARIABLE = "RAY_ADDRESS"
RAY_NAMESPACE_ENVIRONMENT_VARIABLE = "RAY_NAMESPACE"
LOGGER_LEVEL = "info"
LANGUAGE_WORKER_TYPES = ("python",)

__all__ = [
    "CPU",
    "GPU",
    "HEAD_NODE_RESOURCE_NAME",
    "LANGUAGE_WORKER_TYPES",
    "LOGGER_FORMAT",
    "LOGGER_LEVEL",
    "MEMORY",
    "NODE_DEFAULT_IP",
    "NODE_ID_PREFIX",
    "OBJECT_STORE_MEMORY",
    "RAY_ADDRESS_ENVIRONMENT_VARIABLE",
    "RAY_NAMESPACE_ENVIRONMENT_VARIABLE",
    "env_bool",
    "env_float",
    "env_integer",
    "env_set_by_user",
]


def env_integer(key: str, default: int) -> int:
    """The variable's whole number, else the default."""
    text = os.environ.get(key)
    if text is None:
        return default
    return int(text) if text.strip().lstrip("+-").isdigit() else default


def env_float(key: str, default: float) -> float:
    """The variable's number, else the default."""
    try:
        return float(os.environ[key])
    except (KeyError, ValueError):
        return default


def env_bool(key: str, default: bool) -> bool:
    """Whether the variable says yes: "true" or "1", in any case; else the default."""
    text = os.environ.get(key)
    return default if text is None else text.lower() in ("true", "1")


def env_set_by_user(key: str) -> bool:
    """Whether there is such a variable."""
    return key in os.environ
