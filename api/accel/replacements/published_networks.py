"""Which of our networks a module of published code is, proved by what both make of a few rows.

The networks of `networks.py` in VICO-UoE/DatasetCondensation, which most later work copied, are those of
`solver.networks`. A module is recognised by the name of its class and its layers; its weights are ours in the order in
which it lists them, with equal shapes. Since `forward` may do anything beside that, both are then given the same few
rows, in training and in evaluation: only a module that gives the same outputs is known.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...solver.networks import Network, NetworkSpec, NetworkStack, network_spec
from ...solver.networks.network import network_of, template
from .._cache import keep, kept
from .._call import random_state_kept

# Relative to the largest output: float32 through at most twenty layers.
AGREEMENT = 1e-4
# Batch norm needs more rows than one.
PROBES = 4

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_ACTIVATIONS = {"ReLU": "relu", "Sigmoid": "sigmoid", "LeakyReLU": "leaky-relu", "Swish": "swish"}
_POOLINGS = {"AvgPool2d": "average", "MaxPool2d": "max"}


def known_network(net: Any, rows: Tensor) -> NetworkSpec | None:
    """The network that a module is.

    Parameters
    ----------
    net : object
        Is left as it is.
    rows : Tensor, shape (n, c, h, w)
        Inputs, of which a few are probed, moved to the network's device.

    Returns
    -------
    NetworkSpec or None
        None if it is none of ours: another class or other layers, other outputs, hooks, other dtypes than float32, or
        parameters that are not trained.
    """
    spec = _plausible(net, rows)
    if spec is None or not all(parameter.requires_grad for parameter in net.parameters()):
        return None
    return spec if _agree(net, spec, rows, lambda module, X: module(X)) else None


def known_embedding(net: Any, rows: Tensor) -> NetworkSpec | None:
    """The network that a module is, as far as its `embed` goes.

    Parameters and result as of `known_network`, whose parameters need not be trained here. Modules of one class with
    the same layers are probed until one is known: scripts make a new one at every step.
    """
    spec = _plausible(net, rows)
    if spec is None:
        return None
    # The class is in the key itself, so that none of another module can take its place.
    key = ("published embedding", type(net), repr(net), spec, str(_device(net)))
    if kept(key) is None:
        if not _agree(net, spec, rows, lambda module, X: module.embed(X)):
            return None  # not kept: with other rows it may be known
        keep(key, True, 1)
    return spec


def twin(net: nn.Module, spec: NetworkSpec) -> Network:
    """Our network on the very tensors of a module that is known."""
    return network_of(spec, _named(net, spec) or {})


def stacked(nets: Sequence[nn.Module], spec: NetworkSpec) -> NetworkStack:
    """Copies of modules that are known."""
    return NetworkStack.of([twin(net, spec) for net in nets])


@torch.no_grad()
def copy_into(net: nn.Module, stack: NetworkStack, index: int) -> None:
    """Give a module that is known the weights and running averages of a network of ours."""
    tensors = stack.parameters | stack.buffers
    for name, value in (_named(net, stack.spec) or {}).items():
        value.copy_(tensors[name][index])


def _plausible(net: Any, rows: Tensor) -> NetworkSpec | None:
    """The network that a module may be by its class, its layers and the shapes of its weights."""
    describe = _DESCRIBED.get(type(net).__name__)
    if describe is None or not isinstance(net, nn.Module) or rows.ndim != 4:
        return None
    modules = list(net.modules())
    if any(getattr(module, hooks) for module in modules for hooks in _HOOKS):
        return None
    if not all(_is_plain_norm(module) for module in modules if isinstance(module, nn.BatchNorm2d)):
        return None
    linear = [module for module in modules if isinstance(module, nn.Linear)]
    options = describe(net)
    if not linear or options is None:
        return None
    try:
        spec = network_spec(options.pop("name"), tuple(rows.shape[1:]), linear[-1].out_features, **options)
    except ValueError:  # none of ours takes such images
        return None
    return None if _named(net, spec) is None else spec


def _named(net: nn.Module, spec: NetworkSpec) -> dict[str, Tensor] | None:
    """The tensors of a module by our names; None if they do not fit."""
    like = template(spec)
    names = [name for name, _ in (*like.named_parameters(), *like.named_buffers())]
    shapes = [tuple(value.shape) for value in (*like.parameters(), *like.buffers())]
    tensors = [value.detach() for value in (*net.parameters(), *net.buffers())]
    sound = all(value.dtype == torch.float32 or not value.is_floating_point() for value in tensors)
    if not sound or shapes != [tuple(value.shape) for value in tensors]:
        return None
    return dict(zip(names, tensors, strict=True))


@torch.no_grad()
def _agree(net: nn.Module, spec: NetworkSpec, rows: Tensor, outputs: Callable[[Any, Tensor], Tensor]) -> bool:
    """Whether a module and ours with its weights give the same outputs, in either mode."""
    if spec.norm == "batch" and len(rows) < 2:
        return False
    X = rows.detach()[:PROBES].to(_device(net), torch.float32).contiguous()
    with random_state_kept():
        for training in (False, True):
            # Copies: batch norm moves its averages.
            theirs = copy.deepcopy(net).train(training)
            ours = twin(copy.deepcopy(net), spec).train(training)
            expected, found = outputs(theirs, X.clone()), outputs(ours, X.clone())
            if expected.shape != found.shape:
                return False
            if not (expected - found).abs().max() <= AGREEMENT * expected.abs().max():
                return False
    return True


def _device(net: nn.Module) -> torch.device:
    return next(net.parameters()).device


def _is_plain_norm(module: nn.BatchNorm2d) -> bool:
    return (module.eps, module.momentum, module.affine, module.track_running_stats) == (1e-5, 0.1, True, True)


def _convnet(net: nn.Module) -> dict[str, Any] | None:
    """Options of a ConvNet; layers that it cannot have make it another network."""
    layers = getattr(net, "features", None)
    if not isinstance(layers, nn.Sequential) or not len(layers) or not isinstance(layers[0], nn.Conv2d):
        return None
    names = [type(layer).__name__ for layer in layers]
    width, depth = layers[0].out_channels, names.count("Conv2d")
    options: dict[str, Any] = {
        "name": "convnet",
        "width": width,
        "depth": depth,
        "norm": "none",
        "pooling": "none",
    }
    for layer, name in zip(layers, names, strict=True):
        if isinstance(layer, nn.GroupNorm):
            options["norm"] = "instance" if layer.num_groups == width else "group"
        elif name in ("BatchNorm2d", "LayerNorm"):
            options["norm"] = "batch" if name == "BatchNorm2d" else "layer"
        elif name in _ACTIVATIONS:
            options["activation"] = _ACTIVATIONS[name]
        elif name in _POOLINGS:
            options["pooling"] = _POOLINGS[name]
        elif name != "Conv2d":
            return None
    return options


def _mlp(net: nn.Module) -> dict[str, Any] | None:
    linear = [module for module in net.modules() if isinstance(module, nn.Linear)]
    if len(linear) < 2:
        return None
    return {"name": "mlp", "width": linear[0].out_features, "depth": len(linear) - 1}


def _with_norm(name: str, other: str) -> Callable[[nn.Module], dict[str, Any]]:
    """A network that has batch norm, or else another norm."""

    def describe(net: nn.Module) -> dict[str, Any]:
        batch = any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
        return {"name": name, "norm": "batch" if batch else other}

    return describe


_DESCRIBED: dict[str, Callable[[nn.Module], dict[str, Any] | None]] = {
    "ConvNet": _convnet,
    "MLP": _mlp,
    "LeNet": lambda net: {"name": "lenet"},
    "AlexNet": _with_norm("alexnet", "none"),
    "AlexNetBN": _with_norm("alexnet", "none"),
    "VGG": _with_norm("vgg11", "instance"),
    "ResNet": _with_norm("resnet18", "instance"),
    "ResNet_AP": _with_norm("resnet18-ap", "instance"),
}
