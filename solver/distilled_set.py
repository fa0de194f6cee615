"""The product: a handful of points with labels, everything needed to predict from raw inputs, and a certificate."""

import dataclasses
import functools
import os
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from .certificate import Certificate
from .encoder import Encoder
from .kernel_encoder import KernelEncoder, restore_encoder
from .kernel_functions import FeatureKernel
from .kernel_model import KernelModel
from .model import RidgeModel
from .set_factor import SetFactor, storage_tolerance
from .store import file_kind, read_file, write_file
from .targets import Targets

FILE_KIND = "distilled-set"
DISTRIBUTIONAL_KIND = "distributional-set"
Space = Literal["input", "transformed", "features"]


class _Header(BaseModel):
    """What the header of a file must hold; anything else is refused."""

    model_config = ConfigDict(extra="forbid")

    space: Space
    distilled_ridge: float
    intercept: bool
    certificate: Certificate
    encoder: dict[str, Any]
    targets: dict[str, Any]
    class_names: tuple[str, ...] | None
    provenance: dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class DistilledSet:
    """A distilled set.

    Attributes
    ----------
    x : Tensor
        Points: (m, *input_shape) in raw input units (`space` "input"), the same after the transform
        ("transformed", where the transform cannot be undone for every point), or (m, p) features
        ("features", where the feature map cannot).
    y : Tensor, shape (m, k)
        Soft labels.
    encoder : Encoder or KernelEncoder
        Transform and feature map, or transform and kernel.
    targets : Targets
    space : {"input", "transformed", "features"}
    distilled_ridge : float
        λ_S, absolute.
    intercept : bool
        Whether the model trained on the set has an unpenalised intercept; never with a kernel.
    certificate : Certificate
    labels : Tensor, shape (m,), int64, or None
        Nominal class of each point, as an index into the classes; None for regression.
    class_names : tuple of str or None
    provenance : dict
        Data checksums, seed, options and versions, as plain JSON.
    full_model : RidgeModel or None
        The model of the whole data set, for comparison; only right after distilling, never stored.

    Raises
    ------
    ValueError
        If a set with a kernel is given features, an intercept, or the kernel of a feature map.
    """

    x: Tensor
    y: Tensor
    encoder: Encoder | KernelEncoder
    targets: Targets
    space: Space
    distilled_ridge: float
    intercept: bool
    certificate: Certificate
    labels: Tensor | None = None
    class_names: tuple[str, ...] | None = None
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
    full_model: RidgeModel | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.encoder, KernelEncoder):
            return
        if isinstance(self.encoder.kernel, FeatureKernel):
            raise ValueError(
                "the kernel of a feature map has no file form: give the set Encoder(transform, feature_map)"
            )
        if self.space == "features" or self.intercept:
            raise ValueError("a set with a kernel holds points, not features, and its model has no intercept")

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.x.shape[1:]))
        kind = str(self.x.dtype).removeprefix("torch.")
        return f"DistilledSet({len(self)} points of {shape} {kind}, {self.certificate.status.value})"

    @property
    def nbytes(self) -> int:
        """Bytes of x and y as they are stored."""
        return self.x.nbytes + self.y.nbytes

    @property
    def hard_labels(self) -> np.ndarray | None:
        """Nominal class of each point, in the user's labels; None for regression."""
        return None if self.labels is None else np.asarray(self.targets.classes)[self.labels.numpy()]

    def transformed(self) -> Tensor:
        """The points after the transform, float64 (m, *input_shape).

        Raises
        ------
        ValueError
            If the set lives in feature space.
        """
        if self.space == "features":
            raise ValueError("this set lives in feature space: it holds features, and no points behind them")
        return self.x.double() if self.space == "transformed" else self.encoder.transform.forward(self.x)

    def features(self) -> Tensor:
        """Features of the points as they are stored, float64 (m, p).

        Raises
        ------
        ValueError
            If the set has a kernel instead of a feature map.
        """
        if isinstance(self.encoder, KernelEncoder):
            raise ValueError(
                f"this set has the kernel {self.encoder.name!r}, which has no finite features: take `transformed()`"
                " and `encoder.kernel.matrix`"
            )
        if self.space == "features":
            return self.x.double()
        if self.space == "transformed":
            return self.encoder.feature_map.features(self.x.double())
        return self.encoder(self.x, torch.float64)

    @functools.cached_property
    def model(self) -> RidgeModel | KernelModel:
        """The model trained on the set alone.

        Raises
        ------
        ValueError
            If the set has a kernel, and its matrix is singular with the ridge of the set.
        """
        return self._train()

    def _train(self) -> RidgeModel | KernelModel:
        if isinstance(self.encoder, KernelEncoder):
            return KernelModel.train(
                self.encoder, self.targets, self.transformed(), self.y, self.distilled_ridge
            )
        factor = SetFactor(
            self.features(),
            self.distilled_ridge,
            intercept=self.intercept,
            tolerance=storage_tolerance(self.x.dtype),
        )
        return RidgeModel(self.encoder, self.targets, *factor.weights(self.y.double()))

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores (n, k) of raw inputs, by the model trained on the set."""
        return self.model.decision_function(X)

    def predict(self, X: Any) -> np.ndarray:
        """Labels (n,) of raw inputs, or values for regression, by the model trained on the set."""
        return self.model.predict(X)

    def score(self, X: Any, y: Any) -> float:
        """Accuracy (R² for regression) of the model trained on the set."""
        return self.model.score(X, y)

    def numpy(self) -> tuple[np.ndarray, np.ndarray]:
        """X and y as NumPy arrays."""
        return self.x.numpy(), self.y.numpy()

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write one .safetensors file that holds everything needed to predict from raw inputs.

        Raises
        ------
        FileExistsError
            If `path` exists and `force` is not set.
        """
        tensors = {"x": self.x, "y": self.y, **self.encoder.tensors()}
        if self.labels is not None:
            tensors["labels"] = self.labels
        write_file(path, FILE_KIND, self._header(), tensors, force=force)

    def _header(self) -> dict[str, Any]:
        """What a file says of the set besides its arrays."""
        header = _Header(
            space=self.space,
            distilled_ridge=self.distilled_ridge,
            intercept=self.intercept,
            certificate=self.certificate,
            encoder=self.encoder.parameters(),
            targets=self.targets.parameters(),
            class_names=self.class_names,
            provenance=self.provenance,
        )
        return header.model_dump(mode="json")

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, module: torch.nn.Module | None = None) -> "DistilledSet":
        """Read what `save` wrote, bit for bit.

        Parameters
        ----------
        path : path-like
        module : torch.nn.Module, optional
            The frozen network, if the features came from one (its code is not stored).

        Raises
        ------
        FileNotFoundError, ValueError
            If there is no such file, or it is truncated, of another kind or version, or inconsistent.
        """
        if file_kind(path) == DISTRIBUTIONAL_KIND:
            from .distributional_set import DistributionalSet

            return DistributionalSet.load(path, module=module)
        document, tensors = read_file(path, FILE_KIND)
        return cls(**restored_fields(path, document, tensors, module))


