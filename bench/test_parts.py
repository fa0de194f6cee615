"""Parts of the closed form under pytest-benchmark: `pytest bench --benchmark-enable`."""

import pytest
import torch

from kernel_distill.kernels import gram_add_, mirror_upper_
from kernel_distill.solver.closed_form import nearest_features
from kernel_distill.solver.feature_maps import Dense, RandomFourier
from kernel_distill.solver.ridge import RidgePath
from kernel_distill.solver.set_factor import SetFactor

P = 784


@pytest.fixture(scope="module")
def rows():
    return torch.randn(8192, P, dtype=torch.float64)


@pytest.mark.benchmark(group="gram")
def test_half_gram(benchmark, rows):
    gram = torch.zeros(P, P, dtype=torch.float64)
    benchmark(lambda: mirror_upper_(gram_add_(gram, rows)))


@pytest.mark.benchmark(group="gram")
def test_general_product(benchmark, rows):
    benchmark(lambda: rows.T @ rows)


@pytest.mark.benchmark(group="features")
def test_fcnn_features(benchmark, rows):
    feature_map = Dense((P,))
    X = rows.float()
    benchmark(lambda: feature_map.features(X))


@pytest.mark.benchmark(group="features")
def test_fourier_features(benchmark, rows):
    feature_map = RandomFourier((P,), length_scale=30.0)
    X = rows.float()
    benchmark(lambda: feature_map.features(X))


@pytest.mark.benchmark(group="features")
def test_floor_of_both(benchmark, rows):
    X, W = rows.float(), torch.randn(P, P)
    benchmark(lambda: X @ W)


@pytest.mark.benchmark(group="solve")
def test_ridge_path(benchmark, rows):
    Y = torch.randn(len(rows), 10, dtype=torch.float64)
    benchmark(lambda: RidgePath.from_rows(rows[: 2 * P], Y[: 2 * P]))


@pytest.mark.benchmark(group="set")
@pytest.mark.parametrize("points", [10, 100, 500])
def test_nearest_set_and_its_labels(benchmark, rows, points):
    W = torch.randn(P, 10, dtype=torch.float64)
    benchmark(lambda: SetFactor(nearest_features(W, rows[:points])).labels(W))


@pytest.mark.benchmark(group="preimage")
@pytest.mark.parametrize("points", [10, 500])
def test_fcnn_preimage(benchmark, rows, points):
    feature_map = Dense((P,))
    benchmark(lambda: feature_map.preimage(rows[:points]))
