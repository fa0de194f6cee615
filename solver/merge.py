r"""One set of several, each of classes of its own: the subtasks of a data set, distilled apart, put together.

Points stay what they are, one set after the other, in the order of each set's first class. The classes of the merged
set are those of all, sorted, and labels are put among them (`label_map`); so neighbouring classes that were distilled
in blocks come back in class order, with the targets of the data set. Source: the subtasks of D3 (eval_federated.py of
the published code), but that there an expert of all classes attaches new labels afterwards (soft_label.py).

**Ridge.** A learned set's ridge is a share of its trace, :math:`\lambda_b = r\, \mathrm{tr}(K_{bb})/m_b`, and traces
add up over sets: :math:`\lambda = \sum_b m_b \lambda_b / m` is the same share of the trace of all points. Where the
model follows from expected sums (`Distribution.statistics`), these add up with the ridge as it is.

Sums of features and targets over rows (`Statistics`) add up exactly, and closed forms follow from them: sets in closed
form, and sets learned for a kernel, whose labels answer to all points together, are not merged.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch

from ._check import check_non_negative
from .certificate import Certificate, Status
from .distilled_set import DistilledSet
from .distributional_set import DistributionalSet
from .encoder import Encoder, encoder_digest
from .kernel_encoder import KernelEncoder
from .label_map import classes_of, common, embedded, joined_names, joined_targets, subtasks
from .ridge import RidgePath
from .set_factor import SetFactor, storage_tolerance

# Methods whose points stand for themselves: networks are trained on them, each with the label of its class.
_OF_NETWORKS = ("dm", "dc", "dsa", "mtt", "dkkt", "dkkt+dm")


def merge_sets(
    sets: Sequence[DistilledSet],
    *,
    ridge: float | None = None,
    class_names: tuple[str, ...] | None = None,
) -> DistilledSet:
    """Merge distilled sets of disjoint classes.

    Parameters
    ----------
    sets : sequence of DistilledSet
        Two or more of one kind: of points for training networks on ("dm", "dc", "dsa", "mtt", "dkkt"), or of one kind
        of distributions. With equal transforms; where the model of the set follows from expected sums of features,
        with equal feature maps too.
    ridge : float, optional
        λ_S of the merged set, absolute; by default as above.
    class_names : tuple of str, optional
        Of all classes, sorted as their labels are; by default those of the sets, if all have some.

    Returns
    -------
    DistilledSet
        Of the kind of the sets. Its certificate adds up rows and has no held-out figures, for nothing was held out
        against all classes. ``provenance["subtasks"]`` is the label map, one entry for each subtask in the order of
        the points: "classes", "class_names", "points" (first, and one past the last), and "certificate" and
        "provenance" of the part; merged sets come with the subtasks that they have. What the provenance of all parts
        has in common stands beside it.

    Raises
    ------
    ValueError
        If there are fewer than two sets, they are not of one kind or not of a kind that can be merged, share a class,
        or need a `ridge`.

    Notes
    -----
    As the certificate of the set: a thin SVD of the features of all points (or the eigenvalues of p x p sums).
    """
    sets = list(sets)
    if len(sets) < 2:
        raise ValueError(f"merging takes two or more sets, got {len(sets)}")
    for ds in sets:
        _check_kind(ds, sets[0])
    targets = joined_targets(sets)
    sets.sort(key=lambda ds: classes_of(ds)[0])
    columns = [targets.indices(classes_of(ds)) for ds in sets]
    known = [ds.labels for ds in sets if ds.labels is not None]
    labels = None
    if len(known) == len(sets):
        labels = torch.cat([own[index] for own, index in zip(columns, known, strict=True)])
    starts = itertools.accumulate((len(ds) for ds in sets), initial=0)
    parts = [entry for start, ds in zip(starts, sets, strict=False) for entry in subtasks(ds, start)]
    first = sets[0]
    merged = DistilledSet(
        x=torch.cat([ds.x for ds in sets]),
        y=torch.cat([embedded(ds, own, targets) for own, ds in zip(columns, sets, strict=True)]),
        encoder=first.encoder,
        targets=targets,
        space=first.space,
        distilled_ridge=first.distilled_ridge,
        intercept=first.intercept,
        certificate=first.certificate,
        labels=labels,
        class_names=joined_names(sets, columns, targets, class_names),
        provenance={**common([entry["provenance"] for entry in parts]), "subtasks": parts},
    )
    if isinstance(first, DistributionalSet):
        distributions = [ds.distribution for ds in sets if isinstance(ds, DistributionalSet)]
        merged = DistributionalSet.of(merged, type(first.distribution).joined(distributions))
    return _measured(merged, sets, ridge)


def transform_digest(ds: DistilledSet) -> str:
    """Sha256 of the transform of a set."""
    transform = ds.encoder.transform
    return encoder_digest({"name": transform.name, "parameters": transform.parameters()}, transform.tensors())


def _check_kind(ds: DistilledSet, first: DistilledSet) -> None:
    """Refuse sets that cannot be merged, or not with the first one."""
    if not ds.targets.is_classes:
        raise ValueError("a set for regression has no classes of its own to merge by")
    if isinstance(ds.encoder, KernelEncoder) or ds.space == "features":
        kind = "has a kernel" if isinstance(ds.encoder, KernelEncoder) else "lives in feature space"
        raise ValueError(
            f"{ds!r} {kind}: its labels answer to all of its points together, and mean nothing beside others. Distil"
            " all classes at once, or merge statistics (collect_statistics) and distil those"
        )
    methods = {entry["provenance"].get("options", {}).get("method") for entry in subtasks(ds, 0)}
    if not isinstance(ds, DistributionalSet) and not methods.issubset(_OF_NETWORKS):
        raise ValueError(
            f"{ds!r} is of method {', '.join(map(repr, methods))}: merged are sets that networks are trained on"
            f" ({', '.join(_OF_NETWORKS)}) and sets of distributions. What closed forms follow from are statistics,"
            " which add up exactly: merge those (collect_statistics) and distil them (distill_statistics)"
        )
    kinds = [
        (type(each), type(each.distribution) if isinstance(each, DistributionalSet) else each.x.dtype)
        for each in (first, ds)
    ]
    if kinds[0] != kinds[1]:
        raise ValueError(f"sets of one kind and storage can be merged, not {first!r} and {ds!r}")
    if (ds.targets.kind, ds.intercept) != (first.targets.kind, first.intercept):
        raise ValueError(
            f"sets must have one encoding of targets, and all an intercept or none: got {first.targets.kind!r}"
            f" (intercept: {first.intercept}) and {ds.targets.kind!r} ({ds.intercept})"
        )
    if transform_digest(ds) != transform_digest(first):
        raise ValueError(
            "sets were made with different transforms: fit one on all rows, or take that of the first set, and distil"
            " every set with it (transform=first.encoder.transform)"
        )


def _measured(merged: DistilledSet, sets: Sequence[DistilledSet], ridge: float | None) -> DistilledSet:
    """The set with the ridge that it takes, and the certificate of what it is now."""
    sums = None
    if isinstance(merged, DistributionalSet) and isinstance(merged.encoder, Encoder):
        sums = merged.distribution.statistics(merged.encoder, merged.targets, merged.y)
    notes = _notes(merged.provenance["subtasks"])
    if len({ds.encoder.digest() for ds in sets}) > 1:
        if sums is not None:
            raise ValueError(
                "the models of these sets follow from sums of features, and their feature maps differ: distil every"
                " set with one map (feature_map=first.encoder.feature_map)"
            )
        notes.append(
            "the feature maps of the sets differ: `predict` is ridge regression on those of the first"
        )
    chosen = _ridge(sets, ridge, sums is not None)
    if sums is not None:
        path = RidgePath.from_statistics(sums, intercept=merged.intercept)
        rank, condition = path.rank, math.sqrt(float(path.values[0] / path.values[-1])) if path.rank else 1.0
    else:
        tolerance = storage_tolerance(merged.x.dtype)
        factor = SetFactor(merged.features(), intercept=merged.intercept, tolerance=tolerance)
        rank, condition = factor.rank, factor.condition
    certificates = [ds.certificate for ds in sets]
    outside = [ds.certificate.out_of_range for ds in sets]
    weighed = [share * len(ds) for ds, share in zip(sets, outside, strict=True) if share is not None]
    states = {certificate.status for certificate in certificates}
    certificate = Certificate(
        status=states.pop() if len(states) == 1 else Status.LEARNED,
        distilled_ridge=chosen,
        rank=rank,
        condition=condition,
        max_abs_x=max(certificate.max_abs_x for certificate in certificates),
        out_of_range=sum(weighed) / len(merged) if len(weighed) == len(sets) else None,
        n_rows=sum(certificate.n_rows for certificate in certificates),
        notes=tuple(notes),
    )
    return dataclasses.replace(merged, distilled_ridge=chosen, certificate=certificate)


def _ridge(sets: Sequence[DistilledSet], given: float | None, of_sums: bool) -> float:
    if given is not None:
        return check_non_negative(given, "ridge")
    ridges = sorted({ds.distilled_ridge for ds in sets})
    if len(ridges) == 1:
        return ridges[0]
    if of_sums:
        raise ValueError(
            f"the sets have different ridges, {', '.join(f'{value:.4g}' for value in ridges[:5])}, and sums of features"
            " say nothing of the one that suits all: give `ridge`"
        )
    return math.fsum(len(ds) * ds.distilled_ridge for ds in sets) / sum(map(len, sets))


def _notes(subtasks: Sequence[dict[str, Any]]) -> list[str]:
    """What the certificate says of the parts: once what all say, the rest with whom it concerns."""
    known = sorted(label for entry in subtasks for label in entry["classes"])
    said = [(_named(entry["classes"], known), entry["certificate"]) for entry in subtasks]
    scores = [
        f"{certificate['heldout_score']:.4f} ({name})"
        for name, certificate in said
        if certificate.get("heldout_score") is not None
    ]
    notes = [f"merged of {len(said)} subtasks, none of which has seen the classes of another"]
    if scores:
        notes.append(f"held-out scores, each among its own classes alone: {', '.join(scores)}")
    for name, certificate in said:
        for note in certificate["notes"]:
            shared = all(note in other["notes"] for _, other in said)
            text = note if shared else f"{name}: {note}"
            if text not in notes:
                notes.append(text)
    return notes


def _named(classes: Sequence[Any], known: list[Any]) -> str:
    """Classes of a subtask among all that are known: as a range where no other class lies between."""
    if len(classes) == 1:
        return f"class {classes[0]}"
    first = known.index(classes[0])
    if list(classes) == known[first : first + len(classes)]:
        return f"classes {classes[0]} to {classes[-1]}"
    return f"classes {', '.join(map(str, classes))}"
