r"""The distance of gradients in gradient matching, with its derivative written out.

For gradients a and b of the same weights, row by row (one row o for each output),

.. math:: D(a, b) = \sum_o 1 - \frac{s_o}{d_o}, \qquad s_o = \langle a_o, b_o\rangle, \quad
          d_o = \|a_o\| \|b_o\| + 10^{-6},

and vectors (biases, norms) count nothing. ``match_loss`` in VICO-UoE/DatasetCondensation (``utils.py``) and its copies
in kaiwang960112/CAFE, uitrbn/IDM and justincui03/dc_benchmark adds it up over layers, or ("mse") takes
:math:`\sum (a - b)^2` of all of them. The value of D is that of `nn_baselines.network_gradient.gradient_distance`, by
the same operations in the same order as there and in the original; what is saved is the graph of ten nodes for each
layer, and the zeros of vectors. With row norms kept from the value,

.. math:: \frac{\partial D}{\partial a_o} = \frac{s_o \|b_o\|}{d_o^2} \frac{a_o}{\|a_o\|} - \frac{b_o}{d_o}
          \qquad\text{(and zero of the first term at } a_o = 0 \text{, as torch has it for a norm).}

Squares are added up layer by layer, not of one long copy of everything: another order of the sum of at most some
:math:`10^6` terms that are not negative, which torch adds in pairs: some 30 units in the last place each.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.forward_ad import unpack_dual

from ...kernels._check import is_wrapped

_LEAST = 1e-6
_PLAIN = (Tensor, nn.Parameter)


def distance_wb(gwr: Tensor, gws: Tensor) -> Tensor:
    """D of the gradients of one layer.

    Identical: the value bit for bit, shape, dtype. Differentiable in both, to any order.
    """
    return _distance([gwr], [gws])


def match_loss(gw_syn: list[Tensor], gw_real: list[Tensor], args: Any) -> Tensor:
    """Sum over layers of D (`args.dis_metric` "ours"), or of squared differences ("mse").

    Identical: the value bit for bit ("ours"), shape, dtype, device. Differentiable in both, to any order. Three passes
    over the gradients, and two more backwards.
    """
    if args.dis_metric == "ours":
        layers = [number for number, gradient in enumerate(gw_real) if gradient.ndim > 1]
        return _distance([gw_real[number] for number in layers], [gw_syn[number] for number in layers])
    parts = [(syn - real).square().sum() for syn, real in zip(gw_syn, gw_real, strict=True)]
    return torch.stack(parts).sum()


def why_not_distance(gwr: Any, gws: Any) -> str | None:
    """Why the distance of one layer is the original's."""
    return _why_not_pair(gwr, gws) or ("a vector counts nothing" if gwr.ndim == 1 else None)


def why_not(gw_syn: Any, gw_real: Any, args: Any) -> str | None:
    """Why a call is the original's: whatever is not two lists of float32 gradients on `args.device`."""
    metric = getattr(args, "dis_metric", None)
    if metric not in ("ours", "mse"):
        # The one cosine of everything is near 1: its last digits, and so 1 less it, go by the order of sums.
        return "the metric is neither 'ours' nor 'mse'"
    if type(gw_syn) not in (list, tuple) or type(gw_real) not in (list, tuple) or len(gw_syn) != len(gw_real):
        return "the gradients are not two lists of one length"
    device = _device(getattr(args, "device", None))
    for syn, real in zip(gw_syn, gw_real, strict=True):
        reason = _why_not_pair(syn, real)
        if reason is not None:
            return reason
        if syn.dtype != torch.float32 or syn.device != device:
            return "a gradient is not float32 on args.device"
    if metric == "mse" and device is not None and device.type != "cpu":
        return "one long copy takes fewer kernels on a GPU"
    if not any(gradient.ndim > 1 for gradient in gw_real):
        return "there are vectors only"
    return None


def _why_not_pair(a: Any, b: Any) -> str | None:
    if type(a) not in _PLAIN or type(b) not in _PLAIN or is_wrapped(a) or is_wrapped(b):
        return "a gradient is not a plain tensor, or within a function transform"
    if a.layout != torch.strided or b.layout != torch.strided:
        return "a gradient is sparse"
    if unpack_dual(a).tangent is not None or unpack_dual(b).tangent is not None:
        return "it is differentiated forwards"
    if a.shape != b.shape or not 1 <= a.ndim <= 4 or not a.numel():
        return "gradients differ in shape, or are no weights"
    if a.dtype not in (torch.float32, torch.float64) or a.dtype != b.dtype or a.device != b.device:
        return "gradients are not both float32 or float64 on one device"
    return None


def _device(wanted: Any) -> torch.device | None:
    """The device of tensors that are sent to `wanted`."""
    if not isinstance(wanted, (str, torch.device)):
        return None
    return torch.empty(0, device=wanted).device  # an impossible one raises here, as in the original


def _distance(some: list[Tensor], others: list[Tensor]) -> Tensor:
    return _Distance.apply(*(gradient.flatten(1) for gradient in (*some, *others)))


class _Distance(Function):
    """Sum of D over pairs: the first half of the arguments with the second."""

    @staticmethod
    def forward(ctx: Any, *rows: Tensor) -> Tensor:
        count = len(rows) // 2
        kept, total = [], None
        for a, b in zip(rows[:count], rows[count:], strict=True):
            inner, norms = (a * b).sum(1), [torch.linalg.vector_norm(x, dim=1) for x in (a, b)]
            part = (1 - inner / (norms[0] * norms[1] + _LEAST)).sum()
            total = part if total is None else total + part
            kept += [inner, *norms]
        assert total is not None
        ctx.save_for_backward(*rows, *kept)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (grad,) = grad_outputs
        count = len(ctx.needs_input_grad) // 2
        rows, kept = ctx.saved_tensors[: 2 * count], ctx.saved_tensors[2 * count :]
        found: list[Tensor | None] = [None] * (2 * count)
        for i in range(count):
            a, b = rows[i], rows[count + i]
            inner, *norms = kept[3 * i : 3 * i + 3]
            if torch.is_grad_enabled():  # differentiated again: these depend on the rows
                inner, norms = (a * b).sum(1), [torch.linalg.vector_norm(x, dim=1) for x in (a, b)]
            for place, mine, other, mine_norm, other_norm in (
                (i, a, b, *norms),
                (count + i, b, a, *reversed(norms)),
            ):
                if ctx.needs_input_grad[place]:
                    found[place] = _derivative(grad, mine, other, inner, mine_norm, other_norm)
        return tuple(found)


def _derivative(
    grad: Tensor, mine: Tensor, other: Tensor, inner: Tensor, mine_norm: Tensor, other_norm: Tensor
) -> Tensor:
    share = grad / (mine_norm * other_norm + _LEAST)
    least = torch.finfo(mine.dtype).tiny  # the inner product is zero where this is larger than a norm
    turn = share * inner * other_norm / (mine_norm * other_norm + _LEAST) / mine_norm.clamp_min(least)
    return torch.addcmul(-share[:, None] * other, turn[:, None], mine)
