r"""What a distilled set adds, apart from soft labels and augmentation: the scores of DD-Ranking, on fractions.

.. math:: \mathrm{IOR} = a_{\text{set}} - a_{\text{random}}, \qquad
          \mathrm{HLR} = a_{\text{full}} - a_{\text{set, hard labels}}, \qquad
          \mathrm{LRS} = \frac{e^{\alpha} - e^{-1}}{e - e^{-1}}, \quad
          \alpha = w\,\mathrm{IOR} - (1 - w)\,\mathrm{HLR}

with accuracies in [0, 1], so that :math:`\alpha \in [-1, 1]` and LRS in [0, 1] for w = 1/2 and any w: improvement over
random rows under the same recipe, what is lost with hard labels to training on everything, and both as one number
(Li et al., "DD-Ranking: Rethinking the Evaluation of Dataset Distillation", 2025). The published package 0.2.0 puts
percentages into the same formula, where the exponential leaves its range: its numbers are not these. Published random
rows have any labels, those of `evaluate` hard ones: of a recipe with soft labels, IOR holds what soft labels add.
"""

import math

# Weight of IOR in LRS, as published.
WEIGHT = 0.5


def improvement_over_random(own: float, random: float) -> float:
    """IOR: accuracy of the set minus that of as many random rows, same recipe.

    Raises
    ------
    ValueError
        If an accuracy is no fraction in [0, 1] (percentages are refused).
    """
    return _fraction(own, "own") - _fraction(random, "random")


def hard_label_recovery(full: float, hard: float) -> float:
    """HLR: accuracy of all training data minus that of the set with hard labels; smaller is better.

    Raises
    ------
    ValueError
        If an accuracy is no fraction in [0, 1] (percentages are refused).
    """
    return _fraction(full, "full") - _fraction(hard, "hard")


def label_robust_score(ior: float, hlr: float, weight: float = WEIGHT) -> float:
    """LRS: both scores as one number in [0, 1]; larger is better.

    Parameters
    ----------
    ior, hlr : float
        Differences of fractions, in [-1, 1].
    weight : float, default 0.5
        w, of IOR.

    Raises
    ------
    ValueError
        If a difference lies outside [-1, 1], or the weight outside [0, 1].

    Examples
    --------
    >>> round(label_robust_score(0.179, 0.359), 3), round(label_robust_score(0.20, 0.05), 3)
    (0.232, 0.302)
    """
    for name, value in (("ior", ior), ("hlr", hlr)):
        if not -1 <= value <= 1:
            raise ValueError(f"`{name}` must be a difference of fractions, in [-1, 1], got {value!r}")
    if not 0 <= weight <= 1:
        raise ValueError(f"`weight` must lie in [0, 1], got {weight!r}")
    alpha = weight * ior - (1 - weight) * hlr
    return (math.exp(alpha) - math.exp(-1)) / (math.e - math.exp(-1))


def _fraction(value: float, name: str) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"accuracy `{name}` must be a fraction in [0, 1], not a percentage, got {value!r}")
    return float(value)
