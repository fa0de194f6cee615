"""What runs in a worker of a Ray cluster, around the function of a task. Nothing here needs Ray."""

import copy
import sys
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

from .faults import PERMANENT


class WorkerSettings(NamedTuple):
    """What the process that calls tells a worker.

    Attributes
    ----------
    version : str
        Of this library, there.
    threads : int
        For torch.
    private_paths : tuple of str
        Folders that Ray puts on a worker's path because the caller runs in them: that of its script, and the current
        one. Code there is not installed, so on another machine it is not there, or is another version; started from
        the repository root, the layers would even be importable a second time, under their bare names.
    """

    version: str
    threads: int
    private_paths: tuple[str, ...]


def call_task(
    settings: WorkerSettings, name: str, function: Callable[..., Any], *arguments: Any
) -> tuple[Exception | None, Any]:
    """The error that `function` raised, or None, and what it returned.

    Errors are returned, not raised: Ray would raise them in the caller as of a class of its own, and could not carry
    those that do not pickle.
    """
    import torch

    if settings.version != (here := library_version()):
        return ValueError(
            f"a worker has kernel-distill {here}, but this process {settings.version}: install the same version on"
            " every machine, or send yours along as RayExecutor(wheel=...)"
        ), None
    sys.path[:] = [path for path in sys.path if path not in settings.private_paths]
    torch.set_num_threads(settings.threads)
    try:
        return None, function(*arguments)
    except Exception as error:  # the driver decides what becomes of it (`faults`)
        return _portable(error, name), None


def call_merge(merge: Callable[[Any, Any], Any], first: Any, second: Any) -> Any:
    """``merge(first, second)``, where `merge` may change `first`.

    What comes from the object store of Ray is not ours to write: NumPy arrays are read-only views of memory that other
    workers read too, and the same node may be needed again if this worker is lost.
    """
    return merge(copy.deepcopy(first), second)


def library_version() -> str:
    """Version of this library in this process."""
    return sys.modules[__name__.partition(".")[0]].__version__


def _portable(error: Exception, name: str) -> Exception:
    """`error`, or what can travel in its place, with a note of where it was raised."""
    note = f"Raised by task {name!r} in a Ray worker:\n{''.join(traceback.format_exception(error))}"
    try:
        # By the way of pickle, but with no need to import anything.
        copied = copy.deepcopy(error)
        same = type(copied) is type(error) and str(copied) == str(error)
    except Exception:  # the constructor of somebody's error may raise anything: it goes by its message then
        same = False
    if not same:
        base = next(
            kind for kind in (*PERMANENT, OSError, RuntimeError, Exception) if isinstance(error, kind)
        )
        error = base(f"{type(error).__name__}: {error}")
    error.add_note(note)
    return error.with_traceback(None)
