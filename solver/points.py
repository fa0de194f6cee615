r"""From features back to points that are bounded, in the units of the data, and stored in few bytes.

The closed form leaves freedom that keeps exactness, because labels are solved for the points as they are
stored: a common scale c (labels follow), the branch of a preimage nearest to the reference, and the choice
among exact sets. It is used here in this order:

1. features are scaled into the bound of the map (Fourier features: |φ_j| ≤ √(2/p); without the matching
   change of labels the published code recovers W in direction only);
2. the preimage nearest to the reference points is taken;
3. where φ(c x) = c φ(x), points larger than the reference are scaled down to it;
4. with ``bounds="data"``, exact sets and the box of the data's values are projected on in turn, so that
   values leave the data's range as little as possible (for a homogeneous map they do not leave it at all);
5. points are cast to the storage type; narrow integers are clipped to their range.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ._check import check_name
from .encoder import Encoder

STORAGE = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "uint8": torch.uint8,
}
BOUNDS = ("free", "data")
_BOUND_SHARE = 0.98
_PROJECTIONS = 30


def points_from_features(
    F: Tensor,
    encoder: Encoder,
    reference: Tensor | None,
    data_range: tuple[float, float],
    *,
    exact: Callable[[Tensor], Tensor],
    lost: Callable[[Tensor], float],
    bounds: str = "free",
    storage: str = "float64",
) -> tuple[Tensor, tuple[str, ...]]:
    """Points in raw units whose features span what `F` spans.

    Parameters
    ----------
    F : Tensor, shape (m, p)
        Features of an exact set.
    encoder : Encoder
        Its map has preimages.
    reference : Tensor, shape (m, *input_shape), or None
        Transformed points to stay near.
    data_range : tuple of float
        Smallest and largest raw value of the training data.
    exact : callable
        Maps any features (m, p) to those of an exact set near them.
    lost : callable
        Share of the model outside the span of features (m, p): zero is exact.
    bounds : {"free", "data"}
    storage : {"float64", "float32", "float16", "uint8"}

    Returns
    -------
    x : Tensor, shape (m, *input_shape)
        As it will be stored.
    notes : tuple of str
        What was scaled or clipped.

    Notes
    -----
    One preimage ("free"), or 30 preimages and projections ("data").
    """
    check_name(bounds, BOUNDS, "bounds")
    notes: list[str] = []
    if bounds == "data" or storage == "uint8":
        z = _towards_box(F, encoder, reference, data_range, exact, lost)
    else:
        z, scale = _preimage(F, encoder, reference)
        if scale < 1:
            notes.append(f"features were scaled by {scale:.3g} into the bound of the map; labels follow")
    if encoder.feature_map.homogeneous:
        shrink = (
            _shrink_to_box(z, encoder, data_range)
            if bounds == "data" or storage == "uint8"
            else (_shrink_to_reference(z, reference))
        )
        if shrink < 1:
            z = z * shrink
            notes.append(f"points were scaled by {shrink:.3g} into the range of the data; labels follow")
    x = encoder.transform.inverse(z) if encoder.transform.bijective else z
    return cast_points(x, storage, notes), tuple(notes)


def cast_features(F: Tensor, storage: str) -> Tensor:
    """Features as they are stored in a set that lives in feature space."""
    if storage == "uint8":
        raise ValueError("features cannot be stored as uint8: use float64, float32 or float16")
    return cast_points(F, storage)


def scale_into_bound(F: Tensor, bound: float | None) -> float:
    """Factor that brings features into the bound of a map; 1 where they are inside already.

    Scaled ones are kept off the edge itself, where an arccos loses half its digits.
    """
    largest = float(F.abs().max())
    return 1.0 if bound is None or largest <= bound else _BOUND_SHARE * bound / largest


def _preimage(F: Tensor, encoder: Encoder, reference: Tensor | None) -> tuple[Tensor, float]:
    """Preimage of the features, scaled into the bound of the map where they leave it."""
    scale = scale_into_bound(F, encoder.feature_map.feature_bound)
    return encoder.feature_map.preimage(F * scale, near=reference), scale


def _towards_box(
    F: Tensor,
    encoder: Encoder,
    reference: Tensor | None,
    data_range: tuple[float, float],
    exact: Callable[[Tensor], Tensor],
    lost: Callable[[Tensor], float],
) -> Tensor:
    """Alternate between the box of raw values and the exact sets; keep the exact set that leaves it least.

    A set whose preimage came out too badly conditioned to be exact in floating point is passed over.
    """
    transform, low, high = encoder.transform, *data_range
    best: tuple[float, Tensor] | None = None
    z, _ = _preimage(F, encoder, reference)
    limit = 10 * max(lost(encoder.feature_map.features(z)), 1e-14)
    for _ in range(_PROJECTIONS):
        raw = transform.inverse(z)
        clipped = raw.clamp(low, high)
        excess = float((raw - clipped).norm())
        if best is None or (excess < best[0] and lost(encoder.feature_map.features(z)) <= limit):
            best = (excess, z)
        if excess == 0:
            break
        near = transform.forward(clipped)
        z, _ = _preimage(exact(encoder.feature_map.features(near)), encoder, near)
    assert best is not None
    return best[1]


def _shrink_to_reference(z: Tensor, reference: Tensor | None) -> float:
    largest = float(z.abs().max())
    return 1.0 if reference is None or largest == 0 else min(1.0, float(reference.abs().max()) / largest)


def _shrink_to_box(z: Tensor, encoder: Encoder, data_range: tuple[float, float]) -> float:
    """Largest c ≤ 1 for which all of c z lies in the box of raw values (transforms here are affine)."""
    origin = encoder.transform.inverse(torch.zeros_like(z[:1]))
    move = encoder.transform.inverse(z) - origin
    low, high = data_range
    room = torch.where(move > 0, high - origin, origin - low).clamp_min(0)
    ratio = torch.where(move == 0, torch.inf, room / move.abs().clamp_min(torch.finfo(move.dtype).tiny))
    least = float(ratio.min())
    return min(1.0, least) if least > 0 else 1.0


def cast_points(x: Tensor, storage: str, notes: list[str] | None = None) -> Tensor:
    """Points as they are stored; clipping is noted, overflow of float16 refused."""
    dtype = STORAGE[check_name(storage, STORAGE, "storage type")]
    if dtype == torch.uint8:
        clipped = float(((x < -0.5) | (x > 255.5)).double().mean())
        if clipped and notes is not None:
            notes.append(f"{clipped:.2%} of the values were clipped to 0..255")
        return x.round().clamp(0, 255).to(torch.uint8)
    largest, limit = float(x.abs().max()), torch.finfo(dtype).max
    if largest > limit:
        wider = {"float16": "float32", "float32": "float64"}.get(storage, "rescaled data")
        raise ValueError(f"values reach {largest:.3g}, beyond {storage}: store {wider}, or set bounds='data'")
    return x.to(dtype)
