"""Shards of tables: parquet files of numbers or of encoded images, and blocks of Ray Data.

Columns become rows: one column of vectors (or tensors) is X as it is; columns of numbers are put side by side.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .data.images import LABEL_COLUMNS, ImageStack
from .data.parquet import encoded_images, holds_images, image_columns, open_parquet, table_batches
from .shard import Look, Shard, check_there, file_fingerprint
from .source import ArraySource, Batch, StreamSource

_LABELS = (*LABEL_COLUMNS, "y", "target")


@dataclasses.dataclass(frozen=True, eq=False)
class ParquetShard(Shard):
    """A parquet file, cut between its row groups and read in a stream.

    Attributes
    ----------
    columns : tuple of str
        Of X; by default the column of vectors or, without one, all columns of numbers but the labels.
    label : str or None
        Column of y; by default the first that is named label, fine_label, labels, y or target.
    size : tuple of int, optional
        Images are resized to (height, width).
    channels : int, optional
        1 or 3, of images; by default those of the first image of the file.
    """

    columns: tuple[str, ...] = ()
    label: str | None = None
    size: tuple[int, int] | None = None
    channels: int | None = None

    def look(self) -> Look:
        file = self._open()
        counts = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        if not sum(counts):
            raise ValueError(f"{self.path} holds no rows")
        edges = (0, *itertools.accumulate(counts))
        columns, label = self._columns(file)
        if self._holds_images(file):
            first = self._first_image(file, columns[0])
            shape, dtype = (self.channels or len(first), *first.shape[1:]), torch.uint8
        else:
            some = next(i for i, count in enumerate(counts) if count)
            rows = StreamSource(itertools.islice(self._pieces(file, [some]), 1))
            shape, dtype = rows.input_shape, rows.dtype
        return Look(edges[-1], shape, dtype, edges, (*columns, label))

    def batches(self, rows: int, start: int, stop: int) -> Iterator[Batch]:
        file = self._open()
        groups = self._groups(file, start, stop)
        return StreamSource(self._pieces(file, groups, start), start).batches(rows)

    def labels(self, start: int, stop: int) -> Any:
        file = self._open()
        label = self._columns(file)[1]
        groups = self._groups(file, start, stop)
        return np.concatenate(
            [
                _numbers(batch.column(label), label)
                for batch in table_batches(Path(self.path), file, [label], groups)
            ]
        )

    def fingerprint(self) -> list[Any]:
        return [*file_fingerprint(self.path), list(self.columns), self.label, self.size, self.channels]

    def _open(self) -> Any:
        check_there(self.path)
        return open_parquet(Path(self.path))

    def _groups(self, file: Any, start: int, stop: int) -> list[int]:
        """Row groups that begin from row `start` to `stop`, which lie between row groups."""
        sizes = (file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups))
        edges = [0, *itertools.accumulate(sizes)]
        return [i for i, edge in enumerate(edges[:-1]) if start <= edge < stop]

    def _columns(self, file: Any) -> tuple[list[str], str]:
        """Columns of X and of y."""
        schema = file.schema_arrow
        if self._holds_images(file):
            image, label = image_columns(Path(self.path), schema, (self.label,) if self.label else _LABELS)
            return [*self.columns] or [image], label
        kinds = {name: _arrow_kind(schema.field(name).type) for name in schema.names}
        return choose_columns(kinds, self.columns, self.label, self.path)

    def _holds_images(self, file: Any) -> bool:
        schema = file.schema_arrow
        if self.columns:
            return len(self.columns) == 1 and any(
                field.name == self.columns[0] and holds_images(field.type) for field in schema
            )
        return any(holds_images(field.type) for field in schema)

    def _pieces(self, file: Any, groups: list[int], row: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        columns, label = self._columns(file)
        images = self._holds_images(file)
        channels = self.channels
        for batch in table_batches(Path(self.path), file, [*columns, label], groups):
            y = _numbers(batch.column(label), label)
            if images:
                stack = ImageStack(len(batch), self.size)
                for i, data in enumerate(encoded_images(batch, columns[0], label, Path(self.path), row)):
                    stack.add(data, f"row {row + i} of {self.name}")
                X = stack.finish()
                channels = channels or len(self._first_image(file, columns[0]))
                if X.shape[1] > channels:
                    raise ValueError(
                        f"images are grey, but some from row {row} to {row + len(batch)} are in colour: pass channels=3"
                    )
                X = np.repeat(X, channels // X.shape[1], axis=1)
            else:
                X = join_columns({name: _numbers(batch.column(name), name) for name in columns})
            yield X, y
            row += len(batch)

    def _first_image(self, file: Any, image: str) -> np.ndarray:
        """The first image of the file (c, h, w), whichever part of the file is read."""
        for batch in table_batches(Path(self.path), file, [image], batch_rows=1):
            stack = ImageStack(1, self.size)
            stack.add(encoded_images(batch, image, image, Path(self.path), 0)[0], f"row 0 of {self.name}")
            return stack.finish()[0]
        raise ValueError(f"{self.path} holds no rows")


@dataclasses.dataclass(frozen=True, eq=False)
class BlockShard(Shard):
    """A block of a Ray Data set: a reference, so that rows go from where they are to who reads them.

    Attributes
    ----------
    block : ray.ObjectRef
        Of a mapping of column names to arrays.
    columns, label
        As of `ParquetShard`.
    """

    block: Any
    columns: tuple[str, ...] = ()
    label: str | None = None

    def look(self) -> Look:
        source = self._source()
        assert source.n_rows is not None
        return Look(source.n_rows, source.input_shape, source.dtype, (0, source.n_rows))

    def batches(self, rows: int, start: int, stop: int) -> Iterator[Batch]:
        return self._source().batches(rows, start, stop)

    def labels(self, start: int, stop: int) -> Any:
        return self._source().y[start:stop]

    def fingerprint(self) -> list[Any]:
        raise ValueError(
            "blocks of Ray Data have no name that lasts, so results over them cannot wait in a checkpoint: write the"
            " data to parquet files, or go without"
        )

    def _source(self) -> ArraySource:
        import ray

        block: Any = ray.get(self.block)
        table = {name: np.asarray(values) for name, values in block.items()}
        table = {n: np.stack(list(v)) if v.dtype == object and v.size else v for n, v in table.items()}
        kinds = {
            name: values.ndim - 1 if values.dtype.kind in "biuf" else None for name, values in table.items()
        }
        columns, label = choose_columns(kinds, self.columns, self.label, self.name)
        return ArraySource(join_columns({name: table[name] for name in columns}), table[label])


def choose_columns(
    kinds: Mapping[str, int | None], columns: Sequence[str], label: str | None, where: str
) -> tuple[list[str], str]:
    """Columns of X and of y, given the number of axes of a value of each (0: a number; None: not numbers).

    Raises
    ------
    ValueError
        If a column that is named is not there, or it is not clear which are meant.
    """
    for name in (*columns, *([label] if label else [])):
        if name not in kinds:
            raise ValueError(f"{where} has no column {name!r}: it has {', '.join(kinds)}")
    label = label or next((name for name in _LABELS if name in kinds), None)
    if label is None:
        raise ValueError(f"{where} has columns {', '.join(kinds)}: say which holds the targets (label=...)")
    if columns:
        if strange := [name for name in columns if kinds[name] is None]:
            raise ValueError(f"column {strange[0]!r} of {where} does not hold numbers: choose others")
        return list(columns), label
    vectors = [name for name, axes in kinds.items() if axes and name != label]
    if len(vectors) > 1:
        raise ValueError(
            f"{where} has several columns of vectors, {', '.join(vectors)}: choose by columns=..."
        )
    chosen = vectors or [
        name for name, axes in kinds.items() if axes == 0 and name != label and not _is_index(name)
    ]
    if not chosen:
        raise ValueError(f"{where} has columns {', '.join(kinds)}: none but the targets holds numbers")
    return chosen, label


def _is_index(name: str) -> bool:
    """Whether pandas has put the index of a table here: numbers of rows say nothing of them."""
    return re.fullmatch(r"__index_level_\d+__", name) is not None


def join_columns(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """X (b, *shape) of one column of vectors, or (b, d) of d columns of numbers."""
    values = list(columns.values())
    if len(values) == 1 and values[0].ndim > 1:
        return values[0]
    if any(column.ndim > 1 for column in values):
        raise ValueError(
            f"columns {', '.join(columns)} mix vectors and numbers: choose one column of vectors"
        )
    return np.stack(values, axis=1)


def _arrow_kind(kind: Any) -> int | None:
    import pyarrow.types as types

    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inner = _arrow_kind(kind.value_type)
        return None if inner is None else inner + 1
    return 0 if types.is_integer(kind) or types.is_floating(kind) else None


def _numbers(column: Any, name: str) -> np.ndarray:
    """A column of a record batch as an array (b, ...) of numbers or of strings."""
    if column.null_count:
        raise ValueError(
            f"column {name!r} lacks values in {column.null_count} rows: remove or impute those first"
        )
    kind = _arrow_kind(column.type)
    if kind is None:
        return np.asarray(column.to_pylist())
    if kind == 0:
        return column.to_numpy(zero_copy_only=False)
    inner = _numbers(column.flatten(), name)
    if len(column) == 0 or len(inner) % len(column):
        raise ValueError(f"column {name!r} holds lists of different lengths")
    if not hasattr(column.type, "list_size") and len(set(column.value_lengths().to_pylist())) > 1:
        raise ValueError(f"column {name!r} holds lists of different lengths")
    return inner.reshape(len(column), -1, *inner.shape[1:])
