"""Options of D3: the published ones, and those that make no sense."""

import pytest

from kernel_distill.nn_baselines.d3_options import D3
from kernel_distill.solver.decoder_spec import decoder_spec

from .image_rows import image_rows

NO_EXPERTS = {"trajectory_weight": 0, "mmd_network": "random", "labels": "hard"}


def test_the_defaults_are_published():
    options = D3()
    assert (options.max_start_epoch, options.expert_steps, options.student_steps) == (27, 2, 10)
    assert (options.lr_latent, options.lr_decoder, options.rate, options.rate_lr) == (3e-4, 3e-4, 0.01, 1e-6)
    assert (options.momentum, options.weight_decay) == (0.5, 1e-5)
    assert (options.mmd_samples, options.bandwidths, options.biased) == (30, (1, 2, 4, 8, 16), False)
    assert (options.mmd_network, options.labels, options.label_epoch) == ("final", "soft", 9)
    assert (options.steps, options.evaluate_every, options.batch_syn) == (10_000, 200, None)
    recipe = options.expert_recipe()
    assert (recipe.rate, recipe.momentum, recipe.batch_size, recipe.epochs) == (0.01, 0, 256, 50)
    assert (recipe.augment, options.augment) == ("crop_scale_rotate", "")
    spec = decoder_spec(options.decoder, (3, 64, 64), **options.decoder_params)
    assert (spec.name, spec.width, spec.latent_dim, spec.scale) == ("small", 256, 64, 1.0)


def test_the_decoder_is_for_the_rows():
    spec = D3(decoder="medium", decoder_params={"width": 16}).decoder_spec(image_rows())
    assert (spec.name, spec.image_shape, spec.width) == ("medium", (2, 8, 8), 16)


def test_experts_are_needed_by_what_looks_at_them():
    assert D3().needs_experts
    assert not D3(**NO_EXPERTS).needs_experts
    for one in ({"trajectory_weight": 1}, {"mmd_network": "final"}, {"labels": "soft"}):
        assert D3(**{**NO_EXPERTS, **one}).needs_experts
    assert D3(**{**NO_EXPERTS, "trajectory_weight": 1, "mmd_weight": 0, "mmd_network": "final"}).needs_experts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trajectory_weight": 0, "mmd_weight": 0}, "both 0"),
        ({"trajectory_weight": -1}, "trajectory_weight"),
        ({"mmd_weight": float("inf")}, "mmd_weight"),
        ({"mmd_samples": 1}, "mmd_samples"),
        ({"bandwidths": ()}, "one or more"),
        ({"bandwidths": (1, -2)}, "above 0"),
        ({"bandwidths": "mean"}, "bandwidths"),
        ({"ratios": (float("nan"),)}, "above 0"),
        ({"decoder": "huge"}, "unknown decoder"),
        ({"network": "convnot"}, "unknown network"),
        ({"mmd_network": "last"}, "mmd_network"),
        ({"labels": "fixed"}, "labels"),
        ({"rate": 0}, "rate"),
        ({"augment": "colour"}, "unknown augmentation 'colour'"),
        ({"expert_augment": "crop_crop"}, "names 'crop' twice"),
        ({"judge_draws": -1}, "judge_draws"),
        ({"lr_decoder": 0}, "lr_decoder"),
        ({"expert_epochs": 10}, "reach epoch 28, the experts are trained for 10"),
        ({"expert_epochs": 28, "mmd_network": "expert"}, "of epoch max_start_epoch . expert_steps = 29"),
        ({"label_epoch": 51}, "label_epoch=51 is beyond"),
        ({"lr": 1.0}, "lr"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        D3(**options)


def test_what_is_not_looked_at_need_not_reach():
    D3(expert_epochs=28)
    D3(**NO_EXPERTS, expert_epochs=1)
    D3(trajectory_weight=0, expert_epochs=9)
    assert D3(mmd_network="expert").feature_epoch(50) == 29
    assert D3().feature_epoch(40) == 40
