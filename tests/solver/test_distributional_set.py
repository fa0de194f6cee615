"""Sets of distributions: used like any set, counted by what is stored, drawn from, read back, refused when damaged."""

import dataclasses
import json
import struct

import numpy as np
import pytest
import torch

from kernel_distill.kernels import normal
from kernel_distill.solver.decoders import build_decoder, calibrate, decoder_spec
from kernel_distill.solver.distilled_set import DistilledSet
from kernel_distill.solver.distributional_set import DistributionalSet
from kernel_distill.solver.distributions import Distribution
from kernel_distill.solver.distributions.latent import LatentGaussians
from kernel_distill.solver.encoder import Encoder
from kernel_distill.solver.feature_maps import make_feature_map
from kernel_distill.solver.kernel_encoder import KernelEncoder
from kernel_distill.solver.kernel_functions import make_kernel_function
from kernel_distill.solver.learned_set import learned_set
from kernel_distill.solver.statistics import Statistics
from kernel_distill.solver.store import read_file, write_file
from kernel_distill.solver.targets import Targets
from kernel_distill.solver.transforms import make_transform

from ..cases import K, problem, train

SHAPE, M = (1, 4, 3), 8
TARGETS = Targets("centred", K, tuple("abcd"))
# Transforms that can be undone, and one that cannot; kernels and a feature map.
TRANSFORMS = pytest.mark.parametrize("transform", ["standardize", "zca-kornia", "zca-kip"])
ENCODERS = pytest.mark.parametrize("kind", ["features", "kernel"])


def rows(n=60):
    """Raw images of bytes."""
    X, _ = problem(n)
    return torch.from_numpy(np.clip(40 * X + 128, 0, 255).astype(np.uint8).reshape(n, *SHAPE))


def encoder_of(kind="features", transform="standardize"):
    fitted = make_transform(transform, lambda: [rows()], SHAPE)
    if kind == "kernel":
        return KernelEncoder(fitted, make_kernel_function("ntk", SHAPE))
    return Encoder(fitted, make_feature_map("identity", SHAPE))


def latent(seed=0, m=M, shape=SHAPE):
    spec = decoder_spec("small", shape, width=4, latent_dim=3, scale=2.0)
    decoder = build_decoder(spec, seed)
    means, log_variances = normal(seed, "means", (m, 3)), normal(seed, "log_variances", (m, 3)) - 2
    calibrate(decoder, [means.float()])
    return LatentGaussians.of(spec, decoder.state_dict(), means, log_variances)


def plain(distribution, encoder, **rest):
    """A set of the points of these distributions, with labels that are not those of the classes."""
    points = distribution.points()
    return learned_set(
        encoder,
        TARGETS,
        points,
        normal(1, "labels", (len(points), K)),
        **{
            "relative_ridge": 1e-2,
            "labels": torch.arange(len(points)) % K,
            "n_rows": 60,
            "provenance": {"seed": 3},
            **rest,
        },
    )


def made(kind="features", transform="standardize", **rest):
    distribution = latent()
    return DistributionalSet.of(plain(distribution, encoder_of(kind, transform), **rest), distribution)


# --- Use -----------------------------------------------------------------------------------------------------


@TRANSFORMS
@ENCODERS
def test_it_is_a_set_of_its_points(kind, transform):
    ds = made(kind, transform)
    same = plain(ds.distribution, encoder_of(kind, transform))
    assert isinstance(ds, DistilledSet)
    assert len(ds) == M
    assert ds.space == same.space == ("transformed" if transform == "zca-kip" else "input")
    torch.testing.assert_close(ds.transformed(), ds.distribution.points(), rtol=1e-12, atol=1e-12)
    assert torch.equal(ds.x, same.x)
    assert torch.equal(ds.y, same.y)
    assert ds.provenance == {"seed": 3}
    np.testing.assert_array_equal(ds.decision_function(rows()), same.decision_function(rows()))
    assert list(ds.hard_labels) == list("abcdabcd")
    assert repr(ds) == "DistributionalSet(8 latent-gaussians of 1x4x3, learned)"
    replaced = dataclasses.replace(ds, provenance={})
    assert isinstance(replaced, DistributionalSet)
    assert replaced.distribution is ds.distribution


