"""Result of a sweep: the sets, one row a recipe with what was published beside it, as JSON and as a table."""

import dataclasses
from typing import Any

from rich.table import Table

from ._evaluation import Report, known_columns
from ._recipe import Published
from ._recipe_docs import published_text
from ._tables import jsonable
from ._tasks import retry_remarks
from .solver.distilled_set import DistilledSet


@dataclasses.dataclass(frozen=True)
class SweepRow:
    """The sets of one recipe.

    Attributes
    ----------
    recipe : str
    data : str
        Name of the data set.
    seeds : tuple of int
        One for each set.
    points, nbytes : int
        Of one set.
    metric : {"accuracy", "r2"}
    scores : tuple of float
        On the test split, one for each set: of its own model, or the mean of the networks trained on it. Empty if
        nothing was evaluated.
    score, deviation : float or None
        Mean, and deviation over sets (n - 1 in the denominator; None for a single one).
    steps, seconds : float
        Means over sets; of the loop, where there was one.
    published : tuple of Published
        What the recipe says that others printed; nothing where the data have another shape or other classes.
    published_for : str
        The data that these figures are of.
    changed : tuple of str
        Values of the recipe that were replaced or added: the run is not the published one.
    diverged, networks_diverged : int
        Sets whose loop diverged, and networks trained on sets that did; both count with the score that they have.
    """

    recipe: str
    data: str
    seeds: tuple[int, ...]
    points: int
    nbytes: int
    metric: str
    scores: tuple[float, ...]
    score: float | None
    deviation: float | None
    steps: float
    seconds: float
    published: tuple[Published, ...] = ()
    published_for: str = ""
    changed: tuple[str, ...] = ()
    diverged: int = 0
    networks_diverged: int = 0


@dataclasses.dataclass(frozen=True)
class Sweep(Report):
    """Result of `sweep`; `print` shows it, `rows` and `sets` hold it.

    Attributes
    ----------
    rows : tuple of SweepRow
    sets : dict of str to tuple of DistilledSet
        By recipe, one for each seed.
    evaluated : str or None
        By which recipe of `evaluate` the sets were scored, and with which arguments.
    retried : tuple of str
        Tasks that the executor had to start again, and why.
    """

    rows: tuple[SweepRow, ...]
    sets: dict[str, tuple[DistilledSet, ...]] = dataclasses.field(compare=False, repr=False)
    evaluated: str | None = None
    retried: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the sets; numbers that are not finite become None."""
        rows = []
        for row in self.rows:
            plain = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
            rows.append({**plain, "published": [figure.model_dump(mode="json") for figure in row.published]})
        return jsonable({"evaluated": self.evaluated, "rows": rows, "retried": self.retried})

    def table(self, *, plain: bool = False) -> Table:
        """Lay the rows out as a rich table; `plain` borders are Markdown."""
        columns = [
            "recipe",
            "data",
            "seeds",
            "points",
            "bytes",
            "test score",
            "steps",
            "loop s",
            "published, %",
        ]
        rows = [
            [
                row.recipe,
                row.data,
                len(row.seeds),
                row.points,
                row.nbytes,
                _score(row),
                round(row.steps),
                round(row.seconds, 1),
                "; ".join(map(published_text, row.published)) or None,
            ]
            for row in self.rows
        ]
        title = "sweep" if self.evaluated is None else f"sweep, evaluated by {self.evaluated}"
        return known_columns(columns, rows, title, plain)

    def remarks(self) -> list[str]:
        """Say what was published for what and where a run was another one, what diverged, and what was run again."""
        lines = [
            f"{row.recipe}: {published_text(figure)} for {row.published_for}, {figure.source}"
            for row in self.rows
            for figure in row.published
        ]
        lines += [
            f"{row.recipe}: not as published, {', '.join(row.changed)} replaced"
            for row in self.rows
            if row.changed
        ]
        for row in self.rows:
            if row.diverged:
                lines.append(f"{row.recipe}: the loop of {row.diverged} of {len(row.seeds)} sets diverged")
            if row.networks_diverged:
                lines.append(f"{row.recipe}: {row.networks_diverged} networks diverged: use a lower rate")
        return lines + retry_remarks(self.retried)


def _score(row: SweepRow) -> str | None:
    if row.score is None:
        return None
    scale, digits, unit = (100, 2, " %") if row.metric == "accuracy" else (1, 4, "")
    spread = "" if row.deviation is None else f" ± {scale * row.deviation:.{digits}f}"
    return f"{scale * row.score:.{digits}f}{spread}{unit}"
