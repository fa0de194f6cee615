r"""Arc-cosine kernels of convolutional networks with average pooling.

The network of infinite width is L blocks of: a convolution that keeps the image size, a LeakyReLU, and
:math:`q_l \ge 0` poolings by 2 x 2 averages; then the image is flattened (or averaged) and meets a dense layer. All
weights and biases are in the NTK parametrisation of `arc_cosine`. Covariances between pixels follow (Arora et al. 2019;
Novak et al. 2019)

.. math::
    \Sigma_{st} = \sigma_w^2\,\mathrm{box}(K)_{st} + \sigma_b^2,\quad
    \Theta_{st} = \Sigma_{st} + \sigma_w^2\,\mathrm{box}(\Theta')_{st},\quad
    K_{st} = \kappa_1(\Sigma)_{st},\quad \Theta'_{st} = \kappa_0(\Sigma)_{st}\,\Theta_{st},

where box is the mean over the filter of shifts common to s and t, and pooling averages over s and t. The duals need the
variance of each pixel, which is the covariance of an image with itself: one pass over single images gives
those of all layers, and the diagonal of the kernel matrix, before the pass over pairs.

These are ``stax.Conv(padding="SAME" or "CIRCULAR")``, ``Relu``, ``AvgPool((2, 2), strides=(2, 2))``, ``Flatten`` or
``GlobalAvgPool``, ``Dense`` of neural-tangents. `_pixel_pairs` tells how few pairs of pixels are needed.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._block_matrix import block_matrix, by_rows
from ._check import as_tensor, check_option, check_together
from ._dual_activation import relu_duals, safe_sqrt
from ._pixel_pairs import convolved, inside, pixel_covariance, pooled, windows
from ._precision import working_dtype
from ._wide_network import ConvNetwork, as_std, check_network, computing_dtype, conv_network

PADDINGS = ("zero", "circular")
READOUTS = ("flatten", "global_average")
# Numbers alive at once for a cell of the largest block; in derivatives, for a cell of any; for a number of an image.
_CELL, _CELL_OF_DERIVATIVE, _IMAGE = 10, 22, 6


def conv_arc_cosine_kernel(
    X: Any,
    Y: Any = None,
    *,
    depth: int = 3,
    pooling: int | Sequence[int] = 1,
    filter_size: int = 3,
    kind: str = "ntk",
    weight_std: float | Tensor = 2**0.5,
    bias_std: float | Tensor = 0.1,
    leak: float = 0.0,
    padding: str = "zero",
    readout: str = "flatten",
    precision: str = "high",
    memory_budget: int | None = None,
) -> Tensor:
    r"""NNGP or NTK of a convolutional ReLU network of infinite width.

    Parameters
    ----------
    X : array, shape (n, c, h, w)
    Y : array, shape (m, c, h, w), optional
        Default X, which gives an exactly symmetric matrix for half the work.
    depth : int, default 3
        Number of blocks, each a convolution and an activation.
    pooling : int or sequence of int, default 1
        Number of 2 x 2 average poolings after each block, one for all or one for each. The default with depth 3
        is the ConvNet of RFAD and of dataset condensation (without its normalisation); (0, 1, 1, 0) with depth 4
        and a global average is the Myrtle-5 network of KIP.
    filter_size : int, default 3
        Odd.
    kind : {"ntk", "nngp"}
    weight_std, bias_std : float or Tensor of shape (), default sqrt(2) and 0.1
        Standard deviations of all layers, as in `arc_cosine_kernel`.
    leak : float, default 0.0
    padding : {"zero", "circular"}
        What convolutions see outside the image.
    readout : {"flatten", "global_average"}
        What comes before the last dense layer.
    precision : {"high", "exact", "medium", "low"}
        As in `arc_cosine_kernel`.
    memory_budget : int, optional
        Bytes that temporaries may take beside the result. Default 32 MiB on a CPU, 512 MiB on a GPU, or what one
        pair of images needs.

    Returns
    -------
    Tensor, shape (n, m)
        On the device of X; derivatives as in `arc_cosine_kernel`.

    Raises
    ------
    ValueError
        If an argument has the wrong shape, dtype, device or value, the image is too small for the poolings, or the
        budget is too small for one pair.

    Notes
    -----
    Time O(n m h w (2 r_h + 1)(2 r_w + 1)(c + filter_size)), where the reach r is 2^q - 1 before q poolings and a
    flattening, and h - 1, w - 1 before a global average, which costs four times its
    :math:`(h w)^2` pairs of pixels.

    References
    ----------
    Arora et al., On exact computation with an infinitely wide neural net, 2019. Novak et al., Bayesian deep
    convolutional networks with many channels are Gaussian processes, 2019.
    """
    X, Y = _images(X, "X"), None if Y is None else _images(Y, "Y")
    check_together(X=X, Y=Y)
    if Y is not None and X.shape[1:] != Y.shape[1:]:
        raise ValueError(
            f"`X` and `Y` must hold images of one shape, got {tuple(X.shape)} and {tuple(Y.shape)}"
        )
    check_network(depth, kind, leak)
    check_option(padding, PADDINGS, "padding")
    check_option(readout, READOUTS, "readout")
    network = conv_network(
        (X.shape[2], X.shape[3]), depth, pooling, filter_size, kind, leak, padding == "circular", readout
    )
    dtype = computing_dtype(X.dtype, precision)
    stds = [as_std(weight_std, "weight_std", X.device, dtype), as_std(bias_std, "bias_std", X.device, dtype)]
    cells, numbers = network.cells, network.numbers(X.shape[1])
    derivative_bytes = (dtype.itemsize * _CELL_OF_DERIVATIVE * sum(cells), dtype.itemsize * _IMAGE * numbers)

    def alone(images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Images with the standard deviations of their pixels in all layers; the kernel of each with itself."""
        found = by_rows(
            functools.partial(_self_kernel, network=network),
            images,
            stds,
            derivative_bytes=sum(derivative_bytes),
            memory_budget=memory_budget,
        )
        *variances, diagonal = found.split([*(h * w for h, w in network.sizes[:-1]), 1], 1)
        shaped = [v.unflatten(1, size) for v, size in zip(variances, network.sizes, strict=False)]
        return [images, *(safe_sqrt(v) for v in shaped)], diagonal[:, 0]

    rows, diagonal = alone(X)
    return block_matrix(
        functools.partial(_pair_kernel, network=network),
        rows,
        rows if Y is None else alone(Y)[0],
        stds,
        diagonal=diagonal if Y is None else None,
        dtype=working_dtype(X.dtype, precision),
        value_bytes=(dtype.itemsize * _CELL * max(cells), derivative_bytes[1]),
        derivative_bytes=derivative_bytes,
        memory_budget=memory_budget,
    )


