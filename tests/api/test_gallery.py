"""Pictures of distilled sets: where each point goes, what its values become, what is no image."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

import kernel_distill as kd
from kernel_distill.gallery import image_grid, save_grid, to_pixels


@pytest.fixture(scope="module")
def data():
    return kd.load_data("digits")


@pytest.fixture(scope="module")
def ds(data):
    return kd.distill(data, feature_map="identity", ridge=1.0, per_class=3)


@pytest.fixture(scope="module")
def colour():
    rng = np.random.default_rng(0)
    X = rng.integers(0, 256, size=(60, 3, 4, 5)).astype(np.uint8)
    return kd.distill(X, np.arange(60) % 2, feature_map="identity", ridge=1.0, storage="uint8", near="data")


def flat(ds, values):
    """The same set with every image of one value."""
    values = torch.as_tensor(values, dtype=torch.float64)
    return dataclasses.replace(ds, x=values[:, None, None, None].expand(-1, *ds.x.shape[1:]).contiguous())


def tile(picture, column, row, side):
    pixels = np.asarray(picture)
    return pixels[6 + row * (side + 6) :, 6 + column * (side + 6) :][:side, :side]


def test_one_column_a_class_and_one_row_an_index(ds):
    marked = flat(ds, torch.arange(30))
    picture = image_grid(marked, scale=2, stretch=False, data_range=(0, 255), captions=False)
    assert picture.mode == "L"
    assert picture.size == (10 * (16 + 6) + 6, 3 * (16 + 6) + 6)
    for index in range(30):
        column, row = index // 3, index % 3
        assert (tile(picture, column, row, 16) == index).all()
    between = np.asarray(picture)[:6]
    assert (between == 255).all()


def test_columns_lay_out_in_order(ds):
    marked = flat(ds, torch.arange(30))
    picture = image_grid(marked, columns=7, scale=1, stretch=False, data_range=(0, 255), captions=False)
    assert picture.size == (7 * 14 + 6, 5 * 14 + 6)
    for index in range(30):
        assert (tile(picture, index % 7, index // 7, 8) == index).all()


def test_uneven_classes_leave_cells_empty(data):
    uneven = kd.distill(data, feature_map="identity", ridge=1.0, n_points=13)
    counts = np.bincount(uneven.labels.numpy())
    picture = image_grid(flat(uneven, torch.zeros(13)), scale=1, captions=False)
    assert picture.size == (10 * 14 + 6, counts.max() * 14 + 6)
    filled = [[(tile(picture, c, r, 8) == 128).all() for r in range(counts.max())] for c in range(10)]
    assert np.sum(filled, axis=1).tolist() == counts.tolist()


def test_each_image_is_stretched_to_its_own_range(ds):
    pixels = to_pixels(ds)
    assert pixels.values.shape == (30, 8, 8)
    assert pixels.values.dtype == np.uint8
    assert (pixels.values.min(axis=(1, 2)) == 0).all()
    assert (pixels.values.max(axis=(1, 2)) == 255).all()
    x = ds.x.numpy()[:, 0]
    back = pixels.low[:, None, None] + pixels.values / 255.0 * (pixels.high - pixels.low)[:, None, None]
    half_a_step = (pixels.high - pixels.low)[:, None, None] / 510
    assert (abs(back - x) <= half_a_step * (1 + 1e-9)).all()


def test_clipping_to_a_range(ds):
    values = to_pixels(flat(ds, torch.linspace(-16, 32, 30)), stretch=False, data_range=(0, 16)).values[
        :, 0, 0
    ]
    expected = np.rint(255 * np.clip(np.linspace(-16, 32, 30) / 16, 0, 1))
    np.testing.assert_array_equal(values, expected)


def test_colour_and_stored_bytes(colour):
    pixels = to_pixels(colour, stretch=False)
    np.testing.assert_array_equal(pixels.values, colour.x.numpy().transpose(0, 2, 3, 1))
    picture = image_grid(colour, scale=3, captions=False)
    assert picture.mode == "RGB"
    assert picture.size == (2 * (15 + 6) + 6, 12 + 12)
    # One range for all channels of an image, so that grey stays grey.
    grey = dataclasses.replace(colour, x=colour.x[:, :1].expand(-1, 3, -1, -1).contiguous())
    values = to_pixels(grey).values
    assert (values == values[..., :1]).all()


def test_points_kept_after_the_transform_are_shown_before_it(data):
    made = kd.distill(data, feature_map="identity", ridge=1.0, transform="zca-kip")
    assert made.space == "transformed"
    raw = made.encoder.transform.inverse(made.x).numpy()
    np.testing.assert_array_equal(to_pixels(made).high, raw.max(axis=(1, 2, 3)))


def test_default_scale_is_legible_and_captions_add_to_it(ds):
    plain, captioned = image_grid(ds, captions=False), image_grid(ds)
    assert plain.size == (10 * (64 + 6) + 6, 3 * (64 + 6) + 6)
    assert captioned.width == plain.width
    assert captioned.height > plain.height
    assert image_grid(ds, scale=1).width >= 10 * 14  # as wide as its text


def test_regression_points_need_no_classes():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 5, 5)), rng.normal(size=(40, 2))
    made = kd.distill(X, y, task="regression", feature_map="identity", ridge=1.0)
    assert image_grid(made, scale=1, captions=False).size == (2 * 11 + 6, 11 + 6)
    assert image_grid(made).width > 0


def test_save_grid(tmp_path, ds):
    save_grid(ds, tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.format == "PNG"
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(image_grid(ds)))
    with pytest.raises(FileExistsError, match="choose another name, or force"):
        save_grid(ds, tmp_path / "grid.png")
    save_grid(ds, tmp_path / "grid.png", columns=5, scale=1, captions=False, force=True)
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.size == (5 * 14 + 6, 6 * 14 + 6)
    assert [entry.name for entry in tmp_path.iterdir()] == ["grid.png"]


def test_refusals(data, ds):
    vectors = kd.distill(data.x_train.reshape(-1, 64), data.y_train, feature_map="identity", ridge=1.0)
    features = kd.distill(data, feature_map="identity", ridge=1.0, space="features")
    two = dataclasses.replace(ds, x=ds.x.expand(-1, 2, -1, -1))
    refused = [
        (vectors, {}, r"points of shape \(64,\) are not images"),
        (features, {}, "lives in feature space: its points are vectors of 64 features, not images"),
        (two, {}, r"points of shape \(2, 8, 8\) are not images"),
        (ds, {"stretch": False}, "needs data_range"),
        (ds, {"data_range": (0, 1)}, "needs stretch=False"),
        (ds, {"stretch": False, "data_range": (1, 1)}, "finite and increasing"),
        (ds, {"stretch": False, "data_range": (float("nan"), 1)}, "finite and increasing"),
        (ds, {"scale": 0}, "`scale` must be an integer of at least 1, got 0"),
        (ds, {"columns": 2.0}, "`columns` must be an integer of at least 1, got 2.0"),
    ]
    for made, options, message in refused:
        with pytest.raises(ValueError, match=message):
            image_grid(made, **options)
