"""Draw items in proportion to weights: any number of them, exactly, and the same on every device.

The race that decides with and without replacement is in `_race`, equal steps in `systematic`, what the draws are worth
in `sample`, weights that come in parts in `weighted_sampler`.
"""

from typing import Any

from ._check import check_option
from ._dispatch import choose, implement
from ._first_arrivals import first_arrivals
from .sample import Sample
from .systematic import systematic_sample
from .weighted_sampler import WeightedSampler, as_weights, check_count, check_range

METHODS = ("without-replacement", "with-replacement", "systematic")
CHUNK = 30_000  # items at a time, systematically: below the size at which torch calls other threads
GPU_CHUNK = 2**23  # 250 MB, enough to fill the device


def weighted_sample(
    weights: Any,
    k: int,
    *,
    method: str = "without-replacement",
    seed: int,
    stream: str = "weighted_sample",
    start: int = 0,
    backend: str | None = None,
) -> Sample:
    """Draw k items in proportion to non-negative weights.

    Parameters
    ----------
    weights : array, shape (n,)
        Finite and non-negative, of any floating type and any scale; they need not sum to one. Zero is never drawn.
    k : int
        Number of draws. Without replacement, at most the number of positive weights.
    method : {"without-replacement", "with-replacement", "systematic"}
        One by one in proportion to the weights that are left; independent draws; or equal steps through the weights
        laid end to end, by which item i is drawn k w_i / sum w times, rounded up or down (least variance where
        neighbours resemble each other).
    seed : int
        In [0, 2**64).
    stream : str
        Name of the use: draws under different names are independent.
    start : int
        Number of the first item. Item ``start + i`` meets the same random numbers wherever the array begins.
    backend : {"cuda", "torch"}, optional
        Systematic sampling is in "torch" alone, on any device.

    Returns
    -------
    Sample
        On the device of `weights`; the items are the same on every device, for any number of threads.

    Raises
    ------
    ValueError
        If a weight is negative or not finite, if all are zero, if k is not in range, or if the sum of the weights is
        beyond float64.

    Notes
    -----
    Reads the weights once (systematic: up to three times); needs a few hundred bytes a draw and 10 MB a thread.
    Uses as many threads as torch does, up to eight.

    Examples
    --------
    >>> drawn = weighted_sample([0.0, 1.0, 2.0, 3.0], 2, seed=0)
    >>> drawn.indices.tolist()
    [3, 2]
    """
    check_option(method, METHODS, "method")
    if method != "systematic":
        sampler = WeightedSampler(k, seed=seed, replacement=method == "with-replacement", stream=stream)
        return sampler.update(weights, start, backend=backend).result()
    tensor = as_weights(weights)
    draw = choose("systematic_sample", tensor, backend=backend)
    return draw(
        lambda low, high: tensor[low:high],
        len(tensor),
        k=check_count(k),
        seed=seed,
        stream=stream,
        start=check_range(start, len(tensor)),
        step=CHUNK if tensor.device.type == "cpu" else GPU_CHUNK,
        device=tensor.device,
    )


implement("systematic_sample", "torch", systematic_sample)
implement("weighted_sample", "torch", first_arrivals)
implement("weighted_sample", "cuda", "_cuda.sampling:first_arrivals")
