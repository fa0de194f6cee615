r"""Many convolutional networks at once: weights by seed, features in bounded memory, derivatives of both.

A network is `depth` blocks of a convolution with zero padding that keeps the image size, an optional
normalisation, a LeakyReLU, and 2 x 2 average pooling; its features are the last block, flattened. At the start,
weights have variance 2 / fan-in and biases 0.01: the ConvNet of dataset condensation as RFAD (Loo et al. 2022) and
FRePo (Zhou et al. 2022) use it, whose kernel at infinite width is `kernels.conv_arc_cosine_kernel`.

**Draws.** RFAD needs eight new networks of width 256 at every step, which is 9.5 million numbers. So each takes 16
random bits (`kernels.random_bits`, four to a word) and becomes the middle of one of 65,536 slices of equal
probability of the normal distribution, scaled to variance one: a table look-up, exact, so the same networks on
every device. Only the bits (19 MB) are made by the host, in 11 ms, while the device is busy with the step before;
`kernels.normal` would take the host 140 ms.

**Strategies.** "loop" runs one network after the other, "grouped" all of them as grouped convolutions. On a CPU
"loop" with channels last was the faster of the two wherever we looked (1.3 to 2 times; vmap three times slower),
and at the widths that matter a single network fills a GPU. "grouped" makes fewer and larger calls, which a GPU may
prefer for few images; neither has been timed on one yet.

**Memory.** Without derivatives, rows are taken in chunks. With them, activations are kept if they fit the budget;
otherwise chunks are recomputed one by one in the backward pass, for one forward pass more.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..kernels import random_bits
from ..kernels._recompute import recomputed
from ._check import check_count, check_name, check_non_negative

NORMS = ("batch", "instance")
STRATEGIES = ("loop", "grouped")
WEIGHT_VARIANCE, BIAS_VARIANCE = 2.0, 0.01
# Bytes of activations: of features alone about the last-level cache of a CPU (half the time of all rows at once,
# measured), and enough images to fill a GPU; of those kept for derivatives a part of the memory.
_VALUE_BUDGET = {"cpu": 2**24, "cuda": 2**32}
_DERIVATIVE_BUDGET = {"cpu": 2**28, "cuda": 2**33}


@dataclasses.dataclass(frozen=True)
class ConvSpec:
    """What a convolutional network looks like.

    Attributes
    ----------
    input_shape : (c, h, w)
    width : int or tuple of int, default 256
        Channels of all blocks, or of each.
    depth : int, default 3
    filter_size : int, default 3
        Odd.
    leak : float, default 0.0
        Negative slope of the LeakyReLU; 0 is the ReLU.
    norm : {None, "batch", "instance"}
        Normalisation before the activation, with a scale and a shift for each channel. "batch" takes mean and
        variance of the rows that are passed together (there are no running averages), "instance" of each row.

    Raises
    ------
    ValueError
        If the inputs are not images, the images are too small for the poolings, or a value is out of range.
    """

    input_shape: tuple[int, ...]
    width: int | tuple[int, ...] = 256
    depth: int = 3
    filter_size: int = 3
    leak: float = 0.0
    norm: str | None = None

    def __post_init__(self) -> None:
        if len(self.input_shape) != 3:
            raise ValueError(
                f"a convolutional network takes images (c, h, w), got inputs of shape {tuple(self.input_shape)}"
            )
        check_count(self.depth, "depth")
        for size in (*self.input_shape, *self.widths):
            check_count(size, "width")
        if len(self.widths) != self.depth:
            raise ValueError(
                f"`width` has {len(self.widths)} entries for {self.depth} blocks: give one for each"
            )
        if check_count(self.filter_size, "filter_size") % 2 == 0:
            raise ValueError(f"`filter_size` must be odd, got {self.filter_size}")
        check_non_negative(self.leak, "leak")
        if self.norm is not None:
            check_name(self.norm, NORMS, "normalisation")
        if min(self.input_shape[1:]) >> self.depth < 1:
            raise ValueError(
                f"{self.depth} poolings leave nothing of images of {self.input_shape[1]} x"
                f" {self.input_shape[2]} pixels: lower `depth`"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each block."""
        return (self.width,) * self.depth if isinstance(self.width, int) else tuple(self.width)

    @property
    def n_features(self) -> int:
        """p, the length of the flattened last block."""
        _, height, width = self.input_shape
        return self.widths[-1] * (height >> self.depth) * (width >> self.depth)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of a network's tensors by name, in the order in which they are drawn."""
        channels = (self.input_shape[0], *self.widths)
        found: dict[str, tuple[int, ...]] = {}
        for block, (before, after) in enumerate(itertools.pairwise(channels)):
            found[f"weight.{block}"] = (after, before, self.filter_size, self.filter_size)
            found[f"bias.{block}"] = (after,)
            if self.norm is not None:
                found[f"scale.{block}"] = found[f"shift.{block}"] = (after,)
        return found

    def kept_numbers(self) -> int:
        """Numbers that a derivative keeps, for one row and one network."""
        c, h, w = self.input_shape
        total = c * h * w
        for block, width in enumerate(self.widths):
            pixels, pooled = (h >> block) * (w >> block), (h >> block + 1) * (w >> block + 1)
            total += width * ((1 if self.norm is None else 2) * pixels + pooled)
        return total

    def passing_numbers(self) -> int:
        """Numbers alive beside those, at the most, while one block or its derivative is computed."""
        _, h, w = self.input_shape
        return 3 * max(width * (h >> block) * (w >> block) for block, width in enumerate(self.widths))


