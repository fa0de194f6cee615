r"""A step of RFAD (yolky/distilling-with-random-features, distillation.py): points' features to predictions of rows.

With :math:`\Phi_S, \Phi_T` the features of the points and of a batch of rows under N networks of p features each,
divided by :math:`\sqrt{N p}`, the published statements compute

.. math::
    \hat Y = K_{TS}\,\alpha, \qquad K_{TS} = 2 \Phi_T \Phi_S^\top + 0.01, \qquad
    (K_{SS} + r \tfrac{\mathrm{tr} K_{SS}}{n} I)\,\alpha = Y_S .

Here :math:`\hat Y = 2 \Phi_T (\Phi_S^\top \alpha) + 0.01 \sum_i \alpha_i`: the weights in brackets are formed in
float64, where what cancels among the :math:`\alpha` cancels exactly, and K_TS is not formed. Its rounding in float32,
which the published code multiplies by a large :math:`\alpha`, is gone with it.

**Where the time goes.** 16 TFLOP of a step are features of 5,120 rows under eight networks of width 256. They are made
with channels last, on a CPU in pieces on single-core workers, and written where they belong. Gradients of the weights
of the random networks, which nobody reads, are not computed. The solve stays as it is: it factorises once for value and
derivative, in 0.1 GFLOP.

**Half precision.** Where the user's settings let cuDNN round the operands of convolutions to TF32 (torch's default),
rows pass in float16: the same 11 bits of significand, float32 sums, half the memory traffic. Should a number exceed
float16's range, predictions are not finite, and the rows pass again in float32.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ...solver._workers import single_core_workers
from ...solver.conv_networks import ConvNetworks, ConvSpec, conv_features
from ..registry.rfad import FORWARDS
from .known_sources import source_of

# The published code ignores its argument `batch_size`.
_BATCH = 1280
# Rows of one task on a CPU, and bytes of their activations: in fewer, weights are rearranged too often, and more leave
# the cache (2^24 and 2^29 take a fifth longer at width 256).
_PIECE, _PIECE_BYTES = 64, 1 << 26
_BIAS_VARIANCE = 0.01
_EVERYTHING = 1 << 62
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def step(
    n_models: int,
    models_list: Sequence[Any],
    transformed_data: Tensor,
    jit: float,
    coreset_size: int,
    from_loader: bool,
    n_batches: int,
    X_train: Tensor,
    y_train: Tensor,
    n_classes: int,
    y_coreset: Tensor,
) -> tuple[Tensor, Tensor]:
    """Targets and predictions of the rows of a step: statements of `distill_dataset`.

    Parameters
    ----------
    n_models, models_list
        Networks of the step.
    transformed_data : Tensor, shape (n, c, h, w)
        Points, as the networks see them.
    jit, coreset_size
        r and n.
    from_loader
        Of what the guard admits, False.
    n_batches : int
        Batches of 1,280 rows each, drawn without replacement from NumPy's global generator.
    X_train, y_train, n_classes
        The data.
    y_coreset : Tensor, shape (n, k)
        Labels of the points.

    Returns
    -------
    y_values : Tensor, shape (1280 n_batches, k)
        One-hot targets less their mean, as in the original bit for bit.
    preds : Tensor of the same shape, float64
        Differentiable in `transformed_data` and `y_coreset`, as in the original; not in the networks.

    Notes
    -----
    Memory: features of the rows once (the original holds them three times), activations of the points.
    """
    found = _networks(models_list[:n_models], transformed_data.shape[1:])
    assert not isinstance(found, str)
    networks = _stacked(*found)
    p = networks.count * networks.spec.n_features
    points = conv_features(networks, transformed_data, memory_budget=_EVERYTHING).flatten(1) / math.sqrt(p)
    K = 2 * points @ points.T + _BIAS_VARIANCE
    eye = torch.eye(coreset_size, device=K.device)
    K = K + jit * eye * torch.trace(K) / coreset_size
    solved = torch.linalg.solve(K.double(), y_coreset.double())
    weights = ((points.double().T @ solved) * (2 / math.sqrt(p))).float()
    offset = _BIAS_VARIANCE * solved.sum(0)

    # The draws of the original, which come from the generator that the user seeds.
    picked = [np.random.choice(len(X_train), _BATCH, replace=False) for _ in range(n_batches)]
    targets = [functional.one_hot(y_train[index], n_classes).to(K.device) - 1 / n_classes for index in picked]
    halve = tf32_convolutions(transformed_data.device)
    preds = (_row_features(networks, X_train, picked, halve) @ weights).double() + offset
    if halve and not preds.isfinite().all():
        preds = (_row_features(networks, X_train, picked, False) @ weights).double() + offset
    return torch.cat(targets), preds


def why_not_step(
    n_models: int,
    models_list: Sequence[Any],
    transformed_data: Tensor,
    jit: float,
    coreset_size: int,
    from_loader: bool,
    n_batches: int,
    X_train: Tensor,
    y_train: Tensor,
    n_classes: int,
    y_coreset: Tensor,
) -> str | None:
    """Why this step is left to the original: rows from a loader, other networks, other kinds of arrays."""
    if from_loader:
        return "rows come from a loader"
    if not all(isinstance(value, Tensor) for value in (transformed_data, X_train, y_train, y_coreset)):
        return "data are no tensors of torch"
    device, shape = transformed_data.device, transformed_data.shape
    if transformed_data.dtype != torch.float32 or transformed_data.ndim != 4:
        return "points are no float32 images"
    if X_train.is_complex() or X_train.shape[1:] != shape[1:] or len(y_train) != len(X_train):
        return "rows are of another shape or kind than the points"
    if not y_coreset.is_floating_point() or tuple(y_coreset.shape) != (coreset_size, n_classes):
        return "labels of the points are of another shape or kind than they should be"
    if coreset_size != shape[0] or n_batches < 1 or not 1 <= n_models <= len(models_list):
        return "there are no networks, no batches, or another number of points than was said"
    if torch.is_autocast_enabled(device.type):
        return "autocast is on"
    if y_coreset.device != device or not {X_train.device, y_train.device} <= {device, torch.device("cpu")}:
        return "data are on several devices"
    found = _networks(models_list[:n_models], shape[1:])
    if isinstance(found, str):
        return found
    return None if found[1][0][0].weight.device == device else "networks and points are on several devices"


def tf32_convolutions(device: torch.device) -> bool:
    """Whether the operands of float32 convolutions are rounded to 11 bits there."""
    if device.type != "cuda":
        return False
    allowed = torch.backends.cudnn.conv.fp32_precision == "tf32"  # pyright: ignore[reportAttributeAccessIssue]
    return allowed and torch.backends.cudnn.enabled and torch.cuda.get_device_capability(device) >= (8, 0)


def _row_features(
    networks: ConvNetworks, X_train: Tensor, picked: Sequence[np.ndarray], halve: bool
) -> Tensor:
    """Features of the picked rows, (rows, N p) in float32, not yet divided by anything."""
    example = networks.tensors["weight.0"]
    networks = networks.to(torch.float16) if halve else networks
    features = example.new_empty(_BATCH * len(picked), networks.count * networks.spec.n_features)

    def fill(rows: Tensor, start: int) -> None:
        rows = rows.to(torch.float16) if halve else rows
        budget = None if rows.is_cuda else _PIECE_BYTES
        features[start : start + len(rows)] = conv_features(networks, rows, memory_budget=budget).flatten(1)

    with torch.no_grad():
        batches = (X_train[index].float().to(example.device) for index in picked)
        if example.is_cuda:
            for number, rows in enumerate(batches):
                fill(rows, _BATCH * number)
            return features
        with single_core_workers(None) as pool:
            tasks = [pool.submit(fill, rows, start) for rows, start in _pieces(batches)]
            for task in tasks:
                task.result()
    return features


def _pieces(batches: Iterator[Tensor]) -> Iterator[tuple[Tensor, int]]:
    start = 0
    for batch in batches:
        for rows in batch.split(_PIECE):
            yield rows, start
            start += len(rows)


def _networks(
    models: Sequence[Any], shape: Sequence[int]
) -> tuple[ConvSpec, list[Sequence[nn.Conv2d]]] | str:
    """What networks of ours these modules are, and their convolutions; or a reason why they are none."""
    networks: list[Sequence[nn.Conv2d]] = []
    for model in models:
        convolutions = _convolutions(model)
        if convolutions is None:
            return "a network is not RFAD's: blocks of convolution, ReLU and 2 x 2 average, and no last layer"
        networks.append(convolutions)
    widths = tuple(layer.out_channels for layer in networks[0])
    if min(shape[1:]) >> len(widths) < 1:
        return "the images are too small for the networks"
    spec = ConvSpec(tuple(shape), widths, len(widths), networks[0][0].kernel_size[0])
    device = networks[0][0].weight.device
    for convolutions in networks:
        tensors = [
            value for layer in convolutions for value in (layer.weight, layer.bias) if value is not None
        ]
        if [tuple(value.shape) for value in tensors] != list(spec.shapes.values()):
            return "the networks differ from one another, or do not fit the images"
        if any(value.dtype != torch.float32 or value.device != device for value in tensors):
            return "the networks are not float32 on one device"
    return spec, networks


def _convolutions(model: Any) -> Sequence[nn.Conv2d] | None:
    """Convolutions of RFAD's ConvNet_wide without its last layer; None if the module is anything else."""
    layers = getattr(model, "features", None)
    if type(layers) is not nn.Sequential or len(layers) % 3 or not len(layers) or model.training:
        return None
    if getattr(model, "chopped_head", None) is not True or source_of(type(model).forward) not in FORWARDS:
        return None
    if any(getattr(module, hooks) for module in model.modules() for hooks in _HOOKS):
        return None
    parts = list(layers)
    blocks = list(zip(parts[::3], parts[1::3], parts[2::3], strict=True))
    if not all(_is_block(*block) for block in blocks):
        return None
    return [conv for conv, _, _ in blocks if isinstance(conv, nn.Conv2d)]


