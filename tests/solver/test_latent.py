"""Gaussians in latent space: what a draw is and of what it is a function, its moments, storage, form in a file."""

import json
import math
import pickle

import numpy as np
import pytest
import torch

from kernel_distill.kernels import normal
from kernel_distill.solver import decoders
from kernel_distill.solver.decoders import build_decoder, calibrate, decoder_of, decoder_spec
from kernel_distill.solver.distributions import latent, restore_distribution
from kernel_distill.solver.distributions.latent import LatentGaussians, LatentPart

SHAPE = (1, 8, 8)
SPECS = {
    "small": decoder_spec("small", SHAPE, width=4, latent_dim=5),
    "medium": decoder_spec("medium", SHAPE, width=4, latent_dim=3, scale=2.0),
    "large": decoder_spec("large", SHAPE, width=4),
}
NAMES = pytest.mark.parametrize("name", SPECS)


def learned(name="small", m=6, seed=0):
    """Spec, state of a calibrated decoder, means and log-variances, as a learner hands them over."""
    spec = SPECS[name]
    decoder = build_decoder(spec, seed)
    means = normal(seed, "test.means", (m, spec.latent_dim)).float()
    log_variances = -1 + normal(seed, "test.log_variances", (m, spec.latent_dim)).float()
    calibrate(decoder, [means, means + 1])
    return spec, dict(decoder.state_dict()), means, log_variances


def gaussians(name="small", m=6, seed=0):
    return LatentGaussians.of(*learned(name, m, seed))


def two_parts():
    return LatentGaussians.joined([gaussians("small", 4), gaussians("large", 3, seed=1)])


# --- Points and draws ----------------------------------------------------------------------------------------


@NAMES
def test_points_and_draws_by_their_definition(name):
    spec, state, means, log_variances = learned(name)
    made = LatentGaussians.of(spec, state, means, log_variances)
    assert len(made) == 6
    assert made.input_shape == SHAPE
    decoder = decoder_of(spec, state).eval()
    points = made.points()
    assert points.dtype == torch.float64
    assert torch.equal(points, decoder(means).detach().double())
    for number, seed in ((0, 0), (3, 7)):
        eps = normal(seed, f"latent.{number}.0", tuple(means.shape))
        z = means.double() + eps * (0.5 * log_variances.double()).exp()
        drawn = made.draw(number, seed=seed)
        assert drawn.dtype == torch.float32
        assert torch.equal(drawn, decoder(z.float()).detach())
        assert not drawn.requires_grad


def test_draws_are_a_function_of_seed_and_number():
    made = two_parts()
    first = made.draw(2, seed=5)
    global_state = torch.random.get_rng_state()
    assert torch.equal(made.draw(2, seed=5), first)
    assert torch.equal(global_state, torch.random.get_rng_state())
    for number, seed in ((3, 5), (2, 6)):
        other = made.draw(number, seed=seed)
        assert ((other - first).flatten(1).norm(dim=1) > 1e-3).all()
    # Equal entries of one part, and of several, are drawn apart.
    spec, state, means, log_variances = learned(m=1)
    equal = LatentGaussians.of(spec, state, means.repeat(3, 1), log_variances.repeat(3, 1))
    drawn = LatentGaussians.joined([equal, equal]).draw(0, seed=0).flatten(1)
    assert torch.cdist(drawn, drawn).fill_diagonal_(1).min() > 1e-3
    assert torch.equal(drawn[:3], equal.draw(0, seed=0).flatten(1))


@pytest.mark.parametrize(("rows", "piece"), [(1, 1), (2, 2**30), (5, 3000), (256, 1)])
def test_draws_do_not_depend_on_the_rows_that_are_decoded_together(rows, piece, monkeypatch):
    made = gaussians(m=11)
    points, drawn = made.points(), made.draw(1, seed=3)
    monkeypatch.setattr(latent, "_ROWS", rows)
    monkeypatch.setattr(decoders, "_PIECE_BYTES", piece)
    torch.testing.assert_close(made.draw(1, seed=3), drawn, rtol=0, atol=1e-6)
    torch.testing.assert_close(made.points(), points, rtol=0, atol=1e-6)
    # An entry is what it is whatever comes after it: rows, not batches, are keyed.
    part = made.parts[0]
    fewer = LatentGaussians((LatentPart(part.means[:4], part.log_variances[:4], part.decoder),))
    torch.testing.assert_close(fewer.draw(1, seed=3), drawn[:4], rtol=0, atol=1e-6)


def test_draws_do_not_depend_on_the_threads():
    made, before = gaussians("large", m=40), torch.get_num_threads()
    drawn = made.draw(0, seed=0)
    torch.set_num_threads(2)
    try:
        torch.testing.assert_close(made.draw(0, seed=0), drawn, rtol=0, atol=1e-6)
    finally:
        torch.set_num_threads(before)


