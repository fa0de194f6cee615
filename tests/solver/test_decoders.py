"""Decoders by their names: sizes as published, definition, any image, batch norm, calibration, refusals."""

import copy
import json
import math
import pickle

import numpy as np
import pytest
import torch

from kernel_distill.kernels import normal
from kernel_distill.solver import decoders
from kernel_distill.solver.decoders import (
    DecoderSpec,
    build_decoder,
    calibrate,
    decode,
    decoder_of,
    decoder_spec,
)

# Trainable numbers, counted once in the modules of the published code.
SIZES = [
    ("small", 32, {"width": 128}, 64, 210_227),
    ("small", 32, {}, 64, 772_707),
    ("small", 64, {"width": 128}, 64, 214_371),
    ("small", 64, {}, 64, 789_187),
    ("small", 128, {}, 64, 805_667),
    ("small", 256, {}, 64, 822_147),
    ("medium", 32, {}, 2048, 5_784_771),
    ("medium", 64, {}, 2048, 5_774_691),
    ("large", 64, {}, 4096, 6_308_547),
    ("large", 64, {"linear": True}, 4096, 23_089_859),
]
CHANNELS = [
    ("small", (3, 64, 64), 256, (256, 128, 64, 32, 32, 32)),
    ("medium", (3, 32, 32), 512, (512, 256, 128, 64, 64)),
    ("medium", (3, 64, 64), 512, (512, 256, 128, 64, 32, 32)),
    ("medium", (3, 128, 128), 512, (512, 256, 128, 64, 32, 32, 32)),
    ("large", (3, 64, 64), 1024, (1024, 512, 256, 128, 64, 64)),
    ("large", (3, 32, 32), 1024, (1024, 512, 256, 128, 128)),
    ("small", (1, 8, 8), 4, (4, 2, 1)),
    ("small", (1, 16, 16), 4, (4, 2, 1, 1)),
    ("medium", (1, 4, 4), 8, (8, 8)),
    ("small", (1, 2, 2), 8, (8,)),
    ("medium", (1, 2, 2), 8, (8,)),
]
# Image and the sides from which it is doubled.
IMAGES = [
    ((1, 8, 8), (2, 2)),
    ((3, 9, 9), (2, 2)),
    ((1, 28, 28), (2, 2)),
    ((3, 33, 33), (2, 2)),
    ((2, 2, 2), (2, 2)),
    ((1, 2, 9), (2, 9)),
    ((1, 3, 4), (2, 2)),
    ((4, 12, 5), (3, 2)),
    ((1, 8, 32), (2, 8)),
]
# One of each kind, small: with and without cropping, dense layer and scale.
VARIANTS = [
    ("small", (1, 8, 8), {"width": 8, "latent_dim": 5}),
    ("small", (2, 7, 5), {"width": 4, "latent_dim": 3, "scale": 2.5}),
    ("small", (1, 4, 4), {"width": 4, "linear": False}),
    ("medium", (2, 8, 8), {"width": 4, "latent_dim": 6}),
    ("medium", (1, 9, 6), {"width": 4}),
    ("large", (3, 8, 7), {"width": 4, "scale": 0.5}),
    ("large", (1, 2, 3), {"width": 4}),
]
KINDS = pytest.mark.parametrize(
    ("name", "shape", "options"), VARIANTS, ids=[f"{name}-{shape}" for name, shape, _ in VARIANTS]
)


def made(name, shape, options, seed=0, dtype=torch.float64):
    """A decoder in which no tensor has the value it starts with, so that each matters."""
    decoder = build_decoder(decoder_spec(name, shape, **options), seed, dtype=dtype)
    for key, value in decoder.state_dict().items():
        if "norm" in key:
            start = normal(seed, f"test.{key}", tuple(value.shape)).to(dtype)
            value.copy_((0.3 * start).exp() if key.endswith(("weight", "variance")) else 0.3 * start)
    return decoder


def latents(decoder, n, seed=0, dtype=torch.float64):
    return normal(seed, "test.latents", (n, decoder.spec.latent_dim)).to(dtype)


