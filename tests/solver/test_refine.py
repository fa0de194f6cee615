"""The loss whose labels are eliminated, its derivative, and its minimisation over points."""

import numpy as np
import pytest
import torch

from kernel_distill import distill
from kernel_distill.solver.encoder import Encoder
from kernel_distill.solver.feature_maps import make_feature_map
from kernel_distill.solver.fit import fit_full_model
from kernel_distill.solver.refine import excess_loss, refine_points
from kernel_distill.solver.source import as_source
from kernel_distill.solver.targets import Targets
from kernel_distill.solver.transforms import Identity

from ..cases import INVERTIBLE, WIDE, D, K, MapCase, fourier, one_hot, params_of, problem, relative, train

MAPS = params_of(INVERTIBLE, "identity", "fcnn-1", "fourier-gaussian", "conv-1", "coupling") + params_of(WIDE)
RIDGE = 0.5


def fitted(case, n=200, *, intercept=False, weight=None, ridge=RIDGE):
    X, y = problem(n)
    X = case.inputs(X)
    encoder = Encoder(Identity(case.input_shape), case.make(), "exact")
    targets = Targets("one-hot", K, tuple(range(K)))
    source = as_source(X, y, weight)
    full = fit_full_model(source, encoder, targets, ridge=ridge, intercept=intercept, progress=False)
    return full, encoder.feature_map.features(torch.from_numpy(X)).numpy(), one_hot(y)


def full_loss(F, Y, W, b, ridge, weight=None):
    w = np.ones(len(F)) if weight is None else weight
    return w @ ((Y - F @ W - b) ** 2).sum(axis=1) + ridge * (W**2).sum()


def best_in_span(F, Y, S, ridge, *, intercept, weight=None):
    """Brute force: of all W in the row space of S (about their mean) and all b, the least loss over the data."""
    w = np.ones(len(F)) if weight is None else weight
    S = S - S.mean(axis=0) if intercept else S
    basis = np.linalg.svd(S, full_matrices=False)[2][: np.linalg.matrix_rank(S)].T
    # An orthonormal basis leaves the ridge term as it is.
    C, b = train(F @ basis, Y, ridge, w, intercept=intercept)
    return basis @ C, b


@pytest.mark.parametrize(
    ("m", "intercept"),
    # One point spans nothing about its mean, so an intercept starts from two.
    [pytest.param(m, i, id=f"m={m}{'-intercept' * i}") for i in (False, True) for m in (1 + i, 4, 9, 40)],
)
@pytest.mark.parametrize("weighted", [False, True], ids=["equal", "weights"])
@pytest.mark.parametrize("n", [200, 8], ids=["primal", "dual"])
def test_excess_loss_equals_brute_force(m, intercept, weighted, n):
    weight = np.random.default_rng(1).uniform(0.1, 2, n) if weighted else None
    full, F, Y = fitted(INVERTIBLE["fourier-gaussian"], n, intercept=intercept, weight=weight)
    points = torch.from_numpy(np.random.default_rng(2).normal(size=(m, D)))
    S = full.model.encoder.feature_map.features(points)
    found = float(excess_loss(full, S))
    W, b = best_in_span(F, Y, S.numpy(), RIDGE, intercept=intercept, weight=weight)
    best, bias = train(F, Y, RIDGE, weight, intercept=intercept)
    least = full_loss(F, Y, best, bias, RIDGE, weight)
    # In units of ‖W‖² + what W explains: all of the targets' squares that the full model takes away.
    w = np.ones(n) if weight is None else weight
    mean = w @ Y / w.sum() if intercept else 0
    whole = w @ ((Y - mean) ** 2).sum(axis=1) - least
    wanted = (full_loss(F, Y, W, b, RIDGE, weight) - least) / whole
    # The jitter is 1e-12 of the normalised system, which the condition of these points enlarges.
    assert found == pytest.approx(wanted, abs=1e-8)
    assert -1e-8 < found < 1 + 1e-8
    assert (wanted < 1e-9) == (m >= D + intercept)


