"""What libraries of Ray import from its compiled module."""

from __future__ import annotations

from typing import ClassVar

from ray_rust._internal import (
    ActorClassID,
    ActorID,
    ClusterID,
    FunctionID,
    JobID,
    NodeID,
    ObjectRef,
    ObjectRefGenerator,
    PlacementGroupID,
    StreamingGeneratorStats,
    TaskID,
    UniqueID,
    WorkerID,
)

__all__ = [
    "ActorClassID",
    "ActorID",
    "ClusterID",
    "FunctionID",
    "JobID",
    "Language",
    "NodeID",
    "ObjectID",
    "ObjectRef",
    "ObjectRefGenerator",
    "PlacementGroupID",
    "StreamingGeneratorStats",
    "TaskID",
    "UniqueID",
    "WorkerID",
]


# As in Ray, which has two names for the same.
ObjectID = ObjectRef


class Language:
    """Languages that Ray knows; tasks and actors here are in Python."""

    PYTHON: ClassVar[Language]
    JAVA: ClassVar[Language]
    CPP: ClassVar[Language]

    def __init__(self, lang: int) -> None:
        """The language of this number; ValueError if there is none."""
        if lang not in range(len(_LANGUAGES)):
            raise ValueError(f"there is no language of number {lang!r}: there are 0 to {len(_LANGUAGES) - 1}")
        self._number = int(lang)

    def value(self) -> int:
        """Its number."""
        return self._number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Language) and self._number == other._number

    def __hash__(self) -> int:
        return hash((Language, self._number))

    def __repr__(self) -> str:
        return _LANGUAGES[self._number]


_LANGUAGES = ("PYTHON", "JAVA", "CPP")
Language.PYTHON, Language.JAVA, Language.CPP = map(Language, range(len(_LANGUAGES)))
