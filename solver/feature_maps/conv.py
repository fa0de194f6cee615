r"""Convolutional LeakyReLU networks with random weights, and their exact inverse.

Layer by layer :math:`h_{l+1} = \sigma(A_l h_l)`, with A the strided convolution by Gaussian filters of
variance 1/fan-in, no bias, and :math:`\sigma(t) = \max(t, s t)`; the features are the last activations.
Images wrap around (the convolution is on the torus). With stride (a, b), split an image into its a·b phases
:math:`x_{cuv}[i, j] = x_c[a i + u, b j + v]`: the layer is then an ordinary cyclic convolution of c·a·b
channels on the coarse grid, which the Fourier transform makes one small matrix for every frequency,

.. math:: \hat z(\omega) = \hat A(\omega)\, \hat x(\omega), \qquad
          \hat x = \hat x_0 + \hat A^{+} (\hat z - \hat A \hat x_0).

The transform is unitary up to scale, so this is the solution of A x = z nearest to :math:`x_0`. A layer has
full row rank (with probability one) when it has at most c·a·b channels. That convolutional networks are
inverted by solving their linear systems is from Chen, Huang and Weng, NeurIPS 2024; the phases are the
polyphase components of multirate filter banks.

Why not zero padding: a square convolution matrix with zero padding is a truncated Toeplitz matrix, whose
smallest singular value falls exponentially with the side unless the symbol's determinant has winding number
zero. Measured for one channel, p = d, kernel 3, stride 2, three seeds: condition 7e2 … 2e10 at 8 × 8 and
1e11 … 1e18 at 32 × 32; wrapped around, 6e1 … 8e1 and 2e2 … 4e2.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from ...kernels import normal
from .._check import check_count
from .base import FeatureMap


class ConvNet(FeatureMap):
    """Convolutional LeakyReLU network with random weights on images that wrap around.

    Parameters
    ----------
    input_shape : (c, h, w)
    channels : sequence of int, optional
        Channels of each layer. Default: one layer of ``c * a * b`` channels for the stride (a, b), so that
        p = d, the most that keeps an exact inverse.
    kernel_size : int, default 4
        Side of the filters; never more than the image has.
    stride : int, optional
        Must divide both sides at every layer. Default: per axis and layer, 2 where the side is even, else 1.
    slope : float, default 0.1
        Negative slope of the LeakyReLU, above zero.
    seed : int, default 0
        Defines the weights.

    Raises
    ------
    ValueError
        If the inputs are not images, the stride does not divide a side, a count is below 1, or the slope
        is not positive.

    Notes
    -----
    `preimage` costs, per layer, FFTs and one QR factorisation (c·a·b × c_out) for each of h·w / (2·a·b)
    frequencies, made on first use: 0.3 s for 100 images of 3 × 32 × 32 with p = d on two cores, features
    reproduced to 3e-14; 1.4 s at 3 × 64 × 64.
    """

    name: ClassVar[str] = "conv"
    homogeneous: ClassVar[bool] = True

    def __init__(
        self,
        input_shape: tuple[int, ...],
        channels: Sequence[int] | int | None = None,
        *,
        kernel_size: int = 4,
        stride: int | None = None,
        slope: float = 0.1,
        seed: int = 0,
    ) -> None:
        if len(input_shape) != 3:
            raise ValueError(f"a 'conv' map takes images (c, h, w), got inputs of shape {tuple(input_shape)}")
        if not 0 < float(slope) < math.inf:
            raise ValueError(f"`slope` must be finite and above zero (to have an inverse), got {slope!r}")
        self.kernel_size = check_count(kernel_size, "kernel_size")
        self.stride = None if stride is None else check_count(stride, "stride")
        self.slope, self.seed = float(slope), seed
        if channels is None:
            channels = (input_shape[0] * math.prod(_strides(input_shape, self.stride)),)
        channels = (channels,) if isinstance(channels, int) else tuple(channels)
        if not channels:
            raise ValueError("`channels` is empty: give the channels of at least one layer")
        self.channels = tuple(check_count(count, "channels") for count in channels)

        self._layers: list[_Convolution] = []
        shape = tuple(check_count(size, "input_shape") for size in input_shape)
        for layer, count in enumerate(self.channels):
            kernel = (min(self.kernel_size, shape[1]), min(self.kernel_size, shape[2]))
            strides = _strides(shape, self.stride)
            fan_in = shape[0] * math.prod(kernel)
            weight = normal(seed, f"conv.{layer}", (count, shape[0], *kernel)) * fan_in**-0.5
            self._layers.append(_Convolution(weight.float().double(), shape, strides))
            shape = (count, shape[1] // strides[0], shape[2] // strides[1])
        super().__init__(input_shape, math.prod(shape))

    @property
    def surjective(self) -> bool:
        """Whether every layer's matrix can have full row rank."""
        return all(layer.full_row_rank for layer in self._layers)

    def parameters(self) -> dict[str, Any]:
        """Shape, channels, kernel size, stride, slope and seed."""
        return {
            **super().parameters(),
            "channels": list(self.channels),
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "slope": self.slope,
            "seed": self.seed,
        }

    def _features(self, X: Tensor) -> Tensor:
        for layer in self._layers:
            X = functional.leaky_relu(layer(X), self.slope)
        return X.flatten(1)

    def _preimage(self, F: Tensor, near: Tensor | None) -> Tensor:
        references = [near]
        for layer in self._layers[:-1]:
            near = None if near is None else functional.leaky_relu(layer(near), self.slope)
            references.append(near)
        for layer, reference in zip(reversed(self._layers), reversed(references), strict=True):
            F = layer.solve(functional.leaky_relu(F, 1 / self.slope), reference)
        return F


