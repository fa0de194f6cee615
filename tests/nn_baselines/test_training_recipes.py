"""Recipes: what is published, and the schedules, losses and steps they name."""

import math

import pytest
import torch
from torch.nn import functional as F

from kernel_distill.nn_baselines.losses import row_losses, target_rows
from kernel_distill.nn_baselines.schedule import make_schedule, row_orders
from kernel_distill.nn_baselines.training_recipes import TRAINING_RECIPES, TrainingRecipe, training_recipe
from kernel_distill.nn_baselines.update import step_coefficients


@pytest.mark.parametrize("epochs", [1, 2, 3, 10, 300])
@pytest.mark.parametrize("n", [10, 257])
def test_drop_is_as_published(epochs, n):
    schedule = make_schedule(TrainingRecipe(epochs=epochs), n)
    rate, rates = 0.01, []
    for number in range(epochs + 1):
        rates += [rate] * math.ceil(n / 256)
        if number == epochs // 2 + 1:
            rate *= 0.1
    assert schedule.epochs == epochs + 1
    assert schedule.rates.tolist() == pytest.approx(rates, rel=1e-12)
    assert schedule.restarts == ({epochs // 2 + 2} if epochs // 2 + 2 <= epochs else set())


@pytest.mark.parametrize(
    ("n", "steps"), [(7, 1000), (10, 1000), (11, 2000), (100, 2000), (500, 5000), (1000, 10000)]
)
def test_frepo_counts_steps_by_the_size_of_the_set(n, steps):
    schedule = make_schedule(training_recipe("frepo"), n)
    rates = schedule.rates
    assert len(rates) == steps
    # A linear rise over 500 steps from 0, then half a cosine down to a hundredth.
    assert rates[0] == 0
    assert float(rates[250]) == pytest.approx(1.5e-4)
    assert float(rates[500]) == pytest.approx(3e-4)
    middle = 500 + (steps - 500) // 2
    assert float(rates[middle]) == pytest.approx(3e-4 * (0.01 + 0.99 / 2), rel=2e-3)
    assert 3e-6 <= float(rates[-1]) < 3.1e-6
    assert not schedule.restarts


def test_larger_sets_than_listed_take_the_last_entry():
    schedule = make_schedule(training_recipe("frepo"), 1200)
    assert (schedule.batches, schedule.epochs) == (3, 3334)


def test_a_short_training_has_a_short_rise():
    rates = make_schedule(training_recipe("frepo", epochs=10), 10).rates
    assert len(rates) == 10
    assert int(rates.argmax()) == 5


def test_constant():
    schedule = make_schedule(TrainingRecipe(schedule="constant", epochs=3, batch_size=2), 5)
    assert (schedule.epochs, schedule.batches, schedule.rates.tolist()) == (3, 3, [0.01] * 9)


def test_count_of_the_step_starts_again_after_a_restart():
    recipe = TrainingRecipe(optimizer="adam", epochs=4, batch_size=2)
    found = step_coefficients(recipe, make_schedule(recipe, 4))
    t = torch.tensor([1, 2, 3, 4, 5, 6, 7, 8, 1, 2], dtype=torch.float64)
    torch.testing.assert_close(found[:, 1], (1 - 0.999**t).sqrt())
    assert torch.equal(found[:, 2], torch.ones(10, dtype=torch.float64))


def test_orders_are_permutations_of_their_network_and_epoch():
    orders = [row_orders(50, epoch, range(4), seed=1, stream="train") for epoch in range(2)]
    for order in orders:
        assert torch.equal(order.sort(1).values, torch.arange(50).expand(4, 50))
    assert torch.equal(row_orders(50, 1, range(2, 4), seed=1, stream="train"), orders[1][2:])
    rows = torch.cat(orders)
    assert len({tuple(row.tolist()) for row in rows}) == 8


@pytest.mark.parametrize(
    ("recipe", "reference"),
    [
        (TrainingRecipe(), lambda z, y: F.cross_entropy(z, y.argmax(1), reduction="none")),
        (
            TrainingRecipe(labels="scores", temperature=4.0),
            lambda z, y: F.cross_entropy(z / 4, (y / 4).softmax(1), reduction="none"),
        ),
        (
            TrainingRecipe(labels="probabilities"),
            lambda z, y: F.cross_entropy(z, y, reduction="none"),
        ),
        (
            TrainingRecipe(loss="mse", labels="scores"),
            lambda z, y: F.mse_loss(z, y, reduction="none").mean(1),
        ),
        (
            TrainingRecipe(loss="mse", label_scale=8.0),
            lambda z, y: ((z / 8 - F.one_hot(y.argmax(1), 5) + 0.2) ** 2).mean(1),
        ),
    ],
)
def test_losses_are_torchs(recipe, reference):
    generator = torch.Generator().manual_seed(0)
    z, y = (torch.randn(7, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    if recipe.labels == "probabilities":
        y = y.softmax(1)
    found = row_losses(recipe, z, target_rows(recipe, y))
    torch.testing.assert_close(found, reference(z, y), rtol=1e-13, atol=1e-14)
    stacked = row_losses(recipe, torch.stack([z, 2 * z]), target_rows(recipe, y).expand(2, 7, 5))
    torch.testing.assert_close(stacked[1], reference(2 * z, y), rtol=1e-13, atol=1e-14)


def test_what_is_published():
    assert {name: recipe.epochs for name, recipe in TRAINING_RECIPES.items() if not recipe.steps} == {
        "dc-bench": 300,
        "dsa": 1000,
        "kip-finite": 5000,
        "soft-label": 1000,
        "d3": 2000,
    }
    assert TRAINING_RECIPES["dc-bench"].augment == ""
    assert TRAINING_RECIPES["dsa"].augment == "color_crop_cutout_flip_scale_rotate"
    assert TRAINING_RECIPES["kip-finite"].network_params == {"width": 1024, "norm": "none"}
    common = {"optimizer": "sgd", "rate": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "batch_size": 256}
    for name in ("dc-bench", "dsa", "soft-label"):
        assert TRAINING_RECIPES[name].model_dump(include=set(common)) == common
    d3 = TRAINING_RECIPES["d3"]
    assert d3.model_dump(include=set(common)) == {**common, "rate": 0.0501}
    assert (d3.labels, d3.schedule, d3.augment) == ("probabilities", "drop", TRAINING_RECIPES["dsa"].augment)
    assert {name for name, recipe in TRAINING_RECIPES.items() if recipe.fresh} == {"d3"}


def test_changes():
    recipe = training_recipe("frepo", epochs=10)
    assert (recipe.name, recipe.steps, recipe.epochs) == ("frepo", (), 10)
    assert training_recipe(recipe) is recipe
    assert training_recipe(recipe, rate=1e-3).epochs == 10


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: training_recipe("ds"), "did you mean 'dsa'"),
        (lambda: training_recipe("dsa", epoch=3), "epoch"),
        (lambda: training_recipe("dsa", epochs=0), "greater than or equal to 1"),
        (lambda: training_recipe("dsa", rate=float("inf")), "finite"),
        (lambda: TrainingRecipe(loss="mse", labels="probabilities"), 'not "probabilities"'),
        (lambda: TrainingRecipe(steps=((100, 5), (10, 5))), "growing points"),
        (lambda: TrainingRecipe(steps=((10, 0),)), "growing points"),
    ],
)
def test_what_is_no_recipe_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
