"""The measure of verification, over a table of pairs."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from kernel_distill.accel._difference import difference

a = np.array([[1.0, -4.0], [0.5, 2.0]])
nan = np.array([1.0, np.nan])
PAIRS = [
    (a, a + 4e-8, 1e-8),
    (a, a.copy(), 0.0),
    (a, a.astype(np.float32), math.inf),
    (a, a[:1], math.inf),
    (torch.tensor(a), torch.tensor(a) + 0.4, 0.1),
    (torch.tensor(a), a, math.inf),
    (nan, nan.copy(), 0.0),
    (nan, np.array([1.0, 2.0]), math.inf),
    (np.array([np.inf, 1.0]), np.array([-np.inf, 1.0]), math.inf),
    (np.array([np.inf, 1.0]), np.array([np.inf, 1.5]), 0.5),
    (np.zeros(2), np.full(2, 1e-3), 1e-3),
    (np.array([1, 2]), np.array([1, 5]), 3.0),
    (np.array([True]), np.array([False]), 1.0),
    (np.array([2**63], dtype=np.uint64), np.array([0], dtype=np.uint64), 2.0**63),
    ([1, (2.0, a)], [1, (2.0, a * 1.5)], 0.5),
    ([1, 2], [1], math.inf),
    ((1,), [1], math.inf),
    ({"x": 1.0}, {"x": 2.0}, 1.0),
    ({"x": 1.0}, {"y": 1.0}, math.inf),
    (1, 1.0, 0.0),
    (2.0, np.float64(2.5), 0.25),
    (None, None, 0.0),
    ("a", "b", math.inf),
    (np.array(["a"]), np.array(["b"]), math.inf),
    (np.empty(0), np.empty(0), 0.0),
    (torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([2.0], dtype=torch.bfloat16), 1.0),
]


@pytest.mark.parametrize(("x", "y", "expected"), PAIRS)
def test_pairs(x, y, expected):
    assert difference(x, y) == pytest.approx(expected, rel=1e-6)


def test_networks_and_estimators_by_what_they_learned():
    nets = [torch.nn.Linear(1, 1) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    assert difference(*nets) == 0.0
    with torch.no_grad():
        nets[1].weight.mul_(2)
    assert difference(*nets) == pytest.approx(1.0)
    x = np.arange(4.0)[:, None]
    models = [Ridge(alpha).fit(x, x[:, 0]) for alpha in (1e-9, 1e-9, 1.0)]
    assert difference(*models[:2]) == 0.0
    assert difference(models[0], models[2]) > 1e-3
