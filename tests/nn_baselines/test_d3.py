"""D3: a step is that of the published loop, in the memory of a part of it; what is learned, and when it is not."""

import copy
import json
import math

import pytest
import torch
from torch.nn import functional

from kernel_distill.nn_baselines.d3 import CALIBRATION, D3Learner
from kernel_distill.nn_baselines.d3_features import expert_function
from kernel_distill.nn_baselines.d3_options import D3
from kernel_distill.nn_baselines.expert_options import LEAST_RATE
from kernel_distill.nn_baselines.network_gradient import flat_parameters, named_parameters
from kernel_distill.solver.decoders import decoder_of
from kernel_distill.solver.distributions.latent import LatentGaussians
from kernel_distill.solver.learners.rows import TrainingRows
from kernel_distill.solver.loop import Loop, run_loop
from kernel_distill.solver.source import ArraySource
from kernel_distill.solver.targets import Targets
from kernel_distill.solver.transforms import make_transform

from ..kernels.peak import PeakMemory
from .image_rows import CLASSES, SHAPE, bits, image_rows, no_judge

OPTIONS = {
    "network_params": {"width": 4, "depth": 1},
    "decoder_params": {"width": 8, "latent_dim": 5, "scale": 2.0},
    "experts": 3,
    "expert_epochs": 6,
    "expert_batch_size": 32,
    "max_start_epoch": 3,
    "expert_steps": 2,
    "student_steps": 3,
    "mmd_samples": 6,
    "label_epoch": 4,
    "lr_latent": 0.1,
    "lr_decoder": 0.01,
    "rate": 0.02,
    "rate_lr": 1e-6,
    # The features of these networks are far smaller than those of large ones.
    "bandwidths": (0.5, 1.0, 2.0),
}
DATA_FREE = {"trajectory_weight": 0.0, "mmd_network": "random", "labels": "hard"}


@pytest.fixture(scope="module")
def experts():
    """Trajectories, by the dtype of the rows."""
    return {
        dtype: D3(**OPTIONS).trajectories(image_rows(dtype=dtype), seed=0, progress=False)
        for dtype in (torch.float32, torch.float64)
    }


def learner_of(experts, *, per_class=2, dtype=torch.float64, seed=2, rows=None, classes=None, **options):
    rows = image_rows(dtype=dtype) if rows is None else rows
    options = D3(**{**OPTIONS, **options})
    classes = torch.arange(CLASSES).repeat_interleave(per_class) if classes is None else classes
    trajectories = experts[dtype] if options.needs_experts else None
    return D3Learner(rows, classes, options, trajectories=trajectories, seed=seed, judge=no_judge)


def advanced(learner, steps):
    for step in steps:
        learner.advance(step)
    return learner


# --- The published loop --------------------------------------------------------------------------------------


