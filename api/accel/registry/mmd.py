"""The copied MMD loss: `guassian_kernel` as a function and as a method, and the losses that call it.

Copies differ in defaults, in how the pairs are spelt out, and in whether blocks are averaged before they are added;
each has its fingerprint. One that averages without a gradient (an older `MMD_loss` of transferlearning, whose loss
trains nothing), and those that add a small number to a denominator, are not among them.
"""

from collections.abc import Mapping

from .._target import Target

_KERNEL = ("98f48af71334efd7", "04eb9b19c53bf6ff", "bfe554702d417bf0", "9f52fc466d19892b", "2932e85a260b9cce")
_KERNEL_METHOD = (
    "3f22ee4ba82f7c7f",
    "96ad21b05cb45d51",
    "0eb9dd46384c5aff",
    "0de3cbb16faef714",
    "6b5517876fcd9216",
)
_FORWARD = (
    "3c769325a76db334",
    "286da47b5ba872bd",
    "f00a0a5850c75189",
    "274639548adf7ff5",
    "bc688548f7198b41",
    "ddf3cd17ceab4d21",
)
# Some 16 units in the last place of float32, times the ratio of squared norms and bandwidths (2 by default), times the
# sum of the other bandwidths' shares (2), and room for larger ratios, up to which the guards accept rows.
_TOLERANCE = 1e-5
_CHANGES = (
    "rounding of float32: kernel values by some 1e-6 of their number, in absolute terms, and the loss by less. Rows"
    " whose squared norms are far above the narrowest bandwidth, where it would be more, are left to the original"
)
_IDENTICAL = (
    "dtype, shape, device, what is differentiated (the bandwidth is not); no random numbers are drawn"
)


def _kernel_target(name: str, qualname: str, copies: str) -> Target:
    is_method = "." in qualname
    return Target(
        name=name,
        qualname=qualname,
        hashes=_KERNEL_METHOD if is_method else _KERNEL,
        replacement="mmd:guassian_kernel_method" if is_method else "mmd:guassian_kernel",
        guard="mmd:unfit_method" if is_method else "mmd:unfit",
        equivalence="exact",
        tolerance=_TOLERANCE,
        summary=f"{copies}: the sum of Gaussian kernels of all rows of two samples, about their mean distance,"
        " without the array of all differences",
        changes=_CHANGES,
        identical=f"{_IDENTICAL}; symmetry, and the diagonal",
    )


def _loss_target(
    name: str,
    qualname: str,
    hashes: tuple[str, ...],
    replacement: str,
    copies: str,
    *,
    guard: str,
    requires: Mapping[str, tuple[str, ...]],
    hints: tuple[str, ...] = (),
) -> Target:
    return Target(
        name=name,
        qualname=qualname,
        hashes=hashes,
        replacement=replacement,
        guard=guard,
        compare="mmd:absolute_difference",
        measure="in absolute terms",
        equivalence="exact",
        tolerance=_TOLERANCE,
        summary=f"{copies}: the maximum mean discrepancy of two samples by the snippet's sum of Gaussian kernels",
        changes=_CHANGES,
        identical=_IDENTICAL,
        requires=requires,
        hints=hints,
    )


def _function_target(
    name: str, copies: str, *hashes: str, replacement: str = "mmd:mmd", guard: str = "mmd:unfit_loss"
) -> Target:
    return _loss_target(
        f"mmd.{name}",
        name,
        hashes,
        replacement,
        copies,
        guard=guard,
        requires={"guassian_kernel": _KERNEL},
        hints=("guassian_kernel",),
    )


def _method_target(name: str) -> Target:
    return _loss_target(
        f"mmd.{name}",
        f"{name}.forward",
        _FORWARD,
        "mmd:mmd_method",
        f"Copies with a class `{name}`, its method `forward`",
        guard="mmd:unfit_loss_method",
        requires={f"{name}.guassian_kernel": _KERNEL_METHOD},
    )


TARGETS: tuple[Target, ...] = (
    _kernel_target(
        "mmd.guassian_kernel",
        "guassian_kernel",
        "The snippet, a class `MMD_loss` with a method spelled `guassian_kernel` that many repositories for domain"
        " adaptation have copied, where that kernel is a function of the module",
    ),
    _kernel_target(
        "mmd.MMD_loss_kernel",
        "MMD_loss.guassian_kernel",
        "Copies with a class `MMD_loss`, its method `guassian_kernel`",
    ),
    _kernel_target(
        "mmd.MMDLoss_kernel",
        "MMDLoss.guassian_kernel",
        "Copies that call the class `MMDLoss` (DeepDA of transferlearning), its method `guassian_kernel`",
    ),
    _kernel_target(
        "mmd.LMMD_loss_kernel",
        "LMMD_loss.guassian_kernel",
        "Copies with a class `LMMD_loss` for each class of labels (DSAN), its method `guassian_kernel`",
    ),
    _method_target("MMD_loss"),
    _method_target("MMDLoss"),
    _function_target(
        "mmd_rbf_noaccelerate",
        "Copies with functions (DAN), the loss of all pairs",
        "f57b5114c8db2a4f",
        "5a7bbf79bb9a0583",
    ),
    _function_target(
        "mmd_rbf", "Copies with functions, the loss called `mmd_rbf`", "18c05fa2cbb1824e", "0435582c72a9315c"
    ),
    _function_target(
        "mmd", "Copies with functions, the loss called `mmd`", "5ea99a32954da6ef", "ce3e6e76d5b0ecb1"
    ),
    _function_target(
        "mmd_rbf_accelerate",
        "Copies with functions (DAN), the loss of neighbouring rows in linear time",
        "3aea10390aa95a4b",
        replacement="mmd:mmd_linear_time",
        guard="mmd:unfit_linear_time",
    ),
)
