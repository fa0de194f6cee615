"""Open points about a GPU and its libraries: each a question, answered by a small measurement."""

import functools
import os
import statistics
import subprocess
import sys
import time

import torch

from kernel_distill._bench.clock import rate, seconds_of


def open_points(device, *, quick=False):
    """Yield (name, answer) of every point; an answer that could not be found says why."""
    side = 256 if quick else 8192
    points = {
        "tf32_of_cublas": tf32,
        "float16_product_with_float32_result": functools.partial(half_product, side=side),
        "int8_product": functools.partial(int8_product, side=side),
        "launch": launch,
        "float32_by_bfloat16x9": functools.partial(emulation, side=side),
    }
    for name, answer in points.items():
        try:
            yield name, answer(device)
        except Exception as failure:  # one open point less, the others stand
            yield name, {"unknown": f"{type(failure).__name__}: {' '.join(str(failure).split())[:300]}"}


def tf32(device):
    """Whether cuBLAS rounds or truncates float32 operands to TF32: 1 + 3/4 ulp becomes 1 + ulp, or 1."""
    ulp = 2.0**-10
    a = torch.full((1024, 1024), 1 + 0.75 * ulp, device=device)
    one = torch.eye(1024, device=device)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        found = float((a @ one).mean()) - 1
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    kinds = {0.0: "truncates", ulp: "rounds to nearest", 0.75 * ulp: "does not use TF32"}
    return {"answer": kinds.get(round(found / ulp, 6) * ulp, "neither"), "excess_in_ulp": found / ulp}


def half_product(device, side):
    """Whether a float16 product of three times the width, with a float32 result, runs at the float16 rate."""
    wide = 9 * side // 8  # 9216, the width of three products of 3072 columns
    a, b = (torch.randn(side, wide, device=device).half() for _ in range(2))
    work = 2.0 * side * side * wide
    return {
        "float32_result": rate(work, lambda: torch.mm(a, b.T, out_dtype=torch.float32), device, 5),
        "float16_result": rate(work, lambda: torch.mm(a, b.T), device, 5),
    }


def int8_product(device, side):
    """Operations a second of int8 products with int32 sums."""
    a, b = (torch.randint(-128, 128, (side, side), device=device, dtype=torch.int8) for _ in range(2))
    return {"rate": rate(2.0 * side**3, lambda: torch._int_mm(a, b.T), device, 5)}


def launch(device):
    """Seconds of host time for an operation of torch, and for one of ours, on next to no data."""
    from kernel_distill.kernels.kernel_matrix import kernel_matrix
    from kernel_distill.kernels.radial import Gaussian

    x = torch.randn(128, 64, device=device)
    kernel = Gaussian(8.0)
    found = {}
    for name, call in {
        "torch_add": lambda: x.add(1.0),
        "kernel_matrix": lambda: kernel_matrix(kernel, x),
    }.items():
        call()
        found[name] = statistics.median(_each(call, device) for _ in range(5))
    return found


def _each(call, device, count=100):
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    for _ in range(count):
        call()
    wait()
    return (time.perf_counter() - started) / count


def emulation(device, side):
    """Whether cuBLAS, asked to emulate float32 by bfloat16 products, becomes faster: asked before it is loaded."""
    plain, emulated = (_float32_rate(device, side, asked) for asked in ({}, _EMULATED))
    return {"float32": plain, "asked_to_emulate": emulated, "present": emulated > 1.3 * plain}


_EMULATED = {"CUBLAS_EMULATE_SINGLE_PRECISION": "1", "CUBLAS_EMULATION_STRATEGY": "performant"}


def _float32_rate(device, side, variables):
    command = [sys.executable, __file__, device.type, str(side)]
    environment = {**os.environ, **variables}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    return float(done.stdout.split()[-1])


if __name__ == "__main__":
    place, width = torch.device(sys.argv[1]), int(sys.argv[2])
    left, right = (torch.randn(width, width, device=place) for _ in range(2))
    torch.mm(left, right)
    print(2.0 * width**3 / min(seconds_of(lambda: torch.mm(left, right), place) for _ in range(5)))
