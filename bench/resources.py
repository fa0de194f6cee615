"""What every GPU kernel compiles to, written to docs/kernels-compiled.md: `python bench/resources.py`. Needs no GPU."""

from pathlib import Path

from kernel_distill.kernels._triton._resources import Resources, rows, variants

TARGETS = (80, 90, 100)
PAGE = Path(__file__).parent.parent / "docs" / "kernels-compiled.md"
INTRODUCTION = """# What the GPU kernels compile to

Every Triton kernel with the launch parameters that its launcher uses, compiled ahead of time (no GPU involved) by
Triton {triton} and its ptxas {ptxas}. A cell gives registers a thread, KiB of shared memory a block, for kernels that
multiply the number of tensor-core instructions in the code, and on sm_100 their columns of tensor memory. A dash:
another row is launched there. None uses a stack or spills a register; `tests/kernels/test_triton_compiled.py` compiles
them all and asserts so. Written by `python bench/resources.py`.

| kernel | warps | stages | {targets} |
|---|---|---|{dashes}
"""


def cell(resources: Resources | None) -> str:
    """One kernel on one target."""
    if resources is None:
        return "–"
    parts = [f"{resources.registers} reg", f"{resources.shared / 1024:.1f} KiB"]
    if resources.tensor_core:
        parts.append(f"{resources.tensor_core} mma")
    if resources.tensor_memory:
        parts.append(f"{resources.tensor_memory} col")
    return ", ".join(parts)


def page(measured: dict[tuple[str, int], Resources]) -> str:
    """The whole document."""
    import triton

    text = INTRODUCTION.format(
        triton=triton.__version__,
        ptxas=triton.knobs.nvidia.ptxas.version,
        targets=" | ".join(f"sm_{target}" for target in TARGETS),
        dashes="---|" * len(TARGETS),
    )
    for label, variant in sorted(variants().items()):
        cells = " | ".join(cell(measured.get((label, target))) for target in TARGETS)
        text += f"| {label} | {variant.warps} | {variant.stages} | {cells} |\n"
    return text


if __name__ == "__main__":
    PAGE.write_text(page(rows()))
