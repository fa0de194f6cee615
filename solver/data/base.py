"""The data set that every source becomes: raw arrays, checked once, with names and checksums."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .images import as_rows


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """A labelled data set in memory, raw: no scaling, no normalisation.

    Attributes
    ----------
    x_train : ndarray, shape (n, c, h, w) or (n, d)
        Images are always channels first. uint8 or floating point, as the source has them.
    y_train : ndarray of int64, shape (n,)
        Class numbers, which index `class_names`. Where the source holds floating point targets they are
        kept as they are, shape (n,) or (n, k).
    x_test, y_test : ndarray or None
        The test split; None where the source has none (`load_data(..., test=0.2)` then makes one).
    class_names : tuple of str
        One name a class; empty for floating point targets.
    name : str
        Name of the source, for tables and provenance.
    checksums : dict of str to str
        SHA-256 of every file read, by file name (see `load_data` for sources that are not files).
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray | None = None
    y_test: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    name: str = ""
    checksums: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        test = "no test split" if self.x_test is None else f"{len(self.x_test)} test"
        shape = "x".join(str(size) for size in self.x_train.shape[1:])
        if self.class_names:
            targets = f"{len(self.class_names)} classes"
        else:
            targets = f"float targets of shape {self.y_train.shape[1:]}"
        rows = f"{len(self.x_train)} training rows, {test}"
        return f"Data({self.name!r}: {rows}, {shape} {self.x_train.dtype}, {targets})"


def make_data(
    name: str,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray] | None,
    *,
    class_names: Sequence[str] | None = None,
    checksums: dict[str, str] | None = None,
) -> Data:
    """Check the arrays of a source and bring them to the layout of `Data`.

    Raises
    ------
    ValueError
        If a split is empty, rows and labels do not match, train and test disagree in shape or classes,
        labels are not class numbers, or an input is not finite.
    """
    arrays = {"train": train} if test is None else {"train": train, "test": test}
    x = {split: as_rows(pair[0], f"x_{split}") for split, pair in arrays.items()}
    y = {split: _targets(pair[1], f"y_{split}") for split, pair in arrays.items()}
    for split in arrays:
        if len(x[split]) != len(y[split]):
            raise ValueError(
                f"`x_{split}` has {len(x[split])} rows but `y_{split}` has {len(y[split])}: one label a row"
            )
    names = _class_names(y, class_names)
    if test is not None:
        if x["train"].shape[1:] != x["test"].shape[1:]:
            raise ValueError(
                f"training rows have shape {x['train'].shape[1:]} but test rows {x['test'].shape[1:]}:"
                " bring them to one shape"
            )
        if (x["train"].dtype.kind == "f") != (x["test"].dtype.kind == "f"):
            raise ValueError(
                f"training rows are {x['train'].dtype} but test rows {x['test'].dtype}: they would be on"
                " different scales; store both alike"
            )
    return Data(x["train"], y["train"], x.get("test"), y.get("test"), names, name, dict(checksums or {}))


def sha256(*arrays: np.ndarray) -> str:
    """Return the SHA-256 of the bytes of arrays, in C order and little endian, so equal on every machine."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
    return digest.hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _targets(y: np.ndarray, name: str) -> np.ndarray:
    """Labels as int64 (n,), or floating point targets as they are; strings wait for `_class_names`."""
    y = np.asarray(y)
    if y.dtype.kind == "f":
        if y.ndim not in (1, 2):
            raise ValueError(f"`{name}` must have shape (n,) or (n, k), got {y.shape}")
        if not np.isfinite(y).all():
            raise ValueError(f"`{name}` holds NaN or infinity: remove those rows first")
        return y
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise ValueError(
            f"`{name}` must hold one class number a row, shape (n,), got {y.shape}: take the argmax of"
            " one-hot labels, or store soft labels as floats"
        )
    if y.dtype.kind == "U":
        return y
    if y.dtype.kind not in "bui":
        raise ValueError(f"`{name}` must hold class numbers, class names or floats, got dtype {y.dtype}")
    return y.astype(np.int64)


def _class_names(y: dict[str, np.ndarray], names: Sequence[str] | None) -> tuple[str, ...]:
    """Check labels of all splits against each other; turns string labels of `y` into numbers in place."""
    kinds = {split: labels.dtype.kind for split, labels in y.items()}
    if len(set(kinds.values())) > 1:
        dtypes = " and ".join(str(labels.dtype) for labels in y.values())
        raise ValueError(f"train and test labels must be of one kind, got {dtypes}")
    if kinds["train"] == "f":
        if len({labels.shape[1:] for labels in y.values()}) > 1:
            raise ValueError(
                f"training targets have shape {y['train'].shape[1:]} but test targets {y['test'].shape[1:]}"
            )
        return ()
    known, numbers = np.unique(y["train"], return_inverse=True)
    strange = np.setdiff1d(y["test"], known) if "test" in y else known[:0]
    if len(strange):
        shown = ", ".join(str(label) for label in strange[:5])
        raise ValueError(
            f"{len(strange)} label(s) of the test split never occur in training: {shown}. Remove those rows,"
            " or make train and test use the same labels"
        )
    if kinds["train"] == "U":
        y["train"] = numbers.astype(np.int64)
        if "test" in y:
            y["test"] = np.searchsorted(known, y["test"]).astype(np.int64)
        return tuple(str(label) for label in known)
    if known[0] < 0:
        raise ValueError(f"labels must not be negative, found {known[0]}: number the classes from 0")
    if names is None:
        if known[-1] >= len(y["train"]):
            raise ValueError(
                f"labels must number the classes from 0, but the largest of {len(known)} labels is"
                f" {known[-1]}: renumber them with numpy.unique(y, return_inverse=True)"
            )
        return tuple(str(label) for label in range(int(known[-1]) + 1))
    if known[-1] >= len(names):
        raise ValueError(f"label {known[-1]} has no name: there are only {len(names)} class names")
    return tuple(str(label) for label in names)
