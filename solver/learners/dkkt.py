r"""DKKT: points and duals under which a trained network is stationary, from the network alone or with a little data.

Lee et al., "Deep Support Vectors" (NeurIPS 2024, equations 8 to 11 and the algorithm of their appendix; no code was
published). For a frozen network θ*, points X with fixed classes, and duals λ ≥ 0, a step follows the gradient of

.. math:: L = L_{kkt}(X) + \eta\, L_{kkt}(A X) + \beta_2\, TV(X) + \beta_3 \|X\|, \qquad
          L_{kkt} = L_{stat} + \beta_1 L_{primal}

in X and λ (`kkt.stationarity`): points that explain the parameters as support vectors explain an SVM, and still do so
when augmented. The printed updates have a "+" where they must descend.

**Without data** (``fraction=0``) the loss looks at no row. Starting from noise, all that is taken from the data is what
the transform and the start know (means and scales), and the rows held out that choose among the evaluations.

**With some data** (``fraction`` above 0) the loss of DM (`dm`) on that share of the rows of each class is added, as far
as is known of "Practical dataset distillation based on deep support vectors" (arXiv:2405.00348), whose settings could
not be had. Its weight "auto" makes the two gradients in X equally long at the first step. Points that start from the
very rows of a small share leave DM nothing to do there, so the weight falls when a longer gradient of DM is met: it is
:math:`\|\nabla L(X_0)\| / \max_t \|\nabla L_{DM}(X_t)\|` over the steps so far.

**Duals** are kept in units of :math:`\lambda_0 = \|s \circ \theta^*\| / \|\sum_i \nabla L_i\|` of the points to start
from, all 1 at first, so that one rate serves networks whose gradients differ by orders of magnitude. After each step
they are projected on λ ≥ 0. The published algorithm drops a point whose dual falls below 0. Here it stays: the number
of points of each class is what was asked for, its λ may grow again, and until then it follows the other terms alone.
`idle` in the log counts such points.

**Networks with normalisation** have weights that no duals reach (`kkt.trained`): ``norm="none"`` is what this method
is for. Batch norm runs with its running statistics.

**Augmentation.** The paper translates by up to 1/8, crops by 0.2, flips half of the images and adds noise of 0.01 (in
units of the transformed data). "crop" of `kernels.augmentation` is that translation, and "scale" comes near its crop;
all operations of the list are applied, each image with numbers of its own.
"""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels import normal
from ...kernels.augmentation import augment_images, draw_augmentation
from .._check import check_finite
from ..conv_networks import repeatable
from ..kkt.operators import flatten, weighted_gradient
from ..kkt.prior import mean_norm, total_variation
from ..kkt.stationarity import distance, primal_loss, relative_residual, stationarity_residual
from ..kkt.trained import trained_model
from ..learner import Figures, State
from ..optimizers import make_optimizer
from .dkkt_options import DKKT
from .dm import DMLearner
from .images import ImageLearner, Judge
from .rows import TrainingRows

# Of Adam and its kin. D is a mean over all parameters, so that its gradient in a pixel is small, and the usual 1e-8
# would be a part of it.
_EPS = 1e-12


