r"""Fully connected networks with random weights: LeakyReLU ones, and deep linear ones.

Layer by layer :math:`h_{l+1} = \sigma(h_l W_l^\top)` with :math:`W_l` Gaussian of variance 1/fan-in, no bias,
and :math:`\sigma(t) = \max(t, s t)`; the features are the activations of the last hidden layer (Chen, Huang
and Weng, NeurIPS 2024, section 6; their code: models/model.py, slope 0.1, one hidden layer of width d).

:math:`\sigma` is a bijection and a wide or square Gaussian matrix has full row rank, so with widths that
never grow the network is surjective, and is inverted exactly: :math:`h_l = \sigma^{-1}(h_{l+1})\,
(W_l^\top)^{+}`. With a reference point given, the free part of each wide layer is taken from the reference's
own activations, which gives the nearest solution of each layer's system.

A deep linear network (:math:`\sigma` the identity) maps onto a subspace when a layer is narrower than the
last. Row vectors of a ridge solution on its features lie in that subspace, so what the closed form asks for
has a preimage all the same: least squares finds it (algorithms of Theorem 5.3, without its restriction).
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...kernels import normal
from .._check import check_count
from .base import FeatureMap
from .linear_system import LinearSystem


class Dense(FeatureMap):
    """Fully connected LeakyReLU network.

    Parameters
    ----------
    input_shape : tuple of int
        Shape of one input; flattened to d values.
    widths : sequence of int, optional
        Width of each hidden layer; the last is p. Default ``(d,)``: the published setting, and the widest
        that keeps an exact inverse.
    slope : float, default 0.1
        Negative slope of the LeakyReLU, positive.
    seed : int, default 0
        Defines the weights.

    Raises
    ------
    ValueError
        If a width is below 1 or the slope is not positive and finite.
    """

    name: ClassVar[str] = "fcnn"
    homogeneous: ClassVar[bool] = True

    def __init__(
        self,
        input_shape: tuple[int, ...],
        widths: Sequence[int] | int | None = None,
        *,
        slope: float = 0.1,
        seed: int = 0,
    ) -> None:
        d = 1
        for size in input_shape:
            d *= size
        widths = (widths,) if isinstance(widths, int) else (d,) if widths is None else tuple(widths)
        if not widths:
            raise ValueError("`widths` is empty: give the width of at least one hidden layer")
        if not 0 < float(slope) < math.inf:
            raise ValueError(f"`slope` must be finite and above zero (others have no inverse), got {slope!r}")
        self.widths = tuple(check_count(width, "widths") for width in widths)
        super().__init__(input_shape, n_features=self.widths[-1])
        self.slope, self.seed = float(slope), seed
        sizes = (d, *self.widths)
        self._weights = [
            (normal(seed, f"{self.name}.{layer}", (out, fan_in)) * fan_in**-0.5).float().double()
            for layer, (fan_in, out) in enumerate(itertools.pairwise(sizes))
        ]
        self._systems = [LinearSystem(weight) for weight in self._weights]
        self._cast: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}

    @property
    def surjective(self) -> bool:
        """Whether no layer is wider than the one before it."""
        sizes = (self.n_inputs, *self.widths)
        return all(a >= b for a, b in itertools.pairwise(sizes))

    def parameters(self) -> dict[str, Any]:
        """Shape, widths, slope and seed."""
        return {**super().parameters(), "widths": list(self.widths), "slope": self.slope, "seed": self.seed}

    def _features(self, X: Tensor) -> Tensor:
        key = (X.dtype, X.device)
        if key not in self._cast:
            self._cast[key] = [weight.to(device=X.device, dtype=X.dtype) for weight in self._weights]
        H = X.flatten(1)
        for weight in self._cast[key]:
            H = torch.nn.functional.linear(H, weight)
            in_place = not H.requires_grad and self.slope != 1
            H = torch.nn.functional.leaky_relu_(H, self.slope) if in_place else self._activate(H, self.slope)
        return H

    def _preimage(self, F: Tensor, near: Tensor | None) -> Tensor:
        references = [None if near is None else near.flatten(1)]
        for weight in self._weights[:-1]:
            H = references[-1]
            references.append(None if H is None else self._activate(H @ weight.T, self.slope))
        H = F
        for system, reference in zip(reversed(self._systems), reversed(references), strict=True):
            H = system.solve(self._activate(H, 1 / self.slope), reference)
        return H

    @staticmethod
    def _activate(H: Tensor, slope: float) -> Tensor:
        return H if slope == 1 else torch.nn.functional.leaky_relu(H, slope)


class DeepLinear(Dense):
    """Deep linear network: `Dense` without its nonlinearity.

    Parameters
    ----------
    input_shape : tuple of int
        Shape of one input; flattened to d values.
    widths : sequence of int, optional
        Width of each layer; default ``(d, d)``.
    seed : int, default 0
        Defines the weights.

    Notes
    -----
    Has preimages for what a closed form asks of it whatever the widths, because that lies in its range.
    """

    name: ClassVar[str] = "deep-linear"

    def __init__(
        self, input_shape: tuple[int, ...], widths: Sequence[int] | int | None = None, *, seed: int = 0
    ) -> None:
        if widths is None:
            d = 1
            for size in input_shape:
                d *= size
            widths = (d, d)
        super().__init__(input_shape, widths, slope=1.0, seed=seed)

    @property
    def has_preimage(self) -> bool:
        """Always: a ridge solution lies in the row space of the product of the layers."""
        return True

    def parameters(self) -> dict[str, Any]:
        """Shape, widths and seed."""
        return {key: value for key, value in super().parameters().items() if key != "slope"}

    def _preimage(self, F: Tensor, near: Tensor | None) -> Tensor:
        # One system for the product: a bottleneck followed by a wide layer is not solvable layer by layer.
        product = self._weights[0]
        for weight in self._weights[1:]:
            product = weight @ product
        if self.surjective:
            return super()._preimage(F, near)
        start = torch.zeros(F.shape[0], product.shape[1], dtype=F.dtype) if near is None else near.flatten(1)
        return start + torch.linalg.lstsq(product, (F - start @ product.T).T, driver="gelsd").solution.T
