"""The pool of FRePo: ages and replacement, training by torch's own layers, frozen networks, files of weights."""

import json

import numpy as np
import pytest
import torch

from kernel_distill.kernels import normal
from kernel_distill.solver.conv_networks import ConvNetworks, ConvSpec, conv_features, draw_conv_networks
from kernel_distill.solver.feature_maps.conv_network import ConvNetworkFeatures
from kernel_distill.solver.learners.network_pool import (
    UPDATE_ROWS,
    NetworkPool,
    freeze,
    train_network,
    update_rows,
)
from kernel_distill.solver.store import read_file, write_file

from ..cases import relative

M, K = 7, 3
SHAPE = (2, 8, 6)


def spec(norm="batch", **options):
    return ConvSpec(SHAPE, **{"width": (4, 5), "depth": 2, "norm": norm, **options})


def points(m=M, shape=SHAPE, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(m, *shape)) + 0.5)


def labels(m=M, seed=1):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(m, K)))


def pool(seed=0, norm="batch", dtype=torch.float64, **options):
    return NetworkPool(spec(norm), K, seed=seed, dtype=dtype, **options)


def weights(made, slot=0):
    """Everything of one network, copied."""
    tensors, _ = made.state()
    return {name: t.clone() for name, t in tensors.items() if name.startswith(f"{slot}.")}


def same(left, right):
    return left.keys() == right.keys() and all(
        torch.equal(value, right[name]) for name, value in left.items()
    )


# --- Frozen networks -----------------------------------------------------------------------------------------


def unsettled(networks, seed=2):
    """Networks whose scales and shifts are not those of the start."""
    rng = np.random.default_rng(seed)
    moved = {
        name: torch.from_numpy(rng.normal(size=value.shape)) if name.startswith(("scale", "shift")) else value
        for name, value in networks.tensors.items()
    }
    return ConvNetworks(networks.spec, moved)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    "options",
    [{}, {"width": 3}, {"leak": 0.2}, {"filter_size": 5}, {"width": (6,), "depth": 1}],
    ids=str,
)
def test_a_frozen_network_has_the_features_of_the_rows_it_was_frozen_with(options, count):
    networks = unsettled(draw_conv_networks(spec(**options), count, 0, "test", dtype=torch.float64))
    X = points()
    frozen = freeze(networks, X)
    assert frozen.spec.norm is None
    found, wanted = conv_features(frozen, X), conv_features(networks, X)
    # Two ways to round the same sums: products of a few hundred terms, a division by a standard deviation each.
    assert relative(found, wanted) < 1e-12
    assert wanted.abs().min(dim=0).values.max() > 0  # not all zeros behind the ReLU
    # Of each row by itself, whatever rows come with it.
    assert relative(conv_features(frozen, X[2:3]), found[2:3]) < 1e-12


@pytest.mark.parametrize("norm", [None, "instance"])
def test_networks_of_rows_by_themselves_are_frozen_as_they_are(norm):
    networks = draw_conv_networks(spec(norm), 2, 0, "test", dtype=torch.float64)
    for value in networks.tensors.values():
        value.requires_grad_()
    frozen = freeze(networks, points())
    assert frozen.spec == networks.spec
    for name, value in frozen.tensors.items():
        assert torch.equal(value, networks.tensors[name])
        assert not value.requires_grad


def test_a_frozen_network_carries_no_derivative():
    networks = draw_conv_networks(spec(), 1, 0, "test", dtype=torch.float64)
    for value in networks.tensors.values():
        value.requires_grad_()
    frozen = freeze(networks, points().requires_grad_())
    assert not any(value.requires_grad for value in frozen.tensors.values())


# --- Training ------------------------------------------------------------------------------------------------


