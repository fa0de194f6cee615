"""Image folders: ``train/<class>/*.png`` and perhaps ``test/<class>/`` or ``val/<class>/``."""

import hashlib
from pathlib import Path

import numpy as np

from .base import Data, make_data
from .images import ImageStack, same_channels

_TEST_FOLDERS = ("test", "val", "validation")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def is_image_folder(folder: Path) -> bool:
    """Whether `folder` has class folders in ``train``."""
    return (folder / "train").is_dir() and any(entry.is_dir() for entry in (folder / "train").iterdir())


def read_folder(folder: Path, size: tuple[int, int] | None = None) -> Data:
    """Read an image folder; `size` resizes images to (height, width).

    Classes are numbered in the order of their sorted names, images in the order of their sorted paths,
    also those in subfolders of a class. There is one checksum for each split: the SHA-256 of its
    lines ``<sha256 of the file>  <path below folder>``, because one an image would outweigh a distilled set.

    Raises
    ------
    ValueError
        If a class has no images, the test split has other classes, or images differ in size.
    """
    train = _classes(folder / "train")
    names = list(train)
    x_train, y_train, sum_train = _read_split(folder, train, names, size)
    checksums = {"train": sum_train}
    place = next((folder / name for name in _TEST_FOLDERS if (folder / name).is_dir()), None)
    test = None
    if place is not None:
        classes = _classes(place)
        strange = sorted(set(classes) - set(names))
        if strange:
            raise ValueError(f"{place} has classes that {folder / 'train'} lacks: {', '.join(strange[:5])}")
        x_test, y_test, checksums[place.name] = _read_split(folder, classes, names, size)
        x_train, x_test = same_channels(x_train, x_test)
        test = (x_test, y_test)
    return make_data(folder.resolve().name, (x_train, y_train), test, class_names=names, checksums=checksums)


def _classes(split: Path) -> dict[str, list[Path]]:
    """Image files of each class folder, sorted."""
    classes = {}
    for entry in sorted(split.iterdir(), key=lambda path: path.name):
        if not entry.is_dir() or entry.name.startswith("."):
            continue
        files = [file for file in entry.rglob("*") if file.suffix.lower() in _SUFFIXES]
        classes[entry.name] = sorted(file for file in files if not file.name.startswith("."))
        if not classes[entry.name]:
            raise ValueError(
                f"{entry} holds no images ({', '.join(_SUFFIXES)}): remove the folder or fill it"
            )
    if not classes:
        raise ValueError(f"{split} holds no class folders: images belong in {split.name}/<class>/")
    return classes


def _read_split(
    folder: Path, classes: dict[str, list[Path]], names: list[str], size: tuple[int, int] | None
) -> tuple[np.ndarray, np.ndarray, str]:
    stack = ImageStack(sum(len(files) for files in classes.values()), size)
    labels, digest = [], hashlib.sha256()
    for name, files in classes.items():
        for file in files:
            where = file.relative_to(folder).as_posix()
            data = file.read_bytes()
            digest.update(f"{hashlib.sha256(data).hexdigest()}  {where}\n".encode())
            stack.add(data, where)
            labels.append(names.index(name))
    return stack.finish(), np.array(labels, dtype=np.int64), digest.hexdigest()
