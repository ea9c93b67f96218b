"""What libraries of Ray import from its compiled module."""

from __future__ import annotations

import enum

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


class Language(enum.Enum):
    """Languages that Ray knows; tasks and actors here are in Python."""

    PYTHON = 0
    JAVA = 1
    CPP = 2
