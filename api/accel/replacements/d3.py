r"""D3's maximum mean discrepancy, and the loop of its ``main`` that adds it up over classes.

With :math:`k(x, y) = \sum_\sigma e^{-\|x-y\|^2 / 2\sigma^2}`, a sum and not a mean,

.. math:: \frac{1}{m(m-1)} \sum_{i \ne i'} k(x_i, x_{i'}) + \frac{1}{n(n-1)} \sum_{j \ne j'} k(y_j, y_{j'})
          - \frac{2}{mn} \sum_{ij} k(x_i, y_j),

or, biased, all pairs of all three sums over :math:`m^2`, whatever n is. The behaviour is that of ``mmd.py`` and
``distill_distribution.py`` in sunnytqin/D3. There distances come from a product of rows that are not centred, whose
rounding is that of their norms; here of centred ones (`mmd2`).

**The loop** embeds the real and the synthetic images of class after class, and keeps the activations of all synthetic
ones until the loss is differentiated. A class's term depends on no other class's images: here it is differentiated
with respect to them as soon as it is known (`sum_over_pieces`), so that one class's activations are held at a time.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...kernels import mmd2
from ...kernels._check import is_wrapped
from ...kernels.radial import MixtureOfGaussians
from ...solver.learners.class_pieces import Piece, sum_over_pieces

# Rows of both samples up to which one matrix of all pairs takes no longer than the calls of `mmd2`.
_FEW = 512
_BANDWIDTHS = (1.0, 2.0, 4.0, 8.0, 16.0)
# Bandwidths within these bounds have squares that float32 can hold.
_LEAST = 1e-12


def mix_rbf_mmd2(X: Tensor, Y: Tensor, sigma_list: Sequence[float], biased: bool = False) -> Tensor:
    """The estimate above by `mmd2`, in O((m + n) d) memory, its gradient computed with it.

    Identical: shape, dtype, and what it is differentiated in.
    """
    return mmd2(X, Y, MixtureOfGaussians(1.0, sigma_list), biased=bool(biased)).to(X.dtype)


def mix_rbf_mmd2_fixed(X: Tensor, Y: Tensor) -> Tensor:
    """`mix_rbf_mmd2`, unbiased, of bandwidths 1, 2, 4, 8 and 16."""
    return mix_rbf_mmd2(X, Y, _BANDWIDTHS)


def unfit(X: Any, Y: Any, sigma_list: Any, biased: Any = False) -> str | None:
    """Guard: anything but two float matrices of some size, and bandwidths that are numbers."""
    tensors = (torch.Tensor, torch.nn.Parameter)
    if type(X) not in tensors or type(Y) not in tensors or is_wrapped(X) or is_wrapped(Y):
        return "X or Y is no plain tensor"
    if X.ndim != 2 or Y.ndim != 2 or X.shape[1] != Y.shape[1] or not len(X) or not len(Y):
        return "X and Y are not matrices of the same columns, with rows"
    if X.dtype not in (torch.float32, torch.float64) or X.dtype != Y.dtype or X.device != Y.device:
        return "X and Y are not both float32 or float64, on one device"
    if torch.is_autocast_enabled(X.device.type):
        return "autocast would make the matrix product one of half precision"
    if not isinstance(sigma_list, (list, tuple)) or not sigma_list:
        return "the bandwidths are no list"
    if any(type(s) not in (int, float) or not _LEAST <= s <= 1 / _LEAST for s in sigma_list):
        return "a bandwidth is no positive number of usual size"
    if len(X) + len(Y) < _FEW:
        return "the original takes no longer for so few rows"
    if biased and len(X) != len(Y):
        return "the biased estimate of samples of two sizes divides all sums by that of the first"
    if not biased and min(len(X), len(Y)) < 2:
        return "a sample has no pair of rows"
    return None


def unfit_fixed(X: Any, Y: Any) -> str | None:
    """Guard: `unfit`."""
    return unfit(X, Y, _BANDWIDTHS)


def mmd_loop(
    *,
    mmd_loss: Any,
    num_classes: int,
    num_samples: int,
    feature_only: Any,
    args: Any,
    get_images: Callable[[int, int], Tensor],
    student_net: Callable[..., Tensor],
    final_params: Tensor,
    syn_latents: Tensor,
    synthetic_samples: Tensor,
    mix_rbf_mmd2_fixed: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Any]:
    """The loop over classes, each of which is differentiated before the next is embedded.

    Identical: what is called with what, and in which order, so all random numbers; the loss, to the last bit. Its
    gradient in `synthetic_samples` but for rounding (it is multiplied by the weight of the loss at the end); further
    derivatives are not possible. One class's activations in memory, and a copy of the images for the gradient.
    """
    device = synthetic_samples.device

    def embedded(images: Tensor) -> Tensor:
        return student_net(images, flat_param=final_params, feature_only=feature_only)

    def loss_of(images: Tensor, piece: Piece) -> Tensor:
        real = get_images(int(piece.host_classes[0]), num_samples * args.lpc).to(syn_latents.device)
        with torch.no_grad():
            of_real = embedded(real)
        return mix_rbf_mmd2_fixed(embedded(images.flatten(0, 1)), of_real)

    pieces = []
    for c, at in enumerate(torch.arange(num_classes * args.lpc).split(args.lpc)):
        host_classes = torch.full_like(at, c)
        pieces.append(Piece(at.to(device), host_classes.to(device), host_classes))
    return (mmd_loss + sum_over_pieces(loss_of, synthetic_samples, pieces),)


def loop_unfit(
    *,
    mmd_loss: Any,
    num_classes: Any,
    num_samples: Any,
    feature_only: Any,
    args: Any,
    get_images: Any,
    student_net: Any,
    final_params: Any,
    syn_latents: Any,
    synthetic_samples: Any,
    mix_rbf_mmd2_fixed: Any,
) -> str | None:
    """Guard: networks that change as they run or train, and images that are not differentiated."""
    del (
        num_samples,
        feature_only,
        get_images,
        mix_rbf_mmd2_fixed,
    )  # called with what the original calls them with
    if getattr(args, "distributed", False):
        return "the network is spread over several GPUs"
    if not isinstance(student_net, torch.nn.Module) or any(True for _ in student_net.buffers()):
        return "the network has buffers, which a forward pass may change"
    # D3's ReparamModule keeps the weights it began with as `flat_param`, which a call with others does not use.
    if any(p.requires_grad and name != "flat_param" for name, p in student_net.named_parameters()):
        return "the network has parameters of its own, whose gradients the original fills"
    if type(mmd_loss) not in (int, float) or type(args.lpc) is not int or args.lpc < 1:
        return "the loss or the number of latent vectors does not begin as a plain number"
    if final_params.requires_grad or not synthetic_samples.requires_grad or not torch.is_grad_enabled():
        return "something other than the synthetic images is differentiated"
    if synthetic_samples.ndim != 5 or len(synthetic_samples) != num_classes * args.lpc:
        return "the synthetic images are not as many of each class"
    if synthetic_samples.device != syn_latents.device:
        return "the synthetic images are on another device than their latent vectors"
    return None
