"""Ahead-of-time compilation of the Triton kernels, and what the compiler made of them. Needs no GPU.

Every module of this package lists its kernels in ``VARIANTS`` with the launch parameters that its launcher uses;
`measure` compiles one for a compute capability and reads registers, stack, shared memory and the instructions that
matter from the machine code.
"""

import os
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

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
    """What one compiled kernel uses: registers a thread, bytes of stack, bytes of shared and tensor memory."""

    registers: int
    stack: int
    shared: int
    tensor_memory: int
    local_accesses: int
    tensor_core: int
    traps: int


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
        usage = _cuobjdump("-res-usage", path)
        machine = _cuobjdump("-sass", path)
    operations = Counter(
        re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_]+)", machine, re.MULTILINE)
    )
    return Resources(
        registers=int(re.findall(r"REG:(\d+)", usage)[0]),
        stack=int(re.findall(r"STACK:(\d+)", usage)[0]),
        shared=compiled.metadata.shared,
        tensor_memory=getattr(compiled.metadata, "tmem_size", 0) or 0,
        local_accesses=operations["LDL"] + operations["STL"],
        tensor_core=sum(operations[name] for name in _DOT[capability]),
        traps=operations["BPT"],
    )


def _cuobjdump(option: str, path: Path) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    found = tool if tool.exists() else os.environ.get("CUOBJDUMP", "cuobjdump")
    return subprocess.run([str(found), option, str(path)], capture_output=True, text=True, check=True).stdout
