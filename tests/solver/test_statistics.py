"""Statistics are sums: they merge, forget, shuffle and travel without losing anything."""

import copy
import itertools
import json
import pickle

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings, strategies as st

from kernel_distill import collect_statistics, distill, distill_statistics
from kernel_distill.solver.encoder import Encoder
from kernel_distill.solver.feature_maps import Identity as IdentityMap
from kernel_distill.solver.statistics import Statistics
from kernel_distill.solver.targets import Targets
from kernel_distill.solver.transforms import Identity

from ..cases import INVERTIBLE, D, K, one_hot, params_of, problem, relative

SUMS = ("gram", "cross", "feature_sum", "target_sum", "target_square")
# Sums of a few hundred terms of size one, in two orders.
CLOSE = 1e-12


def rows(n=60, p=D, k=K, seed=0):
    rng = np.random.default_rng(seed)
    return (
        torch.from_numpy(rng.normal(size=(n, p))),
        torch.from_numpy(rng.normal(size=(n, k))),
        torch.from_numpy(rng.uniform(0, 2, n)),
    )


def collected(F, Y, w=None):
    return Statistics(F.shape[1], Y.shape[1]).add(F, Y, w)


def distance(a, b):
    """Largest error of a sum, relative to the sum's largest entry."""
    worst = max(
        float((getattr(a, name) - getattr(b, name)).abs().max())
        / max(float(getattr(b, name).abs().max()), 1.0)
        for name in SUMS
    )
    assert a.count == b.count
    return max(worst, abs(a.weight - b.weight) / max(b.weight, 1.0))


@pytest.mark.parametrize("weighted", [False, True], ids=["equal", "weights"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_sums_equal_numpy(weighted, dtype):
    F, Y, w = rows()
    F = F.to(dtype)
    found = collected(F, Y, w if weighted else None)
    F, Y, w = F.double().numpy(), Y.numpy(), w.numpy() if weighted else np.ones(60)
    assert relative(found.gram, (w[:, None] * F).T @ F) < CLOSE
    assert relative(found.cross, (w[:, None] * F).T @ Y) < CLOSE
    assert relative(found.feature_sum, w @ F) < CLOSE
    assert relative(found.target_sum, w @ Y) < CLOSE
    assert relative(found.target_square, w @ Y**2) < CLOSE
    assert found.weight == pytest.approx(w.sum(), rel=CLOSE)
    assert found.count == 60
    assert torch.equal(found.gram, found.gram.T)


@settings(max_examples=40, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 60), max_size=5),
    order=st.integers(0, 2**31),
    weighted=st.booleans(),
    tree=st.booleans(),
)
def test_shards_in_any_cut_and_order_add_up_to_the_whole(cuts, order, weighted, tree):
    F, Y, w = rows()
    w = w if weighted else None
    whole = collected(F, Y, w)
    edges = [0, *sorted(cuts), 60]
    index = torch.from_numpy(np.random.default_rng(order).permutation(60))
    shards = [
        collected(F[index[a:b]], Y[index[a:b]], None if w is None else w[index[a:b]])
        for a, b in itertools.pairwise(edges)
    ]
    if tree:  # merged in pairs, as a cluster would
        while len(shards) > 1:
            shards = [
                *(a + b for a, b in zip(shards[::2], shards[1::2], strict=False)),
                *shards[len(shards) & ~1 :],
            ]
        merged = shards[0]
    else:
        merged = Statistics(D, K)
        for shard in shards:
            merged = merged + shard
    assert distance(merged, whole) < CLOSE


@settings(max_examples=25, deadline=None)
@given(cut=st.integers(0, 60), weighted=st.booleans())
def test_a_shard_taken_away_leaves_the_rest(cut, weighted):
    F, Y, w = rows()
    w = w if weighted else None
    a, b = (
        collected(F[part], Y[part], None if w is None else w[part])
        for part in (slice(0, cut), slice(cut, None))
    )
    assert distance((a + b) - a, b) < CLOSE
    assert distance(collected(F, Y, w) - b, a) < CLOSE


def test_merging_changes_neither_part():
    F, Y, _ = rows()
    a, b = collected(F[:20], Y[:20]), collected(F[20:], Y[20:])
    before = [getattr(part, name).clone() for part in (a, b) for name in SUMS]
    _ = a + b, b - a
    (a + b).add(F, Y)
    assert all(
        torch.equal(x, getattr(p, name))
        for x, (p, name) in zip(before, [(q, n) for q in (a, b) for n in SUMS], strict=True)
    )
    assert (a.count, b.count) == (20, 40)


