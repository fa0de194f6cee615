r"""Ridges and features of provable-KRR, without computing anything twice.

Behaviour of `distill.py`, `distill_kip.py` and `models/model.py` of
Trustworthy-ML-Lab/provable-efficient-dataset-distill-KRR (Chen, Huang & Weng 2024). With features
:math:`\Phi` (p, n) and one-hot targets Y (k, n),

.. math:: W(\lambda) = \mathrm{lstsq}(\Phi\Phi^\top + \lambda I,\ \Phi Y^\top)^\top

is asked for at 24 ridges: the products are made once (float32 panels, float64 totals, half of the symmetric one) and
found by identity (`_cache.identity_key`).

**What lstsq answers.** On a CPU torch solves by pivoted QR, and leaves out directions beyond a condition number of
1/(p ε), 10⁴ for p = 784 in float32. Where :math:`\Phi\Phi^\top + \lambda I` is better than that, W is solved for in
float64 by Cholesky's factors, nearer to the exact answer than the original, whose float32 error is the condition
number times a small multiple of ε. Features of MNIST without a ridge have 8·10⁴: for small λ the original drops
two thirds of all directions. Which ones, torch 2.13 decides by what its memory held before (pytorch issue
187411): the original does not agree with itself there, and now and then finds its best ridge by luck. `lstsq` is called
here too, with the same chances. Features are the original's bits.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu_

from ...kernels import mirror_upper_, statistics_add_
from .._cache import cached, identity_key
from .._call import is_verifying
from ..registry.krr import FCNN
from .known_sources import source_of

FLOATS = (torch.float32, torch.float64)
# Condition number times ε up to which the original is compared: its error there is a small multiple of this.
_COMPARED = 2.0**-9


def compute_KRR(num_data: int, dim_data: int, phi_data: Tensor, Y_data: Tensor, lambda_reg: Any) -> Tensor:
    """Weights (k, p) of one ridge.

    Shape, dtype and device are the original's; numbers agree to its own error. The first ridge costs n p² + 2 n p k
    operations and 4/3 p³ for the smallest and largest eigenvalue; each then p³/3, or the original's QR where that
    drops directions. p² + p k numbers are kept in float64.
    """
    gram, cross, smallest, largest = _products(phi_data, Y_data)
    ridge, dtype = float(lambda_reg), phi_data.dtype
    diagonal = torch.eye(len(gram), dtype=gram.dtype, device=gram.device).mul_(ridge)
    if _condition(smallest, largest, ridge) * len(gram) * torch.finfo(dtype).eps < 1:
        return torch.cholesky_solve(cross, torch.linalg.cholesky(gram + diagonal)).to(dtype).T
    return torch.linalg.lstsq((gram + diagonal).to(dtype), cross.to(dtype)).solution.T


def why_not_compute_KRR(
    num_data: int, dim_data: int, phi_data: Any, Y_data: Any, lambda_reg: Any
) -> str | None:
    """The pseudo-inverse and the dual, which share nothing between ridges, and what needs derivatives."""
    if not (is_matrix(phi_data) and is_matrix(Y_data)):
        return "features and targets are not matrices of float32 or float64 without derivatives"
    if len({(each.dtype, each.device, each.shape[1]) for each in (phi_data, Y_data)}) != 1:
        return "features and targets do not fit each other"
    if type(lambda_reg) not in (float, int) and not _is_scalar(lambda_reg):
        return "the ridge is not a number"
    if lambda_reg == 0:
        return "without a ridge it is a pseudo-inverse of the features"
    if num_data <= dim_data:
        return "it is solved in the dual, for no more rows than features"
    if is_autocast(phi_data):
        return "mixed precision is on"
    if is_verifying("krr.compute_KRR"):
        condition = _condition(*_products(phi_data, Y_data)[2:], float(lambda_reg))
        if not condition * torch.finfo(phi_data.dtype).eps <= _COMPARED:
            return "for so small a ridge the original does not agree with itself, and cannot be verified"
    return None


def _products(phi: Tensor, Y: Tensor) -> tuple[Tensor, Tensor, float, float]:
    """Products of the features with themselves and with the targets, and the extreme eigenvalues of the first."""
    p, k = len(phi), len(Y)
    key = ("krr.compute_KRR", identity_key(phi), identity_key(Y))
    return cached(key, lambda: _multiplied(phi.detach(), Y.detach()), 8 * p * (p + k))


def _multiplied(phi: Tensor, Y: Tensor) -> tuple[Tensor, Tensor, float, float]:
    gram = torch.zeros(len(phi), len(phi), dtype=torch.float64, device=phi.device)
    cross = torch.zeros(len(phi), len(Y), dtype=torch.float64, device=phi.device)
    statistics_add_(gram, cross, phi.T, Y.T)
    mirror_upper_(gram)
    if not len(gram) or not bool(torch.isfinite(gram).all()):
        return gram, cross, math.nan, math.nan
    values = torch.linalg.eigvalsh(gram)
    return gram, cross, float(values[0]), float(values[-1])


def _condition(smallest: float, largest: float, ridge: float) -> float:
    """Of the sum with a ridge; infinite where that is not positive definite."""
    return (largest + ridge) / (smallest + ridge) if smallest + ridge > 0 else math.inf


def cal_random_fourier(A_b: Any, data: Tensor) -> Tensor:
    """Random Fourier features (p, n): the original's bits, in the memory of one array of their size."""
    A, b = A_b[0], A_b[1]
    phi = (A @ data.flatten(1).T).add_(b.unsqueeze(-1)).cos_()
    return phi.mul_(torch.sqrt(2 / torch.tensor(A.size()[0])))


