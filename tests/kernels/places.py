"""Where the operations are tested: the backends and devices that this process can use."""

import os

import pytest
import torch

from kernel_distill.kernels._dispatch import _REGISTRY

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
SIZES = (1, 31, 33, 127, 129)  # around the edges of 32 and 128, never multiples of 16


def places(operation):
    """Parameters (backend, device) for `operation`: torch on the CPU, Triton interpreted there, all on a GPU."""
    found = [pytest.param(("torch", "cpu"), id="torch-cpu")]
    if INTERPRETED and "triton" in _REGISTRY[operation]:
        found.append(pytest.param(("triton", "cpu"), id="triton-interpreted"))
    if torch.cuda.is_available() and not INTERPRETED:
        found += [
            pytest.param((backend, "cuda"), id=f"{backend}-cuda", marks=pytest.mark.gpu)
            for backend in _REGISTRY[operation]
        ]
    return found
