"""Data sets by name, through torchvision or Hugging Face datasets where they are installed."""

from pathlib import Path
from typing import Any

import numpy as np

from .._check import check_name
from .base import Data, make_data, sha256
from .images import IMAGE_COLUMNS, LABEL_COLUMNS, TEST_SPLITS, ImageStack, same_channels

# Keyword that selects the split, for each torchvision data set that holds its images as one array.
_TORCHVISION = {
    "CIFAR10": "train",
    "CIFAR100": "train",
    "FashionMNIST": "train",
    "KMNIST": "train",
    "MNIST": "train",
    "STL10": "split",
    "SVHN": "split",
    "USPS": "train",
}

BARE_NAMES = tuple(_TORCHVISION)


def find_named(source: str) -> tuple[str, str] | None:
    """Split ``"torchvision:MNIST"``, ``"hf:mnist"`` or a bare torchvision name into library and name.

    Bare names ignore case, ``-`` and ``_``. None if `source` is neither.
    """
    library, _, name = source.partition(":")
    if name and library in ("torchvision", "hf"):
        return library, (_spelling(name) or name) if library == "torchvision" else name
    bare = _spelling(source)
    return ("torchvision", bare) if bare else None


def read_named(library: str, name: str, root: Path | None, size: tuple[int, int] | None) -> Data:
    """Read a data set through a library, from its cache below `root` if it is there.

    The checksums are of the arrays, because which files a library keeps is its own affair.

    Raises
    ------
    ImportError
        If the library is not installed.
    FileNotFoundError
        If the data set is neither in the cache nor can be downloaded.
    ValueError
        If the name is unknown, or the data set holds no labelled images.
    """
    if library == "torchvision":
        check_name(name, _TORCHVISION, "torchvision data set")
        if size is not None:
            raise ValueError("`size` resizes image files, but torchvision data sets are arrays: leave it out")
        train, test, names = _torchvision(name, root or Path("~/.cache/kernel-distill").expanduser())
    else:
        train, test, names = _huggingface(name, root, size)
    data = make_data(f"{library}:{name}", train, test, class_names=names)
    for split, x, y in (("train", data.x_train, data.y_train), ("test", data.x_test, data.y_test)):
        if x is not None and y is not None:
            data.checksums[f"x_{split}, y_{split}"] = sha256(x, y)
    return data


Split = tuple[np.ndarray, np.ndarray]


def _torchvision(name: str, root: Path) -> tuple[Split, Split | None, list[str] | None]:
    try:
        from torchvision import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise _missing("torchvision", f"torchvision:{name}") from error
    kind, keyword = getattr(datasets, name), _TORCHVISION[name]

    def split(which: str) -> Any:
        choice = {keyword: which == "train" if keyword == "train" else which}
        try:
            return kind(str(root), download=False, **choice)
        except (OSError, RuntimeError):
            # torchvision says "not found or corrupted" with a RuntimeError.
            return kind(str(root), download=True, **choice)

    try:
        train, test = split("train"), split("test")
    except (OSError, RuntimeError) as error:
        raise _unreachable(f"torchvision:{name}", root, error) from error

    def arrays(part: Any) -> Split:
        targets = part.targets if hasattr(part, "targets") else part.labels
        return np.asarray(part.data), np.asarray(targets)

    names = getattr(train, "classes", None)
    return arrays(train), arrays(test), None if names is None else list(names)


def _huggingface(
    name: str, root: Path | None, size: tuple[int, int] | None
) -> tuple[Split, Split | None, list[str] | None]:
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise _missing("huggingface", f"hf:{name}") from error
    try:
        splits = datasets.load_dataset(name, cache_dir=None if root is None else str(root))
    except OSError as error:
        raise _unreachable(f"hf:{name}", root or Path(datasets.config.HF_DATASETS_CACHE), error) from error
    if "train" not in splits:
        raise ValueError(f"hf:{name} has no split 'train', only {', '.join(map(str, splits))}")
    features = splits["train"].features
    image = next((column for column in IMAGE_COLUMNS if column in features), None)
    label = next((column for column in LABEL_COLUMNS if column in features), None)
    if image is None or label is None:
        raise ValueError(
            f"hf:{name} has columns {', '.join(features)}, but labelled images need one named"
            f" {' or '.join(IMAGE_COLUMNS)} and one named {' or '.join(LABEL_COLUMNS)}"
        )

    def arrays(which: str) -> Split:
        rows = splits[which]
        stack = ImageStack(len(rows), size)
        labels = []
        for i, row in enumerate(rows):
            stack.add(row[image], f"row {i} of {which}")
            labels.append(row[label])
        return stack.finish(), np.array(labels)

    train = arrays("train")
    which = next((split for split in TEST_SPLITS if split in splits), None)
    names = getattr(features[label], "names", None)
    if which is None:
        return train, None, names
    test = arrays(which)
    x_train, x_test = same_channels(train[0], test[0])
    return (x_train, train[1]), (x_test, test[1]), names


def _spelling(name: str) -> str | None:
    """Give the torchvision spelling of a name, or None."""

    def plain(text: str) -> str:
        return text.casefold().replace("-", "").replace("_", "")

    return next((known for known in _TORCHVISION if plain(known) == plain(name)), None)


def _missing(extra: str, source: str) -> ImportError:
    library = {"huggingface": "datasets"}.get(extra, extra)
    return ImportError(f"{source!r} needs the library {library}: pip install 'kernel-distill[{extra}]'")


def _unreachable(source: str, root: Path, error: Exception) -> FileNotFoundError:
    return FileNotFoundError(
        f"{source!r} is not in the cache {root} and could not be downloaded ({type(error).__name__}:"
        f" {error}). Where there is no network, fill {root} on another machine and copy it here, or pass"
        " root=<its folder>"
    )
