"""Points as they are stored: casts, clipping, the range of the data, and what the certificate says of them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from kernel_distill import distill, load
from kernel_distill.solver.learners.full_kip import FullKIP
from kernel_distill.solver.points import STORAGE, cast_features, cast_points

from ..cases import (
    INVERTIBLE,
    WIDE,
    D,
    K,
    MapCase,
    fourier,
    one_hot,
    params_of,
    problem,
    relative,
    rounding,
    train,
)

HOMOGENEOUS = [name for name, case in INVERTIBLE.items() if case.make().homogeneous]


def stored_model(distilled):
    """W and b of the model trained on a set's x and y, by NumPy, from what its file holds."""
    x = torch.as_tensor(distilled.x.numpy().astype(np.float64))
    encoder = distilled.encoder
    if distilled.space == "features":
        F = x
    else:
        F = encoder.feature_map.features(encoder.transform.forward(x) if distilled.space == "input" else x)
    return train(F, distilled.y.double(), distilled.distilled_ridge, intercept=distilled.intercept)


def pixels(n=200, seed=0):
    """uint8 rows with some structure, and classes."""
    X, y = problem(n, seed=seed)
    return np.clip(30 * X + 120, 0, 255).astype(np.uint8), y


# --- Casts ---------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=20),
    st.sampled_from(["float64", "float32", "float16"]),
)
def test_floats_are_rounded_to_nearest(values, storage):
    x = torch.tensor([values], dtype=torch.float64)
    found = cast_points(x, storage)
    assert found.dtype == STORAGE[storage]
    assert np.array_equal(found.numpy(), x.numpy().astype(storage))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-300, 600), min_size=1, max_size=20))
def test_bytes_are_rounded_and_clipped_and_clipping_is_noted(values):
    x, notes = torch.tensor([values], dtype=torch.float64), []
    found = cast_points(x, "uint8", notes)
    assert found.dtype == torch.uint8
    assert np.array_equal(found.numpy(), np.clip(np.rint(x.numpy()), 0, 255).astype(np.uint8))
    clipped = np.mean((x.numpy() < -0.5) | (x.numpy() > 255.5))
    assert notes == ([f"{clipped:.2%} of the values were clipped to 0..255"] if clipped else [])


def test_values_beyond_float16_are_refused():
    assert torch.isfinite(cast_points(torch.tensor([[65504.0, -65504.0]]), "float16")).all()
    with pytest.raises(
        ValueError, match="values reach 1e\\+05, beyond float16: store float32, or set bounds='data'"
    ):
        cast_points(torch.tensor([[-1e5]]), "float16")


def test_values_beyond_float32_are_refused():
    with pytest.raises(ValueError, match="beyond float32"):
        cast_points(torch.tensor([[1e39]], dtype=torch.float64), "float32")


def test_features_are_not_bytes():
    with pytest.raises(
        ValueError, match="features cannot be stored as uint8: use float64, float32 or float16"
    ):
        cast_features(torch.ones(2, 2), "uint8")
    with pytest.raises(ValueError, match="unknown storage type 'float8'; did you mean 'float"):
        cast_points(torch.ones(2, 2), "float8")


# --- Errors are reported truthfully --------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["float64", "float32", "float16", "uint8"])
@pytest.mark.parametrize("case", params_of(INVERTIBLE))
def test_stored_error_is_that_of_the_file(case, storage, tmp_path):
    """Read back, train with NumPy, compare with the full model trained with NumPy."""
    X, y = pixels()
    X = case.inputs(X)
    options = {"bounds": "data"} if storage in ("float16", "uint8") else {}
    distill(
        X,
        y,
        feature_map=case.name,
        feature_params=case.params,
        ridge=0.5,
        transform="standardize",
        storage=storage,
        precision="exact",
        **options,
    ).save(tmp_path / "set")
    again = load(tmp_path / "set")
    assert again.x.dtype == STORAGE[storage]
    F = again.encoder(torch.from_numpy(X), torch.float64)
    truth, _ = train(F, one_hot(y), again.certificate.ridge)
    W, _ = stored_model(again)
    certificate = again.certificate
    # Two solvers agree to rounding of the set's features and of the full model's; 1e-9 is above both here.
    assert certificate.stored_error == pytest.approx(relative(W, truth), rel=1e-3, abs=1e-9)
    predicted = relative(F.numpy() @ W, F.numpy() @ truth)
    assert certificate.prediction_error == pytest.approx(predicted, rel=1e-3, abs=1e-9)
    assert certificate.max_abs_x == np.abs(again.x.numpy().astype(np.float64)).max()
    if storage == "float64":
        assert certificate.stored_error < 1e-9
        assert certificate.status == "exact"
    # The closed form was exact before anything was rounded.
    assert certificate.weight_error < 1e-9
    assert (certificate.status == "exact") == (certificate.stored_error <= 1e-6)


