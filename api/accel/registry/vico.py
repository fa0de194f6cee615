"""VICO-UoE/DatasetCondensation (DC, DSA, DM): the evaluation of a set, the loop around it, and the step of DM."""

from .._target import Region, Target
from ._vico_parts import PARTS

# `get_images` and what else `main` defines is called, not known; the evaluation is checked at every passage.
_SCRIPT = (
    "evaluate_synset",
    "get_network",
    "get_eval_pool",
    "get_loops",
    "match_loss",
    "DiffAugment",
    "ParamDiffAug",
)

EVALUATE_SYNSET = Target(
    name="vico.evaluate_synset",
    qualname="evaluate_synset",
    hashes=("80ec0d1aeec36ddf",),
    requires={
        "epoch": ("01bdb3ed9a7e3ba9",),
        "TensorDataset": ("564868c3256142eb",),
        "DiffAugment": ("09c5112ec1ce4293",),
        "set_seed_DiffAug": ("9fdda5f68d8f77c8",),
        "rand_scale": ("f3a6c09f4ced8b20",),
        "rand_rotate": ("b410b84c7154ef50",),
        "rand_flip": ("66e8af2010af3cfd",),
        "rand_brightness": ("bc900c2046acffc0",),
        "rand_saturation": ("717907b5afada756",),
        "rand_contrast": ("86d404cb540804f5",),
        "rand_crop": ("ea5e89a757653ade",),
        "rand_cutout": ("abc44d8ad232ec49",),
        "augment": ("4e0ca1adb805ab90",),
    },
    replacement="synset_evaluation:evaluate_synset",
    guard="synset_evaluation:evaluate_synset_guard",
    compare="synset_evaluation:accuracy_gap",
    mutates=("net",),
    equivalence="statistical",
    # Of two trainings of one network: standard deviations seen are 0.03 of the accuracy (CIFAR-10, one image a class),
    # and this is four of the difference of two with 0.05.
    tolerance=0.3,
    measure="of the original's test accuracy",
    summary="train one network on a small set and test it (DC, DSA, DM and their copies)",
    changes="orders of rows and augmentation are of other random numbers; no gradients are left in the network",
    identical="initial weights, schedule (E + 1 epochs, momentum lost at the drop), test rows, the line printed",
    distribution="orders of rows, augmentation, and so trained weights and accuracies",
)

EVALUATION_LOOP = Region(
    name="vico.evaluation_loop",
    qualname="main",
    hashes=("236aa20ca2e90b1a",),
    length=2,
    hints=_SCRIPT,
    inputs=(
        "args",
        "model_eval",
        "channel",
        "num_classes",
        "im_size",
        "image_syn",
        "label_syn",
        "testloader",
        "get_network",
        "evaluate_synset",
    ),
    outputs=("accs",),
    replacement="synset_evaluation:evaluation_loop",
    guard="synset_evaluation:evaluation_loop_guard",
    compare="synset_evaluation:accuracy_gap",
    equivalence="statistical",
    # As there: means of two or more networks vary less than one.
    tolerance=0.3,
    measure="of the mean of the original's test accuracies",
    summary="train and test num_eval networks on a small set (main.py, main_DM.py)",
    changes="networks are trained together, each by random numbers of its own; their lines are printed at the end",
    identical="as vico.evaluate_synset; networks are the script's own, seeded by the clock",
    distribution="as vico.evaluate_synset",
)

DM_STEP = Region(
    name="vico.dm_step",
    qualname="main",
    hashes=("3ea57faa760fb593",),
    hints=_SCRIPT,
    inputs=("args", "num_classes", "channel", "im_size", "image_syn", "embed", "get_images", "DiffAugment"),
    outputs=("loss",),
    replacement="dm_step:dm_loss",
    guard="dm_step:dm_loss_guard",
    equivalence="statistical",
    # Two draws of the augmentation, whose seeds are readings of the clock: standard deviations seen are 0.01 to 0.09 of
    # the loss (CIFAR-10, ten classes), and this is four of the difference of two with the largest. A loss of zero is
    # off by 1.
    tolerance=0.5,
    summary="the loss of a step of DM over all classes (main_DM.py)",
    changes="augmentations have other seeds of the clock, never the same one for two classes; rounding;"
    " on a CPU the loss has derivatives of first order only, and asking for those of second order is an error",
    identical="the rows drawn from NumPy's generator; the network",
    distribution="the augmentation of each class, whose seed is of the clock in both",
)

TARGETS: tuple[Target, ...] = (EVALUATE_SYNSET, EVALUATION_LOOP, DM_STEP, *PARTS)
