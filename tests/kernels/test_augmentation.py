"""Augmentation against the published formulae image by image, its transpose and derivatives, and what is drawn."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import stats

from kernel_distill.kernels import uniform
from kernel_distill.kernels._augmentation import AT, COLUMNS, IDENTITY, NAMES, OPERATIONS, augmented
from kernel_distill.kernels._dispatch import choose
from kernel_distill.kernels.augmentation import Augmentation, _rejects, augment_images, draw_augmentation

from .places import INTERPRETED, places
from .transforms import check_derivatives

ALL = "color_crop_cutout_flip_scale_rotate"
PLACES = pytest.mark.parametrize("place", places("augment_images"))
SHAPES = pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 5), (2, 4, 9), (1, 8, 8)], ids=str)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}


def images(n, shape, dtype=torch.float64, stream="images"):
    return (4 * uniform(7, stream, (n, *shape)) - 2).to(dtype)


def drawn(strategy, n, shape, *, stream="test", **options):
    return draw_augmentation(strategy, np.arange(n), shape, seed=3, stream=stream, **options)


def published(x, settings, operations):
    """One image, float64, one operation after the other."""
    at = dict(zip(NAMES, settings, strict=True))
    for name in operations:
        x = FORMULAE[name](x, at)
    return x


def color(x, at):
    x = x + at["brightness"]
    x = (x - x.mean(0, keepdims=True)) * at["saturation"] + x.mean(0, keepdims=True)
    return (x - x.mean()) * at["contrast"] + x.mean()


def crop(x, at):
    _, h, w = x.shape
    down, across = int(at["down"]), int(at["across"])
    result = np.zeros_like(x)
    for i in range(h):
        for j in range(w):
            if 0 <= i + down < h and 0 <= j + across < w:
                result[:, i, j] = x[:, i + down, j + across]
    return result


def cutout(x, at):
    top, bottom, left, right = (int(at[name]) for name in COLUMNS["cutout"])
    x = x.copy()
    x[:, top:bottom, left:right] = 0
    return x


def flip(x, at):
    return x[:, :, ::-1] if at["flip"] else x


def scale(x, at):
    return interpolated(x, np.diag([at["scale_x"], at["scale_y"]]))


def rotate(x, at):
    return interpolated(x, np.array([[at["cosine"], -at["sine"]], [at["sine"], at["cosine"]]]))


def interpolated(x, matrix):
    _, h, w = x.shape
    result = np.zeros_like(x)
    for i in range(h):
        for j in range(w):
            u, v = matrix @ [(2 * j + 1) / w - 1, (2 * i + 1) / h - 1]
            column, row = ((u + 1) * w - 1) / 2, ((v + 1) * h - 1) / 2
            for k in (math.floor(row), math.floor(row) + 1):
                for m in (math.floor(column), math.floor(column) + 1):
                    if 0 <= k < h and 0 <= m < w:
                        result[:, i, j] += (1 - abs(row - k)) * (1 - abs(column - m)) * x[:, k, m]
    return result


FORMULAE = {
    "color": color,
    "crop": crop,
    "cutout": cutout,
    "flip": flip,
    "scale": scale,
    "rotate": rotate,
}


def allowed(shape, dtype):
    """Coordinates are off by a few units of the size, which an interpolation multiplies by differences of 2 to 8."""
    return 32 * UNIT[dtype] * 8 * max(shape)


def check_values(augmentation, dtype, place):
    X = images(len(augmentation), augmentation.image_shape, dtype)
    found = augment_images(X.to(place[1]), augmentation.to(place[1]), backend=place[0])
    expected = np.stack(
        [
            published(x, settings, augmentation.operations)
            for x, settings in zip(X.double().numpy(), augmentation.table, strict=True)
        ]
    )
    assert found.dtype == dtype
    error = np.abs(found.double().cpu().numpy() - expected).max()
    assert error <= allowed(augmentation.image_shape, dtype)


@PLACES
@SHAPES
@DTYPES
@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_operation(operation, dtype, shape, place):
    augmentation = drawn(operation, 3, shape, stream="alone")
    assert operation in augmentation.used or math.prod(shape) == 1
    check_values(augmentation, dtype, place)


@PLACES
@SHAPES
@DTYPES
@pytest.mark.parametrize("siamese", [False, True])
def test_all_operations_one_after_the_other(siamese, dtype, shape, place):
    check_values(drawn(ALL, 2, shape, single=False, siamese=siamese), dtype, place)


@PLACES
@DTYPES
def test_one_operation_a_group(dtype, place):
    augmentation = drawn(ALL, 14, (3, 5, 6), stream="single")
    assert len(augmentation.used) == len(OPERATIONS)
    check_values(augmentation, dtype, place)


@pytest.mark.parametrize(
    "strategy", ["rotate_scale_flip_cutout_crop_color", "flip_crop_color", "cutout_color_scale"]
)
def test_operations_in_another_order(strategy):
    augmentation = drawn(strategy, 4, (3, 6, 5), single=False)
    assert augmentation.operations == tuple(strategy.split("_"))
    check_values(augmentation, torch.float64, ("torch", "cpu"))
    assert "another order" in (_rejects(images(4, (3, 6, 5)), augmentation) or "")
    assert _rejects(images(4, (3, 6, 5)), drawn(strategy, 4, (3, 6, 5), single=True)) is None


@pytest.mark.skipif(INTERPRETED, reason="interpreted kernels are not compiled")
def test_images_of_one_pixel_compile(monkeypatch, tmp_path):
    """Triton makes a constant of an argument that is 1; the transpose holds all of the kernel's code."""
    pytest.importorskip("triton")
    from kernel_distill.kernels._triton._resources import measure
    from kernel_distill.kernels._triton.augmentation import VARIANTS

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    usual = next(variant for variant in VARIANTS if variant.constants["ADJOINT"])
    pointers = {name: kind for name, kind in usual.arguments.items() if kind.startswith("*")}
    ones = dict.fromkeys(usual.arguments.keys() - pointers.keys(), 1)
    assert sorted(ones) == ["channels", "h", "w"]
    fixed = dataclasses.replace(usual, arguments=pointers, constants=usual.constants | ones)
    assert measure(fixed, 90).registers > 16