def why_not_cal_random_fourier(A_b: Any, data: Any) -> str | None:
    """Anything but frequencies, phases and images of one dtype and device without derivatives."""
    if type(A_b) not in (tuple, list) or len(A_b) < 2:
        return "frequencies and phases are not a pair"
    A, b = A_b[0], A_b[1]
    if not (is_matrix(A) and type(b) is Tensor and type(data) is Tensor and data.ndim > 1):
        return "frequencies, phases or images are not tensors of their shapes without derivatives"
    if b.shape != A.shape[:1] or len({each.dtype for each in (A, b, data)}) != 1:
        return "frequencies, phases and images do not fit each other"
    if needs_grad(b) or needs_grad(data):
        return "derivatives are asked for"
    return "mixed precision is on" if is_autocast(data) else None


def cal_nngp_feature(model: Any, data: Tensor) -> Tensor:
    """Features (p, n) of the last hidden layer: the original's bits, without the outputs, activated in place."""
    x = torch.flatten(data, 1)
    for module in model.classifier[:-1]:
        x = leaky_relu_(x, module.negative_slope) if type(module) is nn.LeakyReLU else module(x)
    return x.T


def why_not_cal_nngp_feature(model: Any, data: Any) -> str | None:
    """Other networks, and what needs derivatives."""
    if type(data) is not Tensor or data.dtype not in FLOATS or data.ndim < 2 or is_autocast(data):
        return "images are not a tensor of float32 or float64, or mixed precision is on"
    if not is_plain(model):
        return "the network is not an FCNN as it was published"
    has_grad = needs_grad(data) or any(map(needs_grad, model.parameters()))
    return "derivatives are asked for" if has_grad else None


def is_plain(net: Any) -> bool:
    """Whether a network is the published one, computed by its own modules alone."""
    if not isinstance(net, nn.Module) or source_of(type(net)) not in FCNN:
        return False
    kinds = [type(module) for module in net.classifier] if type(net.classifier) is nn.Sequential else []
    # Activations are computed in place: the first layer must leave the caller's images alone.
    if len(kinds) < 2 or kinds[0] is not nn.Linear or not set(kinds) <= {nn.Linear, nn.LeakyReLU}:
        return False
    return not any(map(_is_hooked, net.modules()))


def _is_hooked(module: nn.Module) -> bool:
    own = vars(module)
    return bool(own["_forward_hooks"] or own["_forward_pre_hooks"] or "forward" in own)


def is_matrix(thing: Any) -> bool:
    """Whether it is a matrix of torch that no derivatives are taken in."""
    return type(thing) is Tensor and thing.dtype in FLOATS and thing.ndim == 2 and not needs_grad(thing)


def needs_grad(tensor: Tensor) -> bool:
    """Whether an operation on it is recorded for derivatives."""
    return tensor.requires_grad and torch.is_grad_enabled()


def _is_scalar(thing: Any) -> bool:
    return type(thing) is Tensor and not thing.ndim and not needs_grad(thing)


def is_autocast(tensor: Tensor) -> bool:
    """Whether products on its device are in mixed precision."""
    return torch.is_autocast_enabled(tensor.device.type)
