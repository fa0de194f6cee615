"""`coreset`: every kind of array, with and without labels."""

import numpy as np
import pytest
import torch

from kernel_distill._coreset import coreset
from kernel_distill.solver.coresets import CORESETS, select
from kernel_distill.solver.data import load_data
from kernel_distill.solver.data.base import make_data
from kernel_distill.solver.feature_maps import make_feature_map
from kernel_distill.solver.transforms import make_transform

RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, 6))
Y = np.array([3, 1, 3, 7, 1] * 10)
IMAGES = RNG.integers(0, 256, (50, 3, 4, 4)).astype(np.uint8)


class OnDevice:
    """What of CuPy's arrays is used: they come to the host by `get`."""

    __module__ = "cupy"

    def __init__(self, array):
        self.array = array

    def get(self):
        return self.array


@pytest.mark.parametrize("method", CORESETS)
def test_rows_of_each_class_with_their_weights(method):
    found = coreset(X, Y, per_class=3, method=method)
    assert Y[found.indices].tolist() == [1] * 3 + [3] * 3 + [7] * 3
    indices, weights = coreset(X, Y, per_class=3, method=method)
    assert torch.equal(indices, found.indices)
    assert torch.equal(weights, found.weights)
    groups = torch.from_numpy(np.searchsorted([1, 3, 7], Y))
    wanted = select(torch.from_numpy(X), groups, [3, 3, 3], method, seed=0)
    assert torch.equal(indices, wanted.indices)
    assert torch.equal(weights, wanted.weights)


@pytest.mark.parametrize(
    "convert",
    [
        np.asarray,
        torch.from_numpy,
        OnDevice,
        np.ndarray.tolist,
        np.asfortranarray,
        lambda a: np.repeat(a, 2, axis=0)[::2],
        lambda a: a.astype(a.dtype.newbyteorder(">")),
    ],
)
@pytest.mark.parametrize("labels", [None, Y])
def test_arrays_of_every_library(convert, labels):
    options = {"n_points": 6, "seed": 4}
    found = coreset(convert(X), None if labels is None else convert(labels), **options)
    assert torch.equal(found.indices, coreset(X, labels, **options).indices)


def test_string_labels_and_numpy_indexing():
    names = np.array(["wolf", "cat"] * 25)
    found = coreset(X, names, per_class=2, method="k-means")
    assert names[found.indices].tolist() == ["cat", "cat", "wolf", "wolf"]
    assert X[found.indices].shape == (4, 6)


@pytest.mark.parametrize("points", [1, 2, 3, 7, 50])
def test_points_are_spread_over_the_classes(points):
    y = np.repeat([0, 1, 2], [20, 15, 15])
    if points == 50:
        with pytest.raises(ValueError, match="class 1: 17 rows are asked for, but there are 15"):
            coreset(X, y, n_points=points)
        return
    counts = np.bincount(y[coreset(X, y, n_points=points).indices.numpy()], minlength=3)
    assert counts.sum() == points
    assert counts.max() - counts.min() <= 1
    assert len(coreset(X, n_points=points)) == points


@pytest.mark.parametrize("transform", ["auto", "standardize", "none"])
def test_images_are_compared_after_the_transform(transform):
    found = coreset(IMAGES, Y, per_class=2, method="k-center", transform=transform)
    name = "standardize" if transform == "auto" else transform
    fitted = make_transform(name, lambda: [torch.from_numpy(IMAGES)], (3, 4, 4))
    flat = fitted.forward(torch.from_numpy(IMAGES), torch.float32).flatten(1)
    groups = torch.from_numpy(np.searchsorted([1, 3, 7], Y))
    assert torch.equal(found.indices, select(flat, groups, [2] * 3, "k-center", seed=0).indices)
    again = coreset(IMAGES, Y, per_class=2, method="k-center", transform=fitted)
    assert torch.equal(again.indices, found.indices)
    assert torch.equal(coreset(IMAGES[:, 0], n_points=3).indices, coreset(IMAGES[:, :1], n_points=3).indices)


def test_rows_are_compared_by_an_embedding():
    feature_map = make_feature_map("fcnn", (3, 4, 4), seed=1, sample=lambda: None, params={"widths": [20]})
    found = coreset(IMAGES, n_points=4, method="k-center", embedding=feature_map.features, transform="none")
    F = feature_map.features(torch.from_numpy(IMAGES).float())
    assert torch.equal(found.indices, select(F, None, 4, "k-center", seed=0).indices)


def test_training_rows_of_a_data_set():
    data = load_data("digits")
    found = coreset(data, per_class=2)
    assert data.y_train[found.indices].tolist() == sorted([*range(10)] * 2)
    assert torch.equal(found.indices, coreset(data.x_train, data.y_train, per_class=2).indices)
    with pytest.raises(ValueError, match="pass either a Data object or X and y, not both"):
        coreset(data, data.y_train, per_class=2)


def test_a_data_set_of_numbers_has_one_budget():
    data = make_data("numbers", (X, RNG.normal(size=50)), None)
    assert torch.equal(coreset(data, n_points=5).indices, coreset(X, n_points=5).indices)
    with pytest.raises(ValueError, match="`per_class` needs labels"):
        coreset(data, per_class=5)


@pytest.mark.parametrize(
    ("arguments", "options", "match"),
    [
        ((X, Y), {}, "either `per_class` or `n_points`"),
        ((X, Y), {"per_class": 1, "n_points": 3}, "either `per_class` or `n_points`"),
        ((X,), {"per_class": 1}, "`per_class` needs labels"),
        ((X, Y), {"per_class": 0}, "`per_class` must be an integer of at least 1"),
        ((X, Y), {"per_class": 11}, "class 7: 11 rows are asked for, but there are 10"),
        ((X, Y), {"per_class": 1, "method": "kmeans"}, "unknown coreset 'kmeans'; did you mean 'k-means'"),
        ((X, Y), {"per_class": 1, "transform": "zca"}, "unknown transform"),
        ((X, Y), {"per_class": 1, "kernel": "cauchy"}, "coreset 'k-means' takes no option 'kernel'"),
        ((X, Y[:-1]), {"per_class": 1}, "`X` has 50 rows but `y` has 49"),
        ((X, Y * 0.5), {"per_class": 1}, "labels are float64"),
        ((X[:0],), {"n_points": 1}, "`X` is empty"),
        ((np.where(X > 2, np.nan, X), Y), {"per_class": 1}, "`X` holds NaN"),
        ((iter([(X, Y)]),), {"n_points": 1}, "`X` must be an array"),
    ],
)
def test_bad_input_is_refused(arguments, options, match):
    with pytest.raises(ValueError, match=match):
        coreset(*arguments, **options)
