"""NumPy archives: x_train, y_train and, where there is a test split, x_test, y_test."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from .base import Data, make_data, sha256_file


def read_npz(path: Path) -> Data:
    """Read an ``.npz`` file; nothing in it is ever unpickled.

    Arrays ``x_train`` and ``y_train`` are required, ``x_test`` and ``y_test`` go together, and
    ``class_names`` (strings) is optional. Other arrays are left unread.

    Raises
    ------
    ValueError
        If the file is damaged, an array is missing or holds Python objects, or the arrays do not fit.
    """
    with path.open("rb") as stream:
        # np.load takes what is no zip archive for a pickle, and says so; here it is a damaged file.
        if not zipfile.is_zipfile(stream):
            raise ValueError(f"{path} is not a readable .npz file: it may be truncated")
        stream.seek(0)
        with np.load(stream, allow_pickle=False) as archive:
            wanted = _wanted(set(archive.files), path)
            arrays = {key: _array(archive, key, path) for key in wanted}
    names = arrays.get("class_names")
    return make_data(
        path.stem,
        (arrays["x_train"], arrays["y_train"]),
        (arrays["x_test"], arrays["y_test"]) if "x_test" in arrays else None,
        class_names=None if names is None else [str(name) for name in names.ravel()],
        checksums={path.name: sha256_file(path)},
    )


def _wanted(found: set[str], path: Path) -> set[str]:
    """Return the names to read, or say which are missing."""
    required = {"x_train", "y_train"} | ({"x_test", "y_test"} if found & {"x_test", "y_test"} else set())
    if missing := sorted(required - found):
        raise ValueError(
            f"{path} lacks {', '.join(missing)}; it holds {', '.join(sorted(found)) or 'nothing'}. Needed:"
            " x_train, y_train and, for a test split, x_test and y_test"
        )
    return required | (found & {"class_names"})


def _array(archive: np.lib.npyio.NpzFile, key: str, path: Path) -> np.ndarray:
    try:
        return archive[key]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):
            raise ValueError(
                f"{key!r} in {path} holds Python objects, refused because loading them can run code:"
                " save it again as a numeric array"
            ) from None
        raise ValueError(f"{key!r} in {path} cannot be read ({error}): the file is damaged") from error
