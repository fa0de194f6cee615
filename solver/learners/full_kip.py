r"""Full-data KIP: points that minimise the loss over all n rows, computed from G and B (`full_loss`).

KIP (Nguyen et al., ICLR 2021) follows the loss on random batches, because its kernels have no features. A
finite feature map has sufficient statistics: the exact loss and its derivative then cost m p² multiplications
whatever n is, carry no sampling noise, and allow a quasi-Newton method: L-BFGS-B (Byrd, Lu, Nocedal and Zhu 1995,
SciPy's), in the box of the data's values if asked.

**A step** is one leg of at most `inner` iterations that starts from the points as they are, with an empty
memory of curvature. So points (and labels, where they are learned) are the whole state between two steps, and a
run that was killed and resumed ends in the same bits as one that was not. Legs of 100 iterations lose nothing by
that: for MNIST, 4096 Fourier features and 10 points, 1000 iterations in legs of 10, 50, 100, 1000 end at a relative
excess of 0.0622, 0.0563, 0.0555, 0.0554.

**Where to start.** Real rows and noise end alike (0.0620 and 0.0619 after 300 evaluations of that problem). Where
the closed form has points behind it, they are the answer: their excess is rounding, and a leg from there stays
there. Where it has none (p > d), points whose features are fitted to those of the closed form make a poor start:
their excess is lower at first, but stops near 0.16. So there is no option for it; start points are given.
"""

from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from .._check import check_finite
from ..fit import FullModel
from ..learner import Figures, Learner, State, digits
from ..made_set import best_bias, projected_model
from .full_loss import FullLoss


