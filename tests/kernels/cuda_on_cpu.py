"""Runs the CUDA C++ of `kernels/_cuda` on the CPU, as C++ compiled by g++, with ``cuda_on_cpu.h`` for a GPU."""

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from kernel_distill.kernels._cuda import _loader

HEADER = Path(__file__).with_name("cuda_on_cpu.h")


def launcher(source, kernels):
    """A stand-in for `_loader.launch` for the kernels of one source; skips the test where there is no g++."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed, so the CUDA source cannot be run as C++")
    library = _build(source, tuple(kernels))

    def launch(name, kernel, blocks, threads, *arguments, device):
        assert name == source
        words = b"".join(word.tobytes() for word in _loader.pack(*arguments))
        getattr(library, f"run_{kernel}")(blocks, threads, words)

    return launch


@functools.cache
def _build(source, kernels):
    folder = Path(tempfile.mkdtemp(prefix="cuda-on-cpu-"))
    lines = [f'#include "{HEADER}"', f'#include "{_loader.FOLDER / source}.cu"']
    for kernel in kernels:
        lines.append(
            f'extern "C" void run_{kernel}(unsigned blocks, unsigned threads, const unsigned long long* words)'
            f" {{ launch(&{kernel}, blocks, threads, words); }}"
        )
    (folder / "kernels.cpp").write_text("\n".join(lines) + "\n")
    # Products are not contracted into sums, as with OPTIONS on a GPU.
    command = ["g++", "-std=c++17", "-O1", "-ffp-contract=off", "-w", "-shared", "-fPIC", "-o", "kernels.so"]
    done = subprocess.run([*command, "kernels.cpp"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    library = ctypes.CDLL(str(folder / "kernels.so"))
    shutil.rmtree(folder)
    return library
