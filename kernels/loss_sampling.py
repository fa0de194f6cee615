r"""Draw samples in proportion to their loss, without storing the losses.

Squared error is :math:`\ell_i = \frac12 \lVert f_i - y_i \rVert^2`. Cross-entropy against class y is

.. math:: \ell_i = \log\Bigl(1 + \sum_{j \ne y} e^{z_j - z_y}\Bigr),

whose terms are all positive, so that the losses of samples already learned keep all their digits (as a difference of
logsumexp and logit they would be rounded to zero and never be drawn); against soft targets t it is
:math:`-\sum_j t_j \log\operatorname{softmax}(z)_j`.

A loss is computed from its row alone, so samples do not depend on how rows are cut into blocks. They may depend on
the device, which has its own exponential: an item whose arrival time all but ties with the threshold can change
sides.
"""

import contextlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._check import as_rows, as_tensor, check_option, check_together
from ._dispatch import choose, implement, use_backend
from ._race import Arrivals, Smallest
from .sample import Sample
from .sampling import METHODS
from .weighted_sampler import WeightedSampler, check_count, check_range

LOSSES = ("squared", "cross-entropy")
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def sample_by_loss(
    outputs: Any,
    targets: Any,
    k: int,
    *,
    loss: str = "cross-entropy",
    method: str = "without-replacement",
    seed: int,
    stream: str = "sample_by_loss",
    start: int = 0,
    memory_budget: int = 64 * 2**20,
    backend: str | None = None,
) -> Sample:
    """Draw k samples in proportion to their loss.

    Parameters
    ----------
    outputs : array, shape (n, c)
        Predictions, or logits.
    targets : array, shape (n, c), or int of shape (n,)
        What `outputs` should be; for the cross-entropy, classes 0 ... c - 1 or rows of class probabilities.
    k : int
        Number of draws.
    loss : {"cross-entropy", "squared"}
        Natural logarithm, and half the squared distance.
    method, seed, stream, start
        As in `weighted_sample`.
    memory_budget : int
        Bytes that temporaries may take; the losses themselves are never stored.
    backend : {"cuda", "torch"}, optional
        "cuda" computes loss and race in one kernel that reads outputs and targets once; it takes no soft targets.

    Returns
    -------
    Sample
        `Sample.values` are the losses of the draws. On the device of `outputs`.

    Raises
    ------
    ValueError
        If shapes, dtypes or devices do not agree, a class is not in 0 ... c - 1, a target probability is negative, or
        the losses are not weights that `weighted_sample` would take.

    Notes
    -----
    Reads the rows once (systematic: up to three times).
    """
    outputs, targets = _checked(outputs, targets, loss)
    check_option(method, METHODS, "method")
    n = len(outputs)
    with use_backend(backend) if backend else contextlib.nullcontext():
        if method != "systematic":
            sampler = WeightedSampler(k, seed=seed, replacement=method == "with-replacement", stream=stream)
            race = choose("sample_by_loss", outputs, targets, loss)
            return sampler.race(
                lambda **options: race(outputs, targets, loss, memory_budget=memory_budget, **options),
                n,
                start,
            ).result()
        return choose("systematic_sample", outputs)(
            lambda low, high: _losses(outputs[low:high], targets[low:high], loss),
            n,
            k=check_count(k),
            seed=seed,
            stream=stream,
            start=check_range(start, n),
            step=rows_within(memory_budget, outputs),
            device=outputs.device,
        )


def row_losses(outputs: Any, targets: Any, *, loss: str = "cross-entropy") -> Tensor:
    """The loss of every row, as `sample_by_loss` computes it; shape (n,), float32, or float64 if `outputs` are."""
    return _losses(*_checked(outputs, targets, loss), loss)


def _checked(outputs: Any, targets: Any, loss: str) -> tuple[Tensor, Tensor]:
    check_option(loss, LOSSES, "loss")
    outputs = as_rows(outputs, "outputs").detach()
    targets = _as_targets(targets)
    n, c = outputs.shape
    if c == 0:
        raise ValueError("`outputs` have no columns, so there is no loss")
    if loss == "cross-entropy" and targets.ndim == 1 and targets.dtype in _INTEGERS:
        if targets.device != outputs.device:
            raise ValueError(
                f"`outputs` are on {outputs.device} but `targets` on {targets.device}: move one of them"
            )
        if len(targets) != n:
            raise ValueError(f"`targets` must be {n} classes, one a row of `outputs`, got {len(targets)}")
        return outputs, targets
    if targets.shape != outputs.shape:
        expected = f"({n}, {c})" + (f" or {n} integer classes" if loss == "cross-entropy" else "")
        raise ValueError(f"`targets` must be {expected}, got {targets.dtype} of shape {tuple(targets.shape)}")
    check_together(outputs=outputs, targets=targets)
    return outputs, targets


