"""Sets with a kernel in place of a feature map: what they predict, store and certify, and how they are made."""

import dataclasses
import functools
import json
import struct

import numpy as np
import pytest
import safetensors.torch
import scipy.spatial.distance
import torch
from sklearn.metrics import r2_score

from kernel_distill import DistilledSet, distill, load
from kernel_distill.solver import model as model_module
from kernel_distill.solver.certificate import Certificate, Status
from kernel_distill.solver.certify import kernel_rank
from kernel_distill.solver.encoder import Encoder
from kernel_distill.solver.feature_maps import make_feature_map
from kernel_distill.solver.kernel_encoder import KernelEncoder, restore_encoder
from kernel_distill.solver.kernel_functions import NTK, FeatureKernel, GaussianKernel, make_kernel_function
from kernel_distill.solver.kernel_model import KernelModel, solve_kernel
from kernel_distill.solver.learned_set import learned_set
from kernel_distill.solver.model import RidgeModel, decision_functions
from kernel_distill.solver.set_factor import SetFactor
from kernel_distill.solver.targets import Targets
from kernel_distill.solver.transforms import make_transform

from ..cases import EPS, WIDE, D, K, problem, relative, rounding

SHAPE = (1, 4, 3)
M = 8
KERNELS = {
    "gaussian": {"bandwidth": 6.0},
    "laplacian": {"bandwidth": 15.0},
    "matern": {"bandwidth": 6.0},
    "ntk": {},
    "nngp": {"depth": 2},
    "conv-ntk": {"depth": 2, "pooling": (1, 0)},
}
NAMES = pytest.mark.parametrize("name", KERNELS)
TRANSFORMS = pytest.mark.parametrize("transform", ["none", "standardize", "zca-kornia", "zca-kip"])
CLASSES = Targets("centred", K, tuple(range(K)))


def images(n=60):
    """Raw images of bytes and their classes."""
    X, y = problem(n)
    return np.clip(40 * X + 128, 0, 255).astype(np.uint8).reshape(n, *SHAPE), y


def encoder_of(kernel, transform="standardize", params=None):
    X = torch.from_numpy(images()[0])
    fitted = make_transform(transform, lambda: [X], SHAPE)
    if isinstance(kernel, str):
        kernel = make_kernel_function(kernel, SHAPE, params=KERNELS[kernel] if params is None else params)
    return KernelEncoder(fitted, kernel)


