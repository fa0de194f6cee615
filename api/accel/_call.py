"""What runs in place of an original: the guard, then the replacement, and both where verification is on."""

import contextlib
import contextvars
import copy
import functools
import inspect
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ._difference import difference
from ._log import logger
from ._records import count_accelerated, count_declined, count_verified, record
from ._target import Region, Target

# Originals that run for comparison run with everything else original too.
_originals_only = contextvars.ContextVar("originals_only", default=False)


class VerificationError(RuntimeError):
    """A replacement's answer is further from the original's than its target allows."""


class Settings:
    """What verification does, for all targets.

    Attributes
    ----------
    verify : int
        Calls of each target for which the original runs too.
    tolerance : float, optional
        In place of each target's own.
    """

    verify: int = 0
    tolerance: float | None = None


def accelerated(target: Target, original: Callable[..., Any]) -> Callable[..., Any]:
    """A function that stands for `original`, with its name, documentation and signature."""
    guard, replacement = target.load("guard"), target.load("replacement")
    assert replacement is not None

    @functools.wraps(original)
    def stand_in(*args: Any, **kwargs: Any) -> Any:
        if _originals_only.get():
            return original(*args, **kwargs)
        reason = None if guard is None else guard(*args, **kwargs)
        if reason is not None:
            count_declined(target.name, reason)
            return original(*args, **kwargs)
        if not _to_verify(target):
            begin = time.perf_counter()
            result = replacement(*args, **kwargs)
            count_accelerated(target.name, time.perf_counter() - begin)
            return result
        others, named = _copies(target, original, args, kwargs)
        with random_state_kept(), only_originals():
            begin = time.perf_counter()
            expected = original(*others, **named)
            original_seconds = time.perf_counter() - begin
        begin = time.perf_counter()
        result = replacement(*args, **kwargs)
        seconds = time.perf_counter() - begin
        count_accelerated(target.name, seconds)
        _judge(target, expected, result, original_seconds, seconds)
        return result

    return stand_in


class RegionCall:
    """One passage through a region: made before its statements, asked whether they must run.

    Attributes
    ----------
    needs_original : bool
        Whether the original statements run: the guard refuses this passage, or it is verified. A verified passage goes
        on with what the original statements bind, and its random numbers.
    outputs : tuple
        Of the replacement, where they do not.
    """

    def __init__(self, target: Region, inputs: Mapping[str, Any]) -> None:
        self._target, self.outputs, self.needs_original = target, (), True
        self._verified = False
        if _originals_only.get():
            return
        guard, replacement = target.load("guard"), target.load("replacement")
        assert replacement is not None
        reason = None if guard is None else guard(**inputs)
        if reason is not None:
            count_declined(target.name, reason)
            return
        self._verified = _to_verify(target)
        with random_state_kept() if self._verified else contextlib.nullcontext():
            begin = time.perf_counter()
            self.outputs = replacement(**inputs)
            self._seconds = time.perf_counter() - begin
        count_accelerated(target.name, self._seconds)
        self.needs_original = self._verified
        if self._verified:
            self._token = _originals_only.set(True)
            self._begin = time.perf_counter()

    def compare(self, outputs: tuple[Any, ...]) -> None:
        """Compare with what the original statements bound."""
        if not self._verified:
            return
        seconds = time.perf_counter() - self._begin
        _originals_only.reset(self._token)
        _judge(self._target, outputs, self.outputs, seconds, self._seconds)


@contextlib.contextmanager
def only_originals() -> Iterator[None]:
    """Run every stand-in's original in this context."""
    token = _originals_only.set(True)
    try:
        yield
    finally:
        _originals_only.reset(token)


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """Set the global generators of Python, NumPy and torch back on leaving."""
    import numpy as np

    torch = sys.modules.get("torch")
    python, numpy = random.getstate(), np.random.get_state()
    drawn = None if torch is None else torch.get_rng_state()
    on_devices = torch.cuda.get_rng_state_all() if torch is not None and torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        if torch is not None and drawn is not None:
            torch.set_rng_state(drawn)
            if on_devices:
                torch.cuda.set_rng_state_all(on_devices)


_begun: dict[str, int] = {}
_lock = threading.Lock()


def _to_verify(target: Target) -> bool:
    if not Settings.verify:
        return False
    with _lock:
        _begun[target.name] = _begun.get(target.name, 0) + 1
        return _begun[target.name] <= Settings.verify


def forget_calls() -> None:
    """Let verification begin anew."""
    with _lock:
        _begun.clear()


def _copies(
    target: Target, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if not target.mutates:
        return args, kwargs
    bound = inspect.signature(original).bind(*args, **kwargs)
    for name in target.mutates:
        if name in bound.arguments:
            bound.arguments[name] = copy.deepcopy(bound.arguments[name])
    return bound.args, bound.kwargs


def _judge(target: Target, expected: Any, result: Any, original: float, replacement: float) -> None:
    measure = target.load("compare") or difference
    found = float(measure(expected, result))
    number = count_verified(target.name, original, replacement, found)
    allowed = target.tolerance if Settings.tolerance is None else Settings.tolerance
    text = (
        f"{target.name}: verified call {number}: difference {found:.2g}, {allowed:.2g} allowed;"
        f" {original:.3g} s by the original, {replacement:.3g} s here"
    )
    if not found <= allowed:
        places = ", ".join(record(target.name).places)
        raise VerificationError(f"{text} ({places}): run it without this target, and please report it")
    logger.warning("%s", text)
