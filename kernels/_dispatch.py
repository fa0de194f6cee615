"""Which implementation of an operation runs, and why the others do not.

Every operation has a plain torch implementation: it is the definition, the CPU backend and the oracle. Faster
ones are declared beside it with `implement` and imported only when they are chosen.

The order of say: the ``backend=`` argument, then `use_backend`, then the environment variable
``KERNEL_DISTILL_BACKEND`` (read once), then the automatic choice. A backend that is *named* runs or raises;
only the automatic choice moves on to the next one, and it says so once in the log, with the reason.
"""

import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BACKENDS = ("triton", "cuda", "torch")  # the order in which the automatic choice tries them on a GPU
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton itself reads it once, at import

_log = logging.getLogger("kernel_distill")
_named: ContextVar[str | None] = ContextVar("backend", default=None)
_explaining: ContextVar[bool] = ContextVar("explaining", default=False)
_REGISTRY: dict[str, dict[str, "_Implementation"]] = {}


@dataclass
class _Implementation:
    target: str | Callable[..., Any]
    rejects: Callable[..., str | None] | None
    slower: Callable[..., str | None] | None

    def load(self) -> Callable[..., Any]:
        if isinstance(self.target, str):
            module, _, name = self.target.partition(":")
            self.target = getattr(importlib.import_module(f".{module}", __package__), name)
        return self.target  # type: ignore[return-value]


def implement(
    operation: str,
    backend: str,
    target: str | Callable[..., Any],
    *,
    rejects: Callable[..., str | None] | None = None,
    slower: Callable[..., str | None] | None = None,
) -> None:
    """Declare how a backend carries out an operation.

    Parameters
    ----------
    operation : str
        Name of the public function.
    backend : {"torch", "triton", "cuda"}
    target : callable or str
        The function, or ``"module:function"`` below this package, imported on first use.
    rejects : callable, optional
        Called with the operation's arguments; a sentence if this backend *cannot* do them, else None. It
        must cost microseconds and must not synchronise a device.
    slower : callable, optional
        The same for what it can do but another backend does faster; a backend asked for by name ignores it.
    """
    _REGISTRY.setdefault(operation, {})[backend] = _Implementation(target, rejects, slower)


def choose(operation: str, *args: Any, backend: str | None = None, **kwargs: Any) -> Callable[..., Any]:
    """The function that carries out `operation` on these arguments.

    Parameters
    ----------
    operation : str
    *args, **kwargs
        The operation's arguments; the first tensor among `args` tells the device.
    backend : {"torch", "triton", "cuda"}, optional
        Use this one or raise.

    Raises
    ------
    ValueError
        If the backend asked for is unknown, or cannot do this; the message gives its reason.
    """
    if _explaining.get():
        raise _Explanation(
            {name: _refusal(operation, name, args, kwargs, automatic=True) for name in BACKENDS}
        )
    named = backend or _named.get() or _from_environment()
    known = _REGISTRY[operation]
    if named is None:
        if _device(args) == "cpu":  # nothing but the definition runs here unless asked for by name
            return known["torch"].load()
        for name in BACKENDS:
            reason = _refusal(operation, name, args, kwargs, automatic=True)
            if reason is None:
                return _on_its_device(known[name].load(), args)
            _say_once(operation, name, reason)
    if named is None or named not in BACKENDS:
        raise ValueError(f"unknown backend {named!r}: known are {', '.join(BACKENDS)}")
    reason = _refusal(operation, named, args, kwargs, automatic=False)
    if reason is not None:
        raise ValueError(f"backend {named!r} was asked for, but {operation} {reason}")
    return _on_its_device(known[named].load(), args)


def explain(operation: str, *args: Any, **kwargs: Any) -> dict[str, str | None]:
    """Why each backend would not be chosen automatically for a call; None for those that would do.

    Parameters
    ----------
    operation : str
        Name of a public function of `kernels`.
    *args, **kwargs
        The arguments that it would be called with. They are checked and prepared as in a call, but nothing runs.

    Returns
    -------
    dict of str to str or None
        Empty for operations with one implementation only.

    Raises
    ------
    ValueError
        If there is no such operation, or the call itself would raise.
    """
    package = importlib.import_module(__name__.rpartition(".")[0])
    if operation not in package.__all__ or not callable(getattr(package, operation)):
        raise ValueError(f"no operation is called {operation!r}: known are {', '.join(sorted(_REGISTRY))}")
    token = _explaining.set(True)
    try:
        getattr(package, operation)(*args, **kwargs)
    except _Explanation as explanation:
        return explanation.reasons
    finally:
        _explaining.reset(token)
    return {}


class _Explanation(Exception):
    def __init__(self, reasons: dict[str, str | None]) -> None:
        super().__init__(reasons)
        self.reasons = reasons


@contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Use `backend` for every operation inside the ``with`` block of this thread, or raise.

    Operations with one implementation only (`arc_cosine_kernel`, `gram_add_`, ...) have nothing to choose.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}: known are {', '.join(BACKENDS)}")
    token = _named.set(backend)
    try:
        yield
    finally:
        _named.reset(token)


def _refusal(operation: str, backend: str, args: Any, kwargs: Any, automatic: bool) -> str | None:
    entry = _REGISTRY[operation].get(backend)
    if entry is None:
        return f"is not implemented in {backend}"
    if backend != "torch":
        device = _device(args)
        if device != "cuda" and not (backend == "triton" and INTERPRETED and device == "cpu"):
            return f"needs tensors on a CUDA device, these are on {device!r}"
        library = "triton" if backend == "triton" else "cupy"
        if not _installed(library):
            return f"needs {library}, which is not installed"
    if entry.rejects is not None and (reason := entry.rejects(*args, **kwargs)) is not None:
        return reason
    if automatic and entry.slower is not None:
        return entry.slower(*args, **kwargs)
    return None


def _device(args: Any) -> str:
    for value in args:
        if isinstance(value, Tensor):
            return value.device.type
    return "cpu"


def _on_its_device(function: Callable[..., Any], args: Any) -> Callable[..., Any]:
    """`function`, launched on the GPU that holds the tensors when that is not the current one."""
    device = next((value.device for value in args if isinstance(value, Tensor)), None)
    if device is None or device.type != "cuda" or device.index == torch.cuda.current_device():
        return function

    def on_device(*args: Any, **kwargs: Any) -> Any:
        with torch.cuda.device(device):
            return function(*args, **kwargs)

    return on_device


@functools.cache
def _from_environment() -> str | None:
    return os.environ.get("KERNEL_DISTILL_BACKEND") or None


@functools.cache
def _installed(library: str) -> bool:
    return importlib.util.find_spec(library) is not None


@functools.cache
def _say_once(operation: str, backend: str, reason: str) -> None:
    _log.info("%s does not run in %s: it %s", operation, backend, reason)


def compute_capability(device: torch.device) -> tuple[int, int]:
    """Compute capability of a CUDA device, asked of the driver once."""
    return _capability(device.index if device.index is not None else torch.cuda.current_device())


@functools.cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)
