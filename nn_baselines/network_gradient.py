r"""Gradients of the cross-entropy of a network in its parameters, which live outside of the network.

.. math:: g(\theta; X, c) = \nabla_\theta \textstyle\sum_i w_i\, \ell(f_\theta(x_i), c_i), \qquad w_i = 1/n.

How far a gradient is from that of real rows, by the layers l and their outputs o (`match_loss` of DC):

.. math:: \sum_l \sum_o 1 - \frac{\langle \hat g_{lo}, g_{lo}\rangle}{\|\hat g_{lo}\|\,\|g_{lo}\| + 10^{-6}} .

Networks that treat rows independently (all without batch statistics) take them in pieces on a CPU, see `pieces`.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from ..solver.networks import Network
from .pieces import gradient_in_pieces

_LEAST_NORM = 1e-6


def loss_gradient(
    network: Network,
    parameters: Mapping[str, Tensor],
    X: Tensor,
    classes: Tensor,
    weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses of rows, and the gradient of their weighted sum in the parameters.

    Parameters
    ----------
    network : Network
        Gives the form; in training mode, batch statistics are those of X, and its running ones move.
    parameters : mapping of str to Tensor
        By the names of ``network.named_parameters()``.
    X : Tensor, shape (n, *input_shape)
    classes : Tensor, shape (n,), int64
    weights : Tensor, shape (n,), optional
        Default 1/n: the mean.

    Returns
    -------
    losses : Tensor, shape (n,)
        Cross-entropies.
    gradient : dict of str to Tensor
        As `parameters`. Neither keeps a graph.
    """
    leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    weights = X.new_full((len(X),), 1 / len(X)) if weights is None else weights.to(X)
    losses: list[Tensor] = []

    def loss_of(rows: slice) -> Tensor:
        values = class_losses(network, leaves, X[rows], classes[rows])
        losses.append(values.detach())
        return weights[rows] @ values

    total = gradient_in_pieces(network, X, list(leaves.values()), loss_of)
    return torch.cat(losses), dict(zip(leaves, total, strict=True))


def point_gradient(
    network: Network, parameters: Mapping[str, Tensor], X: Tensor, classes: Tensor
) -> dict[str, Tensor]:
    """Gradient of the mean cross-entropy in the parameters, differentiable in X (n, *input_shape)."""
    leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    with torch.enable_grad():
        loss = class_losses(network, leaves, X, classes).mean()
        parts = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
    return dict(zip(leaves, parts, strict=True))


def gradient_distance(learned: Iterable[Tensor], real: Iterable[Tensor]) -> Tensor:
    """Sum over layers and outputs of one minus the cosine of two gradients (formula above).

    Parameters
    ----------
    learned, real : iterable of Tensor
        Gradients of the same parameters in the same order, (outputs, ...); vectors are left out.

    Returns
    -------
    Tensor, shape ()
    """
    total: Tensor | None = None
    for a, b in zip(learned, real, strict=True):
        if a.ndim < 2:
            continue
        a, b = a.flatten(1), b.flatten(1)
        norms = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
        distance = (1 - (a * b).sum(1) / (norms + _LEAST_NORM)).sum()
        total = distance if total is None else total + distance
    if total is None:
        raise ValueError("these parameters are vectors only, which have no outputs to compare: give weights")
    return total


def class_losses(network: Network, parameters: Mapping[str, Tensor], X: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy of each row, (n,), differentiable in parameters and X."""
    scores = torch.func.functional_call(network, dict(parameters), (X,))
    return functional.cross_entropy(scores, classes, reduction="none")


def flat_parameters(network: Network) -> Tensor:
    """Copy of all parameters as one vector (P,), in the order of ``network.named_parameters()``."""
    return torch.cat([value.detach().flatten() for value in network.parameters()])


def named_parameters(network: Network, flat: Tensor) -> dict[str, Tensor]:
    """Views of a vector (P,) as parameters by name: the inverse of `flat_parameters`."""
    shapes = {name: value.shape for name, value in network.named_parameters()}
    parts = flat.split([shape.numel() for shape in shapes.values()])
    return {name: part.view(shapes[name]) for name, part in zip(shapes, parts, strict=True)}
