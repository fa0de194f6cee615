"""Fresh samples of a set of distributions, for training networks: new ones at every epoch.

The evaluation of D3 trains on the point of each distribution and on one sample of each, which is drawn anew at every
epoch (`evaluate_synset_batch` in utils.py of the published code). Labels of a sample are those of its distribution.
"""

import dataclasses

import torch
from torch import Tensor

from ..solver._check import check_count
from ..solver.distributions import Distribution


@dataclasses.dataclass(frozen=True)
class Draws:
    """Samples by epoch.

    Attributes
    ----------
    distribution : Distribution
        m of them.
    count : int
        Samples of each at an epoch.
    seed : int

    Raises
    ------
    ValueError
        If `count` is not positive.
    """

    distribution: Distribution
    count: int
    seed: int

    def __post_init__(self) -> None:
        check_count(self.count, "count")

    def __call__(self, epoch: int) -> Tensor:
        """Transformed inputs (count * m, *input_shape), float32, on the CPU: all of one draw, then the next.

        A function of (seed, epoch); draws of different epochs are independent.
        """
        first = epoch * self.count
        drawn = [self.distribution.draw(first + number, seed=self.seed) for number in range(self.count)]
        return torch.cat(drawn)
