"""What the compiler made of the CUDA C++ of this folder. Needs no GPU, but the ``ptxas`` that Triton brings.

NVRTC may be newer than that assembler, so its PTX is relabelled with the version that the assembler reads; no
instruction used here is newer.
"""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ._loader import compile_source

_ROW = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Resources:
    """Of one kernel: registers a thread, bytes of stack and of spills a thread, bytes of shared memory a block."""

    kernel: str
    registers: int
    stack: int
    spills: int
    shared: int


def measure_source(source: str, capability: int) -> list[Resources]:
    """Compile ``<source>.cu`` for "sm_<capability>" and list its kernels."""
    import triton

    text = compile_source(source, f"compute_{capability}").decode().rstrip("\0")
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    assembler = tools / ("ptxas-blackwell" if capability >= 100 else "ptxas")
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder) / "kernel.ptx"
        ptx.write_text(re.sub(r"^\.version \d+\.\d+", ".version 8.7", text, flags=re.MULTILINE))
        command = [
            assembler,
            "-v",
            "--gpu-name",
            f"sm_{capability}",
            "-o",
            Path(folder) / "kernel.cubin",
            ptx,
        ]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return [
        Resources(
            kernel=row["kernel"],
            registers=int(row["registers"]),
            stack=int(row["stack"]),
            spills=int(row["stores"]) + int(row["loads"]),
            shared=int(found[1]) if (found := re.search(r"(\d+) bytes smem", row["rest"])) else 0,
        )
        for row in _ROW.finditer(report)
    ]
