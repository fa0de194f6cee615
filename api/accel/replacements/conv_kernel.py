r"""What evaluation scripts use of neural-tangents: kernels of convolutional ReLU networks of infinite width.

``stax.serial`` of ``Conv``, ``Relu`` or ``LeakyRelu``, ``AvgPool((2, 2), (2, 2))``, then ``Flatten`` or
``GlobalAvgPool``, then ``Dense``, in the NTK parametrisation with one W_std and one b_std, is the network of
`kernels.conv_arc_cosine_kernel`, which computes its NNGP and NTK here. These are the networks of RFAD
(yolky/distilling-with-random-features, kernels.py) and of KIP. Names, defaults and the order of results are those of
neural-tangents 0.6; images are (n, height, width, channels). Without `get` both kernels are returned, and none of the
other fields of the genuine results. Whatever is not among the layers above is refused by name.
"""

import dataclasses
import time
import types
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ...kernels import conv_arc_cosine_kernel
from .._records import count_accelerated

NAME = "rfad.neural_tangents"
SUPPORTED = (
    "kernel_distill stands in for neural_tangents and computes networks of blocks of stax.Conv (padding 'SAME' or"
    " 'CIRCULAR', odd square filters, no strides), stax.Relu or LeakyRelu, and any number of stax.AvgPool((2, 2),"
    " strides=(2, 2)), then stax.Flatten or GlobalAvgPool, then stax.Dense; parameterization 'ntk', one W_std and one"
    " b_std throughout"
)
_KINDS = ("nngp", "ntk")


@dataclasses.dataclass(frozen=True)
class _Part:
    """One layer: its name, and what the kernel depends on."""

    name: str
    stds: tuple[float, float] | None = None
    value: Any = None


class Layer(tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]):
    """``(init_fn, apply_fn, kernel_fn)``, as neural-tangents returns; only the last one computes.

    Attributes
    ----------
    parts : tuple
        Layers in order.
    """

    parts: tuple[_Part, ...]

    def __new__(cls, *parts: _Part) -> "Layer":
        def kernel_fn(x1: Any, x2: Any = None, get: Any = None, **kwargs: Any) -> Any:
            return _kernel(parts, x1, x2, get, **kwargs)

        made = super().__new__(cls, (_no_finite_network, _no_finite_network, kernel_fn))
        made.parts = parts
        return made


def conv(
    out_chan: int,
    filter_shape: tuple[int, int],
    strides: tuple[int, int] | None = None,
    padding: str = "VALID",
    W_std: float = 1.0,
    b_std: float | None = None,
    dimension_numbers: Any = None,
    parameterization: str = "ntk",
    s: tuple[int, int] = (1, 1),
) -> Layer:
    """``stax.Conv``; the number of channels does not matter, nor `s`, which is of another parametrisation."""
    size = tuple(filter_shape)
    if len(size) != 2 or size[0] != size[1] or size[0] % 2 == 0:
        raise _unsupported(f"a filter of shape {size}")
    if padding not in ("SAME", "CIRCULAR"):
        raise _unsupported(f"padding {padding!r}")
    if (strides is not None and tuple(strides) != (1, 1)) or dimension_numbers is not None:
        raise _unsupported("strides or dimension_numbers of a convolution")
    padded = "zero" if padding == "SAME" else "circular"
    return Layer(_Part("Conv", _stds(W_std, b_std, parameterization), (int(size[0]), padded)))


def dense(
    out_dim: int,
    W_std: float = 1.0,
    b_std: float | None = None,
    batch_axis: int = 0,
    channel_axis: int = -1,
    parameterization: str = "ntk",
    s: tuple[int, int] = (1, 1),
) -> Layer:
    """``stax.Dense``; the number of outputs does not matter, nor `s`."""
    _check_axes(batch_axis, channel_axis)
    return Layer(_Part("Dense", _stds(W_std, b_std, parameterization)))


def relu(do_stabilize: bool = False) -> Layer:
    """``stax.Relu``; the option is about how it is computed there."""
    return Layer(_Part("Relu", value=0.0))


def leaky_relu(alpha: float, do_stabilize: bool = False) -> Layer:
    """``stax.LeakyRelu``."""
    return Layer(_Part("Relu", value=float(alpha)))