class PublishedLoop:
    """Both parts of a step in the form of the published code, on what a learner draws at random.

    Latents are one tensor (m, z, 2), every graph is kept to its end, and classes come one after the other.
    """

    def __init__(self, learner, dtype=torch.float64):
        self.learner, self.options, self.dtype = learner, learner._options, dtype
        values = learner.parameters
        latents = torch.stack([values["mean"], values["log_variance"]], dim=2)
        self.latents = latents.detach().to(dtype).requires_grad_()
        self.rate = values["rate"].detach().to(dtype).clone().requires_grad_()
        self.decoder, self.network = (
            copy.deepcopy(module).to(dtype) for module in (learner._decoder, learner._network)
        )
        momentum = self.options.momentum
        self.optimizers = {
            "latents": torch.optim.SGD([self.latents], lr=self.options.lr_latent, momentum=momentum),
            "rate": torch.optim.SGD([self.rate], lr=self.options.rate_lr, momentum=momentum),
            "decoder": torch.optim.Adam(
                self.decoder.parameters(), lr=self.options.lr_decoder, weight_decay=self.options.weight_decay
            ),
        }

    def decode(self, index, noise):
        chosen = self.latents[index]
        return self.decoder(chosen[:, :, 0] + noise.to(self.dtype) * chosen[:, :, 1].mul(0.5).exp())

    def trajectory_loss(self, step):
        learner, options = self.learner, self.options
        ends = options.stretch(learner._trajectories, step, seed=learner._seed, stream="d3")
        start, target = (end.to(self.dtype) for end in ends)
        parts = options.batches(len(learner.classes), step, seed=learner._seed, stream="d3")
        lengths = [len(part) for part in parts]
        noise = learner._noise(f"student.{step}", sum(lengths)).split(lengths)
        theta = start.clone().requires_grad_()
        for part, eps in zip(parts, noise, strict=True):
            scores = self.network_of(theta, self.decode(part, eps))
            loss = functional.cross_entropy(scores, learner.classes[part])
            theta = theta - self.rate * torch.autograd.grad(loss, theta, create_graph=True)[0]
        return (theta - target).square().sum() / (start - target).square().sum()

    def network_of(self, theta, images, embed=False):
        return torch.func.functional_call(
            self.network, named_parameters(self.network, theta), (images, embed)
        )

    def mmd_loss(self, step):
        learner, matching = self.learner, self.learner._matching
        m, z = self.latents.shape[:2]
        noise = learner._noise(f"draws.{step}", matching.draws * m).view(matching.draws, m, z)
        images = torch.stack([self.decode(torch.arange(m), eps) for eps in noise], dim=1)
        index, _ = matching._picker.draw(step)
        rows, trajectories, embed = learner._rows, learner._trajectories, matching._features(step)
        if self.options.mmd_network == "random":
            theta = flat_parameters(embed.__self__)
        else:
            last, probe = self.options.expert_epochs, rows.inputs(index[:1])
            (theta,) = (
                trajectories.snapshot(expert, last)
                for expert in range(len(trajectories))
                if torch.equal(
                    expert_function(learner._network, trajectories, expert, last, like=probe, embed=True)(
                        probe
                    ),
                    embed(probe),
                )
            )
        total = 0.0
        for c in learner.classes.unique().tolist():
            real = rows.inputs(index[rows.classes[index] == c]).to(self.dtype)
            F = self.network_of(theta.to(self.dtype), real, True).detach()
            mine = images[learner.classes == c].flatten(0, 1)
            total = total + self.estimate(self.network_of(theta.to(self.dtype), mine, True), F)
        return total

    def estimate(self, x, y):
        z = torch.cat([x, y])
        s = (z[:, None] - z[None]).square().sum(-1)
        K = sum(torch.exp(-s / (2 * sigma**2)) for sigma in self.options.bandwidths)
        n, m = len(x), len(y)
        xx, yy, xy = K[:n, :n], K[n:, n:], K[:n, n:]
        if self.options.biased:
            return xx.mean() + yy.mean() - 2 * xy.mean()
        return (
            (xx.sum() - xx.trace()) / (n * (n - 1))
            + (yy.sum() - yy.trace()) / (m * (m - 1))
            - 2 * xy.sum() / (n * m)
        )

    def leaves(self):
        return [self.latents, self.rate, *self.decoder.parameters()]

    def advance(self, step):
        for loss_of, moved in (
            (self.trajectory_loss, ("latents", "rate", "decoder")),
            (self.mmd_loss, ("latents", "decoder")),
        ):
            for optimizer in self.optimizers.values():
                optimizer.zero_grad()
            loss_of(step).backward()
            for name in moved:
                self.optimizers[name].step()


def gradients_of(learner, part, step=0):
    """Latents as the published code has them, rate, decoder: the gradient of a part of a step."""
    values = learner.parameters
    found = torch.autograd.grad(part(step)[0], list(values.values()), allow_unused=True)
    named = dict(zip(values, found, strict=True))
    latents = torch.stack([named.pop("mean"), named.pop("log_variance")], dim=2)
    return [latents, *named.values()]


def relative(found, wanted):
    """Largest of the relative differences of tensors; nothing is as good as zeros."""
    worst = 0.0
    for a, b in zip(found, wanted, strict=True):
        if a is None or b is None:
            assert a is b
            continue
        worst = max(worst, float((a - b).norm() / b.norm()))
    return worst


@pytest.mark.parametrize("mmd_network", ["final", "random"])
@pytest.mark.parametrize("budget", [1, 20_000, None])
def test_gradients_are_those_of_the_published_loop(experts, budget, mmd_network):
    learner = learner_of(experts, memory_budget=budget, batch_syn=4, mmd_network=mmd_network)
    if budget == 1:
        assert len(learner._matching._pieces) == CLASSES
    loop = PublishedLoop(learner)
    for name in ("trajectory_loss", "mmd_loss"):
        found = gradients_of(learner, getattr(learner, f"_{name}"), 3)
        wanted = torch.autograd.grad(getattr(loop, name)(3), loop.leaves(), allow_unused=True)
        # Biases of transposed convolutions before a batch norm have no effect: their gradients are rounding.
        kept = [i for i, g in enumerate(wanted) if g is None or float(g.norm()) > 1e-12]
        assert relative([found[i] for i in kept], [wanted[i] for i in kept]) <= 1e-10


