"""Rows in shards: arrays, memory maps, archives, parquet files and Ray Data, read piecewise wherever they are needed.

Rows are cut into tiles by their numbers alone, at borders that depend on the data and on one constant and never on how
many workers there are. Whatever is summed by tiles in their order is then the same bits on one machine and on many.
"""

import collections
import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from ._check import check_count
from .data import Data
from .data.images import check_size
from .shard import Look, Shard
from .shard_arrays import ArchiveShard, ArrayShard
from .shard_tables import BlockShard, ParquetShard

# Rows of a task: its sums travel once, 8 p² bytes, for p² multiplications a row. On one core those take a few seconds
# at p = 2048, a hundred times as long as the journey.
TILE_ROWS = 32768


@dataclasses.dataclass(frozen=True)
class Tile:
    """Consecutive rows of a shard, the unit of work.

    Attributes
    ----------
    shard : int
        Which shard.
    start, stop : int
        Rows, counted from the first of the shard.
    first : int
        Number of its first row among the rows of all shards that are used.
    name : str
    unit : tuple of int
        What is left out if this tile is bad: (shard, -1) for the shard, (shard, start) for the tile alone.
    """

    shard: int
    start: int
    stop: int
    first: int
    name: str
    unit: tuple[int, int]


@dataclasses.dataclass(frozen=True, eq=False)
class Shards:
    """An ordered collection of sources of rows. Make it with `of`; nothing is read before it is used.

    Attributes
    ----------
    shards : tuple of Shard
    tile_rows : int
        Rows of a task, nearly; sums are equal bit for bit where this is the same.
    share : tuple of int, int and bool
        Which part of them to sum: see `part`.
    """

    shards: tuple[Shard, ...]
    tile_rows: int = TILE_ROWS
    share: tuple[int, int, bool] = (0, 1, False)

    @classmethod
    def of(
        cls,
        X: Any,
        y: Any = None,
        *,
        sample_weight: Any = None,
        columns: str | Sequence[str] = (),
        label: str | None = None,
        size: tuple[int, int] | None = None,
        channels: int | None = None,
        tile_rows: int = TILE_ROWS,
    ) -> Self:
        """Shards of what is given.

        Parameters
        ----------
        X : array, Data, path, list of paths, list of (X, y) or ray.data.Dataset
            Arrays (NumPy or torch) with `y`, which go once to each machine; memory maps among them (`np.memmap`, or
            `np.load` with ``mmap_mode``) go as the name of their file. Paths: ``.npy`` (with `y`), ``.npz`` (x and y,
            or x_train and y_train) and ``.parquet`` (columns of numbers, or images in the layout of Hugging Face).
            Pairs: each an array or a ``.npy`` path with its targets. Blocks of a Ray Data set stay where they are.
            Files must have the same name on every machine that computes.
        y : array, path or list of them, optional
            Targets: an array for an array, one for each path of ``.npy`` files.
        sample_weight : array, shape (n,), optional
            For one array or ``.npy`` file.
        columns : str or sequence of str, optional
            Of tables: columns of X; by default the column of vectors or of images, or all columns of numbers but the
            targets and the index of pandas. They must be the same, in the same order, in all files.
        label : str, optional
            Of tables: column of y; by default the first that is named label, fine_label, labels, y or target.
        size : (int, int), optional
            Resize images to (height, width).
        channels : {1, 3}, optional
            Of images; by default those of the first image of a file. 3 makes grey images equal channels.
        tile_rows : int, default 32768
            Rows of a task, nearly: arrays are cut into the fewest equal pieces that have no more, parquet files
            between row groups into the fewest that have as many. Archives and blocks are not cut.

        Raises
        ------
        ValueError
            If it is not clear what is meant. What is in files shows when they are used.
        """
        check_count(tile_rows, "tile_rows")
        columns = (columns,) if isinstance(columns, str) else tuple(columns)
        if channels not in (None, 1, 3):
            raise ValueError(f"`channels` must be 1 or 3, got {channels!r}")
        if isinstance(X, Data):
            if y is not None:
                raise ValueError("pass either a Data object or X and y, not both")
            return cls.of(X.x_train, X.y_train, sample_weight=sample_weight, tile_rows=tile_rows)
        table: dict[str, Any] = {"columns": columns, "label": label}
        images: dict[str, Any] = {"size": check_size(size), "channels": channels}
        items: list[Any] = list(X) if isinstance(X, (list, tuple)) else []
        if type(X).__module__.startswith("ray.data"):
            dataset: Any = X
            shards: list[Shard] = [
                BlockShard(f"block {i}", "", block, **table)
                for i, block in enumerate(dataset.to_numpy_refs())
            ]
        elif _is_path(X):
            shards = [_file(X, y, sample_weight, table | images)]
        elif items and all(map(_is_path, items)):
            ys = [None] * len(items) if y is None else _one_each(y, len(items))
            shards = [_file(x, one, None, table | images) for x, one in zip(items, ys, strict=True)]
        elif items and y is None and all(isinstance(pair, tuple) and len(pair) == 2 for pair in items):
            shards = [
                _file(x, one, None, table | images)
                if _is_path(x)
                else ArrayShard.of(x, one, name=f"X_{i:04d}")
                for i, (x, one) in enumerate(items)
            ]
        elif y is None and isinstance(X, Iterable) and not (items or hasattr(X, "__array__")):
            raise ValueError(
                "a stream is read by one process and cannot be divided: pass arrays or files (kd.Shards.of), or leave"
                " out executor, checkpoint and on_bad"
            )
        elif y is None:
            raise ValueError("`y` is missing: pass labels or values, one for each row of `X`")
        else:
            shards = [ArrayShard.of(X, y, sample_weight)]
        if sample_weight is not None and (len(shards) > 1 or not isinstance(shards[0], ArrayShard)):
            raise ValueError("`sample_weight` is for one array or one .npy file")
        return cls(_told_apart(shards), tile_rows)

    @property
    def in_memory(self) -> bool:
        """Whether all rows are in the memory of this process."""
        return all(shard.in_memory for shard in self.shards)

    def part(self, index: int, count: int, *, whole: bool = False) -> Self:
        """What one of `count` processes sums, so that all of them together sum everything.

        Parameters
        ----------
        index, count : int
            This process and how many there are: rank and world size under torchrun.
        whole : bool, default False
            Whether shards stay whole: every `count`-th shard, instead of every `count`-th tile. Leaving out bad shards
            needs it, as no process knows what another found.

        Notes
        -----
        Transforms and length scales are still taken from the rows of all shards, so that they are the same in every
        process.
        """
        if check_count(index, "index", 0) >= check_count(count, "count"):
            raise ValueError(f"`index` counts from 0 to {count - 1}, got {index}")
        if self.share[1] > 1:
            raise ValueError("these shards are a part already: take parts of the whole")
        return dataclasses.replace(self, share=(index, count, whole))

    def tiles(self, looks: Sequence[Look | None], without: frozenset[tuple[int, int]]) -> list[Tile]:
        """Cut rows into tiles, given the heads of the shards (None for those that are left out).

        Parameters
        ----------
        looks : sequence of Look or None
        without : set of (int, int)
            Units of single tiles that are left out.
        """
        tiles: list[Tile] = []
        first = 0
        for number, (shard, look) in enumerate(zip(self.shards, looks, strict=True)):
            for start, stop in _cut(look, self.tile_rows):
                unit = (number, -1 if shard.whole else start)
                if unit not in without:
                    name = f"{shard.name} rows {start}..{stop}"
                    tiles.append(Tile(number, start, stop, first, name, unit))
                    first += stop - start
        return tiles


