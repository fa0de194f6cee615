"""Accuracies of many networks: known answers, ties, pieces and workers."""

import dataclasses

import pytest
import torch

from kernel_distill.nn_baselines import accuracy
from kernel_distill.nn_baselines.accuracy import network_accuracies
from kernel_distill.nn_baselines.training import train_networks
from kernel_distill.nn_baselines.training_recipes import TrainingRecipe
from kernel_distill.solver.networks import draw_networks, network_spec

SHAPE, K = (3, 8, 8), 4


def stack(norm="instance", count=3):
    return draw_networks(network_spec("convnet", SHAPE, K, width=4, depth=1, norm=norm), count, 0)


def rows(n=70):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, *SHAPE, generator=generator), torch.randint(K, (n,), generator=generator)


@pytest.mark.parametrize("sizes", [[70], [1, 69], [33, 0, 37], [10] * 7])
@pytest.mark.parametrize("workers", [1, 2])
def test_one_pass_is_each_network_for_itself(sizes, workers, monkeypatch):
    monkeypatch.setattr(accuracy, "_TASK_ROWS", 40)
    X, y = rows()
    networks = stack()
    expected = [float((networks.network(i)(X).argmax(1) == y).double().mean()) for i in range(3)]
    pieces = iter(list(zip(X.split(sizes), y.split(sizes), strict=True)))
    found = network_accuracies(networks, pieces, workers=workers)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(expected, abs=1e-15)
    assert next(pieces, None) is None


def test_the_stacked_way_is_the_same():
    X, y = rows()
    hits = accuracy._stacked_hits(stack(), X, y)
    assert torch.equal(hits.double() / 70, network_accuracies(stack(), [(X, y)]))


@pytest.mark.parametrize(("value", "best"), [(0.0, 0), (float("nan"), 0)])
def test_the_first_of_equal_outputs_is_predicted(value, best):
    networks = stack()
    weights = {key: torch.full_like(tensor, value) for key, tensor in networks.parameters.items()}
    X, y = rows()
    found = network_accuracies(dataclasses.replace(networks, parameters=weights), [(X, y)])
    assert found.tolist() == [float((y == best).double().mean())] * 3


def test_batch_norm_uses_running_statistics():
    X, y = rows()
    recipe = TrainingRecipe(epochs=3, rate=0.05)
    trained = train_networks(stack("batch").spec, X, torch.eye(K)[y], recipe, count=2, seed=0)
    expected = [float((trained.network(i).eval()(X).argmax(1) == y).double().mean()) for i in range(2)]
    # Row by row: with the statistics of the rows there would be none.
    pieces = list(zip(X.split(1), y.split(1), strict=True))
    assert network_accuracies(trained, pieces).tolist() == pytest.approx(expected, abs=1e-15)
    before = {key: value.clone() for key, value in trained.buffers.items()}
    assert all(torch.equal(before[key], trained.buffers[key]) for key in before)


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([], "no rows"),
        ([(torch.zeros(0, *SHAPE), torch.zeros(0, dtype=torch.int64))], "no rows"),
        ([(torch.zeros(2, *SHAPE), torch.zeros(3, dtype=torch.int64))], "one class a row"),
        ([(torch.zeros(2, *SHAPE), torch.zeros(2, K))], "one class a row"),
    ],
)
def test_what_cannot_be_counted_is_refused(pieces, message):
    with pytest.raises(ValueError, match=message):
        network_accuracies(stack(), pieces)