@PLACES
def test_sizes_that_need_several_tiles(place):
    check_values(drawn(ALL, 1, (3, 17, 31), single=False), torch.float64, place)


@PLACES
@SHAPES
@pytest.mark.parametrize("single", [False, True])
def test_transpose(single, shape, place):
    """<A x, y> = <x, A' y>, without brightness."""
    n = 6 if single else 1
    augmentation = drawn(ALL, n, shape, single=single).to(place[1])
    X, Y = images(n, shape).to(place[1]), images(n, shape, stream="others").to(place[1])
    run = choose("augment_images", X, augmentation, backend=place[0])
    there = (run(X, augmentation, adjoint=False, offset=False) * Y).sum((1, 2, 3))
    back = (X * run(Y, augmentation, adjoint=True, offset=False)).sum((1, 2, 3))
    bound = math.prod(shape) * 4 * allowed(shape, torch.float64)
    assert float((there - back).abs().max()) <= bound


@PLACES
@pytest.mark.parametrize("scales", [(0.5, 1.1), (2.5, 4.0)], ids=str)
def test_transpose_of_large_changes(scales, place):
    """Windows of the transpose grow with what is drawn."""
    table = np.tile(IDENTITY, (1, 1))
    table[:, AT["scale"]] = scales
    table[:, AT["rotate"]] = math.cos(1.0), math.sin(1.0)
    augmentation = Augmentation(table, OPERATIONS, (1, 6, 4))
    check_values(augmentation, torch.float64, place)
    Y, there = images(1, (1, 6, 4)).to(place[1]), augmentation.to(place[1])
    found = choose("augment_images", Y, there, backend=place[0])(Y, there, adjoint=True, offset=False)
    expected = augmented(Y.cpu(), augmentation, adjoint=True, offset=False)
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-13)


