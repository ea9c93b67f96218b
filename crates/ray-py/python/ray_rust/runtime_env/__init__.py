"""Describing what the processes of tasks and actors need beside the job's code."""

from ray_rust.runtime_env.runtime_env import RuntimeEnv, RuntimeEnvConfig

__all__ = ["RuntimeEnv", "RuntimeEnvConfig"]
