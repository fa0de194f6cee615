"""Plans of the methods whose sets networks are to be trained on: what else they need, and who judges them.

A set is judged as it is used: by networks trained on it, on rows held out. `predict` of the set trains no networks; its
model is ridge regression on features of random ones.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from ._job import Job
from ._plan import Plan, Start
from ._train_network import DEFAULT_RECIPE
from .nn_baselines.d3 import D3Learner
from .nn_baselines.d3_options import D3
from .nn_baselines.gradient_matching import DC, DSA, GradientMatchingLearner
from .nn_baselines.judge import NetworkJudge
from .nn_baselines.trained_network import TrainedNetwork, fit_network, network_from
from .nn_baselines.training_recipes import training_recipe
from .nn_baselines.trajectory_matching import MTT, MTTLearner
from .solver.distilled_set import DistilledSet
from .solver.distributions.latent import LatentGaussians
from .solver.encoder import Encoder, arrays_of
from .solver.feature_maps.random_conv import RandomConv
from .solver.learner import Learner
from .solver.learners.dkkt import DKKTLearner
from .solver.learners.dkkt_options import DKKT
from .solver.learners.dm import DM, DMLearner
from .solver.learners.images import Judge
from .solver.learners.rows import TrainingRows
from .solver.networks import Network, NetworkSpec
from .solver.targets import Targets
from .solver.transforms import Transform

NetworkMethod = DM | DKKT | DC | DSA | MTT | D3


def check_images(method: NetworkMethod, transform: Transform, coding: Targets) -> None:
    """Raise unless the rows are images with classes, of which networks can be made."""
    name, shape = method.method, transform.input_shape
    if len(shape) != 3 or min(shape[1:]) < 2:
        raise ValueError(
            f"method {name!r} learns images (c, h, w) of 2 x 2 pixels or more, got rows of shape {shape}: reshape"
            " them, or use a method for vectors ('kip', 'closed-form')"
        )
    if not coding.is_classes:
        raise ValueError(f"method {name!r} needs classes: use 'kip', 'rfad' or 'closed-form' for regression")


def check_job(job: Job, method: NetworkMethod) -> None:
    """Refuse arguments that a method has no use for."""
    if isinstance(method, D3):
        job.refuse("storage")
        if job.near_name != "noise":
            raise ValueError("method 'd3' learns from random latents, not from points: leave out `near`")


def make_network_plan(
    job: Job, method: NetworkMethod, rows: TrainingRows, seen: TrainingRows, start: Start
) -> Plan:
    """The plan of such a method: its learner, with trained networks where it learns from those.

    `seen` are the rows of the method's share. They judge where no rows are held out.
    """
    transform, seed = rows.transform, job.seed
    shape = transform.input_shape
    spec = method.spec(rows)
    labels = "probabilities" if method.labels == "soft" else "hard"
    recipe = training_recipe("dsa", epochs=method.judge_epochs, augment=method.augment, labels=labels)
    judge = NetworkJudge(seen, spec, recipe, count=method.judge_networks, seed=seed)
    judged = "set"
    if isinstance(method, D3) and method.judge_draws:
        judged = f"set with {method.judge_draws} draws of each Gaussian"
    features = RandomConv(shape, depth=min(3, min(shape[1:]).bit_length() - 1), seed=seed)

    def score(ds: DistilledSet) -> float:
        return judge(ds.transformed(), ds.y.double())["score"]

    return Plan(
        _learner(job, method, rows, start, spec, judge),
        lambda learned: Encoder(transform, features),
        score,
        distribution=(lambda learned: _latents(method, rows, learned)) if isinstance(method, D3) else None,
        notes=(
            f"held-out figures are those of {method.judge_networks} networks ({spec.name}) trained on the {judged} for"
            f" {method.judge_epochs} epochs; `predict` is ridge regression on features of random networks",
        ),
    )


def _latents(method: D3, rows: TrainingRows, learned: dict[str, Tensor]) -> LatentGaussians:
    """The distributions that D3 learned."""
    state = arrays_of(learned, "decoder.")
    means, log_variances = learned["latent.mean"], learned["latent.log_variance"]
    return LatentGaussians.of(method.decoder_spec(rows), state, means, log_variances)


def expert_transform(method: Any) -> Transform | None:
    """The transform of the network that a method is to learn from, where there is one already."""
    path = getattr(method, "expert", None)
    return TrainedNetwork.load(path).encoder.transform if path and Path(path).exists() else None


def _learner(
    job: Job, method: NetworkMethod, rows: TrainingRows, start: Start, spec: NetworkSpec, judge: Judge
) -> Learner:
    given = (rows, start.points, start.labels, start.classes)
    if isinstance(method, DM):
        return DMLearner(*given, method, seed=job.seed, judge=judge)
    if isinstance(method, (DC, DSA)):
        return GradientMatchingLearner(*given, method, seed=job.seed, judge=judge)
    if isinstance(method, MTT):
        trajectories = method.trajectories(rows, seed=job.seed, progress=job.progress)
        return MTTLearner(*given, method, trajectories=trajectories, seed=job.seed, judge=judge)
    if isinstance(method, D3):
        assert start.classes is not None
        method.check_rows(rows, start.classes)
        experts = (
            method.trajectories(rows, seed=job.seed, progress=job.progress) if method.needs_experts else None
        )
        return D3Learner(rows, start.classes, method, trajectories=experts, seed=job.seed, judge=judge)
    network = _expert(job, method, rows, spec)
    return DKKTLearner(*given, method, network=network, seed=job.seed, judge=judge)


def _expert(job: Job, method: DKKT, rows: TrainingRows, spec: NetworkSpec) -> Network:
    """The trained network: from its file, or trained on all rows (and written there)."""
    if method.expert and Path(method.expert).exists():
        return network_from(method.expert, rows, spec).network
    if method.expert and not Path(method.expert).parent.is_dir():
        raise FileNotFoundError(
            f"the folder {Path(method.expert).parent} of `expert` does not exist: create it first"
        )
    # The operations that points are to bear are those that the network learns to bear.
    recipe = training_recipe(DEFAULT_RECIPE, epochs=method.expert_epochs, augment=method.augment)
    trained = fit_network(
        rows,
        spec,
        recipe,
        seed=job.seed,
        single=False,
        class_names=job.names(rows.targets),
        provenance=job.origin,
        progress=job.progress,
    )
    if method.expert:
        trained.save(method.expert)
    return trained.network