def test_latent_vectors_have_their_means_and_variances():
    part = gaussians("medium", m=2).parts[0]
    n = 20_000
    many = LatentPart(part.means[:1].repeat(n, 1), part.log_variances[:1].repeat(n, 1), part.decoder)
    z = many.draw_latents(0, "test").double()
    mean, variance = part.means[0].double(), part.log_variances[0].double().exp()
    # Five standard errors: sqrt(σ²/n) of the mean, σ² sqrt(2/n) of the variance.
    assert ((z.mean(0) - mean).abs() < 5 * (variance / n).sqrt()).all()
    assert ((z.var(0) - variance).abs() < 5 * variance * math.sqrt(2 / n)).all()
    correlation = np.corrcoef(z.numpy().T)
    assert np.abs(correlation - np.eye(3)).max() < 5 / math.sqrt(n)


def test_images_of_a_decoder_that_is_linear_nearby_have_the_moments_of_a_linear_map():
    # Two pixels are not doubled: a dense layer, a convolution, and a tanh that small weights leave linear.
    spec = decoder_spec("small", (1, 2, 2), width=2, latent_dim=3, scale=1e4)
    state = dict(build_decoder(spec, 0).state_dict())
    state["last.weight"] = 1e-4 * state["last.weight"]
    state["last.bias"] = 1e-4 * state["last.bias"]
    decoder = decoder_of(spec, state).double().eval()
    with torch.no_grad():
        offset = decoder(torch.zeros(1, 3).double()).flatten()
        A = (decoder(torch.eye(3).double()).flatten(1) - offset).T
    mean, log_variance = torch.tensor([[1.0, -2.0, 0.5]]), torch.tensor([[0.0, -1.0, 1.0]])
    n = 20_000
    made = LatentGaussians.of(spec, state, mean.repeat(n, 1), log_variance.repeat(n, 1))
    drawn = made.draw(0, seed=0).flatten(1).double()
    covariance = A @ log_variance[0].double().exp().diag() @ A.T
    variance = covariance.diag()
    wanted = A @ mean[0].double() + offset
    assert ((drawn.mean(0) - wanted).abs() < 5 * (variance / n).sqrt()).all()
    errors = ((variance[:, None] * variance + covariance.square()) / n).sqrt()
    assert ((drawn.T.cov() - covariance).abs() < 5 * errors).all()
    torch.testing.assert_close(made.points()[0].flatten(), wanted, rtol=1e-4, atol=1e-5)


def test_without_variance_a_draw_is_the_point():
    spec, state, means, log_variances = learned()
    made = LatentGaussians.of(spec, state, means, torch.full_like(log_variances, -250))
    assert torch.equal(made.draw(4, seed=9).double(), made.points())


# --- Storage and files ---------------------------------------------------------------------------------------


@NAMES
def test_storage_counts_every_stored_number(name):
    made = gaussians(name)
    spec, state, means, _ = learned(name)
    norms = sum(spec.channels[1:])
    weights = sum(value.numel() for value in decoder_of(spec, state).parameters())
    assert made.storage() == {"latents": 2 * 4 * means.numel(), "decoder": 4 * (weights + 2 * norms)}
    assert sum(made.storage().values()) == sum(value.nbytes for value in made.tensors().values())


def test_storage_of_parts_adds_up():
    one, other = gaussians("small", 4), gaussians("large", 3, seed=1)
    both = LatentGaussians.joined([one, other]).storage()
    assert both == {key: one.storage()[key] + other.storage()[key] for key in ("latents", "decoder")}


@pytest.mark.parametrize("make", [*(lambda name=name: gaussians(name) for name in SPECS), two_parts])
def test_everything_comes_back_bit_for_bit(make):
    made = make()
    parameters = json.loads(json.dumps(made.parameters()))
    again = restore_distribution(made.name, parameters, {k: v.clone() for k, v in made.tensors().items()})
    for other in (again, pickle.loads(pickle.dumps(made))):
        assert isinstance(other, LatentGaussians)
        assert other.parameters() == made.parameters()
        assert other.tensors().keys() == made.tensors().keys()
        assert all(torch.equal(value, made.tensors()[name]) for name, value in other.tensors().items())
        assert torch.equal(other.points(), made.points())
        assert torch.equal(other.draw(1, seed=2), made.draw(1, seed=2))
        assert other.storage() == made.storage()
        assert not any(value.requires_grad for part in other.parts for value in part.decoder.parameters())


def test_joined_entries_keep_their_points():
    parts = [gaussians("small", 4), two_parts(), gaussians("medium", 2, seed=2)]
    joined = LatentGaussians.joined(parts)
    assert len(joined) == 4 + 7 + 2
    assert len(joined.parts) == 4
    assert torch.equal(joined.points(), torch.cat([part.points() for part in parts]))
    assert joined.draw(0, seed=0).shape == (13, *SHAPE)


