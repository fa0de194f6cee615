"""Results of networks trained on sets: one row for each set (or method) and network, and what its figures mean."""

import dataclasses
from typing import Any

from rich.table import Table

from ._evaluation import Report, known_columns
from ._tables import jsonable, percent
from ._tasks import retry_remarks
from .nn_baselines.training_recipes import TRAINING_RECIPES


@dataclasses.dataclass(frozen=True)
class NetworkRow:
    """Networks of one kind, trained on one set, on several of one method, or on a baseline.

    Attributes
    ----------
    name : str
        Of the set; of a baseline, the names of the sets that it stands beside.
    trained_on : str
        "distilled", "distilled, hard labels", or a baseline.
    network : str
        With the options that were given.
    recipe : str
    points, nbytes : int
        Training points of one set, and bytes of their values and labels as stored.
    accuracies : tuple of tuple of float
        Shares of right answers: one tuple for each set, one number for each network.
    score, std : float
        Mean and (population) standard deviation over all networks; the second None for a single one.
    interval : tuple of float, or None
        Two-level bootstrap interval of the mean (`nn_baselines.bootstrap`): over sets and networks, or over networks
        where there is one set. None for a single network.
    seeds : tuple of int
        One for each set: of the weights and batches of its networks, and of the rows of a baseline.
    rates : tuple of float
        Learning rate of the networks of each set.
    epochs : tuple of (int or None)
        Epoch after which they were taken, counted from 1; None for the last.
    held_out : tuple of (float or None)
        Mean accuracy on the held-out rows, where rate or epoch were chosen by it.
    diverged : int
        Networks with weights that are not finite; they count with the accuracy that they have.
    ior, hlr, lrs : float or None
        Scores of DD-Ranking on fractions (`nn_baselines.scores`), where the rows they need are there.
    """

    name: str
    trained_on: str
    network: str
    recipe: str
    points: int
    nbytes: int
    accuracies: tuple[tuple[float, ...], ...]
    score: float
    std: float | None
    interval: tuple[float, float] | None
    seeds: tuple[int, ...]
    rates: tuple[float, ...]
    epochs: tuple[int | None, ...]
    held_out: tuple[float | None, ...]
    diverged: int = 0
    ior: float | None = None
    hlr: float | None = None
    lrs: float | None = None

    @property
    def sets(self) -> int:
        """Number of sets."""
        return len(self.accuracies)

    @property
    def networks(self) -> int:
        """Number of networks trained on each."""
        return len(self.accuracies[0])


@dataclasses.dataclass(frozen=True)
class NetworkEvaluation(Report):
    """Table of networks' accuracies; `print` shows it, `rows` holds it.

    Attributes
    ----------
    rows : tuple of NetworkRow
    data : str
        Name of the data set.
    n_test : int
        Rows of the test set.
    recipe : dict
        Fields of the `TrainingRecipe`.
    confidence : float
        Of the intervals.
    seed : int
        The first of the seeds.
    n_held_out : int
        Training rows that rate or epoch were chosen on; 0 where nothing was chosen.
    full_epochs : int or None
        Epochs over all training rows, where networks were trained on these.
    retried : tuple of str
        Trainings that the executor had to start again, and why.
    """

    rows: tuple[NetworkRow, ...]
    data: str
    n_test: int
    recipe: dict[str, Any]
    confidence: float
    seed: int
    n_held_out: int = 0
    full_epochs: int | None = None
    retried: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; numbers that are not finite become None."""
        plain = dataclasses.asdict(self)
        for row, made in zip(self.rows, plain["rows"], strict=True):
            made |= {"sets": row.sets, "networks": row.networks}
        return jsonable(plain)

    def table(self, *, plain: bool = False) -> Table:
        """Lay the rows out as a rich table; `plain` borders are Markdown."""
        columns = ["set", "trained on", "network", "points", "bytes", "accuracy", "deviation"]
        columns += [f"{100 * self.confidence:.4g} % interval", "sets x networks"]
        columns += ["rate", "epoch", "IOR", "HLR", "LRS"]
        cells = []
        for row in self.rows:
            spread = None if row.std is None else percent(row.std)
            interval = row.interval and f"{percent(row.interval[0])} .. {percent(row.interval[1])}"
            cells.append(
                [row.name, row.trained_on, row.network, row.points, row.nbytes, percent(row.score), spread]
                + [interval, f"{row.sets} x {row.networks}"]
                + [_distinct(row.rates) if self.n_held_out else None, _distinct(row.epochs)]
                + [None if value is None else f"{value:.3f}" for value in (row.ior, row.hlr, row.lrs)]
            )
        title = f"{self.data}, {self.n_test} test rows, recipe {self.recipe['name']}".removeprefix(", ")
        return known_columns(columns, cells, title, plain)

    def remarks(self) -> list[str]:
        """Say what the intervals mean, how the recipe was changed, which seeds were used, what was chosen, and what
        went wrong.
        """
        lines = []
        if any(row.sets == 1 and row.networks > 1 and row.trained_on != "full" for row in self.rows):
            lines.append(
                "intervals of one set are those of networks trained on that set: another run of its method may differ"
                " by more"
            )
        if changed := changed_fields(self.recipe):
            lines.append(f"recipe {self.recipe['name']}, but {', '.join(changed)}")
        seeds = max((row.seeds for row in self.rows), key=len)
        lines.append(f"seeds {', '.join(map(str, seeds))}, one for each set of a row")
        if self.n_held_out:
            lines.append(
                f"rates and epochs were chosen on {self.n_held_out} held-out training rows, never on test rows"
            )
        if self.full_epochs is not None:
            lines.append(f"full: trained for {self.full_epochs} epochs over all training rows")
        for row in self.rows:
            if row.diverged:
                lines.append(
                    f"{row.name}, {row.trained_on}, {row.network}: {row.diverged} of {row.sets * row.networks}"
                    " networks diverged: use a lower rate"
                )
        return lines + retry_remarks(self.retried)


def changed_fields(recipe: dict[str, Any]) -> list[str]:
    """What the fields of a `TrainingRecipe` have in place of those of the published one of its name."""
    known = TRAINING_RECIPES.get(recipe["name"])
    published = recipe if known is None else known.model_dump(mode="json")
    return [f"{field}={value!r}" for field, value in recipe.items() if value != published[field]]


def _distinct(values: tuple[Any, ...]) -> str | None:
    """Values without repetition; None where there are none."""
    known = [f"{value:.4g}" for value in dict.fromkeys(values) if value is not None]
    return ", ".join(known) or None