def test_excess_loss_is_of_the_span_alone():
    full, _, _ = fitted(INVERTIBLE["identity"])
    S = torch.from_numpy(np.random.default_rng(2).normal(size=(5, D)))
    mix = torch.from_numpy(np.random.default_rng(3).normal(size=(5, 5)))
    found = float(excess_loss(full, S))
    assert float(excess_loss(full, mix @ S)) == pytest.approx(found, abs=1e-9)
    assert float(excess_loss(full, torch.diag(torch.logspace(-6, 6, 5).double()) @ S)) == pytest.approx(
        found, abs=1e-9
    )
    assert float(excess_loss(full, torch.cat([S, S]))) == pytest.approx(found, abs=1e-6)


@pytest.mark.parametrize("case", MAPS)
def test_exact_sets_have_no_excess_loss(case):
    X, y = problem()
    made = distill(
        case.inputs(X),
        y,
        feature_map=case.name,
        feature_params=case.params,
        ridge=RIDGE,
        per_class=2,
        transform="none",
    )
    full, _, _ = fitted(case)
    assert float(excess_loss(full, made.features())) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("intercept", [False, True], ids=["plain", "intercept"])
@pytest.mark.parametrize("n", [200, 8], ids=["primal", "dual"])
@pytest.mark.parametrize("case", MAPS)
def test_gradient_of_the_loss(case, n, intercept):
    full, _, _ = fitted(case, n, intercept=intercept)
    feature_map = full.model.encoder.feature_map
    points = torch.from_numpy(np.random.default_rng(4).normal(size=(5, *case.input_shape))).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: excess_loss(full, feature_map.features(z)), (points,), eps=1e-6, atol=1e-6, rtol=1e-4
    )


@pytest.mark.parametrize("intercept", [False, True], ids=["plain", "intercept"])
@pytest.mark.parametrize("case", MAPS)
def test_refining_lowers_the_loss(case, intercept):
    full, _, _ = fitted(case, intercept=intercept)
    feature_map = full.model.encoder.feature_map
    start = torch.from_numpy(np.random.default_rng(5).normal(size=(5, *case.input_shape)))
    before = start.clone()
    found, notes = refine_points(full, start, steps=15, progress=False)
    assert torch.equal(start, before)
    assert (found.shape, found.dtype) == (start.shape, torch.float64)
    first, last = (float(excess_loss(full, feature_map.features(z))) for z in (start, found))
    assert last < 0.7 * first
    assert notes[0].startswith(f"excess loss {first:.4g} at the start, {last:.4g} after")


def test_refining_ends_at_a_stationary_point():
    full, _, _ = fitted(fourier(n_features=30))
    feature_map = full.model.encoder.feature_map
    start = torch.from_numpy(np.random.default_rng(5).normal(size=(4, D)))
    gradients = []
    for z in (start, refine_points(full, start, steps=400, progress=False)[0]):
        z = z.clone().requires_grad_()
        gradients.append(float(torch.autograd.grad(excess_loss(full, feature_map.features(z)), z)[0].norm()))
    assert gradients[1] < 1e-3 * gradients[0]


def test_linear_maps_are_refined_to_an_exact_set():
    """k points suffice for a linear map, so the loss can be brought to zero."""
    X, y = problem()
    made = distill(
        X, y, feature_map="identity", ridge=RIDGE, method="refine", refine_steps=400, progress=False
    )
    start = distill(X, y, feature_map="identity", ridge=RIDGE, method="label-solve")
    assert made.certificate.status == "refined"
    assert made.certificate.stored_error < 1e-3 < 0.1 < start.certificate.stored_error