def test_what_was_learned_may_go_on_learning():
    spec, state, means, log_variances = learned()
    means.requires_grad_()
    made = LatentGaussians.of(spec, state, means, log_variances)
    points = made.points()
    with torch.no_grad():
        for value in (means, log_variances, *state.values()):
            value += 1
    assert torch.equal(made.points(), points)


def test_float64_is_stored_as_float32():
    spec, state, means, log_variances = learned()
    double = {name: value.double() for name, value in state.items()}
    made = LatentGaussians.of(spec, double, means.double(), log_variances.double())
    assert all(value.dtype == torch.float32 for value in made.tensors().values())
    assert torch.equal(made.points(), gaussians().points())


# --- What is refused -----------------------------------------------------------------------------------------


def test_inconsistent_parts_are_refused():
    spec, state, means, log_variances = learned()
    wrong = means.clone()
    wrong[1, 2] = math.nan
    negative = {**state, "stages.0.norm.variance": -torch.ones_like(state["stages.0.norm.variance"])}
    infinite = {**state, "last.bias": torch.full_like(state["last.bias"], math.inf)}
    large = decoder_spec("large", SHAPE, width=4)
    for arguments, message in [
        ((spec, state, means[:, :4], log_variances), r"means for this decoder are \(m, 5\)"),
        ((spec, state, means[0], log_variances[0]), r"at least one row, got the shape \(5,\)"),
        ((spec, state, means[:0], log_variances[:0]), "at least one row"),
        (
            (spec, state, means, log_variances[:3]),
            r"\(6, 5\) means need log-variances of that shape, got \(3, 5\)",
        ),
        ((spec, state, wrong, log_variances), "'means' holds a NaN or an infinity"),
        ((spec, state, means, wrong), "'log_variances' holds a NaN"),
        ((spec, infinite, means, log_variances), "'decoder.last.bias' holds a NaN or an infinity"),
        (
            (spec, negative, means, log_variances),
            "'decoder.stages.0.norm.variance' holds a negative variance",
        ),
        ((spec, state, means, log_variances + 200), r"standard deviation .* overflows: the largest .* is 20"),
        ((large, state, means, log_variances), "not the weights of a 'large' decoder"),
    ]:
        with pytest.raises(ValueError, match=message):
            LatentGaussians.of(*arguments)
    with pytest.raises(ValueError, match="training mode"):
        LatentPart(means, log_variances, decoder_of(spec, state))
    with pytest.raises(ValueError, match=r"'means' must be float32 on the CPU, got torch.float64"):
        LatentPart(means.double(), log_variances.double(), decoder_of(spec, state).eval())


def test_parts_of_different_images_are_refused():
    spec = decoder_spec("small", (1, 9, 8), width=4, latent_dim=5)
    other = LatentGaussians.of(spec, dict(build_decoder(spec, 0).state_dict()), *learned()[2:])
    with pytest.raises(ValueError, match=r"images of one shape, got \[\(1, 8, 8\), \(1, 9, 8\)\]"):
        LatentGaussians.joined([gaussians(), other])
    with pytest.raises(ValueError, match="no decoders"):
        LatentGaussians.joined([])


def test_inconsistent_files_are_refused():
    made = two_parts()
    parameters, tensors = made.parameters(), made.tensors()
    for change, message in [
        ({"0.means": None}, "part 0 of stored latent Gaussians needs 'means'"),
        ({"1.log_variances": None}, "part 1 of stored latent Gaussians needs"),
        ({"1.decoder.last.bias": None}, "not the weights of a 'large' decoder"),
        ({"0.decoder.more": torch.zeros(1)}, "not the weights of a 'small' decoder"),
        ({"0.more": torch.zeros(1)}, r"of no part of 2 stored latent Gaussians: \['0.more'\]"),
        ({"2.means": torch.zeros(1, 5)}, r"of no part .*2.means"),
        ({"0.means": tensors["0.means"][:2]}, "need log-variances of that shape"),
        ({"0.means": tensors["0.means"].half()}, "must be float32"),
    ]:
        changed = {k: v for k, v in {**tensors, **change}.items() if v is not None}
        with pytest.raises(ValueError, match=message):
            restore_distribution(made.name, parameters, changed)
    with pytest.raises(ValueError, match="not the parameters of a decoder"):
        restore_distribution(made.name, {"parts": [{}]}, tensors)
    with pytest.raises(ValueError, match="no decoders"):
        restore_distribution(made.name, {"parts": []}, {})
    with pytest.raises(ValueError, match="unknown kind of distribution"):
        restore_distribution("latents", parameters, tensors)