def test_bytes_are_those_of_what_is_stored():
    ds = made()
    distribution = ds.distribution
    assert isinstance(distribution, LatentGaussians)
    stored = sum(value.nbytes for value in distribution.tensors().values())
    assert ds.storage() == {**distribution.storage(), "labels": M * K * 8}
    assert ds.storage().keys() == {"latents", "decoder", "labels"}
    assert ds.nbytes == stored + M * K * 8
    assert ds.nbytes != ds.x.nbytes + ds.y.nbytes
    assert ds.equivalent_images == ds.nbytes / (12 * 4)
    # Labels of half the size; the points are counted nowhere.
    assert made(storage="float32").nbytes == ds.nbytes - M * K * 4


@pytest.mark.parametrize("storage", ["float64", "float32", "float16"])
def test_points_are_made_from_the_distributions_whatever_the_storage_of_the_set(storage):
    ds = made(storage=storage)
    assert ds.x.dtype == torch.float64
    torch.testing.assert_close(ds.transformed(), ds.distribution.points(), rtol=1e-12, atol=1e-12)


class Known(Distribution):
    """Distributions whose sums are known: those of other rows than their points."""

    name = "known"
    input_shape = SHAPE

    def __len__(self):
        return M

    def points(self):
        return normal(0, "points", (M, *SHAPE))

    def draw(self, number, *, seed):
        return normal(seed, f"draw.{number}", (M, *SHAPE)).float()

    def rows(self):
        return normal(0, "rows", (M, *SHAPE))

    def statistics(self, encoder, targets, y):
        F = encoder.feature_map.features(self.rows())
        return Statistics(F.shape[1], targets.n_outputs, encoder, targets).add(F, y)

    def storage(self):
        return {"means": 8}

    def parameters(self):
        return {}

    def tensors(self):
        return {}

    @classmethod
    def restore(cls, parameters, tensors):
        return cls()

    @classmethod
    def joined(cls, parts):
        return cls()


def test_the_model_is_trained_on_known_sums_where_there_are_some():
    distribution = Known()
    ds = DistributionalSet.of(plain(distribution, encoder_of()), distribution)
    W, b = train(distribution.rows().flatten(1), ds.y, ds.distilled_ridge)
    X = rows().double()
    Z = ds.encoder.transform.forward(X).flatten(1).numpy()
    np.testing.assert_allclose(ds.decision_function(X), Z @ W + b, rtol=1e-9, atol=1e-9)
    # A kernel has no sums: the model is that of the points.
    kernel = encoder_of("kernel")
    with_kernel = DistributionalSet.of(plain(distribution, kernel), distribution)
    same = plain(distribution, kernel)
    np.testing.assert_array_equal(with_kernel.decision_function(rows()), same.decision_function(rows()))


# --- Draws ---------------------------------------------------------------------------------------------------


@TRANSFORMS
def test_samples_are_draws_in_the_units_of_the_points(transform):
    ds = made(transform=transform)
    n = 2 * M + 3
    X, y = ds.sample(n, seed=4)
    assert X.shape == (n, *SHAPE)
    assert X.dtype == torch.float32
    Z = torch.cat([ds.draw(number, seed=4) for number in range(3)])[:n]
    if ds.space == "input":
        wanted = ds.encoder.transform.inverse(Z.double())
        torch.testing.assert_close(X.double(), wanted, rtol=1e-6, atol=1e-6)
        assert 20 < X.mean() < 230
    else:
        assert torch.equal(X, Z)
    assert torch.equal(y, torch.cat([ds.y, ds.y, ds.y[:3]]))