def _is_block(conv: nn.Module, activation: nn.Module, pooling: nn.Module) -> bool:
    """Whether these are a convolution that keeps the size, a ReLU, and the average of 2 x 2 pixels."""
    if not isinstance(conv, nn.Conv2d) or type(conv).forward is not nn.Conv2d.forward or conv.bias is None:
        return False
    size = conv.kernel_size[0]
    keeps = size % 2 == 1 and conv.kernel_size == (size, size) and conv.padding == (size // 2, size // 2)
    plain = conv.stride == conv.dilation == (1, 1) and conv.groups == 1 and conv.padding_mode == "zeros"
    halves = (
        type(pooling) is nn.AvgPool2d and pooling.kernel_size in (2, (2, 2)) and pooling.stride in (2, (2, 2))
    )
    whole = (
        halves
        and pooling.padding in (0, (0, 0))
        and not pooling.ceil_mode
        and pooling.divisor_override is None
    )
    return keeps and plain and type(activation) is nn.ReLU and whole


def _stacked(spec: ConvSpec, networks: Sequence[Sequence[nn.Conv2d]]) -> ConvNetworks:
    """Weights side by side, without a gradient, with channels last, which is how they are used."""
    tensors: dict[str, Tensor] = {}
    for name in spec.shapes:
        kind, _, block = name.partition(".")
        values = [getattr(convolutions[int(block)], kind).detach() for convolutions in networks]
        if kind == "weight":
            tensors[name] = torch.stack([value.permute(0, 2, 3, 1) for value in values]).permute(
                0, 1, 4, 2, 3
            )
        else:
            tensors[name] = torch.stack(values)
    return ConvNetworks(spec, tensors)
