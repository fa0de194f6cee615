"""RFAD: its loss against kernels written out, derivatives, precision, memory, resumption, and what is stored."""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kernel_distill.kernels import conv_arc_cosine_kernel
from kernel_distill.solver.conv_networks import conv_features, draw_conv_networks
from kernel_distill.solver.encoder import Encoder
from kernel_distill.solver.learned_set import learned_set
from kernel_distill.solver.learners import rfad
from kernel_distill.solver.learners.pick import Pick
from kernel_distill.solver.learners.rfad import RFAD, RFADLearner
from kernel_distill.solver.learners.rows import TrainingRows
from kernel_distill.solver.source import ArraySource
from kernel_distill.solver.targets import Targets
from kernel_distill.solver.transforms import make_transform

from ..kernels.peak import PeakMemory

SHAPE, K, M, SEED = (2, 8, 8), 3, 6, 11
SMALL = {"width": 5, "depth": 2, "networks": 2, "kept_networks": 2, "batch_size": 20}


def data(n=80, values=False, seed=0):
    """Images of K classes, each brighter in a place of its own; or three values of each."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % K
    X = rng.normal(size=(n, *SHAPE))
    for c in range(K):
        X[y == c, :, 2 * c : 2 * c + 2] += 1.5
    return X, (X[:, :, ::4, ::4].reshape(n, -1)[:, :K] if values else y)


def prepare(
    options, *, transform="standardize", values=False, dtype=torch.float64, n=80, holdout=0.25, seed=SEED
):
    X, y = data(n, values)
    targets = Targets.from_values(K) if values else Targets.from_labels(y, "centred")
    fitted = make_transform(transform, lambda: [torch.from_numpy(X)], SHAPE)
    rows = TrainingRows(ArraySource(X, y), fitted, targets, seed=SEED, holdout=holdout, dtype=dtype)
    first = torch.arange(rows.n) if values else rows.classes.argsort(stable=True)
    index = first[torch.linspace(0, rows.n - 1, M).long()]
    return RFADLearner(rows, rows.inputs(index).double(), rows.outputs(index), options, seed=seed)


def small(**changes):
    return RFAD(**{**SMALL, **changes})


def kernel(A, B):
    """2 A B' / (N p) + 0.01 of features (n, N, p)."""
    return 2 * np.einsum("aip,bip->ab", A, B) / (A.shape[1] * A.shape[2]) + 0.01


def losses_by_hand(learner, step, values, index):
    """Losses of rows at a step in NumPy, kernels formed, from the parameters `values`."""
    options, rows = learner.options, learner.rows
    drawn = draw_conv_networks(
        learner.spec, options.networks_at(step), SEED, f"rfad.networks.{step}", dtype=torch.float64
    )
    points = values["points"] @ values["matrix"] if "matrix" in values else values["points"]
    F_S, F_T = (conv_features(drawn, X).numpy() for X in (points.reshape(M, *SHAPE), rows.inputs(index)))
    K_SS = kernel(F_S, F_S)
    K_SS += options.ridge * np.trace(K_SS) / M * np.eye(M)
    y_S = values.get("labels", learner._labels).numpy()
    predicted, wanted = kernel(F_T, F_S) @ np.linalg.solve(K_SS, y_S), rows.outputs(index).numpy()
    if options.loss == "mse":
        return ((predicted - wanted) ** 2).mean(1) / 2
    scores = math.exp(values["log_scale"]) * predicted
    chosen = scores[np.arange(len(scores)), wanted.argmax(1)]
    return np.log(np.exp(scores).sum(1)) - chosen


def values_of(learner):
    return {name: value.detach() for name, value in learner.parameters.items()}


