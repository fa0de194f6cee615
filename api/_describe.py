"""Everything that a distilled set's file says, as plain values and as tables."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import Tensor

from . import _tables
from .solver.certificate import Certificate, Status
from .solver.distilled_set import DISTRIBUTIONAL_KIND, FILE_KIND, DistilledSet
from .solver.store import file_kind, read_file

# A frozen network is not stored, so a set made with one opens only in Python, with the network given again.
_NEEDS_MODULE = "module"


def describe_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Plain JSON values with everything in a file: shapes, bytes, encoder, certificate, provenance.

    Raises
    ------
    FileNotFoundError, ValueError
        As `DistilledSet.load`, which is tried on the way.
    """
    distributional = file_kind(path) == DISTRIBUTIONAL_KIND
    document, tensors = read_file(path, DISTRIBUTIONAL_KIND if distributional else FILE_KIND)
    if distributional:
        tensors["x"] = DistilledSet.load(path).x
    elif _nested(document, "encoder", "feature_map", "name") != _NEEDS_MODULE:
        DistilledSet.load(path)
    x, y, labels = tensors.pop("x"), tensors.pop("y"), tensors.pop("labels", None)
    certificate = dict(document["certificate"])
    classes = document["targets"]["classes"]
    per_class = None
    if labels is not None and classes is not None:
        per_class = labels.bincount(minlength=len(classes)).tolist()
    return _tables.jsonable(
        {
            "file": os.fspath(path),
            "file_bytes": Path(path).stat().st_size,
            "points": len(x),
            "x": _describe_tensor(x),
            **(
                {"distribution": f"{document['distribution']['name']}, stored in place of x"}
                if distributional
                else {}
            ),
            "y": _describe_tensor(y),
            "space": document["space"],
            "targets": document["targets"],
            "class_names": document["class_names"],
            "points_per_class": per_class,
            # transform, then feature map and precision, or kernel
            **{key: value for key, value in document["encoder"].items() if key != "fingerprint"},
            "other_arrays": {name: _describe_tensor(tensor) for name, tensor in sorted(tensors.items())},
            "distilled_ridge": document["distilled_ridge"],
            "intercept": document["intercept"],
            "certificate": {**certificate, "explanation": Status(certificate["status"]).explanation},
            "provenance": document["provenance"],
        }
    )


def description_tables(description: Mapping[str, Any]) -> list[Table]:
    """Lay the result of `describe_file` out as tables: the set, its certificate, its origin."""
    rest = dict(description)
    certificate, provenance = rest.pop("certificate"), rest.pop("provenance")
    x, y = rest.pop("x"), rest.pop("y")
    names, per_class = rest.pop("class_names"), rest.pop("points_per_class")
    if per_class is not None and len(set(per_class)) == 1:
        per_class = per_class[0]
    summary = {
        "file": rest.pop("file"),
        "file size": _tables.size(rest.pop("file_bytes")),
        "points": rest.pop("points"),
        "x": _tensor_text(x),
        "y": _tensor_text(y),
        "classes": names,
        "points per class": per_class,
    }
    rows = [(key, value) for key, value in [*summary.items(), *_flat(rest)] if value is not None]
    return [
        _tables.table(("", ""), rows, title="distilled set"),
        certificate_table(
            Certificate.model_validate({key: certificate[key] for key in certificate if key != "explanation"})
        ),
        _tables.table(("", ""), _flat(provenance), title="provenance"),
    ]


def certificate_table(certificate: Certificate) -> Table:
    """Lay a certificate out with what each number means; what does not apply to the set is left out."""
    c = certificate
    if c.model_rank is None:
        rank, origin = "of the set's features or kernel matrix", "of training data learned from"
    else:
        rank = f"of the set's features; the model has rank {c.model_rank}"
        origin = "of training data behind the full model"
    rows: list[tuple[str, Any, str]] = [
        ("status", c.status.value, c.status.explanation),
        ("held-out score", c.heldout_score, "accuracy (R2 for values) on rows held out of the training data"),
        ("held-out loss", c.heldout_loss, "by which the set was chosen"),
        (
            "held-out rows",
            c.heldout_rows,
            "of these figures" if c.heldout_rows else "training rows stood in for them",
        ),
        ("step", c.selected_step, "after which the set was taken"),
        ("steps", c.steps, "of the run"),
        ("weight error", c.weight_error, "||W_S - W|| / ||W||, before points are stored"),
        ("stored error", c.stored_error, "the same for x and y as they are stored"),
        ("prediction error", c.prediction_error, "relative, root mean square over the training data"),
        ("ridge", c.ridge, f"of the full model, {c.ridge_rule}"),
        ("distilled ridge", c.distilled_ridge, "to train on the set with"),
        ("rank", c.rank, rank),
        ("condition", c.condition, "of the set's features"),
        ("max |x|", c.max_abs_x, "largest absolute value in x"),
        (
            "out of range",
            "not known" if c.out_of_range is None else _tables.percent(c.out_of_range),
            "values of x outside the range of the training data",
        ),
        ("rows", c.n_rows, origin),
    ]
    rows += [("note", "", note) for note in c.notes]
    return _tables.table(
        ("", "", ""),
        [(name, _tables.show(value), text) for name, value, text in rows if value is not None],
        title="certificate",
    )


def _describe_tensor(tensor: Tensor) -> dict[str, Any]:
    low, high = (end.item() for end in tensor.aminmax())
    dtype = str(tensor.dtype).removeprefix("torch.")
    return {"shape": list(tensor.shape), "dtype": dtype, "bytes": tensor.nbytes, "min": low, "max": high}


def _tensor_text(found: Mapping[str, Any]) -> str:
    low, high = _tables.show(found["min"]), _tables.show(found["max"])
    shape, size = _tables.shape(found["shape"]), _tables.size(found["bytes"])
    return f"{shape} {found['dtype']}, {size}, values {low} .. {high}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as dotted names."""
    for key, value in values.items():
        if isinstance(value, Mapping) and set(value) == {"shape", "dtype", "bytes", "min", "max"}:
            yield f"{prefix}{key}", _tensor_text(value)
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _nested(document: Any, *keys: str) -> Any:
    for key in keys:
        document = document.get(key) if isinstance(document, Mapping) else None
    return document
