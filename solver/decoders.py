r"""Decoders of distributional distillation: from a latent vector to an image, small, medium or large as published.

All start from a small image of `width` channels, made from the latent vector by a dense layer or by reshaping it, and
double its sides by stages of a transposed convolution, a batch norm and a leaky ReLU; a 3 x 3 convolution and a tanh
end them. With D doublings, the channels before the stages and after each are

| name | published as | convolution | channels, i = 0 .. D | latent numbers |
|---|---|---|---|---|
| small | TinyVAE | 4 x 4 | width / min(2^i, 8), width 256 (128 by the code's default) | 64 |
| medium | VanillaVAE | 3 x 3 | width / min(2^i, 16), the last two equal, width 512 | 2048 |
| large | VanillaVAE | 3 x 3 | the same, width 1024 | 4096, no dense layer in the published run |

which is `decoder.py` of the code published with Qin et al., *Distributional Dataset Distillation with Subtask
Decomposition* (2024), where that takes the image: three channels, and squares of 32 .. 256 (small), 32 or 64 (medium)
or 64 (large) pixels. Here the shorter side starts with two pixels, the longer one with what it takes, and the centre
of the result is kept, so that every image has its decoder.

Batch norm is the one layer in which rows influence each other. In training mode it takes the statistics of the batch
and never changes those it stores, so that a forward pass done again gives the same. The published code samples in that
mode for ever: an image there depends on those that it is decoded with. Here `calibrate` stores the statistics of given
latent vectors when training is over, and in evaluation mode each image is a function of its own latent vector.
"""

import itertools
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..kernels import uniform
from ._check import check_finite
from .decoder_spec import DECODERS, DecoderSpec, decoder_spec

__all__ = [
    "DECODERS",
    "BatchNorm",
    "Decoder",
    "DecoderSpec",
    "Doubling",
    "build_decoder",
    "calibrate",
    "decode",
    "decoder_of",
    "decoder_spec",
]

# Activations of the rows that are decoded together without a graph.
_PIECE_BYTES = 32 * 2**20


class BatchNorm(nn.Module):
    """Batch norm whose stored statistics change by `calibrate` alone; see the top of the module."""

    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        self.register_buffer("mean", torch.empty(channels))
        self.register_buffer("variance", torch.empty(channels))

    def forward(self, h: Tensor) -> Tensor:
        """Of the batch in training mode, of the stored statistics in evaluation mode."""
        stored = (None, None) if self.training else (self.mean, self.variance)
        return functional.batch_norm(h, *stored, self.weight, self.bias, training=self.training)


class Doubling(nn.Module):
    """One stage: an image of twice the sides."""

    def __init__(self, before: int, after: int, size: int) -> None:
        super().__init__()
        self.convolution = nn.ConvTranspose2d(
            before, after, size, stride=2, padding=1, output_padding=size % 2
        )
        self.norm = BatchNorm(after)

    def forward(self, h: Tensor) -> Tensor:
        """(b, before, h, w) to (b, after, 2 h, 2 w)."""
        return functional.leaky_relu_(self.norm(self.convolution(h)), 0.01)


class Decoder(nn.Module):
    """A decoder of a `DecoderSpec`. Weights are not set: `build_decoder` draws them.

    Parameters
    ----------
    spec : DecoderSpec
    """

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.spec = spec
        sizes = spec.channels
        self.project = (
            nn.Linear(spec.latent_dim, math.prod(spec.first_shape)) if spec.linear else nn.Identity()
        )
        self.stages = nn.ModuleList(
            Doubling(before, after, spec.filter_size) for before, after in itertools.pairwise(sizes)
        )
        self.last = nn.Conv2d(sizes[-1], spec.image_shape[0], 3, padding=1)

    @property
    def doublings(self) -> list[Doubling]:
        """Its stages, in order."""
        return [stage for stage in self.stages if isinstance(stage, Doubling)]

    def first(self, z: Tensor) -> Tensor:
        """The image that is doubled, (b, *first_shape)."""
        if z.ndim != 2 or z.shape[1] != self.spec.latent_dim:
            raise ValueError(
                f"this decoder takes latent vectors (b, {self.spec.latent_dim}), got the shape {tuple(z.shape)}"
            )
        h = self.project(z).reshape(len(z), *self.spec.first_shape)
        # With channels last, a CPU decodes in 0.55 to 0.8 of the time (64 pixels), and trains in 0.85.
        return h.contiguous(memory_format=torch.channels_last) if h.device.type == "cpu" else h

    def forward(self, z: Tensor) -> Tensor:
        """Images (b, *image_shape) of latent vectors (b, latent_dim).

        Raises
        ------
        ValueError
            If the shape does not fit.
        """
        h = self.first(z)
        for stage in self.stages:
            h = stage(h)
        h = self.last(h)
        height, width = self.spec.image_shape[1:]
        top, left = (h.shape[2] - height) // 2, (h.shape[3] - width) // 2
        return torch.tanh(h[:, :, top : top + height, left : left + width]) * self.spec.scale