def learned(encoder, seed=0, targets=CLASSES, **rest):
    """A set near real rows, with labels that are not those of the classes."""
    X, y = images()
    rng = np.random.default_rng(seed)
    chosen = np.concatenate([np.flatnonzero(y == label)[: M // K] for label in range(K)])
    x = encoder.transform.forward(torch.from_numpy(X[chosen]))
    x = x + 0.3 * x.std() * torch.from_numpy(rng.normal(size=x.shape))
    labels = torch.from_numpy(y[chosen]) if targets.is_classes else None
    values = torch.from_numpy(rng.normal(size=(M, targets.n_outputs)))
    options = {"relative_ridge": 1e-3, "labels": labels, "n_rows": len(X), **rest}
    return learned_set(encoder, targets, x, values, **options), x, values


def definition(ds, kernel, transform, X):
    """K(x, X_S)(K_SS + ridge)^-1 Y_S in NumPy, from what the file holds."""
    points = torch.as_tensor(ds.x.numpy().astype(np.float64))
    z = transform.forward(points).numpy() if ds.space == "input" else points.numpy()
    test = transform.forward(torch.as_tensor(np.asarray(X, np.float64))).numpy()
    A = kernel(z, z) + ds.distilled_ridge * np.eye(len(z))
    return kernel(test, z) @ np.linalg.solve(A, ds.y.numpy().astype(np.float64)), np.linalg.cond(A)


def by_library(name):
    kernel = make_kernel_function(name, SHAPE, params=KERNELS[name])
    return lambda x, y: kernel.matrix(torch.from_numpy(x), torch.from_numpy(y)).numpy()


def gaussian(x, y, bandwidth=6.0):
    flat = (v.reshape(len(v), -1) for v in (x, y))
    return np.exp(-scipy.spatial.distance.cdist(*flat, "sqeuclidean") / (2 * bandwidth**2))


def edit_header(path, edit):
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    document = json.loads(header["__metadata__"]["kernel_distill"])
    edit(document)
    header["__metadata__"]["kernel_distill"] = json.dumps(document)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


def header_of(path):
    with safetensors.safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["kernel_distill"])


# --- Predictions ---------------------------------------------------------------------------------------------


@TRANSFORMS
@pytest.mark.parametrize("storage", ["float64", "float32", "float16"])
def test_predictions_are_the_definition(transform, storage):
    bandwidth = 300.0 if transform == "none" else 6.0  # of the size of distances between rows
    encoder = encoder_of("gaussian", transform, {"bandwidth": bandwidth})
    ds, _, _ = learned(encoder, storage=storage)
    X, y = images()
    wanted, kappa = definition(ds, functools.partial(gaussian, bandwidth=bandwidth), encoder.transform, X)
    found = ds.decision_function(X)
    assert found.dtype == np.float64
    assert np.abs(found - wanted).max() < rounding(kappa, np.abs(wanted).max())
    assert ds.predict(X).tolist() == wanted.argmax(axis=1).tolist()
    assert ds.score(X, y) == np.mean(wanted.argmax(axis=1) == y)


@NAMES
def test_every_kernel_predicts(name):
    encoder = encoder_of(name)
    ds, _, _ = learned(encoder)
    X, _ = images()
    wanted, kappa = definition(ds, by_library(name), encoder.transform, X)
    assert np.abs(ds.decision_function(X) - wanted).max() < rounding(kappa, np.abs(wanted).max())
    assert ds.decision_function(X[:0]).shape == (0, K)
    broken = X.astype(np.float64)
    broken[5, 0, 1, 1] = np.nan
    with pytest.raises(ValueError, match="`X` holds NaN in row 5"):
        ds.predict(broken)


def test_predictions_do_not_depend_on_batches(monkeypatch):
    ds, _, _ = learned(encoder_of("ntk"))
    X, _ = images()
    whole = ds.decision_function(X)
    sizes = []
    monkeypatch.setattr(model_module, "batch_rows", lambda *width: sizes.append(width) or 7)
    assert np.allclose(ds.decision_function(X), whole, rtol=0, atol=1e-9 * np.abs(whole).max())
    assert sizes == [(M, D)]


def test_regression_targets():
    X, _ = images()
    encoder = encoder_of("matern")
    ds, _, _ = learned(encoder, targets=Targets.from_values(2))
    values = X.reshape(len(X), -1)[:, :2] / 255.0
    wanted, kappa = definition(ds, by_library("matern"), encoder.transform, X)
    assert ds.labels is None
    assert ds.hard_labels is None
    assert np.abs(ds.predict(X) - wanted).max() < rounding(kappa, np.abs(wanted).max())
    assert ds.score(X, values) == pytest.approx(r2_score(values, wanted))


def test_several_models_share_one_encoder(monkeypatch):
    encoder = encoder_of("gaussian")
    first, second = (learned(encoder, seed=seed)[0].model for seed in (0, 1))
    X, _ = images()
    alone = [first.decision_function(X), second.decision_function(X)]
    rows = []
    original = KernelEncoder.__call__
    monkeypatch.setattr(
        KernelEncoder,
        "__call__",
        lambda self, piece, *rest: rows.append(len(piece)) or original(self, piece, *rest),
    )
    together = decision_functions([first, second], X)
    assert rows == [len(X)]
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


# --- A kernel with features is a feature map -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["identity", "fourier-wide", "fcnn-wide"])
def test_kernels_of_feature_maps_are_stored_as_maps(name, tmp_path):
    """Also with more features than points, where weights come from the points' side."""
    case = WIDE.get(name)
    params = {} if case is None else case.params
    feature_map = make_feature_map("identity" if case is None else case.name, SHAPE, params=params)
    encoder = encoder_of(FeatureKernel(feature_map))
    ds, x, y = learned(encoder)
    assert isinstance(ds.encoder, Encoder)
    assert isinstance(ds.model, RidgeModel)
    F = feature_map.features(x).numpy()
    ridge = 1e-3 * (F**2).sum() / M
    assert ds.distilled_ridge == pytest.approx(ridge, rel=1e-9)
    X, _ = images()
    G = feature_map.features(encoder.transform.forward(torch.from_numpy(X))).numpy()
    A = F @ F.T + ridge * np.eye(M)
    wanted = G @ F.T @ np.linalg.solve(A, y.numpy())
    # A float32 encoding, because the data are bytes.
    assert relative(ds.decision_function(X), wanted) < 1e-6 * np.linalg.cond(A)
    exact = dataclasses.replace(ds, encoder=dataclasses.replace(ds.encoder, precision="exact"))
    assert relative(exact.decision_function(X), wanted) < rounding(np.linalg.cond(A), 10)
    assert (ds.certificate.status, ds.certificate.rank) == (Status.LEARNED, np.linalg.matrix_rank(F))
    assert ds.certificate.condition == pytest.approx(np.linalg.cond(F), rel=1e-6)
    ds.save(tmp_path / "set")
    assert np.array_equal(load(tmp_path / "set").decision_function(X), ds.decision_function(X))
    assert encoder.digest() == ds.encoder.digest()
    # Given either way it is one set.
    assert torch.equal(learned(Encoder(encoder.transform, feature_map))[0].x, ds.x)


def test_a_linear_kernel_is_the_identity_map():
    """A network without hidden layers and biases has the kernel w^2 x.y / d."""
    kernel = NTK(SHAPE, depth=0, weight_std=D**0.5, bias_std=0.0)
    with_kernel, _, _ = learned(encoder_of(kernel))
    with_map, _, _ = learned(encoder_of(FeatureKernel(make_feature_map("identity", SHAPE))))
    X = images()[0].astype(np.float64)
    assert isinstance(with_kernel.encoder, KernelEncoder)
    assert torch.equal(with_kernel.x, with_map.x)
    a, b = with_kernel.certificate, with_map.certificate
    assert a.distilled_ridge == pytest.approx(b.distilled_ridge, rel=1e-12)
    assert a.rank == b.rank == M
    assert a.condition == pytest.approx(b.condition, rel=1e-9)
    assert relative(with_kernel.decision_function(X), with_map.decision_function(X)) < 1e-9


@pytest.mark.parametrize("rank", [0, 1, 3, 6])
def test_rank_and_condition_come_from_the_kernel_matrix(rank):
    rng = np.random.default_rng(0)
    F = torch.from_numpy(rng.normal(size=(6, rank)) @ rng.normal(size=(rank, 20)))
    factor = SetFactor(F, tolerance=1e-6)
    found = kernel_rank(F @ F.T, 1e-6)
    assert found[0] == factor.rank == rank
    assert found[1] == pytest.approx(factor.condition, rel=1e-6)


# --- How a set is made of what was learned -------------------------------------------------------------------


@TRANSFORMS
def test_points_go_back_to_the_units_of_the_data(transform):
    encoder = encoder_of("ntk", transform)
    ds, x, y = learned(encoder, data_range=(0.0, 255.0))
    certificate = ds.certificate
    if transform == "zca-kip":
        assert ds.space == "transformed"
        assert torch.equal(ds.x, x)
        assert certificate.out_of_range is None
    else:
        assert ds.space == "input"
        assert torch.allclose(ds.x, encoder.transform.inverse(x), rtol=1e-12)
        outside = (ds.x < -255e-9) | (ds.x > 255 + 255e-9)
        assert certificate.out_of_range == float(outside.double().mean())
    assert torch.allclose(ds.transformed(), x, rtol=1e-9, atol=1e-9 * float(x.abs().max()))
    assert torch.equal(ds.y, y)
    assert ds.y.dtype == torch.float64
    trace = float(encoder.kernel.matrix(ds.transformed()).trace())
    assert ds.distilled_ridge == certificate.distilled_ridge == pytest.approx(1e-3 * trace / M, rel=1e-12)
    assert certificate.max_abs_x == float(ds.x.abs().max())
    assert ds.intercept is False


def test_bytes_are_stored_as_bytes():
    encoder = encoder_of("gaussian")
    ds, x, _ = learned(encoder, storage="uint8", data_range=(0.0, 255.0))
    assert (ds.x.dtype, ds.y.dtype) == (torch.uint8, torch.float32)
    assert torch.equal(ds.x, encoder.transform.inverse(x).round().clamp(0, 255).to(torch.uint8))
    assert ds.certificate.out_of_range == 0
    X, _ = images()
    wanted, kappa = definition(ds, gaussian, encoder.transform, X)
    assert np.abs(ds.decision_function(X) - wanted).max() < rounding(kappa, np.abs(wanted).max())
    # The ridge is that of the points as stored.
    encoder = encoder_of("ntk")
    ds, x, _ = learned(encoder, storage="uint8")
    z = encoder.transform.forward(ds.x.double())
    assert float(encoder.kernel.matrix(z).trace()) != pytest.approx(
        float(encoder.kernel.matrix(x).trace()), rel=1e-9
    )
    assert ds.distilled_ridge == pytest.approx(1e-3 * float(encoder.kernel.matrix(z).trace()) / M, rel=1e-12)
    with pytest.raises(ValueError, match=r"'zca-kip' cannot be undone for every point.*uint8 does not fit"):
        learned(encoder_of("gaussian", "zca-kip"), storage="uint8")


def test_the_certificate_tells_what_was_measured():
    figures = {
        "heldout_score": 0.5,
        "heldout_loss": 0.03,
        "heldout_rows": 12,
        "selected_step": 80,
        "steps": 100,
    }
    ds, _, _ = learned(encoder_of("gaussian"), notes=("one",), n_rows=48, **figures)
    certificate = ds.certificate
    assert certificate.status == "learned"
    assert "nothing is guaranteed beyond the held-out figures" in certificate.status.explanation
    assert {name: getattr(certificate, name) for name in figures} == figures
    assert (certificate.n_rows, certificate.notes, certificate.rank) == (48, ("one",), M)
    z = ds.transformed().numpy()
    assert certificate.condition == pytest.approx(np.linalg.cond(gaussian(z, z)) ** 0.5, rel=1e-6)
    assert certificate.weight_error is None
    # What does not apply is not written; what is required is, even if it is None.
    written = certificate.model_dump(mode="json")
    absent = ("weight_error", "stored_error", "prediction_error", "ridge", "ridge_rule", "model_rank")
    assert not set(absent) & set(written)
    assert written["out_of_range"] is None
    assert Certificate.model_validate(written) == certificate


def test_what_is_learned_may_be_anywhere_and_require_gradients():
    encoder = encoder_of("gaussian")
    ds, x, y = learned(encoder)
    again = learned_set(
        encoder,
        CLASSES,
        x.clone().requires_grad_(),
        y.clone().requires_grad_(),
        relative_ridge=1e-3,
        labels=ds.labels,
        n_rows=60,
    )
    assert torch.equal(again.x, ds.x)
    assert torch.equal(again.y, ds.y)
    assert not again.x.requires_grad
    assert not again.y.requires_grad


# --- Files ---------------------------------------------------------------------------------------------------


@NAMES
@pytest.mark.parametrize("transform", ["standardize", "zca-kip"])
@pytest.mark.parametrize("storage", ["float64", "float16"])
def test_sets_come_back_bit_for_bit(name, transform, storage, tmp_path):
    names = ("a", "b", "c", "ü")
    first, _, _ = learned(
        encoder_of(name, transform), storage=storage, class_names=names, provenance={"seed": 3}, steps=5
    )
    first.save(tmp_path / "set")
    again = DistilledSet.load(tmp_path / "set")
    for part in ("x", "y", "labels"):
        a, b = getattr(first, part), getattr(again, part)
        assert a.dtype == b.dtype
        assert a.numpy().tobytes() == b.numpy().tobytes()
    for part in (
        "targets",
        "space",
        "distilled_ridge",
        "intercept",
        "certificate",
        "class_names",
        "provenance",
    ):
        assert getattr(again, part) == getattr(first, part)
    assert again.encoder.digest() == first.encoder.digest()
    assert again.encoder.kernel.parameters() == first.encoder.kernel.parameters()
    X, _ = images()
    assert torch.equal(again.model.coefficients, first.model.coefficients)
    assert np.array_equal(again.decision_function(X), first.decision_function(X))
    again.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "set").read_bytes()


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("gaussian", lambda kernel: kernel["parameters"].update(bandwidth=5.0)),
        ("ntk", lambda kernel: kernel["parameters"].update(depth=3)),
        ("ntk", lambda kernel: kernel.update(name="nngp")),
        ("conv-ntk", lambda kernel: kernel["parameters"].update(readout="global_average")),
    ],
)
def test_another_kernel_is_refused_by_its_fingerprint(name, edit, tmp_path):
    learned(encoder_of(name))[0].save(tmp_path / "set")
    edit_header(tmp_path / "set", lambda document: edit(document["encoder"]["kernel"]))
    with pytest.raises(ValueError, match="kernel of the file cannot be made again here"):
        load(tmp_path / "set")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d["encoder"]["kernel"].update(name="gausian"), "unknown kernel 'gausian'"),
        (lambda d: d["encoder"]["kernel"].update(name="features"), "unknown kernel 'features'"),
        (lambda d: d["encoder"]["kernel"]["parameters"].pop("bandwidth"), "not a consistent distilled set"),
        (
            lambda d: d["encoder"]["kernel"]["parameters"].update(input_shape=[5]),
            "make both for the same data",
        ),
        (lambda d: d["encoder"].pop("fingerprint"), "not a consistent distilled set"),
        (lambda d: d["encoder"].pop("kernel"), "not a consistent distilled set"),
        (lambda d: d.update(space="features"), "holds points, not features"),
        (lambda d: d.update(intercept=True), "no intercept"),
        (lambda d: d["certificate"].pop("rank"), "not a consistent distilled set"),
        (lambda d: d["certificate"].update(heldout=1), "not a consistent distilled set"),
    ],
)
def test_headers_that_do_not_fit_are_refused(edit, message, tmp_path):
    learned(encoder_of("gaussian"))[0].save(tmp_path / "set")
    edit_header(tmp_path / "set", edit)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "set")


