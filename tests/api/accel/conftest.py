"""A module of nobody's, and targets that know it, for the tests of installing and taking back."""

import ast
import importlib
import sys
import types

import pytest

from kernel_distill.accel import Region, Target, _report, registry, uninstall
from kernel_distill.accel._fingerprint import definitions, fingerprint
from kernel_distill.accel._records import records

PEER = '''
import numpy as np

def total(x, times=2):
    """Sum."""
    return float(np.sum(x)) * times  # in double

def noisy(n):
    return np.random.rand(n)

class Net:
    scale = 3

    def inverse(self, x):
        return x / self.scale

    @staticmethod
    def twice(x):
        return x + x

def fit(self_state, x):
    self_state.append(x)
    return x

def main(n):
    values = []
    def get(i):
        return i * n + np.random.rand()
    for i in range(n):
        values.append(get(i))
    return values, n

TABLE = {"total": total}
'''
USER = "from invented_peer import total as summed, Net\n\ndef use(x):\n    return summed(x)\n"
COMMON = {
    "equivalence": "exact",
    "tolerance": 1e-12,
    "summary": "s",
    "changes": "nothing",
    "identical": "all",
}


def targets():
    """One of each kind, by name."""
    known = dict(definitions(ast.parse(PEER)))
    main = known["main"]
    found = {
        name: Target(
            name=f"invented.{name}",
            qualname=qualname,
            hashes=(fingerprint(known[qualname]),),
            replacement=f"invented:{name}",
            **COMMON,
            **more,
        )
        for name, qualname, more in (
            ("total", "total", {"guard": "invented:no_text"}),
            ("noisy", "noisy", {}),
            ("inverse", "Net.inverse", {}),
            ("twice", "Net.twice", {}),
            ("fit", "fit", {"mutates": ("self_state",)}),
        )
    }
    found["loop"] = Region(
        name="invented.loop",
        qualname="main",
        hashes=(fingerprint(main.body[2]),),
        replacement="invented:loop",
        inputs=("n", "get", "values"),
        outputs=("values",),
        hints=("Net",),
        **COMMON,
    )
    return found


def replacements():
    """A module with what takes their place."""
    import numpy as np

    made = types.ModuleType("replacements")
    made.calls = []

    def counted(function):
        def run(*args, **kwargs):
            made.calls.append(function.__name__)
            return function(*args, **kwargs)

        setattr(made, function.__name__, run)

    @counted
    def total(x, times=2):
        return float(np.sum(x)) * times

    @counted
    def noisy(n):
        return np.random.rand(n)

    @counted
    def inverse(self, x):
        return x / self.scale

    @counted
    def twice(x):
        return 2 * x

    @counted
    def fit(self_state, x):
        self_state.append(x)
        return x

    @counted
    def loop(n, get, values):
        return ([*values, *(get(i) for i in range(n))],)

    made.no_text = lambda x, times=2: "text is not summed here" if isinstance(x, str) else None
    return made


@pytest.fixture
def peer(monkeypatch, tmp_path):
    """The module `invented_peer` on the path, not imported; targets and replacements in the registry."""
    (tmp_path / "invented_peer.py").write_text(PEER)
    (tmp_path / "invented_user.py").write_text(USER)
    monkeypatch.syspath_prepend(tmp_path)
    made, known = replacements(), targets()
    monkeypatch.setitem(sys.modules, "kernel_distill.accel.replacements.invented", made)
    for module in (registry, _report):
        monkeypatch.setattr(module, "all_targets", lambda: tuple(known.values()))
    for name in ("KERNEL_DISTILL_ACCEL", "KERNEL_DISTILL_ACCEL_VERIFY", "KERNEL_DISTILL_ACCEL_LOG"):
        monkeypatch.delenv(name, raising=False)
    records.clear()
    importlib.invalidate_caches()
    yield types.SimpleNamespace(folder=tmp_path, made=made, known=known)
    uninstall()
    records.clear()
    for name in ("invented_peer", "invented_user"):
        sys.modules.pop(name, None)
