r"""DM: points whose mean features, class by class, are those of the data, under embeddings drawn anew at every step.

.. math:: L = \sum_c \Big\| \frac{1}{|T_c|} \sum_{x \in T_c} f(A_c x) -
                            \frac{1}{|S_c|} \sum_{s \in S_c} f(A_c s) \Big\|^2

with T_c a batch of class c, S_c its points, f a network with random weights up to its last layer, and A_c one
augmentation drawn for the class and the step, the same for rows and points (siamese). This is the biased estimate of
the squared MMD of the two samples for the linear kernel of the features (`kernels.mmd2`). Source: Zhao and Bilen,
"Dataset condensation with distribution matching", WACV 2023, and the published code (VICO-UoE/DatasetCondensation,
main_DM.py), whose settings are the defaults here.

**Embeddings.** Any function of images will do: with ``embedding="identity"`` the means of the pixels are matched (and
those of the rows are reached in closed form), with "fourier" those of a Gaussian kernel, one draw of it a step.

**Picks.** The mean of a class is that of its rows in the batch by the weights of the pick, divided by their sum: of
balanced draws the plain mean, of corrected draws the ratio estimate of the mean of all rows of the class. Draws by loss
take for the loss of a row the squared distance of its features from the mean of the points of its class, under the
network and the augmentation of the step. A class that has no rows in a batch, or no points, counts nothing.

**Memory.** Rows are embedded in pieces without a graph. Points are embedded with one and, where their activations
exceed the budget, whole classes after one another, each followed by its backward pass: classes share no term of L, so
the gradient is the same. Networks with batch norm take all rows at once and all points at once, as published, because
their statistics are those of what passes together.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from ...kernels import random_bits
from ...kernels.augmentation import augment_images, draw_augmentation
from .._check import check_name
from .._workers import single_core_workers
from ..conv_networks import repeatable
from ..feature_maps import feature_map_names, make_feature_map
from ..learner import Figures, State
from ..networks import build_network
from ..optimizers import make_optimizer
from .class_means import class_sums, distances_from_means, mean_gaps
from .class_pieces import Piece, class_pieces, kept_bytes, sum_over_pieces
from .images import ImageLearner, Judge, NetworkMethod
from .pick import Pick, Picker
from .rows import TrainingRows

Features = Callable[[Tensor, Tensor], Tensor]

# Bytes of activations: of rows about the last-level cache of a CPU, or enough to fill a GPU; of points, which are
# kept for the backward pass, a part of the memory.
_ROW_BUDGET = {"cpu": 2**25, "cuda": 2**32}
_POINT_BUDGET = {"cpu": 2**28, "cuda": 2**33}


class DM(NetworkMethod):
    """Options of DM; the defaults are those of the published code.

    Attributes
    ----------
    network : str, default "convnet"
        Name of a network (`networks`): the embedding, and what the set is judged with.
    network_params : dict
        Further arguments of the network.
    embedding : str, default "network"
        "network", or the name of a feature map (`feature_maps`); of random ones, another draw at every step. Maps
        that look at data to set a scale must be given it.
    embedding_params : dict
        Further arguments of the feature map.
    batch_real : int, default 256
        Rows of each class in a step; a class that has fewer gives all. By other picks than balanced ones, as many
        rows in all.
    pick : Pick, default balanced
        How they are drawn.
    fraction : float, default 1
        Share of the rows of each class that may be used (`TrainingRows.share` by the seed of the run), for learning
        from few. Start from points of that share: the learner does not look at where they come from. The transform
        was fitted on all rows, and the rows held out that judge are on top of the share (none with `holdout` 0).
    augment : str, default "color_crop_cutout_flip_scale_rotate"
        Siamese augmentation (`kernels.augmentation`), one operation of the list for each class and step; "" for none.
    lr : float, default 1
        Of pixels, in units of the transformed data. Published: 1 for up to 50 points a class, 10 for 100 and more
        (CIFAR-10; for CIFAR-100 always 1), and 0.01 with "mlp".
    momentum : float, default 0.5
    memory_budget : int, optional
        Bytes that the activations of points may take; what one class needs is always taken. Default 256 MiB on a CPU
        and 8 GiB on a GPU.
    labels : {"fixed"}
    ridge : float, default 1e-3
        Of the ridge model that is stored with the set.
    judge_networks, judge_epochs : int, default 2 and 100
        Networks trained on the set at each evaluation, and how long.
    steps, evaluate_every : int, default 20,000 and 1,000
        Where the loop does not say.
    """

    method: Literal["dm"] = "dm"
    embedding: str = "network"
    embedding_params: dict[str, Any] = Field(default_factory=dict)
    batch_real: int = Field(default=256, ge=1)
    pick: Pick = Pick(kind="balanced")
    fraction: float = Field(default=1.0, gt=0, le=1)
    augment: str = "color_crop_cutout_flip_scale_rotate"
    lr: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    momentum: float = Field(default=0.5, ge=0, lt=1)
    memory_budget: int | None = Field(default=None, ge=1)
    steps: int = Field(default=20_000, ge=0)
    evaluate_every: int = Field(default=1000, ge=1)

    @field_validator("embedding")
    @classmethod
    def _known_embedding(cls, name: str) -> str:
        return check_name(name, ["network", *feature_map_names()], "embedding")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.embedding == "network" and self.embedding_params:
            raise ValueError(
                "`embedding_params` are for feature maps: use `network_params` with embedding='network'"
            )
        return self


class DMLearner(ImageLearner):
    """Learner of images by DM.

    Parameters
    ----------
    rows : TrainingRows
    points : Tensor, shape (m, c, h, w)
        Transformed points to start from.
    labels : Tensor, shape (m, k)
        Their target rows.
    classes : Tensor, shape (m,), int64
    options : DM
    seed : int
        Decides the share of the rows, batches, augmentation and embeddings.
    judge : Judge

    Raises
    ------
    ValueError
        As `ImageLearner`; or if the network or the feature map cannot be made with the options.

    Notes
    -----
    A step embeds all rows of a batch once, and the points once with their gradient, in one pass over all classes.
    """

    def __init__(
        self,
        rows: TrainingRows,
        points: Tensor,
        labels: Tensor,
        classes: Tensor | None,
        options: DM,
        *,
        seed: int,
        judge: Judge,
    ) -> None:
        super().__init__(rows, points, labels, classes, options, seed=seed, judge=judge)
        self._options, self._k = options, rows.targets.n_outputs
        self._spec = options.spec(rows)
        self._seen = rows.share(options.fraction, seed)
        assert self._seen.classes is not None
        sizes = self._seen.classes.bincount().clamp(max=options.batch_real)
        self._picker = Picker(self._seen, options.pick, int(sizes.sum()), seed)
        x = self.parameters["x"]
        self.optimizer = make_optimizer("sgd", [x], lr=options.lr, momentum=options.momentum)
        self._chunk, self._pieces = self._plan()

    def loss(self, step: int) -> tuple[Tensor, Figures]:
        """L of a step; its gradient comes with its value."""
        with repeatable():
            features, x = self._features(step), self.parameters["x"]
            by_loss = self._options.pick.kind == "loss"
            centres = self._point_sums(features) if by_loss else None

            def distances(F: Tensor, classes: Tensor) -> Tensor:
                assert centres is not None
                return distances_from_means(F, classes, centres)

            def losses_of(index: Tensor) -> Tensor:
                return torch.cat([distances(*part) for part in self._embedded(features, index)])

            self._picker.refresh(step, losses_of)
            index, weights = self._picker.draw(step)
            wanted, losses = x.new_zeros(()), []
            parts = self._embedded(features, index)
            for (F, classes), weight in zip(parts, weights.split(self._chunk), strict=True):
                wanted = wanted + class_sums(F, classes, self._k, weight)
                if by_loss:
                    losses.append(distances(F, classes))
            if by_loss:
                self._picker.observe(index, torch.cat(losses))

            def loss_of(points: Tensor, piece: Piece) -> Tensor:
                F = features(points, piece.host_classes)
                return mean_gaps(wanted, class_sums(F, piece.classes, self._k)).sum()

            return sum_over_pieces(loss_of, x, self._pieces), {}

    def extra_state(self) -> State:
        return self._picker.state()

    def restore_extra(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        self._picker.restore(tensors, plain)

    def _features(self, step: int) -> Features:
        """Features of images of known classes (on the host), augmented, by the embedding of a step."""
        options, x = self._options, self.parameters["x"]
        shape = self._rows.transform.input_shape
        if options.embedding == "network":
            network = build_network(
                self._spec, self._seed, f"dm.network.{step}", device=x.device, dtype=x.dtype
            )
            embed = network.train().requires_grad_(False).embed
        else:
            number = int(random_bits(self._seed, f"dm.embedding.{step}", 1)[0])
            params = options.embedding_params
            embed = make_feature_map(options.embedding, shape, seed=number, params=params).features
        changes = draw_augmentation(
            options.augment,
            range(self._k),
            (shape[0], shape[1], shape[2]),
            seed=self._seed,
            stream=f"dm.augment.{step}",
            siamese=True,
        ).to(x.device)
        return lambda X, classes: embed(augment_images(X, changes[classes]))

    def _plan(self) -> tuple[int, list[Piece]]:
        """Rows that are embedded at a time, and the points that are: whole classes, as many as the budget allows."""
        if self._options.embedding == "network" and self._spec.norm == "batch":
            return self._seen.n, class_pieces(self.classes, None)
        features, x = self._features(0), self.parameters["x"]
        first = self.classes[:1].cpu()
        row = kept_bytes(lambda X: features(X, first.repeat(len(X))), x[0])
        row_budget, budget = (of.get(x.device.type, of["cuda"]) for of in (_ROW_BUDGET, _POINT_BUDGET))
        budget = self._options.memory_budget or budget
        return max(1, min(budget, row_budget) // row), class_pieces(self.classes, budget // row)

    @torch.no_grad()
    def _embedded(self, features: Features, index: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Features and classes of rows, some at a time; on a CPU, each piece by one core."""

        @torch.no_grad()
        def embedded(rows: Tensor) -> tuple[Tensor, Tensor]:
            assert self._seen.classes is not None
            classes = self._seen.classes[rows]
            return features(self._seen.inputs(rows), classes), classes.to(self.classes.device)

        pieces = index.split(self._chunk)
        if self.classes.device.type == "cpu":
            with single_core_workers(None) as pool:
                yield from pool.map(embedded, pieces)
        else:
            yield from map(embedded, pieces)

    @torch.no_grad()
    def _point_sums(self, features: Features) -> Tensor:
        x = self.parameters["x"]
        parts = [(features(x[at], host), classes) for at, classes, host in self._pieces]
        return torch.stack([class_sums(F, classes, self._k) for F, classes in parts]).sum(0)
