"""One .safetensors file, no pickle: arrays, and one JSON document in the header that says what they are.

Files are written whole or not at all: to a temporary name beside the target, flushed to the disk, then
renamed. A path that exists is refused unless the caller forces it.
"""

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

FORMAT = "kernel-distill"
VERSION = 1
_KEY = "kernel_distill"


def write_file(
    path: str | os.PathLike[str],
    kind: str,
    header: dict[str, Any],
    tensors: dict[str, Tensor],
    *,
    force: bool = False,
) -> None:
    """Write `tensors` and `header` as a file of `kind`.

    Raises
    ------
    FileExistsError
        If `path` exists and `force` is not set.
    OSError
        If the file cannot be written; nothing is left behind and an existing file stays as it was.
    """
    import safetensors.torch

    document = {"format": FORMAT, "version": VERSION, "kind": kind, **header}
    payload = safetensors.torch.save(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()},
        metadata={_KEY: json.dumps(document, allow_nan=False)},
    )
    write_bytes(path, payload, force=force)


def check_plain(values: Mapping[str, Any] | None) -> None:
    """Refuse what the header of a file could not hold: it is JSON, and comes back equal."""
    try:
        same = json.loads(json.dumps(values, allow_nan=False)) == values
    except (TypeError, ValueError) as error:
        raise ValueError(f"`provenance` must be plain values that JSON can hold: {error}") from None
    if not same:
        raise ValueError(
            "`provenance` must be plain JSON: text keys, numbers, text, lists and mappings of them"
        )


def write_bytes(path: str | os.PathLike[str], payload: bytes, *, force: bool = False) -> None:
    """Write `payload` to `path`, whole or not at all; errors as in `write_file`."""
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder: give the name of a file")
    if target.exists() and not force:
        raise FileExistsError(f"{target} exists: choose another name, or force (--force) to replace it")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder {target.parent} does not exist: create it first")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def file_kind(path: str | os.PathLike[str]) -> str | None:
    """Kind of a file, or None for one that `read_file` would refuse whatever kind is asked for."""
    import safetensors

    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {})[_KEY])["kind"]
    except (safetensors.SafetensorError, OSError, KeyError, ValueError, TypeError):
        return None


def read_file(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a file of `kind`: header without its format fields, and tensors.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is truncated, not a safetensors file, of another kind, or of a newer version.
    """
    import safetensors
    import safetensors.torch

    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {os.fspath(path)}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        # Cloned into aligned memory: matrix products may round differently off alignment.
        tensors = {name: tensor.clone() for name, tensor in safetensors.torch.load_file(path).items()}
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read as a safetensors file (truncated or another format): {error}"
        ) from None
    try:
        document = json.loads(metadata[_KEY])
        found = document.pop("format"), document.pop("version"), document.pop("kind")
    except (KeyError, ValueError, AttributeError, TypeError):
        raise ValueError(
            f"{path} is a safetensors file, but not one of {FORMAT}: it has no {_KEY!r} header"
        ) from None
    if found[0] != FORMAT or found[2] != kind:
        raise ValueError(f"{path} holds {found[2]!r} ({found[0]}), expected {kind!r}")
    if found[1] != VERSION:
        raise ValueError(
            f"{path} has format version {found[1]}, this library reads version {VERSION}: use a matching release"
        )
    return document, tensors
