r"""KIP: points, and labels, that minimise the kernel ridge loss on random batches of rows.

A step draws a batch T of training rows and follows the gradient of (`kernel_ridge`)

.. math:: L = \tfrac{1}{2bk} \|K_{TS}\,(K_{SS} + \lambda_S I)^{-1} Y_S - Y_T\|^2,\qquad
          \lambda_S = 10^{-6}\,\operatorname{tr} K_{SS} / m

in the points, and in the labels where they are learned. Source: Nguyen, Chen and Lee, "Dataset meta-learning
from kernel ridge-regression", ICLR 2021, and the published notebook, whose settings are the defaults here: the
kernel of a network with one hidden layer, class-balanced batches of 5000 rows, Adam at 0.04, 300 steps.

**Labels solved** (Label Solve within KIP): the best labels for a batch are eliminated in closed form, so that
points descend on what no labels could give; the labels that are kept are the best over all training rows
(`label_solve`).

**Mixed precision.** K_SS and all that is solved is float64. The large block K_TS, nearly all of the work, is
float32, in whose derivative the rounding is about 3e-7 of its norm, far below the sampling noise of a batch.
"""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from .._check import check_finite, check_name
from ..kernel_functions import KernelFunction, kernel_function_names
from ..learner import Figures, State, digits
from ..optimizers import make_optimizer
from .augment import Augmentation, augment
from .gradient import GradientLearner
from .kernel_ridge import kernel_ridge, prediction_figures, row_losses
from .label_solve import SolvedLabels, solve_batch, solve_labels
from .pick import Pick, Picker
from .rows import TrainingRows