@pytest.mark.parametrize("bounds", ["free", "data"])
@pytest.mark.parametrize("transform", ["none", "standardize"])
@pytest.mark.parametrize(
    "case", params_of(INVERTIBLE, "identity", "conv-1") + params_of(WIDE, "fourier-wide")
)
def test_bounds_are_kept(case, transform, bounds):
    X, y = problem()
    X = case.inputs(X)
    wide = 3 * np.random.default_rng(0).normal(size=(K, *case.input_shape))
    made = distill(
        X,
        y,
        feature_map=case.name,
        feature_params=case.params,
        ridge=RIDGE,
        method="refine",
        bounds=bounds,
        transform=transform,
        near=wide,
        refine_steps=20,
        progress=False,
    )
    if bounds == "data":
        slack = 1e-9 * np.abs(X).max()  # of standardising and back
        assert float(made.x.min()) >= X.min() - slack
        assert float(made.x.max()) <= X.max() + slack
    else:
        assert np.abs(made.x.numpy()).max() > np.abs(X).max()


def test_bounds_that_a_transform_cannot_keep_are_refused():
    """Whitened values mix raw ones: the box of raw values is no box there."""
    X, y = problem()
    wide = 3 * np.random.default_rng(0).normal(size=(K, D))
    options = {
        "feature_map": "fourier",
        "feature_params": {"length_scale": 5.0, "n_features": 30},
        "ridge": RIDGE,
    }
    try:
        made = distill(
            X,
            y,
            method="refine",
            bounds="data",
            transform="zca-kornia",
            near=wide,
            refine_steps=5,
            progress=False,
            **options,
        )
    except ValueError:
        return
    assert float(made.x.min()) >= X.min() - 1e-9
    assert float(made.x.max()) <= X.max() + 1e-9


@pytest.mark.parametrize("intercept", [False, True], ids=["plain", "intercept"])
@pytest.mark.parametrize("method", ["refine", "label-solve"])
def test_solved_labels_are_the_best(method, intercept):
    """The set's model has the least full-data loss of all models in its span, intercept included."""
    X, y = problem()
    made = distill(
        X,
        y,
        feature_map="fourier",
        feature_params={"length_scale": 5.0, "n_features": 30},
        ridge=RIDGE,
        method=method,
        refine_steps=5,
        progress=False,
        intercept=intercept,
        per_class=2,
        distilled_ridge=0.01,
    )
    F = made.encoder(torch.from_numpy(X)).numpy()
    W, b = best_in_span(F, one_hot(y), made.features().numpy(), RIDGE, intercept=intercept)
    assert relative(made.model.weights, W) < 1e-6
    assert made.model.bias.numpy() == pytest.approx(b, abs=1e-6)
    found = full_loss(F, one_hot(y), made.model.weights.numpy(), made.model.bias.numpy(), RIDGE)
    assert found == pytest.approx(full_loss(F, one_hot(y), W, b, RIDGE), rel=1e-9)


@pytest.mark.parametrize("steps", [0, -1, 2.5, "many", True])
def test_bad_numbers_of_steps_are_refused(steps):
    X, y = problem()
    with pytest.raises(ValueError, match="`refine_steps` must be an integer of at least 1"):
        distill(X, y, feature_map="identity", ridge=RIDGE, method="refine", refine_steps=steps)


def test_refined_points_are_the_same_for_the_same_seed():
    X, y = problem()
    options = {
        "feature_map": "fcnn",
        "ridge": RIDGE,
        "method": "refine",
        "refine_steps": 5,
        "progress": False,
    }
    first, again, other = (distill(X, y, seed=seed, **options).x for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_networks_are_refined_too():
    """A module has no preimage and no names of its own: its derivative is all that is needed."""
    X, y = problem()
    net = torch.nn.Sequential(torch.nn.Linear(D, 30), torch.nn.Tanh())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.from_numpy(np.random.default_rng(0).normal(size=parameter.shape) * 0.3))
    errors = [
        distill(
            X, y, feature_map=net, ridge=RIDGE, method=method, refine_steps=20, progress=False
        ).certificate.prediction_error
        for method in ("label-solve", "refine")
    ]
    assert errors[1] < 0.7 * errors[0]
    assert make_feature_map(net, (D,)).n_features == MapCase("fcnn", {"widths": 30}).make().n_features
