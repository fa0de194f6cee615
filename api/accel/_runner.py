"""Running a script with targets installed, as `python script.py` would run it.

What the script itself defines is met as soon as it is defined: after each function or class that a target might know,
one call is added to the script's syntax tree, in memory.
"""

import ast
import runpy
import sys
import types
from collections.abc import Sequence
from pathlib import Path

from ._install import active, adopt

_CALL = "__kernel_distill_adopt__"


def run_script(script: str, arguments: Sequence[str]) -> None:
    """Execute a file as `__main__`.

    Raises
    ------
    OSError, SyntaxError
        If it cannot be read or is not Python; and whatever it raises.
    """
    path = Path(script)
    tree = ast.parse(path.read_bytes(), str(path))
    module = types.ModuleType("__main__")
    module.__file__ = str(path)
    module.__dict__[_CALL] = lambda: adopt(module)
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(path.resolve().parent))
    sys.modules["__main__"] = module
    exec(compile(with_adoption(tree), str(path), "exec"), module.__dict__)  # the user's own script


def run_module(name: str, arguments: Sequence[str]) -> None:
    """Execute a module as `__main__`, like `python -m`; what it imports is met, not what it defines itself."""
    sys.argv = [name, *arguments]
    sys.path.insert(0, str(Path.cwd()))
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def frames_of_the_script(error: BaseException) -> types.TracebackType | None:
    """The traceback without the frames of this module; none of a script that cannot be parsed."""
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_filename != sys.argv[0]:
        frame = frame.tb_next
    return frame or (None if isinstance(error, SyntaxError) else error.__traceback__)


def with_adoption(tree: ast.Module) -> ast.Module:
    """The module with a call after every definition whose name a target has."""
    names = {target.qualname.partition(".")[0] for target in active.values()}
    body: list[ast.stmt] = []
    for node in tree.body:
        body.append(node)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in names:
            call = ast.Expr(ast.Call(ast.Name(_CALL, ast.Load()), [], []))
            body.append(ast.copy_location(call, node))
    tree.body = body
    return ast.fix_missing_locations(tree)
