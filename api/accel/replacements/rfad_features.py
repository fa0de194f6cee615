r"""What RFAD makes of its images before it learns: a whitening matrix, and features of random networks.

**Whitening** (`data.py` of yolky/RFAD, copied in `functions/dataset.py` of the published provable-KRR code):
:math:`(C + \rho I)^{-1/2}` with :math:`C = X^\top X / n` and :math:`\rho = r \operatorname{tr} C / d`. The original
takes a singular value decomposition; the matrix is symmetric positive definite, so its eigendecomposition gives the
same for about a quarter of the work, and half of each product of a matrix with its transpose is saved.

*How far apart.* Eigenvalues found in float32 are off by about :math:`2^{-24} \lambda_1`. That moves the result by at
most :math:`\tfrac12 \rho^{-3/2}` times as much, while its largest entry is at least :math:`(\rho + \operatorname{tr}
C/d)^{-1/2}`: relative to it :math:`\tfrac12 r^{-3/2} \sqrt{1+r}\, d\, 2^{-24}` times the share of :math:`\lambda_1` in
the trace. At r = 0.1 and CIFAR-10 (d = 3072, share 0.27) this is 8e-4 for each of the two: measured from float64, the
original was 1.3e-3 to 1.5e-3 away and this one 7e-4.

**Random features** (`random_features.py` of yolky/RFAD): outputs of networks with random weights, divided by the root
of their number. Networks are made by the caller's class in the original's order, so weights and the state of the
generator are the same. The convolutions are those of `solver.conv_networks`, on few images at a time, whose
activations stay in the cache, with channels last; the head takes many. Networks of other layers than convolution,
(leaky) ReLU and average pooling run as they are, in the original's batches.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...kernels import gram_add_, mirror_upper_, statistics_add_
from ...solver._workers import single_core_workers
from ...solver.conv_networks import ConvNetworks, ConvSpec, conv_features
from .known_sources import source_of

_LEAST_RIDGE = 0.1  # below it, rounding of the original itself is no longer small
_WHITENING_ROWS = 8192
# Networks of `models.py` whose forward pass is features, flattened, then classifier; and what they are made of.
NETWORKS = {"ConvNet": ("c9d3a7670eb2e911",), "ConvNet_wide": ("20e99538a0ad7365",)}
LAYERS = {"Conv2d_gaussian": ("ade177ef8788988a",), "GaussianLinear": ("8ba9c8561983f942",)}
_CONVOLVED = 32  # images whose activations are alive at once, on each core
_ROWS = {"cpu": 512, "cuda": 4096}  # images whose features are alive at once, on each core or the GPU
_HELD = 2**30  # bytes of a data set that stay on a GPU from one network to the next


def get_zca_matrix(X: Tensor, reg_coef: float = 0.1) -> Tensor:
    """Symmetric whitening matrix of rows, without removing their mean; float32, on the CPU.

    On the GPU if there is one (the original needs one). n d² multiplications and an eigendecomposition, O(d²) memory.
    """
    flat = X.reshape(X.shape[0], -1)
    (n, d), device = flat.shape, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gram = torch.zeros(d, d, dtype=torch.float64, device=device)
    unused = gram.new_zeros(d, 1)
    for rows in flat.split(_WHITENING_ROWS):
        rows = rows.to(device)
        statistics_add_(gram, unused, rows, rows.new_zeros(len(rows), 1))
    second = mirror_upper_(gram).div_(n)
    second.diagonal().add_(reg_coef * second.trace() / d)
    values, vectors = torch.linalg.eigh(second.float())
    half = vectors.mul_(values.pow(-0.25))
    return mirror_upper_(gram_add_(torch.zeros_like(half), half.T)).cpu()


def why_not_zca(X: Any, reg_coef: Any = 0.1) -> str | None:
    """Other dtypes, mixed precision, and ridges at which the answer depends on rounding."""
    if type(X) is not Tensor or X.dtype != torch.float32 or X.requires_grad or X.layout != torch.strided:
        return "X is not a plain float32 tensor without gradient"
    if not X.numel() or X.ndim < 2 or X.device.type not in ("cpu", "cuda"):
        return "X has no rows and columns, or is on a device of another kind"
    if not (isinstance(reg_coef, (int, float)) and _LEAST_RIDGE <= reg_coef < float("inf")):
        return f"reg_coef is not a number of at least {_LEAST_RIDGE}"
    return "autocast is on" if _is_autocast() else None


def get_random_features(
    X_train: Any,
    model_class: Callable[..., nn.Module],
    n_models: int,
    n_features_per_model: int,
    batch_size: int = 300,
    fixed_seed: Any = None,
    other_datasets: Any = (),
    featurewise_normalize: bool = False,
    elementwise_normalize: bool = False,
    device: Any = "cuda:0",
    return_models: bool = False,
) -> tuple[Any, ...]:
    """Outputs of random networks on several data sets, side by side, float32 arrays of NumPy.

    Weights, random numbers drawn and the networks returned are the original's bit for bit; features up to rounding.
    The forward passes cost the same number of operations; on each core 32 images are convolved at a time.
    """
    datasets = [X_train, *other_datasets]
    results: list[np.ndarray] = []
    models = []
    with single_core_workers(None) as pool:
        for m in range(n_models):
            if fixed_seed is not None:
                torch.manual_seed(fixed_seed[m])
            model = model_class(n_random_features=n_features_per_model)
            model.to(device)
            model.eval()
            if return_models:
                models.append(model)
            place = next(model.parameters()).device
            if m == 0:
                datasets = [_held(rows, place) for rows in datasets]
            forward, step = _forward_pass(model, datasets[0], batch_size, place)
            if not results:
                n_features_per_model = forward(datasets[0][:1]).shape[1]
                results = [np.zeros([len(x), n_models * n_features_per_model], np.float32) for x in datasets]
            scale = np.sqrt(n_models * n_features_per_model)
            columns = slice(n_features_per_model * m, n_features_per_model * (m + 1))
            run = functools.partial(_fill, datasets, results, forward, columns, scale)
            # A GPU is kept busy by one thread.
            for _ in (pool.map if place.type == "cpu" else map)(run, _pieces(datasets, step)):
                pass
    _normalize(results, featurewise_normalize, elementwise_normalize)
    return (results[0], results[1:], models) if return_models else (results[0], results[1:])


def why_not_random_features(
    X_train: Any,
    model_class: Any,
    n_models: Any,
    n_features_per_model: Any,
    batch_size: Any = 300,
    fixed_seed: Any = None,
    other_datasets: Any = (),
    featurewise_normalize: bool = False,
    elementwise_normalize: bool = False,
    device: Any = "cuda:0",
    return_models: bool = False,
) -> str | None:
    """Networks that are not RFAD's, rows of other types, and calls for which the original raises."""
    if not isinstance(other_datasets, (list, tuple)) or not all(map(_are_rows, (X_train, *other_datasets))):
        return "the rows are not float32 tensors on the CPU, or arrays of floating point numbers"
    if not len(X_train) or any(x.shape[1:] != X_train.shape[1:] for x in other_datasets):
        return "there are no rows, or rows of several shapes"
    if not all(isinstance(count, (int, np.integer)) and count > 0 for count in (n_models, batch_size)):
        return "the number of networks or the batch size is not a positive whole number"
    if not isinstance(device, (str, torch.device)) or str(device).partition(":")[0] not in ("cpu", "cuda"):
        return "the device is neither the CPU nor a GPU of CUDA"
    if torch.get_default_dtype() != torch.float32:
        return "the default dtype is not float32"
    if _is_autocast():
        return "autocast is on"
    while isinstance(model_class, functools.partial):
        model_class = model_class.func
    if not isinstance(model_class, type) or not _is_known(model_class):
        return "the networks are none of RFAD's"
    return None