def test_gradients_in_float32_are_those_of_the_published_loop(experts):
    learner = learner_of(experts, dtype=torch.float32, batch_syn=4)
    exact = PublishedLoop(learner, torch.float64)
    for name in ("trajectory_loss", "mmd_loss"):
        found = gradients_of(learner, getattr(learner, f"_{name}"))
        wanted = torch.autograd.grad(getattr(exact, name)(0), exact.leaves(), allow_unused=True)
        whole = [torch.cat([g.flatten() for g in of[2:]]) for of in (found, wanted)]
        assert relative([*found[:2], whole[0]], [*wanted[:2], whole[1]]) <= 1e-5


def test_steps_are_those_of_the_published_loop(experts):
    learner = learner_of(experts, batch_syn=4)
    loop = PublishedLoop(learner)
    start = loop.latents.detach().clone()
    for step in range(3):
        loop.advance(step)
        learner.advance(step)
    values = dict(learner.parameters)
    latents = torch.stack([values.pop("mean"), values.pop("log_variance")], dim=2)
    assert float((latents - start).detach().norm()) > 1e-3
    torch.testing.assert_close(latents, loop.latents, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(values.pop("rate"), loop.rate, rtol=1e-8, atol=0)
    assert float(loop.rate.detach()) != 0.02
    for (name, value), wanted in zip(values.items(), loop.decoder.parameters(), strict=True):
        if not name.endswith("convolution.bias"):  # Adam takes full steps even along gradients of rounding
            torch.testing.assert_close(value, wanted, rtol=1e-6, atol=1e-8)


def test_memory_of_the_second_part_is_an_eighth_of_the_published():
    k, draws, shape = 40, 8, (3, 8, 8)
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(k * draws, *shape, generator=generator).numpy()
    y = torch.arange(k).repeat(draws).numpy()
    rows = TrainingRows(
        ArraySource(X, y),
        make_transform("none", lambda: [], shape),
        Targets.from_labels(y, "centred"),
        seed=0,
        holdout=0.0,
    )
    learner = learner_of(
        None,
        rows=rows,
        classes=torch.arange(k),
        dtype=torch.float32,
        mmd_samples=draws,
        memory_budget=2**18,
        network_params={"width": 32, "depth": 2},
        decoder_params={"width": 32, "latent_dim": 8},
        **DATA_FREE,
    )
    loop = PublishedLoop(learner, torch.float32)

    def peak(loss_of):
        with PeakMemory() as memory:
            loss_of(0).backward()
        return memory.peak

    assert 8 * peak(lambda step: learner._mmd_loss(step)[0]) <= peak(loop.mmd_loss)


# --- Parts ---------------------------------------------------------------------------------------------------


def test_features_alone_need_no_experts(experts):
    learner = learner_of(None, **DATA_FREE)
    before = {name: value.detach().clone() for name, value in learner.parameters.items()}
    figures = learner.advance(0)
    assert set(figures) == {"loss", "mmd_loss", "feature_distance", "rate"}
    assert float(figures["loss"]) == float(figures["mmd_loss"])
    assert float(figures["feature_distance"]) > 0
    for name, value in learner.parameters.items():
        assert torch.equal(value, before[name]) == (name == "rate")
    assert torch.equal(learner.learned()["y"], torch.eye(CLASSES).double()[learner.classes] - 1 / CLASSES)
    assert learner.identity["experts"] is None
    with pytest.raises(ValueError, match="these options need experts"):
        D3Learner(image_rows(), learner.classes, D3(**OPTIONS), trajectories=None, seed=0, judge=no_judge)


def test_trajectories_alone_look_at_no_features(experts):
    learner = learner_of(experts, mmd_weight=0.0)
    figures = learner.advance(0)
    assert set(figures) == {"loss", "trajectory_loss", "rate"}
    assert float(learner.parameters["rate"].detach()) != 0.02


def test_parts_are_weighted(experts):
    plain, weighted = (
        learner_of(experts, trajectory_weight=a, mmd_weight=b) for a, b in ((1.0, 1.0), (0.5, 4.0))
    )
    first, second = (float(part(0)[0].detach()) for _, _, part in plain._parts())
    assert float(plain.loss(0)[0].detach()) == pytest.approx(first + second, rel=1e-12)
    assert float(weighted.loss(0)[0].detach()) == pytest.approx(0.5 * first + 4 * second, rel=1e-12)
    figures = weighted.advance(0)
    assert float(figures["trajectory_loss"]) == pytest.approx(first, rel=1e-12)
    total = 0.5 * figures["trajectory_loss"] + 4 * figures["mmd_loss"]
    assert float(figures["loss"]) == pytest.approx(float(total), rel=1e-12)


@pytest.mark.parametrize("options", [{}, DATA_FREE])
def test_the_loss_falls(experts, options):
    learner = learner_of(experts, dtype=torch.float32, lr_latent=0.5, **options)

    def mean_loss():
        return sum(float(learner.loss(step)[0].detach()) for step in range(100, 104))

    before = mean_loss()
    advanced(learner, range(15))
    assert mean_loss() < 0.9 * before


def test_every_step_draws_anew(experts):
    learner = learner_of(experts)
    losses = {float(part(step)[0].detach()) for _, _, part in learner._parts() for step in range(5)}
    assert len(losses) == 10


def test_batch_norm_in_the_network_has_the_statistics_of_one_class():
    params = {"network": "convnet-bn", "network_params": {"width": 4, "depth": 1}}
    learner = learner_of(None, **DATA_FREE, **params)
    assert [len(piece.at) for piece in learner._matching._pieces] == [6, 6, 6]
    loop = PublishedLoop(learner)
    wanted = loop.mmd_loss(0)
    assert float(learner._mmd_loss(0)[0].detach()) == pytest.approx(float(wanted.detach()), rel=1e-10)


def test_classes_may_differ_in_gaussians_and_in_rows_and_some_be_left_out():
    learner = learner_of(None, **DATA_FREE, classes=torch.tensor([0, 2, 2, 2, 2]), mmd_samples=5)
    # Two draws, so that class 0 has two images; of each class eight rows.
    matching = learner._matching
    assert matching.draws == 2
    together = torch.cat([piece.classes for piece in matching._pieces])
    assert together.bincount().tolist() == [2, 0, 8]
    _, classes = matching._row_features(0, matching._features(0))
    assert classes.bincount().tolist() == [8, 0, 8]
    assert math.isfinite(float(learner.advance(0)["loss"]))


def test_the_median_heuristic_follows_the_scale_of_the_features(experts):
    learner = learner_of(experts, bandwidths="median", ratios=(0.5, 1.0))
    _, figures = learner._mmd_loss(0)
    kernel = learner._matching._kernel(figures["feature_distance"])
    assert sorted(kernel.ratios) == [0.5, 1.0]
    assert float(kernel.bandwidth) == float(figures["feature_distance"])
    fixed = learner_of(experts)._matching._kernel(figures["feature_distance"])
    assert (float(fixed.bandwidth), sorted(fixed.ratios)) == (1.0, [0.5, 1.0, 2.0])


def test_the_features_are_those_of_experts_of_the_age_asked_for(experts):
    probe = image_rows().inputs(torch.arange(4))
    for network, epoch in (("final", 6), ("expert", 5)):
        learner = learner_of(experts, mmd_network=network)
        trajectories, found = learner._trajectories, set()
        for step in range(12):
            F = learner._matching._features(step)(probe)
            found |= {
                expert
                for expert in range(len(trajectories))
                if torch.equal(
                    F,
                    expert_function(learner._network, trajectories, expert, epoch, like=probe, embed=True)(
                        probe
                    ),
                )
            }
        assert found == {0, 1, 2}


def test_the_estimate_may_be_biased():
    learner = learner_of(None, **DATA_FREE, biased=True)
    found, wanted = learner._mmd_loss(0)[0], PublishedLoop(learner).mmd_loss(0)
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-10)


