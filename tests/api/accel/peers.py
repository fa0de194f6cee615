"""Clones of published code, where somebody has them: KERNEL_DISTILL_PEERS names a folder that holds them."""

import os
from pathlib import Path

import pytest


def peer_path(place):
    """A file or folder of a clone; the test is skipped where it is not there."""
    root = os.environ.get("KERNEL_DISTILL_PEERS")
    if not root or not (Path(root) / place).exists():
        pytest.skip(f"KERNEL_DISTILL_PEERS does not name a folder with {place}")
    return Path(root) / place
