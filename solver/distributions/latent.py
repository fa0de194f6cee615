r"""Gaussians in the latent space of a decoder, the distributions of D3 (Qin et al. 2024).

An entry is a mean :math:`\mu` and a log-variance :math:`\ell`, both of z numbers, and stands for

.. math:: x = \mathrm{dec}\bigl(\mu + \varepsilon\, e^{\ell / 2}\bigr), \qquad \varepsilon \sim N(0, I_z) .

Its point is dec(μ), which is not the mean of x. Subtasks have a decoder each: entries come in parts, one for each
decoder. Decoders are calibrated and in evaluation mode (`decoders`), so that an image depends on its own latent vector
alone, not, as in the published code, on the batch that it is decoded with.
"""

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...kernels import normal
from ..decoders import Decoder, DecoderSpec, decode, decoder_of
from ..encoder import arrays_of
from .base import Distribution

_DECODER = "decoder."
# Latent vectors that are drawn together.
_ROWS = 256


@dataclasses.dataclass(frozen=True, eq=False)
class LatentPart:
    """Entries of one decoder.

    Attributes
    ----------
    means, log_variances : Tensor, shape (m, latent_dim), float32, on the CPU
    decoder : Decoder
        In evaluation mode, float32, on the CPU; not to be changed.

    Raises
    ------
    ValueError
        If shapes or dtypes do not fit, a value is not finite or a standard deviation is not, or the decoder is in
        training mode.
    """

    means: Tensor
    log_variances: Tensor
    decoder: Decoder

    def __post_init__(self) -> None:
        expected = self.decoder.spec.latent_dim
        if self.means.ndim != 2 or self.means.shape[1] != expected or not len(self.means):
            raise ValueError(
                f"means for this decoder are (m, {expected}) with at least one row, got the shape"
                f" {tuple(self.means.shape)}"
            )
        if self.log_variances.shape != self.means.shape:
            raise ValueError(
                f"{tuple(self.means.shape)} means need log-variances of that shape, got"
                f" {tuple(self.log_variances.shape)}"
            )
        if self.decoder.training:
            raise ValueError("the decoder is in training mode: `calibrate` it, and call `eval()`")
        for name, tensor in self.tensors().items():
            if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
                raise ValueError(
                    f"{name!r} must be float32 on the CPU, got {tensor.dtype} on {tensor.device}: use"
                    " `LatentGaussians.of`"
                )
            if not torch.isfinite(tensor).all():
                raise ValueError(f"{name!r} holds a NaN or an infinity: the run that learned it has diverged")
            if name.endswith(".variance") and (tensor < 0).any():
                raise ValueError(f"{name!r} holds a negative variance: the file is damaged")
        if not torch.isfinite((0.5 * self.log_variances).exp()).all():
            raise ValueError(
                f"a standard deviation exp(log-variance / 2) overflows: the largest log-variance is"
                f" {float(self.log_variances.max()):.3g}"
            )

    def points(self) -> Tensor:
        """Decoded means, float32 (m, *image_shape)."""
        return decode(self.decoder, self.means)

    def draw_latents(self, seed: int, stream: str, rows: slice = slice(None)) -> Tensor:
        """Latent vectors of some rows, float32; of row i, numbers i z .. (i + 1) z of the stream."""
        means, deviations = self.means[rows].double(), (0.5 * self.log_variances[rows].double()).exp()
        start = rows.indices(len(self.means))[0] * means.shape[1]
        return (means + deviations * normal(seed, stream, tuple(means.shape), start)).float()

    def draw(self, seed: int, stream: str) -> Tensor:
        """Decoded latent vectors of all rows, float32 (m, *image_shape)."""
        out = torch.empty(len(self.means), *self.decoder.spec.image_shape)
        for first in range(0, len(out), _ROWS):
            rows = slice(first, first + _ROWS)
            out[rows] = decode(self.decoder, self.draw_latents(seed, stream, rows))
        return out

    def tensors(self) -> dict[str, Tensor]:
        """Everything that is stored, by name."""
        state = {f"{_DECODER}{name}": value for name, value in self.decoder.state_dict().items()}
        return {"means": self.means, "log_variances": self.log_variances, **state}


