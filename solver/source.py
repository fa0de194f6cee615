"""Rows from anywhere: arrays, memory maps, iterators and DataLoaders as one stream of equal batches.

Whatever the pieces that come in, the batches that go out have the same number of rows, so that a result does
not depend on how the data were cut; each carries the index of its first row, which keys the random choices
(held-out rows, samples), so they do not depend on it either.
"""

import abc
import dataclasses
import math
import mmap
import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..kernels import uniform
from ._check import check_finite

# Bytes of float64 features in one batch: large enough for matrix products at full rate, small beside p x p.
BATCH_BYTES = 64 * 2**20


def batch_rows(n_features: int, n_inputs: int, batch_bytes: int = BATCH_BYTES) -> int:
    """Rows in a batch of `batch_bytes` of float64 features (or inputs, where those are longer)."""
    return max(64, batch_bytes // (8 * max(n_features, n_inputs, 1)))


@dataclasses.dataclass(frozen=True)
class Batch:
    """Consecutive rows: raw inputs (b, *shape), labels or values (b, ...), weights (b,) or None."""

    start: int
    X: Tensor
    y: Any
    weight: Tensor | None

    def __len__(self) -> int:
        return len(self.X)


class ArraySource:
    """Rows of arrays (NumPy, memory-mapped or torch) that lie in memory or on disk; (n, h, w) is (n, 1, h, w).

    Parameters
    ----------
    X : array, shape (n, *input_shape)
    y : array, shape (n,) or (n, k)
    weight : array, shape (n,), optional
    """

    def __init__(self, X: Any, y: Any, weight: Any = None) -> None:
        self.X, self.y = _with_channels(as_array(X, "X")), as_array(y, "y")
        if self.X.ndim < 2:
            raise ValueError(f"`X` must have shape (n, ...), got {tuple(self.X.shape)}: reshape to (n, 1)?")
        n = len(self.X)
        if n == 0:
            raise ValueError("`X` is empty: there are no rows to distil")
        if 0 in self.X.shape:
            raise ValueError(f"`X` has no values: its shape is {tuple(self.X.shape)}")
        if len(self.y) != n:
            raise ValueError(f"`X` has {n} rows but `y` has {len(self.y)}: they must pair up")
        self.weight = None if weight is None else check_weights(weight, n)
        self.n_rows: int | None = n
        self.first_y = self.y
        self.input_shape = tuple(int(size) for size in self.X.shape[1:])
        self.dtype = to_tensor(self.X[:1]).dtype

    def batches(self, rows: int, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """Batches of `rows` rows in order, of all rows or from `start` to `stop`; may be called again."""
        end = len(self.X) if stop is None else stop
        for first in range(start, end, rows):
            last = min(first + rows, end)
            piece = self.X[first:last]
            X = to_tensor(piece)
            check_finite(X, "X", first)
            weight = None if self.weight is None else self.weight[first:last]
            yield Batch(first, X, self.y[first:last], weight)
            del X
            _forget_pages(piece)

    def sample(self, seed: int, use: str, size: int) -> Tensor:
        """A uniform sample of rows without replacement: those of the smallest `row_keys`, in their order."""
        keys = row_keys(seed, use, 0, len(self.X))
        chosen = keys.topk(min(size, len(keys)), largest=False, sorted=True).indices
        return to_tensor(self.X[chosen.numpy()] if isinstance(self.X, np.ndarray) else self.X[chosen])


class StreamSource:
    """Rows of an iterable of ``(X, y)`` or ``(X, y, weight)`` pieces, such as a DataLoader or a generator.

    A generator can be read once; what needs more passes (fitting a transform, leave-one-out) says so.

    Parameters
    ----------
    pieces : iterable
    first_row : int, default 0
        Number of the first row, where the stream is a part of something.
    """

    def __init__(self, pieces: Iterable[Any], first_row: int = 0) -> None:
        self._pieces, self._first_row = pieces, first_row
        self._once = iter(pieces) is pieces
        self._iterator: Iterator[Any] | None = iter(pieces)
        try:
            self._first: list[tuple] = [self._check(next(self._iterator))]
        except StopIteration:
            raise ValueError("the stream is empty: there are no rows to distil") from None
        X, self.first_y, _ = self._first[0]
        self.input_shape = tuple(int(size) for size in X.shape[1:])
        self.dtype = X.dtype
        self.n_rows: int | None = None

    def batches(self, rows: int) -> Iterator[Batch]:
        """Batches of `rows` rows in order, whatever the sizes of the pieces."""
        held: list[tuple[Tensor, Any, Tensor | None]] = []
        start, waiting = self._first_row, 0
        for piece in self._read():
            check_finite(piece[0], "X", start + waiting)
            held.append(piece)
            waiting += len(piece[0])
            while waiting >= rows:
                batch, held = _cut(held, rows, start)
                start, waiting = start + rows, waiting - rows
                yield batch
        if waiting:
            yield _cut(held, waiting, start)[0]

    def sample(self, seed: int, use: str, size: int) -> Tensor:
        """The sample that the same rows would give in an array; a pass of its own."""
        reservoir = Reservoir(seed, use, size)
        for batch in self.batches(batch_rows(0, math.prod(self.input_shape))):
            reservoir.offer(batch)
        rows = reservoir.rows()
        assert rows is not None
        return rows

    def _read(self) -> Iterator[tuple[Tensor, Any, Tensor | None]]:
        if self._iterator is None:
            if self._once:
                raise ValueError(
                    "this stream can be read once, and another pass is needed: pass arrays or a DataLoader, or"
                    " give a fitted transform, a feature map that is already made and ridge='holdout', 'gcv' or"
                    " a number"
                )
            self._iterator, self._first = iter(self._pieces), []
        iterator, first = self._iterator, self._first
        self._iterator, self._first = None, []
        yield from first
        for item in iterator:
            piece = self._check(item)
            if tuple(piece[0].shape[1:]) != self.input_shape:
                raise ValueError(
                    f"rows of shape {tuple(piece[0].shape[1:])} after rows of {self.input_shape}"
                )
            yield piece

    @staticmethod
    def _check(item: Any) -> tuple[Tensor, Any, Tensor | None]:
        if not isinstance(item, (tuple, list)) or len(item) not in (2, 3):
            raise ValueError(f"a stream must give (X, y) or (X, y, weight) pieces, got {type(item).__name__}")
        X, y = _with_channels(to_tensor(as_array(item[0], "X"))), as_array(item[1], "y")
        if X.ndim < 2 or len(X) != len(y):
            raise ValueError(f"a piece has X of shape {tuple(X.shape)} and y of shape {tuple(y.shape)}")
        return X, y, check_weights(item[2], len(X)) if len(item) == 3 else None


class PreparedSource(abc.ABC):
    """Rows that are a source already. `as_source` takes it as it is.

    Attributes
    ----------
    n_rows : int or None
    input_shape : tuple of int
    dtype : torch.dtype
        Of the raw rows.
    first_y : array
        Labels of which every class is one, or some rows of values.
    """

    n_rows: int | None
    input_shape: tuple[int, ...]
    dtype: torch.dtype
    first_y: Any

    @abc.abstractmethod
    def batches(self, rows: int) -> Iterator[Batch]:
        """Batches of at most `rows` rows in order; may be called again."""

    @abc.abstractmethod
    def sample(self, seed: int, use: str, size: int) -> Tensor:
        """The sample that the same rows would give in an array."""


Source = ArraySource | StreamSource | PreparedSource


def as_source(X: Any, y: Any = None, weight: Any = None) -> Source:
    """Wrap arrays (with `y`) or a stream of pieces (without)."""
    if isinstance(X, PreparedSource):
        if y is not None or weight is not None:
            raise ValueError("these rows have their own targets and weights: give no others")
        return X
    if y is not None:
        return ArraySource(X, y, weight)
    if weight is not None:
        raise ValueError("weights of a stream are the third item of its pieces")
    if isinstance(X, (str, os.PathLike)):
        raise ValueError(
            f"`X` is the path {os.fspath(X)!r}: load the file, or give its shards (Shards.of) to collect_statistics"
        )
    if hasattr(X, "__array__") or isinstance(X, Tensor) or not isinstance(X, Iterable):
        raise ValueError("`y` is missing: pass labels or values, one for each row of `X`")
    return StreamSource(X)


def row_keys(seed: int, use: str, start: int, count: int) -> Tensor:
    """One uniform number for each row, by its index: the basis of every random choice of rows."""
    return uniform(seed, f"rows.{use}", count, start)


class Reservoir:
    """A uniform sample of rows without replacement, by group, taken in passing: the smallest `row_keys`.

    Parameters
    ----------
    seed, use : int, str
        Key of the choice.
    size : int
        Rows kept of each group.
    n_groups : int
    """

    def __init__(self, seed: int, use: str, size: int, n_groups: int = 1) -> None:
        self._seed, self._use, self._size = seed, use, size
        self._keys: list[Tensor] = [torch.empty(0, dtype=torch.float64)] * n_groups
        self._rows: list[Tensor | None] = [None] * n_groups

    def offer(self, batch: Batch, groups: Tensor | None = None) -> None:
        """Consider the rows of a batch; `groups` (b,) int64 gives the group of each."""
        keys = row_keys(self._seed, self._use, batch.start, len(batch))
        for group in range(len(self._rows)):
            member = torch.arange(len(batch)) if groups is None else (groups == group).nonzero().flatten()
            if len(self._keys[group]) == self._size:
                member = member[keys[member] < self._keys[group][-1]]
            if not len(member):
                continue
            merged, order = torch.cat([self._keys[group], keys[member]]).sort()
            rows = (
                batch.X[member] if (old := self._rows[group]) is None else torch.cat([old, batch.X[member]])
            )
            self._keys[group], self._rows[group] = merged[: self._size], rows[order[: self._size]].clone()

    def rows(self, group: int = 0) -> Tensor | None:
        """The sample of one group, ordered by key; None if the group never appeared."""
        return self._rows[group]


def to_tensor(values: Any) -> Tensor:
    """A CPU tensor of an array, sharing memory where NumPy allows it."""
    if isinstance(values, Tensor):
        return values.detach().cpu()
    array = np.asarray(values)
    if array.dtype.kind not in "biuf" or array.dtype == np.longdouble:
        raise ValueError(f"expected an array of numbers, got dtype {array.dtype}")
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()  # torch refuses negative strides and warns of read-only memory
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    return torch.from_numpy(array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("=")))


def check_weights(weight: Any, n: int, *, some: bool = True) -> Tensor:
    """Sample weights as float64 (n,), finite, not negative and (where `some` are needed) not all zero."""
    values = to_tensor(as_array(weight, "sample_weight")).double()
    if values.shape != (n,):
        raise ValueError(f"`sample_weight` must have shape ({n},), got {tuple(values.shape)}")
    check_finite(values, "sample_weight")
    if (values < 0).any() or (some and not (values > 0).any()):
        raise ValueError("`sample_weight` must not be negative and must not be zero throughout")
    return values


def as_array(values: Any, name: str) -> Any:
    """An array of numbers or strings on the CPU (NumPy or torch); objects and complex numbers are refused."""
    if isinstance(values, Tensor):
        if values.is_complex():
            raise ValueError(f"Complex data not supported: `{name}` is {values.dtype}")
        return values.detach().cpu()
    if type(values).__module__.partition(".")[0] == "cupy":
        values = values.get()
    if not hasattr(values, "__array__") and not isinstance(values, (list, tuple)):
        raise ValueError(f"`{name}` must be an array, got {type(values).__name__}")
    try:
        array = values if isinstance(values, np.ndarray) else np.asarray(values)
    except ValueError as error:
        raise ValueError(f"`{name}` is not a rectangular array: {error}") from None
    if array.dtype.kind == "O":
        raise ValueError(f"`{name}` is an object array: convert it to numbers (ragged rows or mixed types?)")
    if array.dtype.kind == "c":
        raise ValueError(f"Complex data not supported: `{name}` is {array.dtype}")
    return array


def _with_channels(X: Any) -> Any:
    """(n, h, w) images gain their axis of one channel."""
    return X.reshape(len(X), 1, *X.shape[1:]) if X.ndim == 3 else X


def _cut(held: list[tuple], rows: int, start: int) -> tuple[Batch, list[tuple]]:
    """Take `rows` rows off the front of the held pieces."""
    taken, rest, count = [], [], 0
    for X, y, weight in held:
        room = max(rows - count, 0)
        if room:
            taken.append((X[:room], y[:room], None if weight is None else weight[:room]))
        if room < len(X):
            rest.append((X[room:], y[room:], None if weight is None else weight[room:]))
        count += len(X)
    weights = [weight for _, _, weight in taken if weight is not None]
    if weights and len(weights) != len(taken):
        raise ValueError("some pieces of the stream have weights and some have none")
    X = torch.cat([X for X, _, _ in taken])
    y = np.concatenate([np.asarray(y) for _, y, _ in taken])
    return Batch(start, X, y, torch.cat(weights) if weights else None), rest


def _forget_pages(piece: Any) -> None:
    """Let go of the file pages behind a slice of a memory map, which would else count as resident memory.

    Not for copy-on-write maps, whose changed pages exist nowhere else.
    """
    root = piece
    while isinstance(root, np.ndarray) and root.base is not None:
        root = root.base
    if not isinstance(piece, np.memmap) or piece.mode == "c" or not isinstance(root, mmap.mmap):
        return
    if not hasattr(root, "madvise") or not piece.flags.c_contiguous:
        return
    base = np.frombuffer(root, dtype=np.uint8)
    first = piece.__array_interface__["data"][0] - base.__array_interface__["data"][0]
    first -= first % mmap.PAGESIZE
    root.madvise(mmap.MADV_DONTNEED, first, min(piece.nbytes + mmap.PAGESIZE, len(root) - first))
