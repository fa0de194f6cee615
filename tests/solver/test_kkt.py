"""Stationarity, duals and support vectors of networks, against loops over rows and SciPy's NNLS."""

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from kernel_distill.solver.kkt import (
    TrainedModel,
    cross_entropy,
    deep_support_vectors,
    directional_derivatives,
    distance,
    fit_duals,
    gradient_norms,
    mean_norm,
    per_sample_gradients,
    primal_loss,
    relative_residual,
    stationarity_residual,
    total_variation,
    trained_model,
    weighted_gradient,
)
from kernel_distill.solver.networks import build_network, network_spec

from ..cases import EPS, params_of

SHAPE, K = (2, 8, 8), 3
NETWORKS = {
    "mlp": ("mlp", {"width": 16, "depth": 1}),
    "convnet": ("convnet", {"width": 4, "depth": 2, "norm": "none"}),
    "instance": ("convnet", {"width": 4, "depth": 1}),
    "batch": ("convnet", {"width": 4, "depth": 1, "norm": "batch"}),
    "swish": ("convnet", {"width": 4, "depth": 1, "norm": "group", "pooling": "max", "activation": "swish"}),
}


def network_of(case=NETWORKS["convnet"], dtype=torch.float64):
    name, options = case
    return build_network(network_spec(name, SHAPE, K, **options), 3, dtype=dtype)


def images(n=20, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(n, *SHAPE))), torch.arange(n) % K


def flat(values):
    return np.concatenate([value.detach().numpy().ravel() for value in values.values()])


def one_by_one(network, X, y):
    """Gradients (n, P) of the cross-entropy, by a loop over rows."""
    network = network.eval().requires_grad_(True)
    rows = []
    for x, c in zip(X, y, strict=True):
        loss = torch.nn.functional.cross_entropy(network(x[None]), c[None])
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        rows.append(np.concatenate([g.numpy().ravel() for g in gradients]))
    return np.stack(rows)


def linear_model(X, weights):
    """Scores w'x and the losses 1 - y w'x, whose gradients do not depend on w: a KKT system that can be chosen."""
    return TrainedModel(
        lambda p, X: X @ p["w"][:, None],
        {"w": torch.from_numpy(weights)},
        losses=lambda scores, y: 1 - y * scores[:, 0],
    )


# --- Products with the gradients -----------------------------------------------------------------------------


@pytest.mark.parametrize("case", params_of(NETWORKS))
def test_gradients_of_rows_are_those_of_a_loop(case):
    network, (X, y) = network_of(case), images()
    with torch.no_grad():  # running statistics other than 0 and 1
        network.train()(X + 0.5)
    model = trained_model(network.train())
    wanted = one_by_one(network, X, y)
    size = np.linalg.norm(wanted)
    for chunk in (None, 1, 7):
        found = per_sample_gradients(model, X, y, chunk=chunk).numpy()
        assert np.linalg.norm(found - wanted) < 100 * EPS * size
        norms = gradient_norms(model, X, y, chunk=chunk).numpy()
        assert np.allclose(norms, np.linalg.norm(wanted, axis=1), rtol=1e-12)
    rng = np.random.default_rng(1)
    weights, direction = rng.normal(size=len(X)), rng.normal(size=model.size)
    for chunk in (3, 20, 512):
        total = weighted_gradient(model, X, y, torch.from_numpy(weights), chunk=chunk).numpy()
        slopes = directional_derivatives(model, X, y, torch.from_numpy(direction), chunk=chunk).numpy()
        assert np.linalg.norm(total - weights @ wanted) < 1e3 * EPS * size * np.linalg.norm(weights)
        assert np.linalg.norm(slopes - wanted @ direction) < 1e3 * EPS * size * np.linalg.norm(direction)


def test_targets_may_be_probabilities():
    model, (X, y) = trained_model(network_of()), images()
    rows = torch.eye(K, dtype=torch.float64)[y]
    assert torch.allclose(per_sample_gradients(model, X, rows), per_sample_gradients(model, X, y), atol=1e-15)
    scores = torch.tensor([[1.0, 2.0, 0.5]])
    soft = torch.tensor([[0.2, 0.5, 0.3]])
    assert torch.allclose(cross_entropy(scores, soft), torch.nn.functional.cross_entropy(scores, soft))


