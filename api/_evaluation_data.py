"""What `evaluate` is given: distilled sets under their names, and the data to score them on."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .solver.data import Data
from .solver.distilled_set import DistilledSet


class EvaluationData:
    """Test rows, and training rows where baselines need them.

    Parameters
    ----------
    data : Data or (X, y)
    needs_training : str, default ""
        What training rows are needed for, in words.

    Raises
    ------
    ValueError
        If there are no test rows, or no training rows where they are needed.
    """

    def __init__(self, data: Any, needs_training: str = "") -> None:
        self.class_names: tuple[str, ...] = ()
        self.name = ""
        self.x: Any
        self.y: Any
        self.x_train: Any = None
        self.y_train: Any = None
        if isinstance(data, Data):
            if data.x_test is None:
                raise ValueError(
                    f"{data.name!r} has no test split: load it with load_data(..., test=0.2) and distil its"
                    " training split, or pass (X, y)"
                )
            self.name, self.class_names = data.name, data.class_names
            self.x, self.y, self.x_train, self.y_train = data.x_test, data.y_test, data.x_train, data.y_train
        elif isinstance(data, (tuple, list)) and len(data) == 2:
            self.x, self.y = data
        else:
            raise ValueError(f"`data` must be what load_data returns, or (X, y), got {type(data).__name__}")
        if needs_training and self.x_train is None:
            raise ValueError(f"{needs_training} training rows: pass what load_data returns, not (X, y)")
        if len(self.x) != len(self.y) or len(self.y) == 0:
            raise ValueError(
                f"expected as many labels as test rows, and some: got {len(self.x)} and {len(self.y)}"
            )

    def check(self, name: str, ds: DistilledSet) -> None:
        """Refuse class names that show the labels to mean something else."""
        ours, theirs = self.class_names, ds.class_names
        if ours and theirs and ours != theirs and not _are_numbers(ours) and not _are_numbers(theirs):
            raise ValueError(
                f"{name} was made for classes {', '.join(theirs[:4])}, ..., the test data have"
                f" {', '.join(ours[:4])}, ...: these are other data"
            )

    def labels(self, targets: Any, y: Any = None) -> Any:
        """Labels as the set has them: names, where it was made from names."""
        y = self.y if y is None else y
        if self.class_names and targets.is_classes and isinstance(targets.classes[0], str):
            return np.asarray(self.class_names)[np.asarray(y)]
        return y


def named_sets(sets: Any) -> list[tuple[str, list[DistilledSet]]]:
    """Sets under distinct names; paths are loaded, and a mapping may have several under one name."""
    if isinstance(sets, (DistilledSet, str, os.PathLike)):
        sets = [sets]
    if not isinstance(sets, Iterable):
        raise ValueError(
            f"`sets` must be a DistilledSet, a path, or several of them, got {type(sets).__name__}"
        )
    items = list(sets.items()) if isinstance(sets, Mapping) else [(None, item) for item in sets]
    if not items:
        raise ValueError("`sets` is empty: there is nothing to evaluate")
    named: dict[str, list[DistilledSet]] = {}
    for key, item in items:
        several = item if key is not None and isinstance(item, (list, tuple)) else [item]
        if not several:
            raise ValueError(f"there is no set under the name {key!r}")
        loaded = [_load(one) for one in several]
        name = loaded[0][0] if key is None else str(key)
        named[unused(name, named)] = [ds for _, ds in loaded]
    return list(named.items())


def unused(name: str, taken: Iterable[str]) -> str:
    """`name`, with a number where it is taken."""
    unique, number = name, 1
    while unique in taken:
        number += 1
        unique = f"{name} ({number})"
    return unique


def _load(item: Any) -> tuple[str, DistilledSet]:
    """A set and the name it goes by if it is given none."""
    if isinstance(item, (str, os.PathLike)):
        return os.fspath(item), DistilledSet.load(item)
    if isinstance(item, DistilledSet):
        return f"{item.encoder.name}-{len(item)}", item
    raise ValueError(f"expected a DistilledSet or a path among `sets`, got {type(item).__name__}")


def _are_numbers(names: tuple[str, ...]) -> bool:
    return all(name.isdecimal() for name in names)
