"""Fresh samples at every epoch: which ones, and that training on them is training on more rows."""

import dataclasses
import itertools
import pickle

import pytest
import torch
from torch.nn import functional as F

from kernel_distill.kernels import normal
from kernel_distill.nn_baselines import training
from kernel_distill.nn_baselines.draws import Draws
from kernel_distill.nn_baselines.evaluator import Choice, train_on
from kernel_distill.nn_baselines.schedule import make_schedule, row_orders
from kernel_distill.nn_baselines.training import train_networks
from kernel_distill.nn_baselines.training_recipes import TrainingRecipe, training_recipe
from kernel_distill.solver.distributions import Distribution
from kernel_distill.solver.networks import draw_networks, network_spec

SHAPE, K, M = (2, 8, 8), 3, 5
CONVNET = network_spec("convnet", SHAPE, K, width=4, depth=1)
MLP = network_spec("mlp", SHAPE, K, width=6, depth=1)


class Noise(Distribution):
    """Standard normal about points; `still`: the same draw whatever its number."""

    def __init__(self, means, still=False):
        self.means, self.still = means, still

    def __len__(self):
        return len(self.means)

    @property
    def input_shape(self):
        return tuple(self.means.shape[1:])

    def points(self):
        return self.means.double()

    def draw(self, number, *, seed):
        stream = "noise" if self.still else f"noise.{number}"
        return (self.means + normal(seed, stream, tuple(self.means.shape))).float()

    storage = parameters = tensors = restore = joined = None


def points(dtype=torch.float32, m=M):
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(m, *SHAPE, generator=generator, dtype=dtype)
    return X, torch.randn(m, K, generator=generator, dtype=dtype).softmax(1)


def equal(one, other):
    return all(torch.equal(one.parameters[key], other.parameters[key]) for key in one.parameters)


def test_every_epoch_has_its_own_draws():
    distribution = Noise(points()[0])
    draws = Draws(distribution, 2, 7)
    expected = [distribution.draw(number, seed=7) for number in range(6)]
    for epoch in (2, 0, 1):
        assert torch.equal(draws(epoch), torch.cat(expected[2 * epoch : 2 * epoch + 2]))
    assert draws(0).shape == (2 * M, *SHAPE)
    assert draws(0).dtype == torch.float32
    assert torch.equal(pickle.loads(pickle.dumps(draws))(1), draws(1))
    assert not torch.equal(dataclasses.replace(draws, seed=8)(1), draws(1))


RECIPES = {
    "one batch": TrainingRecipe(epochs=3, rate=0.1, labels="probabilities"),
    "batches": TrainingRecipe(epochs=4, rate=0.1, labels="probabilities", batch_size=4),
    "augmented": TrainingRecipe(epochs=3, rate=0.1, batch_size=7, augment="crop_flip_scale"),
    "squared": TrainingRecipe(epochs=3, rate=0.1, loss="mse", schedule="constant"),
    "steps": TrainingRecipe(steps=((M, 3), (100, 8)), schedule="cosine", batch_size=4, rate=0.1),
}


@pytest.mark.parametrize("strategy", ["serial", "stacked"])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", RECIPES)
def test_draws_that_stay_the_same_are_more_rows(name, count, strategy):
    X, Y = points()
    draw = Draws(Noise(X, still=True), count, 1)
    options = {"count": 2, "seed": 3, "strategy": strategy}
    found = train_networks(CONVNET, X, Y, RECIPES[name], draw=draw, **options)
    rows = torch.cat([X, draw(0)]), Y.repeat(1 + count, 1)
    assert equal(found, train_networks(CONVNET, *rows, RECIPES[name], **options))
    assert not equal(found, train_networks(CONVNET, X, Y, RECIPES[name], **options))


