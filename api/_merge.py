"""`merge`: sets of classes of their own put together, or statistics of shards added up."""

import os
from collections.abc import Iterable
from typing import Any

from .solver.distilled_set import DistilledSet
from .solver.statistics import Statistics
from .solver.store import file_kind

# Kind of the files that `Statistics.save` writes.
_STATISTICS = "statistics"


def merge(
    sets: Iterable[DistilledSet | Statistics | str | os.PathLike[str]],
    *,
    ridge: float | None = None,
    class_names: tuple[str, ...] | None = None,
) -> DistilledSet | Statistics:
    """Merge distilled sets of disjoint classes into one, or statistics of disjoint rows.

    Parameters
    ----------
    sets : iterable of DistilledSet, Statistics or path
        Two or more, all sets or all statistics. Sets are of points for training networks on ("dm", "dc", "dsa", "mtt",
        "dkkt") or of distributions ("d3", "class-gaussians"), each of classes of its own, with equal transforms:
        subtasks that were distilled apart, with ``transform=first.encoder.transform`` and the labels of the whole data
        set. Sets in closed form and sets learned for a kernel are not merged: merge statistics instead.
    ridge : float, optional
        λ_S of the merged set, absolute: needed for class-Gaussians with different ones; by default what keeps the
        share of the trace.
    class_names : tuple of str, optional
        Of all classes, in the order of their labels; by default those of the sets.

    Returns
    -------
    DistilledSet or Statistics
        Points of the sets, one set after the other in the order of their first classes, and labels over all classes,
        sorted. ``provenance["subtasks"]`` says which points and classes are of which set; see `solver.merge`.

    Raises
    ------
    ValueError
        If there are fewer than two, or they cannot be merged: says why, and what to do.

    Examples
    --------
    >>> import kernel_distill as kd
    >>> data = kd.load_data("digits")
    >>> first = kd.collect_statistics(data.x_train[:700], data.y_train[:700], n_classes=10)
    >>> second = kd.collect_statistics(data.x_train[700:], data.y_train[700:], like=first)
    >>> kd.merge([first, second]).count == len(data.x_train)
    True
    """
    if isinstance(sets, str) or not isinstance(sets, Iterable):
        raise ValueError("merging takes two or more sets: give a list")
    items = [_loaded(item) for item in sets]
    if not any(isinstance(item, Statistics) for item in items):
        from .solver.merge import merge_sets

        return merge_sets(items, ridge=ridge, class_names=class_names)
    if ridge is not None or class_names is not None:
        raise ValueError("statistics are added up as they are: leave out `ridge` and `class_names`")
    if len(items) < 2 or not all(isinstance(item, Statistics) for item in items):
        raise ValueError("either sets or statistics can be merged, two or more: got both, or one")
    total = items[0]
    for item in items[1:]:
        total = total + item
    return total


def _loaded(item: Any) -> Any:
    if isinstance(item, (DistilledSet, Statistics)):
        return item
    if not isinstance(item, (str, os.PathLike)):
        raise ValueError(f"expected distilled sets, statistics or paths, got {type(item).__name__}")
    return Statistics.load(item) if file_kind(item) == _STATISTICS else DistilledSet.load(item)
