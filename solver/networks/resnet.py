"""ResNet-18 as `networks.py` of DC/DSA/DM and of MTT defines it: 3 x 3 stem, eight basic blocks, 64 to 512 channels.

"resnet18" halves the image by strides and ends in the average over all pixels (published as a 4 x 4 average
pooling, which is the same at 28 and 32 pixels; its classifier takes no other sizes). "resnet18-ap" halves it by
average pooling instead and flattens what is left. "resnet18-imagenet" starts with a 7 x 7 convolution of stride 2
and a max pooling (MTT's `ResNet18ImageNet`), for larger images.
"""

from torch import Tensor, nn

from .layers import ImageLayers


class BasicBlock(nn.Module):
    """Two convolutions and what they are added to; `stride` 2 halves the image, by pooling if `pooled`."""

    def __init__(self, layers: ImageLayers, channels: int, stride: int, norm: str, pooled: bool) -> None:
        super().__init__()
        outer, kept = layers.branch(), layers.branch()
        step = 1 if pooled else stride
        outer.convolution(channels, 3, 1, step, bias=False)
        outer.norm(norm)
        outer.add(nn.ReLU(inplace=True))
        if step != stride:
            outer.pool("average")
        outer.convolution(channels, 3, 1, bias=False)
        outer.norm(norm)
        self.outer = outer.module()
        if stride != 1 or channels != layers.channels:
            kept.convolution(channels, 1, 0, step, bias=False)
            if step != stride:
                kept.pool("average")
            kept.norm(norm)
        self.kept = kept.module()
        self.activation = nn.ReLU(inplace=True)
        self.shape = outer.shape

    def forward(self, X: Tensor) -> Tensor:
        """Image after the block."""
        return self.activation(self.outer(X) + self.kept(X))


def _resnet18(layers: ImageLayers, norm: str, *, pooled: bool = False, large_stem: bool = False) -> None:
    layers.convolution(64, *((7, 3, 2) if large_stem else (3, 1, 1)), bias=False)
    layers.norm(norm)
    layers.add(nn.ReLU(inplace=True))
    if large_stem:
        layers.overlapping_pool()
    for channels in (64, 128, 256, 512):
        for stride in (1 if channels == 64 else 2, 1):
            block = BasicBlock(layers, channels, stride, norm, pooled)
            layers.add(block)
            layers.channels, layers.height, layers.width = block.shape
    if not pooled:
        layers.average()
    layers.flatten()


def resnet18(layers: ImageLayers, norm: str) -> None:
    """ResNet-18 with strides and a global average."""
    _resnet18(layers, norm)


def resnet18_ap(layers: ImageLayers, norm: str) -> None:
    """ResNet-18 with average pooling in place of strides, flattened."""
    _resnet18(layers, norm, pooled=True)


def resnet18_imagenet(layers: ImageLayers, norm: str) -> None:
    """ResNet-18 with the stem for large images."""
    _resnet18(layers, norm, large_stem=True)
