"""One network as a torch module: features, a linear classifier, and the memory layout that is fast on a CPU.

On a CPU, convolutional networks run on activations with channels last, unless the norm is "instance" or "layer",
whose derivatives torch computes several times faster on contiguous images. Results are the same up to rounding, and
features come out flattened in the published order (c, h, w). Batches of about 32 rows keep activations in the
cache: each row of a ConvNet of width 128 takes half as long again in one of 64.
"""

import functools

import torch
from torch import Tensor, nn

from .spec import NetworkSpec


class Network(nn.Module):
    """A network of a `NetworkSpec`. Weights are not set: `build_network` draws them.

    Parameters
    ----------
    spec : NetworkSpec

    Attributes
    ----------
    spec : NetworkSpec
    features : Sequential
        From rows to flat features.
    classifier : Linear
        From features to outputs.
    n_features : int
        Length of a row of features.
    takes_images : bool
        Whether the first layer is a convolution.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        layers = spec.layers()
        self.features = layers.module()
        self.n_features = layers.channels
        self.takes_images = not isinstance(self.features[0], nn.Flatten)
        self._channels_last = spec.norm not in ("instance", "layer")
        self.classifier = nn.Linear(self.n_features, spec.n_outputs)

    @property
    def has_batch_statistics(self) -> bool:
        """Whether rows of a batch influence each other in training (batch norm)."""
        return self.spec.norm == "batch"

    def embed(self, X: Tensor) -> Tensor:
        """Features before the classifier.

        Parameters
        ----------
        X : Tensor, shape (n, *input_shape)

        Returns
        -------
        Tensor, shape (n, n_features)

        Raises
        ------
        ValueError
            If the shape does not fit.
        """
        if tuple(X.shape[1:]) != self.spec.input_shape:
            raise ValueError(
                f"this network takes rows of shape {self.spec.input_shape}, got {tuple(X.shape[1:])}"
            )
        if self.takes_images and X.device.type == "cpu":
            X = _channels_last(X) if self._channels_last else X.contiguous()
        return self.features(X)

    def forward(self, X: Tensor, embed: bool = False) -> Tensor:
        """Outputs (n, n_outputs) of rows, or with `embed` their features."""
        features = self.embed(X)
        return features if embed else self.classifier(features)


def _channels_last(X: Tensor) -> Tensor:
    """The same images in the other layout; as they are under vmap, whose rules know one layout only."""
    # The public interface has no way to ask whether a transform is at work.
    if torch._C._functorch.peek_interpreter_stack() is not None:  # pyright: ignore[reportAttributeAccessIssue]
        return X
    moved = X.permute(0, 2, 3, 1)
    # One channel is contiguous in both layouts, and only a copy gets the strides that convolutions look at.
    moved = moved.clone(memory_format=torch.contiguous_format) if X.shape[1] == 1 else moved.contiguous()
    return moved.permute(0, 3, 1, 2)


@functools.lru_cache(maxsize=256)
def template(spec: NetworkSpec, training: bool = True, thread: int = 0) -> Network:
    """A network without memory for its weights, to be called with those of others; never to be changed.

    While it is called it holds those weights, so each thread that calls it needs its own.
    """
    with torch.device("meta"):
        return Network(spec).train(training)


def network_of(spec: NetworkSpec, tensors: dict[str, Tensor]) -> Network:
    """A network that keeps these tensors as its weights and buffers, in training mode."""
    with torch.device("meta"):
        network = Network(spec)
    network.load_state_dict(tensors, assign=True)
    return network