def build_decoder(
    spec: DecoderSpec,
    seed: int,
    stream: str = "decoder",
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Decoder:
    """A decoder with random weights, in training mode.

    Parameters
    ----------
    spec : DecoderSpec
    seed : int
    stream : str, default "decoder"
        Each tensor is a function of `seed`, `stream` and its name alone. Convolutions and the dense layer have torch's
        default distributions, uniform in ±1/sqrt(fan-in) (of a transposed convolution torch counts the outputs);
        norms start with 1 and 0, and store mean 0 and variance 1.
    device, dtype
        Of the tensors. Values are exactly those in float32.

    Returns
    -------
    Decoder
    """
    with torch.device("meta"):
        model = Decoder(spec)
    state = {
        name: torch.full(like.shape, float(name.endswith(("weight", "variance"))), device=device, dtype=dtype)
        for name, like in model.state_dict().items()
    }
    for prefix, layer in model.named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            bound = 1 / math.sqrt(math.prod(layer.weight.shape[1:]))
            for name, like in layer.named_parameters():
                drawn = uniform(seed, f"{stream}.{prefix}.{name}", tuple(like.shape))
                values = ((2 * drawn - 1) * bound).float()
                state[f"{prefix}.{name}"] = values.to(device, dtype)
    return decoder_of(spec, state).train()


def decoder_of(spec: DecoderSpec, tensors: dict[str, Tensor]) -> Decoder:
    """A decoder that keeps these tensors as its weights and stored statistics, in training mode.

    Raises
    ------
    ValueError
        If they are not those of such a decoder.
    """
    try:
        # More weights than can be numbered are refused by torch even where they take no memory.
        with torch.device("meta"):
            decoder = Decoder(spec)
        decoder.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise ValueError(f"these are not the weights of a {spec.name!r} decoder: {error}") from None
    return decoder


@torch.no_grad()
def calibrate(decoder: Decoder, batches: Iterable[Tensor]) -> None:
    """Store the batch statistics of latent vectors, which evaluation mode uses.

    They are those of all rows together, stage after stage: each of what the calibrated stages before it make of all
    rows. So the decoder gives in evaluation mode what it gives in training mode for all these rows as one batch,
    however they are cut into batches; the pooled statistics of several batches in training mode would depend on
    the cuts, as each would have been normalised by itself.

    Parameters
    ----------
    decoder : Decoder
        Its mode stays as it is.
    batches : iterable of Tensor, shapes (b, latent_dim)

    Raises
    ------
    ValueError
        If there are no rows, or a shape does not fit.

    Notes
    -----
    One pass over the rows for each stage and up to it, in pieces of bounded memory; sums are float64.
    """
    rows = [z for z in batches if len(z)]
    if not rows:
        raise ValueError("there are no latent vectors to calibrate the decoder on: give at least one")
    for z in rows:
        check_finite(z, "batches")
    training = decoder.training
    decoder.eval()
    try:
        for depth, stage in enumerate(decoder.doublings):
            mean, variance = _moments(decoder, depth, rows)
            stage.norm.mean.copy_(mean)
            stage.norm.variance.copy_(variance)
    finally:
        decoder.train(training)


@torch.no_grad()
def decode(decoder: Decoder, z: Tensor) -> Tensor:
    """Images of latent vectors, without a graph and in pieces of bounded memory.

    Parameters
    ----------
    decoder : Decoder
        In evaluation mode, where pieces are those of the whole up to rounding.
    z : Tensor, shape (n, latent_dim)

    Returns
    -------
    Tensor, shape (n, *image_shape)

    Raises
    ------
    ValueError
        If the decoder is in training mode, or the shape does not fit.
    """
    if decoder.training:
        raise ValueError(
            "in training mode an image depends on its batch: `calibrate` the decoder, and call `eval()`"
        )
    out = z.new_empty((len(z), *decoder.spec.image_shape))
    for images, piece in zip(_pieces(decoder, out), _pieces(decoder, z), strict=True):
        images.copy_(decoder(piece))
    return out


def _moments(decoder: Decoder, depth: int, rows: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and variance (n in the denominator) of each channel that a stage normalises, over all rows; float64."""
    count, total, square = 0, torch.zeros(()), torch.zeros(())
    for z in (piece for batch in rows for piece in _pieces(decoder, batch)):
        h = decoder.first(z)
        for earlier in decoder.doublings[:depth]:
            h = earlier(h)
        h = decoder.doublings[depth].convolution(h).double()
        count += h.numel() // h.shape[1]
        total, square = total.to(h) + h.sum((0, 2, 3)), square.to(h) + h.square().sum((0, 2, 3))
    mean = total / count
    # What rounding leaves below zero is nothing beside the constant that batch norm adds.
    return mean, (square / count - mean.square()).clamp_min(0)


def _pieces(decoder: Decoder, rows: Tensor) -> tuple[Tensor, ...]:
    """Parts of the rows, each of which is decoded together."""
    return rows.split(max(1, _PIECE_BYTES // decoder.spec.row_bytes))