def layers(tensors, norm):
    """The same network of torch's own layers."""
    blocks = []
    for block in range(2):
        weight = tensors[f"0.weight.{block}"][0]
        convolution = torch.nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1, dtype=torch.float64)
        blocks.append(convolution)
        pairs = [(convolution.weight, "weight"), (convolution.bias, "bias")]
        if norm == "batch":
            blocks.append(torch.nn.BatchNorm2d(len(weight), dtype=torch.float64))
            pairs += [(blocks[-1].weight, "scale"), (blocks[-1].bias, "shift")]
        blocks += [torch.nn.ReLU(), torch.nn.AvgPool2d(2)]
        with torch.no_grad():
            for parameter, name in pairs:
                parameter.copy_(tensors[f"0.{name}.{block}"][0])
    head = torch.nn.Linear(tensors["0.head"].shape[0], K, dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(tensors["0.head"].T)
        head.bias.zero_()
    return torch.nn.Sequential(*blocks, torch.nn.Flatten()), head


@pytest.mark.parametrize("norm", [None, "batch"])
def test_updates_are_adam_on_half_the_squared_error(norm):
    X, Y, rate, updates = points(), labels(), 0.01, 6
    made = pool(norm=norm, size=1, rate=rate)
    body, head = layers(weights(made), norm)
    optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=rate)
    for _ in range(updates):
        made.advance(0, X, Y)
        loss = ((head(body(X)) - Y) ** 2).sum() / (2 * M)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        wanted = body(X)
    found = conv_features(made.frozen(0, X), X)[:, 0]
    # Adam divides gradients by their own size, so that relative rounding of small ones comes through; a bias before
    # a normalisation has a gradient of rounding alone, and no effect.
    assert relative(found, wanted) < 1e-8
    assert relative(weights(made)["0.head"], head.weight.detach().T) < 1e-8


def test_networks_are_trained_as_in_the_pool():
    X, Y = points(), labels()
    start, trained = (train_network(X, Y, spec(None), steps=steps, seed=4) for steps in (0, 3))
    made = pool(norm=None, size=1)
    tensors, plain = made.state()
    fresh = {**tensors, **{f"0.{name}": value for name, value in start.tensors.items()}}
    p = spec().n_features
    fresh["0.head"] = normal(4, "frepo.stored.0.head", (p, K)) / p**0.5
    made.restore(fresh, plain)
    for _ in range(3):
        made.advance(0, X, Y)
    assert same(made.frozen(0, X).tensors, trained.tensors)
    assert not same(start.tensors, trained.tensors)


def test_a_trained_network_is_the_same_alone_or_among_others():
    X, Y = points().float(), labels().float()
    one, two = (train_network(X, Y, spec(), steps=2, seed=0, count=count) for count in (1, 2))
    other = train_network(X, Y, spec(), steps=2, seed=1)
    assert (one.count, two.count) == (1, 2)
    assert same(one.tensors, two.select(slice(0, 1)).tensors)
    assert not torch.equal(two.tensors["weight.0"][0], two.tensors["weight.0"][1])
    assert not torch.equal(one.tensors["weight.0"], other.tensors["weight.0"])
    assert one.tensors["weight.0"].dtype == torch.float32


@pytest.mark.parametrize("m", [1, UPDATE_ROWS, UPDATE_ROWS + 1, 3 * UPDATE_ROWS])
def test_updates_take_no_more_than_so_many_rows(m):
    first, second = update_rows(m, 0, "a"), update_rows(m, 0, "b")
    assert len(first.unique()) == len(first) == min(m, UPDATE_ROWS)
    assert 0 <= int(first.min()) <= int(first.max()) < m
    assert torch.equal(first, second) == (m <= UPDATE_ROWS)
    assert torch.equal(first, update_rows(m, 0, "a"))


# --- The pool ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "max_updates", "ages"),
    [
        (10, 100, list(range(0, 100, 10))),
        (4, 10, [0, 2, 5, 7]),
        (3, 1, [0, 0, 0]),
        (2, 0, [0, 0]),
        (1, 9, [0]),
    ],
)
def test_networks_start_at_spread_ages(size, max_updates, ages):
    assert pool(size=size, max_updates=max_updates).ages == ages


