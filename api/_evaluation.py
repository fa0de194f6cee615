r"""Results of an evaluation: one row a model, as data, as JSON, and as a table for people.

An accuracy of c right answers in n is given with its Wilson interval,

.. math:: \frac{c + z^2/2}{n + z^2} \pm \frac{z}{n + z^2} \sqrt{\frac{c (n - c)}{n} + \frac{z^2}{4}},

which stays inside [0, 1] and is right near its ends, where distilled sets like to be (Brown, Cai and
DasGupta, "Interval estimation for a binomial proportion", Statistical Science 2001).
"""

import abc
import dataclasses
import json
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

from rich.table import Table

from ._tables import as_text, jsonable, percent, show, table

_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Difference:
    """A test row that the distilled set's model and the full model label differently.

    Margins are the largest score minus the second: two models that agree up to rounding can differ only
    where the margin is rounding too.
    """

    row: int
    truth: int | str
    distilled: int | str
    full: int | str
    distilled_margin: float
    full_margin: float


@dataclasses.dataclass(frozen=True)
class Row:
    """One model on the test set.

    Attributes
    ----------
    name : str
        Of the distilled set.
    trained_on : {"distilled", "random"}
        The set itself, or real rows in its place.
    points, nbytes : int
        Training points, and bytes of their values and labels as stored.
    metric : {"accuracy", "r2"}
    score : float
    interval : tuple of float, or None
        Wilson interval of an accuracy.
    full_score : float or None
        Score of the model of the whole data set, if the set still carries it.
    differences : tuple of Difference, or None
        Test rows on which the two disagree.
    stored_error : float or None
        From the set's certificate; None for learned sets.
    """

    name: str
    trained_on: str
    points: int
    nbytes: int
    metric: str
    score: float
    interval: tuple[float, float] | None = None
    full_score: float | None = None
    differences: tuple[Difference, ...] | None = None
    stored_error: float | None = None

    @property
    def n_different(self) -> int | None:
        """Number of test rows on which distilled and full model disagree."""
        return None if self.differences is None else len(self.differences)


class Report(abc.ABC):
    """Base of results that are a table: as JSON, and as text."""

    @abc.abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; numbers that are not finite become None."""

    @abc.abstractmethod
    def table(self, *, plain: bool = False) -> Table:
        """Lay the rows out as a rich table; `plain` borders are Markdown."""

    @abc.abstractmethod
    def remarks(self) -> list[str]:
        """Say in words what the table does not show."""

    def to_json(self) -> str:
        """`to_dict` as indented JSON."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def __str__(self) -> str:
        return "\n".join([as_text(self.table(plain=True)), *self.remarks()])


@dataclasses.dataclass(frozen=True)
class Evaluation(Report):
    """Table of results; `print` shows it, `rows` holds it.

    Attributes
    ----------
    rows : tuple of Row
    data : str
        Name of the data set.
    n_test : int
        Rows of the test set.
    recipe : str
    confidence : float
        Of the intervals.
    seed : int
        Of the baselines.
    """

    rows: tuple[Row, ...]
    data: str
    n_test: int
    recipe: str
    confidence: float
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; numbers that are not finite become None."""
        plain = dataclasses.asdict(self)
        for row, made in zip(self.rows, plain["rows"], strict=True):
            made["n_different"] = row.n_different
        return jsonable(plain)

    def table(self, *, plain: bool = False) -> Table:
        """Lay the rows out as a rich table; `plain` borders are Markdown."""
        columns = [
            "set",
            "trained on",
            "points",
            "bytes",
            "score",
            f"{100 * self.confidence:.4g} % interval",
            "full data",
        ]
        columns += ["differ", "stored error"]
        kind = {"accuracy": percent, "r2": lambda value: f"R2 {value:.4f}"}
        rows = []
        for row in self.rows:
            write = kind[row.metric]
            interval = row.interval and f"{percent(row.interval[0])} .. {percent(row.interval[1])}"
            full = None if row.full_score is None else write(row.full_score)
            cells = [row.name, row.trained_on, row.points, row.nbytes, write(row.score), interval, full]
            rows.append([*cells, row.n_different, row.stored_error])
        title = f"{self.data}, {self.n_test} test rows, recipe {self.recipe}".removeprefix(", ")
        return known_columns(columns, rows, title, plain)

    def remarks(self) -> list[str]:
        """List the first rows on which a set and its full model disagree, in words."""
        lines = []
        for row in self.rows:
            for found in (row.differences or ())[:_SHOWN]:
                lines.append(
                    f"{row.name}: test row {found.row} is {found.truth};"
                    f" distilled says {found.distilled} (margin {show(found.distilled_margin)}),"
                    f" full data {found.full} (margin {show(found.full_margin)})"
                )
            if (row.n_different or 0) > _SHOWN:
                lines.append(
                    f"{row.name}: and {(row.n_different or 0) - _SHOWN} more, in rows[...].differences"
                )
        return lines


def known_columns(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str, plain: bool) -> Table:
    """A table without the columns in which nothing is known."""
    kept = [index for index in range(len(columns)) if any(row[index] is not None for row in rows)]
    return table(
        [columns[i] for i in kept], [[row[i] for i in kept] for row in rows], title=title, plain=plain
    )


def wilson_interval(hits: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson interval of a proportion: `hits` out of `n`."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    middle = (hits + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * (hits * (n - hits) / n + z * z / 4) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)
