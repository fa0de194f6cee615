"""Options of D3."""

from typing import Any, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from ..kernels.mmd import DEFAULT_RATIOS
from ..solver._check import check_name
from ..solver.decoder_spec import DECODERS, DecoderSpec, decoder_spec
from ..solver.learners.rows import TrainingRows
from .expert_options import ExpertOptions
from .experts import Trajectories


class D3(ExpertOptions):
    """Options of D3; the defaults are those of the published run with the small decoder.

    Published for ImageNet-1K at 64 x 64 pixels (``clean_script.md``), in blocks of 200 or 500 classes that are
    distilled by themselves:

    | | small | medium | large |
    |---|---|---|---|
    | Gaussians a class | 1 | 2 | 10 |
    | classes in a block | 200 | 500 | 200 |
    | width; latent numbers | 256; 64 | 512; 2048 | 1024; 4096 |
    | mmd_samples | 30 | 12 | 20 |
    | max_start_epoch | 27 | 10 | 27 |
    | batch_syn | all | 250 | 250 |
    | lr_latent | 3e-4 | 5e-3 | 5e-3 |
    | lr_decoder | 3e-4 | 8e-5 | 8e-5 |
    | rate | 0.01 | 0.015 | 0.008 |
    | rate_lr | 1e-6 | 5e-6 | 1e-6 |
    | steps | 10,000 | 10,000 | 8,000 |
    | label_epoch | 9 | 12 | 13 |

    all with 10 student steps and experts 2 epochs later. The experts of the published readme, of 10 epochs, are too
    short for these; 50 is the default of its ``buffer.py``.

    Attributes
    ----------
    decoder : {"small", "medium", "large"}, default "small"
    decoder_params : dict
        Further arguments of it (`decoder_spec`): latent_dim, width, linear, scale. Images are within ±scale, which is
        1 as published; standardised data mostly go to about 2.5.
    trajectory_weight, mmd_weight : float, default 1
        Of the two parts of a step; 0 leaves a part out.
    mmd_samples : int, default 30
        Images of each class that are drawn for the second part, and rows: of p Gaussians a class mmd_samples // p
        each, and at least one. A class that has fewer rows gives all.
    bandwidths : tuple of float or "median", default (1, 2, 4, 8, 16)
        Of the Gaussians that the kernel sums up. "median": the median distance of two rows of one class, under the
        network of the step, times `ratios`. The fixed ones are blind where that distance, which is logged, is far from
        all of them. A median of 0, where rows repeat or a network is dead, ends the run.
    ratios : tuple of float, default (1/4, 1/2, 1, 2, 4)
    biased : bool, default False
        Estimate of the squared MMD.
    mmd_network : {"final", "expert", "random"}, default "final"
        Whose features are compared: of an expert of its own for each step, after its last epoch or after
        max_start_epoch + expert_steps (which the published code calls better), or of a network with random weights,
        drawn anew at every step, which needs no experts.
    memory_budget : int, optional
        Bytes that the activations of the second part may take; what one class needs is always taken. Default 32 MiB
        on a CPU and 2 GiB on a GPU.
    lr_latent, lr_decoder : float, default 3e-4
        Of means and log-variances (gradient descent), and of the decoder (Adam).
    momentum : float, default 0.5
        Of latents and rate.
    weight_decay : float, default 1e-5
        Of the decoder.
    labels : {"soft", "hard"}, default "soft"
        Labels of a class are its own, or what an expert makes of its decoded means, as probabilities.
    label_epoch : int, default 9
        Of that expert.
    network, network_params
        Of experts, students and features, by name (`network_spec`).
    experts, expert_epochs, expert_rate, expert_momentum, expert_batch_size, experts_folder
        As for `MTT`.
    expert_augment : str, default "crop_scale_rotate"
        Augmentation of their training. The published code names these three, and does not say how its experts were
        trained: with its own defaults ``buffer.py`` does not run.
    augment : str, default ""
        Of students; the published run has none (its flag switches the decoder on and off).
    max_start_epoch, expert_steps, student_steps : int, default 27, 2 and 10
        As for `MTT`.
    batch_syn : int, optional
        Gaussians of a student's step, which are decoded together; all by default.
    rate : float, default 0.01
        The student's, at the start.
    rate_lr : float, default 1e-6
        Of the rate.
    ridge : float, default 1e-3
        Of the ridge model that is stored with the set.
    judge_networks, judge_epochs : int, default 2 and 100
        Networks trained on the set at each evaluation, and how long.
    judge_draws : int, default 4
        Draws of each Gaussian that stand beside the decoded means there, as in training on such a set; the same at
        every evaluation. 0 for the means alone.
    steps, evaluate_every : int, default 10,000 and 200
        Where the loop does not say.
    """

    method: Literal["d3"] = "d3"
    decoder: str = "small"
    decoder_params: dict[str, Any] = Field(default_factory=dict)
    trajectory_weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    mmd_weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    mmd_samples: int = Field(default=30, ge=2)
    bandwidths: tuple[float, ...] | Literal["median"] = (1.0, 2.0, 4.0, 8.0, 16.0)
    ratios: tuple[float, ...] = DEFAULT_RATIOS
    biased: bool = False
    mmd_network: Literal["final", "expert", "random"] = "final"
    memory_budget: int | None = Field(default=None, ge=1)
    lr_latent: float = Field(default=3e-4, gt=0, allow_inf_nan=False)
    lr_decoder: float = Field(default=3e-4, gt=0, allow_inf_nan=False)
    momentum: float = Field(default=0.5, ge=0, lt=1)
    weight_decay: float = Field(default=1e-5, ge=0, allow_inf_nan=False)
    labels: Literal["soft", "hard"] = "soft"  # pyright: ignore[reportIncompatibleVariableOverride]
    label_epoch: int = Field(default=9, ge=0)
    expert_augment: str = "crop_scale_rotate"
    augment: str = ""
    max_start_epoch: int = Field(default=27, ge=1)
    expert_steps: int = Field(default=2, ge=1)
    student_steps: int = Field(default=10, ge=1)
    rate_lr: float = Field(default=1e-6, ge=0, allow_inf_nan=False)
    judge_draws: int = Field(default=4, ge=0)
    steps: int = Field(default=10_000, ge=0)
    evaluate_every: int = Field(default=200, ge=1)

    @field_validator("decoder")
    @classmethod
    def _known_decoder(cls, name: str) -> str:
        return check_name(name, DECODERS, "decoder")

    @field_validator("bandwidths", "ratios")
    @classmethod
    def _are_widths(cls, widths: tuple[float, ...] | str) -> tuple[float, ...] | str:
        if not isinstance(widths, str) and not (widths and all(0 < w < float("inf") for w in widths)):
            raise ValueError(f"bandwidths must be one or more finite numbers above 0, got {widths}")
        return widths

    @model_validator(mode="after")
    def _has_parts(self) -> Self:
        if self.trajectory_weight == self.mmd_weight == 0:
            raise ValueError(
                "`trajectory_weight` and `mmd_weight` are both 0: there is nothing to learn from, raise one"
            )
        return self

    @property
    def matches_trajectories(self) -> bool:
        """Whether the first part is there."""
        return self.trajectory_weight > 0

    @property
    def matches_features(self) -> bool:
        """Whether the second part is there."""
        return self.mmd_weight > 0

    @property
    def needs_experts(self) -> bool:
        """Whether anything looks at experts: with ``labels="hard"`` and random networks alone, nothing does."""
        of_experts = self.matches_features and self.mmd_network != "random"
        return self.matches_trajectories or of_experts or self.labels == "soft"

    @property
    def expert_strategy(self) -> str:
        return self.expert_augment

    def check_reach(self, epochs: int) -> None:
        """Refuse experts of so many epochs if a later one is asked for."""
        if self.matches_trajectories:
            super().check_reach(epochs)
        if self.matches_features and self.mmd_network == "expert" and self.feature_epoch(epochs) > epochs:
            raise ValueError(
                f"mmd_network='expert' is of epoch max_start_epoch + expert_steps = {self.feature_epoch(epochs)}, the"
                f" experts are trained for {epochs}: use 'final', or raise `expert_epochs`"
            )
        if self.labels == "soft" and self.label_epoch > epochs:
            raise ValueError(
                f"label_epoch={self.label_epoch} is beyond the experts, which are trained for {epochs} epochs: lower"
                ' it, or use labels="hard"'
            )

    def feature_epoch(self, epochs: int) -> int:
        """Age of the experts, trained for so many epochs, whose features are compared."""
        return epochs if self.mmd_network == "final" else self.max_start_epoch + self.expert_steps

    def decoder_spec(self, rows: TrainingRows) -> DecoderSpec:
        """The decoder for such rows."""
        return decoder_spec(self.decoder, rows.transform.input_shape, **self.decoder_params)

    @property
    def least_rows(self) -> int:
        """Training rows that a class must have for its features to be compared with."""
        return 2 if self.matches_features else 0

    def check_rows(self, rows: TrainingRows, classes: Tensor) -> None:
        """Refuse rows that cannot be learned from, or decoded, and classes (m,) that do not fit them."""
        k = rows.targets.n_outputs
        if len(rows.transform.input_shape) != 3:
            raise ValueError(
                f"method 'd3' learns images (c, h, w), got rows of shape {rows.transform.input_shape}"
            )
        if rows.classes is None or rows.targets.classes is None:
            raise ValueError("method 'd3' needs classes: use another one for regression")
        if classes.ndim != 1 or classes.dtype != torch.int64 or not len(classes):
            raise ValueError(
                f"`classes` must be int64 of shape (m,), m > 0, got {classes.dtype} of shape {tuple(classes.shape)}"
            )
        if not 0 <= int(classes.min()) <= int(classes.max()) < k:
            raise ValueError(f"`classes` must be numbers from 0 to {k - 1}")
        if bool((classes.diff() < 0).any()):
            raise ValueError("`classes` must be in class order: sort them")
        counts = rows.classes.bincount(minlength=k)
        for number in classes.unique().tolist():
            if counts[number] < self.least_rows:
                raise ValueError(
                    f"class {rows.targets.classes[number]!r} has {int(counts[number])} training rows beside those held"
                    " out, and features are compared with two or more: give it more, leave it out, lower `holdout`, or"
                    " set mmd_weight=0"
                )
        self.decoder_spec(rows)

    def check_experts(self, trajectories: Trajectories | None, rows: TrainingRows) -> None:
        """Refuse missing experts, and others than the options ask for."""
        if self.needs_experts and trajectories is None:
            raise ValueError(
                "these options need experts, got no trajectories: make them by `options.trajectories`, or leave"
                ' experts out by trajectory_weight=0, mmd_network="random" and labels="hard"'
            )
        if self.needs_experts and trajectories is not None:
            self.check_trajectories(trajectories, rows)