def test_students_are_augmented_if_asked_for(experts):
    plain, changed, none = (
        float(learner_of(experts, augment=augment)._trajectory_loss(0)[0].detach())
        for augment in ("", "flip_rotate", "none")
    )
    assert plain == none != changed


def test_the_rate_stays_positive(experts):
    # A rate so high that its gradient is positive.
    learner = learner_of(experts, rate=0.1, rate_lr=1.0, mmd_weight=0.0)
    (slope,) = torch.autograd.grad(learner.loss(0)[0], learner.parameters["rate"])
    assert float(slope) > 0.1
    assert float(learner.advance(0)["rate"]) == float(learner.learned()["rate"]) == LEAST_RATE


# --- Runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"batch_syn": 4}, DATA_FREE, {"momentum": 0.0}])
def test_a_resumed_run_ends_in_the_same_bits(experts, options):
    whole = advanced(learner_of(experts, **options), range(4))
    tensors, plain = advanced(learner_of(experts, **options), range(2)).state()
    resumed = learner_of(experts, **options)
    resumed.restore({name: value.clone() for name, value in tensors.items()}, json.loads(json.dumps(plain)))
    resumed.evaluate()  # changes nothing
    advanced(resumed, range(2, 4))
    assert bits(resumed.state()[0]) == bits(whole.state()[0])
    assert bits(whole.learned()) == bits(resumed.learned())
    other = advanced(learner_of(experts, seed=3, **options), range(4))
    assert bits(other.learned()) != bits(whole.learned())