def test_samples_are_a_function_of_the_seed_and_begin_alike():
    ds = made()
    X, y = ds.sample(20, seed=1)
    again, _ = ds.sample(20, seed=1)
    assert torch.equal(X, again)
    for n in (1, M, M + 1):
        fewer, labels = ds.sample(n, seed=1)
        assert torch.equal(fewer, X[:n])
        assert torch.equal(labels, y[:n])
    other, _ = ds.sample(20, seed=2)
    assert ((other - X).flatten(1).norm(dim=1) > 1e-3).all()
    assert ((X[:M] - X[M : 2 * M]).flatten(1).norm(dim=1) > 1e-3).all()
    assert torch.equal(ds.sample(3)[0], ds.sample(3, seed=0)[0])
    for n in (0, -1, 2.5):
        with pytest.raises(ValueError, match="`n` must be an integer of at least 1"):
            ds.sample(n)


# --- Files ---------------------------------------------------------------------------------------------------


@TRANSFORMS
@ENCODERS
@pytest.mark.parametrize("reader", [DistilledSet, DistributionalSet])
def test_a_file_gives_the_same_set(kind, transform, reader, tmp_path):
    ds = made(kind, transform)
    ds.save(tmp_path / "set")
    again = reader.load(tmp_path / "set")
    assert isinstance(again, DistributionalSet)
    assert torch.equal(again.x, ds.x)
    assert torch.equal(again.y, ds.y)
    assert again.labels is not None
    assert torch.equal(again.labels, ds.labels)
    for name in (
        "space",
        "distilled_ridge",
        "intercept",
        "certificate",
        "class_names",
        "provenance",
        "targets",
    ):
        assert getattr(again, name) == getattr(ds, name)
    assert again.storage() == ds.storage()
    np.testing.assert_array_equal(again.decision_function(rows()), ds.decision_function(rows()))
    np.testing.assert_array_equal(again.predict(rows()), ds.predict(rows()))
    assert torch.equal(again.draw(2, seed=3), ds.draw(2, seed=3))
    assert torch.equal(again.sample(11, seed=1)[0], ds.sample(11, seed=1)[0])
    with pytest.raises(FileExistsError, match="force"):
        ds.save(tmp_path / "set")
    again.save(tmp_path / "set", force=True)


def test_parts_and_a_set_without_labels_come_back(tmp_path):
    joined = LatentGaussians.joined([latent(0), latent(1, 5)])
    ds = DistributionalSet.of(plain(joined, encoder_of(), labels=None), joined)
    ds.save(tmp_path / "set")
    again = DistilledSet.load(tmp_path / "set")
    assert isinstance(again, DistributionalSet)
    assert again.labels is None
    assert len(again) == M + 5
    assert torch.equal(again.x, ds.x)
    assert again.storage() == ds.storage()


def test_a_file_holds_what_is_counted_and_no_points(tmp_path):
    ds, path = made(), tmp_path / "set"
    ds.save(path)
    (header,) = struct.unpack("<Q", path.read_bytes()[:8])
    assert ds.labels is not None
    encoder = sum(value.nbytes for value in ds.encoder.tensors().values())
    assert path.stat().st_size == 8 + header + ds.nbytes + encoder + ds.labels.nbytes
    _, tensors = read_file(path, "distributional-set")
    assert not any(name == "x" or value.shape[1:] == SHAPE for name, value in tensors.items())


def change(path, header=None, tensors=None):
    """Write the file again with other entries; None takes one away."""
    document, arrays = read_file(path, "distributional-set")
    document = json.loads(json.dumps(document))
    for target, changes in ((document, header or {}), (arrays, tensors or {})):
        for name, value in changes.items():
            if value is None:
                del target[name]
            else:
                target[name] = value
    write_file(path, "distributional-set", document, arrays, force=True)


DISTRIBUTION = {"name": "latent-gaussians", "parameters": {"parts": []}}


