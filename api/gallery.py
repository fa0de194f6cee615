"""Distilled points as pictures: one row a point index, one column a class.

Distilled values are not brightnesses. They may be negative or lie far outside the range of the data, and two
images of one set may differ in scale; so each image is stretched to its own range, and the range is written
under it. ``stretch=False`` clips to one range for all instead.
"""

import dataclasses
import io
import math
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .solver.distilled_set import DistilledSet
from .solver.store import write_bytes

# Side in pixels from which small images can be made out, and width from which pictures become unwieldy.
_LEGIBLE = 64
_WIDEST = 6000
_GAP = 6
_TEXT = 11
_WHITE, _INK, _FAINT = 255, 40, 120


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Points as 8-bit images.

    Attributes
    ----------
    values : ndarray of uint8, shape (m, h, w) or (m, h, w, 3)
    low, high : ndarray of float64, shape (m,)
        Raw values that became 0 and 255.
    """

    values: np.ndarray
    low: np.ndarray
    high: np.ndarray


def to_pixels(
    ds: DistilledSet, *, stretch: bool = True, data_range: tuple[float, float] | None = None
) -> Pixels:
    """Map raw values to 0 .. 255.

    Parameters
    ----------
    ds : DistilledSet
        Of images with one or three channels. Points that are kept after the transform are shown before it.
    stretch : bool, default True
        Each image to its own range (over all channels, so that colours stay true to each other).
    data_range : tuple of float, optional
        With ``stretch=False``: values that become black and white; what lies outside is clipped. Default
        0 .. 255 for sets stored as uint8; the range of other data is not in the set, and must be given.

    Raises
    ------
    ValueError
        If the points are not images, or the range is missing or empty.
    """
    x = _images(ds)
    if stretch:
        if data_range is not None:
            raise ValueError("`data_range` clips, which needs stretch=False")
        low, high = x.min(axis=(1, 2, 3)), x.max(axis=(1, 2, 3))
    else:
        if data_range is None:
            if str(ds.x.dtype) != "torch.uint8":
                raise ValueError(
                    "stretch=False needs data_range=(low, high): only sets stored as uint8 know theirs,"
                    f" this one is {str(ds.x.dtype).removeprefix('torch.')}"
                )
            data_range = (0.0, 255.0)
        if not (math.isfinite(data_range[0]) and data_range[0] < data_range[1] < math.inf):
            raise ValueError(f"`data_range` must be finite and increasing, got {data_range}")
        low, high = (np.full(len(x), float(end)) for end in data_range)
    spread = np.where(high > low, high - low, 1.0)[:, None, None, None]
    share = (x - low[:, None, None, None]) / spread
    # A constant image has no range of its own: middle grey.
    share[high <= low] = 0.5
    values = np.rint(255 * share.clip(0, 1)).astype(np.uint8)
    values = values[:, 0] if values.shape[1] == 1 else values.transpose(0, 2, 3, 1)
    return Pixels(values, low, high)


def image_grid(
    ds: DistilledSet,
    columns: int | None = None,
    scale: int | None = None,
    *,
    stretch: bool = True,
    data_range: tuple[float, float] | None = None,
    captions: bool = True,
) -> Image.Image:
    """Draw all points of a set.

    Parameters
    ----------
    ds : DistilledSet
    columns : int, optional
        Images in a row. By default one column a class (ten columns where there are no classes).
    scale : int, optional
        Pixels a side for each pixel of a point, nearest neighbour; by default small images become legible.
    stretch, data_range
        As in `to_pixels`.
    captions : bool, default True
        Class names, and the range of values below each image.

    Returns
    -------
    PIL.Image.Image
        Grey ("L") or "RGB". Without captions it is ``columns * (w * scale + 6) + 6`` wide, and as high in
        proportion.
    """
    for name, value in (("columns", columns), ("scale", scale)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"`{name}` must be an integer of at least 1, got {value!r}")
    pixels = to_pixels(ds, stretch=stretch, data_range=data_range)
    tiles = pixels.values
    names = class_names(ds)
    cells, headings = _cells(ds, columns, names)
    n_columns, n_rows = (1 + max(cell[axis] for cell in cells) for axis in (0, 1))
    n_columns = max(n_columns, columns or 0)
    h, w = tiles.shape[1:3]
    if scale is None:
        scale = max(1, min(-(-_LEGIBLE // max(h, w)), _WIDEST // (n_columns * w)))
    font = ImageFont.load_default(size=_TEXT)
    notes = [f"{_short(low)} .. {_short(high)}" for low, high in zip(pixels.low, pixels.high, strict=True)]
    if not headings and ds.labels is not None:
        notes = [f"{name}: {note}" for name, note in zip(names, notes, strict=True)]
    line = _TEXT + 5
    # A range that does not fit below its image says less than none.
    labelled = captions and stretch and all(font.getlength(note) <= w * scale for note in notes)
    step_x, step_y = w * scale + _GAP, h * scale + _GAP + labelled * line
    top = _GAP + line * bool(captions and headings)
    foot = _foot(pixels, stretch) if captions else ""
    width = max(n_columns * step_x + _GAP, math.ceil(font.getlength(foot)) + 2 * _GAP if foot else 0)
    height = top + n_rows * step_y + (line + 2 if foot else 0)
    colour = tiles.ndim == 4
    picture = Image.new("RGB" if colour else "L", (width, height), (_WHITE,) * 3 if colour else _WHITE)
    draw = ImageDraw.Draw(picture)

    def write(x: float, y: float, text: str, ink: int, anchor: str) -> None:
        draw.text((x, y), text, fill=(ink,) * 3 if colour else ink, font=font, anchor=anchor)

    for heading, column in zip(headings if captions else (), range(n_columns), strict=False):
        write(_GAP + column * step_x + w * scale / 2, _GAP, _cut(heading, font, w * scale), _INK, "mt")
    for tile, note, (column, row) in zip(tiles, notes, cells, strict=True):
        corner = _GAP + column * step_x, top + row * step_y
        picture.paste(Image.fromarray(tile).resize((w * scale, h * scale), Image.Resampling.NEAREST), corner)
        if labelled:
            write(corner[0] + w * scale / 2, corner[1] + h * scale + 4, note, _FAINT, "mt")
    if foot:
        write(_GAP, height - _GAP, foot, _FAINT, "ls")
    return picture


def save_grid(
    ds: DistilledSet,
    path: str | os.PathLike[str],
    columns: int | None = None,
    scale: int | None = None,
    *,
    stretch: bool = True,
    data_range: tuple[float, float] | None = None,
    captions: bool = True,
    force: bool = False,
) -> None:
    """Write `image_grid` as a PNG file, whole or not at all; an existing path is refused unless `force`."""
    picture = image_grid(ds, columns, scale, stretch=stretch, data_range=data_range, captions=captions)
    write_bytes(path, png_bytes(picture), force=force)


def png_bytes(picture: Image.Image) -> bytes:
    """Encode a picture as PNG."""
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def class_names(ds: DistilledSet) -> list[str]:
    """Name the class of each point; empty names for regression."""
    if ds.labels is None:
        return [""] * len(ds)
    known: Sequence[int | str] = ds.class_names or ds.targets.classes or ()
    return [str(known[index]) for index in ds.labels.tolist()]


def _images(ds: DistilledSet) -> np.ndarray:
    """Raw points (m, c, h, w), float64."""
    if ds.space == "features":
        raise ValueError(
            f"this set lives in feature space: its points are vectors of {ds.x.shape[1]} features,"
            " not images; distil with a feature map that has a preimage (identity, fcnn, fourier), or with"
            " method='full-kip'"
        )
    found = tuple(ds.x.shape[1:])
    if len(found) != 3 or found[0] not in (1, 3):
        raise ValueError(
            f"points of shape {found} are not images: expected (1, h, w) or (3, h, w); distil from images"
            " (n, c, h, w) rather than flattened rows"
        )
    return (ds.encoder.transform.inverse(ds.x) if ds.space == "transformed" else ds.x.double()).numpy()


def _cells(
    ds: DistilledSet, columns: int | None, names: Sequence[str]
) -> tuple[list[tuple[int, int]], list[str]]:
    """(column, row) of each point, and column headings: by class, or just in order."""
    if columns is not None or ds.labels is None:
        columns = columns or min(10, len(ds))
        return [(index % columns, index // columns) for index in range(len(ds))], []
    present: dict[int, str] = dict(sorted(zip(ds.labels.tolist(), names, strict=True)))
    place = {label: column for column, label in enumerate(present)}
    filled = [0] * len(place)
    cells = []
    for label in ds.labels.tolist():
        cells.append((place[label], filled[place[label]]))
        filled[place[label]] += 1
    return cells, list(present.values())


def _short(value: float) -> str:
    """Write a value in at most about five characters."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}" if abs(value) < 1e5 else f"{value:.0e}"


def _foot(pixels: Pixels, stretch: bool) -> str:
    low, high = f"{pixels.low.min():.4g}", f"{pixels.high.max():.4g}"
    if stretch:
        return f"each image is stretched to its own range; all values lie in {low} .. {high}"
    return f"black is {low} or less, white {high} or more"


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Shorten a heading to fit above its column."""
    while len(text) > 1 and font.getlength(text) > width + _GAP:
        text = text[:-1]
    return text