def test_a_network_is_left_as_it_is():
    network = network_of(NETWORKS["batch"]).train().requires_grad_(True)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    model, (X, y) = trained_model(network, dtype=torch.float32), images()
    weighted_gradient(model, X.float(), y, torch.ones(len(X)))
    assert network.training
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert (model.dtype, next(network.parameters()).dtype) == (torch.float32, torch.float64)


# --- The residual --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", params_of(NETWORKS))
def test_the_residual_is_that_of_its_formula(case):
    network, (X, y) = network_of(case), images()
    duals = torch.rand(len(X), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = trained_model(network)
    residual, scores = stationarity_residual(model, X, y, duals)
    theta = flat(model.parameters)
    wanted = theta + duals.numpy() @ one_by_one(network, X, y)
    assert np.linalg.norm(flat(residual) - wanted) < 1e3 * EPS * np.linalg.norm(wanted)
    assert torch.allclose(scores, network.eval()(X))
    assert float(distance(residual, "l1")) == pytest.approx(np.abs(wanted).mean(), rel=1e-12)
    assert float(distance(residual, "l2")) == pytest.approx(np.square(wanted).mean(), rel=1e-12)
    size = np.linalg.norm(wanted) / np.linalg.norm(theta)
    assert float(relative_residual(model, residual)) == pytest.approx(size, rel=1e-12)


def test_the_scale_is_a_unit_of_the_duals():
    network, (X, y) = network_of(), images()
    duals = torch.ones(len(X), dtype=torch.float64)

    def residual(decay, duals):
        return flat(stationarity_residual(trained_model(network, decay=decay), X, y, duals)[0])

    assert np.allclose(residual(0.01, duals), 0.01 * residual(1.0, duals / 0.01), rtol=1e-10)
    names = dict(network.named_parameters())
    each = residual(dict.fromkeys(names, 0.01) | {"classifier.bias": 0.0}, duals)
    bias = network.classifier.bias.detach().numpy()
    assert np.allclose(each[-K:], residual(0.01, duals)[-K:] - 0.01 * bias)
    assert np.array_equal(each[:-K], residual(0.01, duals)[:-K])


def test_a_factor_on_the_losses_is_one_on_the_duals():
    network, (X, y) = network_of(), images()
    scaled = trained_model(network, losses=lambda scores, y: 8 * cross_entropy(scores, y))
    duals = torch.ones(len(X), dtype=torch.float64)
    found = flat(stationarity_residual(scaled, X, y, duals / 8)[0])
    assert np.array_equal(found, flat(stationarity_residual(trained_model(network), X, y, duals)[0]))


@pytest.mark.parametrize("kind", ["l1", "l2"])
@pytest.mark.parametrize("case", params_of(NETWORKS, "mlp", "convnet", "swish"))
def test_derivatives_in_points_and_duals_are_those_of_finite_differences(case, kind):
    X, y = images(3)
    X = X[:, :1, ::2, ::2].contiguous()
    spec = network_spec(case[0], tuple(X.shape[1:]), K, **case[1])
    model = trained_model(build_network(spec, 3, dtype=torch.float64))
    duals = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64, requires_grad=True)

    def loss(X, duals):
        return distance(stationarity_residual(model, X, y, duals)[0], kind)

    inputs = (X.requires_grad_(), duals)
    assert torch.autograd.gradcheck(loss, inputs, eps=1e-7, rtol=1e-5, atol=1e-9)
    assert torch.autograd.grad(loss(*inputs), X)[0].abs().max() > 1e-5
    assert not any(value.requires_grad for value in model.parameters.values())


def test_only_misclassified_points_count_in_the_primal_loss():
    scores = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    classes = torch.tensor([0, 0, 1])
    found = primal_loss(cross_entropy(scores, classes), scores, classes)
    assert found.item() == pytest.approx(np.log(1 + np.exp(3.0)) / 3)
    gradient = torch.autograd.grad(found, scores)[0]
    assert gradient[1].abs().min() > 0.1
    assert not gradient[[0, 2]].any()
    right = torch.tensor([0, 1, 1])
    none = primal_loss(cross_entropy(scores, right), scores, right)
    assert none.item() == 0
    assert not torch.autograd.grad(none, scores)[0].any()


