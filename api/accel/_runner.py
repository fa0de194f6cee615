"""Running a script with targets installed, as `python script.py` would run it.

What the script itself defines is met as soon as it is defined: after each function or class that a target might know or
depend on, one call is added to the script's syntax tree, in memory.
"""

import ast
import builtins
import importlib.machinery
import runpy
import sys
import types
from collections.abc import Sequence
from pathlib import Path

from ._install import active, adopt

_CALL = "__kernel_distill_adopt__"
_OURS = (__file__, runpy.__file__, "<frozen runpy>")


def run_script(script: str, arguments: Sequence[str]) -> None:
    """Execute a file as `__main__`.

    Raises
    ------
    OSError, SyntaxError
        If it cannot be read or is not Python; and whatever it raises.
    """
    path = Path(script).absolute()
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except SyntaxError as error:
        raise error.with_traceback(None) from None  # no frame of the parser's
    module = types.ModuleType("__main__")
    module.__file__ = str(path)
    module.__loader__ = importlib.machinery.SourceFileLoader("__main__", str(path))
    module.__dict__["__builtins__"] = builtins
    module.__dict__[_CALL] = lambda: adopt(module, is_complete=False)
    sys.argv = [script, *arguments]
    _replace_first_of_path(str(path.resolve().parent))
    sys.modules["__main__"] = module
    exec(compile(with_adoption(tree), str(path), "exec", dont_inherit=True), module.__dict__)


def run_module(name: str, arguments: Sequence[str]) -> None:
    """Execute a module as `__main__`, like `python -m`; what it imports is met, not what it defines itself."""
    sys.argv = [name, *arguments]
    _replace_first_of_path(str(Path.cwd()))
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def frames_of_the_script(error: BaseException) -> types.TracebackType | None:
    """The traceback from the script on; none of a script that cannot be parsed."""
    frame = error.__traceback__
    for is_ours in (False, True):  # those before this module's, then this module's
        while frame is not None and (frame.tb_frame.f_code.co_filename in _OURS) == is_ours:
            frame = frame.tb_next
    return frame


def with_adoption(tree: ast.Module) -> ast.Module:
    """The module with a call after every definition, outside of other definitions, of a name that targets look for."""
    names = {
        name.partition(".")[0]
        for target in active.values()
        for name in (target.qualname, *target.requires, *target.hints)
    }
    tree.body = _with_calls(tree.body, names)
    return ast.fix_missing_locations(tree)


def _with_calls(body: list[ast.stmt], names: set[str]) -> list[ast.stmt]:
    """Statements with a call after each definition of a name, also within `if`, `try`, `with` and the like."""
    found: list[ast.stmt] = []
    for node in body:
        found.append(node)
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            for part in (node, *getattr(node, "handlers", ()), *getattr(node, "cases", ())):
                for field in ("body", "orelse", "finalbody"):
                    if getattr(part, field, None):
                        setattr(part, field, _with_calls(getattr(part, field), names))
        elif node.name in names:
            call = ast.Expr(ast.Call(ast.Name(_CALL, ast.Load()), [], []))
            found.append(ast.copy_location(call, node))
    return found


def _replace_first_of_path(folder: str) -> None:
    """Where Python puts the folder of a script; what stood there is the folder of whoever runs it."""
    if sys.flags.safe_path:
        return
    sys.path[:1] = [folder]