@PLACES
def test_derivatives_are_those_of_the_matrix(place):
    """Against torch's derivatives of the affine map written out."""
    shape = (2, 4, 3)
    augmentation = drawn(ALL, 1, shape, single=False)
    offset = augmented(torch.zeros(1, *shape).double(), augmentation, adjoint=False, offset=True)
    pixels = torch.eye(24, dtype=torch.float64).view(24, *shape)
    rows = augmented(pixels, augmentation[[0] * 24], adjoint=False, offset=False).flatten(1)

    def direct(x):
        return offset + (x.flatten(1) @ rows).view_as(x)

    def found(x):
        return augment_images(x, augmentation.to(place[1]), backend=place[0])

    X, V = images(1, shape), images(1, shape, stream="others")
    for there, here in ((found, place[1]), (direct, "cpu")):
        x, v = X.to(here).requires_grad_(), V.to(here)
        (once,) = torch.autograd.grad(there(x).square().sum(), x, create_graph=True)
        (twice,) = torch.autograd.grad((once.square() * v).sum(), x)
        tangent = torch.func.jvp(there, (x.detach(),), (v,))[1]
        if there is found:
            results = [t.detach().cpu() for t in (once, twice, tangent)]
    torch.testing.assert_close(results, [once.detach(), twice, tangent], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("strategy", [ALL, "rotate_color"])
def test_derivatives(strategy):
    augmentation = drawn(strategy, 2, (2, 3, 2), single=False)
    check_derivatives(lambda x: augment_images(x, augmentation), images(2, (2, 3, 2)))


@PLACES
def test_nothing_but_the_images_is_read(place):
    """Memory around them is NaN, and so is a pixel that a crop or a box takes away."""
    shape, n = (3, 5, 6), 10
    augmentation = drawn(ALL, n, shape, stream="around").to(place[1])
    assert len(augmentation.used) == len(OPERATIONS)
    poisoned = torch.full((n + 2, *shape), torch.nan, device=place[1])
    poisoned[1:-1] = images(n, shape, torch.float32)
    X = poisoned[1:-1].requires_grad_()
    found = augment_images(X, augmentation, backend=place[0])
    found.sum().backward()
    assert found.isfinite().all()
    assert X.grad is not None
    assert X.grad.isfinite().all()

    table = np.tile(IDENTITY, (2, 1))
    table[0, AT["crop"]], table[1, AT["cutout"]] = (1, 1), (0, 2, 0, 2)
    X = torch.ones(2, *shape, device=place[1])
    X[:, :, 0, 0] = torch.nan
    found = augment_images(X, Augmentation(table, OPERATIONS, shape).to(place[1]), backend=place[0])
    assert found.isfinite().all()


@PLACES
def test_a_pixel_that_is_not_finite_spoils_its_neighbours_alone(place):
    table = np.tile(IDENTITY, (1, 1))
    table[:, AT["scale"]] = 0.9, 1.1
    X = torch.zeros(1, 1, 9, 9, device=place[1])
    X[0, 0, 4, 4] = torch.nan
    found = augment_images(X, Augmentation(table, OPERATIONS, (1, 9, 9)).to(place[1]), backend=place[0])
    assert 1 <= int(found.isnan().sum()) <= 9


@PLACES
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_narrow_numbers_are_computed_in_float32(dtype, place):
    augmentation = drawn(ALL, 6, (3, 6, 5)).to(place[1])
    X = images(6, (3, 6, 5), dtype).to(place[1])
    found = augment_images(X, augmentation, backend=place[0])
    expected = augment_images(X.float(), augmentation, backend=place[0])
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected.to(dtype))


@PLACES
def test_strides_and_repetition(place):
    augmentation = drawn(ALL, 2, (2, 5, 4), single=False).to(place[1])
    X = images(2, (2, 5, 4)).to(place[1])
    found = augment_images(X, augmentation, backend=place[0])
    for other in (X.to(memory_format=torch.channels_last), X.transpose(2, 3).contiguous().transpose(2, 3)):
        assert torch.equal(augment_images(other, augmentation, backend=place[0]), found)
    assert torch.equal(X, images(2, (2, 5, 4)).to(place[1]))


@pytest.mark.parametrize("strategy", ["", "none", "None"])
def test_nothing_to_do(strategy):
    X = images(3, (1, 4, 4))
    assert augment_images(X, drawn(strategy, 3, (1, 4, 4))) is X


def test_no_images():
    augmentation = drawn(ALL, 0, (3, 4, 4), single=False)
    assert len(augmentation) == 0
    assert augment_images(torch.zeros(0, 3, 4, 4), augmentation).shape == (0, 3, 4, 4)


