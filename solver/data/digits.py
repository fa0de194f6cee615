"""The handwritten digits that scikit-learn ships: data that are there on every machine."""

from typing import Any

from .base import Data, make_data, sha256


def read_digits() -> Data:
    """1797 grey 8x8 images, float64 in 0 .. 16 as published (UCI optdigits test set), not yet split."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    return make_data(
        "digits", (bunch.images, bunch.target), None, checksums={"digits": sha256(bunch.images, bunch.target)}
    )
