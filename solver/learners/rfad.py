r"""RFAD: learned points of kernel ridge regression on fresh random convolutional networks at every step.

With :math:`\varphi_t` the features of the N networks of step t (`feature_maps.random_conv`: the last dense layer is
integrated out, so that :math:`\varphi_t(x)\cdot\varphi_t(y) = \frac{2}{N p}\sum_i f_i(x)\cdot f_i(y) + 0.01`),

.. math::
    \hat Y = \Phi_T \Phi_S^\top\,(K_{SS} + r\,\tfrac{\mathrm{tr} K_{SS}}{m} I)^{-1}\, Y_S, \qquad
    K_{SS} = \Phi_S \Phi_S^\top,

against the targets of a batch T of rows: half their mean squared distance, or the cross-entropy of
:math:`e^{s} \hat Y` with a learned scale s (Platt). Learned are the points, if asked their labels, s, and a matrix
that all points go through, :math:`x = A u`. Source: Loo, Hasani, Amini and Rus, NeurIPS 2022, and ``distillation.py``
of their published code.

Nothing is taken from there but the mathematics. What the published loop does otherwise:

- predictions there are :math:`K_{TS} \alpha` with :math:`K_{TS}` (b, m) formed, here
  :math:`\Phi_T (\Phi_S^\top \alpha)`; the features of the batch need no graph, because the gradient reaches the
  points through :math:`\Phi_S` alone, so they are made once, in the cheapest precision that keeps the loss;
- it validates on rows that it trains on, drawn with replacement. Here rows are held out, and predicted with the
  networks that the set will be stored with, so that a held-out figure is that of the stored set;
- its accuracies are computed on the host at every step; here nothing leaves the device, but for picks by loss.
"""

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor
from torch.nn import functional

from .._check import check_finite
from ..conv_networks import (
    BIAS_VARIANCE,
    WEIGHT_VARIANCE,
    ConvSpec,
    conv_features,
    draw_conv_networks,
    repeatable,
)
from ..feature_maps.random_conv import RandomConv, with_last_layer
from ..learner import Figures, State, digits
from ..optimizers import AdaBelief
from .gradient import GradientLearner
from .kernel_ridge import kernel_ridge, prediction_figures, row_losses
from .pick import Pick, Picker
from .rows import TrainingRows

Precision = Literal["auto", "float32", "bfloat16", "float16"]
# Features of held-out rows are kept between evaluations while they take no more.
_HELD_BYTES = 2**30
_ROWS = 512  # rows of features that are widened at a time


