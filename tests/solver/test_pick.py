"""Batches: how often rows are drawn, what they count for, and losses that are never too old."""

import itertools
import types

import numpy as np
import pytest
import torch

from kernel_distill.solver.learners.pick import Pick, Picker


def rows(n=40, classes=None, chunk=16):
    """What a picker asks of `TrainingRows`."""
    return types.SimpleNamespace(
        n=n,
        classes=None if classes is None else torch.as_tensor(classes),
        targets=types.SimpleNamespace(n_outputs=0 if classes is None else 1 + max(classes)),
        device=torch.device("cpu"),
        chunk=chunk,
    )


def made(losses, batch=4, seed=0, **options):
    """A picker by loss whose table is filled."""
    losses = torch.as_tensor(losses, dtype=torch.float64)
    picker = Picker(rows(len(losses)), Pick(kind="loss", **options), batch, seed)
    picker.refresh(0, lambda index: losses[index])
    return picker


SKEWED = np.random.default_rng(0).pareto(1.5, 40) + 0.05
KINDS = {
    "uniform": (rows(), Pick()),
    "balanced": (rows(classes=[0] * 25 + [1] * 10 + [2] * 5), Pick(kind="balanced")),
    "loss": (rows(), Pick(kind="loss")),
    "pool": (rows(), Pick(kind="loss", pool=20)),
}


def of_kind(kind, batch=4, seed=0, **changes):
    some, pick = KINDS[kind]
    picker = Picker(some, pick.model_copy(update=changes), batch, seed)
    picker.refresh(0, lambda index: torch.from_numpy(SKEWED)[index])
    return picker


@pytest.mark.parametrize("batch", [1, 4, 19, 20])
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_distinct_rows_and_their_weights(kind, corrected, batch):
    picker = of_kind(kind, batch, corrected=corrected)
    seen = set()
    for step in range(10):
        index, weights = picker.draw(step)
        assert (index.dtype, weights.dtype) == (torch.int64, torch.float64)
        assert index.shape == weights.shape == (batch,)
        assert len(set(index.tolist())) == batch
        assert 0 <= int(index.min()) <= int(index.max()) < 40
        seen.add(tuple(index.tolist()))
        if not corrected:
            assert set(weights.tolist()) == {1 / batch}
        again = picker.draw(step)
        assert torch.equal(again.index, index)
        assert torch.equal(again.weights, weights)
    assert len(seen) > 1
    other = of_kind(kind, batch, seed=1)
    assert any(not torch.equal(other.draw(step).index, picker.draw(step).index) for step in range(10))


@pytest.mark.parametrize("kind", ["uniform", "balanced", "loss"])
def test_a_batch_of_all_rows_and_more(kind):
    """More than there are is all of them, each once; corrected weights then are 1/n exactly."""
    for corrected, batch in itertools.product([False, True], [40, 41, 10**6]):
        picker = of_kind(kind, batch, corrected=corrected)
        assert picker.batch_size == 40
        index, weights = picker.draw(3)
        assert sorted(index.tolist()) == list(range(40))
        torch.testing.assert_close(
            weights, torch.full((40,), 1 / 40, dtype=torch.float64), rtol=1e-14, atol=0
        )


# --- How often -----------------------------------------------------------------------------------------------


def frequencies(picker, steps):
    found = torch.cat([picker.draw(step).index for step in range(steps)])
    return found.bincount(minlength=40).double().numpy() / steps


def close(found, wanted, steps):
    """Within five standard deviations of a frequency."""
    wanted = np.asarray(wanted, np.float64)
    return np.all(np.abs(found - wanted) <= 5 * np.sqrt(wanted * (1 - wanted) / steps) + 1e-12)


def test_uniform_rows_are_drawn_alike():
    assert close(frequencies(of_kind("uniform", 10), 2000), np.full(40, 0.25), 2000)


