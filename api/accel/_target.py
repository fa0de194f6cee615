"""One entry of the registry: what is replaced, by what, and how the answers compare."""

import dataclasses
import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

Equivalence = Literal["exact", "statistical", "corrects"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A function or method that is known by its source.

    Attributes
    ----------
    name : str
        "group.function", the name by which it is installed.
    qualname : str
        Name in its module: "k_center_greedy", "FCNN.inverse".
    hashes : tuple of str
        Accepted fingerprints of its source (`_fingerprint`).
    replacement : str
        "file:function" below `replacements`; it has the signature of the original.
    equivalence : {"exact", "statistical", "corrects"}
        Same numbers up to `tolerance`; same distribution from other random numbers, or numbers that rounding has
        driven apart; or another result, because the original's is wrong: those are installed by name only.
    tolerance : float
        Largest difference that verification accepts: absolute for whole numbers, otherwise relative to the largest
        entry of the original's result.
    measure : str, default "of the largest entry"
        What the tolerance is of, as far as `compare` measures something else.
    summary : str
        What is computed, and for whom.
    changes : str
        What differs in the answer: "nothing" or what and why.
    identical : str
        What is the same bit for bit (picks, random numbers drawn, ...).
    distribution : str, default "nothing"
        What is the same in distribution only.
    module : str, optional
        The module it must be defined in; any by default, because people copy research code under other names.
    hints : tuple of str
        Names that the module has besides, where `qualname` alone is too common to say that others are left alone.
    requires : mapping of str to tuple of str
        Fingerprints of further definitions of the same module on which the original depends.
    guard : str, optional
        "file:function", called with the arguments: a reason why this call is left to the original, or None. An empty
        reason is for calls that are no concern of the target, in functions that all share: they are not counted.
    compare : str, optional
        "file:function" of the original's and the replacement's result: their difference. By default entry by entry.
    mutates : tuple of str
        Parameters that the original changes: verification gives it copies.
    by_name_only : bool, default False
        Not installed unless it is named.
    """

    name: str
    qualname: str
    hashes: tuple[str, ...]
    replacement: str
    equivalence: Equivalence
    tolerance: float
    summary: str
    changes: str
    identical: str
    distribution: str = "nothing"
    measure: str = "of the largest entry"
    module: str | None = None
    hints: tuple[str, ...] = ()
    requires: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    guard: str | None = None
    compare: str | None = None
    mutates: tuple[str, ...] = ()
    by_name_only: bool = False

    @property
    def group(self) -> str:
        """The code that it belongs to."""
        return self.name.partition(".")[0]

    @functools.cached_property
    def outermost(self) -> str:
        """The name in the module's namespace."""
        return self.qualname.partition(".")[0]

    @property
    def is_default(self) -> bool:
        """Whether it is installed without being named."""
        return not self.by_name_only and self.equivalence != "corrects"

    def load(self, what: Literal["replacement", "guard", "compare"]) -> Callable[..., Any] | None:
        """The function that a field names."""
        place = getattr(self, what)
        if place is None:
            return None
        file, _, function = place.partition(":")
        return getattr(importlib.import_module(f".replacements.{file}", __package__), function)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Region(Target):
    """Statements in the middle of a function, known by their source, that become a call.

    The replacement takes the `inputs` as keyword arguments and returns the `outputs` as a tuple; it may draw random
    numbers but must change nothing else, since the statements themselves are kept for calls that the guard refuses.

    Attributes
    ----------
    qualname : str
        The function that holds them.
    length : int
        Number of statements in a row; `hashes` are of all of them together.
    inputs : tuple of str
        Names that are read.
    outputs : tuple of str
        Names that are bound, as far as they are used afterwards.
    """

    length: int = 1
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
