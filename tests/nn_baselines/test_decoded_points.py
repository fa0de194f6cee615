"""Decoded images: the graph of one batch at a time gives the gradient of all."""

import pytest
import torch

from kernel_distill.nn_baselines.decoded_points import LatentBatch, decoded
from kernel_distill.solver.decoders import build_decoder, decoder_spec

from ..kernels.peak import PeakMemory

SHAPE = (2, 8, 8)


def problem(name="small", m=5, lengths=(5, 3, 1), dtype=torch.float64, width=8):
    """A decoder, means, log-variances, and batches of latent vectors."""
    spec = decoder_spec(name, SHAPE, width=width, **({"latent_dim": 4} if name == "small" else {}))
    decoder = build_decoder(spec, 1, dtype=dtype).train()
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    mean, log_variance = (normal(m, spec.latent_dim).requires_grad_() for _ in range(2))
    batches = [
        LatentBatch(torch.randperm(m, generator=generator)[:length], normal(length, spec.latent_dim))
        for length in lengths
    ]
    return decoder, mean, log_variance, batches


def plain(decoder, mean, log_variance, batches):
    """The images with their graph."""
    parts = [mean[b.index] + b.noise * (0.5 * log_variance[b.index]).exp() for b in batches]
    return torch.cat([decoder(z) for z in parts])


@pytest.mark.parametrize("name", ["small", "medium", "large"])
def test_images_and_gradients_are_those_of_the_whole_graph(name):
    decoder, mean, log_variance, batches = problem(name)
    leaves = [mean, log_variance, *decoder.parameters()]
    found, wanted = (of(decoder, mean, log_variance, batches) for of in (decoded, plain))
    assert torch.equal(found, wanted)
    weights = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1), dtype=wanted.dtype)
    for a, b in zip(
        torch.autograd.grad((weights * found.sin()).sum(), leaves),
        torch.autograd.grad((weights * wanted.sin()).sum(), leaves),
        strict=True,
    ):
        assert float((a - b).norm()) <= 1e-12 * float(b.norm()) + 1e-14
    assert float(torch.autograd.grad(decoded(decoder, mean, log_variance, batches).sum(), mean)[0].norm()) > 0


def test_the_derivative_agrees_with_differences():
    decoder, mean, log_variance, batches = problem(m=3, lengths=(3, 2), width=4)
    assert torch.autograd.gradcheck(
        lambda *latents: decoded(decoder, *latents, batches)[:, :, ::3, ::3], (mean, log_variance), atol=1e-7
    )


def test_decoding_changes_nothing_and_gives_the_same_bits_again():
    decoder, mean, log_variance, batches = problem(dtype=torch.float32)
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    first, second = (decoded(decoder, mean, log_variance, batches) for _ in range(2))
    assert torch.equal(first, second)
    second.sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in decoder.state_dict().items())


def test_an_image_depends_on_those_that_it_is_decoded_with():
    decoder, mean, log_variance, (batch, *_) = problem()
    index, noise = batch.index, batch.noise
    halves = [LatentBatch(index[:2], noise[:2]), LatentBatch(index[2:], noise[2:])]
    together = decoded(decoder, mean, log_variance, [batch])
    apart = decoded(decoder, mean, log_variance, halves)
    assert not torch.allclose(together, apart, atol=1e-3)


def test_memory_does_not_grow_with_the_activations_of_batches():
    def peak(of, count):
        decoder, mean, log_variance, batches = problem(m=20, lengths=(20,) * count, dtype=torch.float32)
        with PeakMemory() as memory:
            of(decoder, mean, log_variance, batches).square().sum().backward()
        return memory.peak

    images = 4 * 20 * 2 * 8 * 8
    ours = (peak(decoded, 12) - peak(decoded, 4)) / 8
    whole = (peak(plain, 12) - peak(plain, 4)) / 8
    # The images twice while they are put together, or with their square and their gradient.
    assert ours <= 4.1 * images
    assert whole >= 2 * ours
