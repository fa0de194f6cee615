"""`torch.multinomial`: torch's law from other numbers, torch's errors, and the very builtin afterwards."""

import itertools
import sys
import types

import numpy as np
import pytest
import torch
from scipy import stats

from kernel_distill import accel
from kernel_distill.accel._call import accelerated
from kernel_distill.accel._records import records
from kernel_distill.accel.registry import select
from kernel_distill.accel.replacements import torch_sampling

MANY = 1 << 17
BUILTIN = (torch.multinomial,)  # names of modules are rebound, this is none
WEIGHTS = torch.tensor([0.5, 3.0, 0.0, 1.0, 2.5])


@pytest.fixture
def installed(monkeypatch):
    records.clear()
    monkeypatch.setattr(torch, "multinomial", accelerated(select(("torch.multinomial",))[0], BUILTIN[0]))
    yield
    records.clear()


def p_value(counts, chances):
    """Of a chi-square test; what cannot happen must not have."""
    counts, chances = np.asarray(counts, float), np.asarray(chances, float)
    assert (counts[chances == 0] == 0).all()
    possible = chances > 0
    return stats.chisquare(
        counts[possible], counts.sum() * chances[possible] / chances[possible].sum()
    ).pvalue


def chance_of(order, weights):
    """That these items are drawn in this order, one by one from what is left."""
    chance, left = 1.0, weights.sum()
    for item in order:
        chance *= weights[item] / left
        left -= weights[item]
    return chance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_draws_with_replacement_are_in_proportion(dtype):
    torch.manual_seed(0)
    drawn = torch_sampling.multinomial(WEIGHTS.to(dtype), 20_000, True)
    assert p_value(torch.bincount(drawn, minlength=5), WEIGHTS / 7) > 1e-3
    # Independent: pairs that follow each other too.
    pairs = torch.bincount(5 * drawn[::2] + drawn[1::2], minlength=25)
    assert p_value(pairs, torch.outer(WEIGHTS, WEIGHTS).flatten() / 49) > 1e-3


@pytest.mark.parametrize("draws", [1, 3])
def test_draws_without_replacement_follow_the_sequential_law(draws):
    weights = WEIGHTS.double().numpy()
    orders = list(itertools.permutations(range(5), draws))
    chances = np.array([chance_of(order, weights) for order in orders])
    place = {order: i for i, order in enumerate(orders)}
    torch.manual_seed(1)
    rows = WEIGHTS.repeat(900, 1)
    for function in (torch_sampling.multinomial, BUILTIN[0]):
        drawn = [tuple(row) for row in function(rows, draws).tolist()]
        assert p_value(np.bincount([place[order] for order in drawn], minlength=len(orders)), chances) > 1e-3
        # Inclusion probabilities, against all orders that hold an item.
        included = np.array(
            [sum(c for o, c in zip(orders, chances, strict=True) if i in o) for i in range(5)]
        )
        found = np.array([sum(i in order for order in drawn) for i in range(5)]) / 900
        assert (np.abs(found - included) <= 4 * np.sqrt(included * (1 - included) / 900) + 1e-12).all()


def test_rows_of_a_matrix_are_drawn_independently():
    torch.manual_seed(2)
    drawn = torch_sampling.multinomial(torch.ones(2, 4).expand(2, 4), 20_000, True)
    pairs = torch.bincount(4 * drawn[0] + drawn[1], minlength=16)
    assert p_value(pairs, np.full(16, 1 / 16)) > 1e-3


@pytest.mark.parametrize("shape", [(MANY,), (3, MANY)])
@pytest.mark.parametrize("draws", [1, 50])
def test_results_have_the_form_of_the_original(installed, shape, draws):
    weights = torch.rand(shape)
    found = torch.multinomial(weights, draws)
    expected = BUILTIN[0](weights, draws)
    assert torch_sampling.form_difference(expected, found) == 0
    assert records["torch.multinomial"].accelerated == 1
    assert torch_sampling.form_difference(expected, found.int()) == float("inf")
    for row in found.reshape(-1, draws):
        assert len(set(row.tolist())) == draws


def test_the_seed_of_torch_decides(installed):
    weights = torch.rand(MANY)

    def draw(seed):
        torch.manual_seed(seed)
        return torch.multinomial(weights, 20), torch.multinomial(weights, 20)

    (first, second), (again, _), (other, _) = draw(5), draw(5), draw(6)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)


