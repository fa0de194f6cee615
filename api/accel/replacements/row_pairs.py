"""What belongs to all pairs of rows, such as distances, kept for rows that come again in other subsets and orders.

Cross-validation fits and predicts on subsets of one set of rows, once for every candidate. Rows are known by 128-bit
hashes of their numbers; one matrix of all pairs of distinct rows serves every subset. It grows when rows are fitted of
which half or more are known, and is begun again when fewer are; rows that are only predicted on do not enter it.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .._cache import budget, keep, kept

# Numbers in the rows of the smaller side below which hashing both takes longer than a matrix product.
_FEW = 1 << 16


@dataclass(frozen=True)
class _Known:
    positions: dict[bytes, int]
    rows: np.ndarray
    values: np.ndarray


class RowPairs:
    """A symmetric function of two rows, evaluated for all pairs of two sets.

    Parameters
    ----------
    name : str
        Of the function, for which values are kept.
    function : callable
        ``function(X, Y)``, exactly symmetric where Y is X.
    """

    def __init__(self, name: str, function: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
        self.name, self.function = name, function

    def of_one_set(self, X: np.ndarray) -> np.ndarray:
        """All pairs of rows of X, shape (n, n); the caller may write to it."""
        keys = _digests(X)
        first = {key: i for i, key in reversed(list(enumerate(keys)))}
        known = kept(self._name(X))
        fresh = [
            i for key, i in sorted(first.items(), key=_second) if known is None or key not in known.positions
        ]
        if (
            known is not None
            and 2 * len(fresh) <= len(first)
            and _bytes(X, len(known.rows) + len(fresh)) <= budget()
        ):
            grown = self._grown(known, X[fresh], [keys[i] for i in fresh]) if fresh else known
        elif _bytes(X, len(first)) <= budget():
            order = sorted(first.values())
            grown = self._begun(X[order], [keys[i] for i in order])
        else:
            return self.function(X, X)
        keep(self._name(X), grown, grown.values.nbytes + grown.rows.nbytes)
        places = np.array([grown.positions[key] for key in keys])
        return _taken(grown.values, places, places)

    def of_two_sets(self, X: np.ndarray, Y: np.ndarray) -> np.ndarray:
        """All pairs of a row of X and a row of Y, shape (n, m); the caller may write to it."""
        known = kept(self._name(X))
        if known is None or min(X.size, Y.size) < _FEW:
            return self.function(X, Y)
        places = []
        for rows in (X, Y):
            # New rows are seldom new in part: the first says so before all are hashed.
            found = [known.positions.get(key) for key in _digests(rows[:1])]
            if None not in found:
                found = [known.positions.get(key) for key in _digests(rows)]
            if None in found:
                return self.function(X, Y)
            places.append(np.array(found))
        return _taken(known.values, *places)

    def _name(self, X: np.ndarray) -> tuple[str, str, str, int]:
        return ("row_pairs", self.name, X.dtype.str, X.shape[1])

    def _begun(self, rows: np.ndarray, keys: list[bytes]) -> _Known:
        return _Known({key: i for i, key in enumerate(keys)}, rows, self.function(rows, rows))

    def _grown(self, known: _Known, rows: np.ndarray, keys: list[bytes]) -> _Known:
        old = len(known.rows)
        corner, side = self.function(rows, rows), self.function(rows, known.rows)
        values = np.empty((old + len(rows),) * 2, corner.dtype)
        values[:old, :old] = known.values
        values[old:, :old], values[:old, old:], values[old:, old:] = side, side.T, corner
        positions = known.positions | {key: old + i for i, key in enumerate(keys)}
        return _Known(positions, np.concatenate([known.rows, rows]), values)


def _second(entry: tuple[bytes, int]) -> int:
    return entry[1]


def _digests(X: np.ndarray) -> list[bytes]:
    rows = np.ascontiguousarray(X).view(np.uint8)
    return [hashlib.blake2b(row.data, digest_size=16).digest() for row in rows]


def _bytes(X: np.ndarray, n: int) -> int:
    """Of values, which are float64 at most, and of rows."""
    return n * (8 * n + X.shape[1] * X.dtype.itemsize)


def _taken(values: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Rows and columns of a matrix, a row at a time: indexing with both does not stay in the cache."""
    out = np.empty((len(rows), len(columns)), values.dtype)
    for i, row in enumerate(rows):
        np.take(values[row], columns, out=out[i], mode="clip")  # "clip": it writes to `out` without a buffer
    return out