OLD_FIELDS = {
    "status": "exact",
    "weight_error": 0.0,
    "stored_error": 1e-15,
    "prediction_error": 1e-15,
    "ridge": 2.0,
    "ridge_rule": "given",
    "distilled_ridge": 0.5,
    "rank": 2,
    "model_rank": 2,
    "condition": 1.5,
    "max_abs_x": 3.0,
    "out_of_range": None,
    "n_rows": 9,
    "notes": ["a note"],
}


def test_files_of_the_first_release_are_read(tmp_path):
    """Written by hand, as the first release writes them: no fields that came with learned sets."""
    x = torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.float64)
    document = {
        "format": "kernel-distill",
        "version": 1,
        "kind": "distilled-set",
        "space": "input",
        "distilled_ridge": 0.5,
        "intercept": False,
        "certificate": OLD_FIELDS,
        "encoder": {
            "transform": {"name": "none", "parameters": {"input_shape": [2]}},
            "feature_map": {"name": "identity", "parameters": {"input_shape": [2]}},
            "precision": "auto",
            "fingerprint": make_feature_map("identity", (2,)).fingerprint(),
        },
        "targets": {"kind": "one-hot", "n_outputs": 2, "classes": [0, 1]},
        "class_names": None,
        "provenance": {},
    }
    tensors = {"x": x, "y": torch.eye(2, dtype=torch.float64), "labels": torch.tensor([0, 1])}
    safetensors.torch.save_file(tensors, tmp_path / "old", metadata={"kernel_distill": json.dumps(document)})
    ds = load(tmp_path / "old")
    assert ds.certificate.heldout_score is None
    A = x.numpy() @ x.numpy().T + 0.5 * np.eye(2)
    test = np.array([[0.3, 0.7]])
    assert ds.decision_function(test) == pytest.approx(test @ x.numpy().T @ np.linalg.solve(A, np.eye(2)))
    ds.save(tmp_path / "new")
    assert header_of(tmp_path / "new") == document


