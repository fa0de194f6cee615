"""What is tried again, and how often: one policy for every executor.

A task is a function of its arguments alone, so running it again is always right. It is of use where the failure was of
the machine (a full disk, a lost connection, memory, a killed process) and of none where the input or the code is wrong:
those errors are the same on every machine and come out as they were raised.
"""

import collections
import logging
from collections.abc import Callable
from typing import Any

from .._check import check_count
from .base import Retry, TaskError

# Bad input and bad code. Everything else may have been the machine's.
PERMANENT = (
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    ImportError,
    NameError,
    AssertionError,
    NotImplementedError,
)

_LOG = logging.getLogger("kernel_distill")


class Attempts:
    """The failures of one call of an executor.

    Parameters
    ----------
    retries : int
        How often one task is run again before it is given up.
    record : list of Retry
        Gets one entry for each task that is run again.
    """

    def __init__(self, retries: int, record: list[Retry]) -> None:
        self._retries = retries
        self._record = record
        self._failures: collections.Counter[str] = collections.Counter()

    def run(self, name: str, call: Callable[[], Any], *, repeat: bool = True) -> Any:
        """What `call` returns, called here and as often as `failed` allows."""
        while True:
            try:
                return call()
            except Exception as error:  # raised again by `failed`, or run again and recorded
                self.failed(name, error, repeat=repeat)

    def failed(self, name: str, error: Exception, *, repeat: bool = True) -> None:
        """Take note of a failure: return if the task is to be run again, otherwise raise what the caller should see.

        Parameters
        ----------
        name : str
            Of the task.
        error : Exception
        repeat : bool, default True
            False if the task cannot be run again.

        Raises
        ------
        PERMANENT
            `error` itself, if it is one of them.
        TaskError
            From `error`, if the task has failed too often.
        """
        if isinstance(error, PERMANENT):
            raise error
        reason = describe(error)
        self._failures[name] += 1
        failures = self._failures[name]
        if not repeat or failures > self._retries:
            times = "once" if failures == 1 else f"{failures} times"
            raise TaskError(
                f"task {name!r} failed {times} and is given up; the last time: {reason}"
            ) from error
        self._record.append(Retry(name, reason))
        _LOG.warning("task %r is run again (%d of %d): %s", name, failures, self._retries, reason)


def check_retries(retries: int) -> int:
    """The number of retries, 0 or more."""
    return check_count(retries, "retries", minimum=0)


def describe(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