def test_gray_images_have_no_saturation():
    table = np.tile(IDENTITY, (1, 1))
    table[:, NAMES.index("saturation")] = 1.7
    X = images(1, (1, 5, 5))
    torch.testing.assert_close(
        augment_images(X, Augmentation(table, OPERATIONS, (1, 5, 5))), X, rtol=0, atol=1e-15
    )


@pytest.mark.parametrize("siamese", [False, True])
@pytest.mark.parametrize("single", [False, True])
def test_parts_of_an_augmentation(single, siamese):
    groups = np.array([2, 0, 1, 0, 2, 5, 1])
    whole = draw_augmentation(ALL, groups, (3, 6, 5), seed=1, stream="s", siamese=siamese, single=single)
    X = images(7, (3, 6, 5))
    found = augment_images(X, whole)
    rows = torch.tensor([5, 0, 3])
    assert torch.equal(augment_images(X[rows], whole[rows]), found[rows])
    assert torch.equal(augment_images(X[2:6], whole[2:6]), found[2:6])
    assert torch.equal(augment_images(X[groups == 0], whole[groups == 0]), found[groups == 0])
    assert torch.equal(augment_images(X, Augmentation.cat([whole[:3], whole[3:]])), found)
    assert torch.equal(whole[2:6].values, torch.from_numpy(whole[2:6].table))


@pytest.mark.parametrize("siamese", [False, True])
@pytest.mark.parametrize("single", [False, True])
def test_draws_depend_on_seed_stream_group_and_number_alone(single, siamese):
    def draw(groups, seed=1, stream="s", strategy=ALL):
        return draw_augmentation(
            strategy, groups, (3, 16, 12), seed=seed, stream=stream, siamese=siamese, single=single
        ).table

    groups = np.array([4, 0, 4, 1, 0, 4, 0, 1, 1000])
    together = draw(groups)
    for group in np.unique(groups):
        assert np.array_equal(draw(groups[groups == group]), together[groups == group])
    assert np.array_equal(draw(groups[:6]), together[:6])  # those that follow change nothing
    assert np.array_equal(draw(torch.from_numpy(groups)), together)
    assert not np.array_equal(draw(groups, seed=2), together)
    assert not np.array_equal(draw(groups, stream="t"), together)
    if not single:  # an operation's parameters are its own, whatever else is on the list
        at = AT["rotate"]
        assert np.array_equal(draw(groups, strategy="flip_rotate")[:, at], together[:, at])


@pytest.mark.parametrize("single", [False, True])
def test_siamese_batches_are_treated_alike(single):
    def draw(groups, siamese):
        return draw_augmentation(ALL, groups, (3, 16, 16), seed=1, stream="s", siamese=siamese, single=single)

    real, learned = np.repeat(np.arange(40), 7), np.arange(40)
    a, b = draw(real, True), draw(learned, True)
    assert np.array_equal(a.table, b.table[real])
    # Apart from siamese draws: the same operation for a group, other parameters for every image.
    own = draw(real, False)
    if single:
        for name in ("color", "rotate"):
            numbers = own.used[name]
            assert np.array_equal(numbers, a.used[name])
            assert len(np.unique(own.table[numbers, AT[name]], axis=0)) == len(numbers)


def chi_square(values, expected):
    """p-value of counts of whole numbers that should be equally likely."""
    found = np.bincount(np.searchsorted(expected, values), minlength=len(expected))
    assert set(np.unique(values)) <= set(expected)
    return stats.chisquare(found).pvalue


