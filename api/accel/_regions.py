"""Statements in the middle of a function that become a call: the function gets another code object, in memory.

The statements stay where they are, for passages that the guard refuses and for verification. No name of the user's
function is used but those of the region, and one of our own.
"""

import __future__

import ast
import inspect
import types
from collections.abc import Iterable, Sequence
from typing import Any

from ._fingerprint import definition_of, find_run
from ._target import Region

# How the call is known in the globals of a function with regions.
CALL = "__kernel_distill_region__"
_ANNOTATIONS = __future__.annotations.compiler_flag


def with_regions(function: types.FunctionType, regions: Sequence[Region]) -> ast.stmt:
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


def lost_names(tree: ast.AST, target: Region) -> list[str]:
    """Names that the statements of a region bind, that are no output of it, and that others read but do not bind."""
    found = find_run(tree, target.length, target.hashes)
    assert found is not None
    block, start = found
    region = block[start : start + target.length]
    _, bound = _names(region)
    block[start : start + target.length] = []
    read, bound_elsewhere = _names(tree.body if isinstance(tree, ast.FunctionDef) else [tree])
    return sorted((bound & read) - bound_elsewhere - set(target.outputs))


def _names(nodes: Iterable[ast.AST]) -> tuple[set[str], set[str]]:
    """Names that are read and that are bound; of functions within, what they read from outside."""
    read: set[str] = set()
    bound: set[str] = set()
    for node in nodes:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            inner_read, inner_bound = _names(ast.iter_child_nodes(node))
            arguments = {each.arg for each in ast.walk(node.args) if isinstance(each, ast.arg)}
            read |= inner_read - inner_bound - arguments
            bound |= {node.name} if not isinstance(node, ast.Lambda) else set()
        elif isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        else:
            inner_read, inner_bound = _names(ast.iter_child_nodes(node))
            read, bound = read | inner_read, bound | inner_bound
    return read, bound


def compiled(tree: ast.stmt, like: types.CodeType) -> types.CodeType:
    """The code object of a function definition, in place of another of it.

    It is compiled within a function that binds its free variables, so that they are free again, and within its class,
    whose name private names depend on; under the same `__future__` of annotations as its module.
    """
    assert isinstance(tree, (ast.FunctionDef, ast.AsyncFunctionDef))
    tree.decorator_list = []
    inner: ast.stmt = tree
    names = ["__outer__", tree.name]
    holder = like.co_qualname.rpartition(".")[0].rpartition(".")[2]
    if holder and holder != "<locals>":
        inner = ast.ClassDef(name=holder, bases=[], keywords=[], body=[tree], decorator_list=[])
        inner.__dict__["type_params"] = []  # of Python 3.12 and later
        names.insert(1, holder)
    outer = ast.parse("def __outer__(): pass").body[0]
    assert isinstance(outer, ast.FunctionDef)
    free = [name for name in like.co_freevars if name != "__class__"]
    outer.body = [*(ast.parse(f"{name} = None").body[0] for name in free), inner]
    module = ast.fix_missing_locations(ast.Module([outer], []))
    flags = like.co_flags & _ANNOTATIONS
    code: Any = compile(module, like.co_filename, "exec", flags=flags, dont_inherit=True)
    for name in names:
        code = next(c for c in code.co_consts if inspect.iscode(c) and c.co_name == name)
    return code.replace(co_qualname=like.co_qualname)


def _with_call(target: Region, statements: list[ast.stmt]) -> list[ast.stmt]:
    """The call, and the statements for when it asks for them."""
    inputs = ", ".join(f"{name!r}: {name}" for name in target.inputs)
    outputs = ", ".join(target.outputs) + ","
    text = f"""
__region__ = {CALL}({target.name!r}, {{{inputs}}})
if __region__.needs_original:
    with __region__:
        __region__.compare(({outputs}))
else:
    ({outputs}) = __region__.outputs
"""
    call, branch = ast.parse(text).body
    for node in (*ast.walk(call), *ast.walk(branch)):
        ast.copy_location(node, statements[0])
    assert isinstance(branch, ast.If)
    within = branch.body[0]
    assert isinstance(within, ast.With)
    within.body[:0] = statements
    return [call, branch]