def test_a_generator_decides_where_one_is_given(installed):
    weights = torch.rand(MANY)
    before = torch.get_rng_state()
    one, two = (torch.multinomial(weights, 20, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "make",
    [
        lambda w: w.requires_grad_(),
        lambda w: torch.nn.Parameter(w),
        lambda w: torch.stack([w, w], 1)[:, 0],
        lambda w: w.expand(2, MANY),
        lambda w: w.double(),
        lambda w: w.half(),
    ],
    ids=["gradient", "parameter", "strided", "expanded", "double", "half"],
)
def test_forms_of_weights(installed, make):
    weights = torch.zeros(MANY)
    weights[::1000] = 1
    found = torch.multinomial(make(weights), 100)
    assert records["torch.multinomial"].accelerated == 1
    assert not found.requires_grad
    assert (found % 1000 == 0).all()


def test_more_categories_than_torch_takes(installed):
    weights = torch.zeros((1 << 24) + 2)
    weights[[3, -1]] = 1.0
    with pytest.raises(RuntimeError, match="number of categories cannot exceed"):
        BUILTIN[0](weights, 2)
    assert sorted(torch.multinomial(weights, 2).tolist()) == [3, (1 << 24) + 1]
    counts = torch.multinomial(weights, 2000, True).eq(3).sum()
    assert abs(int(counts) - 1000) < 4 * 500**0.5
    with pytest.raises(RuntimeError, match="only 2 are positive"):
        torch.multinomial(weights, 3)


@pytest.mark.parametrize(("fill", "draws"), [(0.0, 3), (-1.0, 3), (float("nan"), 1), (float("inf"), 3)])
def test_weights_that_torch_refuses_raise_as_before(installed, fill, draws):
    weights = torch.full((MANY,), fill)
    with pytest.raises(RuntimeError) as expected:
        BUILTIN[0](weights, draws)
    with pytest.raises(RuntimeError) as found:
        torch.multinomial(weights, draws)
    assert str(found.value) == str(expected.value)


def test_too_few_positive_weights_are_filled_up_as_by_torch(installed):
    weights = torch.zeros(MANY)
    weights[7] = 1
    drawn = torch.multinomial(weights, 3)
    assert drawn[0] == 7
    assert len(set(drawn.tolist())) == 3


FASTER = "torch is faster for few categories or a large part of them"
TYPES = "`out` is given, or an argument is of another type"


@pytest.mark.parametrize(
    ("weights", "options", "reason"),
    [
        (torch.ones(5), {}, FASTER),
        (torch.ones(MANY), {"num_samples": MANY // 8}, FASTER),
        (torch.ones(MANY), {"num_samples": 2, "replacement": True}, "torch is faster with replacement"),
        (torch.ones(MANY), {"replacement": True}, None),
        (torch.ones(MANY), {"out": torch.empty(1, dtype=torch.int64)}, TYPES),
        (torch.ones(MANY), {"num_samples": torch.tensor(1)}, TYPES),
        (torch.ones(MANY), {"replacement": 1}, TYPES),
        (torch.ones(MANY), {"num_samples": 0}, "the number of draws does not fit"),
        (torch.ones(4), {"num_samples": 5}, "the number of draws does not fit"),
        (
            torch.ones(MANY, dtype=torch.int64),
            {},
            "the weights are no vector or matrix of floating point numbers",
        ),
        (torch.ones(1, 1, MANY), {}, "the weights are no vector or matrix of floating point numbers"),
        (torch.ones(0), {}, "the weights are no vector or matrix of floating point numbers"),
        (torch.ones(MANY, device="meta"), {}, "the weights are no tensor on a CPU or CUDA device"),
        ([1.0, 2.0], {}, "the weights are no tensor on a CPU or CUDA device"),
    ],
)
def test_what_is_left_to_torch(weights, options, reason):
    assert torch_sampling.why_not(weights, **{"num_samples": 1} | options) == reason


def test_what_torch_raises_for_arguments_is_raised(installed):
    with pytest.raises(RuntimeError, match="n_sample <= 0"):
        torch.multinomial(torch.ones(MANY), 0)
    with pytest.raises(TypeError, match="must be bool"):
        torch.multinomial(torch.ones(MANY), 1, 1)
    out = torch.empty(2, dtype=torch.int64)
    assert torch.multinomial(torch.ones(MANY), 2, out=out) is out
    with pytest.raises(RuntimeError, match="randomness"):
        torch.vmap(lambda w: torch.multinomial(w, 2))(torch.ones(2, MANY))
    assert list(records["torch.multinomial"].declined)[-1] == "the call is traced or transformed"


def test_verification_compares_forms():
    records.clear()
    with accel.patched("torch.multinomial", verify=1):
        torch.multinomial(torch.rand(MANY), 5)
    assert records["torch.multinomial"].verified == 1
    assert records["torch.multinomial"].difference == 0
    records.clear()


def test_verified_draws_of_a_generator_are_the_same():
    weights, found = torch.rand(MANY), []
    for verify in (0, 9):
        generator = torch.Generator().manual_seed(5)
        with accel.patched("torch.multinomial", verify=verify):
            found.append([torch.multinomial(weights, 20, generator=generator) for _ in range(3)])
        found[-1].append(generator.get_state())
    for plain, verified in zip(*found, strict=True):
        assert torch.equal(plain, verified)
    assert records["torch.multinomial"].verified == 3
    records.clear()


def test_it_is_installed_by_name_only_and_the_very_builtin_comes_back(monkeypatch):
    user = types.ModuleType("invented_sampler")
    user.multinomial = BUILTIN[0]
    monkeypatch.setitem(sys.modules, "invented_sampler", user)
    with accel.patched("torch"):
        assert torch.multinomial is BUILTIN[0]
    for _ in range(2):
        with accel.patched("torch.multinomial"):
            assert torch.multinomial is not BUILTIN[0]
            assert user.multinomial is torch.multinomial
            assert torch.multinomial.__name__ == "multinomial"
        assert torch.multinomial is BUILTIN[0]
        assert user.multinomial is BUILTIN[0]