class DKKTLearner(ImageLearner):
    """Learner of images by DKKT, with or without DM.

    Parameters
    ----------
    rows : TrainingRows
    points : Tensor, shape (m, c, h, w)
        Transformed points to start from. For learning without data: noise; with some: noise, or rows of
        ``rows.share(fraction, seed)``. The learner does not look at where they come from.
    labels : Tensor, shape (m, k)
        Their target rows.
    classes : Tensor, shape (m,), int64
    options : DKKT
    network : torch.nn.Module
        Trained, from transformed images to k scores. Left as it is.
    seed : int
        Decides augmentation and noise, and of DM the share of rows, batches and networks.
    judge : Judge

    Attributes
    ----------
    duals : Tensor, shape (m,)
        λ as they are.
    dm_weight : float or None
        Weight of the loss of DM as of the last step; None where there is none yet.

    Raises
    ------
    ValueError
        As `ImageLearner` and `DMLearner`; or if the network has other inputs or outputs, or gradients that vanish or
        are not finite at the start.

    Notes
    -----
    A step is a forward and two backward passes of the points, the same again for augmented ones, and a step of DM. The
    state holds duals and their unit, the weight of DM and what its picks need; the network is told by a digest.
    """

    def __init__(
        self,
        rows: TrainingRows,
        points: Tensor,
        labels: Tensor,
        classes: Tensor | None,
        options: DKKT,
        *,
        network: nn.Module,
        seed: int,
        judge: Judge,
    ) -> None:
        super().__init__(rows, points, labels, classes, options, seed=seed, judge=judge)
        self._options, x = options, self.parameters["x"]
        self._model = trained_model(network, decay=options.decay, dtype=x.dtype, device=x.device)
        self._check_network()
        _, c, h, w = x.shape
        self._shape = (c, h, w)
        draw_augmentation(
            options.augment, [], self._shape, seed=seed, stream=""
        )  # refuses what it does not know
        total = weighted_gradient(self._model, x.detach(), self.classes, torch.ones(len(x)))
        target = flatten(self._model.target()).double()
        if not 0 < float(total.norm()) < float("inf"):
            raise ValueError(
                f"the gradients of the points to start from sum to a vector of norm {float(total.norm())}: the network"
                " is sure of them to the last digit, or broken; start from other points or a network less trained"
            )
        self._unit = target.norm() / total.norm()
        self.parameters["dual"] = torch.ones_like(self._unit.expand(len(x))).to(x.dtype).requires_grad_()
        self._dm: DMLearner | None = None
        # Length of the gradient at the first step, and the weight of DM so far: infinite while it has no gradient.
        self._length: Tensor | None = None
        self._weight: Tensor | None = None
        if options.fraction:
            dm_options = options.dm.model_copy(update={"fraction": options.fraction})
            self._dm = DMLearner(rows, points, labels, classes, dm_options, seed=seed, judge=judge)
            self._dm.parameters["x"] = x
        rates = (options.lr, options.dual_lr)
        groups = [
            {"params": [value], "lr": rate}
            for value, rate in zip(self.parameters.values(), rates, strict=True)
        ]
        settings = {} if options.optimizer == "sgd" else {"eps": _EPS}
        self.optimizer = make_optimizer(options.optimizer, groups, **settings)
        # The network is told by its weights, wherever they are kept and however they were found.
        for name in ("expert", "expert_epochs"):
            del self._identity["options"][name]
        self._identity["network"] = _digest(network)

    @property
    def dm_weight(self) -> float | None:
        return None if self._weight is None else float(_finite(self._weight))

    @property
    def duals(self) -> Tensor:
        return self.parameters["dual"] * self._unit.to(self.parameters["dual"])

    def advance(self, step: int) -> Figures:
        with repeatable():
            return super().advance(step)

    def loss(self, step: int) -> tuple[Tensor, Figures]:
        """L of a step, with that of DM."""
        loss, figures = self.kkt_loss(step)
        if self._dm is None:
            return loss, figures
        matched, _ = self._dm.loss(step)
        return loss + self._balance(loss, matched) * matched, {**figures, "dm": matched.detach()}

    def kkt_loss(self, step: int) -> tuple[Tensor, Figures]:
        """The part of the loss that needs no data, and its figures of the points as they are.

        Returns
        -------
        loss : Tensor
        figures : dict
            "stationarity" (D), "residual" (relative norm), "primal", and "idle", the number of duals at 0.
        """
        options, x = self._options, self.parameters["x"]
        stationarity, primal, residual = self._terms(x)
        loss = stationarity + options.primal * primal
        if options.eta:
            moved_stationarity, moved_primal, _ = self._terms(self._augmented(x, step))
            loss = loss + options.eta * (moved_stationarity + options.primal * moved_primal)
        if options.total_variation:
            loss = loss + options.total_variation * total_variation(x)
        if options.norm:
            loss = loss + options.norm * mean_norm(x)
        return loss, {
            "stationarity": stationarity.detach(),
            "residual": residual.detach(),
            "primal": primal.detach(),
            "idle": (self.parameters["dual"] == 0).sum(),
        }

    def after_step(self, step: int) -> None:
        with torch.no_grad():
            self.parameters["dual"].clamp_min_(0)

    def extra_state(self) -> State:
        tensors, plain = ({}, {}) if self._dm is None else self._dm.extra_state()
        tensors = {f"dm.{name}": value for name, value in tensors.items()} | {"unit": self._unit}
        known = {"length": self._length, "weight": self._weight}
        tensors |= {name: value for name, value in known.items() if value is not None}
        return tensors, plain

    def restore_extra(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        self._unit = tensors["unit"].to(self._unit)
        self._length, self._weight = (
            tensors[name].to(self._unit.device) if name in tensors else None for name in ("length", "weight")
        )
        if self._dm is not None:
            own = {
                name.removeprefix("dm."): value for name, value in tensors.items() if name.startswith("dm.")
            }
            self._dm.restore_extra(own, plain)

    def _terms(self, X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """L_stat, L_primal and the relative residual of points."""
        residual, scores = stationarity_residual(self._model, X, self.classes, self.duals)
        losses = self._model.losses(scores, self.classes)
        return (
            distance(residual, self._options.distance),
            primal_loss(losses, scores, self.classes),
            relative_residual(self._model, residual),
        )

    def _augmented(self, x: Tensor, step: int) -> Tensor:
        """Points, each changed at random."""
        options = self._options
        changes = draw_augmentation(
            options.augment,
            torch.zeros(len(x), dtype=torch.int64),
            self._shape,
            seed=self._seed,
            stream=f"dkkt.augment.{step}",
            single=False,
        ).to(x.device)
        moved = augment_images(x, changes)
        if options.noise:
            moved = moved + options.noise * normal(self._seed, f"dkkt.noise.{step}", tuple(x.shape)).to(x)
        return moved

    def _balance(self, loss: Tensor, matched: Tensor) -> Tensor:
        """Weight of DM's loss at a step, found without waiting for the device."""
        if self._options.dm_weight != "auto":
            self._weight = matched.new_full((), float(self._options.dm_weight))
            return self._weight
        x = self.parameters["x"]

        def length(value: Tensor) -> Tensor:
            return torch.autograd.grad(value, x, retain_graph=True)[0].double().norm()

        if self._length is None:
            self._length = length(loss)
        found = self._length / length(matched)
        self._weight = found if self._weight is None else torch.minimum(self._weight, found)
        return _finite(self._weight).to(matched)

    def _check_network(self) -> None:
        x, k = self.parameters["x"].detach(), self._rows.targets.n_outputs
        with torch.no_grad():
            scores = self._model.function(self._model.parameters, x[:1])
        if tuple(scores.shape) != (1, k):
            raise ValueError(f"`network` must give {k} scores a row, got {tuple(scores.shape[1:])}")
        check_finite(scores, "network(points)")


def _finite(weight: Tensor) -> Tensor:
    """The weight, and 0 where there is none yet."""
    return torch.where(weight.isfinite(), weight, 0.0)


def _digest(network: nn.Module) -> str:
    """Sha256 of weights and buffers."""
    total = hashlib.sha256()
    for name, value in network.state_dict().items():
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
