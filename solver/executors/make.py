"""An executor by name."""

from .._check import check_name
from .base import Executor
from .serial import SerialExecutor

EXECUTORS = ("serial", "ray")


def make_executor(executor: str | Executor | None) -> Executor:
    """The executor of that name with its defaults, or the one given; None is "serial".

    Raises
    ------
    ValueError
        If there is no such executor.
    ImportError
        If its library is not installed.
    """
    if isinstance(executor, Executor):
        return executor
    if executor is None or check_name(executor, EXECUTORS, "executor") == "serial":
        return SerialExecutor()
    from .ray import RayExecutor

    return RayExecutor()
