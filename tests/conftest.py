"""Fixtures that every folder of tests may use."""

import os
from pathlib import Path

# One thread: the problems are small, and threaded LAPACK spins when tests share their cores with other work.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session")
def data_root():
    """Folder of the real data sets: KERNEL_DISTILL_DATA, or shared/data beside the checkout."""
    default = Path(__file__).parents[1] / ".." / "shared" / "data"
    root = Path(os.environ.get("KERNEL_DISTILL_DATA", default)).resolve()
    if not root.is_dir():
        pytest.skip(f"no real data: {root} does not exist (set KERNEL_DISTILL_DATA)")
    return root
