"""Folders of parquet shards in the Hugging Face image layout.

``train-00000-of-00002.parquet`` and so on, with a column of encoded images, ``struct<bytes, path>``, and a
column of labels; class names stand in the schema's ``huggingface`` metadata.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .base import Data, make_data, sha256_file
from .images import IMAGE_COLUMNS, LABEL_COLUMNS, TEST_SPLITS, ImageStack, same_channels


def find_shards(folder: Path) -> dict[str, list[Path]]:
    """Map "train" and "test" to the shards of `folder`, or of its subfolder ``data``; {} without any.

    Where there is no test split, validation shards serve.

    Raises
    ------
    ValueError
        If a shard that the names of the others promise ("-of-00002") is missing.
    """
    for place in (folder, folder / "data"):
        files = sorted(place.glob("*.parquet"))
        shards = {}
        for split, prefixes in (("train", ("train",)), ("test", TEST_SPLITS)):
            for prefix in prefixes:
                found = [file for file in files if re.fullmatch(rf"{prefix}(-.*)?\.parquet", file.name)]
                if found and split not in shards:
                    _check_complete(found)
                    shards[split] = found
        if "train" in shards:
            return shards
    return {}


def read_parquet(folder: Path, size: tuple[int, int] | None = None) -> Data:
    """Read a folder of shards; `size` resizes images to (height, width).

    Raises
    ------
    ImportError
        If pyarrow is not installed.
    ValueError
        If a shard is damaged or incomplete, columns are missing, or images differ in size.
    """
    shards = find_shards(folder)
    x, y, names = {}, {}, {}
    for split, files in shards.items():
        x[split], y[split], names[split] = _read_split(files, size)
    if "test" in shards:
        x["train"], x["test"] = same_channels(x["train"], x["test"])
        if names["test"] is not None and names["test"] != names["train"]:
            raise ValueError(f"train and test shards of {folder} name their classes differently")
    return make_data(
        folder.resolve().name,
        (x["train"], y["train"]),
        (x["test"], y["test"]) if "test" in shards else None,
        class_names=names["train"],
        checksums={file.name: sha256_file(file) for files in shards.values() for file in files},
    )


def _check_complete(files: Sequence[Path]) -> None:
    """Refuse a split of which shards are missing, or which mixes two shardings of the same rows."""
    matches = [re.search(r"-(\d+)-of-(\d+)\.parquet$", file.name) for file in files]
    totals = {int(match[2]) for match in matches if match}
    if len(totals) > 1 or (totals and None in matches):
        raise ValueError(
            f"{files[0].parent} mixes different shardings of one split, which would repeat rows:"
            f" {', '.join(file.name for file in files[:4])}. Keep one of them"
        )
    missing = sorted(set(range(max(totals, default=0))) - {int(match[1]) for match in matches if match})
    if missing:
        raise ValueError(
            f"{files[0].parent} lacks shard(s) {missing} of {max(totals)}, found {files[0].name}:"
            " complete the download"
        )


def _read_split(
    files: Sequence[Path], size: tuple[int, int] | None
) -> tuple[np.ndarray, np.ndarray, list[str] | None]:
    shards = [open_parquet(file) for file in files]
    image, label = image_columns(files[0], shards[0].schema_arrow)
    stack = ImageStack(sum(shard.metadata.num_rows for shard in shards), size)
    if stack.n == 0:
        raise ValueError(f"{files[0]} and the shards beside it hold no rows")
    labels = []
    for file, shard in zip(files, shards, strict=True):
        if {image, label} - set(shard.schema_arrow.names):
            raise ValueError(f"{file} has columns {shard.schema_arrow.names}, but {files[0].name} has others")
        row = 0
        for batch in table_batches(file, shard, [image, label]):
            encoded = encoded_images(batch, image, label, file, row)
            for data in encoded:
                stack.add(data, f"row {row} of {file.name}")
                row += 1
            labels.append(batch.column(label).to_numpy(zero_copy_only=False))
    return stack.finish(), np.concatenate(labels), _names(shards[0].schema_arrow, label)


def open_parquet(file: Path) -> Any:
    """A `pyarrow.parquet.ParquetFile`.

    Raises
    ------
    ImportError
        If pyarrow is not installed.
    ValueError
        If the file is damaged.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("parquet files need pyarrow: pip install 'kernel-distill[parquet]'") from error
    try:
        return pyarrow.parquet.ParquetFile(file)
    except (OSError, ValueError, NotImplementedError) as error:
        raise _damaged(file, error) from error


def table_batches(
    file: Path,
    shard: Any,
    columns: list[str],
    row_groups: Sequence[int] | None = None,
    batch_rows: int = 1024,
) -> Iterator[Any]:
    """Record batches of these columns, of all row groups or of some; ValueError where the file is damaged."""
    try:
        yield from shard.iter_batches(batch_size=batch_rows, columns=columns, row_groups=row_groups)
    except (OSError, ValueError, NotImplementedError) as error:
        raise _damaged(file, error) from error


def encoded_images(batch: Any, image: str, label: str, file: Path, row: int) -> list[bytes]:
    """Bytes of the image files of a record batch whose first row is row `row` of `file`.

    Raises
    ------
    ValueError
        If images or labels are missing.
    """
    column = batch.column(image)
    encoded = column.field("bytes") if hasattr(column, "field") else column
    if column.null_count or encoded.null_count or batch.column(label).null_count:
        raise ValueError(
            f"{file.name} lacks image bytes or labels in rows {row} to {row + len(batch)}: embed the"
            " images in the file, and drop rows that are not labelled"
        )
    return encoded.to_pylist()


def _damaged(file: Path, error: Exception) -> ValueError:
    if isinstance(error, OSError) and error.errno:
        raise error  # of the machine: what pyarrow finds in a file has no number
    return ValueError(
        f"{file} is not a readable parquet file ({error}): it may be truncated; download it again"
    )


def holds_images(kind: Any) -> bool:
    """Whether a column of this type can hold encoded images."""
    import pyarrow.types

    if pyarrow.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)


def image_columns(file: Path, schema: Any, labels: Sequence[str] = LABEL_COLUMNS) -> tuple[str, str]:
    """Return the names of the image and the label column, the first of `labels` that is there."""
    images = [name for name in schema.names if holds_images(schema.field(name).type)]
    image = next((name for name in IMAGE_COLUMNS if name in images), images[0] if images else None)
    label = next((name for name in labels if name in schema.names), None)
    if image is None or label is None:
        raise ValueError(
            f"{file} has columns {schema.names}, but images need a column of struct<bytes, path> and a column"
            f" named {', '.join((*labels[:-2], ' or '.join(labels[-2:])))}"
        )
    return image, label


def _names(schema: Any, label: str) -> list[str] | None:
    """Return the class names of the ``huggingface`` metadata, if any."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
        return [str(names[key]) for key in sorted(names, key=int)] if isinstance(names, dict) else list(names)
    except (KeyError, TypeError, ValueError):
        return None
