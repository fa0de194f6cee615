"""Merged sets: points as they were, labels among all classes, the map of who has which, and what is refused."""

import dataclasses

import numpy as np
import pytest
import torch

from kernel_distill.solver.certificate import Status
from kernel_distill.solver.decoder_spec import decoder_spec
from kernel_distill.solver.decoders import build_decoder, calibrate
from kernel_distill.solver.distilled_set import DistilledSet
from kernel_distill.solver.distributional_set import DistributionalSet
from kernel_distill.solver.distributions.gaussians import Gaussians
from kernel_distill.solver.distributions.latent import LatentGaussians
from kernel_distill.solver.encoder import Encoder
from kernel_distill.solver.feature_maps import make_feature_map
from kernel_distill.solver.feature_maps.random_conv import RandomConv
from kernel_distill.solver.kernel_encoder import KernelEncoder
from kernel_distill.solver.kernel_functions import make_kernel_function
from kernel_distill.solver.learned_set import learned_set
from kernel_distill.solver.merge import merge_sets
from kernel_distill.solver.targets import Targets
from kernel_distill.solver.transforms import make_transform

SHAPE, PER_CLASS = (1, 8, 8), 2
STANDARD = make_transform(
    "standardize",
    lambda: [torch.randn(20, *SHAPE, generator=torch.Generator().manual_seed(9)) * 3 + 1],
    SHAPE,
)
NONE = make_transform("none", lambda: [], SHAPE)
BLOCKS = ((0, 1, 2), (3, 4), (5, 6))
CONV = RandomConv(SHAPE, width=3, depth=1, n_networks=2)
FOURIER = make_feature_map("fourier", SHAPE, params={"n_features": 30, "length_scale": 8.0})


def points(classes):
    """Transformed points of these classes, each the same whichever others are there."""
    made = [
        torch.randn(PER_CLASS, *SHAPE, generator=torch.Generator().manual_seed(c), dtype=torch.float64)
        for c in classes
    ]
    return torch.cat(made)


def of_points(classes, *, kind="centred", labels=None, transform=STANDARD, feature_map=CONV, **options):
    """A set as the methods for networks leave it."""
    k, m = len(classes), PER_CLASS * len(classes)
    names = options.pop("class_names", tuple(f"class {c}" for c in classes))
    options = {
        "relative_ridge": 1e-2,
        "n_rows": 10 * m,
        "data_range": (-3.0, 3.0),
        "notes": ["judged"],
    } | options
    own = torch.arange(k).repeat_interleave(PER_CLASS)
    targets = Targets(kind, k, tuple(classes if labels is None else labels))
    return learned_set(
        Encoder(transform, feature_map),
        targets,
        points(classes),
        targets.encode([targets.classes[index] for index in own.tolist()]),
        labels=own,
        class_names=names,
        **{
            "provenance": {"options": {"method": "dm", "near": "data"}, "seed": 0, "run": {"steps": k}},
            **options,
        },
    )


def gaussians(classes, *, feature_map=FOURIER, ridge=0.1, **options):
    """A set of Gaussians whose model follows from their moments."""
    ds = of_points(classes, transform=NONE, feature_map=feature_map, **options)
    m = len(ds)
    weights = torch.tensor([1.0 + c for c in classes for _ in range(PER_CLASS)], dtype=torch.float64)
    variances = torch.full((m, 64), 0.25, dtype=torch.float64)
    made = Gaussians(ds.x, weights, [torch.zeros(64, 0, dtype=torch.float64)] * m, variances)
    return DistributionalSet.of(dataclasses.replace(ds, distilled_ridge=ridge), made)


def latent(classes, *, seed=0, **options):
    """A set of latent Gaussians with a decoder of its own."""
    spec = decoder_spec("small", SHAPE, width=8, latent_dim=3)
    decoder = build_decoder(spec, seed)
    m = PER_CLASS * len(classes)
    means = torch.randn(m, 3, generator=torch.Generator().manual_seed(seed))
    calibrate(decoder, [means])
    made = LatentGaussians.of(spec, decoder.state_dict(), means, torch.zeros(m, 3))
    ds = of_points(classes, **options)
    x = ds.encoder.transform.inverse(made.points()) if ds.encoder.transform.bijective else made.points()
    return DistributionalSet.of(dataclasses.replace(ds, x=x, y=ds.y.float()), made)


KINDS = {"points": of_points, "gaussians": gaussians, "latent": latent}


