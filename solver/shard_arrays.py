"""Shards of arrays: in memory, mapped from files, or in NumPy archives."""

import contextlib
import dataclasses
import errno
import hashlib
import mmap
import os
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .shard import Look, Shard, check_there, file_fingerprint
from .source import ArraySource, Batch, as_array, check_weights, to_tensor

_INPUTS = ("x_train", "x", "X")
_TARGETS = ("y_train", "y")


@dataclasses.dataclass(frozen=True)
class MappedArray:
    """An array in a file, which each process maps for itself: a whole ``.npy`` file, or a piece of any file.

    Attributes
    ----------
    path : str
    offset : int or None
        Of the first value, in bytes; None for a ``.npy`` file, which says itself what it holds.
    dtype : str
    shape : tuple of int
    order : {"C", "F"}
        Whether rows or columns lie in a row.
    """

    path: str
    offset: int | None = None
    dtype: str = ""
    shape: tuple[int, ...] = ()
    order: Literal["C", "F"] = "C"

    @classmethod
    def of(cls, array: np.memmap) -> "MappedArray | None":
        """Where the values of a memory map lie; None if they do not lie in a row, or are changed in memory only."""
        root: Any = array
        while isinstance(root, np.ndarray) and root.base is not None:
            root = root.base
        if not isinstance(root, mmap.mmap) or not array.filename or array.mode == "c":
            return None
        if not array.flags.forc or not array.size:
            return None
        begin = np.frombuffer(root, dtype=np.uint8).__array_interface__["data"][0]
        start = array.offset - array.offset % mmap.ALLOCATIONGRANULARITY  # where np.memmap begins its map
        offset = start + array.__array_interface__["data"][0] - begin
        order = "C" if array.flags.c_contiguous else "F"
        return cls(os.path.abspath(array.filename), offset, array.dtype.str, array.shape, order)

    def open(self) -> np.ndarray:
        """Map it.

        Raises
        ------
        FileNotFoundError, ValueError
            If there is no such file here; if it is shorter than it should be, or not of NumPy's format.
        """
        check_there(self.path)
        with _damage_named(f"{self.path} cannot be mapped"):
            if self.offset is None:
                return np.load(self.path, mmap_mode="r", allow_pickle=False)
            return np.memmap(self.path, np.dtype(self.dtype), "r", self.offset, self.shape, self.order)

    def fingerprint(self) -> list[Any]:
        return [*file_fingerprint(self.path), self.offset, self.dtype, list(self.shape), self.order]


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayShard(Shard):
    """Arrays, each in memory or mapped; `path` is that of ``.npy`` files, which are left out as a whole."""

    x: np.ndarray | Tensor | MappedArray
    y: np.ndarray | Tensor | MappedArray
    weight: np.ndarray | None = None

    @classmethod
    def of(cls, X: Any, y: Any, weight: Any = None, name: str = "") -> "ArrayShard":
        """Arrays of the caller; those that are memory maps travel as the names of their files.

        Raises
        ------
        ValueError
            If they do not pair up or are not arrays of numbers.
        """
        source = ArraySource(X, y, weight)
        x, y = _travelling(as_array(X, "X")), _travelling(source.y)
        name = name or (Path(x.path).name if isinstance(x, MappedArray) else "X")
        return cls(name, "", x, y, None if source.weight is None else source.weight.numpy())

    @classmethod
    def of_file(cls, path: str, y: Any, weight: Any = None) -> "ArrayShard":
        """A ``.npy`` file with its targets, an array or the path of another; nothing is read yet."""
        targets = MappedArray(y) if isinstance(y, str) else _travelling(as_array(y, "y"))
        weight = None if weight is None else check_weights(weight, len(weight)).numpy()
        return cls(Path(path).name, path, MappedArray(path), targets, weight)

    @property
    def in_memory(self) -> bool:
        """Whether the inputs are an array in memory."""
        return not isinstance(self.x, MappedArray)

    @property
    def whole(self) -> bool:
        """For files."""
        return bool(self.path)

    def look(self) -> Look:
        source = self._source()
        assert source.n_rows is not None
        if self.weight is not None and len(self.weight) != source.n_rows:
            raise ValueError(f"there are {source.n_rows} rows but {len(self.weight)} weights")
        return Look(source.n_rows, source.input_shape, source.dtype)

    def batches(self, rows: int, start: int, stop: int) -> Iterator[Batch]:
        for batch in self._source().batches(rows, start, stop):
            if self.weight is None:
                yield batch
            else:
                weight = self.weight[batch.start : batch.start + len(batch)]
                yield dataclasses.replace(batch, weight=check_weights(weight, len(batch), some=False))

    def labels(self, start: int, stop: int) -> Any:
        return _opened(self.y)[start:stop]

    def rows(self, at: np.ndarray, start: int, stop: int) -> Tensor:
        return to_tensor(self._source().X[at])

    def fingerprint(self) -> list[Any]:
        return [self.name, *(_fingerprint(array) for array in (self.x, self.y, self.weight))]

    def _source(self) -> ArraySource:
        return ArraySource(_opened(self.x), _opened(self.y))