@pytest.mark.parametrize("storage", ["float64", "float32", "float16"])
@pytest.mark.parametrize("case", params_of(WIDE))
def test_stored_error_of_feature_sets(case, storage, tmp_path):
    X, y = problem()
    distill(X, y, feature_map=case.name, feature_params=case.params, ridge=0.5, storage=storage).save(
        tmp_path / "set"
    )
    again = load(tmp_path / "set")
    assert (again.space, again.x.dtype) == ("features", STORAGE[storage])
    truth, _ = train(again.encoder(torch.from_numpy(X)), one_hot(y), 0.5)
    assert again.certificate.stored_error == pytest.approx(
        relative(stored_model(again)[0], truth), rel=1e-3, abs=1e-9
    )


@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_labels_are_solved_again_after_rounding(storage):
    """With p points or more any model is carried exactly, so rounding of points costs only that of labels."""
    X, y = problem()
    made = distill(X, y, feature_map="identity", ridge=0.5, per_class=4, storage=storage)
    assert made.y.dtype == torch.float32
    condition = made.certificate.condition
    assert made.certificate.stored_error < 4 * condition * np.finfo(np.float32).eps


@pytest.mark.parametrize("storage", ["float32", "float16", "uint8"])
def test_more_bits_lose_less(storage):
    X, y = pixels()
    order = ["float64", "float32", "float16", "uint8"]
    finer = order[order.index(storage) - 1]
    errors = [
        distill(X, y, feature_map="fcnn", ridge=0.5, bounds="data", storage=kind).certificate.stored_error
        for kind in (finer, storage)
    ]
    assert errors[0] < errors[1]


# --- The range of the data -----------------------------------------------------------------------------------


def outside(distilled, X):
    low, high = (0, 255) if X.dtype == np.uint8 else (X.min(), X.max())
    x = distilled.x.numpy().astype(np.float64)
    slack = 1e-9 * max(abs(low), abs(high), 1.0)
    return np.mean((x < low - slack) | (x > high + slack))


@pytest.mark.parametrize("per_class", [1, 2])
@pytest.mark.parametrize("transform", ["none", "standardize", "zca-kornia"])
@pytest.mark.parametrize("near", ["noise", "data"])
@pytest.mark.parametrize("case", params_of(INVERTIBLE, *HOMOGENEOUS))
def test_homogeneous_maps_stay_in_range(case, near, transform, per_class):
    """Where φ(cx) = cφ(x), points shrink into the box of the data, and the set stays exact."""
    X, y = problem()
    X = case.inputs(X)
    made = distill(
        X,
        y,
        feature_map=case.name,
        feature_params=case.params,
        ridge=0.5,
        transform=transform,
        near=near,
        bounds="data",
        per_class=per_class,
    )
    assert outside(made, X) == 0
    assert made.certificate.out_of_range == 0
    assert made.certificate.stored_error < 1e-8


@pytest.mark.parametrize("bounds", ["free", "data"])
@pytest.mark.parametrize("method", ["closed-form", "theorem", "label-solve", "all-ridges"])
@pytest.mark.parametrize("case", params_of(INVERTIBLE, "identity", "fcnn-1", "fourier-gaussian", "coupling"))
def test_share_out_of_range_is_that_of_the_points(case, method, bounds):
    X, y = problem()
    made = distill(
        X,
        y,
        feature_map=case.name,
        feature_params=case.params,
        ridge=0.5,
        method=method,
        bounds=bounds,
        transform="standardize",
    )
    assert made.certificate.out_of_range == pytest.approx(outside(made, X))


@pytest.mark.parametrize(
    "method", ["label-solve", FullKIP(inner=2, steps=1)], ids=["label-solve", "full-kip"]
)
@pytest.mark.parametrize(
    "case", params_of(INVERTIBLE, "identity", "fourier-gaussian") + params_of(WIDE, "fourier-wide")
)
def test_given_points_out_of_range_are_counted(case, method):
    X, y = problem()
    far = np.random.default_rng(0).normal(size=(2 * K, D)) * np.abs(X).max()
    made = distill(
        X,
        y,
        feature_map=case.name,
        feature_params=case.params,
        ridge=0.5,
        method=method,
        near=far,
        per_class=2,
        progress=False,
    )
    assert outside(made, X) > 0.1
    assert made.certificate.out_of_range == pytest.approx(outside(made, X))