def same(one, other):
    """Whether two sets are equal, up to the rounding of labels and ridge."""
    assert torch.equal(one.x, other.x)
    np.testing.assert_allclose(one.y, other.y, rtol=0, atol=1e-15 if one.y.dtype == torch.float64 else 1e-7)
    assert torch.equal(one.labels, other.labels)
    assert (one.targets, one.class_names, one.space) == (other.targets, other.class_names, other.space)
    assert one.distilled_ridge == pytest.approx(other.distilled_ridge, rel=1e-12)


@pytest.mark.parametrize("kind", ["points", "gaussians"])
@pytest.mark.parametrize("targets", ["centred", "one-hot"])
def test_merged_blocks_are_the_whole_set(kind, targets):
    whole = KINDS[kind](sum(BLOCKS, ()), kind=targets)
    merged = merge_sets([KINDS[kind](block, kind=targets) for block in BLOCKS])
    same(merged, whole)
    assert type(merged) is type(whole)
    raw = torch.randn(30, *SHAPE, generator=torch.Generator().manual_seed(77)).numpy()
    np.testing.assert_allclose(
        merged.decision_function(raw), whole.decision_function(raw), rtol=0, atol=1e-10
    )
    ours, theirs = merged.certificate, whole.certificate
    assert ours.n_rows == theirs.n_rows
    assert ours.max_abs_x == theirs.max_abs_x
    if kind == "points":
        assert ours.rank == theirs.rank
        assert ours.condition == pytest.approx(theirs.condition, rel=1e-9)
        assert ours.out_of_range == pytest.approx(theirs.out_of_range, abs=1e-15)
    assert (ours.heldout_score, ours.heldout_rows, ours.steps) == (None, None, None)


@pytest.mark.parametrize("kind", KINDS)
def test_any_order_and_any_grouping_give_the_same(kind):
    first, second, third = (KINDS[kind](block) for block in BLOCKS)
    merged = merge_sets([first, second, third])
    for other in (
        merge_sets([third, first, second]),
        merge_sets([merge_sets([first, second]), third]),
        merge_sets([merge_sets([third, second]), first]),
    ):
        same(other, merged)
        assert other.provenance == merged.provenance
        assert other.certificate.notes == merged.certificate.notes
        if kind != "points":
            for number in (0, 3):
                assert torch.equal(other.draw(number, seed=1), merged.draw(number, seed=1))


def test_classes_of_a_set_need_not_be_neighbours():
    odd, even = of_points((1, 3)), of_points((0, 2, 4))
    merged = merge_sets([odd, even])
    assert merged.targets == Targets("centred", 5, (0, 1, 2, 3, 4))
    assert merged.hard_labels.tolist() == [0, 0, 2, 2, 4, 4, 1, 1, 3, 3]
    assert torch.equal(merged.x, torch.cat([even.x, odd.x]))
    expected = np.eye(5)[merged.hard_labels] - 1 / 5
    np.testing.assert_allclose(merged.y, expected, rtol=0, atol=1e-15)
    assert merged.class_names == tuple(f"class {c}" for c in range(5))


@pytest.mark.parametrize("kind", ["centred", "one-hot"])
def test_soft_labels_keep_their_probabilities(kind):
    blocks, probabilities = ((0, 1, 2), (3, 4)), []
    sets = []
    for block in blocks:
        p = torch.rand(2 * len(block), len(block), generator=torch.Generator().manual_seed(block[0])).double()
        p /= p.sum(1, keepdim=True)
        probabilities.append(p)
        y = p - 1 / len(block) if kind == "centred" else p
        sets.append(dataclasses.replace(of_points(block, kind=kind), y=y))
    merged = merge_sets(sets)
    expected = torch.block_diag(*probabilities) - (1 / 5 if kind == "centred" else 0)
    np.testing.assert_allclose(merged.y, expected, rtol=0, atol=1e-15)


