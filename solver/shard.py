"""What a shard of rows is: something that can be read piecewise, on any machine, and be told from others."""

import abc
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .source import Batch


@dataclasses.dataclass(frozen=True)
class Look:
    """What the head of a shard says.

    Attributes
    ----------
    n_rows : int
    input_shape : tuple of int
        Of one row.
    dtype : torch.dtype
    edges : tuple of int or None
        Rows between which it may be cut, from 0 to `n_rows`; None: anywhere.
    columns : tuple of str
        Of a table: the columns of X in their order, and that of y.
    """

    n_rows: int
    input_shape: tuple[int, ...]
    dtype: torch.dtype
    edges: tuple[int, ...] | None = None
    columns: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Shard(abc.ABC):
    """Rows that can be read piecewise, on any machine. Pickles small wherever the rows lie in a file.

    Attributes
    ----------
    name : str
        What errors and notes call it: the name of the file.
    path : str
        Of the file; empty where there is none.
    """

    name: str
    path: str

    @property
    def in_memory(self) -> bool:
        """Whether the rows themselves travel with it."""
        return False

    @property
    def whole(self) -> bool:
        """Whether it is left out as a whole when a part of it is bad; otherwise that part only."""
        return True

    def under_full_name(self) -> "Shard":
        """Itself, called by its whole path: for files of one name in several folders."""
        return dataclasses.replace(self, name=self.path or self.name)

    @abc.abstractmethod
    def look(self) -> Look:
        """Read the head.

        Raises
        ------
        FileNotFoundError, ValueError
            If there is no such file; if it is damaged or does not hold what it should.
        """

    @abc.abstractmethod
    def batches(self, rows: int, start: int, stop: int) -> Iterator[Batch]:
        """Batches of `rows` rows, from row `start` to `stop`, which count from the first row of the shard."""

    @abc.abstractmethod
    def labels(self, start: int, stop: int) -> Any:
        """Targets of these rows, as they are stored."""

    @abc.abstractmethod
    def fingerprint(self) -> list[Any]:
        """Plain values that tell this shard from others, without reading a file to its end."""

    def rows(self, at: np.ndarray, start: int, stop: int) -> Tensor:
        """Raw rows at these places between `start` and `stop`, in increasing order."""
        found = [
            batch.X[at[(at >= batch.start) & (at < batch.start + len(batch))] - batch.start]
            for batch in self.batches(1024, start, stop)
        ]
        return torch.cat(found)


def check_there(path: str) -> None:
    """Raise unless there is such a file on this machine."""
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"there is no file {path} on this machine; workers elsewhere need it under the same name"
        )


def file_fingerprint(path: str) -> list[Any]:
    """Name, size and time of the last change of a file: rows that are changed in place keep the size."""
    check_there(path)
    state = os.stat(path)
    return [Path(path).name, state.st_size, state.st_mtime_ns]
