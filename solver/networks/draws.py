r"""Networks by seed: torch's default distributions, drawn by counters.

Convolutions and dense layers start with weights and biases uniform in :math:`\pm 1/\sqrt{\text{fan-in}}` (which is
what torch's `kaiming_uniform_` with a = sqrt(5) comes to), norms with 1 and 0. Each number takes 16 random bits
(`kernels.random_bits`, four to a word) and is the middle of one of 65,536 equal slices: its variance is that of
the uniform distribution but for a part in 4e9, and it is exact, so all devices get the same networks. Only the bits
are made by the host.
"""

import functools
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from ...kernels import random_bits
from .._check import check_count
from .network import Network, template
from .spec import NetworkSpec
from .stack import NetworkStack

_LEVELS = 2**15


def draw_networks(
    spec: NetworkSpec,
    count: int,
    seed: int,
    stream: str = "network",
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> NetworkStack:
    """Networks with random weights, stacked.

    Parameters
    ----------
    spec : NetworkSpec
    count : int
    seed : int
    stream : str, default "network"
        Network i is a function of `seed`, `stream` and i alone: the same for every count and device.
    device, dtype
        Of the tensors. Values are exactly those in float32.

    Returns
    -------
    NetworkStack

    Raises
    ------
    ValueError
        If `count` is below 1 or the seed is out of range.
    """
    check_count(count, "count")
    model, bounds = template(spec), _bounds(spec)
    sizes = [model.get_parameter(name).numel() for name in bounds]
    bits = np.stack([random_bits(seed, f"{stream}.{i}", -(-sum(sizes) // 4)) for i in range(count)])
    levels = torch.from_numpy(bits.astype("<u8", copy=False).view("<i2")[:, : sum(sizes)])
    device = torch.device(device)
    if device.type == "cuda":
        levels = levels.contiguous().pin_memory()
    values = levels.to(device, non_blocking=True).float().add_(0.5)
    drawn = dict(zip(bounds, values.split(sizes, 1), strict=True))
    parameters: dict[str, Tensor] = {}
    for name, like in model.named_parameters():
        if name in drawn:
            part = (drawn[name] * (bounds[name] / _LEVELS)).reshape(count, *like.shape)
        else:
            part = torch.full((count, *like.shape), float(name.endswith("weight")), device=device)
        parameters[name] = part.to(dtype)
    buffers = {name: _start(name, like, count, device, dtype) for name, like in model.named_buffers()}
    return NetworkStack(spec, parameters, buffers)


def build_network(
    spec: NetworkSpec,
    seed: int = 0,
    stream: str = "network",
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Network:
    """One network with random weights, in training mode: the first that `draw_networks` makes.

    Parameters and errors as in `draw_networks`.

    Returns
    -------
    Network
    """
    return draw_networks(spec, 1, seed, stream, device=device, dtype=dtype).network(0)


@functools.cache
def _bounds(spec: NetworkSpec) -> dict[str, float]:
    """Largest value of each tensor that is drawn, by name, in the order of the module."""
    return dict(_drawn(template(spec)))


def _drawn(model: nn.Module) -> Iterator[tuple[str, float]]:
    for prefix, layer in model.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            bound = 1 / math.sqrt(math.prod(layer.weight.shape[1:]))
            for name, _ in layer.named_parameters():
                yield f"{prefix}.{name}", bound


def _start(name: str, like: Tensor, count: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Batch norm's running mean 0, variance 1 and number of batches 0."""
    value = 1 if name.endswith("running_var") else 0
    kind = dtype if like.is_floating_point() else like.dtype
    return torch.full((count, *like.shape), value, device=device, dtype=kind)