def _are_rows(x: Any) -> bool:
    if type(x) is Tensor:
        return (
            x.dtype == torch.float32 and x.device.type == "cpu" and x.layout == torch.strided and x.ndim > 1
        )
    return type(x) is np.ndarray and x.dtype in (np.float32, np.float64) and x.ndim > 1


def _is_known(network: type) -> bool:
    if source_of(network) not in NETWORKS.get(network.__name__, ()):
        return False
    module = sys.modules.get(network.__module__)
    return all(source_of(getattr(module, name, None)) in hashes for name, hashes in LAYERS.items())


def _is_autocast() -> bool:
    """Whether anything is in mixed precision: the original computes on a GPU what it is given on a CPU."""
    return any(map(torch.is_autocast_enabled, ("cpu", "cuda")))


def _held(rows: Any, place: torch.device) -> Any:
    """A data set on the GPU, if it is small enough."""
    return _on(rows, place) if place.type == "cuda" and rows.nbytes <= _HELD else rows


def _on(rows: Any, place: torch.device) -> Tensor:
    return rows.to(place) if isinstance(rows, Tensor) else torch.Tensor(rows).to(place)


def _forward_pass(
    model: nn.Module, example: Any, batch_size: int, place: torch.device
) -> tuple[Callable[[Any], Tensor], int]:
    """What to apply to rows of a data set, and to how many at a time."""
    networks = _as_conv_networks(model, tuple(example.shape[1:]))
    budget = None
    if networks is not None and place.type == "cpu":
        budget = 4 * _CONVOLVED * (networks.spec.passing_numbers() + networks.spec.kept_numbers())
    head = None if getattr(model, "chopped_head", False) else model.get_submodule("classifier")

    def forward(rows: Any) -> Tensor:
        with torch.no_grad():
            x = _on(rows, place)
            if networks is None:
                return model(x)
            features = conv_features(networks, x, memory_budget=budget)[:, 0]
            return features if head is None else head(features)

    return forward, int(batch_size) if networks is None else _ROWS[place.type]


