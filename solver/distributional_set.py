"""Distilled sets of distributions: what is stored can be drawn from, and a point of each stands for it.

Everything that takes a distilled set takes these: `x` holds the point of each distribution (in raw units where the
transform can be undone), made anew when a file is read, and `nbytes` counts what is stored instead.
"""

import dataclasses
import math
import os
from typing import Any

import torch
from torch import Tensor

from ._check import check_count
from .distilled_set import DISTRIBUTIONAL_KIND, DistilledSet, Space, restored_fields
from .distributions import Distribution, restore_distribution
from .encoder import Encoder, arrays_of
from .kernel_model import KernelModel
from .model import RidgeModel
from .ridge import RidgePath
from .store import read_file, write_file
from .transforms import Transform

_PREFIX = "distribution."
# Of the largest value: how far the points of a set may be from those of its distributions. float16 storage rounds to
# 5e-4, and TF32 products, which torch's convolutions take on a GPU by default, to that in each layer.
_ROUNDING = 0.05


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class DistributionalSet(DistilledSet):
    """A distilled set whose entries are distributions.

    Attributes
    ----------
    distribution : Distribution
        m of them, over transformed inputs.
    """

    distribution: Distribution = dataclasses.field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = len(self.distribution), len(self.x), len(self.y)
        if len(set(sizes)) != 1:
            raise ValueError(
                f"a set has one point and one row of labels for each distribution, got {sizes[0]} distributions,"
                f" {sizes[1]} points and {sizes[2]} rows"
            )
        if self.space != _space(self.encoder.transform):
            raise ValueError(
                f"points of distributions are in the space {_space(self.encoder.transform)!r} with the transform"
                f" {self.encoder.transform.name!r}, got {self.space!r}"
            )
        shapes = (
            self.distribution.input_shape,
            tuple(self.x.shape[1:]),
            self.encoder.transform.input_shape,
        )
        if len(set(shapes)) != 1:
            raise ValueError(
                f"distributions over inputs of {shapes[0]} do not go with points of {shapes[1]} and a transform to"
                f" {shapes[2]}"
            )

    def __repr__(self) -> str:
        shape, status = "x".join(map(str, self.distribution.input_shape)), self.certificate.status.value
        return f"DistributionalSet({len(self)} {self.distribution.name} of {shape}, {status})"

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is stored: distributions and labels."""
        return sum(self.storage().values())

    def storage(self) -> dict[str, int]:
        """Bytes of what is stored, by what it is."""
        return {**self.distribution.storage(), "labels": self.y.nbytes}

    @property
    def equivalent_images(self) -> float:
        """How many inputs of float32 values take as many bytes; of uint8 values, four times as many."""
        return self.nbytes / (4 * math.prod(self.distribution.input_shape))

    def draw(self, number: int, *, seed: int) -> Tensor:
        """One transformed input of each distribution, float32 (m, *input_shape); see `Distribution.draw`."""
        return self.distribution.draw(number, seed=seed)

    def sample(self, n: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Inputs with soft labels.

        Parameters
        ----------
        n : int
            How many: all distributions serve once before one serves again.
        seed : int, default 0

        Returns
        -------
        X : Tensor, shape (n, *input_shape), float32
            In the units and space of `x`.
        y : Tensor, shape (n, k)
        """
        check_count(n, "n")
        rounds = -(-n // len(self))
        drawn = torch.cat([self._drawn(number, seed) for number in range(rounds)])
        return drawn[:n], self.y.repeat(rounds, 1)[:n]

    def _drawn(self, number: int, seed: int) -> Tensor:
        """A draw in the units and space of `x`, float32."""
        return raw_points(self.draw(number, seed=seed), self.encoder.transform).float()

    @classmethod
    def of(cls, ds: DistilledSet, distribution: Distribution) -> "DistributionalSet":
        """A set with distributions in the place of its points.

        Parameters
        ----------
        ds : DistilledSet
            Of the points of these distributions, up to their storage.
        distribution : Distribution

        Returns
        -------
        DistributionalSet
            Its `x` are made from `distribution`, as by `load`, so that it is what comes back from a file.

        Raises
        ------
        ValueError
            If a value of the points of `ds` is further from that of the distributions than a twentieth of the largest
            (they may be rounded, by their storage or by a GPU), or sizes, shapes or the space of `ds` do not fit.
        """
        fields = {field.name: getattr(ds, field.name) for field in dataclasses.fields(DistilledSet)}
        made = cls(**fields, distribution=distribution)
        points = raw_points(distribution.points(), ds.encoder.transform)
        apart = float((points - ds.x.double()).abs().max())
        if not apart <= _ROUNDING * float(points.abs().max()):
            raise ValueError(
                f"the points of the set are not those of the distributions: they differ by up to {apart:.3g}"
            )
        return dataclasses.replace(made, x=points)

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write one .safetensors file with the distributions, and no points.

        Raises
        ------
        FileExistsError
            If `path` exists and `force` is not set.
        """
        made = self.distribution
        header = {
            **self._header(),
            "distribution": {"name": made.name, "parameters": made.parameters()},
        }
        tensors = {f"{_PREFIX}{name}": value for name, value in made.tensors().items()}
        tensors |= {"y": self.y, **self.encoder.tensors()}
        if self.labels is not None:
            tensors["labels"] = self.labels
        write_file(path, DISTRIBUTIONAL_KIND, header, tensors, force=force)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, module: torch.nn.Module | None = None
    ) -> "DistributionalSet":
        """Read what `save` wrote; points are made anew."""
        document, tensors = read_file(path, DISTRIBUTIONAL_KIND)
        try:
            found: dict[str, Any] = document.pop("distribution")
            stored = arrays_of(tensors, _PREFIX)
            distribution = restore_distribution(found["name"], found["parameters"], stored)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{os.fspath(path)} is not a consistent distributional set: {error!r}") from None
        rest = {name: value for name, value in tensors.items() if not name.startswith(_PREFIX)}
        fields = restored_fields(path, document, {**rest, "x": distribution.points()}, module)
        x, transform = fields["x"], fields["encoder"].transform
        return cls(**{**fields, "x": raw_points(x, transform)}, distribution=distribution)

    def _train(self) -> RidgeModel | KernelModel:
        if not isinstance(self.encoder, Encoder):
            return super()._train()
        statistics = self.distribution.statistics(self.encoder, self.targets, self.y)
        if statistics is None:
            return super()._train()
        path = RidgePath.from_statistics(statistics, intercept=self.intercept)
        return RidgeModel(self.encoder, self.targets, *path.weights(self.distilled_ridge))


def raw_points(points: Tensor, transform: Transform) -> Tensor:
    """Transformed points as a set holds them: in raw units where the transform can be undone; float64."""
    return transform.inverse(points.double()) if transform.bijective else points.double()


def _space(transform: Transform) -> Space:
    """Where those points are."""
    return "input" if transform.bijective else "transformed"