def test_files_of_closed_forms_hold_what_they_held(tmp_path):
    """So that the first release reads them too."""
    X, y = problem()
    distill(X, y, feature_map="identity", ridge=1.0).save(tmp_path / "set")
    header = header_of(tmp_path / "set")
    assert set(header["certificate"]) == set(OLD_FIELDS)
    assert set(header["encoder"]) == {"transform", "feature_map", "precision", "fingerprint"}


# --- Encoders ------------------------------------------------------------------------------------------------


def test_digests_tell_encoders_apart():
    digests = {
        encoder_of(name, transform).digest() for name in KERNELS for transform in ("none", "standardize")
    }
    assert len(digests) == 2 * len(KERNELS)
    assert encoder_of("gaussian", params={"bandwidth": 6.1}).digest() not in digests
    assert encoder_of("gaussian").digest() in digests
    encoder = encoder_of("gaussian")
    again = restore_encoder(json.loads(json.dumps(encoder.parameters())), encoder.tensors())
    assert isinstance(again, KernelEncoder)
    assert again.digest() == encoder.digest()
    assert encoder.name == "gaussian"
    assert encoder(torch.from_numpy(images()[0])).dtype == torch.float64


# --- Refusals ------------------------------------------------------------------------------------------------


def test_singular_kernel_matrices_are_reported():
    """Not repaired: neither coinciding points without a ridge nor a ridge below the rounding of the matrix."""
    encoder = encoder_of("gaussian")
    x = encoder.transform.forward(torch.from_numpy(images()[0][:3]))
    twice, y = torch.cat([x, x[:1]]), torch.eye(4, dtype=torch.float64)
    options = {"labels": torch.arange(4), "n_rows": 60}
    for ridge in (0.0, 1e-17):
        with pytest.raises(
            ValueError, match=r"of these 4 points is not positive definite.*Raise the ridge to 1e-08"
        ):
            learned_set(encoder, CLASSES, twice, y, relative_ridge=ridge, **options)
        with pytest.raises(ValueError, match="is not positive definite"):
            KernelModel.train(encoder, CLASSES, twice, y, ridge)
    assert learned_set(encoder, CLASSES, twice, y, relative_ridge=1e-8, **options).certificate.rank == 3
    assert (
        learned_set(encoder, CLASSES, x, y[:3], relative_ridge=0.0, labels=None, n_rows=60).distilled_ridge
        == 0
    )
    # A factorisation may run through on rounding alone: its last pivot is then no larger than that.
    for diagonal in ([-1.0, 1.0, 1.0], [1.0, 1.0, 1e-17], [1.0, 1.0, float("nan")]):
        with pytest.raises(ValueError, match="is not positive definite"):
            solve_kernel(torch.diag(torch.tensor(diagonal, dtype=torch.float64)), y[:3], 0.0)


