"""A ridge model on raw inputs: encoder, weights and what the outputs mean. What every set trains."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._check import check_finite
from .encoder import Encoder
from .source import as_array, batch_rows, to_tensor
from .targets import Targets


@dataclasses.dataclass(frozen=True)
class RidgeModel:
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

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores (n, k), float64, of raw inputs (n, *input_shape); in batches of bounded memory."""
        return decision_functions([self], X)[0]

    def predict(self, X: Any) -> np.ndarray:
        """Labels (n,), or values (n,) or (n, k) for regression."""
        return self.targets.decode(torch.from_numpy(self.decision_function(X)))

    def score(self, X: Any, y: Any) -> float:
        """Accuracy, or R² (averaged over outputs) for regression."""
        return score(self.targets, self.decision_function(X), y)


def decision_functions(models: Sequence[RidgeModel], X: Any) -> list[np.ndarray]:
    """Scores of several models on the same inputs; models that share an encoder share its features."""
    X = as_array(X, "X")
    groups: dict[int, list[int]] = {}
    for index, model in enumerate(models):
        groups.setdefault(id(model.encoder), []).append(index)
    out: list[Any] = [None] * len(models)
    for members in groups.values():
        encoder = models[members[0]].encoder
        X = as_rows(X, encoder.transform.input_shape)
        W = torch.cat([models[index].weights for index in members], dim=1)
        bias = torch.cat([models[index].bias for index in members])
        rows = batch_rows(encoder.feature_map.n_features, encoder.feature_map.n_inputs)
        parts = []
        for start in range(0, len(X), rows):
            piece = to_tensor(X[start : start + rows])
            check_finite(piece, "X", start)
            parts.append(torch.addmm(bias, encoder(piece).double(), W))
        scores = torch.cat(parts) if parts else torch.empty(0, W.shape[1], dtype=torch.float64)
        for index, part in zip(
            members, scores.split([models[i].bias.numel() for i in members], 1), strict=True
        ):
            out[index] = part.numpy()
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