# --- What they are -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "side", "options", "latent_dim", "numbers"), SIZES)
def test_published_sizes(name, side, options, latent_dim, numbers):
    spec = decoder_spec(name, (3, side, side), **options)
    assert spec.latent_dim == latent_dim
    with torch.device("meta"):
        decoder = decoders.Decoder(spec)
    assert sum(value.numel() for value in decoder.parameters()) == numbers


@pytest.mark.parametrize(("name", "shape", "width", "channels"), CHANNELS)
def test_channels_of_every_stage(name, shape, width, channels):
    spec = decoder_spec(name, shape, width=width)
    assert spec.channels == channels
    assert spec.doublings == len(channels) - 1


@pytest.mark.parametrize("name", ["small", "medium", "large"])
@pytest.mark.parametrize(("shape", "sides"), IMAGES)
def test_any_image_has_a_decoder(name, shape, sides):
    spec = decoder_spec(name, shape, width=8)
    assert spec.first_shape == (8, *sides)
    assert spec.latent_dim == (64 if name == "small" else 8 * math.prod(sides))
    # The fewest doublings that fill the image, from at least two pixels.
    assert all(2 <= side <= whole for side, whole in zip(sides, shape[1:], strict=True))
    assert all(
        side * 2**spec.doublings >= whole > (side - 1) * 2**spec.doublings
        for side, whole in zip(sides, shape[1:], strict=True)
    )
    for n in (1, 3):
        decoder = build_decoder(spec, 0)
        images = decoder(latents(decoder, n, dtype=torch.float32))
        assert images.shape == (n, *shape)
        assert images.dtype == torch.float32


def definition(decoder, z, training):
    """The decoder in NumPy, one number at a time where it matters, from its tensors."""
    spec = decoder.spec
    state = {name: value.numpy() for name, value in decoder.state_dict().items()}
    h = z.numpy() @ state["project.weight"].T + state["project.bias"] if spec.linear else z.numpy()
    h = h.reshape(len(z), *spec.first_shape)
    for stage in range(spec.doublings):
        part = {
            name.removeprefix(f"stages.{stage}."): value
            for name, value in state.items()
            if name.startswith(f"stages.{stage}.")
        }
        h = doubled(h, part["convolution.weight"]) + part["convolution.bias"][:, None, None]
        mean, variance = part["norm.mean"], part["norm.variance"]
        if training:
            mean, variance = h.mean((0, 2, 3)), h.var((0, 2, 3))
        h = (h - mean[:, None, None]) / np.sqrt(variance + 1e-5)[:, None, None]
        h = h * part["norm.weight"][:, None, None] + part["norm.bias"][:, None, None]
        h = np.where(h > 0, h, 0.01 * h)
    height, width = h.shape[2:]
    padded = np.pad(h, ((0, 0), (0, 0), (1, 1), (1, 1)))
    h = sum(
        np.einsum(
            "nchw,oc->nohw", padded[..., i : i + height, j : j + width], state["last.weight"][..., i, j]
        )
        for i in range(3)
        for j in range(3)
    )
    h = np.tanh(h + state["last.bias"][:, None, None]) * spec.scale
    rows, columns = spec.image_shape[1:]
    top, left = (height - rows) // 2, (width - columns) // 2
    return h[..., top : top + rows, left : left + columns]


def doubled(h, weight):
    """Transposed convolution of stride 2: pixel (i, j) is spread over the square around (2 i, 2 j)."""
    n, _, height, width = h.shape
    size = weight.shape[-1]
    out = np.zeros((n, weight.shape[1], 2 * height + size, 2 * width + size))
    for i in range(height):
        for j in range(width):
            out[:, :, 2 * i : 2 * i + size, 2 * j : 2 * j + size] += np.einsum(
                "nc,coab->noab", h[:, :, i, j], weight
            )
    return out[:, :, 1 : 2 * height + 1, 1 : 2 * width + 1]


@KINDS
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_definition(name, shape, options, training):
    decoder = made(name, shape, options).train(training)
    z = latents(decoder, 3)
    found = decoder(z).detach().numpy()
    assert np.abs(found).max() > 0.05  # an image of zeros would agree with anything
    np.testing.assert_allclose(found, definition(decoder, z, training), rtol=0, atol=1e-12)


def test_values_are_inside_the_scale():
    decoder = made("small", (1, 8, 8), {"width": 4, "latent_dim": 3, "scale": 3.0})
    images = decoder(200 * latents(decoder, 50))
    assert images.abs().max() <= 3.0
    assert images.abs().max() > 1.0


