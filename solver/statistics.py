r"""Sufficient statistics of ridge regression, in memory that does not grow with n.

For features :math:`\Phi` (n, p), targets Y (n, k) and sample weights w,

.. math:: G = \Phi^\top \mathrm{diag}(w)\,\Phi, \quad B = \Phi^\top \mathrm{diag}(w)\,Y, \quad
          \textstyle\sum w\varphi, \sum w y, \sum w y^2, \sum w, n

determine every ridge model, with or without an intercept, and its training error. They are sums, so the
statistics of two shards add up to those of their union, and those of a shard can be taken away again
(unlearning), both exactly up to the rounding of float64.
"""

import dataclasses
import os
from typing import Any, Self

import torch
from torch import Tensor

from ..kernels import mirror_upper_, statistics_add_
from ._check import check_finite
from .encoder import Encoder
from .source import check_weights
from .store import read_file, write_file
from .targets import Targets

_FILE_KIND = "statistics"
_SUMS = ("gram", "cross", "feature_sum", "target_sum", "target_square")


@dataclasses.dataclass
class Statistics:
    """Sums over a stream of features and targets, float64.

    Parameters
    ----------
    n_features, n_outputs : int
        p and k.
    encoder : Encoder, optional
        What made the features. Statistics made by different encoders do not merge.
    targets : Targets, optional
        What the outputs mean.

    Attributes
    ----------
    gram : Tensor, shape (p, p)
    cross : Tensor, shape (p, k)
    feature_sum : Tensor, shape (p,)
    target_sum, target_square : Tensor, shape (k,)
        Weighted sums of y and of y² by output. For one-hot targets, `target_sum` holds the class counts.
    weight : float
        Sum of the sample weights; the number of rows without weights.
    count : int
        Number of rows of positive weight.
    """

    n_features: int
    n_outputs: int
    encoder: Encoder | None = None
    targets: Targets | None = None
    weight: float = 0.0
    count: int = 0

    def __post_init__(self) -> None:
        p, k = self.n_features, self.n_outputs
        self._gram: Tensor | None = None  # p x p: made when the first rows come
        self._mirrored = True
        self._buffer: Tensor | None = None
        self.cross = torch.zeros(p, k, dtype=torch.float64)
        self.feature_sum = torch.zeros(p, dtype=torch.float64)
        self.target_sum = torch.zeros(k, dtype=torch.float64)
        self.target_square = torch.zeros(k, dtype=torch.float64)

    @property
    def gram(self) -> Tensor:
        """G, shape (p, p), exactly symmetric."""
        gram = self._upper()
        if not self._mirrored:
            mirror_upper_(gram)
            self._mirrored = True
        return gram

    def _upper(self) -> Tensor:
        if self._gram is None:
            self._gram = torch.zeros(self.n_features, self.n_features, dtype=torch.float64)
        return self._gram

    def add(self, F: Tensor, Y: Tensor, weight: Tensor | None = None) -> Self:
        """Add rows in place.

        Parameters
        ----------
        F : Tensor, shape (b, p)
            Features, float32 or float64; products are taken in float64.
        Y : Tensor, shape (b, k)
        weight : Tensor, shape (b,), optional
            Non-negative sample weights; default all ones.

        Raises
        ------
        ValueError
            If shapes differ or features are not finite.

        Notes
        -----
        b p²/2 multiplications: half a general product (see `kernels.statistics`).
        """
        if F.shape != (Y.shape[0], self.n_features) or Y.shape[1:] != (self.n_outputs,):
            raise ValueError(
                f"expected features (b, {self.n_features}) and targets (b, {self.n_outputs}), got"
                f" {tuple(F.shape)} and {tuple(Y.shape)}"
            )
        if weight is not None:
            weight = check_weights(weight, len(F), some=False)
        check_finite(F, "features", self.count)
        check_finite(Y, "y", self.count)
        F, Y = self._doubled(F), Y.double()
        WY = Y if weight is None else Y * weight[:, None]
        self.feature_sum += F.sum(dim=0) if weight is None else weight @ F
        self.target_sum += WY.sum(dim=0)
        self.target_square += (WY * Y).sum(dim=0)
        self.weight += float(len(F) if weight is None else weight.sum())
        self.count += len(F) if weight is None else int((weight > 0).sum())
        statistics_add_(self._upper(), self.cross, F, Y, weight)
        self._mirrored = False
        return self

    def _doubled(self, F: Tensor) -> Tensor:
        """F in float64, in a buffer that is used again: fresh pages cost as much as the conversion."""
        if F.dtype == torch.float64:
            return F
        if self._buffer is None or len(self._buffer) < len(F):
            self._buffer = torch.empty(F.shape, dtype=torch.float64)
        return self._buffer[: len(F)].copy_(F)

    def __add__(self, other: "Statistics") -> "Statistics":
        """Statistics of the union of two disjoint shards."""
        return self._combine(other, 1)

    def __sub__(self, other: "Statistics") -> "Statistics":
        """Statistics without a shard that was added before (unlearning it)."""
        if other.count > self.count:
            raise ValueError(f"cannot take {other.count} rows away from statistics of {self.count}")
        return self._combine(other, -1)

    def _combine(self, other: "Statistics", sign: int) -> "Statistics":
        if (self.n_features, self.n_outputs) != (other.n_features, other.n_outputs):
            raise ValueError(
                f"statistics of shapes {(self.n_features, self.n_outputs)} and"
                f" {(other.n_features, other.n_outputs)} do not merge"
            )
        if self.targets != other.targets:
            raise ValueError(
                f"statistics of different targets do not merge: {self.targets} and {other.targets}"
            )
        if (self.encoder is None) != (other.encoder is None) or (
            self.encoder is not None
            and other.encoder is not None
            and self.encoder.digest() != other.encoder.digest()
        ):
            raise ValueError(
                "statistics of different encoders do not merge: make every shard with the same transform and"
                " feature map (pass those of the first shard on)"
            )
        result = dataclasses.replace(
            self, weight=self.weight + sign * other.weight, count=self.count + sign * other.count
        )
        result._gram = torch.add(self.gram, other.gram, alpha=sign)
        for name in _SUMS[1:]:
            setattr(result, name, getattr(self, name) + sign * getattr(other, name))
        return result

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write one .safetensors file; refuses an existing path unless `force`."""
        header: dict[str, Any] = {"weight": self.weight, "count": self.count}
        tensors = {name: getattr(self, name) for name in _SUMS}
        if self.targets is not None:
            header["targets"] = self.targets.parameters()
        if self.encoder is not None:
            header["encoder"] = self.encoder.parameters()
            tensors |= self.encoder.tensors()
        write_file(path, _FILE_KIND, header, tensors, force=force)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, module: torch.nn.Module | None = None) -> Self:
        """Read what `save` wrote, bit for bit."""
        header, tensors = read_file(path, _FILE_KIND)
        try:
            sums = {name: tensors.pop(name) for name in _SUMS}
            result = cls(
                n_features=sums["cross"].shape[0],
                n_outputs=sums["cross"].shape[1],
                encoder=Encoder.restore(header["encoder"], tensors, module) if "encoder" in header else None,
                targets=Targets.restore(header["targets"]) if "targets" in header else None,
                weight=header["weight"],
                count=header["count"],
            )
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{os.fspath(path)} does not hold consistent statistics: {error!r}") from None
        result._gram = sums.pop("gram")
        for name, value in sums.items():
            setattr(result, name, value)
        return result
