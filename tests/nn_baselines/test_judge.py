"""The judge: held-out accuracy of networks trained on a set, the same at every call."""

import pytest
import torch

from kernel_distill.nn_baselines.accuracy import network_accuracies
from kernel_distill.nn_baselines.judge import NetworkJudge
from kernel_distill.nn_baselines.training import train_networks
from kernel_distill.nn_baselines.training_recipes import TrainingRecipe
from kernel_distill.solver.networks import network_spec

from .image_rows import CLASSES, SHAPE, image_rows, start_of

# Two steps: accuracies near 0.9, so that other networks have other ones.
RECIPE = TrainingRecipe(epochs=1, rate=0.05)
SPEC = network_spec("convnet", SHAPE, CLASSES, width=8, depth=1)


def test_is_the_mean_held_out_accuracy():
    rows = image_rows(dtype=torch.float32, holdout=0.4)
    x, y, _ = start_of(rows)
    found = NetworkJudge(rows, SPEC, RECIPE, count=3, seed=2)(x.double(), y)
    stack = train_networks(SPEC, x, y, RECIPE, count=3, seed=2, stream="judge")
    held_out = [(inputs, targets.argmax(1)) for inputs, targets in rows.held_out()]
    assert sum(len(inputs) for inputs, _ in held_out) == 24
    assert found["score"] == pytest.approx(float(network_accuracies(stack, held_out).mean()), abs=1e-15)
    assert found["loss"] == 1 - found["score"]
    assert found["score"] > 0.6


def test_tells_good_points_from_bad_ones_and_repeats_itself():
    rows = image_rows(dtype=torch.float32, holdout=0.4)
    x, y, _ = start_of(rows, 3)
    judge = NetworkJudge(rows, SPEC, RECIPE, seed=0)
    good = judge(x.double(), y)
    assert judge(x.double().requires_grad_(), y) == good
    assert judge(x.double(), y.roll(3, 0))["score"] < good["score"]


def test_judges_on_training_rows_where_none_are_held_out():
    rows = image_rows(dtype=torch.float32, holdout=0)
    x, y, _ = start_of(rows)
    assert NetworkJudge(rows, SPEC, RECIPE, seed=0)(x, y)["score"] > 0.6


@pytest.mark.parametrize(
    ("rows", "change", "message"),
    [
        ({"values": True}, {}, "needs classes"),
        ({}, {"spec": network_spec("convnet", SHAPE, CLASSES + 1, width=8)}, "the rows have"),
        ({}, {"spec": network_spec("convnet", (1, 8, 8), CLASSES, width=8)}, "the rows have"),
        ({}, {"recipe": "dcs"}, "unknown training recipe"),
        ({}, {"count": 0}, "`count` must be"),
    ],
)
def test_what_cannot_be_judged_is_refused(rows, change, message):
    arguments = {"spec": SPEC, "recipe": RECIPE, "count": 2} | change
    with pytest.raises(ValueError, match=message):
        NetworkJudge(image_rows(**rows), arguments.pop("spec"), arguments.pop("recipe"), seed=0, **arguments)
