"""What a model is asked to predict: labels to target rows, and scores back to labels.

Published codes disagree: Chen et al. use plain one-hot rows, KIP, RFAD and FRePo subtract 1/k. The choice is
therefore a named part of every model and file.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ._check import check_count, check_name
from .source import as_array, to_tensor

KINDS = ("one-hot", "centred", "values")


@dataclasses.dataclass(frozen=True)
class Targets:
    """Encoding of targets.

    Attributes
    ----------
    kind : {"one-hot", "centred", "values"}
        One-hot rows, one-hot minus 1/k, or given numbers (regression).
    n_outputs : int
        k.
    classes : tuple of int or str, or None
        Labels in column order; None for "values".
    """

    kind: str
    n_outputs: int
    classes: tuple[int, ...] | tuple[str, ...] | None = None

    @classmethod
    def from_labels(cls, y: Any, kind: str = "one-hot", n_classes: int | None = None) -> Self:
        """Classes found in an array of labels, or ``0 .. n_classes - 1`` where that is given."""
        check_name(kind, ("one-hot", "centred"), "target encoding")
        if n_classes is not None:
            classes: tuple[Any, ...] = tuple(range(check_count(n_classes, "n_classes", 2)))
        else:
            classes = tuple(np.unique(_labels(y)).tolist())
        if len(classes) < 2:
            raise ValueError(f"found one class only ({list(classes)}): classification needs at least two")
        return cls(kind, len(classes), classes)

    @classmethod
    def from_values(cls, n_outputs: int) -> Self:
        """Regression on `n_outputs` numbers a row."""
        return cls("values", check_count(n_outputs, "n_outputs"))

    @property
    def is_classes(self) -> bool:
        """Whether targets are labels."""
        return self.classes is not None

    def indices(self, y: Any, first_row: int = 0) -> Tensor:
        """Column of each label, int64 (n,); raises for labels outside the known classes."""
        labels = _labels(y)
        classes = np.asarray(self.classes)
        if labels.dtype.kind != classes.dtype.kind and "U" in (labels.dtype.kind, classes.dtype.kind):
            raise ValueError(f"labels are {labels.dtype}, the classes are {classes.dtype}: use one kind")
        found = np.minimum(np.searchsorted(classes, labels), len(classes) - 1)
        wrong = classes[found] != labels
        if wrong.any():
            row = int(np.argmax(wrong))
            shown = ", ".join(map(repr, classes[:8].tolist())) + (", ..." if len(classes) > 8 else "")
            raise ValueError(
                f"label {labels[row].item()!r} in row {first_row + row} is outside the {len(classes)} known"
                f" classes ({shown})"
            )
        return torch.from_numpy(found.astype(np.int64))

    def encode(self, y: Any, first_row: int = 0) -> Tensor:
        """Target rows, float64 (n, k); errors count rows from `first_row`."""
        if not self.is_classes:
            values = to_tensor(as_array(y, "y")).double()
            return values.reshape(values.shape[0], -1)
        rows = torch.nn.functional.one_hot(self.indices(y, first_row), self.n_outputs).double()
        return rows - 1 / self.n_outputs if self.kind == "centred" else rows

    def decode(self, scores: Tensor) -> np.ndarray:
        """Labels of the largest scores, or the values themselves; (n,) or (n, k)."""
        if not self.is_classes:
            values = scores.numpy()
            return values[:, 0] if self.n_outputs == 1 else values
        return np.asarray(self.classes)[scores.argmax(dim=1).numpy()]

    def parameters(self) -> dict[str, Any]:
        """Plain JSON values."""
        classes = None if self.classes is None else list(self.classes)
        return {"kind": self.kind, "n_outputs": self.n_outputs, "classes": classes}

    @classmethod
    def restore(cls, parameters: dict[str, Any]) -> Self:
        """Make the encoding that `parameters` describe."""
        classes: Sequence | None = parameters["classes"]
        kind, k = check_name(parameters["kind"], KINDS, "target encoding"), parameters["n_outputs"]
        if (classes is None) != (kind == "values") or (classes is not None and len(classes) != k):
            raise ValueError(f"targets of kind {kind!r} with {k} outputs do not have the classes {classes}")
        return cls(kind, k, None if classes is None else tuple(classes))


def _labels(y: Any) -> np.ndarray:
    labels = y.numpy() if isinstance(y, Tensor) else np.asarray(y)
    if labels.dtype.kind == "f":
        raise ValueError(
            f"labels are {labels.dtype}: cast class labels to int, or pass task='regression' for numbers"
        )
    if labels.dtype.kind not in "iubU":
        raise ValueError(f"labels must be integers or strings, got an array of dtype {labels.dtype}")
    if labels.ndim != 1:
        raise ValueError(
            f"labels must have shape (n,), got {labels.shape}: take argmax of one-hot rows first"
        )
    return labels.astype(np.int64) if labels.dtype.kind in "iub" else labels
