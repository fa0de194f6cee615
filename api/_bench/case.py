"""What a benchmark case is: an operation at some sizes, its rivals, its floor, and the check it passes first."""

import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Call = Callable[[], Any]
Rival = Call | str  # a call, or why there is none
Size = dict[str, Any]

# Largest error of a kernel value, by precision: float32 sums of products, float16 and bfloat16 operands.
TOLERANCE = {"exact": 1e-12, "high": 1e-6, "medium": 3e-4, "low": 3e-3}
_OPERANDS = {"medium": torch.float16, "low": torch.bfloat16}


@dataclass(frozen=True)
class Work:
    """The least that a result costs.

    Attributes
    ----------
    products : mapping
        Operations in matrix products, two for a multiplication and an addition, by the dtype of the operands.
    exps : float
        Exponentials, or functions of their cost.
    bytes : float
        Arguments read once and results written once.
    """

    products: Mapping[str, float] = field(default_factory=dict)
    exps: float = 0.0
    bytes: float = 0.0


@dataclass(frozen=True)
class Problem:
    """A case at one size: calls that compute the same thing, and how to tell that they do.

    Attributes
    ----------
    ours : callable
    error : callable
        Error of a result against float64, on a part of it that is affordable.
    tolerance : float
        Above it a result is wrong, and its speed is not measured.
    rivals : mapping
        Calls, or the reason why one cannot run here.
    work : Work, optional
        What bounds the time from below; none where that would say nothing.
    rival_error : callable, optional
        The same for what rivals return, where that differs.
    """

    ours: Call
    error: Callable[[Any], float]
    tolerance: float
    rivals: Mapping[str, Rival] = field(default_factory=dict)
    work: Work | None = None
    rival_error: Callable[[Any], float] | None = None


@dataclass(frozen=True)
class Case:
    """A named entry of the benchmark.

    Attributes
    ----------
    name, title : str
    operations : tuple of str
        Public functions that it covers, and the dispatched ones that they lead to.
    build : callable
        Called with a `Bench` and the numbers of a size.
    quick, cpu, cuda : sequence of dict
        Sizes for a quick look anywhere, for a CPU and for a GPU.
    """

    name: str
    operations: tuple[str, ...]
    title: str
    build: Callable[..., Problem]
    quick: Sequence[Size]
    cpu: Sequence[Size]
    cuda: Sequence[Size]

    def sizes(self, bench: "Bench") -> Sequence[Size]:
        """Sizes to run in this setting."""
        return self.quick if bench.quick else getattr(self, bench.device.type)


CASES: dict[str, Case] = {}


def case(
    name: str,
    operations: str | tuple[str, ...],
    title: str,
    *,
    quick: Sequence[Size],
    cpu: Sequence[Size],
    cuda: Sequence[Size],
) -> Callable[[Callable[..., Problem]], Callable[..., Problem]]:
    """Register the builder below as a case; it is called with a `Bench` and the numbers of a size."""

    def register(build: Callable[..., Problem]) -> Callable[..., Problem]:
        if name in CASES:
            raise ValueError(f"there are two cases named {name!r}")
        covered = (operations,) if isinstance(operations, str) else operations
        CASES[name] = Case(name, covered, title, build, quick, cpu, cuda)
        return build

    return register


@dataclass(frozen=True)
class Bench:
    """Where a case runs, and what that place offers."""

    device: torch.device
    quick: bool = False

    @property
    def on_gpu(self) -> bool:
        """Whether this is a CUDA device."""
        return self.device.type == "cuda"

    def normal(self, *shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers, the same in every run on this kind of device."""
        return torch.randn(*shape, dtype=dtype, device=self.device, generator=self.generator(seed))

    def generator(self, seed: int = 0) -> torch.Generator:
        """A generator of this device."""
        return torch.Generator(self.device).manual_seed(seed)

    def operand(self, precision: str) -> torch.dtype:
        """Dtype in which a rival multiplies float32 data at this precision."""
        if precision == "exact":
            return torch.float64
        return _OPERANDS.get(precision, torch.float32) if self.on_gpu else torch.float32

    def products(self, operations: float, precision: str) -> dict[str, float]:
        """Operations by dtype of the operands; "high" is three float16 products on a GPU."""
        if precision == "exact":
            return {"float64": operations}
        if not self.on_gpu:
            return {"float32": operations}
        return {
            "bfloat16" if precision == "low" else "float16": operations * (3 if precision == "high" else 1)
        }

    def free_memory(self) -> float:
        """Bytes that are free; infinite where the system does not say."""
        if self.on_gpu:
            return torch.cuda.mem_get_info(self.device)[0]
        try:
            lines = Path("/proc/meminfo").read_text().splitlines()
        except OSError:
            return float("inf")
        found = [line.split() for line in lines if line.startswith("MemAvailable")]
        return int(found[0][1]) * 1024 if found else float("inf")

    def lacks(
        self, library: str = "", *, device: str | None = None, compiles: bool = False, needs: float = 0.0
    ) -> str | None:
        """Why a rival cannot run here, or None."""
        if device is not None and device != self.device.type:
            return f"runs on {'a GPU' if device == 'cuda' else 'a CPU'}"
        if compiles and self.quick:
            return "compiles first: left out of --quick"
        if library and importlib.util.find_spec(library) is None:
            return f"{library} is not installed"
        if needs > 0.8 * (free := self.free_memory()):
            return f"needs {needs / 1e9:.1f} GB, of which {free / 1e9:.1f} are free"
        return None


def rival(
    library: str = "", *, device: str | None = None, compiles: bool = False
) -> Callable[[Callable[..., Call]], Callable[..., Rival]]:
    """Make a function of (bench, ...) return the reason where its library, device or time is not there."""

    def wrap(make: Callable[..., Call]) -> Callable[..., Rival]:
        @functools.wraps(make)
        def made(bench: Bench, *args: Any, needs: float = 0.0, **kwargs: Any) -> Rival:
            reason = bench.lacks(library, device=device, compiles=compiles, needs=needs)
            return make(bench, *args, **kwargs) if reason is None else reason

        return made

    return wrap


def some_rows(n: int, count: int = 64) -> list[int]:
    """Rows on which a result is checked: the first, the last, and others spread between them."""
    return sorted({round(i * (n - 1) / max(1, count - 1)) for i in range(min(n, count))})


def largest_error(found: Any, expected: Tensor, scale: Tensor | float | None = None) -> float:
    """Largest ``|found - expected|`` in units of `scale`, by default the largest expected entry; NaN is infinite."""
    got = torch.as_tensor(found, device=expected.device).double()
    if got.shape != expected.shape:
        raise ValueError(f"a result has shape {tuple(got.shape)}, expected {tuple(expected.shape)}")
    error = ((got - expected).abs() / (expected.abs().max() if scale is None else scale)).max()
    return float(torch.nan_to_num(error, nan=float("inf")))
