"""D3 (sunnytqin/D3): its maximum mean discrepancy, and the loop over classes in ``main``."""

from .._target import Region, Target

_NEEDED = {"_mix_rbf_kernel": ("67dbb590c1cd146d",), "_mmd2": ("aba946a3246a8c7a",)}
# The original's rounding: some units in the last place of float32 of squared norms, which go into exponents; the
# terms of either cancel, so that the difference is one of kernel values, not relative to the loss.
_TOLERANCE = 1e-4
_CHANGES = "rounding: distances come from centred rows, which is nearer to float64 than the original"
_IDENTICAL = "dtype, shape, device, what is differentiated; no random numbers are drawn"
_SUMMARY = (
    "Maximum mean discrepancy by a sum of Gaussian kernels, in memory for the rows and not for their pairs"
)


def _discrepancy(name: str, source: str, guard: str) -> Target:
    return Target(
        name=f"d3.{name}",
        qualname=name,
        hashes=(source,),
        replacement=f"d3:{name}",
        guard=guard,
        compare="mmd:absolute_difference",
        measure="in absolute terms",
        equivalence="exact",
        tolerance=_TOLERANCE,
        summary=_SUMMARY,
        changes=_CHANGES,
        identical=_IDENTICAL,
        requires=_NEEDED,
    )


TARGETS: tuple[Target, ...] = (
    _discrepancy("mix_rbf_mmd2_fixed", "428c3da4f0beab6d", "d3:unfit_fixed"),
    _discrepancy("mix_rbf_mmd2", "4b6faa09fbd64297", "d3:unfit"),
    Region(
        name="d3.mmd_loop",
        qualname="main",
        hints=("mix_rbf_mmd2_fixed",),
        hashes=("a650faf0a4f8c76d",),
        inputs=(
            "mmd_loss",
            "num_classes",
            "num_samples",
            "feature_only",
            "args",
            "get_images",
            "student_net",
            "final_params",
            "syn_latents",
            "synthetic_samples",
            "mix_rbf_mmd2_fixed",
        ),
        outputs=("mmd_loss",),
        replacement="d3:mmd_loop",
        guard="d3:loop_unfit",
        equivalence="exact",
        tolerance=1e-6,
        summary="The sum over classes of the discrepancy between features of real and of synthetic images, in the"
        " activations of one class",
        changes="the gradient is multiplied by the weight of the loss at the end of the backward pass: rounding",
        identical="the loss bit for bit, and every random number: the same calls are made in the same order",
    ),
)
