"""The rows of shards as one source: every pass over them is tasks of an executor, and names the shard that is bad.

A source answers what must be known before features can be summed: the heads of the shards, the labels that there
are, a sample of rows, and mean and variance of the inputs, which are merged tile by tile in order by the formula of
Chan, Golub and LeVeque (see `transforms.moments`).
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from ._check import check_finite, check_name
from .executors import Executor, SerialExecutor, Task
from .shard import Look, Shard
from .shards import Shards, Tile
from .source import Batch, PreparedSource, Reservoir, batch_rows
from .transforms import Standardize
from .transforms.moments import Moments, moments

ON_BAD = ("raise", "skip")
Unit = tuple[int, int]


class BadShards(ValueError):
    """Shards that cannot be used, with the reasons, found by a pass that had to leave them out."""

    def __init__(self, found: dict[Unit, str]) -> None:
        super().__init__("; ".join(found.values()))
        self.found = found


class Bad(NamedTuple):
    """A unit that cannot be used, and why."""

    unit: Unit
    reason: str


class ShardSource(PreparedSource):
    """The rows of shards as one source, of which every pass is tasks of an executor.

    Parameters
    ----------
    shards : Shards
    executor : Executor
        Reads the files. Arrays in memory are read where they are, in this process.
    on_bad : {"raise", "skip"}
        With "skip" a pass over rows raises `BadShards`, and `without` gives the source that leaves them out.
    input_shape : tuple of int, optional
        Of one row; by default that of the first shard.
    progress : bool, optional
    left_out : dict of unit to str
        Units that are left out already, with the reasons.
    looks : list of Look or None
        Heads of the shards, where they are known; None for those that are left out.

    Raises
    ------
    ValueError
        If a shard cannot be opened or its rows have another shape, with "raise"; if no shard is left.
    """

    def __init__(
        self,
        shards: Shards,
        executor: Executor,
        *,
        on_bad: str = "raise",
        input_shape: tuple[int, ...] | None = None,
        progress: bool | None = None,
        left_out: dict[Unit, str] | None = None,
        looks: Sequence[Look | None] | None = None,
    ) -> None:
        self.shards, self.skip = shards, check_name(on_bad, ON_BAD, "on_bad") == "skip"
        self.progress, self.left_out = progress, dict(left_out or {})
        if self.skip and shards.share[1] > 1 and not shards.share[2]:
            raise ValueError(
                "on_bad='skip' leaves out whole shards, and this part holds pieces of them: take part(..., whole=True)"
            )
        self.executor = executor
        self._reader = SerialExecutor() if shards.in_memory else executor
        self.looks = list(looks) if looks is not None else self._look(input_shape)
        self.tiles = shards.tiles(self.looks, frozenset(self.left_out))
        if not self.tiles:
            raise ValueError(f"no shard is left: {next(iter(self.left_out.values()))}")
        look = next(look for look in self.looks if look is not None)
        self.input_shape, self.dtype = look.input_shape, look.dtype
        self._count = self.tiles[-1].first + self.tiles[-1].stop - self.tiles[-1].start
        self.n_rows = self._count

    def without(self, found: dict[Unit, str]) -> Self:
        """The source that leaves these units out too."""
        gone = {number for number, start in found if start < 0}
        return type(self)(
            self.shards,
            self.executor,
            on_bad="skip",
            progress=self.progress,
            left_out=self.left_out | found,
            looks=[None if i in gone else look for i, look in enumerate(self.looks)],
        )

    @cached_property
    def first_y(self) -> Any:
        """All labels that there are, each once (a pass over the labels); of values, those of one row."""
        head = self.head_y
        if head.dtype.kind == "f" or head.ndim > 1:
            return head
        found = self._pass(_classes_of, "labels", [(tile, head) for tile in self.tiles])
        return np.unique(np.concatenate(found))

    @cached_property
    def head_y(self) -> np.ndarray:
        """The target of the first row, (1,) or (1, k): all that regression needs to know."""
        [head] = self._pass(_head_of, "labels", [(self.tiles[0], None)])
        return head

    def batches(self, rows: int) -> Iterator[Batch]:
        """Batches of at most `rows` rows in order, read in this process."""
        for tile in self.tiles:
            try:
                for batch in self.shards.shards[tile.shard].batches(rows, tile.start, tile.stop):
                    yield dataclasses.replace(batch, start=tile.first + batch.start - tile.start)
            except (ValueError, FileNotFoundError) as error:
                self._refuse([Bad(tile.unit, f"{tile.name}: {error}")])

    def sample(self, seed: int, use: str, size: int) -> Tensor:
        """The sample that the same rows would give in an array."""
        chosen = Reservoir(seed, use, size)
        step = 1 << 22
        for start in range(0, self._count, step):
            numbers = torch.arange(start, min(start + step, self._count))
            chosen.offer(Batch(start, numbers, None, None))
        order = chosen.rows()
        assert order is not None
        numbers = np.sort(order.numpy())
        asked = []
        for tile in self.tiles:
            first, last = np.searchsorted(numbers, [tile.first, tile.first + tile.stop - tile.start])
            if last > first:
                asked.append((tile, numbers[first:last] - tile.first + tile.start))
        rows = torch.cat(self._pass(_rows_at, "sample", asked))
        return rows[torch.from_numpy(np.searchsorted(numbers, order.numpy()))]

    def standardize(self) -> Standardize:
        """The transform "standardize", fitted on all rows."""
        found = self._pass(_moments_of, "moments", [(tile, self.input_shape) for tile in self.tiles])
        total = found[0]
        for more in found[1:]:
            total = _merged_moments(total, more)
        return Standardize(self.input_shape, total.mean, total.std())

    def _look(self, input_shape: tuple[int, ...] | None) -> list[Look | None]:
        tasks = [Task(shard.name, (i,)) for i, shard in enumerate(self.shards.shards)]
        found = self._reader.map(
            _look_at, tasks, shared=(self.shards, self.skip), label="shards", progress=self.progress
        )
        looks: list[Look | None] = []
        columns: tuple[str, ...] = ()
        for i, look in enumerate(found):
            if isinstance(look, Look):
                input_shape = input_shape or look.input_shape
                columns = columns or look.columns
                if look.input_shape != input_shape:
                    reason = f"rows of shape {look.input_shape}, expected {input_shape}"
                elif look.columns and look.columns != columns:
                    reason = (
                        f"columns {', '.join(look.columns)}, before it {', '.join(columns)}: say which, and in which"
                        " order (columns=..., label=...)"
                    )
                else:
                    looks.append(look)
                    continue
                look = Bad((i, -1), f"{self.shards.shards[i].name}: {reason}")
                if not self.skip:
                    raise ValueError(look.reason)
            self.left_out[look.unit] = look.reason
            looks.append(None)
        return looks

    def _pass(self, function: Callable[..., Any], label: str, asked: Sequence[tuple[Tile, Any]]) -> list[Any]:
        """Results of ``function(shard, tile, argument)``; raises for what is bad."""
        results = self._reader.map(
            _attempt,
            [Task(tile.name, (tile, argument)) for tile, argument in asked],
            shared=(self.shards, self.skip, function),
            label=label,
            progress=self.progress,
        )
        self._refuse([result for result in results if isinstance(result, Bad)])
        return results

    def _refuse(self, bad: list[Bad]) -> None:
        if bad and not self.skip:
            raise ValueError(bad[0].reason)
        found: dict[Unit, str] = {}
        for unit, reason in bad:
            found.setdefault(unit, reason)
        if found:
            raise BadShards(found)


def without_bad(source: ShardSource, make: Callable[[ShardSource], Any]) -> Any:
    """``make(source)``, and again without the shards that it found to be bad, until it finds none."""
    while True:
        try:
            return make(source)
        except BadShards as error:
            source = source.without(error.found)


def _look_at(shards: Shards, skip: bool, number: int) -> Look | Bad:
    shard = shards.shards[number]
    return named(shard.look, shard.name, (number, -1), skip)


def _attempt(shards: Shards, skip: bool, function: Callable[..., Any], tile: Tile, argument: Any) -> Any:
    shard = shards.shards[tile.shard]
    return named(lambda: function(shard, tile, argument), tile.name, tile.unit, skip)


def named(function: Callable[[], Any], name: str, unit: Unit, skip: bool) -> Any:
    """What `function` returns; what it raises for bad input is raised under this name, or returned."""
    try:
        return function()
    except (ValueError, FileNotFoundError) as error:
        reason = f"{name}: {error}"
        if not skip:
            raise ValueError(reason) from error
        return Bad(unit, reason)


def _head_of(shard: Shard, tile: Tile, _: None) -> np.ndarray:
    return np.asarray(shard.labels(tile.start, tile.start + 1))[:1]


def _classes_of(shard: Shard, tile: Tile, head: np.ndarray) -> np.ndarray:
    """Labels of a tile, each once; of the kind of `head`, as NumPy makes text of numbers beside text."""
    labels = np.asarray(shard.labels(tile.start, tile.stop))
    numbers = [array.dtype.kind in "iub" for array in (labels, head)]
    if (
        labels.shape[1:]
        or numbers[0] != numbers[1]
        or (not numbers[0] and labels.dtype.kind != head.dtype.kind)
    ):
        raise ValueError(
            f"labels are {labels.dtype} of shape {labels.shape}, those of the first row {head.dtype} of shape (n,):"
            " use one kind"
        )
    return np.unique(labels)


def _rows_at(shard: Shard, tile: Tile, at: np.ndarray) -> Tensor:
    rows = shard.rows(at, tile.start, tile.stop)
    for row, number in zip(rows, at, strict=True):
        check_finite(row[None], "X", int(number))
    return rows


def _moments_of(shard: Shard, tile: Tile, input_shape: tuple[int, ...]) -> Moments:
    def chunks() -> Iterator[Tensor]:
        for batch in shard.batches(batch_rows(0, math.prod(input_shape)), tile.start, tile.stop):
            yield batch.X

    return moments(chunks, input_shape)


def _merged_moments(a: Moments, b: Moments) -> Moments:
    count = a.count + b.count
    delta = b.mean - a.mean
    squares = a.squares + b.squares + delta**2 * (a.count * (b.count / count))
    return Moments(a.rows + b.rows, count, a.mean + delta * (b.count / count), squares)
