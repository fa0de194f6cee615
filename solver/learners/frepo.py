r"""FRePo: learned points of kernel ridge regression on the features of briefly trained networks.

With :math:`\Phi` the features of the network that `network_pool` picks for a step, frozen,

.. math::
    \hat Y = \Phi_T \Phi_S^\top\,(K_{SS} + r\,\tfrac{\mathrm{tr} K_{SS}}{m} I)^{-1}\, Y_S, \qquad
    K_{SS} = \Phi_S \Phi_S^\top, \qquad
    L = \tfrac12 \sum_i w_i \|\hat y_i - y_i\|^2 - \frac1m \sum_j \min\bigl(y_{j(1)} - y_{j(2)}, \tfrac1k\bigr)

over a batch T of rows of weights w (1/b each, by default). The second term counts where labels are learned: it keeps
the largest entry of a label at least 1/k above the second largest. Points and labels follow the gradient through
:math:`\Phi_S` and :math:`Y_S` by LAMB; then the network is trained on them for one step. Source: Zhou, Nezhadarya and
Ba, NeurIPS 2022, and the published JAX code, whose defaults are ours. RFAD with one network and squared loss is this
with ``max_updates=0``, but for its last layer and the 1/k of its loss.

Where we differ from the published code:

- Each block normalises between convolution and ReLU, with the statistics of the set as it is (`network_pool`); there,
  the second and third block begin with it, and running averages are used. Filters start with variance 2 / fan-in and
  biases with 0.01 (there 1 / fan-in and 0), so that all methods here draw networks from one place.
- A network is replaced at the step after its `max_updates`-th update; there, one update later.
- Features are float32, everything after them float64; there, all is float32.
- There, sets are judged by networks without normalisation that are trained on them with augmentation, and the best is
  chosen on the test rows. Here rows are held out, and predicted as by the stored set: see `FRePoLearner.evaluate`.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional

from .._check import check_finite
from ..conv_networks import ConvNetworks, ConvSpec, conv_features, repeatable
from ..feature_maps.conv_network import ConvNetworkFeatures, padded_shape
from ..learner import Figures, State, digits
from ..optimizers import cosine, make_optimizer
from .gradient import GradientLearner
from .kernel_ridge import kernel_ridge, prediction_figures
from .network_pool import NetworkPool, train_network, update_rows
from .pick import Pick, Picker
from .rows import TrainingRows

# Rows whose features are widened to float64 at a time.
_ROWS = 1024


class FRePo(BaseModel):
    """Options of FRePo; the defaults are those of the published runs.

    Attributes
    ----------
    labels : {"learned", "fixed"}, default "learned"
    ridge : float, default 1e-6
        r, relative to the mean of the diagonal of K_SS.
    flip : bool, default False
        While learning, predict from the points and their mirror images, which double the set. Published: for colour
        images, save ImageNet, and CIFAR-100 and Tiny ImageNet from 10 points a class on. The stored set predicts from
        both too, and holds them: twice the points.
    width : int or tuple of int, default 128
        Channels of the first block, doubled from block to block; or of each block.
    depth : int, default 3
    norm : {"batch", "instance", "none"}, default "batch"
    padding : int, optional
        Zeros around the images; default 2 for grey ones, which makes 28 x 28 pixels 32 x 32.
    networks : int, default 10
        Networks of the pool.
    max_updates : int, default 100
        Updates after which one of them is replaced.
    network_lr : float, default 3e-4
        Of their training, by Adam.
    kept_networks, kept_updates : int, default 1 and 100
        Networks of the feature map that the set is validated, stored and used with, and their updates on the set.
    batch_size : int, default 1024
        Rows of a step.
    pick : Pick
        How they are drawn; uniformly by default.
    lr : float, default 3e-4
        Of points and labels, by LAMB: the length of a step relative to that of all points (labels) together.
    final_rate : float, default 0.1
        What the rate has fallen to after `steps` steps, along half a cosine, as a share of `lr`.
    steps, evaluate_every : int, default 500,000 and 10,000
        Where the loop does not say. `steps` is the length of the cosine in any case.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["frepo"] = "frepo"
    labels: Literal["learned", "fixed"] = "learned"
    ridge: float = Field(default=1e-6, gt=0, allow_inf_nan=False)
    flip: bool = False
    width: int | tuple[int, ...] = 128
    depth: int = Field(default=3, ge=1)
    norm: Literal["batch", "instance", "none"] = "batch"
    padding: int | None = Field(default=None, ge=0)
    networks: int = Field(default=10, ge=1)
    max_updates: int = Field(default=100, ge=0)
    network_lr: float = Field(default=3e-4, gt=0, allow_inf_nan=False)
    kept_networks: int = Field(default=1, ge=1)
    kept_updates: int = Field(default=100, ge=0)
    batch_size: int = Field(default=1024, ge=1)
    pick: Pick = Pick()
    lr: float = Field(default=3e-4, gt=0, allow_inf_nan=False)
    final_rate: float = Field(default=0.1, ge=0, le=1)
    steps: int = Field(default=500_000, ge=1)
    evaluate_every: int = Field(default=10_000, ge=1)

    def spec(self, input_shape: tuple[int, ...]) -> ConvSpec:
        """The networks in training, for images of a shape.

        Raises
        ------
        ValueError
            If the inputs are not images, or too small for the poolings; if a width is below 1.
        """
        widths = (
            tuple(self.width << block for block in range(self.depth))
            if isinstance(self.width, int)
            else self.width
        )
        norm = None if self.norm == "none" else self.norm
        return ConvSpec(padded_shape(input_shape, self.zeros(input_shape)), widths, self.depth, norm=norm)

    def zeros(self, input_shape: tuple[int, ...]) -> int:
        """Zeros around images of a shape."""
        return (2 if input_shape[0] == 1 else 0) if self.padding is None else self.padding

    def feature_map(self, input_shape: tuple[int, ...], learned: Mapping[str, Tensor]) -> ConvNetworkFeatures:
        """The map that a set is stored and used with, from what `FRePoLearner.learned` gave."""
        tensors = {
            name.removeprefix("network."): value
            for name, value in learned.items()
            if name.startswith("network.")
        }
        spec = self.spec(input_shape)
        frozen = ConvSpec(
            spec.input_shape, spec.width, spec.depth, norm=None if spec.norm == "batch" else spec.norm
        )
        return ConvNetworkFeatures(ConvNetworks(frozen, tensors), padding=self.zeros(input_shape))