CASES = {
    "as published": (small(), {"transform": "zca-rfad"}),
    "learned labels": (small(labels="learned", loss="mse"), {}),
    "no matrix": (small(matrix="none", labels="learned", networks=1), {}),
    "strong ridge": (small(ridge=0.3, networks=((0, 3),)), {"transform": "zca-rfad"}),
    "values": (small(loss="mse", labels="learned"), {"values": True}),
    "corrected picks": (small(pick=Pick(kind="balanced", corrected=True), strategy="grouped"), {}),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def moved(learner):
    """The learner, its parameters away from where they start."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in learner.parameters.values():
            value += 0.1 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
    return learner


# --- The loss ------------------------------------------------------------------------------------------------


@every_case
def test_the_loss_is_that_of_the_kernels(case):
    options, how = case
    learner = moved(prepare(options, **how))
    for step in (0, 3):
        index, weights = learner.picker.draw(step)
        wanted = weights.numpy() @ losses_by_hand(learner, step, values_of(learner), index)
        assert float(learner.loss(step)[0].detach()) == pytest.approx(float(wanted), rel=1e-12)


@every_case
def test_its_gradient_is_that_of_finite_differences(case):
    options, how = case
    learner = moved(prepare(options, **how))
    learner.loss(2)[0].backward()
    gradients = {name: value.grad.clone() for name, value in learner.parameters.items()}
    assert gradients.keys() == learner.parameters.keys()
    generator = torch.Generator().manual_seed(1)
    for name, value in learner.parameters.items():
        for _ in range(2):
            direction = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            found = []
            for h in (1e-5, -1e-5):
                with torch.no_grad():
                    value += h * direction
                    found.append(float(learner.loss(2)[0]))
                    value -= h * direction
            slope = (found[0] - found[1]) / 2e-5
            wanted = float((gradients[name] * direction).sum())
            # A kink of a ReLU inside the step of 1e-5 moves the quotient by its share of the activations.
            assert slope == pytest.approx(wanted, rel=1e-4, abs=1e-7), name


def test_features_are_widened_a_few_rows_at_a_time(monkeypatch):
    found = []
    for rows in (rfad._ROWS, 7):
        monkeypatch.setattr(rfad, "_ROWS", rows)
        learner = moved(prepare(small()))
        learner.loss(0)[0].backward()
        found.append(learner.parameters["points"].grad)
    assert float((found[1] - found[0]).norm()) < 1e-13 * float(found[0].norm())


def test_losses_of_rows_go_to_the_picker_that_draws_by_them():
    learner = moved(prepare(small(pick=Pick(kind="loss"))))
    picker, seen = learner.picker, []

    class Spy:
        draw = staticmethod(picker.draw)

        def refresh(self, step, losses_of):
            index = torch.tensor([3, 1, 40])
            seen.append((step, index, losses_of(index)))
            picker.refresh(step, losses_of)

        def observe(self, index, losses):
            seen.append((step, index, losses))

    learner.picker = Spy()
    for step in range(2):
        learner.loss(step)
    assert [step for step, _, _ in seen] == [0, 0, 1, 1]
    assert [len(index) for _, index, _ in seen] == [3, 20, 3, 20]
    for step, index, losses in seen:
        assert not losses.requires_grad
        np.testing.assert_allclose(
            losses, losses_by_hand(learner, step, values_of(learner), index), rtol=1e-11
        )


def test_predictions_approach_those_of_the_infinite_network():
    errors = []
    for count in (4, 256):
        learner = prepare(small(kept_networks=count, width=32, depth=2))
        with torch.no_grad():
            V = learner._model(learner.feature_map.features(learner._points()))
            found = torch.cat([rfad._predict(F, V) for F, _ in learner._held_out()])
        X_S, X = learner._points().detach(), torch.cat([X for X, _ in learner.rows.held_out()])
        K_SS = conv_arc_cosine_kernel(X_S, depth=2, kind="nngp")
        K_SS = K_SS + 5e-3 * K_SS.trace() / M * torch.eye(M)
        wanted = conv_arc_cosine_kernel(X, X_S, depth=2, kind="nngp") @ torch.linalg.solve(
            K_SS, learner._labels
        )
        errors.append(float((found - wanted).norm() / wanted.norm()))
    assert errors[1] < 0.1 < errors[0]


def test_networks_are_fresh_at_every_step_and_as_many_as_the_schedule_says():
    learner = prepare(small(networks=((0, 1), (2, 3)), batch_size=1000))
    assert [learner.options.networks_at(step) for step in range(4)] == [1, 1, 3, 3]
    losses = [float(learner.loss(step)[0].detach()) for step in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]


@pytest.mark.parametrize(("precision", "error"), [("float16", 1e-3), ("bfloat16", 8e-3)])
def test_narrow_features_of_the_batch_keep_the_loss(precision, error):
    options = small(width=32, networks=4, batch_size=60)
    exact, narrow = (
        prepare(options.model_copy(update={"real_precision": name}), dtype=torch.float32)
        for name in ("float32", precision)
    )
    for learner in (exact, narrow):
        with torch.no_grad():
            learner.parameters["log_scale"].fill_(2.0)
    for step in range(3):
        losses = [float(learner.loss(step)[0].detach()) for learner in (exact, narrow)]
        assert losses[0] != losses[1]
        assert losses[1] == pytest.approx(losses[0], rel=error)


class _NoReads(TorchDispatchMode):
    """Refuses whatever has to wait for a device: reads of values, and shapes that depend on them."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert not any(
            name in str(function) for name in ("_local_scalar_dense", "nonzero", "masked_select", "unique")
        )
        return function(*args, **(kwargs or {}))


