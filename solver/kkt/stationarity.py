r"""The Deep-KKT conditions of points and duals, differentiable in both.

For points X with classes y, duals λ and a frozen model θ* (Lee et al., "Deep Support Vectors", NeurIPS 2024,
section 4; no code was published):

.. math:: r &= s \circ \theta^* + \sum_i \lambda_i \nabla_\theta L(\Phi(x_i; \theta^*), y_i), \\
          L_{stat} &= D(r) = \tfrac1P \sum_j |r_j| \quad\text{or}\quad \tfrac1P \sum_j r_j^2, \\
          L_{primal} &= \tfrac1m \sum_{i:\ \arg\max \Phi(x_i) \ne y_i} L(\Phi(x_i; \theta^*), y_i) .

The text takes the mean absolute value ("l1", against outliers), the printed algorithm the squares. Complementary
slackness is not asked for. A step costs one forward pass, the backward pass that makes r, and one more through both.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from .trained import TrainedModel

Distance = Literal["l1", "l2"]


def stationarity_residual(
    model: TrainedModel, X: Tensor, Y: Tensor, duals: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    r"""r, and the scores that it was made from.

    Parameters
    ----------
    model : TrainedModel
    X : Tensor, shape (m, ...)
        Points, in the model's dtype.
    Y : Tensor, shape (m,) or (m, k)
        As the losses take them.
    duals : Tensor, shape (m,)

    Returns
    -------
    residual : dict of str to Tensor
        By the names of the parameters.
    scores : Tensor, shape (m, k)
        Both are differentiable in `X` and `duals`; the parameters of the model are constants, so that a backward pass
        through r spends nothing on them.
    """

    def total(parameters: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        scores = model.function(parameters, X)
        return (duals * model.losses(scores, Y)).sum(), scores

    gradient, scores = torch.func.grad(total, has_aux=True)(model.parameters)
    return {name: value + gradient[name] for name, value in model.target().items()}, scores


def distance(residual: Mapping[str, Tensor], kind: Distance = "l1") -> Tensor:
    """D: mean over all parameters of the absolute ("l1") or squared ("l2") residual."""
    if kind not in ("l1", "l2"):
        raise ValueError(f"`kind` must be 'l1' or 'l2', got {kind!r}")
    sums = [value.abs().sum() if kind == "l1" else value.square().sum() for value in residual.values()]
    return torch.stack(sums).sum() / sum(value.numel() for value in residual.values())


def relative_residual(model: TrainedModel, residual: Mapping[str, Tensor]) -> Tensor:
    """``|r| / |s θ*|``: 0 where the points explain the model, 1 where they say nothing of it."""
    squares = [
        torch.stack([value.double().square().sum() for value in values.values()]).sum()
        for values in (residual, model.target())
    ]
    return (squares[0] / squares[1]).sqrt()


def primal_loss(losses: Tensor, scores: Tensor, classes: Tensor) -> Tensor:
    """Mean over all points of the losses of those that are misclassified; 0, with gradient 0, where none is.

    Parameters
    ----------
    losses : Tensor, shape (m,)
    scores : Tensor, shape (m, k)
    classes : Tensor, shape (m,), int64
    """
    wrong = scores.argmax(dim=1) != classes
    return torch.where(wrong, losses, torch.zeros_like(losses)).mean()
