"""Which decoder: its name, the image it makes, and every option, as plain values.

The forms are those at the top of `decoders`, where their source is.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable
from typing import Any

from ._check import check_count, check_name, check_non_negative

# Defaults of width, latent numbers (0: those of the first image) and dense layer; the largest divisor of the width;
# size of the filters; whether the last stage keeps the channels.
_DECODERS: dict[str, tuple[dict[str, Any], int, int, bool]] = {
    "small": ({"width": 256, "latent_dim": 64, "linear": True}, 8, 4, False),
    "medium": ({"width": 512, "latent_dim": 0, "linear": True}, 16, 3, True),
    "large": ({"width": 1024, "latent_dim": 0, "linear": False}, 16, 3, True),
}
DECODERS = tuple(_DECODERS)
_OPTIONS = ("width", "latent_dim", "linear", "scale")


@dataclasses.dataclass(frozen=True)
class DecoderSpec:
    """What a decoder looks like. `decoder_spec` makes one with its defaults filled in.

    Attributes
    ----------
    name : {"small", "medium", "large"}
    image_shape : tuple of int
        (c, h, w), sides of at least two pixels.
    latent_dim : int
        Numbers in a latent vector.
    width : int
        Channels at the start.
    linear : bool
        Whether a dense layer makes the first image; otherwise the latent vector is that image.
    scale : float
        Values are in (-scale, scale), in transformed units.

    Raises
    ------
    ValueError
        If an option is not possible, or `latent_dim` is not the size of the first image and `linear` is not set.
    """

    name: str
    image_shape: tuple[int, ...]
    latent_dim: int
    width: int
    linear: bool
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_name(self.name, DECODERS, "decoder")
        for size in self.image_shape:
            check_count(size, "image_shape")
        if len(self.image_shape) != 3 or min(self.image_shape[1:]) < 2:
            raise ValueError(
                f"a decoder makes images (c, h, w) of at least 2 x 2 pixels, got the shape {self.image_shape}"
            )
        check_count(self.latent_dim, "latent_dim")
        check_count(self.width, "width")
        if not isinstance(self.linear, bool):
            raise ValueError(f"`linear` must be True or False, got {self.linear!r}")
        if not check_non_negative(self.scale, "scale"):
            raise ValueError("`scale` must be positive: all images would be zero")
        first = math.prod(self.first_shape)
        if not self.linear and self.latent_dim != first:
            raise ValueError(
                f"without its dense layer this decoder takes latent vectors of {first} numbers, one for each of its"
                f" first image {self.first_shape}, got `latent_dim` {self.latent_dim}: leave it out, or set `linear`"
            )

    @property
    def doublings(self) -> int:
        """D."""
        return (min(self.image_shape[1:]) - 1).bit_length() - 1

    @property
    def first_shape(self) -> tuple[int, int, int]:
        """Of the image that is doubled."""
        height, width = (-(-side // 2**self.doublings) for side in self.image_shape[1:])
        return self.width, height, width

    @property
    def channels(self) -> tuple[int, ...]:
        """Before the first stage and after each, never less than one."""
        _, largest, _, keeps = _DECODERS[self.name]
        powers = range(self.doublings + 1)
        if keeps:
            powers = [min(power, max(0, self.doublings - 1)) for power in powers]
        return tuple(max(1, self.width // min(2**power, largest)) for power in powers)

    @property
    def filter_size(self) -> int:
        """Of the transposed convolutions."""
        return _DECODERS[self.name][2]

    @property
    def row_bytes(self) -> int:
        """Bytes of the activations of one row that are held at once without a graph, in float32."""
        pixels = math.prod(self.first_shape[1:])
        held = [self.channels[0] * pixels]
        for number, (before, after) in enumerate(itertools.pairwise(self.channels)):
            held.append((before + 2 * 4 * after) * pixels * 4**number)
        return 4 * max(held)

    def parameters(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "image_shape": list(self.image_shape)}

    @staticmethod
    def restore(parameters: dict[str, Any]) -> "DecoderSpec":
        """The spec of such values.

        Raises
        ------
        ValueError
            If they are not those of a decoder.
        """
        try:
            return DecoderSpec(**{**parameters, "image_shape": tuple(parameters["image_shape"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"these are not the parameters of a decoder: {error}") from None


def decoder_spec(name: str, image_shape: Iterable[int], **options: Any) -> DecoderSpec:
    """A decoder by its name, with the published defaults for options that are not given.

    Parameters
    ----------
    name : {"small", "medium", "large"}
    image_shape : (c, h, w)
        Of a transformed input; sides of at least two pixels.
    **options
        `width`: 256, 512 and 1024 as published. `latent_dim`: 64 for "small", and the size of the first image for the
        others (2048 and 4096 as published, four times the width of a square one). `linear`: False for "large" alone,
        as in the published run. `scale`: 1 as published; standardised pixels often lie outside, where no image of that
        range reaches.

    Returns
    -------
    DecoderSpec

    Raises
    ------
    ValueError
        As `DecoderSpec`; also for an option that there is not.
    """
    defaults = dict(_DECODERS[check_name(name, DECODERS, "decoder")][0])
    for option in options:
        check_name(option, _OPTIONS, "option of a decoder")
    values = {"scale": 1.0, **defaults, **options}
    shape = tuple(image_shape)
    if "latent_dim" not in options and not (defaults["latent_dim"] and values["linear"]):
        # The first image depends on the width and the sides alone.
        trial = DecoderSpec(name, shape, **{**values, "latent_dim": 1, "linear": True})
        values["latent_dim"] = math.prod(trial.first_shape)
    return DecoderSpec(name, shape, **values)