@KINDS
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_gradients_by_finite_differences(name, shape, options, training):
    decoder = made(name, shape, options).train(training)
    z = latents(decoder, 2).requires_grad_()
    assert torch.autograd.gradcheck(decoder, (z,), eps=1e-6, atol=1e-6)
    weight = decoder.stages[0].convolution.weight if len(decoder.stages) else decoder.last.weight

    def of_weight(value):
        prefix = "stages.0.convolution" if len(decoder.stages) else "last"
        return torch.func.functional_call(decoder, {f"{prefix}.weight": value}, (z.detach(),))

    start = weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(of_weight, (start,), eps=1e-6, atol=1e-6, fast_mode=True)


# --- Where they start ----------------------------------------------------------------------------------------


def test_weights_have_the_default_distributions_of_torch():
    spec = decoder_spec("medium", (3, 8, 8), width=32)
    decoder = build_decoder(spec, 3)
    for name in ("project", "stages.0.convolution", "stages.1.convolution", "last"):
        layer = decoder.get_submodule(name).requires_grad_(requires_grad=False)
        theirs = copy.deepcopy(layer)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            theirs.reset_parameters()
        # The largest of n uniforms lies within 10 / n of their bound (but for a chance of e^-10).
        n = layer.weight.numel()
        bound = float(layer.weight.abs().max())
        assert bound == pytest.approx(float(theirs.weight.abs().max()), rel=10 / n)
        # Their mean square is bound²/3, with relative deviation sqrt(4 / 5 n): five of them.
        assert float(layer.weight.square().mean()) == pytest.approx(bound**2 / 3, rel=5 * (0.8 / n) ** 0.5)
        assert float(layer.weight.mean()) == pytest.approx(0, abs=5 * bound / (3 * n) ** 0.5)
        assert 0 < float(layer.bias.abs().max()) < bound * (1 + 10 / n)
    for stage in decoder.stages:
        assert set(torch.cat([stage.norm.weight.detach(), stage.norm.variance]).tolist()) == {1.0}
        assert set(torch.cat([stage.norm.bias.detach(), stage.norm.mean]).tolist()) == {0.0}


def test_weights_are_a_function_of_seed_and_stream():
    spec = decoder_spec("small", (1, 8, 8), width=4, latent_dim=3)
    before = torch.random.get_rng_state()
    one, double = build_decoder(spec, 1), build_decoder(spec, 1, dtype=torch.float64)
    assert torch.equal(before, torch.random.get_rng_state())
    assert one.training
    for name, value in one.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value.double(), double.state_dict()[name])
    for other in (build_decoder(spec, 2), build_decoder(spec, 1, "other")):
        for name in ("project.weight", "stages.1.convolution.bias", "last.weight"):
            assert not (other.state_dict()[name] == one.state_dict()[name]).any()
    assert not torch.equal(one.project.weight.flatten()[:8], one.last.weight.flatten()[:8])
    biases = [
        stage.convolution.bias[0].item() / stage.convolution.weight.shape[1] ** -0.5 for stage in one.stages
    ]
    assert abs(biases[0] - biases[1]) > 1e-3
    deeper = build_decoder(decoder_spec("small", (1, 16, 16), width=4, latent_dim=3), 1)
    assert torch.equal(deeper.project.weight, one.project.weight)


def test_trained_like_any_module():
    decoder = build_decoder(decoder_spec("small", (1, 8, 8), width=4, latent_dim=3), 0)
    z, target = latents(decoder, 6, dtype=torch.float32), torch.zeros(6, 1, 8, 8)
    losses = []
    for _ in range(30):
        loss = (decoder(z) - target).square().mean()
        losses.append(loss.item())
        with torch.no_grad():
            gradients = torch.autograd.grad(loss, list(decoder.parameters()))
            for value, gradient in zip(decoder.parameters(), gradients, strict=True):
                value -= 0.5 * gradient
    assert losses[-1] < 0.5 * losses[0]
    for again in (copy.deepcopy(decoder), pickle.loads(pickle.dumps(decoder))):
        assert again.spec == decoder.spec
        assert torch.equal(again(z), decoder(z))


