"""Distilled sets in other formats: NumPy arrays, a folder of PNG images, one picture of everything."""

import io
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .gallery import class_names, save_grid, to_pixels
from .solver.distilled_set import DistilledSet
from .solver.store import write_bytes

_LABELS = "labels.npz"


def convert(source: str | os.PathLike[str], target: str | os.PathLike[str], *, force: bool = False) -> str:
    """Write the distilled set in the file `source` as `target`, and say in words what was written.

    Parameters
    ----------
    source : path
    target : path
        ``name.npz``: arrays x, y, labels, class_names, space; none of them needs pickle.
        ``name.png``: one picture, by class.
        A name without suffix: a folder ``<class>/<index>.png``, and ``labels.npz`` with what images lose
        (soft labels, and the values that black and white stand for).
    force : bool, default False
        Replace a file, or a folder that was written by this function.

    Raises
    ------
    FileExistsError
        If `target` exists and `force` is not set, or it is a folder that holds anything else.
    ValueError
        If the format is unknown, or images are asked of points that are not images.
    """
    path = Path(target)
    suffix = path.suffix.lower()
    if suffix not in (".npz", ".png", "") and not path.is_dir():
        raise ValueError(f"cannot write {suffix!r} files: end the name in .npz or .png, or give a folder")
    check_new(path, force, folder=suffix not in (".npz", ".png"))
    ds = DistilledSet.load(source)
    if suffix == ".npz":
        write_bytes(path, _npz(arrays(ds)), force=force)
        return f"{len(ds)} points"
    if suffix == ".png":
        save_grid(ds, path, force=force)
        return f"picture of {len(ds)} points"
    _write_folder(ds, path, force)
    return f"{len(ds)} images, 8 bits a value; {_LABELS} holds soft labels and the range of each image"


def arrays(ds: DistilledSet) -> dict[str, np.ndarray]:
    """Arrays of a set, by name: points, soft labels, nominal labels as the user has them, class names."""
    x, y = ds.numpy()
    found: dict[str, Any] = {"x": x, "y": y, "labels": ds.hard_labels, "space": ds.space}
    found["class_names"] = None if ds.class_names is None else np.array(ds.class_names, dtype=np.str_)
    return {name: np.asarray(value) for name, value in found.items() if value is not None}


def check_new(path: Path, force: bool, *, folder: bool = False) -> None:
    """Refuse a place that cannot be written to, before any work is done for it."""
    if folder and path.is_dir() and force and not _is_ours(path):
        raise FileExistsError(
            f"{path} holds other files, --force will not remove them: choose another folder"
        )
    if path.is_dir() and not folder:
        raise IsADirectoryError(f"{path} is a folder: give the name of a file")
    if folder and force and path.is_file():
        raise FileExistsError(f"{path} is a file, where a folder is to be written: choose another name")
    if path.exists() and not force:
        raise FileExistsError(f"{path} exists: choose another name, or force (--force) to replace it")
    parent = path.absolute().parent
    if not parent.is_dir():
        raise FileNotFoundError(f"the folder {parent} does not exist: create it first")
    if not os.access(parent, os.W_OK):
        raise PermissionError(f"the folder {parent} cannot be written to: choose another")


def _npz(found: Mapping[str, Any]) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **found)
    return stream.getvalue()


def _is_ours(folder: Path) -> bool:
    """Whether a folder is empty or holds nothing but what `_write_folder` writes."""
    files = [entry for entry in folder.rglob("*") if not entry.is_dir()]
    known = [entry for entry in files if entry.suffix == ".png" or entry == folder / _LABELS]
    return len(known) == len(files) and (not files or (folder / _LABELS).is_file())


def _write_folder(ds: DistilledSet, target: Path, force: bool) -> None:
    """Fill a folder beside the target, then rename it: nobody sees half of it."""
    # Stored bytes are pixels already; other values fill the 8 bits of each image.
    pixels = to_pixels(ds, stretch=str(ds.x.dtype) != "torch.uint8")
    names = _folder_names(class_names(ds))
    unique = f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}"
    temporary, old = target.with_name(unique + ".tmp"), target.with_name(unique + ".old")
    temporary.mkdir()
    try:
        files, counts = [], dict.fromkeys(names, 0)
        digits = len(str(max(names.count(name) for name in set(names)) - 1))
        for name, image in zip(names, pixels.values, strict=True):
            (temporary / name).mkdir(exist_ok=True)
            files.append(f"{name}/{counts[name]:0{digits}d}.png")
            counts[name] += 1
            Image.fromarray(image).save(temporary / files[-1])
        found = arrays(ds)
        del found["x"]
        found |= {"files": np.array(files), "low": pixels.low, "high": pixels.high}
        (temporary / _LABELS).write_bytes(_npz(found))
        if target.exists():
            check_new(target, force, folder=True)
            os.replace(target, old)
        os.replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not target.exists():
            os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _folder_names(names: list[str]) -> list[str]:
    """Class names as names of folders: a name from a file must not lead anywhere else, nor two to one."""
    plain = {
        name: re.sub(r"[^\w.-]+", "_", name).strip(".")[:100] or "points" for name in dict.fromkeys(names)
    }
    folded = [name.casefold() for name in plain.values()]
    clash = len(set(folded)) < len(folded)
    width = len(str(len(plain) - 1))
    if clash:
        plain = {name: f"{index:0{width}d}_{text}" for index, (name, text) in enumerate(plain.items())}
    return [plain[name] for name in names]