@pytest.mark.parametrize("strategy", ["serial", "stacked"])
def test_is_the_published_loop_on_means_and_samples(strategy):
    X, Y = points(torch.float64)
    recipe = training_recipe("d3", epochs=4, batch_size=4, augment="")
    draw = Draws(Noise(X), 1, 2)
    found = train_networks(MLP, X, Y, recipe, count=2, seed=3, draw=draw, strategy=strategy)
    for number in range(2):
        network = draw_networks(MLP, number + 1, 3, "train.network", dtype=X.dtype).network(number).train()

        def optimizer(rate, network=network):
            return torch.optim.SGD(network.parameters(), rate, momentum=0.9, weight_decay=5e-4)

        rate = 0.0501
        steps = optimizer(rate)
        for epoch in range(5):
            inputs = torch.cat([X, draw.distribution.draw(epoch, seed=2).double()])
            order = row_orders(2 * M, epoch, range(number, number + 1), seed=3, stream="train")[0]
            for rows in order.split(4):
                steps.zero_grad()
                F.cross_entropy(network(inputs[rows]), Y.repeat(2, 1)[rows]).backward()
                steps.step()
            if epoch == 4 // 2 + 1:
                steps = optimizer(0.1 * rate)
        for key, value in network.named_parameters():
            torch.testing.assert_close(found.parameters[key][number], value.detach(), rtol=1e-9, atol=1e-11)


def test_any_number_of_workers_and_both_strategies_give_the_same():
    X, Y = points(torch.float64)
    draw = Draws(Noise(X), 1, 0)
    recipe = training_recipe("d3", epochs=3, batch_size=4)
    one, two, stacked = (
        train_networks(CONVNET, X, Y, recipe, count=3, seed=0, draw=draw, **how)
        for how in ({"workers": 1}, {"workers": 2}, {"strategy": "stacked"})
    )
    assert equal(one, two)
    for key, value in one.parameters.items():
        torch.testing.assert_close(stacked.parameters[key], value, rtol=1e-8, atol=1e-10)


def test_networks_trained_apart_see_the_same_draws(monkeypatch):
    X, Y = points()
    draw, recipe = Draws(Noise(X), 1, 0), training_recipe("d3", epochs=2, batch_size=4)
    together = train_networks(CONVNET, X, Y, recipe, count=3, seed=0, draw=draw, strategy="stacked")
    monkeypatch.setattr(training, "STACK_BYTES", 1)
    apart = train_networks(CONVNET, X, Y, recipe, count=3, seed=0, draw=draw, strategy="stacked")
    for key, value in together.parameters.items():
        torch.testing.assert_close(apart.parameters[key], value, rtol=1e-3, atol=1e-5)


def test_the_epoch_is_chosen_among_those_of_all_rows():
    X, Y = points()
    draw = Draws(Noise(X), 1, 0)
    recipe = TrainingRecipe(steps=((M, 4), (100, 9)), schedule="constant", batch_size=4, rate=0.1)
    epochs = make_schedule(recipe, 2 * M).epochs
    assert epochs != make_schedule(recipe, M).epochs
    held = points(m=9)[0], torch.arange(9) % K
    looked = itertools.count()

    def pieces():
        next(looked)
        return [held]

    done = train_on(CONVNET, X, Y, recipe, count=1, choice=Choice((), True, pieces), draw=draw)
    assert next(looked) == epochs
    assert done.epoch in range(1, epochs + 1)


def test_rates_are_tried_on_the_same_draws():
    X, Y = points()
    draw, recipe = Draws(Noise(X), 1, 0), TrainingRecipe(epochs=2)
    choice = Choice((0.3,), False, lambda: [(X, Y.argmax(1))])
    chosen = train_on(CONVNET, X, Y, recipe, count=2, choice=choice, draw=draw)
    plain = train_on(CONVNET, X, Y, training_recipe(recipe, rate=0.3), count=2, draw=draw)
    assert equal(chosen.stack, plain.stack)
    assert not equal(plain.stack, train_on(CONVNET, X, Y, training_recipe(recipe, rate=0.3), count=2).stack)


def test_without_draws_a_fresh_recipe_is_one_without():
    X, Y = points()
    fresh, plain = (training_recipe("d3", epochs=2, fresh=number) for number in (1, 0))
    assert equal(*(train_networks(CONVNET, X, Y, recipe, count=2, seed=0) for recipe in (fresh, plain)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Draws(Noise(points()[0]), 0, 0), "count"),
        (lambda: training_recipe("d3", fresh=-1), "greater than or equal to 0"),
        (
            lambda: train_networks(
                MLP, *points(), "d3", count=1, seed=0, draw=Draws(Noise(points(m=4)[0]), 1, 0)
            ),
            "5 distributions over inputs of .2, 8, 8., .* got 4",
        ),
        (
            lambda: train_networks(
                MLP, *points(), "d3", count=1, seed=0, draw=Draws(Noise(points()[0][:, :1]), 1, 0)
            ),
            r"got 5 over \(1, 8, 8\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
