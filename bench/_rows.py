"""Rows of results: one JSON object a line, each with the machine, the versions and the commit it came from."""

import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("KERNEL_DISTILL_DATA", ROOT / ".." / "shared" / "data")).resolve()


@functools.cache
def origin():
    import torch

    def git(*command):
        return subprocess.run(
            ["git", *command], cwd=ROOT, capture_output=True, text=True, check=False
        ).stdout.strip()

    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain") else ""),
    }


def emit(claim, **values):
    """Print one row."""
    row = {"claim": claim, **values, **origin()}
    print(json.dumps(row), flush=True)
    return row


def median_seconds(*calls, repeats=3):
    """Median seconds of each call, run in turn (A B A B ...) so that a drifting machine hits all alike."""
    times = [[] for _ in calls]
    for _ in range(repeats):
        for call, seconds in zip(calls, times, strict=True):
            started = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - started)
    return [statistics.median(seconds) for seconds in times]


def in_new_process(code, *arguments):
    """Last line that a script prints in a new interpreter, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.strip().splitlines()[-1])
