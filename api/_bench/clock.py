"""Seconds and peak memory of calls: in turn, so that a drifting machine hits all alike."""

import ctypes
import re
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from .case import Call


@dataclass(frozen=True)
class Timing:
    """Seconds of each round, in order, and the peak of memory above what was there before the call."""

    seconds: tuple[float, ...]
    memory: int | None

    @property
    def median(self) -> float:
        """Median seconds of a call."""
        return statistics.median(self.seconds)

    def ratio(self, other: "Timing") -> float:
        """Median over the rounds of this one's seconds by the other's in the same round."""
        return statistics.median(a / b for a, b in zip(self.seconds, other.seconds, strict=True))


def paired(
    calls: Mapping[str, Call], device: torch.device, *, seconds: float, least: int = 3, most: int = 25
) -> dict[str, Timing]:
    """Time calls in turn (A B C A B C ...); they have run before.

    Parameters
    ----------
    calls : mapping
    device : torch.device
        On a GPU time is taken by events on the current stream, which includes the host's where the device waits.
    seconds : float
        No round begins after so long, except the first `least`.
    least, most : int
        Bounds of the number of rounds. Memory is measured in the first.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    memory: dict[str, int | None] = {}
    started = time.perf_counter()
    for done in range(most):
        if done >= least and time.perf_counter() - started > seconds:
            break
        for name, call in calls.items():

            def timed(name: str = name, call: Call = call) -> None:
                times[name].append(seconds_of(call, device))

            if done:
                timed()
            else:
                memory[name] = _peak_memory(timed, device)
    return {name: Timing(tuple(times[name]), memory[name]) for name in calls}


def seconds_of(call: Call, device: torch.device) -> float:
    """Seconds of one call, until its result is there."""
    if device.type != "cuda":
        started = time.perf_counter()
        call()
        return time.perf_counter() - started
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def rate(work: float, call: Call, device: torch.device, repeats: int) -> float:
    """Work per second of the fastest of some calls: a ceiling is the best that was seen."""
    call()
    return work / min(seconds_of(call, device) for _ in range(repeats))


def _peak_memory(call: Call, device: torch.device) -> int | None:
    """Bytes that a call takes at its peak, its result included; None where the system does not tell."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    before = _resident("VmRSS") if _forget_peak() else None
    call()
    after = _resident("VmHWM")
    return None if before is None or after is None else max(0, after - before)


def _forget_peak() -> bool:
    """Start the peak of resident memory anew (Linux), with what the allocator holds back given up first."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return False
    return True


def _resident(line: str) -> int | None:
    try:
        found = re.search(rf"{line}:\s+(\d+)", Path("/proc/self/status").read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
