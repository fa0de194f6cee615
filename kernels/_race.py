r"""The exponential race, item by item: who arrives when is a function of the seed, the item's number and its weight.

Item :math:`i` of weight :math:`w_i` arrives at the points of a Poisson process of rate :math:`w_i`: at
:math:`S_{i0}/w_i, S_{i1}/w_i, \dots` with :math:`S_{ij} = E_{i0} + \dots + E_{ij}` sums of standard exponentials.
The k items of smallest first arrival are a sample drawn one by one without replacement, each in proportion to the
weights that are left (Efraimidis & Spirakis, *Inf. Process. Lett.* 97, 2006: :math:`-\log u_i / w_i` orders items as
:math:`u_i^{1/w_i}` does). The k first arrivals of all are k independent draws with replacement, since the superposed
process has marks that are independent and distributed as the weights (Kingman, *Poisson Processes*, 1993, ch. 5).
Nothing is accumulated over items, so nothing is lost in rounding however many there are; a weight of zero never
arrives; and the smallest arrivals of a whole are the smallest among the smallest of its parts.

Random bits. :math:`E = -\log(1 - u)` for :math:`u = (h 2^{52} + r + 1/2)\,2^{-68}`. The 16 bits h of item i are field
``i % 4`` of word ``i // 4`` of the stream "<name>.first": sixteen items share one Philox block. An item can only
arrive before :math:`\tau` if :math:`h \le 2^{16} u \le 2^{16} w \tau`, which one product and one comparison decide for
nearly all items; those that pass get the 52 bits r from word ``i`` of "<name>.rest". With replacement, arrival
``j >= 1`` has its 64 bits from word ``2**66 i + j - 1`` of "<name>.again": a Philox counter of its own for each item.

Arrival times are compared as integers ("keys"): the bits of the float64 quotient of S by the mantissa of w, less the
exponent of w and the bias in the exponent's place. That is a float64 whose exponent never overflows, so weights of
1e-300 and 1e300 may race each other. The logarithm is a fixed sequence of float64 operations; together they make the
result the same to the last bit on every machine and device.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

NEVER = 2**63 - 1  # the key of an item that does not arrive

_LN2 = 0.6931471805599453
_SQRT_HALF = 0.7071067811865476
_NEAR = 19195  # for h below it u < 1 - sqrt(1/2), and 1 - u needs no exponent
_SERIES = tuple(
    1 / n for n in range(21, 0, -2)
)  # atanh(z)/z in z^2; the rest is below 2**-54 for |z| < 0.172


@dataclass(frozen=True)
class Arrivals:
    """Arrivals as columns: int64 keys, int64 items, float64 weights; and the sum of all weights that raced.

    The total is a fraction because fractions add up to the same in any order.
    """

    keys: Tensor
    items: Tensor
    weights: Tensor
    total: Fraction
    ordered: bool = False

    def smallest(self, count: int) -> "Arrivals":
        """The `count` first, in order; equal keys in order of their items."""
        if self.ordered and len(self.keys) <= count:
            return self
        order = torch.argsort(self.items)
        order = order[torch.argsort(self.keys[order], stable=True)][:count]
        return Arrivals(self.keys[order], self.items[order], self.weights[order], self.total, ordered=True)

    @classmethod
    def concatenate(cls, parts: "list[Arrivals]") -> "Arrivals":
        """All of them, on the device of the last."""
        if len(parts) == 1:
            return parts[0]
        moved = [part.to(parts[-1].keys.device) for part in parts]
        return cls(
            keys=torch.cat([part.keys for part in moved]),
            items=torch.cat([part.items for part in moved]),
            weights=torch.cat([part.weights for part in moved]),
            total=sum((part.total for part in parts), Fraction(0)),
        )

    def to(self, device: torch.device) -> "Arrivals":
        """The same on another device."""
        return Arrivals(
            self.keys.to(device), self.items.to(device), self.weights.to(device), self.total, self.ordered
        )

    @classmethod
    def none(cls, device: torch.device | str = "cpu") -> "Arrivals":
        """No arrivals, of weights that are all zero."""
        keys, items = torch.zeros(2, 0, dtype=torch.int64, device=device)
        return cls(keys, items, torch.zeros(0, dtype=torch.float64, device=device), Fraction(0))


class Smallest:
    """The `want` smallest of all arrivals offered, in O(want) memory.

    `bound` is a key that the want-th smallest does not exceed; arrivals after it need not be offered.
    """

    def __init__(self, want: int, bound: int = NEVER):
        self.want = want
        self._bound = bound
        self._last: Tensor | None = None  # key of the want-th, where there were as many
        self._held: list[Arrivals] = []
        self._count = 0

    @property
    def bound(self) -> int:
        return self._bound if self._last is None else min(self._bound, int(self._last))

    def offer(self, arrivals: Arrivals) -> None:
        """Add arrivals of items that were not offered before."""
        self._held.append(arrivals)
        self._count += len(arrivals.keys)
        if self._count >= 2 * self.want or (self._last is None and self._count >= self.want):
            self.best()

    def best(self) -> Arrivals:
        """The smallest arrivals, in order."""
        best = Arrivals.concatenate(self._held or [Arrivals.none()]).smallest(self.want)
        self._held, self._count = [best], len(best.keys)
        if self._count == self.want:
            self._last = best.keys[-1]
        return best


def exponential(field: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """-log(1 - u) from the 16 bits `field` and the 52 bits `rest` of u (uint64), to 3 ulp at both ends."""
    h, r = field.astype(np.float64), rest.astype(np.float64)
    u = (h * 2.0**52 + (r + 0.5)) * 2.0**-68
    v = ((65535.0 - h) * 2.0**52 + ((2.0**52 - 1.0 - r) + 0.5)) * 2.0**-68  # 1 - u, rounded once
    mantissa, exponent = np.frexp(v)
    small = mantissa < _SQRT_HALF
    mantissa, exponent = np.where(small, 2.0 * mantissa, mantissa), np.where(small, exponent - 1, exponent)
    near = h < _NEAR
    f, exponent = np.where(near, -u, mantissa - 1.0), np.where(near, 0, exponent)
    z = f / (2.0 + f)  # log(1 + f) = 2 atanh(z)
    square = z * z
    series = np.full_like(z, _SERIES[0])
    for coefficient in _SERIES[1:]:
        series = series * square + coefficient
    return -(exponent * _LN2) - 2.0 * z * series


def arrival_keys(times: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Integers that order ``times / weights`` (both positive float64)."""
    mantissa, exponent = np.frexp(weights)
    return (times / mantissa).view(np.int64) - ((exponent.astype(np.int64) + 1023) << 52)


