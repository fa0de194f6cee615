r"""Gaussians over transformed inputs, :math:`N(\mu, L L^\top + \operatorname{diag} v)`, each in the place of some rows.

The root L has d rows and as many columns as its Gaussian needs (none, a few principal axes, or up to d), and zeros
above its diagonal: any root can be turned so (`trapezoid`), which changes no covariance, and only what lies on and
below the diagonal is stored. A full covariance then takes d(d + 1)/2 numbers, not d².

Sums of features over infinitely many draws, weighted by the rows that each Gaussian stands for, are known in closed
form for Fourier features and linear models (`fourier_moments`); a set trains its model on them. They add up over
Gaussians, so that sets of different classes merge exactly.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ...kernels import mirror_upper_, normal
from .._check import check_finite
from ..encoder import Encoder
from ..statistics import Statistics
from ..targets import Targets
from .base import Distribution
from .fourier_moments import add_moments_, has_moments


class Gaussians(Distribution):
    """m Gaussians with weights.

    Parameters
    ----------
    means : Tensor, shape (m, *input_shape), float64 or float32
    weights : Tensor, shape (m,)
        Rows that each stands for: positive. Kept in float64.
    roots : sequence of Tensor, m of shape (d, r), of the dtype of `means`
        L; r, from 0 to d, may differ from one to another. Zero above the diagonal.
    variances : Tensor, shape (m, d), of the dtype of `means`, optional
        v, not negative; none by default.

    Raises
    ------
    ValueError
        If shapes or dtypes do not fit, or values are not finite or out of range.
    """

    name: ClassVar[str] = "gaussians"

    def __init__(
        self, means: Tensor, weights: Tensor, roots: Sequence[Tensor], variances: Tensor | None = None
    ) -> None:
        if means.ndim < 2 or means.numel() == 0 or means.dtype not in (torch.float64, torch.float32):
            raise ValueError(
                "`means` must hold at least one point (m, *input_shape) of float64 or float32, got"
                f" {means.dtype} of shape {tuple(means.shape)}"
            )
        m, d = len(means), math.prod(means.shape[1:])
        _check("weights", weights.double(), (m,), torch.float64)
        if not bool((weights > 0).all()):
            raise ValueError(f"`weights` are numbers of rows: above 0, got {float(weights.min()):.3g}")
        if len(roots) != m:
            raise ValueError(f"{m} Gaussians need as many roots, got {len(roots)}")
        for root in roots:
            _check("roots", root, (d, *root.shape[1:2]), means.dtype)
            if root.shape[1] > d or bool(root.triu(1).any()):
                raise ValueError(
                    f"a root of shape {tuple(root.shape)} has entries above its diagonal: turn it by `trapezoid`"
                )
        if variances is not None:
            _check("variances", variances, (m, d), means.dtype)
            if bool((variances < 0).any()):
                raise ValueError(f"`variances` must not be negative, got {float(variances.min()):.3g}")
        check_finite(means, "means")
        self.means, self.weights = means, weights.double()
        self.roots, self.variances = tuple(roots), variances

    def __len__(self) -> int:
        return len(self.means)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.means.shape[1:])

    def points(self) -> Tensor:
        """The means."""
        return self.means.double()

    def draw(self, number: int, *, seed: int) -> Tensor:
        """One input of each: μ + L z + √v z'; d (r + 1) multiplications a Gaussian.

        The numbers of the i-th Gaussian follow from (seed, number, i).
        """
        m, d = len(self), math.prod(self.input_shape)
        drawn = self.means.double().reshape(m, d).clone()
        for row, root in enumerate(self.roots):
            rank = root.shape[1]
            z = normal(seed, f"gaussians.{number}", rank + d, start=2 * d * row)
            drawn[row] += root.double() @ z[:rank]
            if self.variances is not None:
                drawn[row] += self.variances[row].double().sqrt() * z[rank:]
        return drawn.reshape(m, *self.input_shape).float()

    def statistics(self, encoder: Encoder, targets: Targets, y: Tensor) -> Statistics | None:
        """Expected sums over the rows that the Gaussians stand for; None for maps whose moments are not known.

        See `add_moments_` for the cost of each Gaussian.
        """
        feature_map = encoder.feature_map
        if not has_moments(feature_map):
            return None
        sums = Statistics(feature_map.n_features, targets.n_outputs, encoder, targets)
        y, w, gram = y.double(), self.weights, sums.gram
        means = [
            add_moments_(gram, feature_map, *self._moments(row), weight=float(w[row]))
            for row in range(len(self))
        ]
        mirror_upper_(gram)
        WF, WY = w[:, None] * torch.stack(means), w[:, None] * y
        sums.cross += WF.T @ y
        sums.feature_sum += WF.sum(dim=0)
        sums.target_sum += WY.sum(dim=0)
        sums.target_square += (WY * y).sum(dim=0)
        sums.weight = float(w.sum())
        sums.count = round(sums.weight)
        return sums

    def _moments(self, row: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Mean (d,), root and variances of one Gaussian, in float64."""
        variances = None if self.variances is None else self.variances[row].double()
        return self.means[row].double().flatten(), self.roots[row].double(), variances

    def storage(self) -> dict[str, int]:
        sizes = {name: value.nbytes for name, value in self.tensors().items()}
        covariances = sizes.pop("roots") + sizes.pop("variances", 0)
        return {**sizes, "covariances": covariances}

    def parameters(self) -> dict[str, Any]:
        """Number of columns of each root."""
        return {"ranks": [root.shape[1] for root in self.roots]}

    def tensors(self) -> dict[str, Tensor]:
        """Means, weights, variances where there are any, and what lies on and below the diagonals of the roots."""
        stored = {
            "means": self.means,
            "weights": self.weights,
            "roots": torch.cat([_packed(root) for root in self.roots]),
        }
        return stored if self.variances is None else {**stored, "variances": self.variances}

    @classmethod
    def restore(cls, parameters: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        means, packed, ranks = tensors["means"], tensors["roots"], parameters["ranks"]
        d = math.prod(means.shape[1:])
        if any(not 0 <= rank <= d for rank in ranks):
            raise ValueError(f"roots of {d} rows cannot have {ranks} columns: the file is damaged")
        sizes = [rank * d - rank * (rank - 1) // 2 for rank in ranks]
        if packed.shape != (sum(sizes),):
            raise ValueError(
                f"roots of {sum(sizes)} numbers do not fit an array of shape {tuple(packed.shape)}: the file is damaged"
            )
        roots = [_unpacked(values, d, rank) for values, rank in zip(packed.split(sizes), ranks, strict=True)]
        return cls(means, tensors["weights"], roots, tensors.get("variances"))

    @classmethod
    def joined(cls, parts: Sequence["Gaussians"]) -> Self:
        """All Gaussians; where some have variances and others none, these become zeros."""
        if len(shapes := {part.input_shape for part in parts}) != 1:
            raise ValueError(f"Gaussians over inputs of one shape can be joined, got {sorted(shapes)}")
        means = torch.cat([part.means for part in parts])
        variances = None
        if any(part.variances is not None for part in parts):
            flat = [part.means.flatten(1) for part in parts]
            variances = torch.cat(
                [
                    torch.zeros_like(like) if part.variances is None else part.variances
                    for part, like in zip(parts, flat, strict=True)
                ]
            )
        roots = [root.to(means.dtype) for part in parts for root in part.roots]
        return cls(means, torch.cat([part.weights for part in parts]), roots, variances)


def trapezoid(root: Tensor) -> Tensor:
    """The root of the same covariance with zeros above its diagonal: (d, min(r, d)) for (d, r)."""
    return torch.linalg.qr(root.T, mode="r").R.T.contiguous()


def _packed(root: Tensor) -> Tensor:
    rows, columns = torch.tril_indices(*root.shape)
    return root[rows, columns]


def _unpacked(values: Tensor, d: int, rank: int) -> Tensor:
    root = values.new_zeros(d, rank)
    rows, columns = torch.tril_indices(d, rank)
    root[rows, columns] = values
    return root


def _check(name: str, values: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if values.shape != shape or values.dtype != dtype:
        raise ValueError(
            f"`{name}` must be {dtype} of shape {shape}, got {values.dtype} of shape {tuple(values.shape)}"
        )
    check_finite(values, name)