def test_no_duals_reach_weights_before_a_normalisation():
    # Scores do not change with the scale of such weights, up to the ε of 1e-5 beside a variance of about 0.3.
    for case, reached in (("instance", False), ("convnet", True)):
        model, (X, y) = trained_model(network_of(NETWORKS[case])), images()
        gradients = per_sample_gradients(model, X, y)
        names = [name for name, p in model.parameters.items() if p.ndim == 4]
        first = slice(0, model.parameters[names[0]].numel())
        weight, G = model.parameters[names[0]].ravel(), gradients[:, first]
        cosines = G @ weight / (G.norm(dim=1) * weight.norm())
        assert bool((cosines.abs() > 1e-3).any()) == reached


def test_priors_are_means():
    X = torch.zeros(2, 1, 3, 4)
    X[0, 0, 1, 1] = 6.0  # four differences of 6 among 2 (2 x 4 + 3 x 3)
    assert float(total_variation(X)) == pytest.approx(24 / 34)
    assert float(total_variation(torch.ones(1, 2, 3, 3))) == 0
    assert float(total_variation(torch.ones(1, 2, 1, 1))) == 0
    assert float(mean_norm(X)) == pytest.approx(36 / 24)


# --- Duals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", params_of(NETWORKS, "mlp", "instance", "swish"))
def test_duals_are_those_of_nnls(case):
    model, (X, y) = trained_model(network_of(case)), images()
    G = per_sample_gradients(model, X, y).numpy()
    theta = flat(model.parameters)
    wanted, residual = nnls(-G.T, theta)
    fitted = fit_duals(model, X, y, tolerance=1e-9, chunk=13)
    assert fitted.converged
    assert 0 < fitted.iterations < 1000
    assert fitted.duals.dtype == torch.float64
    assert (fitted.duals >= 0).all()
    assert 0 < (wanted > 0).sum() < len(X)  # both kinds of condition are at work
    assert fitted.residual == pytest.approx(residual / np.linalg.norm(theta), rel=1e-12)
    assert np.allclose(fitted.duals, wanted, atol=1e-6 * wanted.max())
    norms = np.linalg.norm(G, axis=1)
    assert np.allclose(fitted.contributions, fitted.duals.numpy() * norms, rtol=1e-12)
    slopes = G @ (theta + G.T @ fitted.duals.numpy()) / norms
    assert np.allclose(fitted.slopes, slopes, atol=1e-9 * np.linalg.norm(theta))


def test_duals_that_made_the_weights_are_found_again():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(15, 40)) * np.logspace(-4, 0, 15)[:, None], rng.choice([-1.0, 1.0], 15)
    duals = np.where(np.arange(15) % 3 == 0, 0, rng.uniform(1, 2, 15))
    model = linear_model(X, (duals * y) @ X)
    fitted = fit_duals(model, torch.from_numpy(X), torch.from_numpy(y), tolerance=1e-12)
    assert fitted.converged
    # The smallest rows add 1e-4 of the largest to the weights: their duals are good to 1e-12 / 1e-4.
    assert np.allclose(fitted.duals, duals, atol=1e-6)
    assert fitted.residual < 1e-10


def test_what_was_not_reached_is_reported():
    model, (X, y) = trained_model(network_of()), images()
    start, few, many = (fit_duals(model, X, y, tolerance=1e-12, max_iterations=count) for count in (0, 3, 60))
    assert (start.residual, start.iterations) == (1.0, 0)
    assert not start.duals.any()
    assert not few.converged
    assert few.iterations == 3
    assert few.violation > many.violation
    assert start.residual > few.residual > many.residual


def test_float32_reaches_what_its_digits_allow():
    network, (X, y) = network_of(NETWORKS["mlp"]), images()
    exact = fit_duals(trained_model(network), X, y)
    fitted = fit_duals(trained_model(network, dtype=torch.float32), X, y, tolerance=1e-5)
    assert fitted.converged
    assert fitted.residual == pytest.approx(exact.residual, rel=1e-5)


def test_rows_without_gradient_have_no_dual():
    network, (X, y) = network_of(NETWORKS["instance"]), images(12)
    model = trained_model(network, losses=lambda scores, Y: Y[:, 1] * cross_entropy(scores, Y[:, 0].long()))
    Y = torch.stack([y.double(), (torch.arange(len(y)) % 4 > 0).double()], dim=1)
    fitted = fit_duals(model, X, Y, tolerance=1e-8)
    kept = Y[:, 1] > 0
    alone = fit_duals(trained_model(network), X[kept], y[kept], tolerance=1e-8)
    assert fitted.converged
    assert not fitted.duals[~kept].any()
    assert torch.allclose(fitted.duals[kept], alone.duals, atol=1e-6 * float(alone.duals.max()))


