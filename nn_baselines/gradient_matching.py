r"""DC and DSA: points whose gradients, class by class, point where those of real rows do.

For a network with parameters θ, and each class c, let :math:`g_c` be the gradient of the mean cross-entropy of a batch
of rows of the class, and :math:`\hat g_c` that of its points. With one row :math:`g_{lo}` of the weights of layer l for
each output o, the points descend on

.. math:: L = \sum_c \sum_l \sum_o 1 - \frac{\langle \hat g_{lo}, g_{lo}\rangle}
                                            {\|\hat g_{lo}\|\,\|g_{lo}\| + 10^{-6}} ;

biases, and scales and shifts of norms, which are vectors, are left out. A step is an iteration of the published loop:
a fresh network, for which the points are updated `outer_loops` times, and which between two updates is trained on them
for `inner_loops` epochs of gradient descent. So no network outlives a step.

DSA changes the real rows and the points of a class by the same random operation before their gradients are taken, and
augments the training of the network.

Source: Zhao, Mopuri and Bilen, "Dataset Condensation with Gradient Matching", ICLR 2021; Zhao and Bilen, "Dataset
Condensation with Differentiable Siamese Augmentation", ICML 2021; and their ``main.py``, ``match_loss``, ``get_loops``.

**Memory.** Classes are independent given the network, so each is differentiated by itself and the gradients in the
points, which do not overlap, are put together: the activations kept are those of one class. On a CPU, gradients of
rows class by class took less than half the time of all classes at once by vmap.
"""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..kernels.augmentation import augment_images, draw_augmentation
from ..solver.conv_networks import repeatable
from ..solver.learner import Figures, State
from ..solver.learners.images import ImageLearner, Judge, NetworkMethod
from ..solver.learners.pick import Pick, Picker
from ..solver.learners.rows import TrainingRows
from ..solver.networks import Network, build_network
from ..solver.optimizers import make_optimizer
from .network_gradient import class_losses, gradient_distance, loss_gradient, point_gradient
from .schedule import row_orders

Parameters = dict[str, Tensor]


class _Options(NetworkMethod):
    """Options of both methods (documented in `DSA`)."""

    outer_loops: int | None = Field(default=None, ge=1)
    inner_loops: int | None = Field(default=None, ge=0)
    batch_real: int = Field(default=256, ge=1)
    pick: Pick = Pick(kind="balanced")
    lr: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    momentum: float = Field(default=0.5, ge=0, lt=1)
    network_lr: float = Field(default=0.01, gt=0, allow_inf_nan=False)
    train_batch_size: int = Field(default=256, ge=1)
    steps: int = Field(default=1000, ge=0)
    evaluate_every: int = Field(default=100, ge=1)

    def loops_of(self, points_per_class: int) -> tuple[int, int]:
        """Outer and inner loops for so many points a class."""
        outer, inner = loops(points_per_class)
        return (
            outer if self.outer_loops is None else self.outer_loops,
            inner if self.inner_loops is None else self.inner_loops,
        )


class DC(_Options):
    """Options of DC: those of DSA, and what differs.

    Attributes
    ----------
    augment : str, default ""
        None.
    """

    method: Literal["dc"] = "dc"
    augment: str = ""


class DSA(_Options):
    """Options of DSA; the defaults are those of the published code.

    Attributes
    ----------
    network : str, default "convnet"
        By name (`network_spec`); without batch norm, whose statistics of a few points of one class mean nothing.
    network_params : dict
        Further arguments of it.
    outer_loops, inner_loops : int, optional
        Updates of the points for one network, and epochs of its training between two of them; default `loops`.
    batch_real : int, default 256
        Rows of each class in an update; a class that has fewer gives all. By other picks than balanced ones, as many
        rows in all.
    pick : Pick, default balanced
        How they are drawn. A class that has none is left out of an update. The loss of a row, for draws by it, is its
        cross-entropy under the network of the update.
    lr : float, default 0.1
        Of points, in units of the transformed data.
    momentum : float, default 0.5
    network_lr : float, default 0.01
        Of the gradient descent of networks.
    train_batch_size : int, default 256
        Points in a batch of it.
    augment : str, default "color_crop_cutout_flip_scale_rotate"
        Strategy of augmentation (`draw_augmentation`).
    labels : {"fixed"}
    ridge : float, default 1e-3
        Of the ridge model that is stored with the set.
    judge_networks, judge_epochs : int, default 2 and 100
        Networks trained on the set at each evaluation, and how long.
    steps, evaluate_every : int, default 1000 and 100
        Where the loop does not say.
    """

    method: Literal["dsa"] = "dsa"
    augment: str = Field(default="color_crop_cutout_flip_scale_rotate", min_length=1)


def loops(points_per_class: int) -> tuple[int, int]:
    """Outer and inner loops by the number of points a class.

    Published (`get_loops`): 1 (1, 1), 10 (10, 50), 20 (20, 25), 30 (30, 20), 40 (40, 15), 50 (50, 10). In between, as
    there, one outer loop for each point a class, 50 at most, and for others inner loops that make 500 epochs in all;
    a single outer loop trains nothing.
    """
    outer = min(points_per_class, 50)
    published = {1: 1, 30: 20, 40: 15}
    return outer, published.get(points_per_class, max(1, round(500 / outer)))