@dataclasses.dataclass(frozen=True, eq=False)
class LatentGaussians(Distribution):
    """Gaussians in the latent space of a decoder, or of several.

    Attributes
    ----------
    parts : tuple of LatentPart
        One for each decoder; entries are in their order.

    Raises
    ------
    ValueError
        If there is no part, or they make images of different shapes.
    """

    name: ClassVar[str] = "latent-gaussians"
    parts: tuple[LatentPart, ...]

    def __post_init__(self) -> None:
        shapes = {part.decoder.spec.image_shape for part in self.parts}
        if len(shapes) != 1:
            raise ValueError(
                f"the decoders of one set make images of one shape, got {sorted(shapes) or 'no decoders'}"
            )

    def __len__(self) -> int:
        return sum(len(part.means) for part in self.parts)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.parts[0].decoder.spec.image_shape

    @classmethod
    def of(
        cls, spec: DecoderSpec, state: dict[str, Tensor], means: Tensor, log_variances: Tensor
    ) -> "LatentGaussians":
        """The distributions of one calibrated decoder.

        Parameters
        ----------
        spec : DecoderSpec
        state : dict
            `state_dict` of the decoder, with its stored statistics.
        means, log_variances : Tensor, shape (m, latent_dim)

        Returns
        -------
        LatentGaussians
            With its own float32 copies on the CPU, the form in which everything is stored.

        Raises
        ------
        ValueError
            As `LatentPart`; also if the state is not that of such a decoder.
        """
        decoder = decoder_of(spec, {name: _stored(value) for name, value in state.items()})
        part = LatentPart(
            _stored(means), _stored(log_variances), decoder.eval().requires_grad_(requires_grad=False)
        )
        return cls((part,))

    def points(self) -> Tensor:
        """Decoded means, float64 (m, *input_shape)."""
        return torch.cat([part.points() for part in self.parts]).double()

    def draw(self, number: int, *, seed: int) -> Tensor:
        """Decoded latent vectors, float32 (m, *input_shape).

        Its normals are keyed by seed, number, part and row, whatever the rows that are decoded together: another
        number of rows or of threads changes an image by rounding alone.
        """
        draws = [part.draw(seed, f"latent.{number}.{index}") for index, part in enumerate(self.parts)]
        return torch.cat(draws)

    def storage(self) -> dict[str, int]:
        """Bytes of the latent vectors (means and log-variances) and of the decoders with their stored statistics."""
        tensors = self.tensors()
        decoder = sum(value.nbytes for name, value in tensors.items() if f".{_DECODER}" in name)
        return {"latents": sum(value.nbytes for value in tensors.values()) - decoder, "decoder": decoder}

    def parameters(self) -> dict[str, Any]:
        return {"parts": [part.decoder.spec.parameters() for part in self.parts]}

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"{index}.{name}": value
            for index, part in enumerate(self.parts)
            for name, value in part.tensors().items()
        }

    @classmethod
    def restore(cls, parameters: dict[str, Any], tensors: dict[str, Tensor]) -> "LatentGaussians":
        specs = [DecoderSpec.restore(values) for values in parameters["parts"]]
        parts = []
        for index, spec in enumerate(specs):
            stored = arrays_of(tensors, f"{index}.")
            if not {"means", "log_variances"} <= stored.keys():
                raise ValueError(
                    f"part {index} of stored latent Gaussians needs 'means' and 'log_variances', found"
                    f" {sorted(stored)}"
                )
            decoder = decoder_of(spec, arrays_of(stored, _DECODER)).eval().requires_grad_(requires_grad=False)
            parts.append(LatentPart(stored["means"], stored["log_variances"], decoder))
        made = cls(tuple(parts))
        if made.tensors().keys() != tensors.keys():
            surplus = sorted(tensors.keys() - made.tensors().keys())
            raise ValueError(
                f"these arrays are of no part of {len(parts)} stored latent Gaussians: {surplus}"
            )
        return made

    @classmethod
    def joined(cls, parts: "list[LatentGaussians]") -> "LatentGaussians":
        return cls(tuple(part for several in parts for part in several.parts))


def _stored(value: Tensor) -> Tensor:
    """A copy in the form of a file."""
    return value.detach().to("cpu", torch.float32, copy=True).contiguous()
