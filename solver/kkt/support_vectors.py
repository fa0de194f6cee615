"""Deep support vectors among real rows: those that a trained network leans on most.

Duals of all rows are fitted under stationarity (`duals`), and the rows with the largest ones are kept, class by class
(Lee et al., "Deep Support Vectors", NeurIPS 2024, section 5 and table 1, which says no more than that).
"""

import dataclasses
from typing import Literal

import torch
from torch import Tensor

from .._check import check_count
from .duals import FittedDuals, fit_duals
from .operators import CHUNK
from .trained import TrainedModel

Ranking = Literal["dual", "contribution"]


@dataclasses.dataclass(frozen=True, eq=False)
class SupportVectors:
    """Rows that were selected.

    Attributes
    ----------
    indices : Tensor, shape (m,), int64
        Numbers of the rows, class by class, in each the largest first; on the CPU.
    fitted : FittedDuals
        Duals of all rows that were looked at.
    """

    indices: Tensor
    fitted: FittedDuals


def deep_support_vectors(
    model: TrainedModel,
    X: Tensor,
    classes: Tensor,
    per_class: int,
    *,
    by: Ranking = "dual",
    tolerance: float = 1e-4,
    max_iterations: int = 200,
    chunk: int = CHUNK,
) -> SupportVectors:
    r"""Select rows by their duals.

    Parameters
    ----------
    model : TrainedModel
        Its losses take classes.
    X : Tensor, shape (n, ...)
        Transformed rows.
    classes : Tensor, shape (n,), int64
    per_class : int
        Rows of each class to select, as many as the class has at most.
    by : {"dual", "contribution"}, default "dual"
        By λ, as published, or by :math:`\lambda_i \|\nabla L_i\|`, which does not grow without bounds for rows that
        the network is sure of.
    tolerance, max_iterations : float and int, default 1e-4 and 200
        Of `fit_duals`; the order of the largest duals settles long before their digits.
    chunk : int, default 512

    Returns
    -------
    SupportVectors
        Of a class with fewer positive duals than `per_class`, the rest are the rows of smallest slope: those that
        would lower the residual first, or raise it least.

    Raises
    ------
    ValueError
        If numbers are out of range, or as `fit_duals`.
    """
    check_count(per_class, "per_class")
    if by not in ("dual", "contribution"):
        raise ValueError(f"`by` must be 'dual' or 'contribution', got {by!r}")
    if tuple(classes.shape) != (len(X),) or classes.dtype != torch.int64:
        raise ValueError(
            f"`classes` must be int64 of shape ({len(X)},), got {classes.dtype} {tuple(classes.shape)}"
        )
    fitted = fit_duals(model, X, classes, tolerance=tolerance, max_iterations=max_iterations, chunk=chunk)
    values = (fitted.duals if by == "dual" else fitted.contributions).cpu()
    classes = classes.cpu()
    # By slope, and then stably by value: among equal values, zeros above all, the slope decides.
    order = fitted.slopes.cpu().argsort(stable=True)
    order = order[values[order].argsort(descending=True, stable=True)]
    chosen = [order[classes[order] == each][:per_class] for each in classes.unique()]
    return SupportVectors(torch.cat(chosen), fitted)
