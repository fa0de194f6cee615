"""A loss that is a sum over classes, and its gradient in images, in bounded memory: some classes after the other.

Each class's term depends on the images of the class alone, so that the gradient, too, falls into parts, of which each
needs the activations of its own images only. Nothing is computed twice.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import saved_tensors_hooks


class Piece(NamedTuple):
    """Images that are differentiated through together: all of some classes.

    Attributes
    ----------
    at : Tensor, shape (n,), int64
        Their numbers, on their device.
    classes : Tensor, shape (n,), int64
        On their device.
    host_classes : Tensor, shape (n,), int64
        On the CPU.
    """

    at: Tensor
    classes: Tensor
    host_classes: Tensor


def class_pieces(classes: Tensor, most: int | None) -> list[Piece]:
    """Pieces in the order of the classes, each of as many classes as have no more than `most` images together.

    Parameters
    ----------
    classes : Tensor, shape (m,), int64
        Of the images, on their device, in any order.
    most : int, optional
        A class that alone has more is a piece by itself. None: all are one piece.
    """
    host = classes.cpu()
    order = host.argsort(stable=True)
    parts: list[Tensor] = []
    for of_class in order.split([count for count in host.bincount().tolist() if count]):
        if parts and (most is None or len(parts[-1]) + len(of_class) <= most):
            parts[-1] = torch.cat([parts[-1], of_class])
        else:
            parts.append(of_class)
    return [Piece(part.to(classes.device), host[part].to(classes.device), host[part]) for part in parts]


def sum_over_pieces(loss: Callable[[Tensor, Piece], Tensor], x: Tensor, pieces: Sequence[Piece]) -> Tensor:
    """Sum of the losses of all pieces.

    Parameters
    ----------
    loss : callable
        Loss () of images (n, ...) that are those of a piece.
    x : Tensor, shape (m, ...)
        All images.
    pieces : sequence of Piece

    Returns
    -------
    Tensor, shape ()
        Differentiable in `x`, once. The gradient is computed here, so the backward pass costs nothing and no graph is
        kept.
    """
    value, gradient = x.new_zeros(()), torch.zeros_like(x)
    for piece in pieces:
        part = x.detach()[piece.at].requires_grad_()
        with torch.enable_grad():
            of_piece = loss(part, piece)
            (gradient[piece.at],) = torch.autograd.grad(of_piece, part)
        value = value + of_piece.detach()
    return with_gradient(x, value, gradient)


def with_gradient(x: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
    """A value () whose gradient in `x` is known: differentiable once.

    A derivative of the gradient in `x` is asked for in vain: RuntimeError, not a part that is missing from a sum.
    """
    return _Known.apply(x, value, gradient)  # type: ignore[return-value]


def kept_bytes(features: Callable[[Tensor], Tensor], image: Tensor) -> int:
    """Bytes that autograd keeps of each image until features are differentiated.

    Parameters
    ----------
    features : callable
        Of images (n, c, h, w), any n.
    image : Tensor, shape (c, h, w)

    Notes
    -----
    The difference between two images and one, of what is kept: weights do not count.
    """
    one, two = (_kept(features, image.detach()[None].repeat(count, 1, 1, 1)) for count in (1, 2))
    return max(1, two - one)


def _kept(features: Callable[[Tensor], Tensor], X: Tensor) -> int:
    found: dict[int, int] = {}

    def note(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.enable_grad(), saved_tensors_hooks(note, lambda value: value):
        result = features(X.requires_grad_())
    del result  # until here all that was noted lived, and no address stood for two
    return sum(found.values())


class _Known(Function):
    """A value whose gradient is known."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.x = x  # an input, of which no number is read: it may change
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            gradient = _Last.apply(ctx.x, gradient)
        return grads[0] * gradient, None, None


class _Last(Function):
    """A gradient whose derivative is not known."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gradient: Tensor) -> Tensor:
        del ctx, x
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:  # type: ignore[override]
        raise RuntimeError("the loss is differentiable once: its derivatives of second order are not known")
