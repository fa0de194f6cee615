r"""MTT: points on which a network trains to where an expert, trained on all rows, got.

An expert's parameters after t epochs are :math:`\theta^*_t`. A student starts from them, takes N steps of gradient
descent on batches of the points, and is compared with where the expert was M epochs later:

.. math:: \theta_{i+1} = \theta_i - \alpha\, g(\theta_i; x_{b_i}), \quad \theta_0 = \theta^*_t, \qquad
          L = \|\theta_N - \theta^*_{t+M}\|^2 / \|\theta^*_t - \theta^*_{t+M}\|^2 ,

g being the gradient of the mean cross-entropy, t uniform below a bound. L is minimised over the points x and the
student's learning rate α. Source: Cazenavette et al., "Dataset Distillation by Matching Training Trajectories",
CVPR 2022, and their ``distill.py``.

The derivative is exact, in the memory of one step of the student (`student`).

**Learning rate.** α is learned by gradient descent as it is, as published, and kept at `LEAST_RATE` or above, which is
a projection: at 0 the student would not move, and below it would climb.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ..solver.conv_networks import repeatable
from ..solver.learner import Figures
from ..solver.learners.images import ImageLearner, Judge
from ..solver.learners.rows import TrainingRows
from ..solver.networks import build_network
from ..solver.optimizers import make_optimizer
from .expert_options import LEAST_RATE, ExpertOptions
from .experts import Trajectories
from .student import StudentBatch, matching_loss


class MTT(ExpertOptions):
    """Options of MTT; the defaults are those of the published code.

    Published for CIFAR-10 (`student_steps`, `expert_steps`, `max_start_epoch`, `lr`, `rate_lr`, `rate`), in the form
    in which public runs quote the table of the readme: 1 point a class (whitened) 50, 2, 2, 100, 1e-7, 0.01; 10
    (whitened) 30, 2, 20, 1e5, 1e-4, 0.01; 50 (standardised) 30, 2, 40, 1000, 1e-5, 0.001. They disagree
    about 10 points a class (`lr` 100 to 1e5, `rate_lr` 1e-6 to 1e-4).

    Attributes
    ----------
    network : str, default "convnet"
        Of experts and students, by name (`network_spec`).
    network_params : dict
        Further arguments of it.
    experts : int, default 100
        Networks trained on all rows.
    expert_epochs : int, default 50
        Epochs of their training.
    expert_rate, expert_momentum : float, default 0.01 and 0
        Of their gradient descent.
    expert_batch_size : int, default 256
    experts_folder : str, optional
        Where trajectories are kept, and taken from; in memory by default: (expert_epochs + 1) P numbers an expert.
    max_start_epoch : int, default 25
        t is below it.
    expert_steps : int, default 3
        M, in epochs.
    student_steps : int, default 20
        N.
    batch_syn : int, optional
        Points of a student's step, drawn without replacement until all were; all points by default.
    lr : float, default 1000
        Of points, in units of the transformed data.
    rate : float, default 0.01
        α at the start.
    rate_lr : float, default 1e-5
        Of α.
    momentum : float, default 0.5
        Of both.
    augment : str, default "color_crop_cutout_flip_scale_rotate"
        Strategy of augmentation (`draw_augmentation`) of experts and students; "" for none.
    labels : {"fixed"}
    ridge : float, default 1e-3
        Of the ridge model that is stored with the set.
    judge_networks, judge_epochs : int, default 2 and 100
        Networks trained on the set at each evaluation, and how long.
    steps, evaluate_every : int, default 5000 and 100
        Where the loop does not say.
    """

    method: Literal["mtt"] = "mtt"
    lr: float = Field(default=1000.0, gt=0, allow_inf_nan=False)
    momentum: float = Field(default=0.5, ge=0, lt=1)
    steps: int = Field(default=5000, ge=0)
    evaluate_every: int = Field(default=100, ge=1)


class MTTLearner(ImageLearner):
    """Learner of points, and a learning rate, by MTT.

    Parameters
    ----------
    rows, points, labels, classes, options, seed, judge
        As for `ImageLearner`. The rows are not looked at: the experts were trained on them.
    trajectories : Trajectories
        Of experts of the network that the options name.

    Raises
    ------
    ValueError
        As `ImageLearner`, and if the trajectories are of other networks or rows, or shorter than the options ask for.

    Notes
    -----
    A step makes N passes forward and backward over its batches, and again N that are differentiated twice. Memory: N P
    parameters, and the activations of one batch (on a CPU, of one piece of it).
    """

    def __init__(
        self,
        rows: TrainingRows,
        points: Tensor,
        labels: Tensor,
        classes: Tensor | None,
        options: MTT,
        *,
        trajectories: Trajectories,
        seed: int,
        judge: Judge,
    ) -> None:
        super().__init__(rows, points, labels, classes, options, seed=seed, judge=judge)
        options.check_trajectories(trajectories, rows)
        self._options, self._trajectories = options, trajectories
        # Only its form is used: the parameters are those of trajectories.
        self._network = build_network(
            options.spec(rows), seed, "mtt.form", device=rows.device, dtype=rows.dtype
        ).train()
        self.parameters["rate"] = torch.tensor(
            options.rate, device=rows.device, dtype=rows.dtype, requires_grad=True
        )
        rates = {"x": options.lr, "rate": options.rate_lr}
        self.optimizer = make_optimizer(
            "sgd",
            [{"params": [self.parameters[name]], "lr": lr} for name, lr in rates.items()],
            momentum=options.momentum,
        )
        # A trajectory is the same wherever it is kept.
        del self._identity["options"]["experts_folder"]
        self._identity["experts"] = trajectories.identity

    def loss(self, step: int) -> tuple[Tensor, Figures]:
        """Loss of a step: differentiable once, and its gradient is computed with it."""
        start, target = self._stretch(step)
        x, rate = self.parameters["x"], self.parameters["rate"]
        with repeatable():
            loss = matching_loss(self._network, x, rate, self._batches(step), start, target)
        return loss, {"rate": rate.detach().clone()}

    def after_step(self, step: int) -> None:
        with torch.no_grad():
            self.parameters["rate"].clamp_(min=LEAST_RATE)

    def learned(self) -> dict[str, Tensor]:
        """Points, labels, and the student's learning rate "rate", 0-d; float64."""
        return {**super().learned(), "rate": self.parameters["rate"].detach().double().clone()}

    def _stretch(self, step: int) -> tuple[Tensor, Tensor]:
        """Parameters where a step's student starts, and where it is to arrive."""
        ends = self._options.stretch(self._trajectories, step, seed=self._seed, stream="mtt")
        start, target = (end.to(self._rows.device, self._rows.dtype) for end in ends)
        return start, target

    def _batches(self, step: int) -> list[StudentBatch]:
        """Points of the student's steps, and what happens to them."""
        options, rows, keys = self._options, self._rows, {"seed": self._seed, "stream": "mtt"}
        parts = [part.to(rows.device) for part in options.batches(len(self.classes), step, **keys)]
        return options.student_batches(parts, self.classes, rows.transform.input_shape, step, **keys)
