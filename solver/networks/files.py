"""A network in a file: its spec, its weights, and whatever else the caller wants to keep with them."""

import os
from typing import Any

from ..store import check_plain, read_file, write_file
from .network import Network, network_of
from .spec import NetworkSpec

_KIND = "network"


def save_network(
    path: str | os.PathLike[str],
    network: Network,
    header: dict[str, Any] | None = None,
    *,
    force: bool = False,
) -> None:
    """Write a network as one .safetensors file.

    Parameters
    ----------
    path : path
    network : Network
        Trained or not, on any device.
    header : dict, optional
        Plain JSON values kept with it: its transform, the names of its classes, how it was trained, ...
    force : bool, default False
        Replace a file that exists.

    Raises
    ------
    FileExistsError
        If `path` exists and `force` is not set.
    ValueError
        If `header` is not plain JSON.
    OSError
        If the file cannot be written.
    """
    try:
        check_plain(header)
    except ValueError:
        raise ValueError(f"`header` must be plain JSON, text keys and plain values, got {header!r}") from None
    document = {"network": network.spec.parameters(), "header": header or {}}
    write_file(path, _KIND, document, dict(network.state_dict()), force=force)


def load_network(path: str | os.PathLike[str]) -> tuple[Network, dict[str, Any]]:
    """Read a file of `save_network`.

    Returns
    -------
    network : Network
        On the CPU, in evaluation mode, in the dtype it had.
    header : dict

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, of another kind, or its weights are not those of its network.
    """
    document, tensors = read_file(path, _KIND)
    try:
        spec, header = NetworkSpec.restore(document["network"]), document["header"]
        return network_of(spec, tensors).eval(), header
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{path} does not hold a network: {error}") from None
