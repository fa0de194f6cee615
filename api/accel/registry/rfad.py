"""RFAD (yolky/distilling-with-random-features): its loop, its evaluation, and what they are made of."""

from .._stand_in import ModuleTarget
from .._target import Region, Target
from ._rfad_parts import PARTS

# ConvNet_wide.forward of models.py, the networks that the loop is run with.
FORWARDS = ("1b8693099b9b1a6b",)

TARGETS: tuple[Target, ...] = (
    Region(
        name="rfad.distill_dataset",
        qualname="distill_dataset",
        hashes=("d3ba0acb080a9efe",),
        length=10,
        replacement="rfad_step:step",
        guard="rfad_step:why_not_step",
        inputs=(
            "n_models",
            "models_list",
            "transformed_data",
            "jit",
            "coreset_size",
            "from_loader",
            "n_batches",
            "X_train",
            "y_train",
            "n_classes",
            "y_coreset",
        ),
        outputs=("y_values", "preds"),
        equivalence="exact",
        # On a GPU both round operands to 11 bits (2^-11 each, by TF32 and by float16), and up to 500 points magnified
        # that twice: 1e-3 when both roundings were simulated. On a CPU 6e-6 (10 points) to 1.5e-4 (500) was found.
        tolerance=5e-3,
        summary="one step of RFAD: features of points and rows under random ConvNets, the solve, and predictions",
        changes=(
            "Rounding: predictions are K α without K, in float32 and with the published jitter no further from"
            " float64 than the original's. On a GPU rows pass in float16 where cuDNN may use TF32 (torch's default),"
            " which rounds to as many bits; gradients of the random networks' weights, which the original fills and"
            " drops, stay empty"
        ),
        identical="rows drawn and the state of NumPy's generator, networks, targets, the linear solver",
    ),
    ModuleTarget(
        name="rfad.neural_tangents",
        qualname="neural_tangents",
        module="neural_tangents",
        replacement="conv_kernel:make_modules",
        equivalence="exact",
        tolerance=1e-6,
        summary="kernels of infinitely wide ConvNets for scripts whose neural_tangents cannot be imported",
        changes=(
            "Nothing where the genuine module imports. Otherwise stax.serial of Conv, Relu, AvgPool, Flatten and Dense"
            " has a kernel function, in NumPy, computed in float64 and returned in the dtype of the images; without"
            " `get` it returns these two kernels and nothing else; other layers raise ValueError, and batch"
            " accepts any number of rows"
        ),
        identical="names, arguments and fields of results that `get` names; no random numbers are drawn",
    ),
    *PARTS,
)
