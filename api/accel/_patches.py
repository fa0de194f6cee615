"""Putting stand-ins in place of originals in live modules, and taking every one of them back.

A function is replaced in the module (or class) that defines it, and under every name by which a loaded module, or a
dictionary of one, knows it: `from utils import evaluate_synset` may have run long before. Statements within a function
are replaced by giving the same function object another code object. Undoing restores the objects themselves.
"""

import ast
import difflib
import inspect
import sys
import textwrap
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ._call import RegionCall, accelerated
from ._fingerprint import BUILTIN, definition_of, find_run, fingerprint_of
from ._log import logger
from ._records import record
from ._target import Region, Target

_CALL = "__kernel_distill_region__"
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

    def adopt(self, module: types.ModuleType | types.SimpleNamespace, targets: Iterable[Target]) -> None:
        """Replace what a module defines and a target knows; each place is looked at once."""
        name, targets = module.__name__, list(targets)
        if name.partition(".")[0] == _OWN:
            return
        for target in targets:
            found = _lookup(module, target.qualname) if target.module in (None, name) else None
            if found is None or not all(hint in vars(module) for hint in target.hints):
                continue
            holder, attribute, thing = found
            if self._seen.get((target.name, name)) is thing or not _is_defined_in(thing, name, target):
                continue
            place = f"{name}.{target.qualname}"
            reason = _why_unknown(module, target, thing)
            if reason is None:
                thing = self._replace(target, holder, attribute, thing)
                record(target.name).places.append(place)
                logger.info("%s: %s is replaced (%s)", target.name, place, target.equivalence)
            elif not _is_known_otherwise(module, target, thing, targets):
                record(target.name).unknown.append(f"{place}: {reason}")
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
            if vars(holder).get(attribute) is new:
                setattr(holder, attribute, kept)
            if not isinstance(holder, type):
                rebind(stand_in, thing)

        self._undo.append((target, undo))
        return stand_in

    def _rewrite(self, target: Region, function: types.FunctionType) -> Callable[[], None]:
        """Give a function the code of its source with the region replaced, beside those that are already."""
        kept, regions = self._rewritten.setdefault(function, (function.__code__, []))
        before = _with_regions(function, regions)
        regions.append(target)
        after = _with_regions(function, regions)
        function.__code__ = _compiled(after, function.__code__)
        function.__globals__[_CALL] = _region_call
        _regions[target.name] = target
        if self.show:
            old, new = (ast.unparse(tree).splitlines() for tree in (before, after))
            self.show("\n".join(difflib.unified_diff(old, new, "original", target.name, lineterm="")))

        def undo() -> None:
            regions.remove(target)
            if regions:
                function.__code__ = _compiled(_with_regions(function, regions), function.__code__)
                return
            function.__code__ = kept
            del self._rewritten[function]
            if not any(other.__globals__ is function.__globals__ for other in self._rewritten):
                function.__globals__.pop(_CALL, None)

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


def _with_regions(function: types.FunctionType, regions: Iterable[Region]) -> ast.AST:
    """Source of a function with some of its regions replaced, where it stands in its file."""
    tree = definition_of(function)
    assert tree is not None
    for target in regions:
        found = find_run(tree, target.length, target.hashes)
        assert found is not None
        block, start = found
        block[start : start + target.length] = _with_call(target, block[start : start + target.length])
    ast.fix_missing_locations(tree)
    return ast.increment_lineno(tree, function.__code__.co_firstlineno - 1)


def _with_call(target: Region, statements: list[ast.stmt]) -> list[ast.stmt]:
    """The call, and the statements for when it asks for them."""
    inputs = ", ".join(f"{name}={name}" for name in target.inputs)
    outputs = ", ".join(target.outputs) + ","
    text = f"""
        __region__ = {_CALL}({target.name!r}, dict({inputs}))
        if __region__.needs_original:
            __region__.compare(({outputs}))
        else:
            ({outputs}) = __region__.outputs
    """
    call, branch = ast.parse(textwrap.dedent(text)).body
    for node in (*ast.walk(call), *ast.walk(branch)):
        ast.copy_location(node, statements[0])
    assert isinstance(branch, ast.If)
    branch.body[:0] = statements
    return [call, branch]


def _compiled(tree: ast.AST, like: types.CodeType) -> types.CodeType:
    """The code object of a function definition, nested so that its free variables are free again."""
    assert isinstance(tree, (ast.FunctionDef, ast.AsyncFunctionDef))
    tree.decorator_list = []
    outer = ast.parse("def __outer__(): pass").body[0]
    assert isinstance(outer, ast.FunctionDef)
    bound = [ast.parse(f"{name} = None").body[0] for name in like.co_freevars]
    outer.body = [*bound, tree] if isinstance(tree, ast.stmt) else []
    module = ast.fix_missing_locations(ast.Module([outer], []))
    code: Any = compile(module, like.co_filename, "exec")
    for name in ("__outer__", tree.name):
        code = next(c for c in code.co_consts if isinstance(c, types.CodeType) and c.co_name == name)
    return code.replace(co_qualname=like.co_qualname)


def _lookup(module: Any, qualname: str) -> tuple[Any, str, Any] | None:
    holder, thing = None, module
    for part in qualname.split("."):
        holder, thing = thing, vars(thing).get(part) if hasattr(thing, "__dict__") else None
        if thing is None:
            return None
    thing = thing.__func__ if isinstance(thing, (staticmethod, classmethod)) else thing
    return holder, qualname.rpartition(".")[2], thing


def _is_defined_in(thing: Any, module: str, target: Target) -> bool:
    if BUILTIN in target.hashes:
        return inspect.isbuiltin(thing)
    return getattr(thing, "__module__", None) == module


def _is_known_otherwise(module: Any, target: Target, thing: Any, targets: Iterable[Target]) -> bool:
    """Whether another target of this name, for another published version, knows the source."""
    others = (other for other in targets if other.qualname == target.qualname and other is not target)
    return any(
        isinstance(other, Region) == isinstance(target, Region) and _why_unknown(module, other, thing) is None
        for other in others
    )


def _why_unknown(module: Any, target: Target, thing: Any) -> str | None:
    if isinstance(target, Region):
        tree = definition_of(thing) if inspect.isfunction(inspect.unwrap(thing)) else None
        if tree is None or find_run(tree, target.length, target.hashes) is None:
            return "it holds none of the statements that this target knows"
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