def key_of(time: float, weight: float) -> int:
    """The key of one arrival."""
    return int(arrival_keys(np.array([time]), np.array([weight]))[0])


def time_of(key: int, scale: int = 0) -> float:
    """The time that a key stands for, times ``2**scale``; infinite beyond the range of float64."""
    exponent, fraction = divmod(key, 2**52)
    try:
        return math.ldexp(1.0 + fraction * 2.0**-52, exponent + scale)
    except OverflowError:
        return math.inf


def chance_before(key: int, weights: Tensor) -> Tensor:
    """1 - exp(-w tau): the probability that an item of weight w arrives before the time of `key`."""
    if key == NEVER:
        return torch.ones_like(weights)
    exponent, fraction = divmod(key, 2**52)
    mantissa, own = torch.frexp(weights)
    # Beyond 2**10 the chance is one; below 2**-1000 nothing is ever drawn.
    scale = (own.to(torch.int64) + exponent).clamp(-1000, 10)
    power = ((scale + 1023) << 52).view(torch.float64)
    return -torch.expm1(-(mantissa * (1.0 + fraction * 2.0**-52)) * power)


def enough_for(want: int) -> float:
    """A mean of Poisson arrivals that falls short of `want` once in 10^9 times."""
    return want + 6 * math.sqrt(want) + 10


def check_weights(largest: float, smallest: float, weights: Callable[[], np.ndarray], start: int) -> None:
    """Raise unless the weights are finite and non-negative, given their minimum and their maximum or sum."""
    if smallest >= 0 and largest < math.inf:
        return
    values = weights()
    wrong = np.flatnonzero(~(values >= 0) | (values == np.inf))
    if len(wrong):
        raise ValueError(
            f"weights must be finite and non-negative: item {start + wrong[0]} is {values[wrong[0]]}"
        )
    raise ValueError("the weights sum to more than float64 can hold: divide them by their maximum")
