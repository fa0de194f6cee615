r"""Fourier features: cosines of linear phases.

.. math:: \varphi(x) = s\,\cos(A x + b) \in \mathbb{R}^p, \qquad\text{paired:}\quad
          \varphi(x) = s\,(\cos(A x + b),\ \sin(A x + b)),

with :math:`s = \sqrt{2/p}`. For A from the spectral density of a kernel and uniform b (`fourier_frequencies`),
:math:`\varphi(x)\cdot\varphi(y)` is an unbiased estimate of :math:`k(x - y)` with a standard error below
:math:`\sqrt{3/2p}` (Rahimi and Recht, NeurIPS 2007). Paired features have norm one, to rounding, however wrong
the phase is: both halves come from the same one.

**Accuracy.** A float32 phase is off by at most

.. math:: (d + 8)\,2^{-23}\,\bigl(\textstyle\sum_k |x_k a_k| + |b|\bigr)

radians (Higham, eq. 3.5, with room for sums that truncate and products that are split in halves on tensor cores;
about :math:`\sqrt d\,2^{-24}` in place of the factor is typical), and a cosine changes by no more than its argument.
Whole turns are taken off without further loss, so this and the rounding of the cosine (below 2⁻²² of the scale) are all
there is: the error grows with the phase, and no reduction brings back what the sum has lost. Phases around 10⁴ radians
leave three digits; ask for "exact" there.
"""

import functools
import math
from typing import Any

import torch
from torch import Tensor

from ._check import FLOATS, as_rows, as_tensor, check_budget, check_columns, check_together
from ._dispatch import choose, implement
from ._precision import working_dtype
from ._recompute import recomputed
from ._thresholds import FOURIER_WORK


