"""Raw inputs to what a kernel function sees: a transform and a kernel, as one object that knows its own file form.

The counterpart of `Encoder` for kernels without finite feature map.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from .encoder import Encoder, arrays_of, check_fingerprint, encoder_digest
from .kernel_functions import FeatureKernel, KernelFunction, restore_kernel_function
from .transforms import Transform, restore_transform


@dataclasses.dataclass(frozen=True)
class KernelEncoder:
    """``kernel(transform(x), transform(x'))``.

    Attributes
    ----------
    transform : Transform
    kernel : KernelFunction

    Raises
    ------
    ValueError
        If the two are of different shapes.
    """

    transform: Transform
    kernel: KernelFunction

    def __post_init__(self) -> None:
        if self.kernel.input_shape != self.transform.input_shape:
            raise ValueError(
                f"the {self.kernel.name!r} kernel takes {self.kernel.input_shape}, the transform gives"
                f" {self.transform.input_shape}: make both for the same data"
            )

    @property
    def name(self) -> str:
        """What the kernel is, in one word."""
        return self.kernel.name

    def __call__(self, X: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """Transformed rows, shape (n, *input_shape).

        Float64 by default whatever the data: coefficients of nearly singular kernel matrices are large and of both
        signs, so that predictions lose the digits by which they are larger.
        """
        return self.transform.forward(X, dtype)

    def storable(self) -> "Encoder | KernelEncoder":
        """The encoder with which a set is stored: an ordinary one where the kernel is that of a feature map."""
        return (
            Encoder(self.transform, self.kernel.feature_map)
            if isinstance(self.kernel, FeatureKernel)
            else self
        )

    def parameters(self) -> dict[str, Any]:
        """Plain JSON values; with `tensors` they make the encoder again."""
        return {
            "transform": {"name": self.transform.name, "parameters": self.transform.parameters()},
            "kernel": {"name": self.kernel.name, "parameters": self.kernel.parameters()},
            "fingerprint": self.kernel.fingerprint(),
        }

    def tensors(self) -> dict[str, Tensor]:
        """Arrays of the transform, under prefixed names."""
        return {f"transform.{key}": value for key, value in self.transform.tensors().items()}

    @classmethod
    def restore(cls, parameters: dict[str, Any], tensors: dict[str, Tensor]) -> "KernelEncoder":
        """Make the encoder that a file describes.

        Raises
        ------
        ValueError
            If the kernel that comes out is not the one that was stored (its fingerprint differs).
        """
        transform, kernel = parameters["transform"], parameters["kernel"]
        encoder = cls(
            restore_transform(transform["name"], transform["parameters"], arrays_of(tensors, "transform.")),
            restore_kernel_function(kernel["name"], kernel["parameters"]),
        )
        check_fingerprint(
            parameters["fingerprint"], encoder.kernel.fingerprint(), f"{kernel['name']!r} kernel"
        )
        return encoder

    def digest(self) -> str:
        """Sha256 of everything that defines the kernel; equal digests may be merged."""
        stored = self.storable()
        return encoder_digest(self.parameters(), self.tensors()) if stored is self else stored.digest()


def restore_encoder(
    parameters: dict[str, Any], tensors: dict[str, Tensor], module: torch.nn.Module | None = None
) -> Encoder | KernelEncoder:
    """Make the encoder that a file describes, of whichever kind; errors as in the two ``restore``."""
    if "kernel" in parameters:
        return KernelEncoder.restore(parameters, tensors)
    return Encoder.restore(parameters, tensors, module)
