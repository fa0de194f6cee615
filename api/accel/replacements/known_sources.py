"""What guards recognise the functions and classes of their arguments by, read once for each of them."""

import functools
from typing import Any

from .._fingerprint import fingerprint_of


@functools.lru_cache(maxsize=64)
def source_of(thing: Any) -> str | None:
    """Fingerprint of a live function or class; None where its source cannot be read."""
    return fingerprint_of(thing)
