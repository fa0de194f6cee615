"""Installing and taking back: known sources only, every name, and afterwards the very objects that were there."""

import ast
import dataclasses
import functools
import importlib
import inspect
import logging
import pickle
import sys
import types

import numpy as np
import pytest

from kernel_distill import accel
from kernel_distill.accel._call import Settings, accelerated
from kernel_distill.accel._fingerprint import definitions, fingerprint

from .conftest import PEER


def state_of(module):
    """Everything that a patch could touch; objects are compared by identity."""
    found = {name: id(value) for name, value in vars(module).items()}
    for holder in [module.Net, getattr(module, "TABLE", {})]:
        entries = dict(holder) if isinstance(holder, dict) else vars(holder)
        found |= {(id(holder), name): id(value) for name, value in entries.items()}
    functions = [value for value in vars(module).values() if inspect.isfunction(value)]
    return found | {(id(function), "code"): id(function.__code__) for function in functions}


@pytest.mark.parametrize("imported_first", [True, False])
def test_every_name_is_replaced_and_restored(peer, imported_first):
    if imported_first:
        import invented_user
    accel.install()
    import invented_peer
    import invented_user

    assert invented_user.use([1, 2]) == 6.0
    assert invented_peer.TABLE["total"]([1, 2]) == 6.0
    assert invented_peer.Net().inverse(6) == 2
    assert invented_peer.Net.twice(2) == invented_peer.Net().twice(2) == 4
    values, n = invented_peer.main(3)
    assert len(values) == n == 3
    assert peer.made.calls == ["total", "total", "inverse", "twice", "twice", "loop"]

    accel.uninstall()
    assert invented_user.summed is invented_peer.total
    assert invented_user.use([1, 2]) == 6.0
    assert len(invented_peer.main(3)[0]) == 3
    assert len(peer.made.calls) == 6


def test_the_objects_are_the_very_ones(peer):
    import invented_peer
    import invented_user

    before, finders = (state_of(invented_peer), state_of(invented_user)), list(sys.meta_path)
    for _ in range(2):
        accel.install()
        accel.install()  # twice is once
        assert state_of(invented_peer) != before[0]
        accel.uninstall()
        assert (state_of(invented_peer), state_of(invented_user)) == before
        assert sys.meta_path == finders


def test_loaders_are_those_that_they_would_be(peer):
    accel.install()
    import invented_peer

    assert type(invented_peer.__loader__).__name__ == "SourceFileLoader"
    assert invented_peer.__spec__.loader is invented_peer.__loader__
    assert "Sum." in inspect.getdoc(invented_peer.total)


def test_a_module_that_is_reloaded_is_met_again(peer):
    accel.install("invented.total")
    import invented_peer

    first = invented_peer.total
    importlib.reload(invented_peer)
    assert invented_peer.total is not first
    assert invented_peer.total([1]) == 2.0
    assert peer.made.calls == ["total"]
    plain = invented_peer.total.__wrapped__
    accel.uninstall()
    assert invented_peer.total is plain


def test_signature_documentation_and_pickle_survive(peer):
    import invented_peer

    signature = inspect.signature(invented_peer.total)
    accel.install()
    assert inspect.signature(invented_peer.total) == signature
    assert invented_peer.total.__name__ == "total"
    assert pickle.loads(pickle.dumps(invented_peer.total)) is invented_peer.total


def test_unknown_source_is_left_alone_with_a_line(peer, caplog):
    path = peer.folder / "invented_peer.py"
    path.write_text(path.read_text().replace("return x / self.scale", "return x // self.scale"))
    with caplog.at_level(logging.WARNING, "kernel_distill.accel"):
        accel.install("invented.inverse", "invented.total")
        import invented_peer

    assert invented_peer.Net().inverse(7) == 2
    assert peer.made.calls == []
    (line,) = [record.message for record in caplog.records if "left alone" in record.message]
    assert "invented_peer.Net.inverse is left alone: its source is none that this target knows" in line
    unknown = {row["target"]: row["unknown"] for row in accel.report().rows}["invented.inverse"]
    assert [line.partition(":")[0] for line in unknown] == ["invented_peer.Net.inverse"]


def test_a_source_that_another_target_of_the_name_knows_is_no_unknown_one(peer, caplog, monkeypatch):
    other = dataclasses.replace(peer.known["total"], name="invented.later", hashes=("0" * 16,))
    monkeypatch.setitem(peer.known, "later", other)
    with caplog.at_level(logging.WARNING, "kernel_distill.accel"):
        accel.install()
        import invented_peer

    assert invented_peer.total([1]) == 2.0
    assert "invented_peer.total is left alone" not in caplog.text