# --- Batch norm and calibration ------------------------------------------------------------------------------


@KINDS
def test_training_mode_changes_nothing_and_depends_on_the_batch(name, shape, options):
    decoder = made(name, shape, options)
    z, state = latents(decoder, 5), copy.deepcopy(decoder.state_dict())
    first = decoder(z)
    assert torch.equal(decoder(z), first)
    assert all(torch.equal(value, state[key]) for key, value in decoder.state_dict().items())
    if len(decoder.stages):
        assert (decoder(z[:3]) - first[:3]).abs().max() > 1e-3
    decoder.eval()
    torch.testing.assert_close(decoder(z[:3]), decoder(z)[:3], rtol=0, atol=1e-13)


@KINDS
def test_calibrated_it_gives_what_the_whole_batch_gives(name, shape, options):
    decoder = made(name, shape, options)
    z = latents(decoder, 7)
    wanted = decoder(z)
    calibrate(decoder, [z])
    assert decoder.training
    torch.testing.assert_close(decoder.eval()(z), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("cuts", [[7], [3, 4], [1] * 7, [0, 5, 0, 2]])
@pytest.mark.parametrize("piece", [1, 2**30])
def test_calibration_does_not_depend_on_the_batches(cuts, piece, monkeypatch):
    monkeypatch.setattr(decoders, "_PIECE_BYTES", piece)
    decoder = made("small", (2, 8, 8), {"width": 8, "latent_dim": 4})
    z = latents(decoder, 7)
    wanted = decoder(z)
    other = copy.deepcopy(decoder).eval()
    calibrate(other, iter(z.split(cuts)))
    assert not other.training
    torch.testing.assert_close(other(z), wanted, rtol=0, atol=1e-12)
    # Each batch by itself would have had other statistics.
    assert (decoder(z[:3]) - wanted[:3]).abs().max() > 1e-3


def test_stored_statistics_by_their_definition():
    decoder = made("medium", (1, 8, 8), {"width": 4, "latent_dim": 3})
    z = latents(decoder, 6)
    calibrate(decoder, z.split(2))
    h = decoder.first(z)
    for stage in decoder.stages:
        before = stage.convolution(h)
        torch.testing.assert_close(stage.norm.mean, before.mean((0, 2, 3)), rtol=1e-12, atol=1e-13)
        wanted = before.var((0, 2, 3), correction=0)
        torch.testing.assert_close(stage.norm.variance, wanted, rtol=1e-12, atol=1e-13)
        h = stage(h)


def test_calibration_of_equal_rows_has_no_negative_variance():
    # Of 64 channels, some would have one by rounding.
    decoder = made("small", (1, 4, 4), {"width": 128, "latent_dim": 3})
    with torch.no_grad():
        decoder.project.weight.zero_()
        decoder.stages[0].convolution.weight.zero_()
        decoder.stages[0].convolution.bias.copy_(1e3 * decoder.stages[0].convolution.bias)
    calibrate(decoder, [latents(decoder, 9)])
    assert (decoder.stages[0].norm.variance >= 0).all()
    assert decoder.stages[0].norm.variance.max() < 1e-8
    assert torch.isfinite(decoder.eval()(latents(decoder, 2))).all()


# --- Decoding ------------------------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("piece", [1, 10_000, 2**30])
def test_decoding_does_not_depend_on_the_pieces(name, shape, options, piece, monkeypatch):
    monkeypatch.setattr(decoders, "_PIECE_BYTES", piece)
    decoder = made(name, shape, options).eval()
    z = latents(decoder, 11).requires_grad_()
    images = decode(decoder, z)
    assert not images.requires_grad
    assert images.is_contiguous()
    torch.testing.assert_close(images, decoder(z).detach(), rtol=0, atol=1e-13)
    assert decode(decoder, z[:0]).shape == (0, *shape)


def test_pieces_are_of_bounded_memory():
    spec = decoder_spec("small", (3, 64, 64))
    # The last stage of 32 channels: the image before, and after its convolution and its norm.
    assert spec.row_bytes == 4 * (32 * 32**2 + 2 * 32 * 64**2)
    sizes = []
    decoder = build_decoder(spec, 0).eval()
    decoder.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    decode(decoder, latents(decoder, 60, dtype=torch.float32))
    assert sum(sizes) == 60
    assert max(sizes) * spec.row_bytes <= 2**25


# --- Plain values, and what is refused -----------------------------------------------------------------------


@KINDS
def test_the_spec_comes_back_from_plain_values(name, shape, options):
    spec = decoder_spec(name, list(shape), **options)
    again = DecoderSpec.restore(json.loads(json.dumps(spec.parameters())))
    assert again == spec
    assert hash(again) == hash(spec)


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("tiny", (1, 8, 8), {}, "unknown decoder 'tiny'"),
        ("smal", (1, 8, 8), {}, "did you mean 'small'"),
        ("small", (8, 8), {}, r"images \(c, h, w\) of at least 2 x 2 pixels, got the shape \(8, 8\)"),
        ("small", (1, 1, 8), {}, "at least 2"),
        ("medium", (1, 8, 1), {}, "at least 2"),
        ("small", (0, 8, 8), {}, "`image_shape` must be an integer of at least 1"),
        ("small", (1, 8.0, 8), {}, "`image_shape` must be an integer"),
        ("small", (1, 8, 8), {"width": 0}, "`width` must be an integer of at least 1"),
        ("small", (1, 8, 8), {"latent_dim": 2.5}, "`latent_dim` must be an integer"),
        ("small", (1, 8, 8), {"linear": 1}, "`linear` must be True or False"),
        ("small", (1, 8, 8), {"scale": 0}, "`scale` must be positive"),
        ("small", (1, 8, 8), {"scale": math.inf}, "`scale` must be finite"),
        ("small", (1, 8, 8), {"depth": 3}, "unknown option of a decoder 'depth'"),
        ("large", (1, 8, 8), {"width": 4, "latent_dim": 15}, "latent vectors of 16 numbers"),
        ("small", (1, 8, 8), {"width": 4, "latent_dim": 64, "linear": False}, "latent vectors of 16 numbers"),
    ],
)
def test_impossible_decoders_are_refused(name, shape, options, message):
    with pytest.raises(ValueError, match=message):
        decoder_spec(name, shape, **options)


