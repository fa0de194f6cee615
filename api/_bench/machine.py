"""The machine under the benchmark: what it is, and how fast it copies, multiplies and exponentiates at best.

Floors are computed from these measured ceilings, never from data sheets, so that "times the floor" means the same on
every machine.
"""

import importlib.metadata
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .case import Work
from .clock import rate

_LIBRARIES = ("torch", "numpy", "triton", "cupy-cuda13x", "scikit-learn", "pykeops")
_CHAIN = 128  # exponentials of each number in a register, so that reading it does not count


@dataclass(frozen=True)
class Ceilings:
    """Rates measured on this machine.

    Attributes
    ----------
    copy : float
        Bytes a second of a large copy, read plus written.
    products : dict of float
        Operations a second of large square matrix products, by dtype of the operands.
    exps : float or None
        Float32 exponentials a second, in registers or cache; None where it could not be measured.
    """

    copy: float
    products: dict[str, float]
    exps: float | None

    def floor(self, work: Work) -> tuple[float, str]:
        """Seconds that `work` takes at least if all units run at once at their best, and which one bounds it."""
        bounds = {"memory": work.bytes / self.copy}
        bounds |= {dtype: count / self.products[dtype] for dtype, count in work.products.items()}
        if self.exps:
            bounds["exponentials"] = work.exps / self.exps
        bound = max(bounds, key=bounds.__getitem__)
        return bounds[bound], bound


def measure_ceilings(device: torch.device, *, quick: bool = False) -> Ceilings:
    """Measure the ceilings of a device: a second on a GPU, a few on a CPU, a tenth of that for `quick`."""
    full = device.type == "cuda" and not quick
    repeats = 10 if full else 3
    side = 8192 if full else 1024 if quick else 3072
    dtypes = ("float32", "float64", "float16", "bfloat16")[: 4 if device.type == "cuda" else 2]
    return Ceilings(
        copy=_copy(device, 2**29 if full else 2**24 if quick else 2**26, repeats),
        products={name: _product(device, getattr(torch, name), side, repeats) for name in dtypes},
        exps=_exps(device, repeats),
    )


def describe_machine(device: torch.device) -> dict[str, Any]:
    """What rows of results are to be read with: device, threads and versions."""
    from .. import __version__

    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name = properties.name
        more = {
            "multiprocessors": properties.multi_processor_count,
            "memory": properties.total_memory,
            "cuda": torch.version.cuda,
        }
    else:
        name = f"{platform.machine()} CPU, {torch.backends.cpu.get_cpu_capability()}"
        more = {}
    return {
        "device": name,
        "kind": device.type,
        **more,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {"kernel-distill": __version__, **_versions()},
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _copy(device: torch.device, numbers: int, repeats: int) -> float:
    source = torch.randn(numbers, device=device)
    target = torch.empty_like(source)
    return rate(2 * 4 * numbers, lambda: target.copy_(source), device, repeats)


def _product(device: torch.device, dtype: torch.dtype, side: int, repeats: int) -> float:
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return rate(2 * side**3, lambda: torch.mm(a, b, out=out), device, repeats)


def _exps(device: torch.device, repeats: int) -> float | None:
    if device.type == "cpu":
        # In the cache of its core, and enough for every thread to get a share.
        x = torch.rand(2**16 * torch.get_num_threads())
        out = torch.empty_like(x)
        return rate(20 * x.numel(), lambda: [torch.exp(x, out=out) for _ in range(20)], device, repeats)
    x = torch.rand(2**22, device=device)
    try:
        chain = _exp_chain()
        return rate(_CHAIN * x.numel(), lambda: chain(x), device, repeats)
    except (RuntimeError, ImportError):  # no run-time compiler: floors then leave exponentials out
        return None


def _exp_chain() -> Callable[[torch.Tensor], torch.Tensor]:
    """A kernel of `_CHAIN` exponentials of the special-function units, one after the other on each number."""
    from torch.cuda.jiterator import _create_jit_fn

    code = f"template <typename T> T chain(T x) {{ for (int i = 0; i < {_CHAIN}; ++i) x = __expf(-x); return x; }}"
    return _create_jit_fn(code)
