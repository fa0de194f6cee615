"""A module of ours in the place of one that cannot be imported.

Published scripts import libraries that no longer import, or that nobody can install beside a current torch. The genuine
module is always tried first. Where there is none, or importing it raises, modules of ours take its name: as much of it
as the scripts use.
"""

import contextlib
import dataclasses
import importlib.abc
import importlib.machinery
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ._fingerprint import BUILTIN
from ._log import logger
from ._records import record
from ._target import Target


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModuleTarget(Target):
    """A module that is stood in for where it cannot be imported.

    Attributes
    ----------
    qualname : str
        Name of the module.
    replacement : str
        "file:function" that returns modules by full name: this one and what lies below it.
    hashes : tuple of str
        Left as it is: the module is known by its name, whatever its source.
    """

    hashes: tuple[str, ...] = (BUILTIN,)

    def finder(self) -> "StandIn":
        """What makes imports fall back on ours, for `sys.meta_path`."""

        def make() -> Mapping[str, types.ModuleType]:
            modules = self.load("replacement")
            assert modules is not None
            return modules()

        return StandIn(self.qualname, make, target=self.name)


class StandIn(importlib.abc.MetaPathFinder):
    """Finds a module by the finders behind it, and falls back on ours.

    Parameters
    ----------
    name : str
        Of a top-level module.
    make_modules : callable
        Returns modules by full name, called once when they are needed.
    target : str, optional
        By which it is recorded; default `name`.

    Notes
    -----
    Belongs at the front of `sys.meta_path`, after which `forget` must be called once it is taken out again.
    """

    def __init__(
        self,
        name: str,
        make_modules: Callable[[], Mapping[str, types.ModuleType]],
        *,
        target: str | None = None,
    ) -> None:
        self.name, self._make, self._target = name, make_modules, target or name
        self._modules: Mapping[str, types.ModuleType] | None = None
        self._looking = threading.local()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if self._modules is not None:
            return self._own_spec(fullname) if fullname in self._modules else None
        # Another finder that asks all others, as the one of installed targets does, comes back here.
        if fullname != self.name or getattr(self._looking, "now", False):
            return None
        with self._search():
            spec = next((spec for spec in self._genuine(fullname, path, target) if spec is not None), None)
        if spec is None:
            self._fall_back("there is none")
            return self._own_spec(fullname)
        if hasattr(spec.loader, "exec_module"):
            spec.loader = _Trying(spec.loader, self)
        return spec

    def forget(self) -> None:
        """Take our modules out of `sys.modules`: the next import tries the genuine one again."""
        for name, module in (self._modules or {}).items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
        self._modules = None

    def take_the_place(self, module: types.ModuleType, error: Exception) -> None:
        """Put ours where importing the genuine one has raised."""
        for name in [name for name in sys.modules if name.startswith(f"{self.name}.")]:
            del sys.modules[name]
        self._fall_back(f"importing it raises {type(error).__name__}: {error}")
        assert self._modules is not None
        # The import under way hands out what `sys.modules` holds in the end.
        own = self._modules[self.name]
        own.__spec__ = module.__spec__
        sys.modules[self.name] = own

    def _fall_back(self, reason: str) -> None:
        self._modules = self._make()
        for module in self._modules.values():
            module.__path__ = []
        record(self._target).places.append(self.name)
        logger.warning("%s: ours stands in for %s: %s", self._target, self.name, " ".join(reason.split()))

    def _own_spec(self, fullname: str) -> importlib.machinery.ModuleSpec:
        assert self._modules is not None
        return importlib.machinery.ModuleSpec(fullname, _Made(self._modules[fullname]), is_package=True)

    @contextlib.contextmanager
    def _search(self) -> Iterator[None]:
        self._looking.now = True
        try:
            yield
        finally:
            self._looking.now = False

    def _genuine(self, *arguments: Any) -> Iterator[importlib.machinery.ModuleSpec | None]:
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)
            yield None if find is None else find(*arguments)


class _Made(importlib.abc.Loader):
    """A module that exists already."""

    def __init__(self, module: types.ModuleType) -> None:
        self._module = module

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return self._module

    def exec_module(self, module: types.ModuleType) -> None:
        return None


class _Trying(importlib.abc.Loader):
    """The genuine module's loader; should its module raise, ours takes its place."""

    def __init__(self, loader: Any, stand_in: StandIn) -> None:
        self._loader, self._stand_in = loader, stand_in

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        try:
            self._loader.exec_module(module)
        except Exception as error:  # whatever another library raises while it is imported
            self._stand_in.take_the_place(module, error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)