class KIP(BaseModel):
    """Options of KIP; the defaults are those of the published notebook.

    Attributes
    ----------
    kernel : str, default "ntk"
        Name of a kernel (`kernel_functions`), or of a feature map, whose linear kernel is meant.
    kernel_params : dict
        Further arguments of the kernel.
    ridge : float, default 1e-6
        r, relative to the mean of the diagonal of K_SS; of solved labels it changes the labels, not the predictions.
    labels : {"fixed", "learned", "solved"}, default "fixed"
        "solved" with ``steps=0`` is Label Solve.
    batch_size : int, default 5000
        Rows of a step.
    lr : float, default 0.04
        Of points, in units of the transformed data.
    label_lr : float, optional
        Of learned labels; default that of the points, as published.
    optimizer : {"adam", "adamw", "sgd", "adabelief", "lamb"}, default "adam"
    pick : Pick, optional
        How batches are drawn; by default balanced over the classes, and uniformly where there are none.
    augment : tuple of {"flip", "shift"}, default none
        Changes of the images of a batch.
    precision : {"mixed", "exact"}, default "mixed"
        K_TS in float32, or in float64.
    steps, evaluate_every : int, default 300 and 20
        Where the loop does not say.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["kip"] = "kip"
    kernel: str = "ntk"
    kernel_params: dict[str, Any] = Field(default_factory=dict)
    ridge: float = Field(default=1e-6, ge=0, allow_inf_nan=False)
    labels: Literal["fixed", "learned", "solved"] = "fixed"
    batch_size: int = Field(default=5000, ge=1)
    lr: float = Field(default=0.04, gt=0, allow_inf_nan=False)
    label_lr: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    optimizer: Literal["adam", "adamw", "sgd", "adabelief", "lamb"] = "adam"
    pick: Pick | None = None
    augment: tuple[Augmentation, ...] = ()
    precision: Literal["mixed", "exact"] = "mixed"
    steps: int = Field(default=300, ge=0)
    evaluate_every: int = Field(default=20, ge=1)

    @field_validator("kernel")
    @classmethod
    def _known(cls, name: str) -> str:
        return check_name(name, kernel_function_names(), "kernel")


class KIPLearner(GradientLearner):
    """Learner of points by KIP.

    Parameters
    ----------
    rows : TrainingRows
    kernel : KernelFunction
        What the options name, made.
    points : Tensor, shape (m, *input_shape)
        Transformed points to start from.
    labels : Tensor, shape (m, k)
        Their target rows; solved labels do not look at them.
    options : KIP
    seed : int
        Decides batches and augmentation.

    Raises
    ------
    ValueError
        If shapes do not fit, values are not finite, rows are not images and are to be augmented, or classes are to be
        balanced and there are none.

    Notes
    -----
    A step evaluates b m kernel values three times (value, value again, derivative), for a network of one hidden layer
    3 b m d multiplications; an evaluation those of the rows held out once. Solved labels add b m² to a step and
    `solve_labels` to an evaluation.
    """

    def __init__(
        self,
        rows: TrainingRows,
        kernel: KernelFunction,
        points: Tensor,
        labels: Tensor,
        options: KIP,
        *,
        seed: int,
    ) -> None:
        shape, k = rows.transform.input_shape, rows.targets.n_outputs
        if points.ndim == 0 or len(points) == 0 or tuple(points.shape[1:]) != shape:
            raise ValueError(
                f"`points` must hold one or more transformed points of shape {shape}, got {tuple(points.shape)}"
            )
        if tuple(labels.shape) != (len(points), k):
            raise ValueError(f"`labels` must have shape {(len(points), k)}, got {tuple(labels.shape)}")
        check_finite(points, "points")
        check_finite(labels, "labels")
        if options.augment and len(shape) != 3:
            raise ValueError(
                f"augmentation needs images (c, h, w), got rows of shape {shape}: use augment=()"
            )
        self._rows, self._kernel, self._options, self._seed = rows, kernel, options, seed
        pick = options.pick or Pick(kind="uniform" if rows.classes is None else "balanced")
        self._picker = Picker(rows, pick, options.batch_size, seed)
        double = {"device": rows.device, "dtype": torch.float64, "copy": True}
        self._given = labels.to(**double)
        self.parameters = {"x": points.to(**double).requires_grad_()}
        groups: list[dict[str, Any]] = [{"params": [self.parameters["x"]], "lr": options.lr}]
        if options.labels == "learned":
            self.parameters["y"] = labels.to(**double).requires_grad_()
            rate = options.label_lr or options.lr
            groups.append({"params": [self.parameters["y"]], "lr": rate})
        self.optimizer = make_optimizer(options.optimizer, groups)
        self._identity = {
            "method": "kip",
            "options": options.model_dump(mode="json", exclude={"steps", "evaluate_every"}),
            "kernel": {"name": kernel.name, **kernel.parameters(), "values": digits(kernel.fingerprint())},
            "start": [len(points), *digits([float(points.norm()), float(labels.norm())])],
            "seed": seed,
            "data": rows.identity,
        }
        # α of the latest batch, where labels are solved: what rows are picked by. None fits before the first.
        self._fitted = torch.zeros_like(self._given)
        self._solution: SolvedLabels | None = None

    @property
    def identity(self) -> dict[str, Any]:
        return self._identity

    def loss(self, step: int) -> tuple[Tensor, Figures]:
        """Loss of a step's batch, with the weights of its pick."""
        solved = self._options.labels == "solved"
        coefficients = self._coefficients()

        def losses_of(index: Tensor) -> Tensor:
            with torch.no_grad():
                predictions = self._against_points(self._rows.inputs(index)).double() @ coefficients
                return row_losses(predictions, self._rows.outputs(index))

        self._picker.refresh(step, losses_of)
        index, weights = self._picker.draw(step)
        X, Y = self._rows.inputs(index), self._rows.outputs(index)
        K_TS = self._against_points(augment(X, index, self._options.augment, seed=self._seed, step=step))
        if solved:
            coefficients = self._fitted = solve_batch(K_TS, Y, weights)
        losses = row_losses(K_TS.double() @ coefficients, Y)
        self._picker.observe(index, losses.detach())
        return (weights * losses).sum(), {}

    def evaluate(self) -> dict[str, float]:
        """`figures` of the rows held out."""
        return self.figures(self._rows.held_out())

    def figures(self, pieces: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
        """Figures of any rows, with the labels that `learned` gives, in float64.

        Parameters
        ----------
        pieces : iterable of pairs of Tensor
            Transformed inputs (b, *input_shape) and target rows (b, k).

        Returns
        -------
        dict
            "loss", and "score": the accuracy, or R² for regression.
        """
        with torch.no_grad():
            points, solved = self.parameters["x"], self._options.labels == "solved"
            coefficients = self._best().coefficients if solved else self._coefficients()
            parts = [(self._kernel.matrix(X.double(), points) @ coefficients, Y) for X, Y in pieces]
            predictions, Y_T = (torch.cat(part) for part in zip(*parts, strict=True))
            return prediction_figures(self._rows.targets, predictions, Y_T)

    def learned(self) -> dict[str, Tensor]:
        """Points "x" (m, *input_shape), transformed, and labels "y" (m, k)."""
        labels = self._best().labels if self._options.labels == "solved" else self._labels()
        return {"x": self.parameters["x"].detach().clone(), "y": labels.detach().clone()}

    def solved_labels(self, points: Tensor) -> Tensor:
        """Labels (m, k) that are best over all training rows for any points (m, *input_shape)."""
        points = points.to(self.parameters["x"])
        return solve_labels(self._rows, self._kernel, points, ridge=self._options.ridge).labels

    def after_step(self, step: int) -> None:
        self._solution = None

    def extra_state(self) -> State:
        tensors, plain = self._picker.state()
        tensors = {f"pick.{name}": value for name, value in tensors.items()}
        if self._options.labels == "solved":
            tensors["fitted"] = self._fitted
        return tensors, plain

    def restore_extra(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        picks = {
            name.removeprefix("pick."): value for name, value in tensors.items() if name.startswith("pick.")
        }
        self._picker.restore(picks, plain)
        if self._options.labels == "solved":
            self._fitted = tensors["fitted"].to(self._fitted)
        self._solution = None

    def _against_points(self, X: Tensor) -> Tensor:
        """K_TS of a step, in its precision."""
        exact = self._options.precision == "exact"
        dtype = torch.float64 if exact else torch.float32
        points = self.parameters["x"].to(dtype)
        return self._kernel.matrix(X.to(dtype), points, precision="high" if exact else "medium")

    def _coefficients(self) -> Tensor:
        """α of the labels as they are; of solved ones, that of the latest batch."""
        if self._options.labels == "solved":
            return self._fitted
        return kernel_ridge(self._kernel.matrix(self.parameters["x"]), self._labels(), self._options.ridge)

    def _labels(self) -> Tensor:
        return self.parameters.get("y", self._given)

    def _best(self) -> SolvedLabels:
        """Labels solved over all rows for the points as they are, once for every state of them."""
        if self._solution is None:
            points = self.parameters["x"].detach()
            self._solution = solve_labels(self._rows, self._kernel, points, ridge=self._options.ridge)
        return self._solution
