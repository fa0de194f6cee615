"""One call for every source of data: a name, an .npz file, parquet shards or an image folder."""

import os
import re
from pathlib import Path

from .._check import check_name
from .base import Data
from .digits import read_digits
from .folder import is_image_folder, read_folder
from .images import check_size
from .named import BARE_NAMES, find_named, read_named
from .npz import read_npz
from .parquet import find_shards, read_parquet
from .split import hold_out

_LAYOUTS = (
    "an .npz file with x_train and y_train, a folder of parquet shards train-*.parquet, or an image folder"
    " train/<class>/*.png"
)


def load_data(
    source: str | os.PathLike[str],
    *,
    test: float | None = None,
    seed: int = 0,
    root: str | os.PathLike[str] | None = None,
    size: tuple[int, int] | None = None,
) -> Data:
    """Load a labelled data set, raw.

    Parameters
    ----------
    source : str or path
        - ``"digits"``: the 8x8 digits that scikit-learn ships, values 0 .. 16;
        - a path to an ``.npz`` file with x_train, y_train and, if there is a test split, x_test, y_test;
        - a folder of parquet shards in the Hugging Face image layout (``train-*.parquet``, and
          ``test-*.parquet`` or else ``validation-*.parquet``);
        - an image folder ``train/<class>/*.png|jpg``, and ``test/<class>/`` or ``val/<class>/`` if any;
        - ``"torchvision:CIFAR10"``, or the bare name (case, ``-`` and ``_`` do not matter);
        - ``"hf:owner/name"``, through Hugging Face datasets.

        A name wins over a file of the same name: write ``./digits`` for the latter.
    test : float, optional
        Fraction of the training rows to hold out, stratified by class, where the source has no test split.
        By default there is then no test split (`Data.x_test` is None), except for digits: 0.2.
    seed : int, default 0
        Of that split. The same seed gives the same rows on every machine.
    root : path, optional
        Cache folder of named sources; by default ``~/.cache/kernel-distill`` for torchvision, and the
        library's own for Hugging Face.
    size : (int, int), optional
        Height and width to which image files are resized (bilinear). Without it, images of
        different sizes are an error.

    Returns
    -------
    Data
        Images (n, c, h, w), vectors (n, d), labels int64 (n,). Grey and colour images together become
        colour. Checksums are of the files read; of the arrays for digits and named sources; and for an
        image folder of a listing of each split.

    Raises
    ------
    FileNotFoundError
        If a path does not exist, or a named source is neither cached nor reachable.
    ImportError
        If the library that a source needs is not installed; the message names the extra.
    ValueError
        If the name is unknown, a file is damaged, or its content is not a consistent data set.

    Examples
    --------
    >>> from kernel_distill.solver.data import load_data
    >>> load_data("digits")
    Data('digits': 1438 training rows, 359 test, 1x8x8 float64, 10 classes)
    """
    size = check_size(size)
    named = find_named(source) if isinstance(source, str) else None
    if root is not None and named is None:
        raise ValueError(
            f"`root` is the cache of torchvision and hf sources, and {str(source)!r} is neither: leave it out"
        )
    if named is not None:
        data = read_named(*named, None if root is None else Path(root).expanduser(), size)
    elif source == "digits":
        _refuse_size(size, "digits")
        data, test = read_digits(), 0.2 if test is None else test
    else:
        data = _read_path(source, size)
    return data if test is None else hold_out(data, test, seed)


def _read_path(source: str | os.PathLike[str], size: tuple[int, int] | None) -> Data:
    path = Path(source).expanduser()
    if not path.exists():
        raise _not_found(source, path)
    if path.is_file():
        if path.suffix != ".npz":
            raise ValueError(f"cannot read {path}: a source is {_LAYOUTS}")
        _refuse_size(size, "an .npz file")
        return read_npz(path)
    if find_shards(path):
        return read_parquet(path, size)
    if is_image_folder(path):
        return read_folder(path, size)
    found = sorted(entry.name + "/" * entry.is_dir() for entry in path.iterdir())
    shown = ", ".join(found[:8]) + (", ..." if len(found) > 8 else "")
    raise ValueError(f"{path} holds {shown or 'nothing'}, which is no known layout: a source is {_LAYOUTS}")


def _not_found(source: str | os.PathLike[str], path: Path) -> Exception:
    """Say what a source that is no file was most likely meant to be."""
    if isinstance(source, str):
        prefix = re.match(r"(\w{2,}):(?!//)", source)
        if prefix:
            check_name(prefix[1], ("hf", "torchvision"), "library of named data sets")
        if re.fullmatch(r"[\w-]+", source):
            known = ["digits", *(name.lower() for name in BARE_NAMES)]
            check_name(source.lower(), known, "data set (and no such file or folder)")
    return FileNotFoundError(f"{path.absolute()} does not exist: expected {_LAYOUTS}")


def _refuse_size(size: tuple[int, int] | None, what: str) -> None:
    if size is not None:
        raise ValueError(f"`size` resizes image files, but {what} holds arrays: leave it out")
