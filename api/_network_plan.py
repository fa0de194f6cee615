"""Plans of the methods whose sets networks are to be trained on: what else they need, and who judges them.

A set is judged as it is used: by networks trained on it, on rows held out. `predict` of the set trains no networks; its
model is ridge regression on features of random ones.
"""

from pathlib import Path
from typing import Any

from ._job import Job
from ._plan import Plan, Start
from ._train_network import DEFAULT_RECIPE
from .nn_baselines.gradient_matching import DC, DSA, GradientMatchingLearner
from .nn_baselines.judge import NetworkJudge
from .nn_baselines.trained_network import TrainedNetwork, fit_network, network_from
from .nn_baselines.training_recipes import training_recipe
from .nn_baselines.trajectory_matching import MTT, MTTLearner
from .solver.distilled_set import DistilledSet
from .solver.encoder import Encoder
from .solver.feature_maps.random_conv import RandomConv
from .solver.learner import Learner
from .solver.learners.dkkt import DKKTLearner
from .solver.learners.dkkt_options import DKKT
from .solver.learners.dm import DM, DMLearner
from .solver.learners.images import Judge
from .solver.learners.rows import TrainingRows
from .solver.networks import Network, NetworkSpec, network_spec
from .solver.transforms import Transform

NetworkMethod = DM | DKKT | DC | DSA | MTT


def make_network_plan(job: Job, method: NetworkMethod, rows: TrainingRows, start: Start) -> Plan:
    """The plan of such a method: its learner, with trained networks where it learns from those."""
    transform, seed = rows.transform, job.seed
    shape = transform.input_shape
    if len(shape) != 3:
        raise ValueError(f"method {method.method!r} learns images (c, h, w), got rows of shape {shape}")
    spec = network_spec(method.network, shape, rows.targets.n_outputs, **method.network_params)
    recipe = training_recipe("dsa", epochs=method.judge_epochs, augment=method.augment)
    judge = NetworkJudge(rows, spec, recipe, count=method.judge_networks, seed=seed)
    features = RandomConv(shape, depth=min(3, min(shape[1:]).bit_length() - 1), seed=seed)

    def score(ds: DistilledSet) -> float:
        return judge(ds.transformed(), ds.y.double())["score"]

    return Plan(
        _learner(job, method, rows, start, spec, judge),
        lambda learned: Encoder(transform, features),
        score,
        notes=(
            f"held-out figures are those of {method.judge_networks} networks ({spec.name}) trained on the set for"
            f" {method.judge_epochs} epochs; `predict` is ridge regression on features of random networks",
        ),
    )


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
    network = _expert(job, method, rows, spec)
    return DKKTLearner(*given, method, network=network, seed=job.seed, judge=judge)


def _expert(job: Job, method: DKKT, rows: TrainingRows, spec: NetworkSpec) -> Network:
    """The trained network: from its file, or trained on all rows (and written there)."""
    if method.expert and Path(method.expert).exists():
        return network_from(method.expert, rows, spec).network
    # The operations that points are to bear are those that the network learns to bear.
    recipe = training_recipe(DEFAULT_RECIPE, epochs=method.expert_epochs, augment=method.augment)
    trained = fit_network(rows, spec, recipe, seed=job.seed, single=False, progress=job.progress)
    if method.expert:
        trained.save(method.expert)
    return trained.network
