"""Structured logs of a job: of its driver, and of its tasks and actors."""

from __future__ import annotations

import dataclasses
import json
import logging
from typing import Any, Optional

from ray_rust._private.ray_logging import LOGGER_FORMAT, NAMES

__all__ = ["LoggingConfig"]

_STANDARD = frozenset(
    {
        "args",
        "asctime",
        "created",
        "exc_info",
        "exc_text",
        "filename",
        "funcName",
        "levelname",
        "levelno",
        "lineno",
        "message",
        "module",
        "msecs",
        "msg",
        "name",
        "pathname",
        "process",
        "processName",
        "relativeCreated",
        "stack_info",
        "taskName",
        "thread",
        "threadName",
    }
)
_ENCODINGS = ("TEXT", "JSON")


@dataclasses.dataclass
class LoggingConfig:
    """How the processes of a job log, if given to `init(logging_config=)`.

    `encoding` is "TEXT" (lines for people, with the context after the message) or "JSON" (one object a line).
    The context is where a record comes from: job_id, worker_id, node_id, and in workers actor_id, actor_name,
    task_id, task_name and task_func_name, as far as there are such; and whatever was given as `extra`.
    `log_level` is the least level that is logged; `additional_log_standard_attrs` names attributes of
    `logging.LogRecord` that are added.
    """

    encoding: str = "TEXT"
    log_level: str = "INFO"
    additional_log_standard_attrs: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        if self.encoding not in _ENCODINGS:
            raise ValueError(f"the encoding of logs has to be one of {', '.join(_ENCODINGS)}, is {self.encoding!r}")
        for name in self.additional_log_standard_attrs:
            if name not in _STANDARD:
                raise ValueError(
                    f"{name!r} is not an attribute of log records; those are {', '.join(sorted(_STANDARD))}"
                )

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> LoggingConfig:
        """The reverse of `to_dict`; what is unknown is left out."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in d.items() if name in known})

    def _apply(self) -> None:
        """Lets this process log like this from now on."""
        handler = _Handler()
        handler.setLevel(self.log_level)
        handler.setFormatter(_JsonFormatter(self) if self.encoding == "JSON" else _TextFormatter(self))
        handler.addFilter(_add_context)
        root = logging.getLogger()
        root.setLevel(self.log_level)
        _replace(root, handler)
        for name in NAMES:
            logger = logging.getLogger(name)
            logger.setLevel(self.log_level)
            logger.handlers.clear()
            logger.addHandler(handler)
            logger.propagate = False


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]
    """The one that a configuration has put there."""


def _replace(logger: logging.Logger, handler: logging.Handler) -> None:
    for known in logger.handlers[:]:
        if isinstance(known, _Handler):
            logger.removeHandler(known)
    logger.addHandler(handler)


def _add_context(record: logging.LogRecord) -> bool:
    """Says in the record where it comes from."""
    from ray_rust._private import session

    connection = session.get_session()
    if connection is None:
        return True
    from ray_rust.runtime_context import RuntimeContext

    context = RuntimeContext()
    found: dict[str, Optional[str]] = {
        "job_id": context.get_job_id(),
        "worker_id": context.get_worker_id(),
        "node_id": context.get_node_id(),
    }
    if not connection.is_driver:
        found["actor_id"] = context.get_actor_id()
        found["task_id"] = context.get_task_id()
        found["task_name"] = context.get_task_name()
        found["task_func_name"] = context.get_task_function_name()
        found["actor_name"] = context.get_actor_name()
    record.__dict__.update({name: value for name, value in found.items() if value})
    return True


class _Formatter(logging.Formatter):
    def __init__(self, config: LoggingConfig) -> None:
        super().__init__(LOGGER_FORMAT)
        self._additional = config.additional_log_standard_attrs

    def context(self, record: logging.LogRecord) -> dict[str, Any]:
        attributes = {name: getattr(record, name, None) for name in self._additional}
        attributes.update((name, value) for name, value in record.__dict__.items() if name not in _STANDARD)
        attributes["timestamp_ns"] = int(record.created * 1_000_000_000)
        return attributes


class _TextFormatter(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        context = " ".join(f"{name}={value}" for name, value in self.context(record).items())
        return f"{super().format(record)} {context}"


class _JsonFormatter(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        attributes = {
            "asctime": self.formatTime(record),
            "levelname": record.levelname,
            "message": record.getMessage(),
            "filename": record.filename,
            "lineno": record.lineno,
            "process": record.process,
        }
        if record.exc_info:
            attributes["exc_text"] = record.exc_text or self.formatException(record.exc_info)
        return json.dumps({**attributes, **self.context(record)}, default=str)
