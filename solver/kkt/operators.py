r"""Gradients of the losses of rows, as a matrix and as the two products with it that need no matrix.

With :math:`G` of shape (n, P), row i the gradient :math:`\nabla_\theta L_i` over all parameters:

- :math:`G^\top \lambda` is one backward pass of :math:`\sum_i \lambda_i L_i`,
- :math:`G r`, for all i, is one forward-mode derivative of the losses in the direction r,
- G itself, n P numbers, comes from ``vmap(grad)``, which small problems and tests want.

Vectors of length P hold the parameters one after the other, in the order of `TrainedModel.parameters`. Rows are
taken in chunks; sums over chunks are float64.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from .._check import check_count
from .trained import TrainedModel

# Rows of a forward and backward pass: enough for a GPU, and the activations of a ConvNet stay below a gigabyte.
CHUNK = 512
_MATRIX_BYTES = 2**28


def flatten(values: Mapping[str, Tensor]) -> Tensor:
    """One vector (P,) of tensors by name."""
    return torch.cat([value.reshape(-1) for value in values.values()])


def unflatten(model: TrainedModel, vector: Tensor) -> dict[str, Tensor]:
    """Undo `flatten` for the parameters of a model, in its dtype."""
    sizes = [value.numel() for value in model.parameters.values()]
    parts = vector.to(model.dtype).split(sizes)
    return {
        name: part.view_as(value) for (name, value), part in zip(model.parameters.items(), parts, strict=True)
    }


def weighted_gradient(
    model: TrainedModel, X: Tensor, Y: Tensor, weights: Tensor, *, chunk: int = CHUNK
) -> Tensor:
    r""":math:`G^\top \lambda`, float64 (P,).

    Parameters
    ----------
    model : TrainedModel
    X : Tensor, shape (n, ...)
    Y : Tensor, shape (n,) or (n, k)
        As the losses take them.
    weights : Tensor, shape (n,)
    chunk : int, default 512
        Rows of a pass.

    Notes
    -----
    A forward and a backward pass of all rows; memory for the activations of a chunk.
    """

    def total(parameters: Mapping[str, Tensor], *rows: Tensor) -> Tensor:
        x, y, w = rows
        return (w * model.losses_of(parameters, x, y)).sum()

    result = torch.zeros(model.size, dtype=torch.float64, device=model.device)
    weights = weights.to(model.device, model.dtype)
    with torch.no_grad():
        for rows in _chunks(X, Y, chunk):
            x, y = X[rows].to(model.device, model.dtype), Y[rows].to(model.device)
            result += flatten(torch.func.grad(total)(model.parameters, x, y, weights[rows])).double()
    return result


def directional_derivatives(
    model: TrainedModel, X: Tensor, Y: Tensor, direction: Tensor, *, chunk: int = CHUNK
) -> Tensor:
    """:math:`G r`: the derivative of each row's loss along `direction` (P,); float64 (n,).

    Parameters
    ----------
    model, X, Y, chunk
        As for `weighted_gradient`.
    direction : Tensor, shape (P,)

    Notes
    -----
    One forward pass that carries a tangent, about three forward passes of work; nothing is kept for a backward pass.
    """
    tangent = unflatten(model, direction.to(model.device))
    parts = []
    with torch.no_grad():
        for rows in _chunks(X, Y, chunk):
            x, y = X[rows].to(model.device, model.dtype), Y[rows].to(model.device)

            def losses(parameters: Mapping[str, Tensor], x: Tensor = x, y: Tensor = y) -> Tensor:
                return model.losses_of(parameters, x, y)

            parts.append(torch.func.jvp(losses, (model.parameters,), (tangent,))[1].double())
    return torch.cat(parts)


def per_sample_gradients(model: TrainedModel, X: Tensor, Y: Tensor, *, chunk: int | None = None) -> Tensor:
    """G itself: the gradient of each row's loss over all parameters, (n, P) in the model's dtype.

    Parameters
    ----------
    model, X, Y
        As for `weighted_gradient`.
    chunk : int, optional
        Rows of a pass; default as many as make 256 MiB of gradients.

    Notes
    -----
    The result alone has n P numbers: see `gradient_norms` and the products above for large n.
    """
    return torch.cat([part.clone() for part in _gradients(model, X, Y, chunk)])


def gradient_norms(model: TrainedModel, X: Tensor, Y: Tensor, *, chunk: int | None = None) -> Tensor:
    """Norm of each row of G, float64 (n,), in the memory of a chunk of rows of G."""
    return torch.cat([part.double().norm(dim=1) for part in _gradients(model, X, Y, chunk)])


def _gradients(model: TrainedModel, X: Tensor, Y: Tensor, chunk: int | None) -> Iterator[Tensor]:
    """Rows of G, piece by piece."""

    def loss(parameters: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return model.losses_of(parameters, x[None], y[None])[0]

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    rows_each = chunk or max(1, min(CHUNK, _MATRIX_BYTES // (model.size * model.dtype.itemsize)))
    with torch.no_grad():
        for rows in _chunks(X, Y, rows_each):
            x, y = X[rows].to(model.device, model.dtype), Y[rows].to(model.device)
            found = each(model.parameters, x, y)
            yield torch.cat([value.flatten(1) for value in found.values()], dim=1)


def _chunks(X: Tensor, Y: Tensor, chunk: int) -> list[slice]:
    """Slices of rows."""
    check_count(chunk, "chunk")
    if len(X) != len(Y) or len(X) == 0:
        raise ValueError(f"`X` and `Y` must hold the same rows, one or more, got {len(X)} and {len(Y)}")
    return [slice(start, start + chunk) for start in range(0, len(X), chunk)]