@pytest.mark.parametrize("mixing", [0.0, 0.1, 1.0])
def test_single_draws_have_the_probability_of_their_loss(mixing):
    wanted = (1 - mixing) * SKEWED / SKEWED.sum() + mixing / 40
    found = frequencies(made(SKEWED, 1, mixing=mixing), 1000)
    assert close(found, wanted, 1000)
    if mixing < 1:
        assert not close(found, np.full(40, 1 / 40), 1000)


def test_two_draws_are_successive_draws_without_replacement():
    losses = np.array([5.0, 1.0, 1.0, 3.0])
    P, wanted = losses / losses.sum(), np.zeros(4)
    for i, j in itertools.permutations(range(4), 2):
        wanted[[i, j]] += P[i] * P[j] / (1 - P[i])
    picker = made(losses, 2, mixing=0)
    found = torch.cat([picker.draw(step).index for step in range(1000)]).bincount(minlength=4).numpy() / 1000
    assert close(found, wanted, 1000)


@pytest.mark.parametrize("factor", [2.0**-900, 2.0**-20, 2.0, 2.0**900])
def test_the_scale_of_the_loss_does_not_matter(factor):
    one, other = made(SKEWED, 8, corrected=True), made(SKEWED * factor, 8, corrected=True)
    for step in range(5):
        (index, weights), (again, scaled) = one.draw(step), other.draw(step)
        assert torch.equal(index, again)
        assert torch.equal(weights, scaled)


def test_no_loss_at_all_is_uniform():
    nothing, equal = made(np.zeros(40), 8, corrected=True), made(np.full(40, 0.3), 8, corrected=True)
    for step in range(5):
        assert torch.equal(nothing.draw(step).index, equal.draw(step).index)
    assert close(frequencies(nothing, 800), np.full(40, 0.2), 800)


def test_rows_without_loss_come_last():
    losses = np.where(np.arange(40) < 5, 1.0, 0.0)
    for step in range(20):
        assert made(losses, 4, mixing=0).draw(step).index.max() < 5
        index = made(losses, 8, mixing=0).draw(step).index
        assert sorted(index[:5].tolist()) == [0, 1, 2, 3, 4]


# --- Balanced ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "batch", "counts", "varied"),
    [
        ([10, 10, 10], 9, [3, 3, 3], False),
        ([10, 10, 10], 10, [3, 3, 4], True),
        ([10, 10, 10], 2, [0, 1, 1], True),
        ([2, 10, 10], 12, [2, 5, 5], False),
        ([2, 10, 10], 13, [2, 5, 6], True),
        ([2, 10, 20], 25, [2, 10, 13], False),
        ([1, 1, 30], 30, [1, 1, 28], False),
        ([5], 3, [3], False),
        ([4, 0, 4], 5, [0, 2, 3], True),
    ],
)
def test_balanced_batches_are_as_even_as_classes_allow(sizes, batch, counts, varied):
    """What does not divide falls to one class and to another, among those that have more rows."""
    classes = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    picker = Picker(rows(len(classes), classes.tolist()), Pick(kind="balanced"), batch, 0)
    seen = set()
    for step in range(20):
        index = picker.draw(step).index
        found = np.bincount(classes[index.numpy()], minlength=len(sizes))
        assert sorted(found) == counts
        assert np.all(found <= sizes)
        seen.add(tuple(found))
    assert (len(seen) > 1) == varied


def test_balanced_classes_are_drawn_alike_inside_and_out():
    """Every class as often as the next, and every row of it."""
    picker = of_kind("balanced", 8)
    found = frequencies(picker, 1000)
    wanted = np.repeat([8 / 3 / 25, 8 / 3 / 10, 8 / 3 / 5], [25, 10, 5])
    assert close(found, wanted, 1000)


# --- What a step minimises -----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [2, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_corrected_losses_have_the_mean_of_all_rows(kind, batch):
    """Also of losses that are not those of the table, as they are when it lags."""
    losses = torch.from_numpy(np.random.default_rng(5).random(40) * np.arange(1, 41))
    steps, found = 500, []
    picker = of_kind(kind, batch, corrected=True)  # two rows are too few for the three classes
    for step in range(steps):
        index, weights = picker.draw(step)
        found.append(float((weights * losses[index]).sum()))
    # The candidates of a pool that stands still are those of its first window.
    wanted = float(losses[picker._order[:20]].mean() if kind == "pool" else losses.mean())
    assert abs(np.mean(found) - wanted) < 5 * np.std(found) / np.sqrt(steps)


