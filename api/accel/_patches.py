"""Putting stand-ins in place of originals in live modules, and taking every one of them back.

A function is replaced in the module (or class) that defines it, and under every name by which a loaded module, or a
dictionary of one, knows it: `from utils import evaluate_synset` may have run long before. Statements within a function
are replaced by giving the same function object another code object. Undoing restores the objects themselves.
"""

import ast
import difflib
import inspect
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ._call import IS_INSTALLED, STANDS_FOR, RegionCall, accelerated
from ._fingerprint import BUILTIN, definition_of, find_run, fingerprint_of
from ._log import logger
from ._records import record
from ._regions import CALL, compiled, lost_names, with_regions
from ._target import Region, Target

# Entries of a dictionary that is looked through for originals, such as scikit-learn's table of kernels.
_TABLE_SIZE = 1000
_OWN = __name__.partition(".")[0]


class Patches:
    """Everything that is changed at the moment, in order.

    Attributes
    ----------
    show : callable, optional
        Given a text for every change that is made.
    """

    def __init__(self) -> None:
        self.show: Callable[[str], None] | None = None
        self._undo: list[tuple[Target, Callable[[], None]]] = []
        # Functions that hold regions: the code they had, and the regions that are replaced.
        self._rewritten: dict[types.FunctionType, tuple[types.CodeType, list[Region]]] = {}
        # What stands at each place that was looked at, by target and module: a module that is reloaded is met anew.
        self._seen: dict[tuple[str, str], Any] = {}

    @property
    def installed(self) -> list[str]:
        """Names of targets that are in place somewhere."""
        return sorted({target.name for target, _ in self._undo})

    def adopt(self, module: types.ModuleType, targets: Iterable[Target], *, is_complete: bool = True) -> None:
        """Replace what a module defines and a target knows; each place is looked at once.

        Parameters
        ----------
        module : module
        targets : iterable of Target
        is_complete : bool, default True
            Whether the module has run to its end: until then, what depends on a definition that is not there waits.
        """
        name, targets = module.__name__, list(targets)
        if name.partition(".")[0] == _OWN:
            return
        for target in targets:
            # The first name decides for nearly all of thousands of modules.
            if target.outermost not in vars(module) or target.module not in (None, name):
                continue
            found = _lookup(module, target.qualname)
            if found is None or not all(hint in vars(module) for hint in target.hints):
                continue
            holder, attribute, thing = found
            if self._seen.get((target.name, name)) is thing or not _is_defined_in(thing, name, target):
                continue
            if self._is_replaced(target, thing):
                continue
            if not is_complete and any(_lookup(module, other) is None for other in target.requires):
                continue
            place = f"{name}.{target.qualname}"
            reason = _why_unknown(module, target, thing)
            if reason is None:
                thing = self._replace(target, holder, attribute, thing)
                _note(record(target.name).places, place)
                logger.info("%s: %s is replaced (%s)", target.name, place, target.equivalence)
            elif not _is_known_otherwise(module, target, thing, targets) and _note(
                record(target.name).unknown, f"{place}: {reason}"
            ):
                logger.warning("%s: %s is left alone: %s", target.name, place, reason)
            self._seen[target.name, name] = thing

    def remove(self, names: Iterable[str]) -> None:
        """Undo targets, the last first: every object is the very one that it was."""
        wanted, kept = set(names), []
        for target, undo in reversed(self._undo):
            if target.name in wanted:
                undo()
            else:
                kept.append((target, undo))
        self._undo = kept[::-1]
        self._seen = {entry: thing for entry, thing in self._seen.items() if entry[0] not in wanted}

    def _is_replaced(self, target: Target, thing: Any) -> bool:
        """Whether the target is in place already, maybe within the stand-in of another."""
        if isinstance(target, Region):
            return target in self._rewritten.get(inspect.unwrap(thing), (None, []))[1]
        while hasattr(thing, "__wrapped__"):
            if getattr(thing, STANDS_FOR, None) == target.name:
                return True
            thing = thing.__wrapped__
        return False

    def _replace(self, target: Target, holder: Any, attribute: str, thing: Any) -> Any:
        """Put the stand-in in place, or new code into a function; what stands there now."""
        if isinstance(target, Region):
            # The source of a decorated function is that of the one within.
            self._undo.append((target, self._rewrite(target, inspect.unwrap(thing))))
            return thing
        stand_in = accelerated(target, thing)
        kept = vars(holder)[attribute]
        new = type(kept)(stand_in) if isinstance(kept, (staticmethod, classmethod)) else stand_in
        setattr(holder, attribute, new)
        if not isinstance(holder, type):
            rebind(thing, stand_in)
        if self.show:
            self.show(f"{target.name}: {target.qualname} -> {target.replacement} ({target.equivalence})")

        def undo() -> None:
            setattr(stand_in, IS_INSTALLED, False)
            if vars(holder).get(attribute) is new:
                setattr(holder, attribute, kept)
            if not isinstance(holder, type):
                rebind(stand_in, thing)

        self._undo.append((target, undo))
        return stand_in

    def _rewrite(self, target: Region, function: types.FunctionType) -> Callable[[], None]:
        """Give a function the code of its source with the region replaced, beside those that are already."""
        kept, regions = self._rewritten.setdefault(function, (function.__code__, []))
        before = with_regions(function, regions)
        regions.append(target)
        after = with_regions(function, regions)
        function.__code__ = compiled(after, function.__code__)
        function.__globals__[CALL] = _region_call
        _regions[target.name] = target
        if self.show:
            old, new = (ast.unparse(tree).splitlines() for tree in (before, after))
            self.show("\n".join(difflib.unified_diff(old, new, "original", target.name, lineterm="")))

        def undo() -> None:
            regions.remove(target)
            if regions:
                function.__code__ = compiled(with_regions(function, regions), function.__code__)
                return
            function.__code__ = kept
            del self._rewritten[function]
            if not any(other.__globals__ is function.__globals__ for other in self._rewritten):
                function.__globals__.pop(CALL, None)

        return undo


