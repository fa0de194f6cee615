"""A learner for the options of a method, and what makes a set of what it learned."""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from ._job import Job
from .solver.distilled_set import DistilledSet
from .solver.distributions import Distribution
from .solver.encoder import Encoder
from .solver.kernel_encoder import KernelEncoder
from .solver.kernel_functions import make_kernel_function
from .solver.learner import Learner
from .solver.learners.frepo import FRePo, FRePoLearner
from .solver.learners.kernel_ridge import prediction_figures
from .solver.learners.kip import KIP, KIPLearner
from .solver.learners.rfad import RFAD, RFADLearner
from .solver.learners.rows import TrainingRows


@dataclasses.dataclass(frozen=True)
class Start:
    """What a learner starts from: points (m, *input_shape), target rows (m, k), and classes (m,) where there are."""

    points: Tensor
    labels: Tensor
    classes: Tensor | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """How one run is carried out.

    Attributes
    ----------
    learner : Learner
    encoder : callable
        What was learned to the encoder that the set is used with.
    stored_labels : callable
        What was learned, and the points as a kernel sees them once they are stored, to the labels of the set.
    heldout_score : callable
        Held-out score of a set as it is stored.
    distribution : callable, optional
        What was learned to the distributions that it is, in the place of points.
    notes : tuple of str
        What to know of the figures.
    """

    learner: Learner
    encoder: Callable[[dict[str, Tensor]], Encoder | KernelEncoder]
    heldout_score: Callable[[DistilledSet], float]
    stored_labels: Callable[[dict[str, Tensor], Tensor], Tensor] = lambda learned, points: learned["y"]
    distribution: Callable[[dict[str, Tensor]], Distribution] | None = None
    notes: tuple[str, ...] = ()


def make_plan(
    job: Job, method: KIP | RFAD | FRePo, rows: TrainingRows, start: Start, sample: Callable[[], Tensor]
) -> Plan:
    """The plan of a method that learns for a kernel."""
    transform, seed = rows.transform, job.seed
    shape = transform.input_shape

    def score(ds: DistilledSet) -> float:
        return _ridge_score(ds, rows)

    if isinstance(method, KIP):
        kernel = make_kernel_function(
            method.kernel, shape, seed=seed, sample=sample, params=method.kernel_params
        )
        kip = KIPLearner(rows, kernel, start.points, start.labels, method, seed=seed)
        plan = Plan(kip, lambda learned: KernelEncoder(transform, kernel), score)
        if method.labels == "solved":
            # The best labels are those of the points as they are stored.
            return dataclasses.replace(plan, stored_labels=lambda learned, points: kip.solved_labels(points))
        return plan
    if isinstance(method, RFAD):
        rfad = RFADLearner(rows, start.points, start.labels, method, seed=seed)
        return Plan(rfad, lambda learned: Encoder(transform, method.feature_map(shape, seed)), score)
    frepo = FRePoLearner(rows, start.points, start.labels, method, seed=seed)
    return Plan(frepo, lambda learned: Encoder(transform, method.feature_map(shape, learned)), score)


def _ridge_score(ds: DistilledSet, rows: TrainingRows) -> float:
    """Score of a set's own model on the rows held out."""
    predicted, wanted = [], []
    for Z, Y in rows.held_out():
        raw = Z.cpu().double()
        encoder = ds.encoder
        seen = raw if isinstance(encoder, KernelEncoder) else encoder.feature_map.features(raw)
        predicted.append(ds.model.scores(seen))
        wanted.append(Y.cpu())
    return prediction_figures(ds.targets, torch.cat(predicted), torch.cat(wanted))["score"]