def _as_conv_networks(model: nn.Module, shape: tuple[int, ...]) -> ConvNetworks | None:
    """The layers before the head, if they are blocks of a convolution, a (leaky) ReLU and an average pooling."""
    layers: list[Any] = list(model.get_submodule("features").children())
    blocks = [layers[i : i + 3] for i in range(0, len(layers), 3)]
    activation = layers[1] if len(layers) > 1 else None
    if type(activation) not in (nn.ReLU, nn.LeakyReLU):
        return None
    if any([type(layer) for layer in block[1:]] != [type(activation), nn.AvgPool2d] for block in blocks):
        return None
    channels, widths = layers[0].in_channels, tuple(block[0].out_channels for block in blocks)
    if len(shape) != 3 or shape[0] != channels or min(shape[1:]) >> len(blocks) < 1:
        return None
    leak = getattr(activation, "negative_slope", 0.0)
    spec = ConvSpec(shape, width=widths, depth=len(blocks), leak=leak)
    tensors = {}
    for i, (convolution, *_) in enumerate(blocks):
        tensors[f"weight.{i}"], tensors[f"bias.{i}"] = convolution.weight, convolution.bias
    return ConvNetworks(spec, {name: tensor.detach()[None] for name, tensor in tensors.items()})


def _pieces(datasets: list[Any], step: int) -> Iterator[tuple[int, slice]]:
    for number, rows in enumerate(datasets):
        for start in range(0, len(rows), step):
            yield number, slice(start, start + step)


def _fill(
    datasets: list[Any],
    results: list[np.ndarray],
    forward: Callable[[Any], Tensor],
    columns: slice,
    scale: np.floating,
    piece: tuple[int, slice],
) -> None:
    number, rows = piece
    results[number][rows, columns] = _divided(forward(datasets[number][rows]), scale)


def _divided(values: Tensor, scale: np.floating) -> np.ndarray:
    """``values / scale`` in the dtype that NumPy would divide in: float64 since NumPy 2."""
    wide = (np.zeros(1, np.float32) / scale).dtype == np.float64
    dtype = torch.float64 if wide else torch.float32
    return (values.to(dtype) / torch.tensor(scale, dtype=dtype, device=values.device)).float().cpu().numpy()


def _normalize(results: list[np.ndarray], featurewise: bool, elementwise: bool) -> None:
    """Subtract means in place; the last one from the first data set alone, as in the original."""
    if featurewise:
        means = np.mean(results[0], axis=0, keepdims=True)
        for features in results:
            features -= means
    if elementwise:
        for features in results:
            features -= np.mean(features, axis=1, keepdims=True)
        results[0] -= np.mean(results[0])
