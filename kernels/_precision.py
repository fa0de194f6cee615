r"""How accurately products of rows are formed: the meaning of ``precision=`` in every operation.

==========  =================================================  ===========================================
name        a GPU                                              a CPU
==========  =================================================  ===========================================
"exact"     float64                                            float64
"high"      float32 grade: three float16 products              float32 (float64 for float64 data)
"medium"    float16 operands, float32 accumulation             as "high"
"low"       bfloat16 operands (Triton: as "medium")            as "high"
==========  =================================================  ===========================================

A name promises *at least* that accuracy, and a CPU has nothing to gain from less. Whatever is solved uses "high" or
"exact". Truncated TF32 is in no mode: on centred data it is as inaccurate as bfloat16 at half the speed.

**Three products.** A power of two brings the largest entry below 2^14. With :math:`x = h + \ell`, h the float16
nearest to x and :math:`\ell` the float16 nearest to the rest,

.. math:: x\cdot y \approx h_x\cdot h_y + h_x\cdot\ell_y + \ell_x\cdot h_y ,

one matrix product of width 3d: :math:`[h_x, h_x 2^{-11}, \ell_x 2^{11}]\cdot[h_y, \ell_y 2^{11}, h_y 2^{-11}]`.
What is left out is :math:`\ell_x\cdot\ell_y`, 2^-22 of the product. The powers of two keep the small part out of
float16's subnormals.
"""

import torch
from torch import Tensor

from ._check import check_option

PRECISIONS = ("exact", "high", "medium", "low")
_LIMIT = (
    14  # operands stay below 2^14: squares of 3,072 of them fit float32, and float16 has two bits to spare
)
_SHIFT = 11


def working_dtype(dtype: torch.dtype, precision: str) -> torch.dtype:
    """Dtype of results: float64 for "exact" and for float64 data, otherwise float32."""
    check_option(precision, PRECISIONS, "precision")
    return torch.float64 if precision == "exact" or dtype == torch.float64 else torch.float32


def inner_products(x: Tensor, y: Tensor, precision: str) -> Tensor:
    """``x @ y.T`` of two float32 or float64 matrices at the precision named, in their dtype."""
    if x.dtype == torch.float64 or x.device.type == "cpu" or precision == "exact":
        return x @ y.mT
    if precision == "high":
        (x, x_power), (y, y_power) = split_left(x), split_right(y)
    else:
        (x, x_power), (y, y_power) = _narrow(x, precision), _narrow(y, precision)
    product = torch.mm(x, y.mT, out_dtype=torch.float32)
    return product.mul_(power_of_two(-x_power)).mul_(power_of_two(-y_power))


def power_of_two(exponent: Tensor) -> Tensor:
    """Two to an int32 exponent between -126 and 127, in float32 and exactly: written as bits, where exp2 may round."""
    return ((exponent + 127) << 23).view(torch.float32)


def split_left(x: Tensor) -> tuple[Tensor, Tensor]:
    """``[h, h 2^-11, l 2^11]`` in float16, shape (n, 3d), of ``x 2^power``; and that power, a 0-d int32 tensor."""
    high, low, power = _halves(x)
    return torch.cat([high, high * 2.0**-_SHIFT, low], dim=1), power


def split_right(y: Tensor) -> tuple[Tensor, Tensor]:
    """``[h, l 2^11, h 2^-11]``: the other side of the product with `split_left`."""
    high, low, power = _halves(y)
    return torch.cat([high, low, high * 2.0**-_SHIFT], dim=1), power


def rounded(x: Tensor, precision: str) -> Tensor:
    """`x` as the product of this precision sees it, in the dtype of `x`.

    A matrix of distances formed wholly from rounded rows (norms too) is that of slightly moved points: its kernel
    matrix is positive semi-definite up to the rounding of the last step, which mixed norms do not give.
    """
    if x.dtype == torch.float64 or x.device.type == "cpu" or precision == "exact":
        return x
    if precision == "high":
        high, low, power = _halves(x)
        return (high.to(x.dtype) + low.to(x.dtype) * 2.0**-_SHIFT) * power_of_two(-power)
    narrow, power = _narrow(x, precision)
    return narrow.to(x.dtype) * power_of_two(-power)


def _halves(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    power = _power(x)
    scaled = x * power_of_two(power)
    high = scaled.half()
    return high, ((scaled - high.to(x.dtype)) * 2.0**_SHIFT).half(), power


def _narrow(x: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    if precision == "low":
        return x.bfloat16(), x.new_zeros((), dtype=torch.int32)
    power = _power(x)
    return (x * power_of_two(power)).half(), power


def _power(x: Tensor) -> Tensor:
    """The power of two that brings the largest entry just below 2^14; no wait for the device."""
    largest = x.abs().amax() if x.numel() else x.new_zeros(())
    exponent = torch.frexp(largest.clamp(min=torch.finfo(torch.float32).tiny)).exponent
    return (_LIMIT - exponent).clamp(-126, 126)