def restored_fields(
    path: str | os.PathLike[str],
    document: dict[str, Any],
    tensors: dict[str, Tensor],
    module: torch.nn.Module | None = None,
) -> dict[str, Any]:
    """Fields of a set by its file: header, and arrays with the points under "x"."""
    try:
        header = _Header.model_validate(document)
        x, y = tensors.pop("x"), tensors.pop("y")
    except (ValidationError, KeyError) as error:
        raise ValueError(f"{os.fspath(path)} is not a consistent distilled set: {error}") from None
    labels = tensors.pop("labels", None)
    try:
        encoder = restore_encoder(header.encoder, tensors, module)
        targets = Targets.restore(header.targets)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{os.fspath(path)} is not a consistent distilled set: {error!r}") from None
    expected = encoder.transform.input_shape
    if header.space == "features" and isinstance(encoder, Encoder):
        expected = (encoder.feature_map.n_features,)
    if tuple(x.shape[1:]) != expected or tuple(y.shape) != (len(x), targets.n_outputs):
        raise ValueError(
            f"{os.fspath(path)} is inconsistent: points {tuple(x.shape)} and labels {tuple(y.shape)}, expected"
            f" rows of {expected} and {targets.n_outputs} outputs"
        )
    if not (x.isfinite().all() and y.isfinite().all()):
        raise ValueError(f"{os.fspath(path)} holds points or labels that are not finite: it is damaged")
    known = targets.n_outputs if targets.is_classes else 0
    if labels is not None and not (
        labels.dtype == torch.int64
        and labels.shape == (len(x),)
        and (labels >= 0).all()
        and (labels < known).all()
    ):
        raise ValueError(f"{os.fspath(path)} is inconsistent: its points have no class among {known}")
    fields = {name: getattr(header, name) for name in _Header.model_fields}
    return {**fields, "x": x, "y": y, "labels": labels, "encoder": encoder, "targets": targets}