@pytest.mark.parametrize("read", ["", "first", "second", "both"])
def test_merging_in_place_is_adding(read):
    """Whether or not triangles were mirrored before."""
    F, Y, w = rows(60, 40)
    parts = [collected(F[part], Y[part], w[part]) for part in (slice(0, 25), slice(25, None))]
    other = collected(F[25:], Y[25:], w[25:])
    wanted = collected(F[:25], Y[:25], w[:25]) + other
    for name, part in zip(("first", "second"), parts, strict=True):
        if read in (name, "both"):
            _ = part.gram
    merged = parts[0].merge_(parts[1])
    assert merged is parts[0]
    assert distance(merged, wanted) == 0
    assert torch.equal(merged.gram, merged.gram.T)
    assert distance(parts[1], other) == 0
    assert distance(collected(F, Y).merge_(Statistics(40, K)), collected(F, Y)) == 0
    assert distance(Statistics(40, K).merge_(collected(F, Y)), collected(F, Y)) == 0


def test_statistics_travel_between_processes():
    F, Y, _ = rows(60, 40)
    first = collected(F.float(), Y)
    first.left_out = ("a",)
    payload = pickle.dumps(first)
    assert len(payload) < 8 * 40 * 60  # the sums, without the batch that was converted
    again = pickle.loads(payload)
    assert again.left_out == ("a",)
    assert distance(again, first) == 0
    assert distance(again.add(F, Y), first + collected(F, Y)) < CLOSE
    buffers = []
    inline = pickle.dumps(first, protocol=5, buffer_callback=buffers.append)
    assert len(inline) < 2000  # everything large is shared, not copied
    frozen = pickle.loads(inline, buffers=[bytes(buffer.raw()) for buffer in buffers])
    assert distance(frozen.merge_(first), first + first) == 0
    assert distance(copy.deepcopy(first), first) == 0


def test_adding_goes_on_after_reading():
    """The triangle is mirrored when it is read; more rows may come afterwards."""
    F, Y, _ = rows(60, 40)
    parts = Statistics(40, K)
    for start in range(0, 60, 20):
        parts.add(F[start : start + 20], Y[start : start + 20])
        assert torch.equal(parts.gram, parts.gram.T)
    assert distance(parts, collected(F, Y)) < CLOSE


def test_repeated_rows_equal_integer_weights():
    F, Y, _ = rows()
    counts = torch.arange(60) % 4
    repeated = collected(F.repeat_interleave(counts, 0), Y.repeat_interleave(counts, 0))
    weighted = collected(F, Y, counts.double())
    for name in (*SUMS, "weight"):
        assert relative(getattr(weighted, name), getattr(repeated, name)) < CLOSE


# --- Refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        pytest.param(
            ((5, D + 1), (5, K)), rf"expected features \(b, {D}\) and targets \(b, {K}\)", id="features"
        ),
        pytest.param(((5, D), (5, K + 1)), rf"expected features \(b, {D}\)", id="targets"),
        pytest.param(((5, D), (4, K)), rf"expected features \(b, {D}\)", id="rows"),
        pytest.param(((5, D), (5,)), rf"expected features \(b, {D}\)", id="vector"),
    ],
)
def test_shapes_of_rows_are_checked(shapes, message):
    statistics = Statistics(D, K)
    with pytest.raises(ValueError, match=message):
        statistics.add(*(torch.ones(shape, dtype=torch.float64) for shape in shapes))
    assert statistics.count == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_features_that_are_not_finite_are_refused_by_row(value):
    F, Y, _ = rows()
    statistics = collected(F, Y)
    G = F.clone()
    G[7, 3] = value
    with pytest.raises(
        ValueError, match=rf"`features` holds {'NaN' if value != value else 'infinity'} in row 67"
    ):
        statistics.add(G, Y)
    assert distance(statistics, collected(F, Y)) == 0


@pytest.mark.parametrize("shape", [(1,), (59,), (60, 1)], ids=str)
def test_weights_of_another_shape_are_refused_and_nothing_is_added(shape):
    F, Y, _ = rows()
    statistics = collected(F, Y)
    with pytest.raises(ValueError, match="weight"):
        statistics.add(F, Y, torch.ones(shape, dtype=torch.float64))
    assert distance(statistics, collected(F, Y)) == 0


def test_float32_weights_are_weights():
    F, Y, w = rows()
    assert distance(collected(F, Y, w.float()), collected(F, Y, w.float().double())) < CLOSE


