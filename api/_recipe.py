"""One recipe: the arguments of `distill` for a published run, with what was published and what was measured."""

import datetime
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ._methods import FITTED_METHODS, options_class
from .solver.data import Data
from .solver.loop import Loop

_SETTABLE = (
    "feature_map",
    "feature_params",
    "holdout",
    "n_points",
    "near",
    "per_class",
    "storage",
    "subtasks",
    "targets",
    "transform",
)

Model = TypeVar("Model", bound=BaseModel)
_Text = Annotated[str, Field(min_length=1)]
_Count = Annotated[int, Field(ge=1)]
_Percent = Annotated[float, Field(ge=0, le=100)]


class Published(BaseModel):
    """A figure that somebody else printed.

    Attributes
    ----------
    metric : str, default "accuracy"
        What was measured on the test split; in percent.
    value, deviation : float
        Deviation as printed, None where none was.
    source : str
        Paper, notebook or repository.
    recalled : bool, default False
        Written down from memory and found in no source: no fact until somebody looks it up.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: _Text = "accuracy"
    value: _Percent
    deviation: _Percent | None = None
    source: _Text
    recalled: bool = False


class Measured(BaseModel):
    """A figure that this library gave with the recipe.

    Attributes
    ----------
    metric, value, deviation
        As in `Published`; mean and deviation over seeds where there are several.
    seeds : int, default 1
        Number of runs, with seeds 0, 1, ...
    data : str
        The copy of the data that was used.
    machine, command, date
        Where, how and when.
    seconds : float
        Of the loop, for one run.
    note : str
        What differed from the recipe.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: _Text = "accuracy"
    value: _Percent
    deviation: _Percent | None = None
    seeds: _Count = 1
    data: _Text
    machine: _Text
    command: _Text
    date: datetime.date
    seconds: Annotated[float, Field(gt=0)]
    note: str = ""


class Recipe(BaseModel):
    """Settings of one run.

    Attributes
    ----------
    name : str
        File, and variant where there are some.
    title : str
    note : str
        What differs from the published run.
    data : str
        Data set that the figures are of.
    shape : tuple of int
        Of one input, channels first.
    classes : int
    per_class, n_points : int
        Exactly one of them.
    near, transform, targets, storage, subtasks, holdout, feature_map, feature_params
        As in `distill`; what is left out has its default there.
    method : mapping
        Tag of a learned method under "method", with fields of its options.
    loop : mapping
        Fields of `Loop`.
    published, measured : tuple
        No measured figure: the recipe was not run.
    changed : tuple of str
        Keys that `replaced` set, so that nobody takes the run for the published one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: _Text
    title: _Text
    note: str = ""
    data: _Text
    shape: Annotated[tuple[_Count, ...], Field(min_length=1)]
    classes: Annotated[int, Field(ge=2)]
    per_class: _Count | None = None
    n_points: _Count | None = None
    near: _Text | None = None
    transform: _Text | None = None
    targets: _Text | None = None
    storage: _Text | None = None
    subtasks: _Count | None = None
    holdout: Annotated[float, Field(ge=0, lt=1)] | None = None
    feature_map: _Text | None = None
    feature_params: dict[str, Any] | None = None
    method: dict[str, Any]
    loop: dict[str, Any] = Field(default_factory=dict)
    published: tuple[Published, ...] = ()
    measured: tuple[Measured, ...] = ()
    changed: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _complete(self) -> "Recipe":
        if (self.per_class is None) == (self.n_points is None):
            raise ValueError("give either per_class or n_points")
        # Wrong options are found when the recipe is read, not when the run begins.
        _ = self.method_options, self.loop_options
        return self

    @cached_property
    def method_options(self) -> Any:
        """Options of the method, as `distill` takes them."""
        return validated(options_class(str(self.method.get("method"))), self.method, "[method]")

    @cached_property
    def loop_options(self) -> Loop:
        """Options of the loop, as `distill` takes them."""
        return validated(Loop, self.loop, "[loop]")

    @property
    def points(self) -> int:
        """Number of points of the set."""
        return self.n_points or (self.per_class or 0) * self.classes

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `distill`; the caller adds the data, a seed, and what belongs to the machine."""
        given = {name: getattr(self, name) for name in _SETTABLE if getattr(self, name) is not None}
        origin = {"recipe": {"name": self.name, "changed": list(self.changed)}}
        made = {**given, "method": self.method_options, "loop": self.loop_options, "provenance": origin}
        if self.method["method"] in FITTED_METHODS:
            del made["loop"]
        return made

    def replaced(self, values: Mapping[str, Any]) -> "Recipe":
        """Set values by dotted key; the set's file will name them.

        Parameters
        ----------
        values : mapping
            For instance ``{"loop.steps": 100, "per_class": 5, "method.pick.kind": "loss"}``.

        Raises
        ------
        ValueError
            If there is no such value to set, or it is not valid.
        """
        document: dict[str, Any] = self.model_dump()
        for key, value in values.items():
            *tables, last = key.split(".")
            if not (tables[0] in ("method", "loop", "feature_params") if tables else last in _SETTABLE):
                raise ValueError(
                    f"a recipe has no value {key!r} to set: use {', '.join(_SETTABLE)}, method.<option> or"
                    " loop.<option>"
                )
            nested: Any = value
            for table in reversed([*tables, last]):
                nested = {table: nested}
            document = overlaid(document, nested)
        document["changed"] = (*self.changed, *(key for key in values if key not in self.changed))
        return validated(Recipe, document, f"recipe {self.name!r}")

    def check(self, data: Data) -> None:
        """Refuse other data than the recipe is for, by shape and classes: `distill` itself would take any.

        Raises
        ------
        ValueError
            Saying what the recipe is for, and what was found.
        """
        found, classes = tuple(data.x_train.shape[1:]), len(data.class_names)
        if found != self.shape or classes != self.classes:
            raise ValueError(
                f"recipe {self.name!r} is for {self.data} ({self.classes} classes of {_shape(self.shape)}), and"
                f" {data.name!r} has {classes or 'no'} classes of {_shape(found)}: its settings can be tried on"
                " other data if that is meant (--any-data), but its figures say nothing of them"
            )


def overlaid(document: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a recipe with `values` in place of their own; points a class replace a number of points."""
    other = {"n_points": "per_class", "per_class": "n_points"}
    kept = {key: value for key, value in document.items() if other.get(key) not in values}
    return merged(kept, values)


def merged(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `values` in place of its own, tables key by key."""
    made = dict(base)
    for key, value in values.items():
        old = made.get(key)
        made[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return made


def validated(model: type[Model], document: Mapping[str, Any], what: str) -> Model:
    """`document` as a model; what is wrong with it is said in one line.

    Raises
    ------
    ValueError
        If the document does not fit the model.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        known = f"no such option; there are {', '.join(model.model_fields)}"
        found = [
            (
                ".".join(map(str, entry["loc"])),
                known
                if entry["type"] == "extra_forbidden" and len(entry["loc"]) == 1
                else entry["msg"].removeprefix("Value error, "),
            )
            for entry in error.errors()
        ]
        problems = "; ".join(f"{place}: {message}" if place else message for place, message in found)
        raise ValueError(f"{what} is not valid: {problems}") from None


def _shape(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))
