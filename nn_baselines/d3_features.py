"""The second part of a step of D3: whose features are compared, of which rows, and how many at a time.

Each step draws an expert and, of each class, as many rows as it decodes images. The loss is in `feature_mmd`; the
distance of two rows of one class is measured with it, because a kernel of fixed widths says nothing where all of them
are far from that distance.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..kernels import MixtureOfGaussians, uniform
from ..kernels.radial import RadialKernel
from ..solver.learner import Figures
from ..solver.learners.class_pieces import class_pieces, kept_bytes
from ..solver.learners.pick import Pick, Picker
from ..solver.learners.rows import TrainingRows
from ..solver.networks import Network, build_network
from .d3_options import D3
from .experts import Trajectories
from .feature_mmd import Features, class_distance, feature_mmd
from .network_gradient import named_parameters

# Bytes of activations: about the last-level cache of a CPU, or enough images to fill a GPU.
_BUDGET = {"cpu": 2**25, "cuda": 2**31}


class FeatureMatching:
    """The sum over classes of the squared MMD between features of decoded images and of rows.

    Parameters
    ----------
    rows : TrainingRows
    classes : Tensor, shape (m,), int64
        Of the Gaussians.
    options : D3
    network : Network
        Gives the form of experts; in training mode, its parameters without gradients.
    trajectories : Trajectories or None
        None for networks with random weights.
    seed : int

    Attributes
    ----------
    draws : int
        Images of each Gaussian in a step.
    """

    def __init__(
        self,
        rows: TrainingRows,
        classes: Tensor,
        options: D3,
        network: Network,
        *,
        trajectories: Trajectories | None,
        seed: int,
    ) -> None:
        self._rows, self._options, self._network, self._seed = rows, options, network, seed
        self._trajectories = trajectories
        assert rows.classes is not None
        counts = classes.cpu().bincount(minlength=rows.targets.n_outputs)
        # The estimate needs two images of each class.
        least, most = int(counts[counts > 0].min()), int(counts.max())
        self.draws = max(options.mmd_samples // most, -(-2 // least))
        sizes = rows.classes.bincount(minlength=len(counts)).clamp(max=self.draws * most)
        self._picker = Picker(rows, Pick(kind="balanced"), int(sizes.sum()), seed)
        self._has_points = counts > 0
        self._chunk, together = None, 1
        if not network.has_batch_statistics:  # which are, as published, those of one class
            budget = options.memory_budget or _BUDGET.get(rows.device.type, _BUDGET["cuda"])
            row = kept_bytes(network.embed, rows.inputs(torch.tensor([0]))[0])
            together = budget // row
            self._chunk = max(1, together)
        self._pieces = class_pieces(classes.repeat(self.draws), together)

    def loss(self, step: int, images: Tensor) -> tuple[Tensor, Figures]:
        """The loss of a step, differentiable once in the images, and the distance of features of rows.

        Parameters
        ----------
        step : int
        images : Tensor, shape (draws * m, *input_shape)
            One of each Gaussian, and again.

        Returns
        -------
        loss : Tensor, shape ()
            NaN where the kernel is to be as wide as a median distance, and that is 0.
        figures : dict
        """
        features = self._features(step)
        F, classes = self._row_features(step, features)
        distance = class_distance(F, classes)
        figures = {"feature_distance": distance}
        if self._options.bandwidths == "median" and not float(distance) > 0:
            return images.sum() * math.nan, figures
        kernel, biased = self._kernel(distance), self._options.biased
        return feature_mmd(features, images, self._pieces, F, classes, kernel, biased=biased), figures

    def _row_features(self, step: int, features: Features) -> tuple[Tensor, Tensor]:
        """Features and classes of the rows of a step, in class order."""
        rows = self._rows
        assert rows.classes is not None
        index, _ = self._picker.draw(step)
        index = index[self._has_points[rows.classes[index]]]
        classes = rows.classes[index]
        parts = index.split(self._chunk or classes.unique_consecutive(return_counts=True)[1].tolist())
        with torch.no_grad():
            return torch.cat([features(rows.inputs(part)) for part in parts]), classes

    def _features(self, step: int) -> Features:
        rows, options, trajectories = self._rows, self._options, self._trajectories
        if options.mmd_network == "random":
            made = build_network(
                self._network.spec, self._seed, f"d3.network.{step}", device=rows.device, dtype=rows.dtype
            )
            return made.train().requires_grad_(False).embed
        assert trajectories is not None
        expert = int(float(uniform(self._seed, f"d3.features.{step}", 1)) * len(trajectories))
        epoch, like = options.feature_epoch(trajectories.epochs), next(self._network.parameters())
        return expert_function(self._network, trajectories, expert, epoch, like=like, embed=True)

    def _kernel(self, distance: Tensor) -> RadialKernel:
        options = self._options
        if options.bandwidths == "median":
            return MixtureOfGaussians(distance, options.ratios)
        return MixtureOfGaussians(1.0, options.bandwidths)


def expert_function(
    network: Network,
    trajectories: Trajectories,
    expert: int,
    epoch: int,
    *,
    like: Tensor,
    embed: bool = False,
) -> Callable[[Tensor], Tensor]:
    """An expert of some age as a function of images (n, *input_shape): to outputs, or with `embed` to features.

    Batch norm has the statistics of the images, as trajectories hold parameters alone.
    """
    flat = trajectories.snapshot(expert, epoch).to(like)
    parameters = named_parameters(network, flat)
    return lambda X: torch.func.functional_call(network, parameters, (X, embed))