def test_a_dependency_of_unknown_source_counts_too(peer, caplog, monkeypatch):
    known = peer.known["total"]
    monkeypatch.setitem(peer.known, "total", dataclasses.replace(known, requires={"noisy": ("0" * 16,)}))
    with caplog.at_level(logging.WARNING, "kernel_distill.accel"):
        accel.install("invented.total")
        import invented_peer

    assert invented_peer.total([1]) == 2.0
    assert peer.made.calls == []
    assert "it depends on noisy" in caplog.text


def test_a_region_is_sought_only_where_its_hints_are(peer, caplog):
    (peer.folder / "invented_user.py").write_text("def main(n):\n    return n\n")
    with caplog.at_level(logging.WARNING, "kernel_distill.accel"):
        accel.install("invented.loop")
        import invented_user

    assert invented_user.main(2) == 2
    assert caplog.text == ""


def test_a_guard_leaves_calls_to_the_original_and_says_so_once(peer, caplog):
    accel.install()
    import invented_peer

    with caplog.at_level(logging.WARNING, "kernel_distill.accel"):
        for _ in range(3):
            with pytest.raises(TypeError):
                invented_peer.total("text")
    assert caplog.text.count("left to the original: text is not summed here") == 1
    (row,) = [row for row in accel.report().rows if row["target"] == "invented.total"]
    assert (row["calls"], row["accelerated"], row["declined"]) == (3, 0, {"text is not summed here": 3})


def test_patched_is_a_context_and_a_decorator(peer):
    import invented_peer

    with accel.patched("invented.total"):
        invented_peer.total([1])
        with accel.patched("invented"):
            invented_peer.Net.twice(1)
        invented_peer.total([1])
        invented_peer.Net.twice(1)
    invented_peer.total([1])

    @accel.patched("invented.total")
    def run():
        return invented_peer.total([1])

    assert run() == 2.0
    assert peer.made.calls == ["total", "twice", "total", "total"]


def test_an_error_in_the_block_restores_too(peer):
    import invented_peer

    original = invented_peer.total
    with pytest.raises(KeyError), accel.patched("invented.total"):
        raise KeyError
    assert invented_peer.total is original


@pytest.mark.parametrize("equivalence", ["corrects", "exact"])
def test_some_targets_are_installed_by_name_only(peer, monkeypatch, equivalence):
    import invented_peer

    other = dataclasses.replace(
        peer.known["total"], equivalence=equivalence, by_name_only=equivalence == "exact"
    )
    monkeypatch.setitem(peer.known, "total", other)
    for names in ((), ("invented",)):
        with accel.patched(*names):
            invented_peer.total([1])
            invented_peer.Net.twice(1)
    assert set(peer.made.calls) == {"twice"}
    with accel.patched("invented.total"):
        invented_peer.total([1])
    assert peer.made.calls[-1] == "total"


@pytest.mark.parametrize("call", [accel.install, accel.uninstall, accel.patched, accel.explain])
def test_an_unknown_name_is_refused_with_the_nearest(peer, call):
    with pytest.raises(ValueError, match=r"unknown target 'invented\.totl'; did you mean 'invented\.total'"):
        call("invented.totl")


class TestEnvironment:
    def test_off(self, peer, monkeypatch, caplog):
        monkeypatch.setenv("KERNEL_DISTILL_ACCEL", "0")
        with caplog.at_level(logging.WARNING, "kernel_distill.accel"):
            accel.install()
            import invented_peer

        assert invented_peer.total([1]) == 2.0
        assert peer.made.calls == []
        assert "KERNEL_DISTILL_ACCEL is 0" in caplog.text

    def test_names(self, peer, monkeypatch):
        monkeypatch.setenv("KERNEL_DISTILL_ACCEL", "invented.twice, invented.noisy")
        accel.install()
        import invented_peer

        invented_peer.total([1])
        invented_peer.Net.twice(1)
        assert peer.made.calls == ["twice"]

    def test_verification(self, peer, monkeypatch):
        monkeypatch.setenv("KERNEL_DISTILL_ACCEL_VERIFY", "2")
        accel.install("invented.total")
        import invented_peer

        for _ in range(3):
            invented_peer.total([1])
        assert accel.report().rows[0]["verified"] == 2

    @pytest.mark.parametrize("value", ["many", "-1", "1.5"])
    def test_bad_number(self, peer, monkeypatch, value):
        monkeypatch.setenv("KERNEL_DISTILL_ACCEL_VERIFY", value)
        with pytest.raises(ValueError, match="KERNEL_DISTILL_ACCEL_VERIFY must be a number of calls"):
            accel.install()

    def test_bad_level(self, peer, monkeypatch):
        monkeypatch.setenv("KERNEL_DISTILL_ACCEL_LOG", "loud")
        with pytest.raises(ValueError, match="must be one of debug, info, warning, silent"):
            accel.install()


