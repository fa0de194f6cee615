"""MLP, ConvNet, LeNet, AlexNet and VGG-11 as `networks.py` of DC/DSA/DM (Zhao and Bilen 2021-2023) defines them.

Each function adds everything before the classifier, down to the flat features. 28 x 28 images are padded to
32 x 32 by the first convolution, as published for gray images. AlexNet and VGG are fixed there to 32 pixels; here
what is left of other sizes is flattened too.
"""

from torch import nn

from .layers import ImageLayers, activation_layer

_VGG11 = (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool")


def mlp(layers: ImageLayers, width: int, depth: int, activation: str) -> None:
    """`depth` dense layers of `width` units, each with an activation."""
    layers.flatten()
    for _ in range(depth):
        layers.dense(width)
        layers.add(activation_layer(activation))


def convnet(layers: ImageLayers, width: int, depth: int, norm: str, activation: str, pooling: str) -> None:
    """`depth` blocks of a 3 x 3 convolution, norm, activation and 2 x 2 pooling."""
    for block in range(depth):
        layers.convolution(width, 3, 1 if block else 1 + layers.border)
        layers.norm(norm)
        layers.add(activation_layer(activation))
        layers.pool(pooling)
    layers.flatten()


def lenet(layers: ImageLayers) -> None:
    """Two 5 x 5 convolutions without padding, max pooling, and dense layers of 120 and 84."""
    for width in (6, 16):
        layers.convolution(width, 5, layers.border if width == 6 else 0)
        layers.add(nn.ReLU(inplace=True))
        layers.pool("max")
    layers.flatten()
    for width in (120, 84):
        layers.dense(width)
        layers.add(nn.ReLU(inplace=True))


def alexnet(layers: ImageLayers, norm: str) -> None:
    """Five convolutions, max pooling after the first, second and fifth."""
    for block, (width, size) in enumerate(((128, 5), (192, 5), (256, 3), (192, 3), (192, 3))):
        layers.convolution(width, size, size // 2 + (0 if block else layers.border))
        layers.norm(norm)
        layers.add(nn.ReLU(inplace=True))
        layers.pool("max" if block in (0, 1, 4) else "none")
    layers.flatten()


def vgg11(layers: ImageLayers, norm: str) -> None:
    """Eight 3 x 3 convolutions of 64 to 512 channels and five max poolings."""
    for number, width in enumerate(_VGG11):
        if isinstance(width, str):
            layers.pool("max")
            continue
        layers.convolution(width, 3, 1 if number else 1 + layers.border)
        layers.norm(norm)
        layers.add(nn.ReLU(inplace=True))
    layers.flatten()
