"""The arms of an ablation: every initialisation with every way to draw batches and every value of other options."""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from ._ablation_result import arm_label
from ._methods import FITTED_METHODS, LEARNED, method_options
from ._recipe import merged, validated
from ._request import nested
from ._tasks import distill_arguments
from .solver._check import check_name
from .solver.coresets import CORESETS
from .solver.learners.pick import Pick
from .solver.reference import NEAR

# Arguments of `distill` that every run has alike, or that say nothing of a method.
_NOT_VARIED = (
    "X", "y", "batch_bytes", "class_names", "device", "executor", "loop", "method", "n_classes", "near", "progress",
    "provenance", "sample_weight", "seed", "task",
)  # fmt: skip
# What they learn are distributions.
_WITHOUT_START = ("d3", *FITTED_METHODS)


@dataclasses.dataclass(frozen=True)
class ArmPlan:
    """How the runs of an arm differ from others.

    Attributes
    ----------
    init, pick : str or None
    varied : dict
        Values as plain JSON, by dotted key.
    method : options of a method
    arguments : dict
        Those of `distill` among the varied values, as given.
    """

    init: str | None
    pick: str | None
    varied: dict[str, Any]
    method: Any
    arguments: dict[str, Any]

    @property
    def label(self) -> str:
        """Name among the arms."""
        return arm_label(self.init, self.pick, self.varied)


def make_arms(
    method: Any,
    inits: Sequence[str],
    picks: Sequence[str | Pick] | None,
    vary: Mapping[str, Sequence[Any]] | None,
) -> list[ArmPlan]:
    """All arms, the first of everything first; see `ablate`.

    Raises
    ------
    ValueError
        If a name is unknown, a value not valid, or two arms are the same.
    """
    options = method_options(method)
    if options is None:
        raise ValueError(
            f"an ablation compares learned methods, got {method!r}: use one of {', '.join(LEARNED)}"
        )
    lists = {
        "inits": inits,
        "picks": picks,
        **{f"vary[{key!r}]": values for key, values in (vary or {}).items()},
    }
    for name, values in lists.items():
        if isinstance(values, (str, Mapping)) or not (values is None or isinstance(values, Sequence)):
            raise ValueError(f"`{name}` must be a list with something in it, got {values!r}")
        if values is not None and not len(values):
            raise ValueError(f"`{name}` must be a list with something in it, got {values!r}")
    starts = _starts(options, inits)
    variants = _variants(options, picks)
    grid = [
        dict(zip(vary or {}, values, strict=True)) for values in itertools.product(*(vary or {}).values())
    ]
    arms = [
        _arm(init, pick, changed, values)
        for init, (pick, changed), values in itertools.product(starts, variants, grid)
    ]
    if len({arm.label for arm in arms}) < len(arms):
        raise ValueError("every initialisation, every pick and every value can be given once only")
    return arms


def parse_pick(text: str) -> Pick:
    """Read a `Pick` from its kind and options: ``loss`` or ``loss,mixing=0.2,corrected=true``."""
    kind, *values = text.split(",")
    document: dict[str, Any] = {"kind": kind.strip()}
    for value in values:
        key, separator, number = (part.strip() for part in value.partition("="))
        if not separator or not key:
            raise ValueError(f"expected KEY=VALUE after the kind of a pick, got {value!r} in {text!r}")
        try:
            document[key] = json.loads(number)
        except json.JSONDecodeError:
            document[key] = number
    try:
        return Pick.model_validate(document)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ValueError(f"{text!r} is not a pick: {problems}") from None


def pick_label(pick: Pick) -> str:
    """What `parse_pick` would read; defaults are left out."""
    values = pick.model_dump(mode="json", exclude_defaults=True)
    values.pop("kind", None)
    return ",".join([pick.kind, *(f"{key}={json.dumps(value)}" for key, value in values.items())])


def _starts(options: Any, inits: Sequence[str]) -> list[str | None]:
    """What points start from; None for methods that have no first points."""
    if options.method in _WITHOUT_START:
        if tuple(inits) != ("random",):
            raise ValueError(f"method {options.method!r} starts from no points: leave `inits` out")
        return [None]
    return [check_name(init, (*NEAR, *CORESETS), "initialisation") for init in inits]


def _variants(options: Any, picks: Sequence[str | Pick] | None) -> list[tuple[str | None, Any]]:
    """Each way to draw batches, and the options with it."""
    has_pick = "pick" in type(options).model_fields
    if picks is None:
        # KIP's pick depends on the data where it is not given.
        own = None if not has_pick else "default" if options.pick is None else pick_label(options.pick)
        return [(own, options)]
    if not has_pick:
        raise ValueError(f"method {options.method!r} draws no batches: leave `picks` out")
    made = [pick if isinstance(pick, Pick) else parse_pick(pick) for pick in picks]
    return [(pick_label(pick), options.model_copy(update={"pick": pick})) for pick in made]


def _arm(init: str | None, pick: str | None, options: Any, values: Mapping[str, Any]) -> ArmPlan:
    """An arm with these values: each is an option of the method, where it has one of that name, or an argument."""
    known = distill_arguments(_NOT_VARIED)
    fields = [name for name in type(options).model_fields if name not in ("method", "steps")]
    others = {"near": "inits", "pick": "picks", "seed": "seeds", "steps": "steps or time_limit"}
    of_method: dict[str, Any] = {}
    of_call: dict[str, Any] = {}
    for key, value in values.items():
        head, _, rest = key.partition(".")
        if head in others:
            raise ValueError(f"{key!r} is not for `vary`: give `{others[head]}`")
        check_name(head, {*known, *fields}, "option to vary")
        if head in fields:
            of_method[key] = value
        elif rest:
            raise ValueError(
                f"{head!r} is an argument of distill, which has no {rest!r} in it: vary {head!r}"
            )
        else:
            of_call[key] = value
    try:
        plain = {key: json.loads(json.dumps(value, allow_nan=False)) for key, value in values.items()}
    except (TypeError, ValueError) as error:
        raise ValueError(f"values to vary must be plain values: {error}") from None
    if of_method:
        document = merged(options.model_dump(), nested(of_method))
        options = validated(
            type(options), document, f"method {options.method!r} with {arm_label(init, pick, plain)}"
        )
    return ArmPlan(init, pick, plain, options, of_call)