def test_a_step_reads_nothing_from_the_device():
    learner = prepare(small(labels="learned"))
    with _NoReads():
        loss, figures = learner.loss(0)
        loss.backward()
    assert set(figures) == {"accuracy"}


# --- Memory --------------------------------------------------------------------------------------------------


def test_activations_of_the_batch_are_not_kept():
    options = small(width=32, batch_size=4000, networks=4, matrix="none")
    learner = prepare(options, n=4000, holdout=0.01, dtype=torch.float32)
    with PeakMemory() as memory:
        learner.loss(0)[0].backward()
    features = 4000 * 4 * learner.spec.n_features * 4
    activations = 4000 * 4 * 32 * 8 * 8 * 4
    assert memory.peak < 1.5 * features + 2**24 < activations


def test_features_of_held_out_rows_that_do_not_fit_are_made_again(monkeypatch):
    figures = []
    for limit in (rfad._HELD_BYTES, 0):
        monkeypatch.setattr(rfad, "_HELD_BYTES", limit)
        learner = prepare(small())
        figures.append([learner.evaluate(), learner.evaluate()])
        assert all((F is None) == (limit == 0) for F, _, _ in learner._held)
    assert figures[0] == figures[1]


# --- Learning ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "share"), [("cross-entropy", 0.5), ("mse", 0.8)])
def test_it_learns(loss, share):
    learner = prepare(small(loss=loss, labels="learned", lr=2e-2, width=16), dtype=torch.float32, n=300)
    before = learner.evaluate()
    for step in range(30):
        learner.advance(step)
    after = learner.evaluate()
    assert after["loss"] < share * before["loss"]
    assert after["score"] > before["score"]


def test_held_out_figures_are_those_of_the_stored_set():
    learner = prepare(small(lr=1e-2), transform="zca-rfad")
    for step in range(3):
        learner.advance(step)
    learned, rows = learner.learned(), learner.rows
    assert {name: tuple(value.shape) for name, value in learned.items()} == {
        "x": (M, *SHAPE),
        "y": (M, K),
        "log_scale": (),
    }
    assert all(value.dtype == torch.float64 and not value.requires_grad for value in learned.values())
    made = learned_set(
        Encoder(rows.transform, learner.feature_map),
        rows.targets,
        learned["x"],
        learned["y"],
        relative_ridge=learner.options.ridge,
        labels=None,
        n_rows=rows.n,
    )
    inputs, outputs = (torch.cat(part) for part in zip(*rows.held_out(), strict=True))
    raw = rows.transform.inverse(inputs)
    scores = torch.from_numpy(made.decision_function(raw))
    right = (scores.argmax(1) == outputs.argmax(1)).double().mean()
    found = torch.nn.functional.cross_entropy(learned["log_scale"].exp() * scores, outputs.argmax(1))
    assert learner.evaluate() == pytest.approx({"loss": float(found), "score": float(right)}, rel=1e-9)


@pytest.mark.parametrize("matrix", ["identity", "none"])
def test_points_start_where_they_were_put(matrix):
    learner = prepare(small(matrix=matrix), transform="zca-rfad")
    rows, learned = learner.rows, learner.learned()
    index = rows.classes.argsort(stable=True)[torch.linspace(0, rows.n - 1, M).long()]
    assert torch.equal(learned["x"], rows.inputs(index))
    assert torch.equal(learned["y"], rows.outputs(index))
    assert float(learned["log_scale"]) == 0
    assert ("matrix" in learner.parameters) == (matrix == "identity")