def test_the_budget_changes_rounding_alone(experts):
    small, large = (advanced(learner_of(experts, memory_budget=b), range(2)) for b in (1, 2**30))
    torch.testing.assert_close(small.learned()["x"], large.learned()["x"], rtol=1e-8, atol=1e-8)


def test_divergence_ends_the_run(experts):
    learner = learner_of(experts, lr_latent=1e300)
    result = run_loop(learner, Loop(), steps=5, evaluate_every=1, label="d3", progress=False)
    assert result.stopped == "diverged"
    assert all(bool(value.isfinite().all()) for value in result.learned.values())
    for name, value in (("mean", math.nan), ("log_variance", 1e4)):
        learner = learner_of(experts)
        learner.parameters[name].detach()[0, 0] = value
        assert math.isnan(learner.evaluate()["loss"])


# --- What is learned -----------------------------------------------------------------------------------------


def test_what_is_learned_is_a_distribution_and_its_labels(experts):
    learner = advanced(learner_of(experts, dtype=torch.float32), range(2))
    learned = learner.learned()
    state = {
        name.removeprefix("decoder."): value for name, value in learned.items() if name.startswith("decoder.")
    }
    spec = learner._options.decoder_spec(learner._rows)
    made = LatentGaussians.of(spec, state, learned["latent.mean"], learned["latent.log_variance"])
    torch.testing.assert_close(made.points(), learned["x"], rtol=0, atol=1e-6)
    assert learned["x"].shape == (6, *SHAPE)
    assert learned["x"].dtype == learned["y"].dtype == learned["rate"].dtype == torch.float64
    assert float(learned["x"].abs().max()) < 2.0
    assert learner._decoder.training


def test_the_stored_decoder_has_the_statistics_of_draws(experts):
    learner = advanced(learner_of(experts), range(2))
    learned = learner.learned()
    state = {
        name.removeprefix("decoder."): value for name, value in learned.items() if name.startswith("decoder.")
    }
    decoder = decoder_of(learner._options.decoder_spec(learner._rows), state).eval()
    mean, log_variance = learned["latent.mean"], learned["latent.log_variance"]
    noise = learner._noise("calibration", CALIBRATION * 6)
    draws = mean.repeat(CALIBRATION, 1) + noise * (0.5 * log_variance.repeat(CALIBRATION, 1)).exp()
    with torch.no_grad():
        torch.testing.assert_close(decoder(draws), learner._decoder(draws), rtol=0, atol=1e-10)


def test_soft_labels_are_the_probabilities_of_an_expert(experts):
    learner = learner_of(experts)
    learned, count = learner.learned(), len(experts[torch.float64])
    tables = []
    for expert in range(count):
        theta = experts[torch.float64].snapshot(expert, 4).double()
        scores = torch.func.functional_call(
            learner._network, named_parameters(learner._network, theta), (learned["x"],)
        )
        tables.append(scores.softmax(1) - 1 / CLASSES)
    assert sum(torch.allclose(learned["y"], table, atol=1e-12) for table in tables) == 1
    hard = learner_of(experts, labels="hard").learned()["y"]
    assert torch.equal(hard.argmax(1), learner.classes)
    assert sorted(hard.unique().tolist()) == pytest.approx([-1 / 3, 2 / 3])


