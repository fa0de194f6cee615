"""The arguments of one call of `distill`, checked as far as that goes without looking at the data."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from ._inputs import check_class_names, default_points, unpack
from ._methods import LEARNED, MethodOptions, method_options
from .solver._check import check_count, check_name, check_non_negative
from .solver.coresets import CORESETS
from .solver.distillation import LABELS, METHODS, SPACES
from .solver.executors import Executor
from .solver.loop import Loop
from .solver.points import BOUNDS, STORAGE
from .solver.reference import NEAR
from .solver.ridge_choice import RULES
from .solver.store import check_plain
from .solver.targets import Targets

# Methods that start from noise as published, or look at no rows to start from.
_FROM_NOISE = ("class-gaussians", "d3", "dc", "dkkt")


@dataclasses.dataclass(frozen=True)
class Job:
    """Arguments of `distill`, by its names; see there."""

    X: Any
    y: Any
    method: str | MethodOptions
    per_class: int
    n_points: int | None
    feature_map: Any
    feature_params: Mapping[str, Any] | None
    transform: Any
    ridge: Any
    distilled_ridge: float
    near: Any
    labels: str
    space: str
    bounds: str
    storage: str
    task: str
    targets: str
    n_classes: int | None
    intercept: bool
    sample_weight: Any
    precision: str
    holdout: float
    loop: Loop | None
    subtasks: int
    executor: str | Executor | None
    seed: int
    device: str
    batch_bytes: int | None
    progress: bool | None
    class_names: tuple[str, ...] | None
    provenance: Mapping[str, Any] | None

    learned: MethodOptions | None = dataclasses.field(init=False)
    origin: dict[str, Any] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        """Check names and numbers before anything is read, and take a `Data` apart."""
        check_plain(self.provenance)
        check_count(self.per_class, "per_class")
        check_non_negative(self.distilled_ridge, "distilled_ridge")
        check_name(self.labels, LABELS, "labels")
        check_name(self.space, SPACES, "space")
        check_name(self.bounds, BOUNDS, "bounds")
        check_name(self.storage, STORAGE, "storage type")
        check_name(self.targets, ("auto", "one-hot", "centred"), "target encoding")
        if isinstance(self.near, str):
            check_name(self.near, ("auto", *NEAR, *CORESETS), "points to start from (near)")
        if isinstance(self.ridge, str):
            check_name(self.ridge, RULES, "ridge rule")
        elif isinstance(self.ridge, (int, float)):
            check_non_negative(self.ridge, "ridge")
        if self.batch_bytes is not None:
            check_count(self.batch_bytes, "batch_bytes")
        if isinstance(self.method, str):
            check_name(self.method, (*METHODS, *LEARNED), "method")
        check_count(self.subtasks, "subtasks")
        if self.executor is not None and self.subtasks == 1:
            raise ValueError(
                "`executor` runs subtasks, of which there is one: raise `subtasks`, or leave it out"
            )
        if not (self.loop is None or isinstance(self.loop, Loop)):
            raise ValueError(
                f"`loop` must be a Loop, such as Loop(steps=100), got {type(self.loop).__name__}"
            )
        learned = method_options(self.method)
        X, y, task, n_classes, class_names, origin = unpack(
            self.X, self.y, self.task, self.n_classes, self.class_names
        )
        near, targets = self.near, self.targets
        if isinstance(near, str) and near == "auto":
            near = "noise" if learned is None or learned.method in _FROM_NOISE else "data"
        if targets == "auto":
            targets = "one-hot" if learned is None or learned.method == "full-kip" else "centred"
        changed = dict(
            X=X, y=y, task=task, n_classes=n_classes, class_names=class_names, near=near, targets=targets
        )
        for name, value in {**changed, "learned": learned, "origin": origin}.items():
            object.__setattr__(self, name, value)

    @property
    def method_name(self) -> str:
        """Name of the method."""
        return self.method if isinstance(self.method, str) else self.method.method

    @property
    def rows(self) -> dict[str, Any]:
        """What `_inputs.prepare_rows` takes besides the arrays."""
        return {name: getattr(self, name) for name in ("transform", "task", "targets", "n_classes")}

    def refuse(self, *names: str) -> None:
        """Raise if one of these arguments was given: the method has no use for it."""
        from ._distill import distill

        defaults = inspect.signature(distill).parameters
        for name in names:
            value = getattr(self, name)
            default = defaults[name].default
            same = value is default or (isinstance(value, (str, int, float)) and value == default)
            if not same:
                raise ValueError(f"method {self.method_name!r} takes no `{name}`: leave it out")

    def points(self, coding: Targets) -> int:
        """Number of points of the set."""
        return default_points(coding, self.per_class, self.n_points, self.intercept)

    @property
    def near_name(self) -> str:
        """`near`, or "given" for an array."""
        return self.near if isinstance(self.near, str) else "given"

    def names(self, coding: Targets) -> tuple[str, ...] | None:
        """Class names, one for each class."""
        return check_class_names(self.class_names, coding)