class _Convolution:
    """Strided convolution on a torus, and its least-norm inverse.

    `weight` has shape (c_out, c, k, l), `shape` is that of an input (c, h, w); the stride divides h and w.
    """

    def __init__(self, weight: Tensor, shape: tuple[int, ...], stride: tuple[int, int]) -> None:
        self._weight, self._shape, self._stride = weight, shape, stride
        # Wrapped rows: so many that the output has h / a of them, split evenly before and after.
        extra = [max(0, size - step) for size, step in zip(weight.shape[2:], stride, strict=True)]
        self._before = (extra[0] // 2, extra[1] // 2)
        top, left = self._before
        self._padding = [left, extra[1] - left, top, extra[0] - top]
        self._cast: dict[tuple[torch.dtype, torch.device], Tensor] = {(weight.dtype, weight.device): weight}
        self._factors: tuple[Tensor, Tensor] | None = None

    @property
    def full_row_rank(self) -> bool:
        """Whether a channel out has a phase in to itself; a kernel below the stride misses some phases."""
        seen = [min(size, step) for size, step in zip(self._weight.shape[2:], self._stride, strict=True)]
        return self._weight.shape[0] <= self._shape[0] * math.prod(seen)

    def __call__(self, X: Tensor) -> Tensor:
        key = (X.dtype, X.device)
        if key not in self._cast:
            self._cast[key] = self._weight.to(X)
        wrapped = functional.pad(X, self._padding, mode="circular") if any(self._padding) else X
        return functional.conv2d(wrapped, self._cast[key], stride=self._stride)

    def solve(self, z: Tensor, near: Tensor | None) -> Tensor:
        """Find the x with ``self(x) == z`` that is nearest to `near` (default: to zero), float64."""
        c, h, w = self._shape
        a, b = self._stride
        z = z.reshape(z.shape[0], -1, h // a, w // b)
        x = z.new_zeros(z.shape[0], c, h, w) if near is None else near
        # The second pass is iterative refinement, against the convolution that features are made with.
        for _ in range(2):
            x = x + self._least_norm(z - self(x))
        return x

    def _least_norm(self, z: Tensor) -> Tensor:
        c, h, w = self._shape
        a, b = self._stride
        if self._factors is None:
            # QR of the conjugate transpose: A+ = Q R^-H.
            Q, R = torch.linalg.qr(self._frequency_matrices().mH)
            self._factors = Q.to(z.device), R.to(z.device)
        Q, R = self._factors
        right = torch.fft.rfft2(z).permute(2, 3, 1, 0)
        phases = Q @ torch.linalg.solve_triangular(R.mH, right, upper=False)
        grid = (h // a, w // b)
        x = torch.fft.irfft2(phases.permute(3, 2, 0, 1), s=grid).reshape(-1, c, a, b, *grid)
        return x.permute(0, 1, 4, 2, 5, 3).reshape(-1, c, h, w)

    def _frequency_matrices(self) -> Tensor:
        """Matrices from the phases of an input to an output; shape (h/a, w/b // 2 + 1, c_out, c·a·b)."""
        c, h, w = self._shape
        a, b = self._stride
        top, left = self._before
        rows, columns = h // a, w // b
        taps = self._weight.new_zeros(self._weight.shape[0], c, a, b, rows, columns)
        for p in range(self._weight.shape[2]):
            for q in range(self._weight.shape[3]):
                i, u = divmod(p - top, a)
                j, v = divmod(q - left, b)
                # Deep learning's convolution is a correlation: the tap at +i is a shift by -i.
                taps[:, :, u, v, -i % rows, -j % columns] += self._weight[:, :, p, q]
        return torch.fft.rfft2(taps.flatten(1, 3)).permute(2, 3, 0, 1)


def _strides(shape: tuple[int, ...], stride: int | None) -> tuple[int, int]:
    """Stride along each axis of an image of `shape` (c, h, w)."""
    _, h, w = shape
    if stride is None:
        return (1 + (h % 2 == 0), 1 + (w % 2 == 0))
    if h % stride or w % stride:
        raise ValueError(
            f"a stride of {stride} does not divide the {h} × {w} images that a layer takes: leave `stride` out,"
            " or crop or pad the images"
        )
    return (stride, stride)