def rebind(old: Any, new: Any) -> None:
    """Give every name of a loaded module, and every entry of a dictionary of one, that is `old` the value `new`."""
    for namespace in _namespaces():
        for key, value in list(namespace.items()):
            if value is old:
                namespace[key] = new
            elif type(value) is dict and key != "__builtins__" and len(value) <= _TABLE_SIZE:
                for inner, entry in list(value.items()):
                    if entry is old:
                        value[inner] = new


def _namespaces() -> Iterator[dict[str, Any]]:
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] != _OWN and isinstance(getattr(module, "__dict__", None), dict):
            yield module.__dict__


_regions: dict[str, Region] = {}


def _region_call(name: str, inputs: dict[str, Any]) -> RegionCall:
    return RegionCall(_regions[name], inputs)


def _lookup(module: Any, qualname: str) -> tuple[Any, str, Any] | None:
    holder, thing = None, module
    for part in qualname.split("."):
        holder, thing = thing, vars(thing).get(part) if hasattr(thing, "__dict__") else None
        if thing is None:
            return None
    thing = thing.__func__ if isinstance(thing, (staticmethod, classmethod)) else thing
    return holder, qualname.rpartition(".")[2], thing


def _is_wrapped(thing: Any, target: Target) -> bool:
    """Whether a function was wrapped after its definition, where its source does not say so.

    What a library wraps by itself (scikit-learn does, when it makes a class) belongs to it.
    """
    while hasattr(thing, STANDS_FOR):
        thing = thing.__wrapped__
    if not hasattr(thing, "__wrapped__"):
        return False
    wrapper = getattr(thing, "__globals__", {}).get("__name__", "")
    if target.module is not None and wrapper.partition(".")[0] == target.module.partition(".")[0]:
        return False
    return not getattr(definition_of(thing), "decorator_list", None)


def _is_defined_in(thing: Any, module: str, target: Target) -> bool:
    if BUILTIN in target.hashes:
        return inspect.isbuiltin(thing)
    return getattr(thing, "__module__", None) == module


def _note(lines: list[str], line: str) -> bool:
    """Add a line that is not there yet."""
    is_new = line not in lines
    if is_new:
        lines.append(line)
    return is_new


def _is_known_otherwise(module: Any, target: Target, thing: Any, targets: Iterable[Target]) -> bool:
    """Whether another target of this name, for another published version, knows the source."""
    others = (other for other in targets if other.qualname == target.qualname and other is not target)
    return any(
        isinstance(other, Region) == isinstance(target, Region) and _why_unknown(module, other, thing) is None
        for other in others
    )


def _why_unknown(module: Any, target: Target, thing: Any) -> str | None:
    if _is_wrapped(thing, target):
        return "it is wrapped by something else"
    if isinstance(target, Region):
        tree = definition_of(thing) if inspect.isfunction(inspect.unwrap(thing)) else None
        if tree is None or find_run(tree, target.length, target.hashes) is None:
            return "it holds none of the statements that this target knows"
        lost = lost_names(tree, target)  # takes the region out of this tree
        if lost:
            return f"it goes on to use {', '.join(lost)}, which this target does not give"
    else:
        found = fingerprint_of(thing)
        if found not in target.hashes:
            return f"its source is none that this target knows (fingerprint {found})"
    for qualname, hashes in target.requires.items():
        other = _lookup(module, qualname)
        found = None if other is None else fingerprint_of(other[2])
        if found not in hashes:
            return (
                f"it depends on {qualname}, whose source is none that this target knows (fingerprint {found})"
            )
    return None
