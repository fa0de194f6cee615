"""What a distilled set must beat: real rows in its place, and the labels that networks are given.

Rows are chosen class by class, as many as the set has of that class, by their transformed pixels: "random", "k-center",
"herding" and "k-means" are the coresets of that name (`solver.coresets`). Published tables choose by the features of a
trained network where they say "k-center" or "herding" (DC-BENCH), or by other features again, so their rows are not
comparable with these. "label-solve" is the random rows with the labels that are best for the ridge model of a set
(`solver.learners.label_solve`): what soft labels alone are worth.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..solver.coresets import coreset_rows
from ..solver.distilled_set import DistilledSet
from ..solver.kernel_encoder import KernelEncoder
from ..solver.kernel_functions import FeatureKernel
from ..solver.learners.label_solve import solve_labels
from ..solver.learners.rows import TrainingRows
from .training_recipes import TrainingRecipe

# Those that stand beside every set, and those on demand; "full" are networks trained on all training rows.
ALWAYS = ("random", "k-center")
BASELINES = (*ALWAYS, "herding", "k-means", "label-solve", "full")


def real_rows(rows: TrainingRows, counts: Sequence[int], method: str, *, seed: int) -> tuple[Tensor, Tensor]:
    """Real rows in place of a set.

    Parameters
    ----------
    rows : TrainingRows
        With classes; rows held out are not looked at.
    counts : sequence of int
        Rows of each class.
    method : str
        A coreset by name; "label-solve" takes the random rows.
    seed : int

    Returns
    -------
    points : Tensor, shape (m, *input_shape), in the dtype of `rows`
        Transformed, in class order.
    classes : Tensor, shape (m,), int64

    Raises
    ------
    ValueError
        If a class has fewer rows than asked for.
    """
    method = "random" if method == "label-solve" else method
    index = coreset_rows(rows, method, list(counts), seed=seed).indices
    assert rows.classes is not None
    return rows.inputs(index), rows.classes[index]


def solved_labels(ds: DistilledSet, rows: TrainingRows, points: Tensor) -> Tensor:
    """Best labels of given points for the ridge model of a set, over all training rows.

    Parameters
    ----------
    ds : DistilledSet
        Its kernel or feature map and its ridge are used, without intercept; not in feature space.
    rows : TrainingRows
        With the transform and the targets of the set.
    points : Tensor, shape (m, *input_shape)
        Transformed.

    Returns
    -------
    Tensor, shape (m, k), float64
        Target rows as `rows.targets` codes them.

    Notes
    -----
    As `solve_labels`. The ridge of the set is one for its own points: it is carried over as a share of the trace.
    """
    encoder = ds.encoder
    kernel = encoder.kernel if isinstance(encoder, KernelEncoder) else FeatureKernel(encoder.feature_map)
    mean = float(kernel.matrix(ds.transformed()).diagonal().mean())
    return solve_labels(rows, kernel, points, ridge=ds.distilled_ridge / mean).labels


def network_labels(
    recipe: TrainingRecipe, y: Tensor | None, classes: Tensor | None, n_classes: int
) -> Tensor:
    """Labels in the form that a recipe trains with.

    Parameters
    ----------
    recipe : TrainingRecipe
    y : Tensor, shape (m, k), or None
        Target rows of a set, centred or not; None where there are only classes.
    classes : Tensor, shape (m,), int64, or None
    n_classes : int

    Returns
    -------
    Tensor, shape (m, n_classes), float32
        One-hot for "hard", and where there are no target rows. "scores": the target rows as they are.
        "probabilities": the nearest to the target rows among vectors that are not negative and sum to 1; it does not
        matter whether those were centred.

    Raises
    ------
    ValueError
        If hard labels are asked for and there are no classes.
    """
    if recipe.labels == "hard" or y is None:
        if classes is None:
            raise ValueError(
                "recipes with hard labels need the class of each point, which this set does not have"
            )
        return torch.nn.functional.one_hot(classes.cpu(), n_classes).float()
    y = y.detach().cpu().double()
    return (y if recipe.labels == "scores" else _on_simplex(y)).float()


def _on_simplex(y: Tensor) -> Tensor:
    """Project rows on the probability simplex (Held, Wolfe and Crowder 1974): y - t where positive, t by sorting."""
    falling = y.sort(dim=1, descending=True).values
    excess = falling.cumsum(dim=1) - 1
    number = torch.arange(1, y.shape[1] + 1, dtype=y.dtype)
    kept = (falling * number > excess).sum(dim=1, keepdim=True)
    threshold = excess.gather(1, kept - 1) / kept
    return (y - threshold).clamp_min(0)