def _as_targets(values: Any) -> Tensor:
    """Integers as they are, anything else as floats."""
    if not isinstance(values, Tensor):
        if hasattr(values, "__dlpack__") and not isinstance(values, np.ndarray):
            values = torch.from_dlpack(values)
        else:
            values = np.asarray(values)
            if values.dtype.kind in "iu":
                return torch.from_numpy(values.astype(np.int64))
    if isinstance(values, Tensor) and values.dtype in _INTEGERS:
        return values
    return as_tensor(values, "targets").detach()


def rows_within(memory_budget: int, outputs: Tensor) -> int:
    """How many rows' losses fit: four arrays of the size of the rows live at a time, of at least float32."""
    return max(1, memory_budget // (4 * max(4, outputs.element_size()) * outputs.shape[1]))


def _losses(outputs: Tensor, targets: Tensor, loss: str) -> Tensor:
    dtype = torch.promote_types(outputs.dtype, torch.float32)
    outputs = outputs.to(dtype).contiguous()
    if targets.dtype not in _INTEGERS:
        targets = targets.to(dtype).contiguous()
    if loss == "squared":
        return squared_losses(outputs, targets)
    if targets.ndim == 2:
        if bool((targets < 0).any()):
            raise ValueError("`targets` must be class probabilities, but some are negative")
        terms = torch.log_softmax(outputs, 1).mul_(targets)
        return -_row_sums(terms.masked_fill_(targets == 0, 0.0))  # a class without weight may be impossible
    if not len(targets):
        return outputs.new_empty(0)
    low, high = (int(value) for value in torch.aminmax(targets))
    if low < 0 or high >= outputs.shape[1]:
        raise ValueError(
            f"classes must be 0 ... {outputs.shape[1] - 1}, but `targets` go from {low} to {high}"
        )
    return cross_entropy_losses(outputs, targets.to(torch.int64))


def squared_losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """Half the squared distance of the rows of two float32 or float64 matrices."""
    return 0.5 * _row_sums((outputs - targets).square_())


def cross_entropy_losses(logits: Tensor, classes: Tensor) -> Tensor:
    """The cross-entropy of rows of float32 or float64 logits against int64 classes that exist."""
    classes = classes[:, None]
    ahead = (logits - logits.gather(1, classes)).scatter_(1, classes, -torch.inf)
    most = ahead.amax(1).clamp_min(torch.finfo(logits.dtype).min)
    others = _row_sums((ahead - most[:, None]).exp_())
    return torch.where(most <= 0, torch.log1p(others * most.exp()), most + torch.log(others + (-most).exp()))


def _row_sums(terms: Tensor) -> Tensor:
    # Threads share the sum of a lone row, in another order than they would sum it among others.
    return terms.expand(2, -1).sum(1)[:1] if len(terms) == 1 else terms.sum(1)


def loss_arrivals(
    outputs: Tensor,
    targets: Tensor,
    loss: str,
    *,
    memory_budget: int,
    want: int,
    start: int,
    bound: int,
    **options: Any,
) -> Arrivals:
    """The race of `weighted_sample`, fed with the losses of one block of rows after the other."""
    smallest = Smallest(want, bound)
    step = rows_within(memory_budget, outputs)
    for low in range(0, len(outputs), step):
        losses = _losses(outputs[low : low + step], targets[low : low + step], loss)
        race = choose("weighted_sample", losses)
        smallest.offer(race(losses, want=want, start=start + low, bound=smallest.bound, **options))
    return smallest.best()


def _unfused(outputs: Tensor, targets: Tensor, loss: str, **_: Any) -> str | None:
    if loss == "cross-entropy" and targets.ndim == 2:
        return "has no fused kernel for soft targets"
    return None


implement("sample_by_loss", "torch", loss_arrivals)
implement("sample_by_loss", "cuda", "_cuda.sampling:loss_arrivals", rejects=_unfused)