def test_the_label_map_says_whose_points_are_whose():
    sets = [of_points(block, heldout_score=0.5 + block[0] / 100, heldout_rows=7) for block in BLOCKS]
    merged = merge_sets(sets)
    assert merged.provenance["options"] == {"method": "dm", "near": "data"}
    assert merged.provenance["seed"] == 0
    assert "run" not in merged.provenance
    entries = merged.provenance["subtasks"]
    assert [entry["classes"] for entry in entries] == [list(block) for block in BLOCKS]
    assert [entry["points"] for entry in entries] == [[0, 6], [6, 10], [10, 14]]
    for entry, ds in zip(entries, sets, strict=True):
        first, last = entry["points"]
        assert torch.equal(merged.x[first:last], ds.x)
        assert entry["class_names"] == list(ds.class_names)
        assert entry["provenance"] == ds.provenance
        assert entry["certificate"] == ds.certificate.model_dump(mode="json")
        others = [c for c in range(7) if c not in entry["classes"]]
        np.testing.assert_allclose(merged.y[first:last][:, others], -1 / 7, rtol=0, atol=1e-16)
    notes = merged.certificate.notes
    assert notes.count("judged") == 1
    assert any("0.5000 (classes 0 to 2), 0.5300 (classes 3 to 4), 0.5500" in note for note in notes)


def test_what_one_part_alone_says_is_said_of_it():
    merged = merge_sets([of_points((0, 1), notes=["both", "slow"]), of_points((2, 3), notes=["both"])])
    assert merged.certificate.notes[1:] == ("both", "classes 0 to 1: slow")


def test_classes_that_lie_apart_are_named_one_by_one():
    sets = [of_points(block, heldout_score=0.5) for block in ((0, 2), (1,), (3, 4, 5))]
    notes = merge_sets(sets).certificate.notes
    assert any("0.5000 (classes 0, 2), 0.5000 (class 1), 0.5000 (classes 3 to 5)" in note for note in notes)


@pytest.mark.parametrize("entries", [3, [{"classes": [2, 3]}], {"a": 1}])
def test_a_value_that_is_no_label_map_is_refused(entries):
    ds = of_points((2, 3))
    other = dataclasses.replace(ds, provenance={**ds.provenance, "subtasks": entries})
    with pytest.raises(ValueError, match="no label map"):
        merge_sets([of_points((0, 1)), other])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("transform", [STANDARD, NONE])
def test_a_merged_set_comes_back_from_its_file(kind, transform, tmp_path):
    options = {} if kind == "gaussians" else {"transform": transform}
    merged = merge_sets([KINDS[kind](block, **options) for block in BLOCKS])
    merged.save(tmp_path / "set.safetensors")
    again = DistilledSet.load(tmp_path / "set.safetensors")
    assert type(again) is type(merged)
    same(again, merged)
    assert (again.provenance, again.certificate) == (merged.provenance, merged.certificate)
    raw = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(1)).numpy()
    np.testing.assert_array_equal(again.decision_function(raw), merged.decision_function(raw))


@pytest.mark.parametrize("storage", ["float32", "float16", "uint8"])
def test_points_stay_in_the_type_they_are_stored_in(storage):
    merged = merge_sets([of_points(block, storage=storage) for block in BLOCKS])
    assert merged.x.dtype == getattr(torch, storage)
    assert merged.y.dtype == torch.float32


def test_distributions_stay_what_they_are():
    parts = [latent(block, seed=number) for number, block in enumerate(BLOCKS)]
    merged = merge_sets(parts)
    drawn = merged.draw(2, seed=5)
    assert drawn.shape == (14, *SHAPE)
    assert torch.equal(merged.distribution.points(), torch.cat([ds.distribution.points() for ds in parts]))
    assert merged.storage()["decoder"] == sum(ds.storage()["decoder"] for ds in parts)
    assert merged.nbytes > sum(ds.nbytes for ds in parts)  # labels are over all classes


def test_different_ridges():
    first, second = of_points((0, 1), relative_ridge=1e-3), of_points((2, 3, 4), relative_ridge=1e-1)
    merged = merge_sets([first, second])
    assert merged.distilled_ridge == pytest.approx(
        (4 * first.distilled_ridge + 6 * second.distilled_ridge) / 10
    )
    assert merged.certificate.distilled_ridge == merged.distilled_ridge
    assert merge_sets([first, second], ridge=0.25).distilled_ridge == 0.25
    sums = [gaussians((0, 1), ridge=0.1), gaussians((2, 3), ridge=0.2)]
    with pytest.raises(ValueError, match=r"different ridges, 0.1, 0.2.*give `ridge`"):
        merge_sets(sums)
    assert merge_sets(sums, ridge=0.3).distilled_ridge == 0.3
    assert merge_sets([sums[0], gaussians((2, 3), ridge=0.1)]).distilled_ridge == 0.1