def judged_of(learner):
    """The points and labels that the judge of a learner is shown."""
    seen = []

    def judge(x, y):
        seen.append((x, y))
        return {"loss": 0.25, "score": 0.75}

    learner._judge = judge
    assert learner.evaluate() == {"loss": 0.25, "score": 0.75}
    return seen[0]


@pytest.mark.parametrize("labels", ["soft", "hard"])
@pytest.mark.parametrize("draws", [0, 3])
def test_the_judge_sees_means_and_draws_with_their_labels(experts, draws, labels):
    learner = advanced(learner_of(experts, judge_draws=draws, labels=labels), range(2))
    x, y = judged_of(learner)
    learned = learner.learned()
    assert x.shape == (6 * (1 + draws), *SHAPE)
    assert torch.equal(x[:6], learned["x"])
    assert torch.equal(y, learned["y"].repeat(1 + draws, 1))
    assert x.dtype == y.dtype == torch.float64
    state = {
        name.removeprefix("decoder."): value for name, value in learned.items() if name.startswith("decoder.")
    }
    decoder = decoder_of(learner._options.decoder_spec(learner._rows), state).eval()
    for number in range(draws):
        noise = learner._noise(f"judge.{number}", 6)
        z = learned["latent.mean"] + noise * (learned["latent.log_variance"] / 2).exp()
        with torch.no_grad():
            expected = decoder(z)
        torch.testing.assert_close(x[6 * (1 + number) :][:6], expected, rtol=0, atol=1e-12)


def test_the_judge_sees_the_same_draws_whenever_it_is_asked(experts):
    few, many = (advanced(learner_of(experts, judge_draws=draws), [0]) for draws in (1, 2))
    first, again, more = judged_of(few)[0], judged_of(few)[0], judged_of(many)[0]
    assert torch.equal(first, again)
    assert torch.equal(first, more[:12])
    assert float((more[6:12] - more[12:]).abs().max()) > 0.01
    advanced(few, [1])
    state = learner_of(experts, judge_draws=1)
    state.restore(*few.state())
    assert torch.equal(judged_of(few)[0], judged_of(state)[0])


def test_a_median_distance_of_nothing_ends_the_run():
    X = torch.ones(30, *SHAPE, dtype=torch.float64)
    y = torch.arange(30) % CLASSES
    rows = TrainingRows(
        ArraySource(X.numpy(), y.numpy()),
        make_transform("none", lambda: [], SHAPE),
        Targets.from_labels(y.numpy(), "centred"),
        seed=0,
        dtype=torch.float64,
    )
    learner = learner_of(None, rows=rows, bandwidths="median", **DATA_FREE)
    result = run_loop(learner, Loop(), steps=3, evaluate_every=1, label="d3", progress=False)
    assert (result.stopped, result.steps) == ("diverged", 0)
    assert all(bool(value.isfinite().all()) for value in result.learned.values())


def test_the_identity_is_plain_and_that_of_the_experts_wherever_they_are(experts, tmp_path):
    here = learner_of(experts).identity
    assert here == json.loads(json.dumps(here))
    assert here == learner_of(experts, experts_folder=str(tmp_path)).identity
    for other in (
        {"seed": 3},
        {"per_class": 1},
        {"lr_latent": 0.2},
        {"decoder": "medium", "decoder_params": {}},
    ):
        assert learner_of(experts, **other).identity != here


def test_misfits_are_refused(experts):
    with pytest.raises(ValueError, match="the options ask for"):
        learner_of(experts, network_params={"width": 5, "depth": 1})
    with pytest.raises(ValueError, match="of other rows"):
        learner_of(experts, rows=image_rows(seed=1))
    with pytest.raises(ValueError, match="reach epoch 7, the experts are trained for 6"):
        learner_of(experts, max_start_epoch=6, expert_epochs=9)
    with pytest.raises(ValueError, match="needs classes"):
        learner_of(experts, rows=image_rows(values=True))
    for classes, message in (
        ([0, 3], "numbers from 0 to 2"),
        ([1, 0], "in class order"),
        ([], "m > 0"),
        ([0.0], "must be int64"),
    ):
        with pytest.raises(ValueError, match=message):
            learner_of(experts, classes=torch.tensor(classes))
    with pytest.raises(ValueError, match="class 1 has 1 training rows"):
        learner_of(None, rows=image_rows(4, holdout=0.0), **DATA_FREE)
    with pytest.raises(ValueError, match="dense layer"):
        learner_of(experts, decoder="large", decoder_params={"latent_dim": 3})
