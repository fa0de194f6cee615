"""Options of methods that match trajectories: the experts, and the student's steps.

What is random about a step is here as well: the stretch of an expert's way, and the points of each batch.
"""

import itertools
from collections.abc import Sequence

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from ..kernels import uniform
from ..kernels.augmentation import draw_augmentation
from ..solver.learners.images import NetworkMethod
from ..solver.learners.rows import TrainingRows
from .experts import Trajectories, expert_trajectories
from .student import StudentBatch
from .training_recipes import TrainingRecipe

# A student's learning rate is kept at this or above: at 0 it would not move, and below it would climb.
LEAST_RATE = 1e-6


class ExpertOptions(NetworkMethod):
    """Options of experts and students; each method documents its own defaults.

    Attributes
    ----------
    experts : int, default 100
        Networks trained on all rows.
    expert_epochs : int, default 50
        Epochs of their training.
    expert_rate, expert_momentum : float, default 0.01 and 0
        Of their gradient descent.
    expert_batch_size : int, default 256
    experts_folder : str, optional
        Where trajectories are kept, and taken from; in memory by default.
    max_start_epoch : int
        The epoch where a student starts is below it.
    expert_steps : int
        Epochs later the expert is where the student should arrive.
    student_steps : int
    batch_syn : int, optional
        Points of a student's step, drawn without replacement until all were; all points by default.
    rate : float, default 0.01
        The student's, at the start.
    rate_lr : float
        Of the rate.
    augment : str
        Strategy of augmentation (`draw_augmentation`) of students, and of experts if not said otherwise.
    """

    experts: int = Field(default=100, ge=1)
    expert_epochs: int = Field(default=50, ge=1)
    expert_rate: float = Field(default=0.01, gt=0, allow_inf_nan=False)
    expert_momentum: float = Field(default=0.0, ge=0, lt=1)
    expert_batch_size: int = Field(default=256, ge=1)
    experts_folder: str | None = None
    max_start_epoch: int = Field(default=25, ge=1)
    expert_steps: int = Field(default=3, ge=1)
    student_steps: int = Field(default=20, ge=1)
    batch_syn: int | None = Field(default=None, ge=1)
    rate: float = Field(default=0.01, ge=LEAST_RATE, allow_inf_nan=False)
    rate_lr: float = Field(default=1e-5, ge=0, allow_inf_nan=False)
    augment: str = "color_crop_cutout_flip_scale_rotate"

    @field_validator("augment", "expert_augment", check_fields=False)
    @classmethod
    def _known_strategy(cls, strategy: str) -> str:
        draw_augmentation(strategy, torch.empty(0, dtype=torch.int64), (1, 2, 2), seed=0, stream="")
        return strategy

    @model_validator(mode="after")
    def _reaches(self) -> "ExpertOptions":
        # Training the experts takes hours: they must not turn out too short after it.
        self.check_reach(self.expert_epochs)
        return self

    @property
    def expert_strategy(self) -> str:
        """How the rows that experts are trained on are augmented."""
        return self.augment

    def check_reach(self, epochs: int) -> None:
        """Refuse experts of so many epochs if a student may be compared with a later one."""
        last = self.max_start_epoch - 1 + self.expert_steps
        if last > epochs:
            raise ValueError(
                f"max_start_epoch={self.max_start_epoch} and expert_steps={self.expert_steps} reach epoch {last}, the"
                f" experts are trained for {epochs}: lower one or raise `expert_epochs`"
            )

    def trajectories(self, rows: TrainingRows, *, seed: int, progress: bool | None = None) -> Trajectories:
        """The experts, trained or taken from their folder (`expert_trajectories`)."""
        return expert_trajectories(
            rows,
            self.spec(rows),
            self.expert_recipe(),
            count=self.experts,
            seed=seed,
            folder=self.experts_folder,
            progress=progress,
        )

    def expert_recipe(self) -> TrainingRecipe:
        """How experts are trained."""
        return TrainingRecipe(
            name="expert",
            rate=self.expert_rate,
            momentum=self.expert_momentum,
            weight_decay=0.0,
            schedule="constant",
            epochs=self.expert_epochs,
            batch_size=self.expert_batch_size,
            augment=self.expert_strategy,
        )

    def check_trajectories(self, trajectories: Trajectories, rows: TrainingRows) -> None:
        """Refuse experts of other networks or rows, or of too few epochs."""
        spec = self.spec(rows)
        if trajectories.spec != spec:
            raise ValueError(f"the trajectories are of {trajectories.spec}, the options ask for {spec}")
        if trajectories.identity["rows"] != rows.identity:
            raise ValueError("the trajectories are of experts of other rows: train them on these")
        self.check_reach(trajectories.epochs)

    def stretch(
        self, trajectories: Trajectories, step: int, *, seed: int, stream: str
    ) -> tuple[Tensor, Tensor]:
        """Parameters (P,) where a step's student starts, and where it is to arrive; on the CPU.

        All experts serve, in a random order, before one serves again.
        """
        count = len(trajectories)
        order = uniform(seed, f"{stream}.experts.{step // count}", count).argsort(stable=True)
        expert = int(order[step % count])
        first = int(float(uniform(seed, f"{stream}.start.{step}", 1)) * self.max_start_epoch)
        return trajectories.snapshot(expert, first), trajectories.snapshot(expert, first + self.expert_steps)

    def student_batches(
        self,
        parts: Sequence[Tensor],
        classes: Tensor,
        image_shape: tuple[int, ...],
        step: int,
        *,
        seed: int,
        stream: str,
    ) -> list[StudentBatch]:
        """The student's steps: numbers of the points of each, points of classes (m,), augmented alike in a step."""
        lengths = [len(part) for part in parts]
        drawn = draw_augmentation(
            self.augment,
            torch.arange(len(parts)).repeat_interleave(torch.tensor(lengths)),
            image_shape,  # pyright: ignore[reportArgumentType]
            seed=seed,
            stream=f"{stream}.augment.{step}",
        ).to(classes.device)
        starts = itertools.accumulate(lengths, initial=0)
        return [
            StudentBatch(part, classes[part], drawn[first : first + len(part)])
            for part, first in zip(parts, starts, strict=False)
        ]

    def batches(self, m: int, step: int, *, seed: int, stream: str) -> list[Tensor]:
        """Numbers of the points of each of the student's steps, int64, on the CPU: all before one comes again."""
        size = min(self.batch_syn or m, m)
        parts: list[Tensor] = []
        while len(parts) < self.student_steps:
            keys = uniform(seed, f"{stream}.batches.{step}.{len(parts)}", m)
            parts.extend(keys.argsort(stable=True).split(size))
        return parts[: self.student_steps]
