"""Distilled sets as networks are trained on them: which ones can be, and which are alike."""

from collections.abc import Sequence

from ._evaluation_data import EvaluationData
from ._network_options import NetworkOptions
from .solver.distilled_set import DistilledSet
from .solver.learners.rows import TrainingRows


def check_sets(name: str, sets: list[DistilledSet], data: EvaluationData, options: NetworkOptions) -> None:
    """Refuse sets that networks cannot be trained on, and sets of one name that are not of one kind."""
    first = sets[0]
    for ds in sets:
        data.check(name, ds)
        if not ds.targets.is_classes:
            raise ValueError(f"{name} is a set for regression: networks are trained on classes here")
        if ds.space == "features":
            raise ValueError(
                f"{name} lives in feature space: networks need points; distil with space='input' or another method"
            )
        if ds.labels is None and (options.baselines or options.recipe.labels == "hard"):
            raise ValueError(
                f"the points of {name} have no classes: use a recipe with soft labels, and `baselines=()`"
            )
        shapes = [each.encoder.transform.input_shape for each in (first, ds)]
        if len(ds) != len(first) or shapes[0] != shapes[1] or ds.targets != first.targets:
            raise ValueError(
                f"sets under the name {name!r} differ in size, shape or targets: {first!r} and {ds!r}; give them"
                " different names"
            )
        if type(ds) is not type(first):
            raise ValueError(
                f"some sets under the name {name!r} hold distributions and some points: give them different names"
            )
        if (ds.labels is None) != (first.labels is None):
            raise ValueError(
                f"some sets under the name {name!r} have classes for their points and some have none: give them"
                " different names"
            )
        if options.baselines and class_counts(ds) != class_counts(first):
            raise ValueError(
                f"sets under the name {name!r} have different numbers of points of each class: give them different"
                " names"
            )


def check_rows(names: Sequence[str], ds: DistilledSet, rows: TrainingRows, n_held_out: int) -> None:
    """Refuse sets like `ds` with more points of a class than there are rows to stand in their place."""
    assert rows.classes is not None
    there = rows.classes.bincount(minlength=ds.targets.n_outputs).tolist()
    for count, found, label in zip(class_counts(ds), there, ds.targets.classes or (), strict=True):
        if count > found:
            held = f" besides the {n_held_out} held out" if n_held_out else ""
            raise ValueError(
                f"{', '.join(names)} has {count} points of class {label!r}, but there are {found} training rows of it"
                f"{held} to stand in their place: give more rows, or `baselines=()`"
            )


def class_counts(ds: DistilledSet) -> list[int]:
    """Points of each class."""
    assert ds.labels is not None
    return ds.labels.bincount(minlength=ds.targets.n_outputs).tolist()