def test_coefficients_solve_the_system():
    rng = np.random.default_rng(0)
    F, Y = (torch.from_numpy(rng.normal(size=size)) for size in ((6, 9), (6, 2)))
    A = F @ F.T
    before = A.clone()
    found = solve_kernel(A, Y.float(), 0.3)
    assert torch.equal(A, before)
    residual = (A + 0.3 * torch.eye(6, dtype=torch.float64)) @ found - Y.float().double()
    assert float(residual.norm()) < 100 * EPS * float(A.norm() * found.norm())


def test_sets_with_a_kernel_have_no_features():
    ds, _, _ = learned(encoder_of("ntk"))
    with pytest.raises(ValueError, match="has the kernel 'ntk', which has no finite features"):
        ds.features()
    for change in ({"space": "features"}, {"intercept": True}):
        with pytest.raises(ValueError, match="holds points, not features, and its model has no intercept"):
            dataclasses.replace(ds, **change)
    with pytest.raises(ValueError, match=r"give the set Encoder\(transform, feature_map\)"):
        dataclasses.replace(ds, encoder=encoder_of(FeatureKernel(make_feature_map("identity", SHAPE))))
    X, y = problem()
    wide = distill(X, y, feature_map="fourier", feature_params={"n_features": 30}, ridge=1.0)
    with pytest.raises(ValueError, match="lives in feature space"):
        wide.transformed()


