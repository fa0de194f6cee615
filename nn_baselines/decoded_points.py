r"""Images decoded from latent Gaussians, batch by batch, whose graph is one batch at a time.

A batch is dec(z) with :math:`z = \mu + \varepsilon\, e^{\ell/2}`, noise ε given, and a decoder whose batch norm takes
the statistics of the batch: `forward` of ``decoder.py`` of the code published with D3 (Qin et al. 2024), in training
mode.
Batches are decoded without a graph, and when a gradient in their images arrives each is decoded again, with one.
So all images are held, but the activations of one batch only, for one decoding more; the second is the same function
as the first, as nothing in it is random and batch norm stores nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels._recompute import recomputed
from ..solver.decoders import Decoder


@dataclass(frozen=True, eq=False)
class LatentBatch:
    """Latent vectors that are decoded together.

    Attributes
    ----------
    index : Tensor, shape (b,), int64
        Their Gaussians.
    noise : Tensor, shape (b, z)
        ε.
    """

    index: Tensor
    noise: Tensor


def decoded(decoder: Decoder, mean: Tensor, log_variance: Tensor, batches: Sequence[LatentBatch]) -> Tensor:
    """Images of all batches, one after the other.

    Parameters
    ----------
    decoder : Decoder
        In training mode.
    mean, log_variance : Tensor, shape (m, z)
    batches : sequence of LatentBatch

    Returns
    -------
    Tensor, shape (sum of b, *image_shape)
        Differentiable in `mean`, `log_variance` and the parameters of the decoder.
    """
    names, weights = zip(*decoder.named_parameters(), strict=True)

    def images(batch: LatentBatch) -> Tensor:
        def of(mean: Tensor, log_variance: Tensor, *weights: Tensor) -> Tensor:
            z = mean[batch.index] + batch.noise * (log_variance[batch.index] / 2).exp()
            return torch.func.functional_call(decoder, dict(zip(names, weights, strict=True)), (z,))

        return recomputed(of, of, mean, log_variance, *weights)

    return torch.cat([images(batch) for batch in batches])
