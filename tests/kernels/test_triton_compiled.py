"""Every Triton kernel, compiled ahead of time for three generations of GPUs, stays within what each of them has."""

import os
from pathlib import Path

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

from kernel_distill.kernels._triton._resources import rows, variants

PAGE = Path(__file__).parents[2] / "docs" / "kernels-compiled.md"
TARGETS = (80, 90, 100)
# Bytes that a block can have: CUDA programming guide, technical specifications by compute capability.
SHARED = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
TENSOR_MEMORY = 512  # columns, on sm_100


def faults(variant, target, found):
    """What is wrong with a compiled kernel."""
    if found.registers <= 16:  # ptxas turns a kernel that it cannot serve into a trap
        yield f"{found.registers} registers: the kernel is a trap"
    if found.registers > 255:
        yield f"{found.registers} registers"
    if found.stack or found.local_accesses:
        yield f"{found.stack} bytes of stack, {found.local_accesses} accesses to it"
    if found.shared > SHARED[target]:
        yield f"{found.shared} bytes of shared memory"
    if found.tensor_memory > TENSOR_MEMORY:
        yield f"{found.tensor_memory} columns of tensor memory"
    if variant.dot and not found.tensor_core:
        yield "no tensor-core instruction"


@pytest.mark.slow
def test_every_kernel_compiles_to_something_good():
    wrong = [
        f"{label}, sm_{target}: {fault}"
        for (label, target), found in rows().items()
        for fault in faults(variants()[label], target, found)
    ]
    assert not wrong, "\n" + "\n".join(wrong)


def test_every_kernel_is_launched_on_some_target():
    for label, variant in variants().items():
        assert variant.targets, label
        assert set(variant.targets) <= set(TARGETS), label


def test_table_lists_the_kernels():
    """Run `python bench/resources.py` if this fails."""
    table = [line.split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")][1:]
    listed = {
        (cells[0].removeprefix("| "), target)
        for cells in table
        for target, cell in zip(TARGETS, cells[3:], strict=True)
        if not cell.startswith("–")
    }
    assert listed == {(label, target) for label, variant in variants().items() for target in variant.targets}