class RFAD(BaseModel):
    """Options of RFAD; the defaults are those of the published runs with ``--platt``.

    For colour images those whiten first: ``distill(..., transform="zca-rfad")``; by default `distill` standardises.

    Attributes
    ----------
    loss : {"cross-entropy", "mse"}, default "cross-entropy"
        Of the scaled predictions against classes, or half the mean square; values take "mse" only.
    labels : {"fixed", "learned"}, default "fixed"
    matrix : {"identity", "none"}, default "identity"
        What the learned matrix A starts from, for points that are transformed (whitened, say) already; or no matrix.
    ridge : float, default 5e-3
        r, relative to the mean of the diagonal of K_SS.
    networks : int or tuple of pairs, default 8
        Networks of each step; pairs (first step, networks) change it on the way.
    width : int, default 256
        Channels of their blocks.
    depth : int, default 3
    kept_networks : int, default 16
        Networks of the feature map that the set is validated, stored and used with.
    batch_size : int, default 5120
        Rows of a step.
    pick : Pick
        How they are drawn; uniformly by default.
    lr, matrix_lr, scale_lr : float, default 1e-3, 5e-5, 1e-2
        Of points and labels, of the matrix, and of s, by AdaBelief.
    real_precision : {"auto", "float32", "bfloat16", "float16"}
        Of the features of training and held-out rows. "auto": float16 on a GPU, that of the rows elsewhere. Half
        precision moved losses of trained sets by 2e-4 at most, bfloat16 by 5e-4 (relative, measured on a CPU).
    strategy : {"loop", "grouped"}, default "loop"
        See `conv_networks`.
    steps, evaluate_every : int, default 100,000 and 40
        Where the loop does not say. The published runs end earlier, after 25 evaluations that are no better.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["rfad"] = "rfad"
    loss: Literal["cross-entropy", "mse"] = "cross-entropy"
    labels: Literal["fixed", "learned"] = "fixed"
    matrix: Literal["identity", "none"] = "identity"
    ridge: float = Field(default=5e-3, gt=0, allow_inf_nan=False)
    networks: int | tuple[tuple[int, int], ...] = 8
    width: int = Field(default=256, ge=1)
    depth: int = Field(default=3, ge=1)
    kept_networks: int = Field(default=16, ge=1)
    batch_size: int = Field(default=5120, ge=1)
    pick: Pick = Pick()
    lr: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    matrix_lr: float = Field(default=5e-5, gt=0, allow_inf_nan=False)
    scale_lr: float = Field(default=1e-2, gt=0, allow_inf_nan=False)
    real_precision: Precision = "auto"
    strategy: Literal["loop", "grouped"] = "loop"
    steps: int = Field(default=100_000, ge=0)
    evaluate_every: int = Field(default=40, ge=1)

    @field_validator("networks")
    @classmethod
    def _check_networks(cls, value: int | tuple[tuple[int, int], ...]) -> int | tuple[tuple[int, int], ...]:
        pairs = ((0, value),) if isinstance(value, int) else value
        steps = [step for step, _ in pairs]
        if not pairs or steps[0] != 0 or sorted(set(steps)) != steps or min(count for _, count in pairs) < 1:
            raise ValueError("give a count, or pairs (first step, count) with growing steps from 0 on")
        return value

    def networks_at(self, step: int) -> int:
        """Networks of a step."""
        if isinstance(self.networks, int):
            return self.networks
        return next(count for first, count in reversed(self.networks) if first <= step)

    def feature_map(self, input_shape: tuple[int, ...], seed: int) -> RandomConv:
        """The map that a set is validated, stored and used with."""
        return RandomConv(
            input_shape, width=self.width, depth=self.depth, n_networks=self.kept_networks, seed=seed
        )


class RFADLearner(GradientLearner):
    """Learner of points by RFAD.

    Parameters
    ----------
    rows : TrainingRows
        Images. Arithmetic is in their dtype on their device.
    start : Tensor, shape (m, *input_shape)
        Transformed points.
    labels : Tensor, shape (m, k)
        Their target rows.
    options : RFAD
    seed : int
        Decides networks and batches.

    Attributes
    ----------
    rows, options, seed
        As given.
    spec : ConvSpec
        The networks of the steps.
    feature_map : RandomConv
        What the set is validated with, and to be stored with.
    picker : Picker

    Raises
    ------
    ValueError
        If shapes do not fit, values are not finite, the inputs are no images or too small, or cross-entropy is asked
        for without classes.

    Notes
    -----
    A step makes features of `batch_size` rows and of m points, and their gradient: N (batch_size + 3 m) times the
    multiplications of one image (0.2 G for 3 x 32 x 32 at width 256), of which those of the points alone keep
    activations (`conv_networks` bounds them). The features of the batch take 2 batch_size N p bytes in half
    precision.
    """

    def __init__(
        self,
        rows: TrainingRows,
        start: Tensor,
        labels: Tensor,
        options: RFAD,
        *,
        seed: int,
    ) -> None:
        shape, k = rows.transform.input_shape, rows.targets.n_outputs
        if start.ndim == 0 or len(start) == 0 or tuple(start.shape[1:]) != shape:
            raise ValueError(
                f"`start` must hold one or more transformed points of shape {shape}, got {tuple(start.shape)}"
            )
        if tuple(labels.shape) != (len(start), k):
            raise ValueError(f"`labels` must have shape {(len(start), k)}, got {tuple(labels.shape)}")
        check_finite(start, "start")
        check_finite(labels, "labels")
        if options.loss == "cross-entropy" and not rows.targets.is_classes:
            raise ValueError("cross-entropy needs classes: set loss='mse' to learn to predict values")
        self.rows, self.options, self.seed = rows, options, seed
        self.spec = ConvSpec(shape, options.width, options.depth)
        self.feature_map = options.feature_map(shape, seed)
        self.picker = Picker(rows, options.pick, options.batch_size, seed)
        self._dtype, self._device = rows.dtype, rows.device
        self._real = _real_dtype(options.real_precision, rows)
        self._shape = (len(start), *shape)
        # Of the rows held out: features or, where there was no room for them, None; inputs; target rows.
        self._held: list[tuple[Tensor | None, Tensor, Tensor]] | None = None
        self._fingerprint = digits(float(value.double().norm()) for value in (start, labels))

        points = start.flatten(1)
        self._labels = labels.to(self._device, self._dtype)
        self.parameters = {"points": self._leaf(points)}
        groups: list[dict[str, Any]] = [{"params": [self.parameters["points"]], "lr": options.lr}]
        more = {
            "labels": (labels if options.labels == "learned" else None, options.lr),
            "matrix": (
                torch.eye(points.shape[1]) if options.matrix == "identity" else None,
                options.matrix_lr,
            ),
            "log_scale": (torch.zeros(()) if options.loss == "cross-entropy" else None, options.scale_lr),
        }
        for name, (value, lr) in more.items():
            if value is not None:
                self.parameters[name] = self._leaf(value)
                groups.append({"params": [self.parameters[name]], "lr": lr})
        self.optimizer = AdaBelief(groups, lr=options.lr, eps=1e-16)

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "method": "rfad",
            "options": self.options.model_dump(mode="json", exclude={"steps", "evaluate_every"}),
            "seed": self.seed,
            "data": self.rows.identity,
            "start": [*self._shape, *self._fingerprint],
        }

    def advance(self, step: int) -> Figures:
        with repeatable():
            return super().advance(step)

    def loss(self, step: int) -> tuple[Tensor, Figures]:
        count = self.options.networks_at(step)
        stream = f"rfad.networks.{step}"
        networks = draw_conv_networks(
            self.spec, count, self.seed, stream, device=self._device, dtype=self._dtype
        )
        rounded = networks.to(self._real)

        def real_features(index: Tensor) -> Tensor:
            with torch.no_grad():
                return conv_features(
                    rounded, self.rows.inputs(index).to(self._real), strategy=self.options.strategy
                ).flatten(1)

        F = with_last_layer(conv_features(networks, self._points(), strategy=self.options.strategy))
        V = self._model(F)

        def losses_of(index: Tensor) -> Tensor:
            with torch.no_grad():
                return self._losses(_predict(real_features(index), V), self.rows.outputs(index))

        self.picker.refresh(step, losses_of)
        picked = self.picker.draw(step)
        predicted = _predict(real_features(picked.index), V)
        outputs = self.rows.outputs(picked.index)
        losses = self._losses(predicted, outputs)
        self.picker.observe(picked.index, losses.detach())
        loss = (picked.weights.to(losses) * losses).sum()
        if not self.rows.targets.is_classes:
            return loss, {}
        hits = predicted.detach().argmax(1) == outputs.argmax(1)
        return loss, {"accuracy": hits.to(loss.dtype).mean()}

    def evaluate(self) -> dict[str, float]:
        """Figures of rows held out, predicted as the stored set will.

        Returns
        -------
        dict
            "loss", and "score": the accuracy, or R² for values.
        """
        with torch.no_grad(), repeatable():
            V = self._model(self.feature_map.features(self._points()))
            parts = [(_predict(features, V), outputs) for features, outputs in self._held_out()]
            predicted, outputs = (torch.cat(part) for part in zip(*parts, strict=True))
            figures = prediction_figures(self.rows.targets, predicted.double(), outputs)
            return {**figures, "loss": float(self._losses(predicted, outputs).mean())}

    def learned(self) -> dict[str, Tensor]:
        """Points "x" (m, *input_shape) after the learned matrix, labels "y" (m, k), and the Platt scale "log_scale"."""
        with torch.no_grad():
            found = {"x": self._points().double().clone(), "y": self._y().detach().double().clone()}
        scale = self.parameters.get("log_scale")
        return found if scale is None else {**found, "log_scale": scale.detach().double().clone()}

    def extra_state(self) -> State:
        return self.picker.state()

    def restore_extra(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        self.picker.restore(tensors, plain)

    def _leaf(self, value: Tensor) -> Tensor:
        return value.to(self._device, self._dtype, copy=True).requires_grad_()

    def _points(self) -> Tensor:
        """Points as the networks see them."""
        points = self.parameters["points"]
        if "matrix" in self.parameters:
            points = points @ self.parameters["matrix"]
        return points.reshape(self._shape)

    def _y(self) -> Tensor:
        return self.parameters.get("labels", self._labels)

    def _model(self, F: Tensor) -> Tensor:
        """Weights (N p + 1, k) of the ridge regression on points of features F (m, N p + 1)."""
        F = F.double()
        return (F.mT @ kernel_ridge(F @ F.mT, self._y().double(), self.options.ridge)).to(self._dtype)

    def _losses(self, predicted: Tensor, outputs: Tensor) -> Tensor:
        """Loss of each row, (b,)."""
        if self.options.loss == "mse":
            return row_losses(predicted, outputs.to(predicted))
        scaled = self.parameters["log_scale"].exp() * predicted
        return functional.cross_entropy(scaled, outputs.argmax(1), reduction="none")

    def _held_out(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Features and target rows of the rows held out; features are kept while they fit `_HELD_BYTES`."""
        if self._held is None:
            self._held, spare = [], _HELD_BYTES
            for inputs, outputs in self.rows.held_out():
                for X, Y in zip(inputs.split(_ROWS), outputs.split(_ROWS), strict=True):
                    F = self._kept_features(X)
                    spare -= F.nbytes
                    self._held.append((F, X.new_empty(0), Y) if spare >= 0 else (None, X, Y))
        for F, X, Y in self._held:
            yield (self._kept_features(X) if F is None else F), Y

    def _kept_features(self, X: Tensor) -> Tensor:
        networks = self.feature_map.networks(self._device, self._real)
        return conv_features(networks, X.to(self._real), strategy=self.options.strategy).flatten(1)


