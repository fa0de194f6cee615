"""What happened at each target: calls, calls left to the original with their reasons, seconds, differences."""

import dataclasses
import threading

from ._log import logger


@dataclasses.dataclass
class Record:
    """Of one target, since the program began or `reset`.

    Attributes
    ----------
    places : list of str
        Where it was installed.
    unknown : list of str
        Places of its name whose source is not known: left alone.
    calls, accelerated : int
        Calls in all, and those answered by the replacement.
    declined : dict of str to int
        Calls left to the original, by reason.
    seconds : float
        In the replacement.
    verified : int
        Calls for which the original ran too.
    original_seconds, replacement_seconds : float
        In both, of verified calls.
    difference : float
        The largest of verified calls.
    """

    places: list[str] = dataclasses.field(default_factory=list)
    unknown: list[str] = dataclasses.field(default_factory=list)
    calls: int = 0
    accelerated: int = 0
    declined: dict[str, int] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    verified: int = 0
    original_seconds: float = 0.0
    replacement_seconds: float = 0.0
    difference: float = 0.0


_lock = threading.Lock()
records: dict[str, Record] = {}


def record(name: str) -> Record:
    """The record of a target, made where there is none."""
    with _lock:
        if name not in records:
            records[name] = Record()
        return records[name]


def count_declined(name: str, reason: str) -> None:
    """Count a call that is left to the original; the first of each reason is a line in the log."""
    entry = record(name)
    with _lock:
        entry.calls += 1
        first = reason not in entry.declined
        entry.declined[reason] = entry.declined.get(reason, 0) + 1
    if first:
        logger.warning("%s: left to the original: %s", name, reason)


def count_accelerated(name: str, seconds: float) -> None:
    """Count a call answered by the replacement."""
    entry = record(name)
    with _lock:
        entry.calls += 1
        entry.accelerated += 1
        entry.seconds += seconds


def count_verified(name: str, original: float, replacement: float, difference: float) -> int:
    """Note a comparison: seconds of both and their difference; how many there have been."""
    entry = record(name)
    with _lock:
        entry.verified += 1
        entry.original_seconds += original
        entry.replacement_seconds += replacement
        entry.difference = max(entry.difference, difference)
        return entry.verified
