"""What a piece of source is recognised by: a hash of its syntax tree.

Published research code has no versions, and people copy it. Two sources have the same fingerprint if and only if they
are the same program text: white space, comments, docstrings and line breaks do not count, everything else does. The
tree is written out here, not by `ast.dump`, whose output depends on the version of Python.
"""

import ast
import hashlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

# Functions compiled into a library have no source: they are known by their module and name.
BUILTIN = "builtin"
_DIGITS = 16
_SKIPPED = ("ctx", "kind", "type_comment", "type_ignores")
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def fingerprint(*nodes: ast.AST) -> str:
    """Hash of one or more syntax trees in order, 16 hexadecimal digits."""
    text = "\n".join("".join(_written(node)) for node in nodes)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def fingerprint_of(thing: Any) -> str | None:
    """Fingerprint of a live function or class, decorators included; None where its source cannot be read."""
    if inspect.isbuiltin(thing):
        return BUILTIN
    node = definition_of(thing)
    return None if node is None else fingerprint(node)


def definition_of(thing: Any) -> ast.stmt | None:
    """Syntax tree of a live function or class; None where its source cannot be read."""
    try:
        source = inspect.getsource(thing)
        if not source[:1].isspace():
            return ast.parse(source).body[0]
        # As it stands, indented: taking the indentation away would change strings of several lines.
        block = ast.parse(f"if 1:\n{source}").body[0]
        assert isinstance(block, ast.If)
        return ast.increment_lineno(block.body[0], -1)
    except (OSError, TypeError, SyntaxError, IndexError):
        return None


def definitions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Functions and classes of a module, and what classes hold, by qualified name."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from definitions(node, f"{prefix}{node.name}.")


def find_run(tree: ast.AST, length: int, wanted: Sequence[str]) -> tuple[list[ast.stmt], int] | None:
    """The first `length` statements in a row with one of the fingerprints: their list, and where in it they begin."""
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            block = getattr(node, field, None)
            if not isinstance(block, list):
                continue
            for start in range(len(block) - length + 1):
                if fingerprint(*block[start : start + length]) in wanted:
                    return block, start
    return None


def _written(node: Any) -> Iterator[str]:
    if isinstance(node, list):
        yield "["
        for entry in node:
            yield from _written(entry)
        yield "]"
    elif isinstance(node, ast.AST):
        yield f"({type(node).__name__}"
        for name, value in ast.iter_fields(node):
            if name in _SKIPPED or value is None or value == []:
                continue
            yield f" {name}="
            yield from _written(
                _undocumented(value) if name == "body" and isinstance(node, _DOCUMENTED) else value
            )
        yield ")"
    else:
        yield f"{type(node).__name__}:{node!r};"


def _undocumented(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0]
    text = first.value if isinstance(first, ast.Expr) else None
    return body[1:] if isinstance(text, ast.Constant) and isinstance(text.value, str) else body


if __name__ == "__main__":
    import sys
    from pathlib import Path

    # python -m kernel_distill.accel._fingerprint FILE [QUALIFIED NAME ...]: for new entries of the registry.
    found = dict(definitions(ast.parse(Path(sys.argv[1]).read_text())))
    for name in sys.argv[2:] or found:
        print(fingerprint(found[name]), name)