def test_a_moving_pool_has_the_mean_of_all_rows():
    losses = torch.from_numpy(np.random.default_rng(5).random(40) * np.arange(1, 41))
    pick = Pick(kind="loss", pool=10, refresh=5, refresh_every=1, corrected=True)
    picker, found = Picker(rows(), pick, 4, 0), []
    for step in range(1000):  # two new candidates of 40 a step: 50 times round
        picker.refresh(step, lambda index: losses[index])
        index, weights = picker.draw(step)
        found.append(float((weights * losses[index]).sum()))
    assert abs(np.mean(found) - float(losses.mean())) < 5 * np.std(found) / np.sqrt(len(found))


def test_uncorrected_losses_are_another_objective():
    """The mean of single draws is sum l^2 / sum l, which is above the mean unless all losses are equal."""
    losses = torch.from_numpy(SKEWED)
    wanted = float(losses.square().sum() / losses.sum())
    picker = made(SKEWED, 1, mixing=0)
    found = [float(losses[picker.draw(step).index]) for step in range(1000)]
    assert abs(np.mean(found) - wanted) < 5 * np.std(found) / np.sqrt(1000)
    assert wanted > 1.5 * float(losses.mean())


def test_corrected_weights_are_bounded_by_the_mixing():
    """Against a thousandth of it, a weight is large only where the loss was small."""
    losses = np.where(np.arange(40) < 39, 1e-9, 1.0)
    largest = {
        mixing: max(
            float(made(losses, 10, mixing=mixing, corrected=True).draw(s).weights.max()) for s in range(50)
        )
        for mixing in (1e-3, 0.5)
    }
    assert largest[0.5] < 0.5  # two draws of ten are uniform or more: about 1/(0.5 * 10), by luck twice that
    assert largest[1e-3] < 0.5  # nine of ten have to come from the 39


