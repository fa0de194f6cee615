r"""What a weighted sample is worth: the estimates that it makes unbiased.

- Without replacement, given the arrival time :math:`\tau` of the first item that was *not* drawn, item i is drawn with
  probability :math:`\pi_i = 1 - e^{-w_i \tau}`, and the sum of :math:`f_i/\pi_i` over the sample has mean
  :math:`\sum f` (Cohen & Kaplan, *PODC* 2007: bottom-k sketches; Duffield, Lund & Thorup, *J. ACM* 54, 2007).
- With replacement, item i is drawn :math:`k w_i / \sum w` times on average (Hansen & Hurwitz, *Ann. Math. Statist.* 14,
  1943).
- Systematically it is too, after a rounding of the weights that the numbers returned take into account.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from ._race import NEVER, Arrivals, chance_before, time_of


@dataclass(frozen=True, eq=False)
class Sample:
    """Items drawn in proportion to their weights.

    Attributes
    ----------
    indices : Tensor, int64, shape (k,)
        Numbers of the items: in the order of drawing (so the first j < k are a sample of size j), or increasing
        where the sample is systematic. Repeated where an item was drawn repeatedly.
    weights : Tensor, float64, shape (k,)
        What each draw counts for: the sum of ``weights * f[indices]`` estimates the sum of f over all items, unbiased.
    inclusion_probabilities : Tensor, float64, shape (k,)
        One over `weights`. Without replacement, the probability that the item is drawn, given `threshold`; otherwise
        the expected number of times it is drawn, which may exceed one.
    values : Tensor, float64, shape (k,)
        The weights in proportion to which the items were drawn.
    total : float
        The sum of these over all items, drawn or not.
    threshold : float
        Arrival time of the first item that was not drawn: infinite if all were (or if it is beyond float64), NaN for
        systematic samples.
    """

    indices: Tensor
    weights: Tensor
    inclusion_probabilities: Tensor
    values: Tensor
    total: float
    threshold: float

    @classmethod
    def from_race(cls, arrivals: Arrivals, k: int, replacement: bool) -> "Sample":
        """From the k + 1 first arrivals in order, or all if they are fewer."""
        try:
            total = float(arrivals.total)
        except OverflowError:
            raise ValueError(
                "the weights sum to more than float64 can hold: divide them by their maximum"
            ) from None
        found = len(arrivals.keys)
        if found == 0:
            raise ValueError("all weights are zero: there is nothing to draw")
        if found < k:
            raise ValueError(
                f"k = {k} draws without replacement need as many positive weights, but only {found} are positive"
            )
        values = arrivals.weights[:k]
        after = int(arrivals.keys[k]) if found > k else NEVER
        chances = values / total * k if replacement else chance_before(after, values)
        threshold = math.inf if after == NEVER else time_of(after)
        return cls(arrivals.items[:k], 1 / chances, chances, values, total, threshold)