@pytest.mark.parametrize(
    ("header", "tensors", "message"),
    [
        ({"distribution": None}, {}, "not a consistent distributional set: KeyError"),
        ({"distribution": "latent"}, {}, "not a consistent distributional set: TypeError"),
        ({"distribution": {"name": "latent-gaussians"}}, {}, "not a consistent distributional set"),
        ({"distribution": {"name": "latent-gaussians", "parameters": {}}}, {}, "not a consistent"),
        ({"distribution": {**DISTRIBUTION, "name": "other"}}, {}, "unknown kind of distribution 'other'"),
        ({"distribution": DISTRIBUTION}, {}, "no decoders"),
        ({}, {"distribution.0.means": None}, "needs 'means'"),
        ({}, {"distribution.0.means": torch.zeros(5, 3)}, "need log-variances of that shape"),
        ({}, {"distribution.0.log_variances": torch.full((M, 3), np.nan)}, "holds a NaN"),
        ({}, {"distribution.more": torch.zeros(1)}, "of no part"),
        ({}, {"y": None}, "not a consistent distilled set"),
        ({}, {"y": torch.zeros(M - 1, K)}, r"labels \(7, 4\)"),
        ({}, {"y": torch.zeros(M, K + 1)}, r"labels \(8, 5\)"),
        ({"space": None}, {}, "not a consistent distilled set"),
        ({"space": "transformed"}, {}, "in the space 'input' with the transform 'standardize'"),
        ({"space": "features"}, {}, "inconsistent: points"),
        ({"encoder": None}, {}, "not a consistent distilled set"),
    ],
)
def test_inconsistent_files_are_refused(header, tensors, message, tmp_path):
    path = tmp_path / "set"
    made().save(path)
    change(path, header, tensors)
    with pytest.raises(ValueError, match=message):
        DistilledSet.load(path)


def test_the_kinds_of_sets_are_told_apart(tmp_path):
    ds = made()
    plain(ds.distribution, encoder_of()).save(tmp_path / "plain")
    assert type(DistilledSet.load(tmp_path / "plain")) is DistilledSet
    with pytest.raises(ValueError, match=r"holds 'distilled-set' .*, expected 'distributional-set'"):
        DistributionalSet.load(tmp_path / "plain")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        DistilledSet.load(tmp_path / "none")
    ds.save(tmp_path / "set")
    data = (tmp_path / "set").read_bytes()
    for length in (0, 7, 100, len(data) - 1):
        (tmp_path / "cut").write_bytes(data[:length])
        with pytest.raises(ValueError, match="cannot be read as a safetensors file"):
            DistilledSet.load(tmp_path / "cut")


# --- What does not go together -------------------------------------------------------------------------------


def test_parts_that_do_not_go_together_are_refused():
    ds = made()
    points = plain(ds.distribution, encoder_of())
    with pytest.raises(ValueError, match="got 5 distributions, 8 points and 8 rows"):
        DistributionalSet.of(points, latent(m=5))
    with pytest.raises(ValueError, match="8 points and 7 rows"):
        dataclasses.replace(ds, y=ds.y[:7])
    with pytest.raises(ValueError, match=r"over inputs of \(1, 3, 4\) do not go with points of \(1, 4, 3\)"):
        DistributionalSet.of(points, latent(shape=(1, 3, 4)))
    with pytest.raises(ValueError, match=r"do not go with points of \(12,\)"):
        dataclasses.replace(ds, x=ds.x.flatten(1))
    with pytest.raises(ValueError, match=r"points of the set are not those of the distributions: .* up to"):
        DistributionalSet.of(points, latent(seed=1))
    with pytest.raises(ValueError, match="not those of the distributions"):
        DistributionalSet.of(dataclasses.replace(points, x=points.x * np.nan), ds.distribution)
    with pytest.raises(
        ValueError, match="in the space 'input' with the transform 'standardize', got 'features'"
    ):
        DistributionalSet.of(dataclasses.replace(points, space="features"), ds.distribution)
