r"""Results of an ablation: runs, what the arms' scores say in pairs, and a table for people.

With :math:`d_s` the score of an arm minus that of the first arm under seed s, the mean :math:`\bar d` has the
interval :math:`\bar d \pm t_{n-1} s_d / \sqrt n`. Two tests ask whether it is zero. Student's paired t takes the
differences to be about normal. Wilcoxon's signed ranks take them to be symmetric: its p is the share of all
:math:`2^n` choices of signs whose sum of signed ranks is at least as far from zero, which holds for tied ranks too
(zeros are dropped, as Wilcoxon did); without ties it is `scipy.stats.wilcoxon` in its exact form.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from rich.table import Table
from scipy import stats

from ._tables import as_text, jsonable, table
from ._tasks import retry_remarks


@dataclasses.dataclass(frozen=True)
class Run:
    """One run.

    Attributes
    ----------
    init : str or None
        What the points started from; None for a method that has no first points.
    pick : str or None
        How batches were drawn; None for a method without batches.
    seed : int
    score : float
        Of the chosen set on the test split: accuracy, or R² for regression; the mean of its networks, where those were
        asked for.
    heldout_score, heldout_loss : float or None
        By which the set was chosen.
    steps, selected_step : int
        Steps done, and the one whose set was chosen.
    seconds, init_seconds : float
        Wall clock of the loop, and of finding the first points before it.
    stopped : str
        Why the loop ended; "fitted" where there was none.
    varied : dict
        The other options that tell the arm from others, as plain JSON by dotted key.
    networks_diverged : int
        Of those that were trained on the set; they count with the accuracy that they have.
    """

    init: str | None
    pick: str | None
    seed: int
    score: float
    heldout_score: float | None
    heldout_loss: float | None
    steps: int
    selected_step: int
    seconds: float
    init_seconds: float
    stopped: str
    varied: dict[str, Any] = dataclasses.field(default_factory=dict)
    networks_diverged: int = 0

    @property
    def arm(self) -> str:
        """Everything that tells the arm from others, in words."""
        return arm_label(self.init, self.pick, self.varied)


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """Score of an arm minus that of the first arm, over seeds.

    Attributes
    ----------
    mean : float
    interval : tuple of float, or None
        None for a single seed, and where all differences are the same: their spread says nothing.
    t_pvalue : float or None
        Of the paired t-test; None where the interval is.
    wilcoxon_pvalue : float or None
        Of the signed ranks; None where every difference is zero.
    """

    mean: float
    interval: tuple[float, float] | None
    t_pvalue: float | None
    wilcoxon_pvalue: float | None


@dataclasses.dataclass(frozen=True)
class Arm:
    """All runs with one initialisation, one pick and the same other options.

    Attributes
    ----------
    init, pick : str or None
    mean, deviation : float, float or None
        Of the test scores over seeds (n - 1 in the denominator; None for a single seed).
    steps, seconds, init_seconds : float
        Means over seeds.
    difference : PairedDifference or None
        To the first arm; None for the first arm itself.
    varied : dict
        As of its runs.
    """

    init: str | None
    pick: str | None
    mean: float
    deviation: float | None
    steps: float
    seconds: float
    init_seconds: float
    difference: PairedDifference | None
    varied: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Ablation:
    """Result of `ablate`; `print` shows it.

    Attributes
    ----------
    settings : dict
        Everything that the runs share: data, method, points, budget, versions.
    seeds : tuple of int
    runs : tuple of Run
        Arm by arm, seeds in order.
    confidence : float
        Of the intervals.
    retried : tuple of str
        Runs that the executor had to start again, and why.
    """

    settings: dict[str, Any]
    seeds: tuple[int, ...]
    runs: tuple[Run, ...]
    confidence: float = 0.95
    retried: tuple[str, ...] = ()

    @cached_property
    def arms(self) -> tuple[Arm, ...]:
        """Summaries in the order in which arms were asked for; the first is what others are compared with."""
        groups: dict[str, list[Run]] = {}
        for run in self.runs:
            groups.setdefault(run.arm, []).append(run)
        first = next(iter(groups.values()))
        return tuple(
            _arm(group, None if group is first else first, self.confidence) for group in groups.values()
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; numbers that are not finite become None."""
        plain = {"settings": self.settings, "seeds": self.seeds, "confidence": self.confidence}
        arms = [dataclasses.asdict(arm) for arm in self.arms]
        runs = [dataclasses.asdict(run) for run in self.runs]
        return jsonable({**plain, "retried": self.retried, "arms": arms, "runs": runs})

    def to_json(self) -> str:
        """`to_dict` as indented JSON."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def table(self, *, plain: bool = False) -> Table:
        """Lay the arms out as a rich table; `plain` borders are Markdown."""
        scale, digits, unit = (100, 2, " %") if self.settings["metric"] == "accuracy" else (1, 4, "")
        varied = list(self.arms[0].varied)
        columns = ["init", "pick", *varied, f"test {self.settings['metric']}", "difference"]
        columns += [f"{100 * self.confidence:.4g} % interval", "t-test p", "Wilcoxon p"]
        columns += ["steps", "loop s", "init s"]
        rows = []
        for arm in self.arms:
            spread = "" if arm.deviation is None else f" ± {scale * arm.deviation:.{digits}f}"
            cells: list[Any] = [arm.init, arm.pick, *(_value(arm.varied[key]) for key in varied)]
            cells.append(f"{scale * arm.mean:.{digits}f}{spread}{unit}")
            found = arm.difference
            if found is None:
                cells += [None] * 4
            else:
                ends = found.interval and " .. ".join(f"{scale * end:+.{digits}f}" for end in found.interval)
                cells += [f"{scale * found.mean:+.{digits}f}", ends, found.t_pvalue, found.wilcoxon_pvalue]
            rows.append([*cells, round(arm.steps), round(arm.seconds, 1), round(arm.init_seconds, 1)])
        return table(columns, rows, title=self._title(), plain=plain)

    def remarks(self) -> list[str]:
        """What the table cannot say by itself."""
        n, compared = len(self.seeds), len(self.arms) - 1
        lines = []
        if compared and 1 < n < 6:
            least = 2.0 ** (1 - n)
            lines.append(
                f"{n} pairs cannot bring Wilcoxon's p below {least:.3g}: for less than 0.05 it takes six."
            )
        if compared > 1:
            lines.append(
                f"{compared} arms are compared with the first and their p-values are not corrected for that:"
                f" with Bonferroni's rule one is remarkable below 0.05 / {compared} = {0.05 / compared:.3g}."
            )
        lines += [
            f"The run of {run.arm}, seed {run.seed} diverged after {run.steps} steps."
            for run in self.runs
            if run.stopped == "diverged"
        ]
        lines += [
            f"{run.networks_diverged} networks on the set of {run.arm}, seed {run.seed} diverged."
            for run in self.runs
            if run.networks_diverged
        ]
        return lines + retry_remarks(self.retried)

    def __str__(self) -> str:
        return "\n".join([as_text(self.table(plain=True)), *self.remarks()])

    def _title(self) -> str:
        settings, n = self.settings, len(self.seeds)
        parts = [
            settings["data"]["name"],
            settings["method"]["method"],
            settings["points"],
            settings["budget"],
            f"evaluated by {settings['evaluated']['by']}" if "evaluated" in settings else "",
        ]
        return ", ".join(part for part in [*parts, f"{n} seed{'s'[: n > 1]}"] if part)


def arm_label(init: str | None, pick: str | None, varied: Mapping[str, Any]) -> str:
    """Name of an arm: its start, how it draws batches, and the values of its other options."""
    values = [f"{key}={_value(value)}" for key, value in varied.items()]
    return ", ".join([init or "no start", pick or "no pick", *values])


def _value(value: Any) -> str:
    """A value of an option as `vary` takes it: texts plain, the rest as JSON, which tells 1 from true."""
    return value if isinstance(value, str) else json.dumps(value)


def paired_difference(
    scores: Sequence[float], reference: Sequence[float], confidence: float = 0.95
) -> PairedDifference:
    """Compare the scores of two arms, seed by seed.

    Raises
    ------
    ValueError
        If they are not equally many, or none.
    """
    if len(scores) != len(reference) or not len(scores):
        raise ValueError(f"expected as many scores as references, got {len(scores)} and {len(reference)}")
    # Rounded far below what a test split resolves: equal differences of scores are equal numbers then.
    difference = np.round(np.asarray(scores, float) - np.asarray(reference, float), 12)
    n, mean = len(difference), float(difference.mean())
    if n == 1:
        return PairedDifference(mean, None, None, None)
    error = float(difference.std(ddof=1)) / math.sqrt(n)
    half = float(stats.t.ppf(0.5 + confidence / 2, n - 1)) * error
    same = bool((difference == difference[0]).all())
    if same:
        return PairedDifference(mean, None, None, _wilcoxon(difference))
    t_pvalue = float(2 * stats.t.sf(abs(mean) / error, n - 1))
    return PairedDifference(mean, (mean - half, mean + half), t_pvalue, _wilcoxon(difference))


def _wilcoxon(difference: np.ndarray) -> float | None:
    difference = difference[difference != 0]
    if not len(difference):
        return None
    # Tied ranks are halves: doubled, all are integers, and so are their sums.
    ranks = np.rint(2 * stats.rankdata(np.abs(difference))).astype(int)
    # Probability of each sum of the ranks with a positive sign, every sign being a toss of a coin.
    chance = np.ones(1)
    for rank in ranks:
        chance = np.pad(chance, (0, rank)) / 2 + np.pad(chance, (rank, 0)) / 2
    from_middle = np.abs(2 * np.arange(len(chance)) - ranks.sum())
    return float(chance[from_middle >= from_middle[ranks[difference > 0].sum()]].sum())


def _arm(runs: Sequence[Run], first: Sequence[Run] | None, confidence: float) -> Arm:
    scores = [run.score for run in runs]
    means = {
        name: float(np.mean([getattr(run, name) for run in runs]))
        for name in ("steps", "seconds", "init_seconds")
    }
    return Arm(
        init=runs[0].init,
        pick=runs[0].pick,
        mean=float(np.mean(scores)),
        deviation=float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
        **means,
        difference=None
        if first is None
        else paired_difference(scores, [run.score for run in first], confidence),
        varied=runs[0].varied,
    )
