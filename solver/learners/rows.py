"""Training rows by index: transformed, with targets, and some held out to choose by.

Learned methods look at rows in any order and more than once, so they need arrays (in memory or mapped from
disk), not streams. Rows that fit `CACHE_BYTES` are kept on the device: transformed once, or, of uint8 images under a
transform of each value by itself, as the bytes they are, which takes a quarter of the memory and gives the same
values. A GPU keeps bytes where it can. A CPU, to which a batch of 5,000 images of 3 x 32 x 32 then costs 30 to 50 ms
more, keeps them only where transformed rows do not fit. What does not fit at all is read and transformed batch by
batch.
"""

import copy
import functools
import hashlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._check import check_count, check_finite, check_non_negative
from ..learner import digits
from ..source import ArraySource, Source, row_keys, to_tensor
from ..targets import Targets
from ..transforms import Transform

# Rows held out to choose by: enough that an accuracy is known to half a percent.
HOLDOUT_ROWS = 5000
CACHE_BYTES = 2**30
_CHUNK_BYTES = 64 * 2**20


class TrainingRows:
    """Rows to learn from, and rows held out.

    Parameters
    ----------
    source : ArraySource
    transform : Transform
    targets : Targets
    seed : int
        Decides which rows are held out.
    holdout : float, default 0.05
        Share of the rows held out, at most `HOLDOUT_ROWS`; 0 for none. The last row of a class is not held out.
    dtype : torch.dtype, default float32
        Of transformed inputs: float32 or float64.
    device : torch.device or str, default "cpu"
        Where batches are handed out.
    cache_bytes : int, default 2**30
        Rows are kept on the device if they take no more than this, transformed or as bytes.

    Attributes
    ----------
    n : int
        Number of training rows; indices below run from 0 to n - 1, in the order of the source.
    n_held_out : int
        Number of rows held out.
    classes : Tensor, shape (n,), int64, or None
        Class of each training row, on the CPU; None for regression.
    chunk : int
        Rows in one piece of `chunks` and `held_out`: 64 MiB in float64.

    Raises
    ------
    ValueError
        If `source` is a stream or weighted, values are not finite, or the rows held out leave no training rows.
    """

    def __init__(
        self,
        source: Source,
        transform: Transform,
        targets: Targets,
        *,
        seed: int,
        holdout: float = 0.05,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        if not isinstance(source, ArraySource):
            raise ValueError(
                "learned methods read rows in any order, which a stream cannot give: pass arrays (memory maps"
                " for what does not fit into memory)"
            )
        if source.weight is not None:
            raise ValueError("learned methods take no sample_weight: leave it out")
        if check_non_negative(holdout, "holdout") >= 1:
            raise ValueError(f"`holdout` must be a share below 1, got {holdout}")
        check_count(cache_bytes, "cache_bytes", 0)
        self.transform, self.targets, self.dtype = transform, targets, dtype
        self.device = torch.device(device)
        self._source = source
        total = len(source.X)
        aside = min(round(holdout * total), HOLDOUT_ROWS)
        order = row_keys(seed, "holdout", 0, total).argsort(stable=True)
        column = targets.indices(source.y) if targets.is_classes else None
        held, train = order[:aside], order[aside:]
        if column is not None:
            # The last of a class's rows to be held out stays, so that every class can be learned.
            kept = [int((column[held] == c).nonzero()[-1]) for c in _absent(column, train)]
            train = torch.cat([train, held[kept]])
            held = held[[index for index in range(len(held)) if index not in kept]]
        train, held = train.sort().values, held.sort().values
        self.n, self.n_held_out = len(train), len(held)
        self.classes = None if column is None else column[train]
        if self.n == 0:
            raise ValueError(
                f"holding out {aside} of {total} rows leaves no training rows: give more rows, or holdout=0 to"
                " choose on the training rows"
            )
        # A target row is a row of the table; classes have one each, values are their own table.
        values = targets.encode(source.y if column is None else np.asarray(targets.classes))
        check_finite(values, "y")
        self._table = values.to(self.device)
        self._entry = (torch.arange(total) if column is None else column).to(self.device)
        self._train = train.to(self.device)
        # Where no rows are held out, a random share of all rows is chosen on: the first ones may be of one class.
        self._judges = (held if len(held) else order[:HOLDOUT_ROWS].sort().values).to(self.device)
        width = math.prod(source.input_shape)
        self.chunk = max(64, _CHUNK_BYTES // (8 * width))
        self._shares: list[list[float]] = []
        self._cache: Tensor | None = None
        as_bytes = source.dtype == torch.uint8 and transform.elementwise
        for kept in _preferred(dtype, as_bytes, self.device):
            if total * width * kept.itemsize <= cache_bytes:
                cache = torch.empty(total, *source.input_shape, dtype=kept, device=self.device)
                for rows in torch.arange(total).split(self.chunk):
                    piece = self._raw(rows) if kept == torch.uint8 else self._read(rows)
                    cache[int(rows[0]) : int(rows[-1]) + 1] = piece
                self._cache = cache
                break

    def inputs(self, index: Tensor) -> Tensor:
        """Transformed inputs (b, *input_shape) of training rows, in `dtype` on `device`."""
        return self._inputs(self._train[index.to(self.device, non_blocking=True)])

    def outputs(self, index: Tensor) -> Tensor:
        """Target rows (b, k), float64, of training rows, on `device`."""
        return self._outputs(self._train[index.to(self.device, non_blocking=True)])

    def raw(self, index: Tensor) -> Tensor:
        """Raw inputs (b, *input_shape) of training rows, in the dtype of the source, on the CPU."""
        return self._raw(self._train[index.to(self.device)].cpu())

    def share(self, fraction: float, seed: int) -> "TrainingRows":
        """Some of the training rows of every class, for learning from few; nothing is copied.

        Parameters
        ----------
        fraction : float
            In (0, 1]: of each class so many of its training rows, rounded, and at least one.
        seed : int
            Decides which. A larger fraction of the same seed holds the rows of a smaller one.

        Returns
        -------
        TrainingRows
            Numbered anew, in the order of the source. The rows held out are the same; where none were, those to
            choose by are rows of the share.

        Raises
        ------
        ValueError
            If `fraction` is out of range.
        """
        if not 0 < check_non_negative(fraction, "fraction") <= 1:
            raise ValueError(f"`fraction` must be a share above 0 and up to 1, got {fraction}")
        if fraction == 1:
            return self
        keys = row_keys(seed, "share", 0, len(self._source.X))[self._train.cpu()]
        groups = torch.zeros(self.n, dtype=torch.int64) if self.classes is None else self.classes
        kept = []
        for group in groups.unique():
            members = (groups == group).nonzero()[:, 0]
            order = keys[members].argsort(stable=True)
            kept.append(members[order[: max(1, round(fraction * len(members)))]])
        index = torch.cat(kept).sort().values
        part = copy.copy(self)
        for name in ("identity", "data_range"):
            part.__dict__.pop(name, None)
        part.n, part.classes = len(index), None if self.classes is None else self.classes[index]
        part._train = self._train[index.to(self.device)]
        part._shares = [*self._shares, [float(fraction), int(seed)]]
        if not self.n_held_out:
            first = keys[index].argsort(stable=True)[:HOLDOUT_ROWS].sort().values
            part._judges = part._train[first.to(self.device)]
        return part

    def chunks(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """All training rows in order, in pieces of bounded memory: index, inputs, target rows."""
        for index in torch.arange(self.n, device=self.device).split(self.chunk):
            yield index, self.inputs(index), self.outputs(index)

    def held_out(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The rows to choose by, in pieces: inputs and target rows.

        Where none were held out, training rows: all, or a random choice of `HOLDOUT_ROWS`.
        """
        for rows in self._judges.split(self.chunk):
            yield self._inputs(rows), self._outputs(rows)

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """Plain JSON that tells these rows from others, for `Learner.identity`."""
        return {
            "rows": [self.n, self.n_held_out],
            "dtype": str(self.dtype),
            "targets": self.targets.parameters(),
            "transform": {
                "name": self.transform.name,
                **self.transform.parameters(),
                **{name: _outline(value) for name, value in self.transform.tensors().items()},
            },
            "digest": self.digest,
            **({"shares": self._shares} if self._shares else {}),
        }

    @functools.cached_property
    def data_range(self) -> tuple[float, float]:
        """Smallest and largest raw value of the training rows; of uint8 images 0 and 255."""
        edges = [math.inf, -math.inf]
        for index in torch.arange(self.n, device=self.device).split(self.chunk):
            raw = self.raw(index)
            low, high = (0, 255) if raw.dtype == torch.uint8 else map(float, raw.aminmax())
            edges = [min(edges[0], low), max(edges[1], high)]
            if raw.dtype == torch.uint8:
                break
        return edges[0], edges[1]

    @functools.cached_property
    def digest(self) -> str:
        """Sha256 of the raw rows and their targets, held out or not: what a checkpoint knows its data by."""
        total = hashlib.sha256()
        for batch in self._source.batches(self.chunk):
            total.update(f"{batch.X.dtype}{tuple(batch.X.shape[1:])}".encode() if batch.start == 0 else b"")
            total.update(batch.X.contiguous().view(torch.uint8).numpy().data)
        for values in (self._table, self._entry):
            total.update(values.cpu().contiguous().view(torch.uint8).numpy().data)
        return total.hexdigest()

    def _inputs(self, rows: Tensor) -> Tensor:
        if self._cache is None:
            return self._read(rows.cpu())
        kept = self._cache[rows]
        return kept if kept.dtype == self.dtype else self.transform.forward(kept, self.dtype)

    def _outputs(self, rows: Tensor) -> Tensor:
        return self._table[self._entry[rows]]

    def _read(self, rows: Tensor) -> Tensor:
        raw = self._raw(rows)
        if raw.is_floating_point() and not torch.isfinite(raw.sum(dtype=torch.float64)):
            for position, row in enumerate(rows.tolist()):
                check_finite(raw[position : position + 1], "X", row)
        return self.transform.forward(raw.to(self.device), self.dtype)

    def _raw(self, rows: Tensor) -> Tensor:
        X = self._source.X
        return to_tensor(X[rows] if isinstance(X, Tensor) else X[rows.numpy()])


def _preferred(dtype: torch.dtype, as_bytes: bool, device: torch.device) -> list[torch.dtype]:
    """What rows may be kept as, the first that fits: of `dtype` they are transformed, of uint8 raw."""
    if not as_bytes:
        return [dtype]
    return [dtype, torch.uint8] if device.type == "cpu" else [torch.uint8, dtype]


def _outline(values: Tensor) -> list[float]:
    """Two numbers that tell a tensor from others, also from one of the same values in another order."""
    flat = values.double().reshape(-1)
    return digits([float(flat.norm()), float((flat * torch.arange(1, len(flat) + 1).to(flat)).norm())])


def _absent(column: Tensor, rows: Tensor) -> list[int]:
    """Classes of `column` that no row of `rows` has."""
    return sorted(set(column.unique().tolist()) - set(column[rows].unique().tolist()))