def _cut(look: Look | None, tile_rows: int) -> Iterator[tuple[int, int]]:
    """Borders of tiles: equal ones where any cut will do, between the given edges elsewhere."""
    if look is None:
        return
    if look.edges is None:
        pieces = -(-look.n_rows // tile_rows)
        borders = [i * look.n_rows // pieces for i in range(pieces + 1)]
    else:
        borders = [0]
        for edge in look.edges[1:]:
            if edge - borders[-1] >= tile_rows:
                borders.append(edge)
        if borders[-1] < look.n_rows:
            # A last piece that is much smaller than the others goes with the one before.
            if len(borders) > 1 and look.n_rows - borders[-1] < tile_rows / 2:
                borders.pop()
            borders.append(look.n_rows)
    yield from itertools.pairwise(borders)


def _is_path(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike))


def _one_each(y: Any, count: int) -> list[Any]:
    if not isinstance(y, (list, tuple)) or len(y) != count:
        raise ValueError(f"`y` must be a list with one path or array for each of the {count} files")
    return list(y)


def _file(path: Any, y: Any, weight: Any, table: dict[str, Any]) -> Shard:
    place = Path(os.path.abspath(path))
    if place.suffix == ".npy":
        if y is None:
            raise ValueError(f"{place.name} holds inputs only: give its targets too (y=...)")
        return ArrayShard.of_file(str(place), os.path.abspath(y) if _is_path(y) else y, weight)
    if y is not None:
        raise ValueError(f"{place.name} holds its own targets: give `y` with .npy files only")
    if place.suffix == ".npz":
        return ArchiveShard(place.name, str(place))
    if place.suffix == ".parquet":
        return ParquetShard(place.name, str(place), **table)
    raise ValueError(f"{place.name} is no .npy, .npz or .parquet file: list the files of a folder, sorted")


def _told_apart(shards: Sequence[Shard]) -> tuple[Shard, ...]:
    """Shards under different names: those of one name in several folders are called by their whole paths."""
    if not shards:
        raise ValueError("there are no shards: the list is empty")
    counts = collections.Counter(shard.name for shard in shards)
    named = [shard if counts[shard.name] == 1 else shard.under_full_name() for shard in shards]
    name, count = collections.Counter(shard.name for shard in named).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{name} is given {count} times: its rows would count as often")
    return tuple(named)
