"""Scores of DD-Ranking on fractions: known answers, ends, and refusal of percentages."""

import doctest
import math

import pytest

from kernel_distill.nn_baselines import scores
from kernel_distill.nn_baselines.scores import (
    hard_label_recovery,
    improvement_over_random,
    label_robust_score,
)


@pytest.mark.parametrize(
    ("own", "random", "full", "hard", "ior", "hlr", "lrs"),
    [
        (0.489, 0.310, 0.848, 0.489, 0.179, 0.359, 0.232),
        (0.51, 0.31, 0.56, 0.51, 0.20, 0.05, 0.302),
        (0.5, 0.5, 0.5, 0.5, 0.0, 0.0, 1 / (math.e + 1)),
    ],
)
def test_known_answers(own, random, full, hard, ior, hlr, lrs):
    assert improvement_over_random(own, random) == pytest.approx(ior)
    assert hard_label_recovery(full, hard) == pytest.approx(hlr)
    assert label_robust_score(ior, hlr) == pytest.approx(lrs, abs=5e-4)


def test_ends_and_weight():
    assert label_robust_score(-1, 1) == 0
    assert label_robust_score(1, -1) == pytest.approx(1)
    assert label_robust_score(1, 0.3, weight=1) == pytest.approx(1)
    assert label_robust_score(0.3, 1, weight=0) == 0
    assert label_robust_score(0.2, 0.1) < label_robust_score(0.21, 0.1)
    assert label_robust_score(0.2, 0.1) > label_robust_score(0.2, 0.11)


def test_example():
    assert doctest.testmod(scores).failed == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: improvement_over_random(48.9, 0.3),
            "`own` must be a fraction .* not a percentage, got 48.9",
        ),
        (lambda: improvement_over_random(0.4, math.nan), "`random` must be a fraction"),
        (lambda: hard_label_recovery(84.8, 0.5), "`full` must be a fraction"),
        (lambda: hard_label_recovery(0.8, -0.1), "`hard` must be a fraction"),
        (lambda: label_robust_score(17.9, 0.2), r"`ior` must be a difference of fractions"),
        (lambda: label_robust_score(0.1, 35.9), r"`hlr` must be a difference of fractions"),
        (lambda: label_robust_score(0.1, 0.2, weight=2), r"`weight` must lie in \[0, 1\]"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
