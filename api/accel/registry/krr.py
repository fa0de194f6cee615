"""Provable-KRR (Chen, Huang & Weng 2024): closed-form distillation."""

from .._target import Target

FCNN = ("d5755016404bfbec",)
_NNGP, _PIXELS = "05ad303742f1a2ab", "3547d4feea13b694"
# distill_kip.py also clamps the cosines between -1 and 1, where they are.
_FOURIER = ("b06c0b027f8504b7", "c5b3ebf47b7ba699")
# What the scripts test weights on, by its source.
FEATURES = {
    _NNGP: "cal_nngp_feature",
    _PIXELS: "cal_x_feature",
    **dict.fromkeys(_FOURIER, "cal_random_fourier"),
}

TARGETS: tuple[Target, ...] = (
    Target(
        name="krr.compute_KRR",
        qualname="compute_KRR",
        hashes=("ac609b5eb6b73441",),
        replacement="krr:compute_KRR",
        guard="krr:why_not_compute_KRR",
        equivalence="statistical",
        # Condition number times machine epsilon up to which calls are verified, 2^-9, times 4 for the constant of QR.
        tolerance=2.0**-7,
        summary="ridge regression in the primal for one ridge after another: products of the features are kept",
        changes="rounding: for ridges at which the original solves in full, its float32 error falls away",
        distribution=(
            "weights of smaller ridges: lstsq drops directions by what its memory held before (torch 2.13, pytorch"
            " issue 187411), for both with the same chances, and the script may find its best ridge by luck"
        ),
        identical="which ridges drop directions, shapes and dtypes; no random numbers are drawn",
    ),
    Target(
        name="krr.test_kernel_machine",
        qualname="test_kernel_machine",
        hashes=("577c522d4e1ea1a2",),
        requires={
            "FCNN": FCNN,
            "cal_nngp_feature": (_NNGP,),
            "cal_x_feature": (_PIXELS,),
            "cal_random_fourier": _FOURIER,
        },
        replacement="krr_accuracy:test_kernel_machine",
        guard="krr_accuracy:why_not_test_kernel_machine",
        equivalence="exact",
        tolerance=0.0,
        summary="accuracy of weights on a loader that goes through torchvision data in order: its features are kept",
        changes="nothing",
        identical="every bit, and the number that each pass draws from torch's generator",
    ),
    Target(
        name="krr.cal_random_fourier",
        qualname="cal_random_fourier",
        hashes=_FOURIER,
        replacement="krr:cal_random_fourier",
        guard="krr:why_not_cal_random_fourier",
        equivalence="exact",
        tolerance=0.0,
        summary="random Fourier features in the memory of one array instead of three",
        changes="nothing",
        identical="every bit; no random numbers are drawn",
    ),
    Target(
        name="krr.cal_nngp_feature",
        qualname="cal_nngp_feature",
        hashes=(_NNGP,),
        requires={"FCNN": FCNN},
        replacement="krr:cal_nngp_feature",
        guard="krr:why_not_cal_nngp_feature",
        equivalence="exact",
        tolerance=0.0,
        summary="features of the fully connected network, without the outputs that nobody reads",
        changes="nothing",
        identical="every bit; no random numbers are drawn",
    ),
    Target(
        name="krr.FCNN_inverse",
        qualname="FCNN.inverse",
        hashes=("8c9bf803ff5ccfcf",),
        hints=("make_layers", "_initialize_weights"),
        replacement="krr_inverse:inverse",
        guard="krr_inverse:why_not_inverse",
        equivalence="exact",
        # Largest amplification that the guard lets through, 2^-10, times 4 for the constant of QR.
        tolerance=2.0**-8,
        summary="inputs of the network with given features: weights are factored once, in float64",
        changes="rounding: the original's float32 error, which the condition number amplifies, falls away",
        identical="shapes and dtypes; no random numbers are drawn",
    ),
)