def avg_pool(
    window_shape: tuple[int, int],
    strides: tuple[int, int] | None = None,
    padding: str = "VALID",
    normalize_edges: bool = False,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Layer:
    """``stax.AvgPool``."""
    _check_axes(batch_axis, channel_axis)
    if tuple(window_shape) != (2, 2) or strides is None or tuple(strides) != (2, 2) or padding != "VALID":
        raise _unsupported(f"pooling of {window_shape} with strides {strides} and padding {padding!r}")
    return Layer(_Part("AvgPool"))


def flatten(batch_axis: int = 0, batch_axis_out: int = 0) -> Layer:
    """``stax.Flatten``."""
    _check_axes(batch_axis, -1)
    _check_axes(batch_axis_out, -1)
    return Layer(_Part("Flatten", value="flatten"))


def global_avg_pool(batch_axis: int = 0, channel_axis: int = -1) -> Layer:
    """``stax.GlobalAvgPool``."""
    _check_axes(batch_axis, channel_axis)
    return Layer(_Part("GlobalAvgPool", value="global_average"))


def serial(*layers: Any) -> Layer:
    """``stax.serial``."""
    for layer in layers:
        if not isinstance(layer, Layer):
            raise _unsupported(f"{layer!r} as a layer")
    return Layer(*(part for layer in layers for part in layer.parts))


def batch(
    kernel_fn: Callable[..., Any], batch_size: int = 0, device_count: int = -1, store_on_device: bool = True
) -> Callable[..., Any]:
    """``neural_tangents.batch``: the function itself, whose memory is bounded already."""
    return kernel_fn


def make_modules() -> dict[str, types.ModuleType]:
    """``neural_tangents``, ``.stax``, ``.utils`` and ``.utils.batch``, as far as evaluation scripts use them."""
    content: dict[str, dict[str, Any]] = {
        "neural_tangents": {"batch": batch},
        "neural_tangents.stax": {
            "Conv": conv,
            "Dense": dense,
            "Relu": relu,
            "LeakyRelu": leaky_relu,
            "AvgPool": avg_pool,
            "Flatten": flatten,
            "GlobalAvgPool": global_avg_pool,
            "serial": serial,
        },
        "neural_tangents.utils": {},
        "neural_tangents.utils.batch": {"batch": batch},
    }
    made: dict[str, types.ModuleType] = {}
    for name, values in content.items():
        made[name] = types.ModuleType(name, SUPPORTED)
        vars(made[name]).update(values)
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(made[parent], last, made[name])
    return made


def _kernel(parts: tuple[_Part, ...], x1: Any, x2: Any, get: Any, **kwargs: Any) -> Any:
    begin = time.perf_counter()
    if kwargs:
        raise _unsupported(f"{', '.join(sorted(kwargs))} of a kernel function")
    wanted = _KINDS if get is None else (get,) if isinstance(get, str) else tuple(get or ())
    if not wanted or any(kind not in _KINDS for kind in wanted):
        raise _unsupported(f"get={get!r} rather than 'nngp', 'ntk' or a tuple of them")
    network = _network(parts)
    X, Y = _images(x1), None if x2 is None or x2 is x1 else _images(x2)
    found = [conv_arc_cosine_kernel(X, Y, kind=kind, **network).cpu().numpy() for kind in wanted]
    count_accelerated(NAME, time.perf_counter() - begin)
    return found[0] if isinstance(get, str) else namedtuple("AnalyticKernel", wanted)(*found)


def _network(parts: tuple[_Part, ...]) -> dict[str, Any]:
    """Arguments of `conv_arc_cosine_kernel`."""
    names = [part.name for part in parts]
    if names[-1:] != ["Dense"] or names[-2:-1] not in (["Flatten"], ["GlobalAvgPool"]):
        raise _unsupported(f"a network that ends in {' and '.join(names[-2:]) or 'nothing'}")
    blocks = _blocks(names[:-2])
    if any(block[:2] != ["Conv", "Relu"] or set(block[2:]) - {"AvgPool"} for block in blocks) or not blocks:
        raise _unsupported(f"the sequence {', '.join(names)}")
    filters = {part.value for part in parts if part.name == "Conv"}
    leaks = {part.value for part in parts if part.name == "Relu"}
    stds = {part.stds for part in parts if part.stds is not None}
    if not len(filters) == len(leaks) == len(stds) == 1:
        raise _unsupported("layers with different filters, paddings, activations, W_std or b_std")
    (filter_size, padding), (leak,), ((weight_std, bias_std),) = filters.pop(), leaks, stds
    return {
        "depth": len(blocks),
        "pooling": tuple(len(block) - 2 for block in blocks),
        "filter_size": filter_size,
        "padding": padding,
        "leak": leak,
        "weight_std": weight_std,
        "bias_std": bias_std,
        "readout": parts[-2].value,
    }


def _blocks(names: list[str]) -> list[list[str]]:
    """Names split before each convolution."""
    blocks: list[list[str]] = []
    for name in names:
        if name == "Conv" or not blocks:
            blocks.append([])
        blocks[-1].append(name)
    return blocks


def _images(values: Any) -> torch.Tensor:
    """(n, h, w, c) of anything that NumPy understands as (n, c, h, w), on a GPU where there is one."""
    array = np.asarray(values)
    if array.ndim != 4:
        raise ValueError(f"images must have shape (n, height, width, channels), got {array.shape}")
    array = array if array.dtype == np.float64 else array.astype(np.float32)
    images = torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))
    return images.to("cuda") if torch.cuda.is_available() else images


def _stds(W_std: float, b_std: float | None, parameterization: str) -> tuple[float, float]:
    if parameterization != "ntk":
        raise _unsupported(f"parameterization {parameterization!r}")
    return float(W_std), 0.0 if b_std is None else float(b_std)


def _check_axes(batch_axis: int, channel_axis: int) -> None:
    if batch_axis != 0 or channel_axis not in (-1, 3):
        raise _unsupported(f"batch_axis {batch_axis} and channel_axis {channel_axis}")


def _no_finite_network(*args: Any, **kwargs: Any) -> Any:
    raise NotImplementedError(f"{SUPPORTED}: kernels alone, no finite networks to initialise or apply")


def _unsupported(what: str) -> ValueError:
    return ValueError(f"{SUPPORTED}; got {what}")
