r"""Sums of products of features, :math:`G = F^\top W F` and :math:`B = F^\top W Y`, from chunks of rows.

A general matrix product spends half its work on the lower triangle of G, which symmetry gives for free. Only the
blocks on and above the diagonal are multiplied, which costs :math:`(1 + 1/b)/2` of the full product for ``b``
blocks a side; `mirror_upper_` copies the triangle once at the end of a stream rather than once a chunk.

**Accuracy.** Totals are float64. Features of float64 are multiplied in float64. Narrower ones are multiplied with
float32 sums over at most ``rows`` rows, which are then added to the totals, so that for any number n of rows

.. math:: |\hat G - G| \le (\mathrm{rows} + 8)\,2^{-23}\,|F|^\top W |F| \quad\text{entry by entry, likewise } B

(Higham, eq. 3.5, with room for sums that truncate and products that are split in halves on tensor cores), where one
float32 sum would have n for ``rows``. The typical error is nearer :math:`\sqrt{\mathrm{rows}}\,2^{-24}`.
"""

import torch
from torch import Tensor

from ._check import check_together
from ._dispatch import choose, implement
from ._precision import working_dtype
from ._thresholds import STATISTICS_WORK

# Panels narrower than this leave the matrix product below its full rate (measured on two AVX-512 cores).
_PANEL = 384
# With fewer targets F.T @ Y runs at a half to a tenth of the rate of (Y.T @ F).T, but for one (measured likewise).
_NARROW = 64


