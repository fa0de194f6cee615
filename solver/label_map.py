r"""The classes of several sets as those of one: targets, labels and names over all, and the map of who has which.

The classes of all are sorted, as those of a data set are. A label of a set of :math:`k_b` classes says nothing of the
others: with the one-hot rows (or probabilities) p of a target row y,

.. math:: p = y + 1/k_b \;\text{(centred)}, \quad p = y \;\text{(one-hot)},

p is put at its classes' places among k, with zeros elsewhere, and centred again by 1/k.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import BaseModel, TypeAdapter, ValidationError
from torch import Tensor

from .certificate import Certificate
from .distilled_set import DistilledSet
from .targets import Targets


class _Subtask(BaseModel):
    """What an entry of the label map must hold."""

    classes: list[int | str]
    class_names: list[str] | None
    points: tuple[int, int]
    certificate: Certificate
    provenance: dict[str, Any]


def classes_of(ds: DistilledSet) -> tuple[Any, ...]:
    """Classes of a set, in column order."""
    assert ds.targets.classes is not None
    return ds.targets.classes


def joined_targets(sets: Sequence[DistilledSet]) -> Targets:
    """Targets over the classes of all sets, sorted as those of a data set are."""
    classes = [label for ds in sets for label in classes_of(ds)]
    if len({type(label) for label in classes}) > 1:
        raise ValueError("the classes of some sets are numbers, those of others are names: use one kind")
    twice = sorted(label for label, count in Counter(classes).items() if count > 1)
    if twice:
        raise ValueError(
            f"more than one set has class {', '.join(map(repr, twice[:5]))}: sets to be merged have classes of their"
            " own. Distil subtasks with the labels of the whole data set, not numbered from 0 in each"
        )
    return Targets(sets[0].targets.kind, len(classes), tuple(sorted(classes)))


def embedded(ds: DistilledSet, columns: Tensor, targets: Targets) -> Tensor:
    """Target rows (m, k) of a set over the classes of all, of which its own are at `columns`."""
    centred = targets.kind == "centred"
    rows = torch.zeros(len(ds), targets.n_outputs, dtype=ds.y.dtype)
    rows[:, columns] = ds.y + 1 / ds.targets.n_outputs if centred else ds.y
    return rows - 1 / targets.n_outputs if centred else rows


def joined_names(
    sets: Sequence[DistilledSet],
    columns: Sequence[Tensor],
    targets: Targets,
    given: tuple[str, ...] | None,
) -> tuple[str, ...] | None:
    """Names of all classes: those given, or those of the sets if all have some; `columns` says where they go."""
    if given is not None:
        if len(given) != targets.n_outputs:
            raise ValueError(f"{len(given)} class names for {targets.n_outputs} classes")
        return tuple(given)
    names = [""] * targets.n_outputs
    for own, ds in zip(columns, sets, strict=True):
        if ds.class_names is None:
            return None
        for column, name in zip(own.tolist(), ds.class_names, strict=True):
            names[column] = name
    return tuple(names)


def subtasks(ds: DistilledSet, start: int) -> list[dict[str, Any]]:
    """Entries of the label map for a set whose points begin at `start`."""
    own = {
        "classes": list(classes_of(ds)),
        "class_names": None if ds.class_names is None else list(ds.class_names),
        "points": [0, len(ds)],
        "certificate": ds.certificate.model_dump(mode="json"),
        "provenance": ds.provenance,
    }
    found = ds.provenance.get("subtasks", [own])
    try:
        TypeAdapter(list[_Subtask]).validate_python(found)
    except ValidationError as error:
        raise ValueError(
            f'provenance["subtasks"] of {ds!r} is no label map, but perhaps a value of that name that was given as'
            f" `provenance`: {error.errors()[0]['msg']}"
        ) from None
    return [{**entry, "points": [start + end for end in entry["points"]]} for entry in found]


def common(parts: Sequence[Any]) -> dict[str, Any]:
    """What all parts say alike, but of their runs."""
    first, *others = parts
    found: dict[str, Any] = {}
    for key, value in first.items():
        theirs = [other.get(key) for other in others]
        if key == "run":
            continue
        if all(other == value for other in theirs):
            found[key] = value
        elif all(isinstance(other, dict) for other in [value, *theirs]):
            found[key] = common([value, *theirs])
    return found
