"""Published scripts as whole processes, in turns: as they are, and with their known functions replaced."""

import contextlib
import os
import re
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from _rows import DATA

STAND_INS = Path(__file__).parent / "stand_ins"


@contextlib.contextmanager
def copy_of(clone, patterns=("*.py",)):
    """A copy of a clone's Python files in a folder that is removed again, so that the clone stays as it is."""
    with tempfile.TemporaryDirectory(prefix="peer-") as name:
        folder = Path(name)
        for pattern in patterns:
            for path in Path(clone).glob(pattern):
                target = folder / path.relative_to(clone)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
        yield folder


def write_mnist(folder, rows=None):
    """MNIST in the files that torchvision reads, `rows` of each part (all by default)."""
    arrays = np.load(DATA / "mnist.npz")
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, part in (("train", "train"), ("t10k", "test")):
        x, y = arrays[f"x_{part}"][:rows], arrays[f"y_{part}"][:rows]
        images = struct.pack(">IIII", 2051, *x.shape) + x.astype(np.uint8).tobytes()
        labels = struct.pack(">II", 2049, len(y)) + y.astype(np.uint8).tobytes()
        (raw / f"{name}-images-idx3-ubyte").write_bytes(images)
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(labels)


def run(folder, script, arguments, accelerated, threads, note=None):
    """Seconds of a whole process, what it printed, and the notes it left."""
    command = [sys.executable, *(("-m", "kernel_distill.accel") if accelerated else ()), script]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(STAND_INS), os.environ.get("PYTHONPATH")])),
        "MPLBACKEND": "Agg",
        "OMP_NUM_THREADS": str(threads),
        "PYTHONWARNINGS": "ignore",
    }
    notes = folder / "notes"
    notes.unlink(missing_ok=True)
    if note is not None:
        environment[note] = str(notes)
    started = time.perf_counter()
    done = subprocess.run(
        [*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"{script} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    if accelerated:
        print(done.stderr[-4000:], file=sys.stderr)
    return seconds, done.stdout, notes.read_text().splitlines() if notes.exists() else []


def in_turns(repeats, **options):
    """Runs of both, original first: their outputs, seconds, and the median of the ratios."""
    runs = {False: [], True: []}
    for turn in range(repeats):
        for accelerated in (False, True) if turn % 2 == 0 else (True, False):
            runs[accelerated].append(run(accelerated=accelerated, **options))
    seconds = {arm: [found[0] for found in runs[arm]] for arm in runs}
    ratios = [a / b for a, b in zip(seconds[False], seconds[True], strict=True)]
    figures = {
        "seconds": round(statistics.median(seconds[True]), 2),
        "original_seconds": round(statistics.median(seconds[False]), 2),
        "ratios": [round(ratio, 2) for ratio in ratios],
        "ratio": round(statistics.median(ratios), 2),
    }
    return runs, figures


def numbers(pattern, text):
    """Every number that a pattern captures."""
    return [float(found) for found in re.findall(pattern, text)]