@pytest.mark.parametrize("case", params_of(INVERTIBLE, "identity", "fourier-gaussian", "coupling"))
@pytest.mark.parametrize("storage", ["float16", "uint8"])
def test_share_out_of_range_is_that_of_the_points_as_stored(case, storage):
    X, y = pixels()
    made = distill(
        X,
        y,
        feature_map=case.name,
        feature_params=case.params,
        ridge=0.5,
        transform="standardize",
        storage=storage,
    )
    assert made.certificate.out_of_range == pytest.approx(outside(made, X))
    if storage == "uint8":
        assert made.certificate.out_of_range == 0


@pytest.mark.parametrize("case", params_of(INVERTIBLE, "fourier-gaussian", "fourier-orthogonal", "coupling"))
def test_bounded_points_leave_the_range_less(case):
    """Maps that cannot be scaled: projections keep the set exact and values nearer the box."""
    X, y = problem()
    free, data = (
        distill(X, y, feature_map=case.name, feature_params=case.params, ridge=0.5, bounds=bounds)
        for bounds in ("free", "data")
    )
    assert data.certificate.stored_error < 1e-8

    def excess(made):
        x = made.x.numpy()
        return np.linalg.norm(x - np.clip(x, X.min(), X.max()))

    assert excess(data) <= excess(free)


def test_fourier_features_are_scaled_into_their_bound_and_labels_follow():
    """The published code recovers W in direction only: here its length comes back too."""
    X, y = problem()
    made = distill(
        X,
        y,
        feature_map="fourier",
        feature_params={"length_scale": 5.0},
        ridge=0.1,
        method="theorem",
        per_class=2,
    )
    assert any("scaled by" in note and "labels follow" in note for note in made.certificate.notes)
    assert made.certificate.stored_error < 1e-9
    F = made.features()
    assert float(F.abs().max()) <= made.encoder.feature_map.feature_bound
    assert float(F.abs().max()) > 0.9 * made.encoder.feature_map.feature_bound


@pytest.mark.parametrize(
    "case", params_of(INVERTIBLE, "fourier-laplacian", "fourier-cauchy", "fourier-orthogonal")
)
def test_what_a_map_does_not_see_is_the_reference(case):
    """With fewer features than inputs the preimage is a plane: its point nearest to the reference is taken."""
    X, y = problem()
    near = np.random.default_rng(0).normal(size=(K, D))
    made = distill(X, y, feature_map=case.name, feature_params=case.params, ridge=0.5, near=near)
    A = made.encoder.feature_map._frequencies.numpy()
    blind = np.linalg.svd(A)[2][len(A) :]
    assert blind.shape == (D - len(A), D)
    # A small difference of points whose size is that of phases over the weakest frequency.
    scale = np.abs(made.x.numpy()).max() * np.linalg.cond(A)
    assert np.abs((made.x.numpy() - near) @ blind.T).max() < rounding(scale)


def test_points_stay_near_their_reference():
    """Rows of the data, moved no further than exactness asks for."""
    X, y = problem()
    made = distill(X, y, feature_map="identity", ridge=0.5, near="data", per_class=2)
    start = distill(X, y, feature_map="identity", ridge=0.5, near="data", per_class=2, method="label-solve").x
    moved = (made.x - start).norm() / start.norm()
    # Eight points of twelve values lose four directions; random points would differ by a factor 1.4.
    assert moved < 0.6
    # And the directions that the model does not see are those of the rows.
    assert made.hard_labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    "case", [pytest.param(MapCase("identity", {}), id="identity"), pytest.param(fourier(), id="fourier")]
)
def test_given_points_that_are_exact_already_stay(case):
    X, y = problem()
    options = {"feature_map": case.name, "feature_params": case.params, "ridge": 0.5}
    first = distill(X, y, near="data", **options)
    again = distill(X, y, near=first.x, **options)
    # Where the floor of the conditioning had lifted a direction, lifting raised the floor itself a little.
    assert relative(again.x, first.x) < 0.01
    assert len(first) == K
    assert first.x.shape == (K, D)