@dataclasses.dataclass(frozen=True, eq=False)
class ArchiveShard(Shard):
    """An ``.npz`` file with ``x`` and ``y`` (or ``x_train`` and ``y_train``), which is read as a whole."""

    def look(self) -> Look:
        source = self._source()
        assert source.n_rows is not None
        return Look(source.n_rows, source.input_shape, source.dtype, (0, source.n_rows))

    def batches(self, rows: int, start: int, stop: int) -> Iterator[Batch]:
        return self._source().batches(rows, start, stop)

    def labels(self, start: int, stop: int) -> Any:
        return self._read(_TARGETS)[0][start:stop]

    def fingerprint(self) -> list[Any]:
        return file_fingerprint(self.path)

    def _source(self) -> ArraySource:
        return ArraySource(*self._read(_INPUTS, _TARGETS))

    def _read(self, *wanted: tuple[str, ...]) -> list[np.ndarray]:
        """One array for each group of names, the first of the group that is there."""
        check_there(self.path)
        # Opened here, as np.load leaves a damaged file open.
        with _damage_named(f"{self.path} is not a readable .npz file"), open(self.path, "rb") as file:
            if not zipfile.is_zipfile(file):
                raise zipfile.BadZipFile("no directory at its end")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                found = [next((name for name in names if name in archive), None) for names in wanted]
                if None in found:
                    raise ValueError(
                        f"it holds {', '.join(archive.files) or 'nothing'}, needed are x and y (or x_train, y_train)"
                    )
                return [archive[name] for name in found if name]


@contextlib.contextmanager
def _damage_named(what: str) -> Iterator[None]:
    """Raise what NumPy raises for damaged files as a ValueError; errors of the machine stay what they are."""
    try:
        yield
    except (
        ValueError,
        EOFError,
        NotImplementedError,
        zipfile.BadZipFile,
        zlib.error,
        tokenize.TokenError,
        OSError,
    ) as error:
        # A wrong offset in the directory of an archive is an invalid seek.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise ValueError(f"{what} ({error}): it may be truncated") from error


def _travelling(array: Any) -> np.ndarray | Tensor | MappedArray:
    """A form that travels well: the file of a memory map, and NumPy arrays, which need no copies in shared memory."""
    if isinstance(array, np.memmap):
        mapped = MappedArray.of(array)
        return np.asarray(array) if mapped is None else mapped
    if isinstance(array, Tensor) and array.dtype != torch.bfloat16:
        return array.numpy()
    return array


def _opened(array: np.ndarray | Tensor | MappedArray) -> np.ndarray | Tensor:
    return array.open() if isinstance(array, MappedArray) else array


def _fingerprint(array: np.ndarray | Tensor | MappedArray | None) -> Any:
    if array is None:
        return None
    if isinstance(array, MappedArray):
        return array.fingerprint()
    values = (
        array if isinstance(array, np.ndarray) else array.float().numpy()
    )  # only bfloat16 is a tensor here
    total = hashlib.sha256()
    for start in range(0, len(values), 4096):  # strided arrays are copied a piece at a time
        total.update(np.ascontiguousarray(values[start : start + 4096]).tobytes())
    return [str(array.dtype), list(array.shape), total.hexdigest()]
