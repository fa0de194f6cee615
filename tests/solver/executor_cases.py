"""What the tests of executors share: results in a folder, and waiting for another process."""

import time

import numpy as np

from kernel_distill.solver.executors import TaskStore


def write_array(path, result):
    with open(path.with_suffix(".tmp"), "wb") as file:
        np.save(file, result)
    path.with_suffix(".tmp").rename(path)


def read_array(path):
    try:
        return np.load(path)
    except EOFError as error:
        raise ValueError(f"{path.name} is truncated") from error


def array_store(folder, **identity):
    return TaskStore(folder, {"of": "tests", **identity}, write_array, read_array, ".npy")


def wait_for(condition, process, seconds=60):
    """Wait until a condition holds, while a process runs."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the process ended before"
        assert time.monotonic() < end, "the process does not get there"
        time.sleep(0.02)
