"""Which network: its name, the images and outputs, and every option, as plain values.

| name | published as | options |
|---|---|---|
| mlp | MLP | width 128, depth 2, activation relu |
| convnet | ConvNet, its widths, depths, ... | width 128, depth, norm instance, activation relu, pooling average |
| lenet | LeNet | |
| alexnet | AlexNet | norm none |
| vgg11 | VGG11 | norm instance |
| resnet18 | ResNet18 | norm instance |
| resnet18-ap | ResNet18_AP | norm instance |
| resnet18-imagenet | ResNet18ImageNet | norm instance |

A name that ends in "-bn" is the network with batch norm (ConvNetBN, AlexNetBN, VGG11BN, ResNet18BN, ResNet18BN_AP).
"Published" is `get_network` of DC/DSA/DM (Zhao and Bilen 2021-2023) and MTT (Cazenavette et al. 2022).
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from .._check import check_count, check_name
from . import plain, resnet
from .layers import ACTIVATIONS, NORMS, POOLINGS, ImageLayers

_OPTIONS = ("width", "depth", "norm", "activation", "pooling")
_CHOICES = {"norm": NORMS, "activation": ACTIVATIONS, "pooling": POOLINGS}
_CONVNET = {"width": 128, "depth": 0, "norm": "instance", "activation": "relu", "pooling": "average"}
_NORMED = {"norm": "instance"}
# Defaults of the options each network has; depth 0 stands for "by the size of the images".
_NETWORKS: dict[str, tuple[Callable[..., None], dict[str, Any]]] = {
    "mlp": (plain.mlp, {"width": 128, "depth": 2, "activation": "relu"}),
    "convnet": (plain.convnet, _CONVNET),
    "lenet": (plain.lenet, {}),
    "alexnet": (plain.alexnet, {"norm": "none"}),
    "vgg11": (plain.vgg11, _NORMED),
    "resnet18": (resnet.resnet18, _NORMED),
    "resnet18-ap": (resnet.resnet18_ap, _NORMED),
    "resnet18-imagenet": (resnet.resnet18_imagenet, _NORMED),
}
_NETWORKS |= {
    f"{name}-bn": (build, defaults | {"norm": "batch"})
    for name, (build, defaults) in _NETWORKS.items()
    if "norm" in defaults
}
NETWORKS = tuple(_NETWORKS)


@dataclasses.dataclass(frozen=True)
class NetworkSpec:
    """What a network looks like. `network_spec` makes one with its defaults filled in.

    Attributes
    ----------
    name : str
        One of `NETWORKS`.
    input_shape : tuple of int
        (c, h, w); for "mlp" any shape.
    n_outputs : int
    width, depth : int, optional
        Channels (units for "mlp") and number of blocks (hidden layers).
    norm : {"none", "batch", "layer", "instance", "group"}, optional
    activation : {"relu", "sigmoid", "leaky-relu", "swish"}, optional
    pooling : {"average", "max", "none"}, optional
        Each is None for a network that has no such option.

    Raises
    ------
    ValueError
        If name, shape or an option are not possible, or the network cannot take such images.
    """

    name: str
    input_shape: tuple[int, ...]
    n_outputs: int
    width: int | None = None
    depth: int | None = None
    norm: str | None = None
    activation: str | None = None
    pooling: str | None = None

    def __post_init__(self) -> None:
        has = _NETWORKS[check_name(self.name, NETWORKS, "network")][1]
        if not self.input_shape or (self.name != "mlp" and len(self.input_shape) != 3):
            raise ValueError(
                f"network {self.name!r} takes images (c, h, w), got inputs of shape {self.input_shape}: use 'mlp'"
                " for other rows"
            )
        for size in self.input_shape:
            check_count(size, "input_shape")
        check_count(self.n_outputs, "n_outputs")
        for option in _OPTIONS:
            value = getattr(self, option)
            if option not in has:
                if value is not None:
                    raise ValueError(
                        f"network {self.name!r} has no option {option!r}: it has {_listed(has)}; leave it out"
                    )
            elif option in _CHOICES:
                check_name(value, _CHOICES[option], option)
            else:
                check_count(value, option)
        if self.name.endswith("-bn") and self.norm != "batch":
            raise ValueError(
                f"the norm of network {self.name!r} is 'batch', got {self.norm!r}: use {self.name[:-3]!r} for others"
            )
        if "norm" in has and self.norm == "batch" and not self.name.endswith("-bn"):
            # One name for one network, so that no two rows of a table look the same.
            object.__setattr__(self, "name", f"{self.name}-bn")
        with torch.device("meta"):
            self.layers()

    @property
    def n_inputs(self) -> int:
        """Numbers in a row."""
        return math.prod(self.input_shape)

    def layers(self) -> ImageLayers:
        """New layers from rows to flat features: everything before the classifier."""
        add, options = _NETWORKS[self.name]
        shape = self.input_shape if len(self.input_shape) == 3 else (self.n_inputs, 1, 1)
        layers = ImageLayers(shape, self.name)
        add(layers, **{option: getattr(self, option) for option in options})
        return layers

    def parameters(self) -> dict[str, Any]:
        """Plain JSON values, without the options that the network does not have."""
        values = {key: value for key, value in dataclasses.asdict(self).items() if value is not None}
        return {**values, "input_shape": list(self.input_shape)}

    @staticmethod
    def restore(parameters: dict[str, Any]) -> "NetworkSpec":
        """The spec of such values.

        Raises
        ------
        ValueError
            If they are not those of a network.
        """
        try:
            return NetworkSpec(**{**parameters, "input_shape": tuple(parameters["input_shape"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"these are not the parameters of a network: {error}") from None


def network_spec(name: str, input_shape: Iterable[int], n_outputs: int, **options: Any) -> NetworkSpec:
    """A network by its name, with the published defaults for options that are not given.

    Parameters
    ----------
    name : str
        One of `NETWORKS`, see the top of the module.
    input_shape : (c, h, w)
        For "mlp" any shape.
    n_outputs : int
    **options
        `width`, `depth`, `norm`, `activation`, `pooling`, where the network has them. The default depth of
        "convnet" leaves images whose shorter side has 4 to 7 pixels: 3 for 28 and 32 pixels, 4 for 64, 5 for 128;
        it is 1 below 16 pixels.

    Returns
    -------
    NetworkSpec

    Raises
    ------
    ValueError
        As `NetworkSpec`; also for an option that no network has.
    """
    defaults = dict(_NETWORKS[check_name(name, NETWORKS, "network")][1])
    shape = tuple(input_shape)
    for option in options:
        check_name(option, _OPTIONS, "option of a network")
    if defaults.get("depth") == 0 and len(shape) == 3:
        side = 32 if shape[1:] == (28, 28) else min(shape[1:])
        defaults["depth"] = max(1, int(side).bit_length() - 3)
    return NetworkSpec(name, shape, n_outputs, **(defaults | options))


def _listed(defaults: dict[str, Any]) -> str:
    return ", ".join(defaults) or "none"
