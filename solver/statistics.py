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
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
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
    left_out : tuple of str
        Shards that were left out by choice, each with the reason.
    """

    n_features: int
    n_outputs: int
    encoder: Encoder | None = None
    targets: Targets | None = None
    weight: float = 0.0
    count: int = 0
    left_out: tuple[str, ...] = ()

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

    def __getstate__(self) -> dict[str, Any]:
        """Sums as NumPy arrays, which travel between processes without copies, and no working memory."""
        state = self.__dict__ | {"_buffer": None}
        return {name: value.numpy() if isinstance(value, Tensor) else value for name, value in state.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Arrays that came through shared memory cannot be written; rows may be added to these.
        self.__dict__ |= {
            name: torch.from_numpy(value if value.flags.writeable else value.copy())
            if isinstance(value, np.ndarray)
            else value
            for name, value in state.items()
        }

    def add(
        self, F: Tensor, Y: Tensor, weight: Tensor | None = None, *, first_row: int | None = None
    ) -> Self:
        """Add rows in place.

        Parameters
        ----------
        F : Tensor, shape (b, p)
            Features, float32 or float64; products are taken in float64.
        Y : Tensor, shape (b, k)
        weight : Tensor, shape (b,), optional
            Non-negative sample weights; default all ones.
        first_row : int, optional
            What errors call the first row; by default the number of rows so far.

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
        first = self.count if first_row is None else first_row
        check_finite(F, "features", first)
        check_finite(Y, "y", first)
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

    def without_buffer(self) -> Self:
        """Itself, after letting go of the working memory of `add`: for sums that wait while others are made."""
        self._buffer = None
        return self

    def __add__(self, other: "Statistics") -> "Statistics":
        """Statistics of the union of two disjoint shards."""
        return self._combine(other, 1)

    def __sub__(self, other: "Statistics") -> "Statistics":
        """Statistics without a shard that was added before (unlearning it)."""
        if other.count > self.count:
            raise ValueError(f"cannot take {other.count} rows away from statistics of {self.count}")
        return self._combine(other, -1)

    def merge_(self, other: "Statistics") -> Self:
        """Add the sums of a disjoint shard in place: `+` without a copy. `other` stays as it is."""
        self.check_same(other)
        return self._accumulate(other, 1)

    def check_same(self, other: "Statistics") -> None:
        """Raise ValueError unless both are sums of the same features and targets."""
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

    def _combine(self, other: "Statistics", sign: int) -> "Statistics":
        self.check_same(other)
        copy = self.with_sums({name: values.clone() for name, values in self.sums().items()})
        return copy._accumulate(other, sign)

    def _accumulate(self, other: "Statistics", sign: int) -> Self:
        if other._gram is not None:
            self._upper().add_(other._gram, alpha=sign)
            self._mirrored = self._mirrored and other._mirrored
        for name in _SUMS[1:]:
            getattr(self, name).add_(getattr(other, name), alpha=sign)
        self.weight += sign * other.weight
        self.count += sign * other.count
        if sign > 0:
            self.left_out = tuple(dict.fromkeys(self.left_out + other.left_out))
        return self

    def sums(self) -> dict[str, Tensor]:
        """The sums by name, without copies."""
        return {name: getattr(self, name) for name in _SUMS}

    def with_sums(self, sums: Mapping[str, Tensor], **numbers: Any) -> Self:
        """Statistics of the same things with these sums, which are not copied, and other `numbers` (weight, count)."""
        result = dataclasses.replace(self, **numbers)
        result._gram = sums["gram"]
        for name in _SUMS[1:]:
            setattr(result, name, sums[name])
        return result

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write one .safetensors file; refuses an existing path unless `force`."""
        header: dict[str, Any] = {"weight": self.weight, "count": self.count}
        tensors = self.sums()
        if self.targets is not None:
            header["targets"] = self.targets.parameters()
        if self.left_out:
            header["left_out"] = list(self.left_out)
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
                left_out=tuple(header.get("left_out", ())),
            )
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{os.fspath(path)} does not hold consistent statistics: {error!r}") from None
        return result.with_sums(sums)
