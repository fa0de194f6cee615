"""Learners of images that networks are to be trained on: points with classes, judged by whoever trains networks.

What such a set is good for shows when networks are trained on it, which this layer does not do. So the learner is
given a judge, a function of points and labels, and the loop chooses by what it says of rows held out.
"""

import hashlib
from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from .._check import check_finite, check_name
from ..learner import digits
from ..networks import NETWORKS, NetworkSpec, network_spec
from .gradient import GradientLearner
from .rows import TrainingRows

# Transformed points (m, *input_shape) and target rows (m, k) to held-out figures, "loss" (smaller is better) and
# "score"; a function of its arguments alone.
Judge = Callable[[Tensor, Tensor], dict[str, float]]


class NetworkMethod(BaseModel):
    """Options that all methods have whose sets networks are to be trained on; each documents them.

    Attributes
    ----------
    network : str, default "convnet"
        By name (`networks`).
    network_params : dict
        Further arguments of the network.
    labels : {"fixed"}
    ridge : float, default 1e-3
        Of the ridge model that is stored with the set.
    judge_networks, judge_epochs : int, default 2 and 100
        Networks trained on the set at each evaluation, and how long.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: str = "convnet"
    network_params: dict[str, Any] = Field(default_factory=dict)
    labels: Literal["fixed"] = "fixed"
    ridge: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    judge_networks: int = Field(default=2, ge=1)
    judge_epochs: int = Field(default=100, ge=1)

    @field_validator("network")
    @classmethod
    def _known_network(cls, name: str) -> str:
        return check_name(name, NETWORKS, "network")

    def spec(self, rows: TrainingRows) -> NetworkSpec:
        """The network for such rows."""
        shape, k = rows.transform.input_shape, rows.targets.n_outputs
        return network_spec(self.network, shape, k, **self.network_params)


class ImageLearner(GradientLearner):
    """Base of learners whose parameter "x" are images with classes.

    Subclasses set `optimizer` and define `loss` (or `advance`).

    Parameters
    ----------
    rows : TrainingRows
        Images with classes.
    points : Tensor, shape (m, c, h, w)
        Transformed points to start from, in class order.
    labels : Tensor, shape (m, k)
        Their target rows, kept as they are.
    classes : Tensor, shape (m,), int64
        Class of each point.
    options : BaseModel
        Of the method, with a field `method`.
    seed : int
    judge : Judge

    Attributes
    ----------
    classes : Tensor, shape (m,), int64
        On the device of the rows.

    Raises
    ------
    ValueError
        If rows are no images or have no classes, shapes do not fit, values are not finite, or a class is numbered
        outside of the targets.
    """

    def __init__(
        self,
        rows: TrainingRows,
        points: Tensor,
        labels: Tensor,
        classes: Tensor | None,
        options: BaseModel,
        *,
        seed: int,
        judge: Judge,
    ) -> None:
        name = getattr(options, "method", type(options).__name__)
        shape, k = rows.transform.input_shape, rows.targets.n_outputs
        if len(shape) != 3:
            raise ValueError(f"method {name!r} learns images (c, h, w), got rows of shape {shape}")
        if rows.classes is None or classes is None:
            raise ValueError(f"method {name!r} needs classes: use another one for regression")
        if points.ndim == 0 or len(points) == 0 or tuple(points.shape[1:]) != shape:
            raise ValueError(
                f"`points` must hold one or more transformed points of shape {shape}, got {tuple(points.shape)}"
            )
        if tuple(labels.shape) != (len(points), k):
            raise ValueError(f"`labels` must have shape {(len(points), k)}, got {tuple(labels.shape)}")
        if tuple(classes.shape) != (len(points),):
            raise ValueError(f"`classes` must have shape ({len(points)},), got {tuple(classes.shape)}")
        if not 0 <= int(classes.min()) <= int(classes.max()) < k:
            raise ValueError(f"`classes` must be numbers from 0 to {k - 1}")
        check_finite(points, "points")
        check_finite(labels, "labels")
        self._rows, self._seed, self._judge = rows, seed, judge
        self.classes = classes.to(rows.device)
        self._labels = labels.to(rows.device, torch.float64, copy=True)
        self.parameters = {"x": points.to(rows.device, rows.dtype, copy=True).requires_grad_()}
        self._identity = {
            "method": name,
            "options": options.model_dump(mode="json", exclude={"steps", "evaluate_every"}),
            "start": [len(points), *digits([float(points.norm()), float(labels.norm())])],
            "classes": hashlib.sha256(classes.cpu().numpy().tobytes()).hexdigest(),
            "seed": seed,
            "data": rows.identity,
        }

    @property
    def identity(self) -> dict[str, Any]:
        return self._identity

    def evaluate(self) -> dict[str, float]:
        """What the judge says of the set as it is."""
        learned = self.learned()
        return self._judge(learned["x"], learned["y"])

    def learned(self) -> dict[str, Tensor]:
        """Copies of points and labels, float64."""
        return {"x": self.parameters["x"].detach().to(torch.float64, copy=True), "y": self._labels.clone()}
