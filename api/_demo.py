"""The demonstration: scikit-learn's digits, distilled in closed form for the three classic feature maps."""

import dataclasses
import os
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ._distill import distill
from ._tables import percent
from .gallery import image_grid, png_bytes, save_grid
from .solver.data import Data, load_data
from .solver.distilled_set import DistilledSet
from .solver.store import write_bytes

MAPS = ("identity", "fcnn", "fourier")
# One point a class near noise, the published setting; ten near real images, where there is room to stay
# near them and still be exact.
SETTINGS = ((1, "noise"), (10, "data"))
COLUMNS = (
    "map", "points", "near", "full data", "distilled", "bytes", "weight error", "stored error", "seconds",
)  # fmt: skip
_EDGE, _TITLE, _TEXT = 16, 17, 12


@dataclasses.dataclass(frozen=True)
class Result:
    """One distilled set of the demonstration."""

    feature_map: str
    per_class: int
    near: str
    ds: DistilledSet
    full_accuracy: float
    accuracy: float
    seconds: float

    def cells(self) -> tuple[str | int | float | None, ...]:
        """Row of the table with `COLUMNS`."""
        ds, c = self.ds, self.ds.certificate
        scores = percent(self.full_accuracy), percent(self.accuracy)
        seconds = round(self.seconds, 2)
        return (
            self.feature_map,
            len(ds),
            self.near,
            *scores,
            ds.nbytes,
            c.weight_error,
            c.stored_error,
            seconds,
        )


def run_demo(folder: str | os.PathLike[str]) -> Iterator[Result]:
    """Distil, write the files of each set, and at last the pictures; yields results as they come.

    Parameters
    ----------
    folder : path
        Made if it is not there. Files of an earlier demonstration are replaced, others left alone.
    """
    out = Path(folder)
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file: choose another name for the folder")
    out.mkdir(parents=True, exist_ok=True)
    data = load_data("digits")
    assert data.x_test is not None
    results = []
    for name in MAPS:
        for per_class, near in SETTINGS:
            started = time.perf_counter()
            ds = distill(data, feature_map=name, per_class=per_class, near=near, progress=False)
            seconds = time.perf_counter() - started
            assert ds.full_model is not None
            full, mine = (model.score(data.x_test, data.y_test) for model in (ds.full_model, ds))
            results.append(Result(name, per_class, near, ds, full, mine, seconds))
            ds.save(out / f"digits_{name}_{per_class}.safetensors", force=True)
            yield results[-1]
        save_grid(results[-1].ds, out / f"digits_{name}.png", force=True)
    write_bytes(out / "digits.png", png_bytes(poster(results, data)), force=True)


def poster(results: list[Result], data: Data) -> Image.Image:
    """Draw one row of images for each set, under headings that say what it is worth."""
    title, text = (ImageFont.load_default(size=size) for size in (_TITLE, _TEXT))
    pieces: list[tuple[str | Image.Image, ImageFont.FreeTypeFont | ImageFont.ImageFont, int]] = []
    for index, result in enumerate(results):
        if index == 0 or results[index - 1].feature_map != result.feature_map:
            accuracy = percent(result.full_accuracy)
            heading = (
                f"{result.feature_map}: {len(data.x_train)} images of digits give {accuracy} on the test set"
            )
            pieces.append((heading, title, 20 if index else 0))
        error = f"weights differ by {result.ds.certificate.stored_error:.0e}"
        which = "" if result.per_class == 1 else f" (1 of {result.per_class} a class is shown)"
        near = "noise" if result.near == "noise" else "real digits"
        line = f"{len(result.ds)} points near {near}{which}: {percent(result.accuracy)}, {error}"
        pieces += [(line, text, 4), (image_grid(_first_of_each_class(result.ds), captions=False), text, 0)]
    sizes = [
        piece.height if isinstance(piece, Image.Image) else int(2 * font.getbbox("x")[3])
        for piece, font, _ in pieces
    ]
    width = max(piece.width for piece, _, _ in pieces if isinstance(piece, Image.Image)) + 2 * _EDGE
    height = sum(sizes) + sum(space for *_, space in pieces) + 2 * _EDGE
    picture = Image.new("L", (width, height), 255)
    draw = ImageDraw.Draw(picture)
    y = _EDGE
    for (piece, font, space), size in zip(pieces, sizes, strict=True):
        y += space
        if isinstance(piece, Image.Image):
            picture.paste(piece, (_EDGE, y))
        else:
            draw.text((_EDGE + 6, y + size / 2), piece, fill=30, font=font, anchor="lm")
        y += size
    return picture


def _first_of_each_class(ds: DistilledSet) -> DistilledSet:
    """Keep one point of each class, to look at."""
    assert ds.labels is not None
    labels = ds.labels.tolist()
    first = [labels.index(label) for label in sorted(set(labels))]
    return dataclasses.replace(ds, x=ds.x[first], y=ds.y[first], labels=ds.labels[first])