def encoded(feature_map=None, transform=None, targets=None):
    encoder = Encoder(transform or Identity((D,)), feature_map or IdentityMap((D,)))
    targets = targets or Targets("one-hot", K, (0, 1, 2, 3))
    return Statistics(encoder.feature_map.n_features, targets.n_outputs, encoder, targets)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        pytest.param(lambda: Statistics(D + 1, K), "statistics of shapes .* do not merge", id="features"),
        pytest.param(
            lambda: encoded(targets=Targets("centred", K, (0, 1, 2, 3))), "different targets", id="centred"
        ),
        pytest.param(
            lambda: encoded(targets=Targets("one-hot", K, (0, 1, 2, 5))), "different targets", id="classes"
        ),
        pytest.param(
            lambda: encoded(INVERTIBLE["fcnn-1"].make()), "different encoders do not merge", id="map"
        ),
        pytest.param(
            lambda: Statistics(D, K, targets=Targets("one-hot", K, (0, 1, 2, 3))),
            "different encoders",
            id="no-encoder",
        ),
    ],
)
@pytest.mark.parametrize("sign", ["+", "-"])
def test_statistics_of_different_things_do_not_merge(other, message, sign):
    first = encoded()
    with pytest.raises(ValueError, match=message):
        _ = first + other() if sign == "+" else first - other()


def test_maps_of_other_seeds_do_not_merge():
    first, second = (encoded(INVERTIBLE["fourier-gaussian"].make(seed)) for seed in (0, 1))
    with pytest.raises(ValueError, match="pass those of the first shard on"):
        _ = first + second
    assert (first + encoded(INVERTIBLE["fourier-gaussian"].make(0))).count == 0


def test_transforms_of_other_data_do_not_merge():
    X, y = problem()
    first, second = (
        collect_statistics(X[part], y[part], feature_map="identity", transform="standardize", n_classes=K)
        for part in (slice(0, 100), slice(100, None))
    )
    with pytest.raises(ValueError, match="different encoders do not merge"):
        _ = first + second


def test_more_rows_than_there_are_cannot_be_taken_away():
    F, Y, _ = rows()
    with pytest.raises(ValueError, match="cannot take 60 rows away from statistics of 20"):
        _ = collected(F[:20], Y[:20]) - collected(F, Y)


# --- Files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", params_of(INVERTIBLE))
@pytest.mark.parametrize("transform", ["none", "standardize"])
def test_saved_statistics_come_back_bit_for_bit(case, transform, tmp_path):
    X, y = problem()
    X = case.inputs(X)
    weight = np.random.default_rng(0).uniform(0, 2, len(X))
    first = collect_statistics(
        X,
        y,
        feature_map=case.name,
        feature_params=case.params,
        transform=transform,
        sample_weight=weight,
        seed=3,
    )
    first.save(tmp_path / "statistics.safetensors")
    again = Statistics.load(tmp_path / "statistics.safetensors")
    for name in SUMS:
        assert torch.equal(getattr(again, name), getattr(first, name))
    assert (again.weight, again.count, again.targets) == (first.weight, first.count, first.targets)
    assert again.encoder.digest() == first.encoder.digest()
    Z = torch.from_numpy(X[:5])
    assert torch.equal(again.encoder(Z), first.encoder(Z))
    assert distance(again + first, first + first) == 0


def test_statistics_without_encoder_come_back(tmp_path):
    F, Y, w = rows()
    first = collected(F, Y, w)
    first.save(tmp_path / "a")
    again = Statistics.load(tmp_path / "a")
    assert distance(again, first) == 0
    assert (again.encoder, again.targets) == (None, None)


def test_what_was_left_out_adds_up_and_is_stored(tmp_path):
    F, Y, _ = rows()
    a, b, c = (collected(F[i : i + 20], Y[i : i + 20]) for i in (0, 20, 40))
    a.left_out, b.left_out = ("x: NaN", "y: short"), ("y: short", "z: gone")
    assert (a + b + c).left_out == ("x: NaN", "y: short", "z: gone")
    assert ((a + b) - b).left_out == ("x: NaN", "y: short", "z: gone")
    assert a.left_out == ("x: NaN", "y: short")
    (a + b).save(tmp_path / "a")
    assert Statistics.load(tmp_path / "a").left_out == (a + b).left_out


def test_files_say_nothing_of_shards_where_none_was_left_out(tmp_path):
    F, Y, _ = rows()
    collected(F, Y).save(tmp_path / "a")
    with safetensors.safe_open(tmp_path / "a", framework="pt") as file:
        header = json.loads(file.metadata()["kernel_distill"])
    assert sorted(header) == ["count", "format", "kind", "version", "weight"]
    assert Statistics.load(tmp_path / "a").left_out == ()