def _predict(F: Tensor, V: Tensor) -> Tensor:
    """Predictions (b, k) for features F (b, N p) before the last layer, by weights V (N p + 1, k) behind it."""
    scale = math.sqrt(WEIGHT_VARIANCE / F.shape[1])
    return _Product.apply(F, V[:-1] * scale) + math.sqrt(BIAS_VARIANCE) * V[-1]  # type: ignore[operator]


class _Product(torch.autograd.Function):
    """``F @ V`` for a constant F of any precision, which is widened a few rows at a time, also for the derivative."""

    @staticmethod
    def forward(ctx: Any, F: Tensor, V: Tensor) -> Tensor:
        ctx.save_for_backward(F)
        return torch.cat([rows.to(V.dtype) @ V for rows in F.split(_ROWS)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (F,), (grad,) = ctx.saved_tensors, grads
        total = grad.new_zeros(F.shape[1], grad.shape[1])
        for rows, part in zip(F.split(_ROWS), grad.split(_ROWS), strict=True):
            total.addmm_(rows.to(grad.dtype).mT, part)
        return None, total


def _real_dtype(precision: Precision, rows: TrainingRows) -> torch.dtype:
    if precision == "auto":
        return torch.float16 if rows.device.type == "cuda" else rows.dtype
    return getattr(torch, precision)