def test_more_weights_than_can_be_numbered_are_refused():
    with pytest.raises(ValueError, match="not the weights of a 'small' decoder"):
        decoder_of(decoder_spec("small", (1, 8, 8), width=10**9), {})


def test_foreign_values_are_refused():
    spec = decoder_spec("small", (1, 8, 8), width=4, latent_dim=3)
    for values in ({}, {**spec.parameters(), "depth": 1}, {**spec.parameters(), "image_shape": None}):
        with pytest.raises(ValueError, match="not the parameters of a decoder"):
            DecoderSpec.restore(values)


def test_foreign_tensors_are_refused():
    spec = decoder_spec("small", (1, 8, 8), width=4, latent_dim=3)
    state = dict(build_decoder(spec, 0).state_dict())
    for wrong in (
        {name: value for name, value in state.items() if name != "last.bias"},
        {**state, "more": torch.zeros(1)},
        {**state, "last.bias": torch.zeros(2)},
    ):
        with pytest.raises(ValueError, match="not the weights of a 'small' decoder"):
            decoder_of(spec, wrong)
    again = decoder_of(spec, state)
    assert again.last.bias.requires_grad


def test_foreign_latent_vectors_are_refused():
    decoder = made("small", (1, 8, 8), {"width": 4, "latent_dim": 3})
    for z in (torch.zeros(2, 4), torch.zeros(3), torch.zeros(1, 1, 3)):
        with pytest.raises(ValueError, match=r"takes latent vectors \(b, 3\)"):
            decoder(z.double())
    with pytest.raises(ValueError, match="training mode an image depends on its batch"):
        decode(decoder, torch.zeros(2, 3).double())
    for empty in ([], [torch.zeros(0, 3).double()]):
        with pytest.raises(ValueError, match="no latent vectors to calibrate"):
            calibrate(decoder, empty)
    with pytest.raises(ValueError, match="NaN in row 1"):
        calibrate(decoder, [torch.tensor([[0.0, 0, 0], [math.nan, 0, 0]]).double()])
    with pytest.raises(ValueError, match="takes latent vectors"):
        calibrate(decoder, [torch.zeros(2, 4).double()])
    assert decoder.training
