"""Rows chosen from a set, and what each of them counts for."""

import dataclasses
from collections.abc import Iterator

from torch import Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class Coreset:
    r"""Rows that stand for all: ``indices, weights = coreset`` takes it apart.

    Attributes
    ----------
    indices : Tensor, shape (m,), int64
        Distinct rows of the set they were chosen from, on the CPU: those of the first class first, in the order of
        choice within a class. For NumPy arrays use ``indices.numpy()``: they take a tensor of one index for a number.
    weights : Tensor, shape (m,), float64
        What each row counts for; by class, they sum to the number n_c of rows in it, or do so on average.
        Drawn rows: :math:`1/\pi_i`, so that for any f the sum of ``weights * f[indices]`` has the mean
        :math:`\sum_i f(x_i)` over seeds, class by class; the sum of the weights has the mean n_c ("random": is n_c).
        "k-means" and "k-center": the number of rows nearest to the chosen one (the first chosen, of equals: a row that
        repeats an earlier one weighs nothing). "herding" and "kernel-herding": n_c/m_c each, because the plain mean of
        the rows is what they match.
    inclusion_probabilities : Tensor, shape (m,), float64, or None
        :math:`\pi_i` of the drawn rows; None where nothing but the start is random. For "random" m_c/n_c. For the
        others the probability given the arrival time of the first row of the class that was not drawn, which is exact
        where the overall probability of a sample without replacement has no closed form (see `kernels.Sample`).
    method : str
    seed : int
    notes : tuple of str
        What a user should know, such as a class whose rows are all equal.
    """

    indices: Tensor
    weights: Tensor
    inclusion_probabilities: Tensor | None
    method: str
    seed: int
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.indices, self.weights))

    def __len__(self) -> int:
        return len(self.indices)