@pytest.mark.parametrize("max_updates", [0, 1, 3])
def test_networks_are_replaced_after_their_last_update(max_updates):
    """Of a network: `max_updates` updates, then a replacement, and round again."""
    made, X, Y = (
        pool(size=2, max_updates=max_updates, dtype=torch.float32),
        points().float(),
        labels().float(),
    )
    made.ages = [0, 0]
    other = weights(made, 1)
    seen = []
    for _ in range(2 * (max_updates + 1)):
        seen.append((made.ages[0], made.generations[0]))
        before = weights(made)
        made.advance(0, X, Y)
        assert not same(before, weights(made))
    assert seen == [(age, generation) for generation in (0, 1) for age in range(max_updates + 1)]
    # The others are as they were.
    assert same(other, weights(made, 1))
    assert (made.ages[1], made.generations[1]) == (0, 0)


def test_a_fresh_network_depends_on_seed_slot_and_generation_alone():
    X, Y = points(), labels()
    left, right = pool(size=2, max_updates=1), pool(size=2, max_updates=0)
    assert same(weights(left), weights(right))
    for _ in range(2):
        left.advance(0, X, Y)
    right.advance(0, 2 * X, -Y)
    assert left.generations == right.generations == [1, 0]
    assert same(weights(left), weights(right))
    drawn = [
        weights(made, slot)[f"{slot}.weight.0"]
        for made in (left, pool(size=2), pool(seed=1, size=2))
        for slot in (0, 1)
    ]
    # The second network of `left` has its first generation still, which is that of any pool of this seed.
    assert torch.equal(drawn[1], drawn[3])
    distinct = [*drawn[:3], *drawn[4:]]
    assert not any(torch.equal(a, b) for i, a in enumerate(distinct) for b in distinct[:i])


def test_without_updates_labels_do_not_matter():
    made = pool(size=1, max_updates=0)
    for _ in range(3):
        made.advance(0, points() * torch.nan, labels() * torch.nan)
        assert all(bool(value.isfinite().all()) for value in weights(made).values())


def test_picks_are_uniform_and_follow_from_the_step():
    made, steps = pool(size=5), 2000
    picks = [made.pick(step) for step in range(steps)]
    counts = np.bincount(picks, minlength=5)
    assert len(counts) == 5
    # Five deviations of a binomial.
    assert np.abs(counts - steps / 5).max() < 5 * (steps * 0.2 * 0.8) ** 0.5
    made.advance(0, points(), labels())
    assert [made.pick(step) for step in (7, 3)] == [picks[7], picks[3]]
    assert [pool(seed=1, size=5).pick(step) for step in range(50)] != picks[:50]


def test_a_pool_goes_on_where_it_was_stored(tmp_path):
    """Through a file: networks that were never updated, in training, and replaced."""
    X, Y = points().float(), labels().float()
    options = {"size": 3, "max_updates": 4, "dtype": torch.float32}
    made, again = pool(**options), pool(**options)
    for slot in (1, 1, 1, 1, 2):
        made.advance(slot, X, Y)
    assert made.generations == [0, 1, 0]
    tensors, plain = made.state()
    write_file(tmp_path / "pool", "test", {"plain": plain}, tensors)
    header, read = read_file(tmp_path / "pool", "test")
    again.restore(read, header["plain"])
    for slot in (0, 1, 2, 2, 2):
        made.advance(slot, X, Y)
        again.advance(slot, X, Y)
        assert made.ages == again.ages
        assert all(same(weights(made, slot), weights(again, slot)) for slot in range(3))
    assert made.generations == again.generations == [0, 1, 1]


