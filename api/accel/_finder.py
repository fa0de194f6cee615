"""Meeting modules as they are imported: each is offered to the targets right after it has run."""

import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any


class Finder(importlib.abc.MetaPathFinder):
    """Calls `adopt` with every module that another finder finds, once it has been executed.

    Parameters
    ----------
    adopt : callable
    """

    def __init__(self, adopt: Callable[[types.ModuleType], None]) -> None:
        self._adopt = adopt

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec = None if find is None else find(fullname, path, target)
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader, self._adopt)  # type: ignore[arg-type]  # forwards what it is
                return spec
        return None


class _Loader(importlib.abc.Loader):
    """Another loader, followed by a call; afterwards the module has its own loader again."""

    def __init__(self, loader: Any, adopt: Callable[[types.ModuleType], None]) -> None:
        self._loader, self._adopt = loader, adopt

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._adopt(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)
