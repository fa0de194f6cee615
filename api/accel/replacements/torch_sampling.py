"""`torch.multinomial` by the exponential race of `kernels.weighted_sample`, where that is faster or torch cannot.

Without replacement torch draws one exponential number for each category, writes them all and selects; a single draw is
made in the same way. The race reads the weights once and draws few numbers in full. With replacement torch searches
cumulated sums, which is faster than a race and left to it, except beyond the 2²⁴ categories at which torch raises.

The law is torch's: draws one by one in proportion to the weights that are left, in the order of drawing, so that the
first j are a sample of size j; or independent draws. The seed is drawn from the generator that is given, or the default
one of the device, so `torch.manual_seed` decides what is drawn.
"""

from typing import Any

import torch
from torch import Tensor

from ...kernels import weighted_sample
from ...kernels._check import is_wrapped

_MOST = 1 << 24  # categories, of torch
_FEWEST = {"cpu": 1 << 16, "cuda": 1 << 20}  # categories from which a race is faster
_SHARE = 32  # categories for each draw, likewise


def multinomial(
    input: Tensor,  # torch's own name
    num_samples: int,
    replacement: bool = False,
    *,
    generator: torch.Generator | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Draw indices in proportion to the rows of a matrix, or a vector, of weights.

    Parameters
    ----------
    input : Tensor, shape (n,) or (rows, n)
    num_samples : int
    replacement : bool, default False
    generator : torch.Generator, optional
        One number is drawn from it (or from the default generator of the device).
    out : None
        Calls that name one are the original's.

    Returns
    -------
    Tensor, int64, shape (num_samples,) or (rows, num_samples)
        On the device of `input`; distributed as torch's, from other random numbers.

    Notes
    -----
    One pass over the weights; a few hundred bytes for each draw. What torch refuses (NaN, infinite or negative weights,
    none positive) is seen in that pass, and given to torch to raise; so is what it allows and a race does not: more
    draws than there are positive weights, some of which torch fills with weights of zero.
    """
    rows = input.detach().reshape(-1, input.shape[-1])
    seed = int(torch.randint(2**62, (), generator=generator, device=input.device))
    method = "with-replacement" if replacement else "without-replacement"
    try:
        drawn = [
            weighted_sample(
                row, num_samples, method=method, seed=seed, stream=f"torch.multinomial.{i}"
            ).indices
            for i, row in enumerate(rows)
        ]
    except ValueError as error:
        if input.shape[-1] > _MOST:  # there torch has nothing to say but that
            raise RuntimeError(str(error)) from error
        return input.multinomial(num_samples, replacement, generator=generator)
    return torch.stack(drawn) if input.ndim == 2 else drawn[0]


def why_not(
    input: Any,
    num_samples: Any,
    replacement: Any = False,
    *,
    generator: Any = None,
    out: Any = None,
) -> str | None:
    """Unusual arguments, those that torch refuses by their form, and what torch does faster."""
    if type(input) not in (Tensor, torch.nn.Parameter) or input.device.type not in _FEWEST:
        return "the weights are no tensor on a CPU or CUDA device"
    if out is not None or type(num_samples) is not int or type(replacement) is not bool:
        return "`out` is given, or an argument is of another type"
    if (
        input.layout != torch.strided
        or not input.is_floating_point()
        or input.ndim not in (1, 2)
        or not input.numel()
    ):
        return "the weights are no vector or matrix of floating point numbers"
    if torch.compiler.is_compiling() or is_wrapped(input):
        return "the call is traced or transformed"
    if input.is_cuda and torch.cuda.is_current_stream_capturing():
        return "a CUDA graph is being captured"
    n = input.shape[-1]
    if num_samples < 1 or (not replacement and num_samples > n):
        return "the number of draws does not fit"
    if n > _MOST:
        return None
    if replacement and num_samples > 1:
        return "torch is faster with replacement"
    if n < _FEWEST[input.device.type] or num_samples * _SHARE > n:
        return "torch is faster for few categories or a large part of them"
    return None


def form_difference(original: Tensor, replacement: Tensor) -> float:
    """Zero where two results have the same form: what they hold is random."""
    forms = [(drawn.shape, drawn.dtype, drawn.device) for drawn in (original, replacement)]
    return 0.0 if forms[0] == forms[1] else float("inf")