class GradientMatchingLearner(ImageLearner):
    """Learner of points by DC or DSA.

    Parameters
    ----------
    rows, points, labels, classes, options, seed, judge
        As for `ImageLearner`.

    Raises
    ------
    ValueError
        As `ImageLearner`, and if the network has batch norm.

    Notes
    -----
    A step makes `outer_loops` gradients of `batch_real` rows a class and of the points, the latter differentiated
    again, and (outer_loops - 1) inner_loops epochs of training on the points.
    """

    def __init__(
        self,
        rows: TrainingRows,
        points: Tensor,
        labels: Tensor,
        classes: Tensor | None,
        options: DC | DSA,
        *,
        seed: int,
        judge: Judge,
    ) -> None:
        super().__init__(rows, points, labels, classes, options, seed=seed, judge=judge)
        self._options, self._spec = options, options.spec(rows)
        if self._spec.norm == "batch":
            raise ValueError(
                f"method {options.method!r} matches gradients of the few points of one class, which have no batch"
                f" statistics to speak of: use another norm than that of {self._spec.name!r}"
            )
        sizes = self.classes.bincount(minlength=rows.targets.n_outputs)
        self.outer_loops, self.inner_loops = options.loops_of(int(sizes.max()))
        self._members = {c: (self.classes == c).nonzero().flatten() for c in self.classes.unique().tolist()}
        assert rows.classes is not None  # or the base would have refused
        self._row_classes = rows.classes
        self._picker = Picker(rows, options.pick, options.batch_real * rows.targets.n_outputs, seed)
        self.optimizer = make_optimizer(
            "sgd", [self.parameters["x"]], lr=options.lr, momentum=options.momentum
        )

    def advance(self, step: int) -> Figures:
        with repeatable():
            network = self._network(step)
            parameters = {name: value.detach() for name, value in network.named_parameters()}
            total = torch.zeros((), dtype=self._rows.dtype, device=self._rows.device)
            for loop in range(self.outer_loops):
                turn = step * self.outer_loops + loop
                if loop > 0:
                    self._train(network, parameters, turn)
                self.optimizer.zero_grad(set_to_none=True)
                for distance in self._distances(network, parameters, turn):
                    distance.backward()
                    total += distance.detach()
                self.optimizer.step()
        return {"loss": total / (self.outer_loops * len(self._members))}

    def loss(self, step: int) -> tuple[Tensor, Figures]:
        """L of a step's network before it is trained."""
        network = self._network(step)
        distances = self._distances(network, dict(network.named_parameters()), step * self.outer_loops)
        return torch.stack(list(distances)).sum(), {}

    def extra_state(self) -> State:
        return self._picker.state()

    def restore_extra(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        self._picker.restore(tensors, plain)

    def _network(self, step: int) -> Network:
        stream = f"{self._options.method}.network.{step}"
        rows = self._rows
        return build_network(self._spec, self._seed, stream, device=rows.device, dtype=rows.dtype).train()

    def _distances(self, network: Network, parameters: Parameters, turn: int) -> Iterator[Tensor]:
        """Distance of each class that is in the batch of an update, differentiable in the points."""
        rows, device = self._rows, self._rows.device

        def losses_of(index: Tensor) -> Tensor:
            classes = self._row_classes[index.cpu()].to(device)
            return class_losses(network, parameters, rows.inputs(index), classes)

        self._picker.refresh(turn, losses_of)
        index, weights = self._picker.draw(turn)
        drawn = self._row_classes[index]
        for c, members in self._members.items():
            places = (drawn == c).nonzero().flatten()
            if len(places) == 0:
                continue
            chosen = places.to(device)
            X = self._changed(rows.inputs(index[places]), c, turn)
            classes = torch.full((len(chosen),), c, device=device)
            share = weights[chosen] / weights[chosen].sum()
            losses, real = loss_gradient(network, parameters, X, classes, share)
            self._picker.observe(index[places], losses)
            points = self._changed(self.parameters["x"][members], c, turn)
            learned = point_gradient(network, parameters, points, self.classes[members])
            yield gradient_distance(learned.values(), real.values())

    def _train(self, network: Network, parameters: Parameters, turn: int) -> None:
        """Train the network on the points as they are, in place."""
        x, stream = self.parameters["x"].detach(), f"{self._options.method}.train.{turn}"
        for epoch in range(self.inner_loops):
            order = row_orders(len(x), epoch, range(1), seed=self._seed, stream=stream)[0]
            for number, part in enumerate(order.split(self._options.train_batch_size)):
                batch = part.to(x.device)
                X = self._augmented(x[batch], number, f"{stream}.augment.{epoch}")
                _, gradient = loss_gradient(network, parameters, X, self.classes[batch])
                for name, value in gradient.items():
                    parameters[name].sub_(value, alpha=self._options.network_lr)

    def _changed(self, X: Tensor, c: int, turn: int) -> Tensor:
        """Images of class c, all changed in the one way of this class and update."""
        return self._augmented(X, c, f"{self._options.method}.augment.{turn}", siamese=True)

    def _augmented(self, X: Tensor, group: int, stream: str, *, siamese: bool = False) -> Tensor:
        drawn = draw_augmentation(
            self._options.augment,
            torch.full((len(X),), group),
            self._rows.transform.input_shape,  # pyright: ignore[reportArgumentType]
            seed=self._seed,
            stream=stream,
            siamese=siamese,
        )
        return augment_images(X, drawn.to(X.device))
