"""Flips and shifts: what they do, how often, and that a row's change is its own."""

import numpy as np
import pytest
import torch

from kernel_distill.solver.learners.augment import SHIFT, augment

INDEX = torch.arange(2000)
BOTH = ("flip", "shift")


def images(b=2000, c=2, h=9, w=11, dtype=torch.float32):
    """Images of which no value is like another, and none is zero."""
    return (1 + torch.arange(b * c * h * w)).reshape(b, c, h, w).to(dtype)


def moved(image, down, across, flip):
    """The definition, by NumPy: mirror, then move, with zeros moving in."""
    image = image[:, :, ::-1] if flip else image
    h, w = image.shape[1:]
    padded = np.pad(image, ((0, 0), (h, h), (w, w)))
    return padded[:, h - down : 2 * h - down, w - across : 2 * w - across]


def moves_of(X, found, shift):
    """By how much every image was moved, among all that could be; each must be one of them."""
    known = []
    for before, after in zip(X.numpy(), found.numpy(), strict=True):
        fits = [
            (down, across, flip)
            for down in range(-shift, shift + 1)
            for across in range(-shift, shift + 1)
            for flip in (False, True)
            if np.array_equal(moved(before, down, across, flip), after)
        ]
        assert len(fits) == 1
        known.append(fits[0])
    return known


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("h", "w"), [(9, 11), (5, 2), (3, 3)])
def test_every_image_is_mirrored_or_moved_as_defined(h, w, dtype):
    shift = 2 if w > 2 else 1
    X = images(40, h=h, w=w, dtype=dtype)
    found = augment(X, INDEX[:40], BOTH, seed=3, step=1, shift=shift)
    assert found.dtype == dtype
    assert len(set(moves_of(X, found, shift))) > 10


def test_half_of_the_images_are_mirrored():
    X = images(h=3, w=4)
    found = augment(X, INDEX, ("flip",), seed=0, step=0)
    mirrored = (found == X.flip(3)).flatten(1).all(dim=1)
    assert torch.equal(found[~mirrored], X[~mirrored])
    assert abs(float(mirrored.double().mean()) - 0.5) < 6 * 0.5 / 2000**0.5


def test_all_shifts_are_equally_likely():
    X = images(c=1, h=10, w=10)
    found = augment(X, INDEX, ("shift",), seed=0, step=0)
    # The pixel in the middle tells where it came from.
    source = (found[:, 0, 5, 5] - X[:, 0, 0, 0]).long().numpy()
    moves = np.stack([source // 10 - 5, source % 10 - 5], axis=1)
    p = 1 / (2 * SHIFT + 1)
    for axis in range(2):
        counts = np.bincount(moves[:, axis] + SHIFT, minlength=2 * SHIFT + 1)
        assert np.abs(counts / 2000 - p).max() < 5 * (p * (1 - p) / 2000) ** 0.5
    assert abs(np.corrcoef(moves.T)[0, 1]) < 5 / 2000**0.5


@pytest.mark.parametrize("augmentations", [("flip",), ("shift",), BOTH])
def test_a_change_is_that_of_the_row_whatever_the_pieces(augmentations):
    X = images(50)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    whole = augment(X, 7 * INDEX[:50], augmentations, seed=5, step=9)
    for size in (1, 3, 50):
        pieces = [
            augment(X[part], 7 * INDEX[part], augmentations, seed=5, step=9) for part in order.split(size)
        ]
        assert torch.equal(torch.cat(pieces), whole[order])


@pytest.mark.parametrize("augmentations", [("flip",), ("shift",)])
def test_changes_are_keyed_by_seed_and_step_and_kind(augmentations):
    X = images(60)

    def run(seed, step):
        return augment(X, INDEX[:60], augmentations, seed=seed, step=step)

    assert torch.equal(run(0, 0), run(0, 0))
    assert not torch.equal(run(0, 0), run(1, 0))
    assert not torch.equal(run(0, 0), run(0, 1))


def test_the_order_of_names_does_not_matter_and_no_names_change_nothing():
    X = images(20)
    one, other = (augment(X, INDEX[:20], names, seed=0, step=0) for names in (BOTH, BOTH[::-1]))
    assert torch.equal(one, other)
    assert augment(X, INDEX[:20], (), seed=0, step=0) is X
    rows = torch.ones(3, 5)
    assert augment(rows, INDEX[:3], (), seed=0, step=0) is rows
    assert augment(X[:0], INDEX[:0], BOTH, seed=0, step=0).shape == X[:0].shape


def test_a_shift_of_zero_and_one_beyond_the_image():
    X = images(30, h=3, w=3)
    assert torch.equal(augment(X, INDEX[:30], ("shift",), seed=0, step=0, shift=0), X)
    gone = augment(X, INDEX[:30], ("shift",), seed=0, step=0, shift=50)
    assert (gone.flatten(1).abs().sum(dim=1) == 0).sum() > 20


def test_bad_inputs_are_refused():
    with pytest.raises(ValueError, match="unknown augmentation 'flips'; did you mean 'flip'"):
        augment(images(2), INDEX[:2], ("flips",), seed=0, step=0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"needs images \(c, h, w\), got rows of shape \(12,\)"):
        augment(torch.ones(3, 12), INDEX[:3], ("flip",), seed=0, step=0)