@dataclasses.dataclass(frozen=True, eq=False)
class ConvNetworks:
    """Networks of one `ConvSpec`.

    Attributes
    ----------
    spec : ConvSpec
    tensors : dict of str to Tensor
        By the names of ``spec.shapes``, each with a first axis for the networks. To train them, let these
        require a gradient.
    """

    spec: ConvSpec
    tensors: dict[str, Tensor]

    @property
    def count(self) -> int:
        """Number of networks."""
        return len(self.tensors["weight.0"])

    def select(self, index: slice) -> "ConvNetworks":
        """Some of the networks, as views."""
        return ConvNetworks(self.spec, {name: value[index] for name, value in self.tensors.items()})

    def to(self, *args: Any) -> "ConvNetworks":
        """The networks on another device or in another dtype, as ``Tensor.to``."""
        return ConvNetworks(self.spec, {name: value.to(*args) for name, value in self.tensors.items()})


def draw_conv_networks(
    spec: ConvSpec,
    count: int,
    seed: int,
    stream: str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> ConvNetworks:
    """Networks with random weights.

    Parameters
    ----------
    spec : ConvSpec
    count : int
    seed : int
    stream : str
        Network i is a function of `seed`, `stream` and i alone: the same for every count and device.
    device, dtype
        Of the tensors. Values are exactly those in float32.

    Returns
    -------
    ConvNetworks

    Raises
    ------
    ValueError
        If `count` is below 1 or the seed is out of range.

    Notes
    -----
    8 networks of width 256 (9.5 million numbers): 11 ms of one core for the bits, and 38 MB on the device.
    """
    check_count(count, "count")
    shapes = {name: shape for name, shape in spec.shapes.items() if name.split(".")[0] in ("weight", "bias")}
    sizes = [math.prod(shape) for shape in shapes.values()]
    words = -(-sum(sizes) // 4)
    bits = np.stack([random_bits(seed, f"{stream}.{i}", words) for i in range(count)])
    levels = torch.from_numpy(bits.astype("<u8", copy=False).view("<i2")[:, : sum(sizes)])
    device = torch.device(device)
    if device.type == "cuda":
        levels = levels.contiguous().pin_memory()
    levels = levels.to(device, non_blocking=True)
    # Signed levels, counted from the middle of the table.
    index = levels.flatten().int().add_(2**15)
    values = _table(device).index_select(0, index).reshape(count, -1)

    tensors: dict[str, Tensor] = {}
    for (name, shape), part in zip(shapes.items(), values.split(sizes, 1), strict=True):
        variance = WEIGHT_VARIANCE / math.prod(shape[1:]) if name.startswith("weight") else BIAS_VARIANCE
        tensors[name] = (part * math.sqrt(variance)).reshape(count, *shape).to(dtype)
    for name, shape in spec.shapes.items():
        if name not in tensors:
            fill = 1.0 if name.startswith("scale") else 0.0
            tensors[name] = torch.full((count, *shape), fill, device=device, dtype=dtype)
    return ConvNetworks(spec, {name: tensors[name] for name in spec.shapes})


def conv_features(
    networks: ConvNetworks,
    X: Tensor,
    *,
    strategy: str = "loop",
    memory_budget: int | None = None,
) -> Tensor:
    """Features of every row under every network.

    Parameters
    ----------
    networks : ConvNetworks
    X : Tensor, shape (n, *input_shape)
        Of the dtype and on the device of the networks; half precisions are taken too.
    strategy : {"loop", "grouped"}
        See the top of the module.
    memory_budget : int, optional
        Bytes that activations may take beside the result, and weights and their gradients; what one row needs
        is always taken, and with norm "batch" what all rows need. Default 16 MiB on a CPU and 4 GiB on a GPU, and
        with derivatives 256 MiB and 8 GiB.

    Returns
    -------
    Tensor, shape (n, count, p)
        Flattened activations of the last block, differentiable in X and in the tensors of the networks. The
        same for every budget up to rounding.

    Raises
    ------
    ValueError
        If shape, dtype or strategy do not fit.
    """
    spec, count = networks.spec, networks.count
    check_name(strategy, STRATEGIES, "strategy")
    example = networks.tensors["weight.0"]
    if tuple(X.shape[1:]) != spec.input_shape:
        raise ValueError(f"these networks take rows of shape {spec.input_shape}, got {tuple(X.shape[1:])}")
    if X.dtype != example.dtype or X.device != example.device:
        raise ValueError(
            f"`X` is {X.dtype} on {X.device}, the networks are {example.dtype} on {example.device}: move one of them"
        )
    forward = functools.partial(_forward, spec)
    together = count if strategy == "grouped" else 1
    split = [value.split(together) for value in networks.tensors.values()]
    parts = list(zip(*split, strict=True))
    differentiable = torch.is_grad_enabled() and (
        X.requires_grad or any(value.requires_grad for value in networks.tensors.values())
    )
    if memory_budget is None:
        budgets = _DERIVATIVE_BUDGET if differentiable else _VALUE_BUDGET
        memory_budget = budgets.get(X.device.type, budgets["cuda"])
    passing = X.element_size() * together * spec.passing_numbers()
    row = passing + X.element_size() * together * spec.kept_numbers()
    if differentiable:
        everything = len(X) * (passing + X.element_size() * count * spec.kept_numbers())
        keep = spec.norm == "batch" or everything <= memory_budget
        run = forward if keep else functools.partial(recomputed, forward, forward)
        chunks = X.split(max(1, len(X) if keep else memory_budget // row))
        return torch.cat([torch.cat([run(chunk, *part) for chunk in chunks]) for part in parts], dim=1)
    rows = max(1, len(X) if spec.norm == "batch" else memory_budget // row)
    result = X.new_empty(len(X), count, spec.n_features)
    for i, part in enumerate(parts):
        for start in range(0, len(X), rows):
            chunk = slice(start, start + rows)
            result[chunk, i * together : (i + 1) * together] = forward(X[chunk], *part)
    return result


def _forward(spec: ConvSpec, X: Tensor, *tensors: Tensor) -> Tensor:
    """Features (n, count, p) of all networks as one, whose channels lie side by side."""
    named = dict(zip(spec.shapes, tensors, strict=True))
    count, h = len(tensors[0]), X.contiguous(memory_format=torch.channels_last)
    for block in range(spec.depth):
        weight = named[f"weight.{block}"].flatten(0, 1).contiguous(memory_format=torch.channels_last)
        h = functional.conv2d(
            h,
            weight,
            named[f"bias.{block}"].flatten(),
            padding=spec.filter_size // 2,
            groups=count if block else 1,
        )
        if spec.norm is not None:
            scale, shift = named[f"scale.{block}"].flatten(), named[f"shift.{block}"].flatten()
            if spec.norm == "batch":
                h = functional.batch_norm(h, None, None, scale, shift, training=True)
            else:
                h = functional.instance_norm(h, None, None, scale, shift)
        h = functional.leaky_relu_(h, spec.leak) if spec.leak else functional.relu_(h)
        h = functional.avg_pool2d(h, 2)
    return h.reshape(len(X), count, -1)


@functools.cache
def _table(device: torch.device) -> Tensor:
    """Middles of 2^16 slices of equal probability of the standard normal, scaled to variance one; float32."""
    middles = (torch.arange(2**16, dtype=torch.float64) + 0.5) / 2**16
    values = torch.special.ndtri(middles)
    return (values / values.square().mean().sqrt()).float().to(device)


@contextlib.contextmanager
def repeatable() -> Iterator[None]:
    """Let cuDNN choose only among algorithms that give the same bits again."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before