def test_a_restored_pool_forgets_what_it_did():
    """A network that has moments of Adam goes back to one that has none."""
    X, Y = points(), labels()
    made = pool(size=1)
    tensors, plain = made.state()
    fresh = {name: value.clone() for name, value in tensors.items()}
    made.advance(0, X, Y)
    first = weights(made)
    made.restore(fresh, plain)
    assert same(weights(made), fresh)
    made.advance(0, X, Y)
    assert same(weights(made), first)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pool(size=0), "size"),
        (lambda: pool(max_updates=-1), "max_updates"),
        (lambda: pool(rate=-1.0), "rate"),
        (lambda: pool(rate=float("nan")), "rate"),
        (lambda: train_network(points(), labels(), spec(), steps=-1, seed=0), "steps"),
        (lambda: train_network(points(), labels(), spec(), steps=1, seed=0, count=0), "count"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- The feature map -----------------------------------------------------------------------------------------


def trained_map(count=2, padding=0, norm="batch"):
    shape = (SHAPE[0], *(size + 2 * padding for size in SHAPE[1:]))
    networks = train_network(
        points(shape=shape).float(),
        labels().float(),
        ConvSpec(shape, (4, 5), 2, norm=norm),
        steps=2,
        seed=0,
        count=count,
    )
    return ConvNetworkFeatures(networks, padding=padding)


@pytest.mark.parametrize("norm", [None, "batch", "instance"])
@pytest.mark.parametrize("count", [1, 3])
def test_its_kernel_is_the_mean_of_the_networks(count, norm):
    made, X = trained_map(count, norm=norm), points(5, seed=3)
    assert made.features(X).shape == (5, made.n_features)
    F = conv_features(made.networks.to("cpu", torch.float64), X)
    wanted = torch.einsum("ncp,mcp->nm", F, F) / count
    assert relative(made.features(X) @ made.features(X).T, wanted) < 1e-12
    assert made.features(X.float()).dtype == torch.float32
    # Weights are float32: both precisions use the same.
    assert relative(made.features(X.float()), made.features(X)) < 1e-5


def test_padding_is_zeros_around_the_image():
    made, X = trained_map(padding=2), points(5, seed=3)
    assert made.input_shape == SHAPE
    larger = torch.zeros(5, 2, 12, 10, dtype=torch.float64)
    larger[:, :, 2:-2, 2:-2] = X
    wanted = ConvNetworkFeatures(made.networks).features(larger)
    assert torch.equal(made.features(X), wanted)


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("padding", [0, 1])
def test_it_comes_back_from_its_parameters_and_weights(padding, norm):
    made, X = trained_map(padding=padding, norm=norm), points(5, seed=3)
    again = ConvNetworkFeatures.restore(json.loads(json.dumps(made.parameters())), made.tensors())
    assert torch.equal(made.features(X), again.features(X))
    assert again.parameters() == made.parameters()
    assert made.fingerprint() == again.fingerprint()
    assert not made.has_preimage


def test_it_is_differentiable_in_its_inputs():
    made = trained_map()
    X = points(2, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(made.features, (X,))


def drop(tensors):
    return {name: value for name, value in tensors.items() if name != "bias.1"}


def uneven(tensors):
    return {**tensors, "bias.1": tensors["bias.1"][:1]}


def transposed(tensors):
    return {**tensors, "weight.1": tensors["weight.1"].transpose(1, 2)}


@pytest.mark.parametrize("change", [drop, uneven, transposed])
def test_other_weights_than_its_own_are_refused(change):
    made = trained_map()
    with pytest.raises(ValueError, match="weights"):
        ConvNetworkFeatures.restore(made.parameters(), change(made.tensors()))


def test_it_is_not_made_by_name_or_of_networks_that_mix_rows():
    with pytest.raises(ValueError, match="random-conv"):
        ConvNetworkFeatures.build(SHAPE, seed=0, sample=None)
    with pytest.raises(ValueError, match="freeze"):
        ConvNetworkFeatures(draw_conv_networks(spec(), 1, 0, "test"))
    with pytest.raises(ValueError, match="padding"):
        ConvNetworkFeatures(draw_conv_networks(spec(None), 1, 0, "test"), padding=-1)