class FullKIP(BaseModel):
    """Options of full-data KIP.

    Attributes
    ----------
    labels : {"solved", "fixed", "learned"}, default "solved"
        "solved": the best labels for the points, in closed form, so that only points are searched for.
        "fixed": the labels that the points start with. "learned": points and labels together.
    ridge : float, default 1e-6
        λ_S of fixed and learned labels, relative to the mean of the diagonal of the set's kernel matrix, as in
        KIP. Solved labels follow any λ_S, so it does not matter to them.
    bounds : {"free", "data"}, default "free"
        "data" keeps raw values in the range of the training data; for transforms that act on values one by one.
    inner : int, default 100
        Iterations of L-BFGS-B in one step of the loop.
    memory : int, default 20
        Pairs of steps and gradients from which L-BFGS-B models the curvature.
    steps, evaluate_every : int, default 20 and 1
        Where the loop does not say.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["full-kip"] = "full-kip"
    labels: Literal["solved", "fixed", "learned"] = "solved"
    ridge: float = Field(default=1e-6, gt=0, allow_inf_nan=False)
    bounds: Literal["free", "data"] = "free"
    inner: int = Field(default=100, ge=1)
    memory: int = Field(default=20, ge=1)
    steps: int = Field(default=20, ge=0)
    evaluate_every: int = Field(default=1, ge=1)


class FullKIPLearner(Learner):
    """Learner of points (and labels) from a full model's statistics.

    Parameters
    ----------
    full : FullModel
    start : Tensor, shape (m, *input_shape)
        Transformed points; at least two with an intercept, which one point leaves nothing to span.
    options : FullKIP
    labels : Tensor, shape (m, k), optional
        Target rows that the points start with; for fixed and learned labels.

    Raises
    ------
    ValueError
        If shapes do not fit, values are not finite, labels are missing, the full model is its intercept alone, or
        ``bounds="data"`` meets a transform that mixes values or data of unknown range.

    Notes
    -----
    A step takes about 1.1 `inner` evaluations of the loss, each m p² + m² p multiplications (k p² + 2 m² p for
    fixed and learned labels) and one forward and backward pass of the map for m points.
    """

    def __init__(
        self, full: FullModel, start: Tensor, options: FullKIP, labels: Tensor | None = None
    ) -> None:
        encoder, k = full.model.encoder, full.model.targets.n_outputs
        shape = encoder.transform.input_shape
        if tuple(start.shape[1:]) != shape or len(start) < 1 + full.intercept:
            raise ValueError(
                f"`start` must hold {'two' if full.intercept else 'one'} or more transformed points of shape {shape},"
                f" got {tuple(start.shape)}"
            )
        check_finite(start, "start")
        if options.labels == "solved":
            labels = None
        elif labels is None or tuple(labels.shape) != (len(start), k):
            found = "none" if labels is None else tuple(labels.shape)
            raise ValueError(
                f"labels={options.labels!r} needs labels that the points start with, of shape {(len(start), k)}, got"
                f" {found}"
            )
        else:
            check_finite(labels, "labels")
        self._full, self._options = full, options
        self._features, self._loss = encoder.feature_map.features, FullLoss(full)
        self._box = _box(full, start) if options.bounds == "data" else None
        self._x = start.double().clone()
        if self._box is not None:
            self._x = self._x.clamp(*self._box)
        self._y = None if labels is None else labels.double().clone()
        with torch.no_grad():
            self._start = [*digits([float(self._x.norm())]), round(float(self._excess(self._x, self._y)), 6)]

    @property
    def identity(self) -> dict[str, Any]:
        full, loss = self._full, self._loss
        return {
            "method": "full-kip",
            "options": self._options.model_dump(exclude={"steps", "evaluate_every"}),
            "encoder": full.model.encoder.digest(),
            "targets": full.model.targets.parameters(),
            "intercept": full.intercept,
            "rows": full.n_rows,
            # Figures that depend on all of the data and the start, in few digits: the last ones of a sum change
            # with the number of threads.
            "data": [
                *digits([full.ridge, loss.unit, *full.data.cross.norm(dim=0).tolist()]),
                round(loss.least / loss.unit, 6),
            ],
            "start": [len(self._x), *self._start],
        }

    def advance(self, step: int) -> Figures:
        """One leg of L-BFGS-B: the loss after it is never above the one before it."""
        del step
        import scipy.optimize

        history: list[float] = []

        def excess_and_gradient(values: np.ndarray) -> tuple[float, np.ndarray]:
            x, y = self._parts(values)
            leaves = [x.requires_grad_()]
            if self._options.labels == "learned":
                assert y is not None
                leaves.append(y.requires_grad_())
            excess = self._excess(x, y)
            gradient = torch.cat([part.flatten() for part in torch.autograd.grad(excess, leaves)])
            history.append(float(excess.detach()))
            return history[-1], gradient.cpu().numpy()

        options = self._options
        result = scipy.optimize.minimize(
            excess_and_gradient,
            self._vector(),
            jac=True,
            method="L-BFGS-B",
            bounds=self._limits(),
            # The excess is relative: these tolerances end a leg where rounding leaves nothing to gain.
            options={"maxiter": options.inner, "maxcor": options.memory, "ftol": 1e-15, "gtol": 1e-13},
        )
        self._x, self._y = self._parts(np.array(result.x))
        return {
            "loss": self._loss.least + self._loss.unit * history[0],
            "excess": history[0],
            "iterations": float(result.nit),
            "evaluations": float(result.nfev),
        }

    def evaluate(self) -> dict[str, float]:
        """Figures over all training rows, which need no held-out rows: the loss is what it is, not a sample.

        Returns
        -------
        dict
            "loss": with the penalty of the full model, in KIP's units. "excess": relative, 0 where the set gives
            the full model. "squared_error": KIP's own loss, half the mean square of the residuals.
        """
        with torch.no_grad():
            excess = float(self._excess(self._x, self._y))
        W, bias, _ = self._model()
        return {
            "loss": self._loss.least + self._loss.unit * excess,
            "excess": excess,
            "squared_error": self._loss.of_model(W, bias, ridge=0.0),
        }

    def learned(self) -> dict[str, Tensor]:
        """Points "x" (m, *input_shape), transformed; labels "y" (m, k); and "ridge", the absolute λ_S to train with.

        Solved labels are the predictions of the best model, for λ_S = 0.
        """
        W, bias, ridge = self._model()
        y = self._features(self._x) @ W + bias if self._y is None else self._y.clone()
        return {"x": self._x.clone(), "y": y, "ridge": ridge}

    def state(self) -> State:
        return {"x": self._x} | ({} if self._y is None else {"y": self._y}), {}

    def restore(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        del plain
        self._x = tensors["x"].to(self._x).clone()
        self._y = None if self._y is None else tensors["y"].to(self._y).clone()

    def _excess(self, x: Tensor, y: Tensor | None) -> Tensor:
        F = self._features(x)
        return self._loss.solved(F) if y is None else self._loss.given(F, y, self._options.ridge)

    def _model(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights, intercept and absolute λ_S of the model that the set gives."""
        F = self._features(self._x)
        if self._y is None:
            W = projected_model(self._full, F, self._full.model.weights)
            return W, best_bias(self._full, W), F.new_zeros(())
        ridge = self._options.ridge
        return *self._loss.given_model(F, self._y, ridge), self._loss.absolute_ridge(F, ridge)

    def _vector(self) -> np.ndarray:
        """What is searched, as SciPy takes it: points, and labels where they are learned."""
        parts = [self._x] if self._options.labels != "learned" or self._y is None else [self._x, self._y]
        return torch.cat([part.flatten() for part in parts]).cpu().numpy()

    def _parts(self, values: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Points and labels of a vector."""
        vector, size = torch.from_numpy(values).to(self._x.device), self._x.numel()
        y = self._y if self._y is None or len(vector) == size else vector[size:].reshape(self._y.shape)
        return vector[:size].reshape(self._x.shape), y

    def _limits(self) -> list[tuple[float, float]] | None:
        """Bounds of each searched value."""
        if self._box is None:
            return None
        low, high = (edge.expand_as(self._x).flatten().tolist() for edge in self._box)
        free = [(-np.inf, np.inf)] * (len(self._vector()) - len(low))
        return [*zip(low, high, strict=True), *free]


def _box(full: FullModel, like: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest transformed values (1, *input_shape) of raw values in the range of the data."""
    transform = full.model.encoder.transform
    if not transform.elementwise:
        raise ValueError(
            f"bounds='data' needs a transform that acts on values one by one, {transform.name!r} mixes them: use"
            " bounds='free' or transform='standardize'"
        )
    if not all(map(np.isfinite, full.data_range)):
        raise ValueError("bounds='data' needs the range of the data, which statistics alone do not hold")
    edges = [
        transform.forward(torch.full_like(like[:1], value, dtype=torch.float64)) for value in full.data_range
    ]
    return torch.minimum(*edges), torch.maximum(*edges)
