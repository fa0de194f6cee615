"""Models on raw inputs: encoder, coefficients and what the outputs mean. What every set trains."""

import abc
import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from ._check import check_finite
from .encoder import Encoder
from .source import as_array, batch_rows, to_tensor
from .targets import Targets

if TYPE_CHECKING:
    from .kernel_encoder import KernelEncoder


E = TypeVar("E", bound="Encoder | KernelEncoder")


class Model(abc.ABC, Generic[E]):
    """Base of the models: scores are linear in numbers that follow from an encoded row.

    Attributes
    ----------
    encoder : Encoder or KernelEncoder
    targets : Targets
    """

    encoder: E
    targets: Targets

    @property
    @abc.abstractmethod
    def width(self) -> int:
        """Numbers that a row is turned into on the way to its scores; they decide the size of batches."""

    @abc.abstractmethod
    def scores(self, encoded: Tensor) -> Tensor:
        """Scores (b, k), float64, of rows as `encoder` gives them."""

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores (n, k), float64, of raw inputs (n, *input_shape); in batches of bounded memory."""
        return decision_functions([self], X)[0]

    def predict(self, X: Any) -> np.ndarray:
        """Labels (n,), or values (n,) or (n, k) for regression."""
        return self.targets.decode(torch.from_numpy(self.decision_function(X)))

    def score(self, X: Any, y: Any) -> float:
        """Accuracy, or R² (averaged over outputs) for regression."""
        return score(self.targets, self.decision_function(X), y)


@dataclasses.dataclass(frozen=True)
class RidgeModel(Model[Encoder]):
    """``decode(features(x) @ weights + bias)``.

    Attributes
    ----------
    encoder : Encoder
    targets : Targets
    weights : Tensor, shape (p, k), float64
    bias : Tensor, shape (k,), float64
    """

    encoder: Encoder
    targets: Targets
    weights: Tensor
    bias: Tensor

    @property
    def width(self) -> int:
        return len(self.weights)

    def scores(self, encoded: Tensor) -> Tensor:
        return torch.addmm(self.bias, encoded.double(), self.weights)


def decision_functions(models: Sequence[Model[Any]], X: Any) -> list[np.ndarray]:
    """Scores of several models on the same inputs; models that share an encoder share what it gives."""
    X = as_array(X, "X")
    groups: dict[int, list[int]] = {}
    for index, model in enumerate(models):
        groups.setdefault(id(model.encoder), []).append(index)
    out: list[Any] = [None] * len(models)
    for members in groups.values():
        encoder = models[members[0]].encoder
        X = as_rows(X, encoder.transform.input_shape)
        width = max(models[index].width for index in members)
        rows = batch_rows(width, math.prod(encoder.transform.input_shape))
        parts = {
            index: [torch.empty(0, models[index].targets.n_outputs, dtype=torch.float64)] for index in members
        }
        for start in range(0, len(X), rows):
            piece = to_tensor(X[start : start + rows])
            check_finite(piece, "X", start)
            encoded = encoder(piece)
            for index in members:
                parts[index].append(models[index].scores(encoded))
        for index in members:
            out[index] = torch.cat(parts[index]).numpy()
    return out


def score(targets: Targets, scores: np.ndarray, y: Any) -> float:
    """Accuracy of scores against labels, or R² against values."""
    if len(scores) != len(y):
        raise ValueError(f"{len(scores)} rows of `X` but {len(y)} of `y`")
    if targets.is_classes:
        return float((torch.from_numpy(scores).argmax(dim=1) == targets.indices(y)).double().mean())
    truth = targets.encode(y)
    if truth.shape != scores.shape:
        raise ValueError(
            f"the model predicts {scores.shape[1]} values a row, `y` has shape {tuple(truth.shape)}"
        )
    residual = (truth - torch.from_numpy(scores)).square().sum(dim=0)
    spread = (truth - truth.mean(dim=0)).square().sum(dim=0)
    return float((1 - residual / spread.clamp_min(torch.finfo(torch.float64).tiny)).mean())


def as_rows(X: Any, input_shape: tuple[int, ...]) -> Any:
    """`X` with rows of `input_shape`; rows that hold as many values in another shape are refused, but for
    a missing axis of one channel.
    """
    shape = tuple(X.shape[1:])
    if shape == input_shape:
        return X
    if len(input_shape) == 3 and input_shape[0] == 1 and shape == input_shape[1:]:
        return X.reshape(len(X), *input_shape)
    raise ValueError(f"expected rows of shape {input_shape}, got {shape}: this model was made for other data")