def test_distribution_of_whole_numbers():
    """Ranges of the published code at 16 x 13 pixels: shifts of 2 and 2, boxes of 8 and 7 pixels."""
    n, shape = 20_000, (3, 16, 13)
    at = dict(zip(NAMES, drawn(ALL, n, shape, single=False).table.T, strict=True))
    assert chi_square(at["down"], np.arange(-2, 3)) > 1e-3
    assert chi_square(at["across"], np.arange(-2, 3)) > 1e-3
    assert chi_square(at["flip"], np.arange(2)) > 1e-3
    assert stats.chi2_contingency(np.histogram2d(at["down"], at["across"], (5, 5))[0]).pvalue > 1e-3
    # An even box has its middle at 0 ... 16, an odd one at 0 ... 12; edges cut it off.
    for offsets, size, side, begin, end in ((17, 16, 8, "top", "bottom"), (13, 13, 7, "left", "right")):
        boxes = [(max(o - side // 2, 0), min(o - side // 2 + side, size)) for o in range(offsets)]
        codes = [begin * 100 + end for begin, end in boxes]
        assert len(set(codes)) == offsets
        assert chi_square(at[begin] * 100 + at[end], np.sort(codes)) > 1e-3


def test_distribution_of_factors():
    n = 20_000
    at = dict(zip(NAMES, drawn(ALL, n, (3, 8, 8), single=False).table.T, strict=True))
    at["angle"] = np.rad2deg(np.arctan2(at["sine"], at["cosine"]))
    np.testing.assert_allclose(at["cosine"] ** 2 + at["sine"] ** 2, 1, rtol=1e-15)
    ranges = {
        "brightness": (-0.5, 0.5),
        "saturation": (0, 2),
        "contrast": (0.5, 1.5),
        "scale_x": (1 / 1.2, 1.2),
        "scale_y": (1 / 1.2, 1.2),
        "angle": (-15, 15),
    }
    for name, (low, high) in ranges.items():
        assert stats.kstest(at[name], "uniform", (low, high - low)).pvalue > 1e-3, name
    correlations = np.corrcoef([at[name] for name in ranges])[np.triu_indices(len(ranges), 1)]
    assert np.abs(correlations).max() < 4 / math.sqrt(n)


def test_operations_of_groups_are_equally_likely():
    augmentation = drawn("color_crop_scale_rotate", 4_000, (3, 32, 32))
    assert augmentation.operations == OPERATIONS
    counts = [len(augmentation.used.get(name, ())) for name in ("color", "scale", "rotate")]
    crops = 4_000 - sum(counts)  # a shift by nothing changes no image
    assert stats.chisquare([*counts, crops]).pvalue > 1e-3
    assert sum(map(len, augmentation.used.values())) <= 4_000


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"strategy": "color_blur"}, "unknown augmentation 'blur'"),
        ({"strategy": "flip_flip"}, "'flip' twice"),
        ({"strategy": 3}, "must be names joined"),
        ({"groups": [-1, 0]}, "numbered from 0, got -1"),
        ({"groups": [0.5, 1.0]}, "must be integers"),
        ({"groups": [[0, 1]]}, "one for each image"),
        ({"image_shape": 784}, r"images of shape \(c, h, w\), got \(784,\)"),
        ({"image_shape": (784,)}, r"images of shape \(c, h, w\)"),
        ({"image_shape": (3, 0, 4)}, r"images of shape \(c, h, w\)"),
        ({"seed": -1}, "`seed` must be an integer"),
    ],
)
def test_bad_draws(changes, match):
    arguments = {"strategy": ALL, "groups": [0, 1], "image_shape": (3, 4, 4), "seed": 0, "stream": "s"}
    with pytest.raises(ValueError, match=match):
        draw_augmentation(**(arguments | changes))


def test_bad_images():
    augmentation = drawn(ALL, 2, (3, 4, 4))
    with pytest.raises(ValueError, match=r"must have shape \(2, 3, 4, 4\)"):
        augment_images(torch.zeros(2, 3, 4, 5), augmentation)
    with pytest.raises(ValueError, match="drawn by draw_augmentation"):
        augment_images(torch.zeros(2, 3, 4, 4), {"flip": True})
    with pytest.raises(ValueError, match=r"augmentation.to\(X.device\)"):
        augment_images(torch.zeros(2, 3, 4, 4, device="meta"), augmentation)
    with pytest.raises(ValueError, match="`table` must be float64"):
        Augmentation(np.zeros((2, 3)), OPERATIONS, (3, 4, 4))
    with pytest.raises(ValueError, match="a slice or by an array"):
        augmentation[0]
    with pytest.raises(ValueError, match="no augmentation to put together"):
        Augmentation.cat([])
    with pytest.raises(ValueError, match="different kinds"):
        Augmentation.cat([augmentation, drawn(ALL, 2, (3, 4, 5))])
