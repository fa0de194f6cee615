"""D3 through `distill`: what cannot work is refused before experts are trained, and the certificate says who judged."""

import numpy as np
import pytest
import torch

import kernel_distill as kd
from kernel_distill.nn_baselines import expert_options

OPTIONS = {
    "network_params": {"width": 4, "depth": 1},
    "judge_networks": 1,
    "judge_epochs": 2,
    "experts": 1,
    "expert_epochs": 2,
    "max_start_epoch": 1,
    "expert_steps": 1,
    "student_steps": 2,
    "decoder_params": {"width": 8, "latent_dim": 3},
    "mmd_samples": 2,
    "label_epoch": 1,
}
X = np.random.default_rng(0).random((48, 1, 8, 10)).astype(np.float32)
Y = np.array(list("abcd"))[np.arange(48) % 4]


def learned(y=Y, *, subtasks=1, **options):
    return kd.distill(
        X,
        y,
        method=kd.D3(**{**OPTIONS, **options}),
        holdout=0.25,
        subtasks=subtasks,
        loop=kd.Loop(steps=1, evaluate_every=1),
        progress=False,
    )


LATE = {
    "decoder option": ({"decoder_params": {"widht": 8}}, "did you mean 'width'"),
    "latents": ({"decoder_params": {"latent_dim": 3, "linear": False}}, "without its dense layer"),
    "one row": ({"y": np.where(np.arange(48) < 1, "e", Y)}, "class 'e' has 1 training rows"),
    "one row is left": (
        {"y": np.where(np.arange(48) < 2, "e", Y)},
        "class 'e' has 1 training rows beside those held out",
    ),
    "one row of a later subtask": (
        {"y": np.where(np.arange(48) < 1, "e", Y), "subtasks": 2},
        "class 'e' has 1 rows, and needs 2",
    ),
}


@pytest.mark.parametrize("case", LATE)
def test_what_cannot_work_is_refused_before_experts_are_trained(case, monkeypatch):
    def trained(*arguments, **options):
        raise AssertionError("experts are trained")

    monkeypatch.setattr(expert_options, "expert_trajectories", trained)
    options, message = LATE[case]
    with pytest.raises(ValueError, match=message):
        learned(**options)


def test_one_row_is_enough_where_features_are_not_compared():
    y = np.where(np.arange(48) < 1, "e", Y)
    ds = learned(y, mmd_weight=0)
    assert ds.targets.classes == tuple("abcde")


@pytest.mark.parametrize(
    ("draws", "message"), [(0, "trained on the set for"), (2, "set with 2 draws of each")]
)
def test_the_certificate_says_what_the_judges_were_trained_on(draws, message):
    certificate = learned(judge_draws=draws).certificate
    assert any(message in note for note in certificate.notes)
    assert certificate.heldout_rows == 12
    assert certificate.heldout_score == pytest.approx(round(certificate.heldout_score * 12) / 12)


@pytest.mark.parametrize("transform", ["none", "standardize", "zca-kip", "zca-rfad"])
@pytest.mark.parametrize("targets", ["centred", "one-hot"])
def test_a_set_is_what_comes_back_from_its_file(transform, targets, tmp_path):
    ds = kd.distill(
        X,
        Y,
        method=kd.D3(**OPTIONS),
        n_points=6,
        transform=transform,
        targets=targets,
        loop=kd.Loop(steps=1, evaluate_every=1),
        progress=False,
    )
    assert ds.hard_labels.tolist() == list("aabccd")
    ds.save(tmp_path / "set")
    again = kd.load(tmp_path / "set")
    assert torch.equal(again.x, ds.x)
    assert torch.equal(again.y, ds.y)
    assert torch.equal(again.draw(3, seed=1), ds.draw(3, seed=1))
    assert again.nbytes == ds.nbytes == 4 * (6 * (3 + 3 + 4)) + ds.storage()["decoder"]
    p = again.y.double() + (1 / 4 if targets == "centred" else 0)
    np.testing.assert_allclose(p.sum(1), 1, rtol=0, atol=1e-6)
    assert float(p.min()) >= -1e-7
