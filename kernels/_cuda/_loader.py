"""Compile the CUDA C++ of this folder on first use, and launch it on torch's stream.

NVRTC is called directly, because CuPy's own compilation flushes subnormal numbers to zero. The machine code is kept
in ``$XDG_CACHE_HOME/kernel-distill`` (``~/.cache`` by default) under a name made from everything it depends on. Memory
belongs to torch: kernels are given addresses, and CuPy allocates nothing.
"""

import functools
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._dispatch import compute_capability

FOLDER = Path(__file__).parent
# No products contracted into sums: the definitions in NumPy round each operation, and so must these.
OPTIONS = ("-std=c++17", "--fmad=false")


def launch(
    source: str, kernel: str, blocks: int, threads: int, *arguments: int | float, device: torch.device
) -> None:
    """Run a kernel of ``<source>.cu`` on the current stream of a device, without waiting for it.

    Parameters
    ----------
    source, kernel : str
    blocks, threads : int
        One-dimensional grid.
    *arguments : int or float
        All 64 bits wide: ``long long``, ``unsigned long long``, pointers (``tensor.data_ptr()``) and ``double``.
    device : torch.device
    """
    import cupy

    with torch.cuda.device(device), cupy.cuda.Device(torch.cuda.current_device()):
        function = _function(source, kernel, compute_capability(device), torch.cuda.current_device())
        with cupy.cuda.Stream.from_external(torch.cuda.current_stream()):
            function((blocks,), (threads,), pack(*arguments))


def pack(*arguments: int | float) -> tuple[np.generic, ...]:
    """Arguments as 64 bits each, whatever their sign."""
    return tuple(np.float64(a) if isinstance(a, float) else np.uint64(a % 2**64) for a in arguments)


def compile_source(source: str, architecture: str) -> bytes:
    """Machine code of ``<source>.cu`` for "sm_90", or PTX for "compute_90". Needs no GPU and no driver.

    Raises
    ------
    RuntimeError
        With the compiler's log.
    """
    from cupy_backends.cuda.libs import nvrtc

    program = nvrtc.createProgram((FOLDER / f"{source}.cu").read_text(), f"{source}.cu", (), ())
    try:
        nvrtc.compileProgram(program, (f"--gpu-architecture={architecture}", *OPTIONS))
        code = nvrtc.getCUBIN(program) if architecture.startswith("sm_") else nvrtc.getPTX(program)
        return code if isinstance(code, bytes) else code.encode()
    except nvrtc.NVRTCError as error:
        raise RuntimeError(f"{source}.cu does not compile:\n{nvrtc.getProgramLog(program)}") from error
    finally:
        nvrtc.destroyProgram(program)


@functools.cache
def _function(source: str, kernel: str, capability: tuple[int, int], device: int) -> Any:
    import cupy

    path = compiled_file(source, "sm_{}{}".format(*capability))
    return cupy.RawModule(path=str(path)).get_function(kernel)  # loads once for each device


def compiled_file(source: str, architecture: str) -> Path:
    """The file that holds the machine code, compiled if it is not there yet."""
    from cupy_backends.cuda.libs import nvrtc

    text = (FOLDER / f"{source}.cu").read_text()
    version = hashlib.sha256(repr((text, OPTIONS, nvrtc.getVersion())).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kernel-distill"
    path = folder / f"{source}-{architecture}-{version}.cubin"
    if path.exists():
        return path
    code = compile_source(source, architecture)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, written = tempfile.mkstemp(dir=folder)
    except OSError:  # nowhere to keep it: compiled again by the next process
        handle, written = tempfile.mkstemp(suffix=".cubin")
        path = Path(written)
    with open(handle, "wb") as file:
        file.write(code)
    os.replace(written, path)  # whole or not at all, whoever else writes it
    return path
