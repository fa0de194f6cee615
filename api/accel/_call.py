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
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ._difference import difference
from ._log import logger
from ._records import count_accelerated, count_declined, count_verified, record
from ._target import Region, Target

# Attributes of a stand-in: the name of its target, and whether it is in place. One that somebody has kept since
# before it was taken out calls the original.
STANDS_FOR = "stands_for_target"
IS_INSTALLED = "is_installed"

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
    failures : list of str
        Verifications that failed. The error that says so may have been caught by the code that called.
    """

    verify: int = 0
    tolerance: float | None = None
    failures: list[str] = []


def accelerated(target: Target, original: Callable[..., Any]) -> Callable[..., Any]:
    """A function that stands for `original`, with its name, documentation and signature."""

    @functools.cache
    def functions() -> tuple[Any, Any]:
        # At the first call: this may run in the middle of an import that replacements need.
        return target.load("guard"), target.load("replacement")

    @functools.wraps(original)
    def stand_in(*args: Any, **kwargs: Any) -> Any:
        if _originals_only.get() or not getattr(stand_in, IS_INSTALLED):
            return original(*args, **kwargs)
        guard, replacement = functions()
        reason = None if guard is None else guard(*args, **kwargs)
        if reason is not None:
            if reason:
                count_declined(target.name, reason)
            return original(*args, **kwargs)
        if not _to_verify(target):
            begin = time.perf_counter()
            result = replacement(*args, **kwargs)
            count_accelerated(target.name, time.perf_counter() - begin)
            return result
        others, named = _copies(target, original, args, kwargs)
        with random_state_kept(*others, *named.values()), only_originals():
            begin = _now()
            expected = original(*others, **named)
            original_seconds = _now() - begin
        begin = _now()
        result = replacement(*args, **kwargs)
        seconds = _now() - begin
        count_accelerated(target.name, seconds)
        _judge(target, expected, result, original_seconds, seconds)
        return result

    setattr(stand_in, STANDS_FOR, target.name)
    setattr(stand_in, IS_INSTALLED, True)
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
        with random_state_kept(*inputs.values()) if self._verified else contextlib.nullcontext():
            begin = _now() if self._verified else time.perf_counter()
            self.outputs = replacement(**inputs)
            self._seconds = (_now() if self._verified else time.perf_counter()) - begin
        count_accelerated(target.name, self._seconds)
        self.needs_original = self._verified

    def __enter__(self) -> None:
        """Begin the original statements: where they are verified, everything else is original too."""
        if self._verified:
            self._token, self._begin = _originals_only.set(True), _now()

    def compare(self, outputs: tuple[Any, ...]) -> None:
        """Compare with what the original statements bound."""
        if self._verified:
            _judge(self._target, outputs, self.outputs, _now() - self._begin, self._seconds)

    def __exit__(self, *error: object) -> None:
        if self._verified:
            _originals_only.reset(self._token)


@contextlib.contextmanager
def only_originals() -> Iterator[None]:
    """Run every stand-in's original in this context."""
    token = _originals_only.set(True)
    try:
        yield
    finally:
        _originals_only.reset(token)


@contextlib.contextmanager
def random_state_kept(*values: Any) -> Iterator[None]:
    """Set the global generators of Python, NumPy and torch, and those among the values, back on leaving."""
    with contextlib.ExitStack() as stack:
        for get, put in _generators(values):
            stack.callback(put, get())
        yield


def _generators(values: Sequence[Any]) -> Iterator[tuple[Callable[[], Any], Callable[[Any], Any]]]:
    """How the state of each generator is read and set."""
    import numpy as np

    torch = sys.modules.get("torch")
    yield random.getstate, random.setstate
    yield np.random.get_state, np.random.set_state
    if torch is not None:
        yield torch.get_rng_state, torch.set_rng_state
        if torch.cuda.is_initialized():
            yield torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all
    for value in values:
        if isinstance(value, np.random.RandomState) or (torch and isinstance(value, torch.Generator)):
            yield value.get_state, value.set_state
        elif isinstance(value, np.random.Generator):
            bits = value.bit_generator
            yield (lambda bits=bits: bits.state), (lambda state, bits=bits: setattr(bits, "state", state))


def _now() -> float:
    """Seconds, once all that was asked of a GPU is done."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


_begun: dict[str, int] = {}
_lock = threading.Lock()


def is_verifying(name: str) -> bool:
    """Whether the next call of a target will be verified."""
    with _lock:
        return _begun.get(name, 0) < Settings.verify


def _to_verify(target: Target) -> bool:
    if not Settings.verify:
        return False
    with _lock:
        _begun[target.name] = _begun.get(target.name, 0) + 1
        return _begun[target.name] <= Settings.verify


def forget_calls(name: str) -> None:
    """Let the verification of a target begin anew."""
    with _lock:
        _begun.pop(name, None)


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
    with only_originals():
        found = float(measure(expected, result))
    number = count_verified(target.name, original, replacement, found)
    allowed = target.tolerance if Settings.tolerance is None else Settings.tolerance
    text = (
        f"{target.name}: verified call {number}: difference {found:.2g}, {allowed:.2g} allowed;"
        f" {original:.3g} s by the original, {replacement:.3g} s here"
    )
    if not found <= allowed:
        places = ", ".join(record(target.name).places)
        Settings.failures.append(f"{text} ({places}): run it without this target, and please report it")
        raise VerificationError(Settings.failures[-1])
    logger.warning("%s", text)