def fourier_features(
    X: Any,
    frequencies: Any,
    phases: Any = None,
    *,
    paired: bool = False,
    scale: float | None = None,
    dtype: torch.dtype | None = None,
    precision: str = "high",
    memory_budget: int | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Fourier features of the rows of X.

    Parameters
    ----------
    X : array, shape (n, d)
        Samples; float16, bfloat16, float32 or float64.
    frequencies : array, shape (p, d) or, when paired, (p/2, d)
        A, in radians per unit of X; dtype and device of `X`.
    phases : array, shape (p,) or (p/2,), optional
        b, in radians; default zero.
    paired : bool, default False
        Put cos and sin of every phase into columns j and p/2 + j, instead of the cosine alone.
    scale : float, optional
        s; default :math:`\sqrt{2/p}`. Take 1 to store half-precision features at their best.
    dtype : torch.dtype, optional
        Of the result; default float32, or float64 when that is computed in. float16 and bfloat16 halve what is
        written and read again, and round by up to 2⁻¹¹ and 2⁻⁸ of the scale: less than the standard error of the kernel
        estimate for p up to 2²⁴ and 2¹⁸.
    precision : {"exact", "high", "medium", "low"}, default "high"
        "exact" computes in float64; "high" in float32, or the float64 of `X`. "medium" rounds X and A to float16
        first and "low" to bfloat16, which changes a phase by up to 2⁻¹⁰ or 2⁻⁷ of :math:`\sum|x_k a_k|` and suits
        tensor cores; plain torch, and so every CPU, runs them as "high". Inputs of half precision are multiplied as
        they are, with float32 sums.
    memory_budget : int, default 64 MiB
        Bytes that temporaries may take, beside the result (and on a GPU a copy of A in half precision); the rows
        are taken in blocks that fit. Derivatives need a few arrays of the size of the result.
    backend : {"triton", "torch"}, optional
        Use this one or raise.

    Returns
    -------
    Tensor, shape (n, p)
        Differentiable to any order in X, frequencies and phases, in forward mode and under vmap.

    Raises
    ------
    ValueError
        If shapes, dtypes or devices do not fit.

    Notes
    -----
    n p d multiplications (half of them when paired) and n p cosines.
    """
    X, A = as_rows(X, "X"), as_rows(frequencies, "frequencies")
    check_columns(X, A, "`X` and `frequencies`")
    b = None if phases is None else as_tensor(phases, "phases")
    check_together(X=X, frequencies=A, phases=b)
    if b is not None and b.shape != A.shape[:1]:
        raise ValueError(
            f"`phases` must have shape ({len(A)},), one for each frequency, got {tuple(b.shape)}"
        )
    working = working_dtype(X.dtype, precision)
    if dtype is not None and dtype not in FLOATS:
        raise ValueError(f"`dtype` must be a floating-point type, got {dtype}")
    check_budget(memory_budget)
    memory_budget = memory_budget or 64 << 20
    if isinstance(scale, Tensor):
        raise ValueError("`scale` is a number; multiply the features by a tensor to differentiate in it")
    p = len(A) * (2 if paired else 1)
    options = {
        "paired": paired,
        "scale": math.sqrt(2 / max(p, 1)) if scale is None else float(scale),
        "dtype": dtype or working,
        "precision": precision,
    }
    tensors = (X, A) if b is None else (X, A, b)
    run = choose("fourier_features", *tensors, backend=backend, memory_budget=memory_budget, **options)
    if run is _in_torch:
        return _in_torch(*tensors, memory_budget=memory_budget, **options)
    fast = functools.partial(run, memory_budget=memory_budget, **options)
    return recomputed(fast, functools.partial(_definition, **options), *tensors)


def _definition(
    X: Tensor,
    A: Tensor,
    b: Tensor | None = None,
    *,
    paired: bool,
    scale: float,
    dtype: torch.dtype,
    precision: str,
) -> Tensor:
    """Plain torch. In place on its own arrays, which autograd and functorch follow."""
    working = working_dtype(X.dtype, precision)
    X, A = X.to(working), A.to(working)
    phase = X @ A.T if b is None else torch.addmm(b.to(working), X, A.T)
    # Vectorised cosines of the CPU and of CUDA reduce their argument themselves, at no loss and less cost.
    features = torch.cat([phase.cos(), phase.sin()], dim=1) if paired else phase.cos_()
    return features.mul_(scale).to(dtype)


def _in_torch(X: Tensor, A: Tensor, b: Tensor | None = None, *, memory_budget: int, **options: Any) -> Tensor:
    working = working_dtype(X.dtype, options["precision"])
    in_place = not options["paired"] and X.dtype == working == options["dtype"]
    p = len(A) * (2 if options["paired"] else 1)
    # Of one row: X converted; the phases, their cosines and sines, and those put together; the result converted.
    temporary = working.itemsize * (X.shape[1] + (5 * len(A) if options["paired"] else p))
    temporary += options["dtype"].itemsize * p
    converted = 0 if X.dtype == working else working.itemsize * (A.numel() + len(A))
    rows = max(1, (memory_budget - converted) // max(1, temporary))
    definition = functools.partial(_definition, **options)
    tensors = (X, A) if b is None else (X, A, b)
    if in_place or len(X) <= rows:
        return definition(*tensors)

    def by_blocks(X: Tensor, A: Tensor, *b: Tensor) -> Tensor:
        fixed = [tensor.to(working) for tensor in (A, *b)]
        features = X.new_empty(len(X), p, dtype=options["dtype"])
        for start in range(0, len(X), rows):
            features[start : start + rows] = definition(X[start : start + rows], *fixed)
        return features

    return recomputed(by_blocks, definition, *tensors)


def _rejects(X: Tensor, *rest: Tensor, precision: str, dtype: torch.dtype, **options: Any) -> str | None:
    if X.dtype == torch.float64 or precision == "exact" or dtype == torch.float64:
        return "in Triton takes, computes and returns float32 or less, not float64"
    return None


def _slower(X: Tensor, A: Tensor, *rest: Tensor, **options: Any) -> str | None:
    if X.shape[0] * A.numel() < FOURIER_WORK:
        return "has too few multiplications here to be worth its launches"
    return None


implement("fourier_features", "torch", _in_torch)
implement("fourier_features", "triton", "_triton.fourier:fourier_features", rejects=_rejects, slower=_slower)
