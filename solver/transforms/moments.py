r"""Mean and variance of a stream in one pass, without cancellation.

Each chunk gives its own count, mean and sum of squared deviations :math:`(n, \mu, M)`, merged by

.. math::

    \delta = \mu_b - \mu_a, \qquad
    \mu = \mu_a + \delta\, n_b / n, \qquad
    M = M_a + M_b + \delta^2\, n_a n_b / n

(Chan, Golub and LeVeque 1979), after subtracting the mean of the first chunk from everything. So nothing is
lost when the offset is far larger than the spread, where :math:`\overline{x^2} - \bar{x}^2` loses every
digit and merging alone loses those that a rounded mean lacks.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .._check import check_finite
from .base import Chunks

# Values converted to float64 at a time, so that a large uint8 chunk never has an 8-fold copy (32 MiB).
_BLOCK = 1 << 22
# Values in a block that is read several times: 2 MiB of float64, which stays in the cache (8 times faster).
_IN_CACHE = 1 << 18


@dataclass(frozen=True)
class Moments:
    """Statistics per channel, or per column for vectors.

    Attributes
    ----------
    rows : int
        Rows seen.
    count : int
        Values seen per channel, n h w.
    mean : Tensor, shape (c,), float64
    squares : Tensor, shape (c,), float64
        Sum of squared deviations from the mean.
    """

    rows: int
    count: int
    mean: Tensor
    squares: Tensor

    def std(self, ddof: int = 0) -> Tensor:
        """Return the standard deviation with divisor ``count - ddof``; 1 where a channel is constant.

        Constant means that the deviation is below the rounding of the mean itself (8 units in the last
        place): dividing by it would only blow rounding up.
        """
        if self.count <= ddof:
            raise ValueError(
                f"a standard deviation needs more than {ddof} values a channel, got {self.count}"
            )
        std = (self.squares / (self.count - ddof)).sqrt()
        if not torch.isfinite(std).all():
            raise ValueError("the variance of the inputs overflows float64: rescale the data first")
        floor = 8 * torch.finfo(torch.float64).eps * self.mean.abs()
        return torch.where(std <= floor, torch.ones_like(std), std)


def moments(chunks: Chunks, input_shape: tuple[int, ...]) -> Moments:
    """Accumulate `Moments` of a stream of raw rows, on the device of the chunks.

    Raises
    ------
    ValueError
        If there are no rows, a row has another shape, or a value is not finite.
    """
    rows, count, shift = 0, 0, torch.zeros(())
    mean, squares = shift, shift
    for X in blocks(chunks, input_shape, _IN_CACHE):
        if rows == 0:
            shift = X.mean(dim=(0, 2))
        n = X.shape[0] * X.shape[2]
        # Sums along the contiguous axis first; what is left of the mean after the shift is small, so the
        # difference of squares loses nothing.
        centred = X - shift[:, None]
        block_mean = centred.sum(dim=2).sum(dim=0) / n
        block_squares = centred.mul_(centred).sum(dim=2).sum(dim=0) - n * block_mean**2
        if rows == 0:
            mean, squares = block_mean, block_squares
        else:
            delta = block_mean - mean
            mean = mean + delta * (n / (count + n))
            squares = squares + block_squares + delta**2 * (count * (n / (count + n)))
        rows, count = rows + X.shape[0], count + n
    if rows == 0:
        raise ValueError("a transform cannot be fitted on no rows: the stream of chunks is empty")
    return Moments(rows, count, shift + mean, squares)


def blocks(chunks: Chunks, input_shape: tuple[int, ...], size: int = _BLOCK) -> Iterator[Tensor]:
    """Yield the rows of a new pass as checked float64 blocks of shape (rows, c, h w), or (rows, d, 1)."""
    seen = 0
    for chunk in chunks():
        if tuple(chunk.shape[1:]) != tuple(input_shape):
            raise ValueError(f"expected rows of shape {tuple(input_shape)}, got {tuple(chunk.shape[1:])}")
        step = max(1, size // max(1, chunk[0:1].numel()))
        for X in chunk.split(step) if len(chunk) else ():
            check_finite(X, "X", seen)
            yield X.double().reshape(X.shape[0], input_shape[0], -1)
            seen += X.shape[0]