def statistics_add_(
    gram: Tensor,
    cross: Tensor,
    features: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    *,
    precision: str = "high",
    rows: int = 8192,
    memory_budget: int = 256 << 20,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Add :math:`F^\top W F` (upper block triangle) and :math:`F^\top W Y` of a chunk, in place.

    Parameters
    ----------
    gram : Tensor, shape (p, p), float64
        Blocks below the block diagonal are not defined until `mirror_upper_` is called.
    cross : Tensor, shape (p, k), float64
    features : Tensor, shape (n, p)
        F; float16, bfloat16, float32 or float64.
    targets : Tensor, shape (n, k)
        Y; dtype of `features`.
    weights : Tensor, shape (n,), optional
        Non-negative weights of the rows, dtype of `features`; default one. On a GPU they are not looked at (that
        would wait for it): a negative one makes G NaN.
    precision : {"exact", "high", "medium", "low"}, default "high"
        How products are formed: "exact" in float64; "high" in float32, or the float64 of `features`; "medium" from
        float16 and "low" from bfloat16 (changing each by up to 2⁻¹⁰ and 2⁻⁷ of itself), which plain torch runs as
        "high". Features of half precision without weights are multiplied as they are.
    rows : int, default 8192
        Most rows whose products are summed in float32.
    memory_budget : int, default 256 MiB
        Bytes that temporaries may take; ``rows`` is lowered to fit.
    backend : {"triton", "torch"}, optional
        Use this one or raise.

    Returns
    -------
    tuple of Tensor
        `gram` and `cross` themselves.

    Raises
    ------
    ValueError
        If shapes, dtypes or devices do not fit.

    Notes
    -----
    n p²/2 + n p k multiplications. On a GPU in Triton F is read once for both results, and no sum depends on the
    order in which programs run: results repeat bit for bit.
    """
    wrong = [x.dtype for x in (features, targets) if not x.is_floating_point()]
    if wrong:
        raise ValueError(f"`features` and `targets` must be floating point, got {wrong[0]}: cast them")
    p, k = (len(gram), cross.shape[-1]) if gram.ndim and cross.ndim else (0, 0)
    shapes = [tuple(x.shape) for x in (gram, cross, features, targets)]
    n = len(features)
    if shapes != [(p, p), (p, k), (n, p), (n, k)] or (weights is not None and weights.shape != (n,)):
        given = ", ".join(map(str, shapes)) + ("" if weights is None else f" and {tuple(weights.shape)}")
        raise ValueError(
            f"`gram`, `cross`, `features`, `targets` (and `weights`) must be (p, p), (p, k), (n, p), (n, k) (and"
            f" (n,)), got {given}"
        )
    if gram.dtype != torch.float64:
        raise ValueError(f"totals are kept in float64: `gram` is {gram.dtype}")
    check_together(gram=gram, cross=cross)
    check_together(features=features, targets=targets, weights=weights)
    if gram.device != features.device:
        raise ValueError(
            f"`gram` is on {gram.device} but `features` are on {features.device}: move one of them"
        )
    if rows < 1 or memory_budget < 1:
        raise ValueError(f"`rows` and `memory_budget` must be positive, got {rows} and {memory_budget}")
    if weights is not None and weights.device.type == "cpu" and bool((weights < 0).any()):
        raise ValueError(f"`weights` must not be negative, got {float(weights.min()):.3g}")
    working_dtype(features.dtype, precision)  # knows the names of precisions
    options = {"precision": precision, "rows": rows, "memory_budget": memory_budget}
    arguments = (gram, cross, features, targets, weights)
    with torch.no_grad():  # totals of a stream: a graph would keep every chunk
        choose("statistics_add_", *arguments, backend=backend, **options)(*arguments, **options)
    return gram, cross


def gram_add_(gram: Tensor, features: Tensor) -> Tensor:
    """Add ``features.T @ features`` to the upper block triangle of `gram`, in place.

    Parameters
    ----------
    gram : Tensor, shape (p, p)
        Accumulator. Blocks below the block diagonal are left untouched; call `mirror_upper_` before
        reading them.
    features : Tensor, shape (n, p)
        Same dtype and device as `gram`.

    Returns
    -------
    Tensor
        `gram` itself.

    Raises
    ------
    ValueError
        If shapes or dtypes do not agree.

    Notes
    -----
    n p²/2 multiplications (half of a general product), no memory beyond the arguments.
    """
    p = gram.shape[0]
    if gram.shape != (p, p) or features.ndim != 2 or features.shape[1] != p:
        raise ValueError(
            f"`gram` must be (p, p) and `features` (n, p), got {tuple(gram.shape)} and {tuple(features.shape)}"
        )
    if gram.dtype != features.dtype:
        raise ValueError(f"`gram` is {gram.dtype} but `features` are {features.dtype}: cast one of them")
    _add_upper(gram, features)
    return gram


def mirror_upper_(gram: Tensor) -> Tensor:
    """Copy the upper triangle of a square matrix onto the lower one, in place; exact symmetry."""
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
        raise ValueError(f"`gram` must be square, got shape {tuple(gram.shape)}")
    p = gram.shape[0]
    for start in range(0, p, _PANEL):
        stop = min(start + _PANEL, p)
        gram[stop:, start:stop] = gram[start:stop, stop:].T
        diagonal = gram[start:stop, start:stop]
        diagonal.copy_(torch.triu(diagonal) + torch.triu(diagonal, 1).T)
    return gram


def _add_upper(gram: Tensor, F: Tensor) -> None:
    for start in range(0, len(gram), _PANEL):
        stop = min(start + _PANEL, len(gram))
        _add_product(gram[start:stop, start:], F[:, start:stop], F[:, start:])


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left.T @ right``, the product in the dtype of its factors."""
    if total.dtype == right.dtype:
        total.addmm_(left.T, right)
    else:
        total += left.T @ right


def _add_cross(cross: Tensor, F: Tensor, Y: Tensor) -> None:
    if 1 < Y.shape[1] < _NARROW:
        cross += (Y.T @ F).T
    else:
        _add_product(cross, F, Y)


def _in_torch(
    gram: Tensor,
    cross: Tensor,
    features: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    *,
    precision: str,
    rows: int,
    memory_budget: int,
) -> None:
    working = working_dtype(features.dtype, precision)
    (n, p), k = features.shape, targets.shape[1]
    copies = (features.dtype != working) + (weights is not None)
    room = memory_budget - (0 if working == torch.float64 else max(k, _PANEL) * p * working.itemsize)
    block = max(1, room // max(1, (p + k) * copies * working.itemsize)) if copies else n
    if working != torch.float64:
        block = min(block, rows)
    for start in range(0, n, max(1, block)):
        chunk = slice(start, start + block)
        w = None if weights is None else weights[chunk]
        _add_chunk(gram, cross, features[chunk], targets[chunk], w, working)


def _add_chunk(
    gram: Tensor, cross: Tensor, F: Tensor, Y: Tensor, weights: Tensor | None, working: torch.dtype
) -> None:
    F, Y = F.to(working), Y.to(working)
    if weights is None:
        _add_cross(cross, F, Y)
    else:
        w = weights.to(working)[:, None]
        _add_cross(cross, F, Y * w)
        F = F * w.sqrt()
    _add_upper(gram, F)


def _rejects(
    gram: Tensor, cross: Tensor, features: Tensor, *rest: Tensor | None, precision: str, **options: int
) -> str | None:
    if working_dtype(features.dtype, precision) == torch.float64:
        return "in Triton multiplies float32 or less, not float64"
    if not (gram.is_contiguous() and cross.is_contiguous()):
        return "in Triton needs contiguous totals"
    return None


def _slower(
    gram: Tensor, cross: Tensor, features: Tensor, *rest: Tensor | None, **options: object
) -> str | None:
    if len(features) * gram.numel() < STATISTICS_WORK:
        return "has too few multiplications here to be worth its launches"
    return None


implement("statistics_add_", "torch", _in_torch)
implement("statistics_add_", "triton", "_triton.statistics:statistics_add_", rejects=_rejects, slower=_slower)