BAD = {
    "shape of x": (
        {"x": torch.zeros(4, 12)},
        r"`x` must hold at least one point of shape \(1, 4, 3\), got \(4, 12\)",
    ),
    "no points": ({"x": torch.zeros(0, *SHAPE)}, "at least one point"),
    "NaN in x": ({"x": torch.full((4, *SHAPE), torch.nan)}, "`x` holds NaN in row 0"),
    "shape of y": ({"y": torch.zeros(4, 3)}, r"`y` must have shape \(4, 4\), got \(4, 3\)"),
    "rows of y": ({"y": torch.zeros(3, 4)}, r"`y` must have shape \(4, 4\), got \(3, 4\)"),
    "infinite y": ({"y": torch.full((4, 4), torch.inf)}, "`y` holds infinity"),
    "float labels": (
        {"labels": torch.zeros(4)},
        r"`labels` must be int64 of shape \(4,\), got torch.float32",
    ),
    "too few labels": ({"labels": torch.arange(3)}, r"got torch.int64 of shape \(3,\)"),
    "labels beyond": ({"labels": torch.arange(4) + 1}, "`labels` are 1 to 4, but the targets have 4 classes"),
    "negative labels": ({"labels": torch.arange(4) - 1}, "`labels` are -1 to 2"),
    "ridge": ({"relative_ridge": -1.0}, "`ridge` must be finite and not negative"),
    "storage": ({"storage": "flaot32"}, "unknown storage type 'flaot32'; did you mean 'float32'"),
    "rows": ({"n_rows": 0}, "`n_rows` must be an integer of at least 1"),
    "overflow": ({"x": 1e6 * torch.rand(4, *SHAPE), "storage": "float16"}, "beyond float16"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_refused(name):
    change, message = BAD[name]
    arguments = {
        "x": torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0)),
        "y": torch.eye(4),
        "relative_ridge": 1e-3,
        "labels": torch.arange(4),
        "n_rows": 60,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        learned_set(encoder_of("gaussian"), CLASSES, **arguments)


def test_labels_of_regression_and_kernels_of_other_data_are_refused():
    encoder = encoder_of("gaussian")
    with pytest.raises(ValueError, match="0 classes: give indices of classes, or None"):
        learned_set(
            encoder,
            Targets.from_values(4),
            torch.rand(4, *SHAPE),
            torch.eye(4),
            relative_ridge=0.1,
            labels=torch.arange(4),
            n_rows=60,
        )
    with pytest.raises(ValueError, match="make both for the same data"):
        KernelEncoder(encoder.transform, GaussianKernel((D,), bandwidth=1.0))