def _images(values: Any, name: str) -> Tensor:
    images = as_tensor(values, name)
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise ValueError(f"`{name}` must be images (n, channels, height, width), got {tuple(images.shape)}")
    return images


def _pair_kernel(*arguments: Tensor, network: ConvNetwork) -> Tensor:
    """The kernel of every image of the rows with every image of the columns."""
    *images, weight_std, bias_std = arguments
    half = len(images) // 2
    x, *x_stds = (values[:, None] for values in images[:half])
    y, *y_stds = (values[None] for values in images[half:])
    return _recursion(network, x, y, weight_std, bias_std, x_stds, y_stds)[0]


def _self_kernel(images: Tensor, weight_std: Tensor, bias_std: Tensor, *, network: ConvNetwork) -> Tensor:
    """Variances of the pixels of each image before each activation, and its kernel with itself, as a row."""
    images = images.to(weight_std.dtype)
    kernel, variances = _recursion(network, images, images, weight_std, bias_std)
    return torch.cat([*(v.flatten(1) for v in variances), kernel[:, None]], 1)


def _recursion(
    network: ConvNetwork,
    x: Tensor,
    y: Tensor,
    weight_std: Tensor,
    bias_std: Tensor,
    x_stds: Sequence[Tensor] | None = None,
    y_stds: Sequence[Tensor] | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Kernel of images (..., c, h, w), leading axes broadcast; variances of an image with itself if none are given."""
    weight, bias = weight_std.square(), bias_std.square()
    is_ntk, circular = network.kind == "ntk", network.circular
    covariance = pixel_covariance(x, y, network.reaches[0], circular)
    tangent: Tensor | None = None
    variances: list[Tensor] = []
    for block, poolings in enumerate(network.pooling):
        reach = network.reaches[block]
        covariance = weight * convolved(covariance, network.filter_size, circular) + bias
        if tangent is None:
            tangent = covariance
        elif is_ntk:
            tangent = covariance + weight * convolved(tangent, network.filter_size, circular)
        if x_stds is None or y_stds is None:
            variances.append(covariance[..., reach[0], reach[1], :, :])
            x_std = y_std = safe_sqrt(variances[-1])
        else:
            x_std, y_std = x_stds[block], y_stds[block]
        stds = x_std[..., None, None, :, :] * windows(y_std, reach, circular)
        covariance, slope = relu_duals(covariance, stds, network.leak)
        if is_ntk:
            tangent = slope * tangent
        for _ in range(poolings):
            covariance = pooled(covariance)
            tangent = pooled(tangent) if is_ntk else tangent

    within = inside(network.sizes[-1], network.reaches[-1], covariance)
    pairs = within.sum()

    def read(cells: Tensor) -> Tensor:
        return (cells * within).sum((-4, -3, -2, -1)) / pairs

    kernel = weight * read(covariance) + bias
    if is_ntk and tangent is not None:
        kernel = kernel + weight * read(tangent)
    return kernel, variances