class TestVerification:
    def test_agreeing_calls(self, peer):
        accel.install(verify=1)
        import invented_peer

        np.random.seed(3)
        expected = np.random.rand(4)
        np.random.seed(3)
        first = invented_peer.noisy(2)
        assert np.array_equal(np.concatenate([first, invented_peer.noisy(2)]), expected)
        for _ in range(2):
            invented_peer.main(2)
        rows = {row["target"]: row for row in accel.report().rows}
        for name, difference in (("invented.noisy", 0.0), ("invented.loop", 0.0)):
            assert (rows[name]["verified"], rows[name]["calls"]) == (1, 2)
            assert rows[name]["difference"] == difference
            assert rows[name]["speed"] > 0

    def test_a_region_draws_what_the_original_draws(self, peer):
        import invented_peer

        np.random.seed(0)
        expected = [invented_peer.main(3)[0], invented_peer.main(3)[0]]
        for verify in (0, 1, 2):
            with accel.patched("invented.loop", verify=verify):
                np.random.seed(0)
                assert [invented_peer.main(3)[0], invented_peer.main(3)[0]] == expected

    def test_what_the_original_changes_is_a_copy(self, peer):
        accel.install(verify=1)
        import invented_peer

        state = []
        invented_peer.fit(state, 5)
        assert state == [5]

    def test_a_difference_above_the_tolerance_stops(self, peer, monkeypatch):
        monkeypatch.setattr(peer.made, "total", lambda x, times=2: float(np.sum(x)) * times + 1e-6)
        accel.install(verify=1)
        import invented_peer

        with pytest.raises(
            accel.VerificationError, match=r"difference 5e-07, 1e-12 allowed.*invented_peer.total"
        ):
            invented_peer.total([1])
        accel.install(verify=5, tolerance=1e-5)
        assert invented_peer.total([1]) == 2.0 + 1e-6

    def test_a_region_above_the_tolerance_stops(self, peer, monkeypatch):
        monkeypatch.setattr(peer.made, "loop", lambda n, get, values: ([0.0] * n,))
        accel.install("invented.loop", verify=1)
        import invented_peer

        with pytest.raises(accel.VerificationError, match=r"invented\.loop"):
            invented_peer.main(2)

    def test_the_original_runs_with_originals(self, peer):
        """`main` calls `twice` in place of NumPy: its verified statements do not call the stand-in."""
        import invented_peer

        accel.install(verify=1)
        calls = []
        region = invented_peer.main.__globals__["__kernel_distill_region__"]
        peer.made.loop = lambda n, get, values: ([get(i) for i in range(n)],)

        def watched(name, inputs):
            call = region(name, inputs)
            calls.append(call.needs_original)
            return call

        invented_peer.__kernel_distill_region__ = watched
        invented_peer.np = types.SimpleNamespace(
            random=types.SimpleNamespace(rand=lambda: invented_peer.Net.twice(1))
        )
        peer.made.calls.clear()
        invented_peer.main(2)
        assert calls == [True]
        assert peer.made.calls == ["twice", "twice"]  # of the replacement, none of the statements

    def test_generators_that_are_passed_are_set_back(self, peer, monkeypatch):
        import invented_peer
        import torch

        def drawn(x, times=2):
            return float(torch.rand((), generator=x))

        monkeypatch.setattr(peer.made, "total", drawn)
        monkeypatch.setattr(invented_peer, "total", functools.wraps(invented_peer.total)(drawn))
        values = []
        for verify in (0, 1):
            generator = torch.Generator().manual_seed(0)
            stand_in = accelerated(dataclasses.replace(peer.known["total"], guard=None), drawn)
            monkeypatch.setattr(Settings, "verify", verify)
            values.append([stand_in(generator), stand_in(generator)])
        assert values[0] == values[1]

    def test_an_error_in_verified_statements_ends_their_being_alone(self, peer, monkeypatch):
        accel.install(verify=1)
        import invented_peer

        def fail():
            raise KeyError

        peer.made.loop = lambda n, get, values: ([],)
        invented_peer.np = types.SimpleNamespace(random=types.SimpleNamespace(rand=fail))
        with pytest.raises(KeyError):
            invented_peer.main(1)
        peer.made.calls.clear()
        invented_peer.Net.twice(2)
        assert peer.made.calls == ["twice"]


