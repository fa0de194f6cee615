"""What a machine can do, as the few rates that a cost is counted in: given, or measured in some seconds."""

import dataclasses
import math
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, Self

import torch

from ..kernels import statistics_add_
from ._check import check_count

# Of one measurement; there are six.
_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class Machine:
    """Rates of one machine. Rates of arithmetic and of memory are those of one core while all are busy.

    Defaults of arithmetic and memory bandwidth are what `Machine.measured` found on two cores of an x86-64 server
    processor with AVX-512, and `eigen` there at p = 3072 (`bench/closed_form.py path`); those of `memory`, `disk`,
    `network` and `start_up` are round assumptions.

    Attributes
    ----------
    cores : int
    memory : float
        Bytes.
    gram : float
        FLOP/s of a float64 Gram product (`kernels.statistics_add_`), a core.
    features : float
        FLOP/s of a float32 matrix product, a core.
    cosines : float
        float32 cosines per second, scaled and written to fresh memory, a core.
    thin : float
        Features per second that a product with very few columns takes in, a core: a floor below which FLOPs do not
        count.
    bandwidth : float
        Bytes per second of memory, read and written, a core.
    eigen : float
        FLOP/s of a symmetric eigen-decomposition counted as 9 p³, the whole machine.
    disk : float
        Bytes per second that its workers read rows with, all together, whether from a disk or from a store.
    network : float
        Bytes per second of its link, each way.
    storage : float
        Bytes per second that the store of the rows gives to all machines together; infinite for local disks.
    start_up : float
        Seconds from a call to the first task where there are several workers.
    notes : tuple of str
        What was measured, and how.
    """

    cores: int = 2
    memory: float = 16e9
    gram: float = 47e9
    features: float = 78e9
    cosines: float = 0.27e9
    thin: float = 0.2e9
    bandwidth: float = 18e9
    eigen: float = 65e9
    disk: float = 1e9
    network: float = 1.25e9
    storage: float = math.inf
    start_up: float = 5.0
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_count(self.cores, "cores")
        for name in RATES:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise ValueError(f"`{name}` of a machine must be a number above zero, got {value!r}")
        if not (isinstance(self.start_up, (int, float)) and 0 <= self.start_up < math.inf):
            raise ValueError(f"`start_up` must be finite and not negative, got {self.start_up!r}")

    @classmethod
    def measured(cls, *, seconds: float = _SECONDS, **given: Any) -> Self:
        """Measure arithmetic and memory bandwidth of this machine with as many threads as torch uses.

        Parameters
        ----------
        seconds : float, default 0.5
            Of each of six measurements, three runs at least; medians are taken.
        **given
            Fields that are known, such as `disk` and `network`, which are not measured.

        Notes
        -----
        About 5 seconds and 300 MiB. Anything else that runs makes the machine look slower than it is.
        """
        cores = torch.get_num_threads()
        p, rows, d = 2048, 4096, 512
        values = torch.linspace(-9.7, 9.7, rows * p).reshape(rows, p)
        # Entries of a product are alike in size, and no two are equal: nothing is easier than for real features.
        F = values.sin().double()
        targets = torch.ones(rows, 10, dtype=torch.float64)
        totals = torch.zeros(p, p, dtype=torch.float64), torch.zeros(p, 10, dtype=torch.float64)
        inputs, weights = values[:, :d].contiguous(), values[:p, -d:].contiguous()
        block = F[:, :1536].T @ F[:, :1536]
        thin = _median(lambda: totals[1].addmm_(F.T, targets), seconds)
        whole = _median(lambda: statistics_add_(*totals, F, targets), seconds)
        figures = {
            "gram": gram_flops(rows, p) / max(whole - thin, 1e-9) / cores,
            "thin": rows * p / thin / cores,
            "features": 2 * rows * d * p / _median(lambda: inputs @ weights.T, seconds) / cores,
            "cosines": rows * p / _median(lambda: values.cos().mul_(0.5), seconds) / cores,
            "bandwidth": 12 * rows * p / _median(lambda: F.copy_(values), seconds) / cores,
            "eigen": 9 * 1536**3 / _median(lambda: torch.linalg.eigh(block), seconds),
        }
        notes = (
            f"{cores} thread{'s' * (cores > 1)} of torch",
            f"gram and thin: statistics of {rows} rows, p = {p}, k = 10, float64",
            f"features: product of {rows} x {d} and {d} x {p}, float32; cosines: {rows} x {p}, float32",
            f"bandwidth: {rows} x {p} from float32 to float64; eigen: p = 1536, float64",
        )
        return dataclasses.replace(cls(cores=cores, memory=_memory(), notes=notes, **figures), **given)


RATES = tuple(
    field.name for field in dataclasses.fields(Machine) if field.name not in ("cores", "start_up", "notes")
)


def gram_flops(n: float, p: int) -> float:
    """FLOPs of `kernels.gram_add_`: n (p² + Σ w²) for panels of widths w = 384, about n p (p + 384)."""
    panel = 384
    return float(n) * (p * p + (p // panel) * panel**2 + (p % panel) ** 2)


def _median(call: Callable[[], object], seconds: float) -> float:
    """Median seconds of a call, after one that is not counted."""
    call()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _memory() -> float:
    """Bytes of memory of this machine; the default where the system does not say."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return Machine.memory