def test_an_existing_file_is_replaced_by_force_only(tmp_path):
    F, Y, _ = rows()
    path = tmp_path / "a"
    collected(F, Y).save(path)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="exists: choose another name, or force"):
        collected(F[:3], Y[:3]).save(path)
    assert path.read_bytes() == before
    collected(F[:3], Y[:3]).save(path, force=True)
    assert Statistics.load(path).count == 3


def test_a_distilled_set_is_not_statistics(tmp_path):
    X, y = problem()
    distill(X, y, feature_map="identity", ridge=1.0).save(tmp_path / "set")
    with pytest.raises(ValueError, match=r"holds 'distilled-set' .* expected 'statistics'"):
        Statistics.load(tmp_path / "set")


def test_a_file_without_its_sums_is_refused(tmp_path):
    F, Y, _ = rows()
    collected(F, Y).save(tmp_path / "a")
    with safetensors.safe_open(tmp_path / "a", framework="pt") as file:
        metadata = file.metadata()
    tensors = safetensors.torch.load_file(tmp_path / "a")
    del tensors["cross"]
    safetensors.torch.save_file(tensors, tmp_path / "b", metadata)
    assert json.loads(metadata["kernel_distill"])["kind"] == "statistics"
    with pytest.raises(ValueError, match="cross"):
        Statistics.load(tmp_path / "b")


# --- Through the public functions ----------------------------------------------------------------------------


@pytest.mark.parametrize("batch_bytes", [1, None], ids=["small-batches", "one-batch"])
@pytest.mark.parametrize("case", params_of(INVERTIBLE, "identity", "fcnn-3", "fourier-gaussian", "conv-1"))
def test_collected_statistics_are_those_of_the_features(case, batch_bytes):
    X, y = problem()
    X = case.inputs(X)
    found = collect_statistics(
        X, y, feature_map=case.name, feature_params=case.params, transform="none", batch_bytes=batch_bytes
    )
    F = case.make().features(torch.from_numpy(X))
    assert distance(found, collected(F, torch.from_numpy(one_hot(y)))) < CLOSE


@pytest.mark.parametrize("case", params_of(INVERTIBLE, "identity", "fcnn-1", "fourier-gaussian"))
def test_merged_shards_distil_like_the_whole(case):
    X, y = problem()
    near = np.random.default_rng(1).normal(size=(K, D))
    arguments = {"ridge": "gcv", "near": near, "distilled_ridge": 0.1}
    first = collect_statistics(X[:90], y[:90], feature_map=case.name, feature_params=case.params, n_classes=K)
    second = collect_statistics(X[90:], y[90:], like=first)
    merged = distill_statistics(first + second, **arguments)
    whole = distill(X, y, feature_map=case.name, feature_params=case.params, **arguments)
    # λ is chosen from the same sums in another order, and no two candidates tie.
    assert merged.certificate.ridge == pytest.approx(whole.certificate.ridge, rel=CLOSE)
    assert relative(merged.decision_function(X), whole.decision_function(X)) < 1e-9
    assert merged.certificate.n_rows == 200


def test_unlearning_a_shard_equals_never_having_seen_it():
    X, y = problem()
    all_rows = collect_statistics(X, y, feature_map="fcnn", n_classes=K)
    shard = collect_statistics(X[150:], y[150:], like=all_rows)
    rest = collect_statistics(X[:150], y[:150], like=all_rows)
    left, never = (distill_statistics(s, ridge=0.3).model.weights for s in (all_rows - shard, rest))
    assert relative(left, never) < 1e-10
    assert relative(distill_statistics(all_rows, ridge=0.3).model.weights, never) > 1e-3


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_targets_that_are_not_finite_are_refused_by_row(value):
    X, _ = problem()
    y = np.linspace(-1, 1, len(X))
    y[150] = value
    with pytest.raises(ValueError, match=r"`y` holds .* in row 150"):
        collect_statistics(X, y, feature_map="identity", task="regression", batch_bytes=1)


def test_statistics_that_know_nothing_are_refused():
    with pytest.raises(
        ValueError, match="do not know their encoder and targets: make them with collect_statistics"
    ):
        distill_statistics(Statistics(D, K))
    X, y = problem()
    with pytest.raises(ValueError, match="`like` does not know its encoder and targets"):
        collect_statistics(X, y, like=Statistics(D, K))
