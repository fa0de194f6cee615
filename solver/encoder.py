"""Raw inputs to features: a transform followed by a feature map, as one object that knows its own file form."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ._check import check_name
from .feature_maps import FeatureMap, restore_feature_map
from .transforms import Transform, restore_transform

PRECISIONS = ("auto", "high", "exact")


@dataclasses.dataclass(frozen=True)
class Encoder:
    """``features(transform(x))``.

    Attributes
    ----------
    transform : Transform
    feature_map : FeatureMap
    precision : {"auto", "high", "exact"}
        Arithmetic of features over a data set: float32 ("high"), float64 ("exact"), or that of the data
        ("auto": float64 arrays in float64, uint8 and narrower floats in float32). Distilled points are
        always encoded in float64, and sums and solves are float64 whatever is chosen here.
    """

    transform: Transform
    feature_map: FeatureMap
    precision: str = "auto"

    @property
    def name(self) -> str:
        """What the features are, in one word."""
        return self.feature_map.name

    def dtype_for(self, X: Tensor) -> torch.dtype:
        """Dtype in which rows like `X` are encoded."""
        if self.precision == "exact" or (self.precision == "auto" and _needs_double(X.dtype)):
            return torch.float64
        return torch.float32

    def __call__(self, X: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Features of raw rows, shape (n, p)."""
        return self.feature_map.features(self.transform.forward(X, dtype or self.dtype_for(X)))

    def parameters(self) -> dict[str, Any]:
        """Plain JSON values; with `tensors` they make the encoder again."""
        return {
            "transform": {"name": self.transform.name, "parameters": self.transform.parameters()},
            "feature_map": {"name": self.feature_map.name, "parameters": self.feature_map.parameters()},
            "precision": self.precision,
            "fingerprint": self.feature_map.fingerprint(),
        }

    def tensors(self) -> dict[str, Tensor]:
        """Arrays of both parts, under prefixed names."""
        return {f"transform.{key}": value for key, value in self.transform.tensors().items()} | {
            f"feature_map.{key}": value for key, value in self.feature_map.tensors().items()
        }

    @classmethod
    def restore(
        cls, parameters: dict[str, Any], tensors: dict[str, Tensor], module: torch.nn.Module | None = None
    ) -> "Encoder":
        """Make the encoder that a file describes.

        Raises
        ------
        ValueError
            If the feature map that comes out is not the one that was stored (its fingerprint differs).
        """
        transform, feature_map = parameters["transform"], parameters["feature_map"]
        check_name(parameters["precision"], PRECISIONS, "precision")
        encoder = cls(
            restore_transform(transform["name"], transform["parameters"], arrays_of(tensors, "transform.")),
            restore_feature_map(
                feature_map["name"], feature_map["parameters"], arrays_of(tensors, "feature_map."), module
            ),
            parameters["precision"],
        )
        what = f"{feature_map['name']!r} map"
        check_fingerprint(parameters["fingerprint"], encoder.feature_map.fingerprint(), what)
        return encoder

    def digest(self) -> str:
        """Sha256 of everything that defines the features; equal digests may be merged."""
        return encoder_digest(self.parameters(), self.tensors())


def arrays_of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Arrays of one part of an encoder, without the prefix under which a file holds them."""
    return {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}


def check_fingerprint(stored: Sequence[float], found: Sequence[float], what: str) -> None:
    """Raise unless the values that a file stored are those of what was made from it."""
    expected, values = (torch.tensor(numbers, dtype=torch.float64) for numbers in (stored, found))
    if expected.shape != values.shape or not torch.allclose(expected, values, rtol=1e-6, atol=1e-9):
        raise ValueError(
            f"the {what} of the file cannot be made again here: its values at fixed points differ from the stored"
            " ones. Use the library version that wrote the file"
        )


def encoder_digest(parameters: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Sha256 of an encoder's file form; a fingerprint follows from the rest and is left out."""
    plain = {key: value for key, value in parameters.items() if key != "fingerprint"}
    total = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        total.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return total.hexdigest()


def _needs_double(dtype: torch.dtype) -> bool:
    return dtype in (torch.float64, torch.int32, torch.int64)