class FRePoLearner(GradientLearner):
    """Learner of points, and labels, by FRePo.

    Parameters
    ----------
    rows : TrainingRows
        Images. Networks are in their dtype on their device.
    start : Tensor, shape (m, *input_shape)
        Transformed points.
    labels : Tensor, shape (m, k)
        Their target rows. Those of classes are divided by sqrt(k / 10), as published.
    options : FRePo
    seed : int
        Decides networks and batches.

    Raises
    ------
    ValueError
        If shapes do not fit, values are not finite, or the inputs are no images or too small.

    Notes
    -----
    A step makes features of `batch_size` rows, and of the points three times, twice with derivatives (to freeze the
    network, to learn, to train it): 2.5 s of one CPU core with the default networks on grey images and ten points,
    0.26 s at width 32. A file holds the weights of `kept_networks` networks beside x and y: 5.9 MB each at the default
    width for three channels, next to 0.12 MB for ten points of 3 x 32 x 32 in float32.
    """

    def __init__(
        self, rows: TrainingRows, start: Tensor, labels: Tensor, options: FRePo, *, seed: int
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
        self.rows, self.options, self.seed = rows, options, seed
        self._spec, self._zeros = options.spec(shape), options.zeros(shape)
        self._pool = NetworkPool(
            self._spec,
            k,
            size=options.networks,
            max_updates=options.max_updates,
            rate=options.network_lr,
            seed=seed,
            device=rows.device,
            dtype=rows.dtype,
        )
        self._picker = Picker(rows, options.pick, options.batch_size, seed)
        self._fingerprint = digits(float(value.double().norm()) for value in (start, labels))
        scale = math.sqrt(k / 10) if rows.targets.is_classes else 1.0
        self._y = labels.to(rows.device, torch.float64, copy=True) / scale
        self.parameters = {"x": start.to(rows.device, torch.float64, copy=True).requires_grad_()}
        if options.labels == "learned":
            self.parameters["y"] = self._y.requires_grad_()
        self.optimizer = make_optimizer("lamb", list(self.parameters.values()), lr=options.lr)
        self._kept: dict[str, Tensor] | None = None

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "method": "frepo",
            "options": self.options.model_dump(mode="json", exclude={"evaluate_every"}),
            "seed": self.seed,
            "data": self.rows.identity,
            "start": [*self.parameters["x"].shape, *self._fingerprint],
        }

    def rate(self, step: int) -> float:
        final = self.options.final_rate
        return final + (1 - final) * cosine(step, self.options.steps)

    def advance(self, step: int) -> Figures:
        with repeatable():
            return super().advance(step)

    def loss(self, step: int) -> tuple[Tensor, Figures]:
        X, Y = self._points()
        index = self._update_rows(step)
        networks = self._pool.frozen(self._pool.pick(step), X[index].detach())
        if self.options.flip:
            X, Y = torch.cat([X, X.flip(-1)]), torch.cat([Y, Y])
        W = self._model(conv_features(networks, X).flatten(1), Y)

        def predict(index: Tensor) -> Tensor:
            def features(part: Tensor) -> Tensor:
                with torch.no_grad():
                    return conv_features(networks, self._padded(self.rows.inputs(part))).flatten(1)

            return torch.cat([features(part).double() @ W for part in index.split(_ROWS)])

        def losses_of(index: Tensor) -> Tensor:
            with torch.no_grad():
                return squared_losses(predict(index), self.rows.outputs(index))

        self._picker.refresh(step, losses_of)
        picked = self._picker.draw(step)
        losses = squared_losses(predict(picked.index), self.rows.outputs(picked.index))
        self._picker.observe(picked.index, losses.detach())
        loss = (picked.weights.to(losses) * losses).sum()
        if self.options.labels == "fixed" or not self.rows.targets.is_classes:
            return loss, {}
        margin = label_margin(self._y)
        return loss - margin, {"squared_loss": loss.detach(), "margin": margin.detach()}

    def after_step(self, step: int) -> None:
        with torch.no_grad():
            X, Y = self._points()
        index = self._update_rows(step)
        self._pool.advance(self._pool.pick(step), X[index], Y[index].to(X))
        self._kept = None

    def evaluate(self) -> dict[str, float]:
        """Figures of rows held out, predicted as the stored set will: with fresh networks, trained on it as it is.

        The networks start from the same weights every time, so that evaluations compare sets and not networks.

        Returns
        -------
        dict
            "loss" (of the predictions alone) and "score", the accuracy, or R² for regression.
        """
        shape = self.rows.transform.input_shape
        learned = self.learned()
        kept = self.options.feature_map(shape, learned)
        predicted, wanted = [], []
        with torch.no_grad():
            W = self._model(kept.features(learned["x"]), learned["y"])
            for X, Y in self.rows.held_out():
                predicted += [kept.features(part).double() @ W for part in X.split(_ROWS)]
                wanted.append(Y)
        figures = prediction_figures(self.rows.targets, torch.cat(predicted), torch.cat(wanted))
        # Summed over outputs, as the loss of a step.
        return {**figures, "loss": figures["loss"] * self.rows.targets.n_outputs}

    def learned(self) -> dict[str, Tensor]:
        """Points "x" (m, *input_shape), labels "y" (m, k), and weights "network.<name>" of trained networks.

        The networks are `train_network` of the set; `FRePo.feature_map` makes a map of them.
        """
        if self._kept is None:
            with torch.no_grad():
                X, Y = self._points()
            with repeatable():
                networks = train_network(
                    X,
                    Y.to(X),
                    self._spec,
                    steps=self.options.kept_updates,
                    seed=self.seed,
                    count=self.options.kept_networks,
                    rate=self.options.network_lr,
                )
            self._kept = {f"network.{name}": value for name, value in networks.tensors.items()}
        x, y = self.parameters["x"].detach(), self._y.detach()
        if self.options.flip:
            x, y = torch.cat([x, x.flip(-1)]), torch.cat([y, y])
        return {"x": x.clone(), "y": y.clone(), **self._kept}

    def extra_state(self) -> State:
        pool, picker = self._pool.state(), self._picker.state()
        tensors = {f"pool.{name}": value for name, value in pool[0].items()}
        return tensors | {f"pick.{name}": value for name, value in picker[0].items()}, {
            "pool": pool[1],
            "pick": picker[1],
        }

    def restore_extra(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

        self._pool.restore(part("pool."), plain["pool"])
        self._picker.restore(part("pick."), plain["pick"])
        self._kept = None

    def _points(self) -> tuple[Tensor, Tensor]:
        """Points as the networks see them, and labels in float64."""
        return self._padded(self.parameters["x"].to(self.rows.dtype)), self._y

    def _padded(self, X: Tensor) -> Tensor:
        return functional.pad(X, (self._zeros,) * 4)

    def _update_rows(self, step: int) -> Tensor:
        return update_rows(len(self._y), self.seed, f"frepo.{step}").to(self.rows.device)

    def _model(self, F: Tensor, Y: Tensor) -> Tensor:
        """Weights (p, k), float64, of the ridge regression on points of features F."""
        F = F.double()
        return F.mT @ kernel_ridge(F @ F.mT, Y, self.options.ridge)


def squared_losses(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Half the squared distance of each row, summed over outputs; (b,)."""
    return 0.5 * (predicted - wanted).square().sum(dim=1)


def label_margin(Y: Tensor) -> Tensor:
    """By how much the largest entry of a label exceeds the second largest, 1/k at the most; mean over rows (m, k)."""
    largest = Y.topk(2, dim=1).values
    return (largest[:, 0] - largest[:, 1]).clamp_max(1 / Y.shape[1]).mean()
