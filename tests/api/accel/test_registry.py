"""Every entry of the registry is complete, and what it names is there."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from kernel_distill.accel import Region, all_targets
from kernel_distill.accel._fingerprint import BUILTIN
from kernel_distill.accel._report import targets_page
from kernel_distill.accel.registry import GROUPS, select

TARGETS = {target.name: target for target in all_targets()}


@pytest.mark.parametrize("name", TARGETS)
def test_an_entry_is_complete(name):
    target = TARGETS[name]
    assert target.group in GROUPS
    assert target.hashes
    for value in (*target.hashes, *(entry for hashes in target.requires.values() for entry in hashes)):
        assert value == BUILTIN or (len(value) == 16 and int(value, 16) >= 0)
    assert target.tolerance >= 0
    assert (target.distribution != "nothing") == (target.equivalence == "statistical")
    for words in (target.summary, target.changes, target.identical, target.distribution):
        assert words
        assert words == words.strip()


@pytest.mark.parametrize("name", TARGETS)
def test_what_it_names_is_there_and_takes_the_same_arguments(name):
    target = TARGETS[name]
    replacement, guard = target.load("replacement"), target.load("guard")
    taken = inspect.signature(replacement).parameters
    if guard is not None:
        assert list(inspect.signature(guard).parameters) == list(taken)
    if isinstance(target, Region):
        assert set(taken) == set(target.inputs)
    else:
        assert set(target.mutates) <= set(taken)
    if target.compare is not None:
        assert len(inspect.signature(target.load("compare")).parameters) == 2


def test_names_are_distinct():
    assert len(TARGETS) == len(all_targets())


def test_groups_are_selected_without_what_must_be_named():
    assert {target.name for target in select(("sklearn",))} == {
        name for name, target in TARGETS.items() if target.group == "sklearn" and target.is_default
    }
    assert "deepcore.herding" not in {target.name for target in select(())}
    assert "torch.multinomial" not in {target.name for target in select(())}
    assert [target.name for target in select(("torch.multinomial",))] == ["torch.multinomial"]


def test_the_page_is_current():
    page = Path(__file__).parents[3] / "docs" / "accel-targets.md"
    assert page.read_text() == targets_page(), (
        "kernel-distill accel --list --markdown > docs/accel-targets.md"
    )


def test_listing_loads_no_replacement():
    code = (
        "import sys\nfrom kernel_distill.accel.registry import all_targets\nall_targets()\n"
        "print([n for n in sys.modules if 'replacements.' in n or n.partition('.')[0] in ('torch', 'sklearn')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
