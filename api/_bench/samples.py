"""Benchmark cases of weighted samples."""

import math
from typing import Any

import torch
from torch import Tensor

from ..kernels.loss_sampling import sample_by_loss
from ..kernels.sample import Sample
from ..kernels.sampling import weighted_sample
from . import races
from .case import Bench, Problem, Work, case

_ON_THE_HOST = {"our torch": "takes the weights to the host: seconds for 10^8"}


@case(
    "sample-without",
    "weighted_sample",
    "weighted sample without replacement",
    quick=[dict(n=50_000, k=500)],
    cpu=[dict(n=10**7, k=10**5), dict(n=10**8, k=10**5)],
    cuda=[dict(n=10**7, k=10**5), dict(n=10**8, k=10**5)],
)
def _without(bench: Bench, n: int, k: int) -> Problem:
    w = _weights(bench, n)
    return Problem(
        ours=lambda: weighted_sample(w, k, seed=0),
        error=lambda sample: _sample_error(sample, w, k, distinct=True),
        tolerance=6.0,
        rivals={
            "exponential race in torch": races.race_in_torch(bench, w, k),
            "torch.multinomial": races.multinomial(bench, w, k, False),
            "CuPy": races.race_in_cupy(bench, w, k),
            **_ON_THE_HOST,
        },
        rival_error=lambda picks: _index_error(picks, w, k, distinct=True),
        work=Work(bytes=4.0 * n),
    )


@case(
    "sample-with",
    "weighted_sample",
    "weighted sample with replacement",
    quick=[dict(n=50_000, k=500)],
    cpu=[dict(n=10**7, k=10**5), dict(n=10**8, k=10**5)],
    cuda=[dict(n=10**8, k=10**5)],
)
def _with(bench: Bench, n: int, k: int) -> Problem:
    w = _weights(bench, n)
    return Problem(
        ours=lambda: weighted_sample(w, k, method="with-replacement", seed=0),
        error=lambda sample: _sample_error(sample, w, k),
        tolerance=6.0,
        rivals={
            "float64 sums in torch": races.sums_in_torch(bench, w, k, needs=8.0 * n),
            "torch.multinomial": races.multinomial(bench, w, k, True),
            "CuPy": races.sums_in_cupy(bench, w, k),
            **_ON_THE_HOST,
        },
        rival_error=lambda picks: _index_error(picks, w, k),
        work=Work(bytes=4.0 * n),
    )


@case(
    "sample-systematic",
    "systematic_sample",
    "weighted sample in equal steps",
    quick=[dict(n=50_000, k=500)],
    cpu=[dict(n=10**7, k=10**5)],
    cuda=[dict(n=10**8, k=10**5)],
)
def _systematic(bench: Bench, n: int, k: int) -> Problem:
    w = _weights(bench, n)
    return Problem(
        ours=lambda: weighted_sample(w, k, method="systematic", seed=0),
        error=lambda sample: _sample_error(sample, w, k),
        tolerance=6.0,
        rivals={"float64 sums in torch": races.sums_in_torch(bench, w, k, systematic=True, needs=8.0 * n)},
        rival_error=lambda picks: _index_error(picks, w, k),
        work=Work(bytes=4.0 * n),
    )


@case(
    "sample-by-loss",
    "sample_by_loss",
    "sample in proportion to the cross-entropy of logits",
    quick=[dict(n=20_000, c=10, k=200)],
    cpu=[dict(n=2_000_000, c=10, k=10_000)],
    cuda=[dict(n=50_000_000, c=10, k=100_000)],
)
def _by_loss(bench: Bench, n: int, c: int, k: int) -> Problem:
    logits = bench.normal(n, c, dtype=torch.float32).to(torch.bfloat16 if bench.on_gpu else torch.float32)
    classes = torch.randint(c, (n,), device=bench.device, generator=bench.generator(1))
    losses = torch.cat(
        [
            torch.nn.functional.cross_entropy(some.double(), part, reduction="none").float()
            for some, part in zip(logits.split(1 << 20), classes.split(1 << 20), strict=True)
        ]
    )

    def loss_then_race() -> Tensor:
        return races.race(torch.nn.functional.cross_entropy(logits.float(), classes, reduction="none"), k)

    return Problem(
        ours=lambda: sample_by_loss(logits, classes, k, seed=0),
        error=lambda sample: _sample_error(sample, losses, k, distinct=True, rounding=1e-5),
        tolerance=6.0,
        rivals={"loss, then race, in torch": loss_then_race, **_ON_THE_HOST},
        rival_error=lambda picks: _index_error(picks, losses, k, distinct=True),
        work=Work(bytes=n * (logits.element_size() * c + 8.0)),
    )


def _weights(bench: Bench, n: int) -> Tensor:
    """Exponential weights, one in eight of them zero."""
    w = torch.empty(n, device=bench.device).exponential_(generator=bench.generator())
    w[::8] = 0
    return w


def _sample_error(
    sample: Sample, w: Tensor, k: int, *, distinct: bool = False, rounding: float = 1e-6
) -> float:
    """Deviations of the sample's estimates from the truth; infinite if it holds what it must not."""
    if float((sample.values - w[sample.indices].double()).abs().max() / w.max()) > rounding:
        return math.inf
    total = float(w.sum(dtype=torch.float64))
    if abs(sample.total - total) > 10 * rounding * total:
        return math.inf
    terms = sample.weights * sample.values.square()  # estimates of the sum of squares
    exact = float(sum(part.double().square().sum() for part in w.split(1 << 24)))
    deviations = abs(float(terms.sum()) - exact) / (float(terms.std()) * math.sqrt(k))
    return max(deviations, _index_error(sample.indices, w, k, distinct=distinct))


def _index_error(picks: Any, w: Tensor, k: int, *, distinct: bool = False) -> float:
    """Zero, or infinite for the wrong number of items, items of weight zero, or repetitions."""
    picks = torch.as_tensor(picks, device=w.device)
    if picks.shape != (k,) or float(w[picks].min()) <= 0:
        return math.inf
    return math.inf if distinct and len(picks.unique()) < k else 0.0