# --- Support vectors -----------------------------------------------------------------------------------------


def test_support_vectors_are_the_rows_that_made_the_weights():
    # Scores ±w'x/2, so that the cross-entropy of w = 0 has the gradient -y x / 2: a system with a planted solution.
    rng = np.random.default_rng(0)
    X, classes = torch.from_numpy(rng.normal(size=(24, 60))), torch.arange(24) % 2
    planted = torch.tensor([4, 10, 1, 15])
    duals = torch.zeros(24, dtype=torch.float64)
    duals[planted] = torch.tensor([3.0, 2.0, 1.0, 2.0], dtype=torch.float64)
    signs = 2.0 * classes.double() - 1
    model = linear_model(X, ((duals * signs) @ X).numpy())
    model = TrainedModel(model.function, model.parameters, lambda scores, y: 1 - (2 * y - 1) * scores[:, 0])
    found = deep_support_vectors(model, X, classes, 2, tolerance=1e-9, max_iterations=1000)
    assert found.indices.tolist() == [4, 10, 15, 1]
    assert torch.allclose(found.fitted.duals, duals, atol=1e-6)
    more = deep_support_vectors(model, X, classes, 50, tolerance=1e-9).indices
    assert more[:2].tolist() == [4, 10]
    assert more[12:14].tolist() == [15, 1]
    assert more.sort().values.tolist() == list(range(24))
    assert classes[more].tolist() == [0] * 12 + [1] * 12


@pytest.mark.parametrize("by", ["dual", "contribution"])
def test_rows_are_ranked_by_their_duals_and_then_by_their_slopes(by):
    model, (X, y) = trained_model(network_of(NETWORKS["mlp"])), images(30)
    found = deep_support_vectors(model, X, y, 6, by=by, tolerance=1e-8, max_iterations=1000)
    fitted = found.fitted
    values = {"dual": fitted.duals, "contribution": fitted.contributions}[by].numpy()
    wanted = []
    for c in range(K):
        rows = np.flatnonzero(y.numpy() == c)
        order = np.lexsort((fitted.slopes.numpy()[rows], -values[rows]))
        wanted += rows[order[:6]].tolist()
    assert found.indices.tolist() == wanted
    assert (values[found.indices] == 0).any()  # slopes had something to decide


# --- Bad inputs ----------------------------------------------------------------------------------------------


def test_what_has_no_duals_is_refused():
    network, (X, y) = network_of(), images()
    model = trained_model(network)
    with pytest.raises(ValueError, match="`X` and `Y` must hold the same rows, one or more, got 20 and 19"):
        fit_duals(model, X, y[:-1])
    with pytest.raises(ValueError, match="got 0 and 0"):
        fit_duals(model, X[:0], y[:0])
    with pytest.raises(ValueError, match="the gradient of row 4 is not finite"):
        fit_duals(model, X.index_fill(0, torch.tensor([4]), torch.nan), y)
    with pytest.raises(ValueError, match="s θ\\* has norm 0"):
        fit_duals(trained_model(network, decay=0.0), X, y)
    for name, value in (("chunk", 0), ("max_iterations", -1), ("tolerance", -1.0)):
        with pytest.raises(ValueError, match=f"`{name}`"):
            fit_duals(model, X, y, **{name: value})
    with pytest.raises(ValueError, match="`per_class`"):
        deep_support_vectors(model, X, y, 0)
    with pytest.raises(ValueError, match="`by` must be"):
        deep_support_vectors(model, X, y, 1, by="slope")
    with pytest.raises(ValueError, match="`classes` must be int64"):
        deep_support_vectors(model, X, y.double(), 1)
    with pytest.raises(ValueError, match="`kind`"):
        distance(model.parameters, "l3")


def test_a_model_must_make_sense():
    network = network_of()
    function = trained_model(network).function
    with pytest.raises(ValueError, match="one or more floating tensors"):
        TrainedModel(function, {})
    with pytest.raises(ValueError, match="of one dtype"):
        TrainedModel(function, {"a": torch.ones(2), "b": torch.ones(2, dtype=torch.float64)})
    with pytest.raises(ValueError, match="`decay` must be finite and not negative"):
        trained_model(network, decay=-1.0)
    with pytest.raises(ValueError, match="`decay` must name every parameter"):
        trained_model(network, decay={"classifier.bias": 0.0})