def test_different_feature_maps():
    other = RandomConv(SHAPE, width=3, depth=1, n_networks=2, seed=1)
    merged = merge_sets([of_points((0, 1)), of_points((2, 3), feature_map=other)])
    assert merged.encoder.feature_map.seed == 0
    assert "those of the first" in merged.certificate.notes[-1]
    fourier = make_feature_map("fourier", SHAPE, seed=1, params={"n_features": 30, "length_scale": 8.0})
    with pytest.raises(ValueError, match="feature maps differ"):
        merge_sets([gaussians((0, 1)), gaussians((2, 3), feature_map=fourier)])


def test_names_of_classes():
    named, unnamed = of_points((0, 1)), of_points((2, 3), class_names=None)
    assert merge_sets([named, unnamed]).class_names is None
    assert merge_sets([named, unnamed], class_names=tuple("abcd")).class_names == tuple("abcd")
    with pytest.raises(ValueError, match="3 class names for 4 classes"):
        merge_sets([named, unnamed], class_names=tuple("abc"))
    strings = [of_points((0, 1), labels=("cat", "dog")), of_points((2, 3), labels=("ant", "bee"))]
    assert merge_sets(strings).targets.classes == ("ant", "bee", "cat", "dog")


def test_points_without_classes():
    soft = dataclasses.replace(of_points((2, 3)), labels=None)
    assert merge_sets([of_points((0, 1)), soft]).labels is None


def test_statuses():
    both = [gaussians((0, 1)), gaussians((2, 3))]
    fitted = [
        dataclasses.replace(ds, certificate=ds.certificate.model_copy(update={"status": Status.MOMENTS}))
        for ds in both
    ]
    assert merge_sets(fitted).certificate.status is Status.MOMENTS
    assert merge_sets([both[0], fitted[1]]).certificate.status is Status.LEARNED


def of_method(name, **changes):
    return dataclasses.replace(of_points((2, 3)), provenance={"options": {"method": name}}, **changes)


def kernel_set():
    ds = of_points((2, 3), transform=NONE)
    kernel = make_kernel_function("gaussian", SHAPE, seed=0, sample=lambda: ds.x, params={})
    return dataclasses.replace(ds, encoder=KernelEncoder(NONE, kernel))


def in_feature_space():
    ds = of_points((2, 3))
    return dataclasses.replace(ds, x=ds.features(), space="features")


REFUSED = {
    "one": (lambda: [of_points((0, 1))], "two or more sets, got 1"),
    "none": (lambda: [], "two or more"),
    "classes": (lambda: [of_points((0, 1)), of_points((1, 2))], "more than one set has class 1"),
    "closed form": (
        lambda: [of_points((0, 1)), of_method("closed-form")],
        "merge those .collect_statistics.",
    ),
    "unknown": (lambda: [of_points((0, 1)), of_method(None)], "of method None"),
    "kip": (lambda: [of_points((0, 1)), kernel_set()], "has a kernel.*all of its points together"),
    "features": (lambda: [of_points((0, 1)), in_feature_space()], "lives in feature space"),
    "kinds": (lambda: [of_points((0, 1)), latent((2, 3))], "of one kind and storage"),
    "distributions": (lambda: [gaussians((0, 1)), latent((2, 3), transform=NONE)], "of one kind and storage"),
    "storage": (lambda: [of_points((0, 1)), of_points((2, 3), storage="uint8")], "of one kind and storage"),
    "encoding": (lambda: [of_points((0, 1)), of_points((2, 3), kind="one-hot")], "one encoding of targets"),
    "intercept": (
        lambda: [of_points((0, 1)), dataclasses.replace(of_points((2, 3)), intercept=True)],
        "all an intercept or none",
    ),
    "transform": (
        lambda: [of_points((0, 1)), of_points((2, 3), transform=NONE)],
        "different transforms.*transform=first.encoder.transform",
    ),
    "labels": (lambda: [of_points((0, 1)), of_points((2, 3), labels=("a", "b"))], "numbers, those of others"),
    "regression": (
        lambda: [of_points((0, 1)), dataclasses.replace(of_points((2, 3)), targets=Targets("values", 2))],
        "for regression has no classes",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_merged_is_refused(case):
    sets, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        merge_sets(sets())


@pytest.mark.parametrize("ridge", [-1.0, float("nan")])
def test_a_ridge_is_a_number(ridge):
    with pytest.raises(ValueError, match="ridge"):
        merge_sets([of_points((0, 1)), of_points((2, 3))], ridge=ridge)
