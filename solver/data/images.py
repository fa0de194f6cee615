"""Arrays and image files to one layout: images (n, c, h, w), vectors (n, d)."""

import io
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

# Names in the Hugging Face layout, in order of preference.
TEST_SPLITS = ("test", "validation", "valid", "val")
IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "fine_label", "labels")

# How each Pillow mode is read. Modes that are not here hold more than 8 bits a channel.
_MODES = {
    **dict.fromkeys(("1", "L", "LA"), "L"),
    **dict.fromkeys(("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr", "HSV", "LAB"), "RGB"),
}


def as_rows(x: np.ndarray, name: str = "x") -> np.ndarray:
    """Bring an array of rows to the layout of the library.

    Parameters
    ----------
    x : ndarray
        (n, d) vectors are kept. (n, h, w) gains a channel axis. (n, h, w, c) is transposed where the last
        axis is 1, 3 or 4 long and the second is not; other (n, c, h, w) are kept.
    name : str
        For messages.

    Returns
    -------
    ndarray, shape (n, d) or (n, c, h, w), C-contiguous
        Of the dtype of `x`, except that booleans become uint8, half precision float32, and unsigned
        integers that torch cannot compute with the next larger type.

    Raises
    ------
    ValueError
        If the array is empty, not numeric, not finite, or of another number of axes.
    """
    x = np.asarray(x)
    if x.dtype.kind not in "buif":
        raise ValueError(f"`{name}` must be numeric, got dtype {x.dtype}")
    if x.ndim not in (2, 3, 4):
        raise ValueError(
            f"`{name}` must be vectors (n, d) or images (n, h, w), (n, c, h, w) or (n, h, w, c), got shape"
            f" {x.shape}: reshape it"
        )
    if x.size == 0:
        raise ValueError(f"`{name}` is empty: its shape is {x.shape}")
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[3] in (1, 3, 4) and x.shape[1] not in (1, 3, 4):
        x = x.transpose(0, 3, 1, 2)
    widened = {
        "bool": "uint8",
        "float16": "float32",
        "uint16": "int32",
        "uint32": "int64",
        "uint64": "float64",
    }
    dtype = np.dtype(widened.get(x.dtype.name, x.dtype)).newbyteorder("=")
    x = np.ascontiguousarray(x, dtype)
    # One sum in the usual case; only a sum that is not finite is looked at row by row.
    if dtype.kind == "f" and not np.isfinite(x.sum(dtype=np.float64)):
        bad = np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(axis=1))
        if len(bad):
            raise ValueError(
                f"`{name}` holds NaN or infinity in {len(bad)} row(s), the first is row {bad[0]}: remove"
                " or impute those rows"
            )
    return x


class ImageStack:
    """Collects decoded images into one uint8 array (n, c, h, w) that is allocated once.

    Parameters
    ----------
    n : int
        Number of images to come.
    size : tuple of int, optional
        Resize every image to (h, w), bilinear. Without it all images must have one size.

    Notes
    -----
    The array has one channel until the first colour image, then three: grey images become equal channels.
    Palettes, transparency and CMYK are converted to RGB; transparency is dropped.

    Decoding is serial on purpose: threads were measured slower (the decoder's Python side holds the
    interpreter), and processes would need an import guard in every user's script.
    """

    def __init__(self, n: int, size: tuple[int, int] | None = None) -> None:
        self.n, self.size = n, size
        self.count = 0
        self.first = ""
        self.array: np.ndarray | None = None

    def add(self, source: "bytes | Image", where: str) -> None:
        """Decode one image, given as the bytes of its file or as a Pillow image; errors call it `where`."""
        pixels = _pixels(source, where, self.size)
        height, width = pixels.shape[1:]
        if self.array is None:
            self.array = np.empty((self.n, *pixels.shape), np.uint8)
            self.first = where
        if (height, width) != self.array.shape[2:]:
            raise ValueError(
                f"images differ in size: {where} is {height}x{width}, {self.first} is"
                f" {self.array.shape[2]}x{self.array.shape[3]} (height x width). Pass size=(height, width) to"
                " resize all of them"
            )
        if len(pixels) > self.array.shape[1]:
            self.array = np.repeat(self.array, len(pixels), axis=1)
        self.array[self.count] = pixels
        self.count += 1

    def finish(self) -> np.ndarray:
        """Return the array; all images must have come."""
        if self.array is None or self.count != self.n:
            raise ValueError(f"expected {self.n} images, got {self.count}")
        return self.array


def same_channels(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Make a grey split colour where the other split is in colour."""
    channels = max(train.shape[1], test.shape[1])
    return (
        train if train.shape[1] == channels else np.repeat(train, channels, axis=1),
        test if test.shape[1] == channels else np.repeat(test, channels, axis=1),
    )


def check_size(size: Any) -> tuple[int, int] | None:
    """Return `size` as (height, width), or None."""
    if size is None:
        return None
    try:
        height, width = (int(value) for value in size)
    except (TypeError, ValueError):
        height = width = 0
    if height < 1 or width < 1:
        raise ValueError(f"`size` must be (height, width) in pixels, got {size!r}")
    return height, width


def _pixels(source: "bytes | Image", where: str, size: tuple[int, int] | None) -> np.ndarray:
    """Decode to uint8 (1 or 3, h, w)."""
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(source)) if isinstance(source, bytes) else source
        mode = _MODES.get(image.mode)
        if mode is not None:
            # Straight from a palette with transparency to RGB, Pillow warns.
            image = image.convert("RGBA") if image.mode in ("P", "PA") else image
            image = image if image.mode == mode else image.convert(mode)
            if size is not None:
                image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
    except (OSError, SyntaxError, EOFError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise ValueError(f"{where} cannot be decoded ({error}): it is damaged, or not an image") from error
    if mode is None:
        raise ValueError(
            f"{where} has mode {image.mode!r}, more than 8 bits a channel, which would be clipped: convert it"
            " to 8 bits, or store the arrays in an .npz file"
        )
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
