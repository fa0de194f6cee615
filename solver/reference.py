"""Points that a set is placed near: noise of the data's mean and spread, real rows of each class, or given ones."""

import math
from typing import Any

import torch
from torch import Tensor

from ..kernels import normal
from ._check import check_finite, check_name
from .fit import FullModel
from .source import as_array, to_tensor
from .targets import Targets
from .transforms import Transform

NEAR = ("noise", "data")


def reference_points(full: FullModel, m: int, near: Any, seed: int) -> Tensor:
    """Transformed points (m, *input_shape), float64, to place the set near: noise, real rows, or given."""
    encoder, targets = full.model.encoder, full.model.targets
    shape = encoder.transform.input_shape
    if not isinstance(near, str):
        return given_points(near, m, encoder.transform)
    check_name(near, NEAR, "reference points (near)")
    if near == "noise":
        noise = normal(seed, "near.noise", (m, *shape))
        if full.sample is None:
            return noise
        sample = encoder.transform.forward(full.sample)
        return sample.mean(dim=0) + sample.std(dim=0, correction=0) * noise
    nominal = nominal_classes(m, targets)
    groups = torch.zeros(m, dtype=torch.int64) if nominal is None else nominal
    rows = []
    for group in groups.unique().tolist():
        wanted = int((groups == group).sum())
        found = full.candidates.rows(group)
        if found is None or len(found) < wanted:
            name = "" if nominal is None else f" of class {(targets.classes or ())[group]!r}"
            raise ValueError(
                f"near='data' needs {wanted} rows{name}, the data have {0 if found is None else len(found)}:"
                " lower per_class or use near='noise'"
            )
        rows.append(found[:wanted])
    return encoder.transform.forward(torch.cat(rows))


def given_points(near: Any, m: int, transform: Transform) -> Tensor:
    """Raw points that a user gave, transformed, (m, *input_shape), float64; flat rows and a missing channel will do."""
    shape, given = transform.input_shape, to_tensor(as_array(near, "near"))
    n_inputs = math.prod(shape)
    shapes = ((m, *shape), (m, n_inputs), (m, *shape[1:]))
    if tuple(given.shape) not in shapes or given.numel() != m * n_inputs:
        raise ValueError(f"`near` must hold {m} points of shape {shape}, got {tuple(given.shape)}")
    check_finite(given, "near")
    return transform.forward(given.reshape(m, *shape))


def nominal_classes(m: int, targets: Targets) -> Tensor | None:
    """Class of each point: as even as can be, in class order."""
    if not targets.is_classes:
        return None
    return (torch.arange(m) * targets.n_outputs // m) if m >= targets.n_outputs else torch.arange(m)