# --- The table -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", [None, 7, 39])
@pytest.mark.parametrize(("refresh", "every"), [(1, 1), (10, 1), (10, 3), (10, 10), (100, 30), (57, 1)])
def test_no_loss_is_older_than_the_refresh_says(refresh, every, pool):
    """The losses drawn by were computed at most so many steps ago; computations are bounded and spread out."""
    pick = Pick(kind="loss", refresh=refresh, refresh_every=every, pool=pool)
    picker, computed = Picker(rows(), pick, 5, 0), {}
    size, drawn = pool or 40, set()
    for step in range(3 * refresh + 120):
        asked = []

        def losses_of(index, asked=asked):
            assert len(index) <= 16  # rows.chunk
            assert not torch.is_grad_enabled()
            asked.extend(index.tolist())
            return torch.ones(len(index))

        picker.refresh(step, losses_of)
        assert len(set(asked)) == len(asked)
        if step == 0:
            assert len(asked) == size
        elif step % every:
            assert asked == []
        else:
            assert len(asked) <= -(-size // (refresh // every))
        computed |= dict.fromkeys(asked, step)
        candidates = {int(row) for row in picker.draw(step).index}
        drawn |= candidates
        assert max(step - computed[row] for row in candidates) < refresh
        if pool is None:
            assert step - min(computed.values()) < refresh
    assert len(computed) == 40 or refresh == 100
    assert len(drawn) > size or size == 40 or refresh == 100


def test_losses_of_a_batch_are_noted_for_free():
    losses = np.ones(40)
    picker = made(losses, 1, mixing=0)
    picker.observe(torch.tensor([7, 3]), torch.tensor([1e9, 0.0]))
    assert [picker.draw(step).index.item() for step in range(10)] == [7] * 10
    picker.observe(torch.tensor([7]), torch.tensor([0.0], dtype=torch.float64, requires_grad=True))
    assert not {picker.draw(step).index.item() for step in range(100)} & {3, 7}


def test_kinds_without_table_take_no_losses():
    for kind in ("uniform", "balanced"):
        picker = Picker(*KINDS[kind], 4, 0)
        before = picker.draw(1).index
        picker.refresh(0, lambda index: pytest.fail("no losses are needed"))
        picker.observe(torch.tensor([1]), torch.tensor([torch.nan]))
        assert torch.equal(picker.draw(1).index, before)
        assert picker.state() == ({}, {})


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_losses_that_are_not_finite_are_drawn_first(bad):
    """So the loss of the step is not finite, and the loop reports that the run diverged."""
    losses = np.ones(40)
    losses[[11, 30]] = bad
    picker = made(losses, 4, mixing=0)
    for step in range(10):
        assert {11, 30} < set(picker.draw(step).index.tolist())
    mixed = made(losses, 4, mixing=0.1)
    assert all({11, 30} & set(mixed.draw(step).index.tolist()) for step in range(50))


@pytest.mark.parametrize("pool", [None, 12])
def test_a_resumed_run_draws_the_same_bits(pool):
    """At every step: the state saved before it, put into a new picker, gives the same rest of the run."""
    pick = Pick(kind="loss", refresh=6, refresh_every=2, corrected=True, pool=pool)

    def go(picker, start, stop):
        trace = []
        for step in range(start, stop):
            picker.refresh(step, lambda index, step=step: torch.sin(index * (step + 1.0)).square())
            index, weights = picker.draw(step)
            picker.observe(index, torch.cos(index * (step + 1.0)).square())
            trace.append((index.tolist(), weights.tolist()))
        return trace

    whole = go(Picker(rows(), pick, 5, 0), 0, 14)
    for stop in range(15):
        first, second = Picker(rows(), pick, 5, 0), Picker(rows(), pick, 5, 0)
        before = go(first, 0, stop)
        tensors, plain = first.state()
        kept = {name: tensor.clone() for name, tensor in tensors.items()}
        go(first, stop, 14)  # what was given out is a copy
        assert all(torch.equal(kept[name], tensor) for name, tensor in tensors.items())
        second.restore(tensors, plain)
        assert before + go(second, stop, 14) == whole


# --- Bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"kind": "lose"}, "'uniform', 'balanced' or 'loss'"),
        ({"kind": "loss", "mixing": 1.5}, "less than or equal to 1"),
        ({"kind": "loss", "mixing": -0.1}, "greater than or equal to 0"),
        ({"kind": "loss", "pool": 0}, "greater than or equal to 1"),
        ({"kind": "loss", "refresh": 5}, "refresh_every = 10 steps leave losses older than refresh = 5"),
        ({"pool": 100}, "`pool` is for draws by loss: leave it out of kind='uniform'"),
        ({"kind": "balanced", "mixing": 0.2}, "`mixing` is for draws by loss"),
        ({"eta": 0.2}, "Extra inputs are not permitted"),
    ],
)
def test_bad_options_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        Pick(**options)


def test_options_come_back_from_their_document():
    for pick in (Pick(), Pick(kind="balanced", corrected=True), Pick(kind="loss", mixing=0, pool=9)):
        assert Pick(**pick.model_dump()) == pick


def test_pickers_that_cannot_be():
    with pytest.raises(ValueError, match="balanced batches need classes"):
        Picker(rows(), Pick(kind="balanced"), 4, 0)
    with pytest.raises(ValueError, match="a pool of 3 candidates is smaller than a batch of 4: raise `pool`"):
        Picker(rows(), Pick(kind="loss", pool=3), 4, 0)
    with pytest.raises(ValueError, match="`batch_size` must be an integer of at least 1"):
        Picker(rows(), Pick(), 0, 0)
    with pytest.raises(ValueError, match="call `refresh` before `draw`"):
        Picker(rows(), Pick(kind="loss"), 4, 0).draw(0)
    with pytest.raises(ValueError, match="the loss of row 5 is -1"):
        made(np.where(np.arange(40) == 5, -1.0, 1.0)).draw(0)
