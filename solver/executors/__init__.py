"""Executors: `SerialExecutor`, which is the default and the semantics, and `RayExecutor`."""

from .base import Executor, Retry, Task, TaskError, TaskStore
from .make import make_executor
from .serial import SerialExecutor

__all__ = ["Executor", "Retry", "SerialExecutor", "Task", "TaskError", "TaskStore", "make_executor"]
