"""Which networks are trained on what for a table: each training once, however many rows show it."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._evaluation_data import EvaluationData
from ._network_options import NetworkOptions
from ._network_sets import check_rows, check_sets, class_counts
from .nn_baselines.baseline_points import network_labels, real_rows, solved_labels
from .nn_baselines.draws import Draws
from .nn_baselines.evaluator import Choice
from .nn_baselines.training_recipes import TrainingRecipe, training_recipe
from .solver.data import Data
from .solver.data.split import hold_out
from .solver.distilled_set import DistilledSet
from .solver.distributional_set import DistributionalSet
from .solver.learners.rows import TrainingRows
from .solver.merge import transform_digest
from .solver.networks import NetworkSpec
from .solver.source import ArraySource
from .solver.transforms import Transform

# Share of the training rows that rates and epochs are chosen on.
HELD_OUT = 0.1

Key = tuple[Any, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Training:
    """Networks to be trained, on points and labels that are made when it is their turn.

    `ds` says how rows are transformed and classes numbered, and `draw` gives what joins the points at every epoch.
    """

    spec: NetworkSpec
    recipe: TrainingRecipe
    seed: int
    points: Callable[[], tuple[Tensor, Tensor]]
    ds: DistilledSet
    draw: Draws | None = None


@dataclasses.dataclass(eq=False)
class Line:
    """A row of the table before its figures.

    `keys` has a training for each set. `random`, `hard` and `full` are what scores compare it with: random rows in
    its place, the same points with hard labels (itself, where its own are), all training rows.
    """

    names: list[str]
    trained_on: str
    network: str
    points: int
    nbytes: int
    keys: list[Key]
    random: "Line | None" = None
    hard: "Line | None" = None
    full: "Line | float | None" = None


class EvaluationPlan:
    """All lines of a table and all trainings behind them.

    Parameters
    ----------
    named : sequence of (str, list of DistilledSet)
    data : EvaluationData
    options : NetworkOptions

    Attributes
    ----------
    lines : list of Line
    trainings : dict of tuple to Training
        By what they depend on.
    n_held_out : int
        Training rows that something is chosen on: a tenth of each class, if anything is chosen at all. No baseline
        is drawn from them.

    Raises
    ------
    ValueError
        If a set cannot be trained on, sets of one name differ in size, or a class has too few training rows to stand in
        place of its points.
    """

    def __init__(
        self,
        named: Sequence[tuple[str, list[DistilledSet]]],
        data: EvaluationData,
        options: NetworkOptions,
    ) -> None:
        self._data, self._options = data, options
        self.trainings: dict[Key, Training] = {}
        self.lines: list[Line] = []
        self._digests: dict[DistilledSet, str] = {}
        self._transforms: dict[str, Transform] = {}
        self._rows: dict[Key, TrainingRows] = {}
        self._truths: dict[Any, Tensor] = {}
        self._train = data.x_train, data.y_train
        self._held: tuple[np.ndarray, np.ndarray] | None = None
        for name, sets in named:
            check_sets(name, sets, data, options)
        if options.chooses:
            x, y = np.asarray(data.x_train), np.asarray(data.y_train)
            # Without names rows would be held out whatever their class.
            names = data.class_names or tuple(map(str, np.unique(y)))
            whole = Data(x, y, class_names=names)
            split = hold_out(whole, HELD_OUT, options.seed)
            assert split.x_test is not None
            assert split.y_test is not None
            self._train, self._held = (split.x_train, split.y_train), (split.x_test, split.y_test)
        self.n_held_out = 0 if self._held is None else len(self._held[1])
        for network in options.networks:
            self._add(network, named)

    def transform(self, ds: DistilledSet) -> Transform:
        """The transform of a set; one object for all sets with an equal one."""
        return self._transforms.setdefault(self._digest(ds), ds.encoder.transform)

    def truth(self, ds: DistilledSet) -> Tensor:
        """Class of each test row, as the set numbers them."""
        known = ds.targets.classes
        if known not in self._truths:
            self._truths[known] = ds.targets.indices(self._data.labels(ds.targets))
        return self._truths[known]

    def choice(self, ds: DistilledSet) -> Choice:
        """What is chosen, on held-out rows as networks trained on this set see them."""
        if self._held is None:
            return Choice()
        rows = self._training_rows(ds, held_out=True)

        def pieces() -> Iterable[tuple[Tensor, Tensor]]:
            for index, X, _ in rows.chunks():
                assert rows.classes is not None
                yield X, rows.classes[index.cpu()].to(X.device)

        return Choice(self._options.rates, self._options.choose_epoch, pieces)

    def _add(self, network: str, named: Sequence[tuple[str, list[DistilledSet]]]) -> None:
        """Lines with one network: sets that share their baselines, then those; last the full data."""
        groups: dict[Key, list[tuple[str, list[DistilledSet]]]] = {}
        for name, sets in named:
            groups.setdefault(tuple(self._group(ds) for ds in sets), []).append((name, sets))
        fulls: dict[Key, Line] = {}
        for members in groups.values():
            names, sets = [name for name, _ in members], members[0][1]
            full: Line | float | None = self._options.full_accuracy.get(network)
            if "full" in self._options.baselines:
                made = self._full_line(network, sets[0])
                full = fulls.setdefault(made.keys[0], made)
                full.names += names
            # What hard labels recover is not known from soft ones: the same points once more.
            again = full is not None and self._options.recipe.labels != "hard"
            lines: list[Line] = []
            for name, each in members:
                own = self._set_line(network, name, each)
                lines.append(own)
                if again and each[0].labels is not None:
                    own.hard = self._set_line(network, name, each, hard=True)
                    own.hard.hard = own.hard
                    lines.append(own.hard)
                elif not again:
                    own.hard = own
            if any(baseline != "full" for baseline in self._options.baselines):
                check_rows(names, sets[0], self._training_rows(sets[0]), self.n_held_out)
            real = {
                baseline: self._real_line(network, baseline, names, sets)
                for baseline in self._options.baselines
                if baseline not in ("label-solve", "full")
            }
            for line in real.values():
                line.hard = line
            lines += real.values()
            if "label-solve" in self._options.baselines:
                for name, each in members:
                    solved = self._real_line(network, "label-solve", [name], each)
                    solved.hard = real["random"]  # these rows with their own labels
                    lines.append(solved)
            for line in lines:
                line.full = full
                line.random = real.get("random") if line.trained_on != "random" else None
            self.lines += lines
        self.lines += fulls.values()

    def _set_line(self, network: str, name: str, sets: list[DistilledSet], hard: bool = False) -> Line:
        recipe = self._options.hard_recipe if hard else self._options.recipe
        trained_on = "distilled, hard labels" if hard else "distilled"

        def points(ds: DistilledSet) -> tuple[Tensor, Tensor]:
            return ds.transformed(), network_labels(recipe, ds.y, ds.labels, ds.targets.n_outputs)

        line = Line([name], trained_on, self._options.label(network), len(sets[0]), sets[0].nbytes, [])
        for index, ds in enumerate(sets):
            draw = None
            if recipe.fresh and isinstance(ds, DistributionalSet):
                draw = Draws(ds.distribution, recipe.fresh, self._options.seed + index)
            what = (name, index)
            self._train_on(line, what, network, recipe, index, ds, lambda ds=ds: points(ds), draw)
        return line

    def _real_line(self, network: str, baseline: str, names: list[str], sets: list[DistilledSet]) -> Line:
        """Real rows in place of sets, and other ones in place of each."""
        soft = baseline == "label-solve"
        recipe = self._options.recipe if soft else self._options.hard_recipe

        def points(ds: DistilledSet, seed: int) -> tuple[Tensor, Tensor]:
            rows = self._training_rows(ds)
            X, classes = real_rows(rows, class_counts(ds), "random" if soft else baseline, seed=seed)
            y = solved_labels(ds, rows, X) if soft else None
            return X, network_labels(recipe, y, classes, ds.targets.n_outputs)

        m, k = len(sets[0]), sets[0].targets.n_outputs
        label_bytes = 8 * k if soft else self._train[1].itemsize
        nbytes = m * (self._train[0][:1].nbytes + label_bytes)
        line = Line(names, baseline, self._options.label(network), m, nbytes, [])
        for index, ds in enumerate(sets):
            seed = self._options.seed + index
            model = (ds.encoder.digest(), ds.distilled_ridge) if soft else ()
            what = (baseline, self._group(ds), *model, index)
            self._train_on(line, what, network, recipe, index, ds, lambda ds=ds, seed=seed: points(ds, seed))
        return line

    def _full_line(self, network: str, ds: DistilledSet) -> Line:
        recipe = training_recipe(self._options.hard_recipe, epochs=self._options.full_epochs)

        def points() -> tuple[Tensor, Tensor]:
            rows = self._training_rows(ds)
            X = rows.inputs(torch.arange(rows.n))
            return X, network_labels(recipe, None, rows.classes, ds.targets.n_outputs)

        X, y = self._train
        line = Line([], "full", self._options.label(network), len(X), X.nbytes + y.nbytes, [])
        what = ("full", self._digest(ds), ds.targets.classes)
        self._train_on(line, what, network, recipe, 0, ds, points)
        return line

    def _train_on(
        self,
        line: Line,
        what: Key,
        network: str,
        recipe: TrainingRecipe,
        index: int,
        ds: DistilledSet,
        points: Callable[[], tuple[Tensor, Tensor]],
        draw: Draws | None = None,
    ) -> None:
        """Add networks to a line. Sets and their baselines have networks of the same weights and batches."""
        key = (*what, line.trained_on, network)
        line.keys.append(key)
        spec = self._options.spec(network, ds.encoder.transform.input_shape, ds.targets.n_outputs)
        self.trainings.setdefault(key, Training(spec, recipe, self._options.seed + index, points, ds, draw))

    def _training_rows(self, ds: DistilledSet, held_out: bool = False) -> TrainingRows:
        """Training rows, or those that were held out of them, transformed as for the set."""
        key = (self._digest(ds), ds.targets, held_out)
        if key not in self._rows:
            x, y = self._held if held_out and self._held is not None else self._train
            source = ArraySource(x, self._data.labels(ds.targets, y))
            self._rows[key] = TrainingRows(
                source, self.transform(ds), ds.targets, seed=0, holdout=0.0, device=self._options.device
            )
        return self._rows[key]

    def _group(self, ds: DistilledSet) -> Key:
        """What decides which real rows stand in place of a set, and what networks see of them."""
        counts = len(ds) if ds.labels is None else tuple(class_counts(ds))
        return self._digest(ds), ds.targets.classes, counts

    def _digest(self, ds: DistilledSet) -> str:
        """Digest of the set's transform; a whitening has many numbers and is gone through once."""
        if ds not in self._digests:
            self._digests[ds] = transform_digest(ds)
        return self._digests[ds]