@pytest.mark.parametrize(
    "pick", [Pick(), Pick(kind="loss", refresh=4, refresh_every=2)], ids=["uniform", "loss"]
)
def test_a_restored_run_ends_in_the_same_bits(pick):
    options = small(labels="learned", networks=((0, 1), (3, 2)), pick=pick)
    whole, cut = (prepare(options, dtype=torch.float32) for _ in range(2))
    for step in range(6):
        whole.advance(step)
    for step in range(3):
        cut.advance(step)
    tensors, plain = cut.state()
    again = prepare(options, dtype=torch.float32)
    assert again.identity == cut.identity == json.loads(json.dumps(cut.identity))
    again.restore({name: value.clone() for name, value in tensors.items()}, json.loads(json.dumps(plain)))
    for step in range(3, 6):
        again.advance(step)
    assert whole.learned().keys() == again.learned().keys()
    for name, value in whole.learned().items():
        assert torch.equal(value, again.learned()[name])
    assert whole.evaluate() == again.evaluate()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"options": small(ridge=1e-2)}, id="options"),
        pytest.param({"seed": 1}, id="seed"),
        pytest.param({"n": 90}, id="rows"),
        pytest.param({"transform": "zca-rfad"}, id="transform"),
        pytest.param({"dtype": torch.float32}, id="dtype"),
    ],
)
def test_another_run_has_another_identity(change):
    arguments = {"options": small(), **change}
    assert prepare(**arguments).identity != prepare(small()).identity


def test_the_benchmark_of_a_gpu_compares_the_same_losses():
    path = Path(__file__).parents[2] / "bench" / "_gpu_rfad.py"
    if not path.exists():
        pytest.skip("the bench folder is not here")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.rfad_steps(torch.device("cpu"), quick=True)
    assert found["status"] == "ok"
    assert found["loss_error"] < 1e-5
    assert set(found["seconds"]) == {"ours", "ours, grouped", "ours, float32", "published"}
    assert json.loads(json.dumps(found, allow_nan=False)) == json.loads(json.dumps(found))


# --- Options -------------------------------------------------------------------------------------------------


def test_options_survive_being_written():
    options = small(networks=[[0, 1], [100, 4]], labels="learned", pick={"kind": "loss"})
    assert RFAD.model_validate_json(options.model_dump_json()) == options


@pytest.mark.parametrize(
    ("option", "message"),
    [
        pytest.param({"networks": 0}, "count", id="no networks"),
        pytest.param({"networks": ((1, 4),)}, "from 0 on", id="schedule that starts late"),
        pytest.param({"networks": ((0, 4), (0, 8))}, "growing", id="schedule that stands"),
        pytest.param({"ridge": 0}, "greater than 0", id="no ridge"),
        pytest.param({"loss": "hinge"}, "cross-entropy", id="unknown loss"),
        pytest.param({"learning_rate": 0.1}, "Extra inputs", id="unknown option"),
    ],
)
def test_options_that_cannot_be_are_refused(option, message):
    with pytest.raises(ValueError, match=message):
        RFAD(**option)


def test_inputs_that_do_not_fit_are_refused():
    learner = prepare(small())
    rows, x, y = learner.rows, learner.learned()["x"], learner.learned()["y"]
    with pytest.raises(ValueError, match=r"points of shape \(2, 8, 8\)"):
        RFADLearner(rows, x[:, :1], y, small(), seed=0)
    with pytest.raises(ValueError, match=r"`labels` must have shape \(6, 3\)"):
        RFADLearner(rows, x, y[:3], small(), seed=0)
    with pytest.raises(ValueError, match="`start` holds NaN"):
        RFADLearner(rows, x * math.nan, y, small(), seed=0)
    with pytest.raises(ValueError, match="leave nothing"):
        RFADLearner(rows, x, y, small(depth=4), seed=0)
    with pytest.raises(ValueError, match="loss='mse'"):
        prepare(small(), values=True)