def test_what_is_held_since_before_it_was_taken_out_calls_the_original(peer):
    import invented_peer

    with accel.patched("invented.total"):
        held = functools.partial(invented_peer.total)
        held([1])
    assert held([1]) == 2.0
    assert peer.made.calls == ["total"]


def test_a_decorated_function_may_call_itself(peer):
    import invented_peer

    original = invented_peer.total

    @accel.patched("invented.total")
    def run(n):
        return invented_peer.total([1]) + (run(n - 1) if n else 0)

    assert run(2) == 6.0
    assert invented_peer.total is original
    assert peer.made.calls == ["total"] * 3


def test_a_function_that_was_wrapped_afterwards_is_left_alone(peer, caplog):
    path = peer.folder / "invented_peer.py"
    path.write_text(
        path.read_text() + "import functools\nplain = total\n@functools.wraps(plain)\n"
        "def loud(*args):\n    return plain(*args) + 1\ntotal = loud\n"
    )
    with caplog.at_level(logging.WARNING, "kernel_distill.accel"):
        accel.install("invented.total")
        import invented_peer

    assert invented_peer.total([1]) == 3.0
    assert "it is wrapped by something else" in caplog.text


def test_statements_that_bind_what_is_used_later_are_left_alone(peer, caplog):
    path = peer.folder / "invented_peer.py"
    path.write_text(path.read_text().replace("    return values, n", "    return values, n, i"))
    with caplog.at_level(logging.WARNING, "kernel_distill.accel"):
        accel.install("invented.loop")
        import invented_peer

    assert invented_peer.main(2)[1:] == (2, 1)
    assert "it goes on to use i, which this target does not give" in caplog.text


METHOD = '''
from __future__ import annotations

class Net:
    __hidden = 5

    def main(self, n: Undefined, dict=None):
        text = """a
          b"""
        def inner(x: Undefined):
            return x
        values = []
        for i in range(n):
            values.append(inner(i) + self.__hidden)
        return values, text, super().__repr__() != ""
'''


@pytest.mark.parametrize("verify", [0, 1])
def test_a_region_of_a_method_is_compiled_like_its_source(peer, monkeypatch, verify):
    """Private names, `super`, strings of several lines, annotations that are no names, and a local called `dict`."""
    (peer.folder / "invented_user.py").write_text(METHOD)
    tree = dict(definitions(ast.parse(METHOD)))["Net.main"]
    target = dataclasses.replace(
        peer.known["loop"],
        qualname="Net.main",
        hashes=(fingerprint(tree.body[3]),),
        inputs=("n", "inner", "values"),
        replacement="invented:numbers",
    )
    monkeypatch.setitem(peer.known, "loop", target)
    peer.made.numbers = lambda n, inner, values: ([inner(i) + 5 for i in range(n)],)
    import invented_user

    expected = invented_user.Net().main(3)
    with accel.patched("invented.loop", verify=verify):
        assert invented_user.Net.main.__code__.co_qualname == "Net.main"
        assert invented_user.Net().main(3) == expected


def test_two_regions_of_one_function(peer, monkeypatch):
    """Each is put in and taken out beside the other, in any order."""
    tree = dict(definitions(ast.parse(PEER)))["main"]
    monkeypatch.setitem(
        peer.known,
        "start",
        dataclasses.replace(
            peer.known["loop"],
            name="invented.start",
            hashes=(fingerprint(tree.body[0]),),
            replacement="invented:start",
            inputs=("n",),
        ),
    )
    peer.made.start = lambda n: ([-1.0],)
    import invented_peer

    code = invented_peer.main.__code__
    for order in (("start", "loop"), ("loop", "start")):
        for name in order:
            accel.install(f"invented.{name}")
        assert invented_peer.main(2)[0][0] == -1.0
        peer.made.calls.clear()
        accel.uninstall(f"invented.{order[0]}")
        values, _ = invented_peer.main(2)
        assert (len(values) == 3) == (order[0] == "loop")
        assert (peer.made.calls == ["loop"]) == (order[0] == "start")
        accel.uninstall()
        assert invented_peer.main.__code__ is code
        assert "__kernel_distill_region__" not in vars(invented_peer)


def test_report_and_explain(peer, tmp_path):
    accel.install(verify=1)
    import invented_peer

    invented_peer.total([1])
    text = str(accel.report())
    assert "invented.total" in text
    assert "invented_peer.total" in text
    page = tmp_path / "report.html"
    accel.report().html(page)
    assert "invented.total" in page.read_text()
    with pytest.raises(FileExistsError):
        accel.report().html(page)
    words = accel.explain("invented.total")
    assert "class: exact: the same numbers, up to 1e-12 of the largest" in words
    assert accel.explain("invented").count("replaces:") == len(peer.known)
