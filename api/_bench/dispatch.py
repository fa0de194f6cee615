"""Benchmark case of the dispatch: what it costs to choose an implementation."""

import torch

from ..kernels._dispatch import choose
from ..kernels.radial import Gaussian
from .case import Bench, Problem, case


@case(
    "dispatch",
    "choose",
    "1,000 choices of an implementation",
    quick=[dict()],
    cpu=[dict()],
    cuda=[dict()],
)
def _dispatch(bench: Bench) -> Problem:
    x, kernel = torch.zeros(2, 2, device=bench.device), Gaussian(1.0)

    def ours() -> None:
        for _ in range(1000):
            choose("kernel_matrix", x, x, kernel, True, "high")

    return Problem(ours=ours, error=lambda _: 0.0, tolerance=0.0)
