"""Ahead-of-time compilation of the Triton kernels, and what the compiler made of them. Needs no GPU.

Every module of this package lists its kernels in ``VARIANTS`` with the launch parameters that its launcher uses;
`measure` compiles one for a compute capability and reads registers, stack, shared memory and the instructions that
matter from the machine code; `rows` does so for all of them.
"""

import importlib
import multiprocessing
import os
import pkgutil
import re
import subprocess
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# Instructions of tensor cores.
_DOT = {80: ("HMMA", "IMMA"), 90: ("HGMMA", "IGMMA", "HMMA"), 100: ("UTCHMMA", "UTCQMMA", "UTCIMMA", "HMMA")}


@dataclass(frozen=True)
class Variant:
    """One kernel as it is launched.

    Parameters
    ----------
    label : str
        Unique name, "operation, precision, tile".
    kernel : triton JITFunction
    arguments : dict
        Triton type of every argument that is not a constexpr ("*fp32", "i32", "i64", "fp32"), in order.
        Pointers and 32-bit sizes are compiled as divisible by 16, as they are at the usual sizes, unless listed
        in `odd`.
    constants : dict
        Value of every constexpr.
    warps, stages : int
    dot : bool
        Whether the kernel is meant to use tensor cores.
    odd : tuple of str
        Arguments not known to be divisible by 16.
    options : dict
        Further compiler options.
    targets : tuple of int
        Compute capabilities, times ten, whose launches look like this.
    """

    label: str
    kernel: Any
    arguments: dict[str, str]
    constants: dict[str, Any]
    warps: int
    stages: int = 1
    dot: bool = False
    odd: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    targets: tuple[int, ...] = (80, 90, 100)


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel uses.

    Parameters
    ----------
    registers : int
        A thread's.
    stack : int
        Bytes a thread.
    shared : int
        Bytes a block.
    tensor_memory : int
        Columns a block, on sm_100.
    local_accesses, tensor_core : int
        Instructions in the code: to the stack, and of tensor cores.
    """

    registers: int
    stack: int
    shared: int
    tensor_memory: int
    local_accesses: int
    tensor_core: int


@cache
def variants() -> dict[str, Variant]:
    """All kernels of this package by label."""
    package = __name__.rpartition(".")[0]
    found: dict[str, Variant] = {}
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
        for variant in getattr(importlib.import_module(module.name), "VARIANTS", ()):
            if variant.label in found:
                raise ValueError(f"two kernels are labelled {variant.label!r}")
            found[variant.label] = variant
    return found


def rows(workers: int = 2) -> dict[tuple[str, int], Resources]:
    """Resources of every kernel on every target of it, compiled afresh in `workers` processes."""
    wanted = [(label, target) for label, variant in variants().items() for target in variant.targets]
    with tempfile.TemporaryDirectory() as folder:
        spawned = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, spawned, initializer=_use_cache, initargs=(folder,)) as pool:
            return dict(zip(wanted, pool.map(_measure_labelled, wanted), strict=True))


def _use_cache(folder: str) -> None:
    os.environ["TRITON_CACHE_DIR"] = folder


def _measure_labelled(which: tuple[str, int]) -> Resources:
    return measure(variants()[which[0]], which[1])


def measure(variant: Variant, capability: int) -> Resources:
    """Compile for "sm_<capability>" and read the result."""
    names = list(variant.kernel.arg_names)
    signature = {name: variant.arguments.get(name, "constexpr") for name in names}
    missing = [n for n in names if n not in variant.arguments and n not in variant.constants]
    if missing:
        raise ValueError(f"{variant.label}: no type and no value for {', '.join(missing)}")
    divisible = {
        (names.index(name),): [["tt.divisibility", 16]]
        for name, kind in variant.arguments.items()
        if name not in variant.odd and (kind.startswith("*") or kind in ("i32", "i64"))
    }
    source = ASTSource(variant.kernel, signature, variant.constants, divisible)
    options = {
        "num_warps": variant.warps,
        "num_stages": variant.stages,
        "enable_fp_fusion": True,
        **variant.options,
    }
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(compiled.asm["cubin"])
        report = _cuobjdump(path)
    operations = Counter(
        re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_]+)", report, re.MULTILINE)
    )
    return Resources(
        registers=int(re.findall(r"REG:(\d+)", report)[0]),
        stack=int(re.findall(r"STACK:(\d+)", report)[0]),
        shared=compiled.metadata.shared,
        tensor_memory=getattr(compiled.metadata, "tmem_size", 0) or 0,
        local_accesses=operations["LDL"] + operations["STL"],
        tensor_core=sum(operations[name] for name in _DOT[capability]),
    )


def _cuobjdump(path: Path) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    found = tool if tool.exists() else os.environ.get("CUOBJDUMP", "cuobjdump")
    command = [str(found), "-res-usage", "-sass", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
