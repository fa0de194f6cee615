"""DeepCore (Guo, Zhao & Bai 2022): the two greedy selections that go through all rows once for each pick."""

import math

from .._target import Target

TARGETS: tuple[Target, ...] = (
    Target(
        name="deepcore.k_center_greedy",
        qualname="k_center_greedy",
        hashes=("8fcdc893cf5baf2f",),
        replacement="deepcore:k_center_greedy",
        guard="deepcore:why_not_k_center_greedy",
        equivalence="exact",
        tolerance=0.0,
        summary="farthest-first traversal of float32 rows under DeepCore's own euclidean_dist",
        changes=(
            "Distances are near-exact where the original's cancel: of rows whose distances agree to float32 rounding"
            " another may be picked. Data in which that is likely are left to the original: equal rows, few different"
            " values, and rows far from zero beside their spread. Rows of `already_selected` work with NumPy 2.4, where"
            " the original raises; lines of progress are printed before the picks are made"
        ),
        identical=(
            "picks but for such near ties, their order and dtype, numbers drawn from NumPy's generator, lines printed"
        ),
    ),
    Target(
        name="deepcore.herding",
        qualname="Herding.herding",
        hashes=("55400387618ceb40",),
        replacement="deepcore:herding",
        guard="deepcore:why_not_herding",
        equivalence="corrects",
        tolerance=math.inf,
        summary="rows whose mean follows that of all, under DeepCore's own euclidean_dist",
        changes=(
            "Each pick is the row that brings the mean of the picks nearest to the mean of all (Welling, ICML 2009);"
            " the original takes the farthest one, which chooses outliers"
        ),
        identical="number of picks, their order and dtype, lines printed; no random numbers are drawn",
    ),
)
