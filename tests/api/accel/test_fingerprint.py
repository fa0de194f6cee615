"""Sources are the same if and only if their program text is: white space, comments and docstrings do not count."""

import ast
from pathlib import Path

import pytest

from kernel_distill.accel._fingerprint import (
    BUILTIN,
    definitions,
    find_run,
    fingerprint,
    fingerprint_of,
)

PLAIN = """
def f(x, y=1):
    z = x + y
    return [z, f"{z!r:>{y}}", b"a", 1.0, None]
"""
SAME = {
    "comments": PLAIN.replace("z = x + y", "z = x + y  # the sum"),
    "docstring": PLAIN.replace("y=1):\n", 'y=1):\n    """Add."""\n'),
    "white space": PLAIN.replace("z = x + y", "z =  (x\n      + y)"),
    "quotes": PLAIN.replace('b"a"', "b'a'"),
    "indentation": PLAIN.replace("    ", "  "),
}
OTHER = {
    "a name": PLAIN.replace("z", "w"),
    "an operator": PLAIN.replace("x + y", "x - y"),
    "a default": PLAIN.replace("y=1", "y=2"),
    "type of a constant": PLAIN.replace("1.0", "1"),
    "text for bytes": PLAIN.replace('b"a"', '"a"'),
    "order": PLAIN.replace("x + y", "y + x"),
    "conversion": PLAIN.replace("!r", "!s"),
    "a decorator": PLAIN.replace("def f", "@g\ndef f"),
    "a string that is no docstring": PLAIN.replace("z = x + y", 'z = x + y\n    "sum"'),
    "an empty list for none": PLAIN.replace("None", "[]"),
}


def of(text):
    return fingerprint(ast.parse(text))


@pytest.mark.parametrize("name", SAME)
def test_what_does_not_count(name):
    assert of(SAME[name]) == of(PLAIN)


@pytest.mark.parametrize("name", OTHER)
def test_what_counts(name):
    assert of(OTHER[name]) != of(PLAIN)


def test_a_known_value():
    """The fingerprint of a text never changes, whatever the version of Python: the registry is made of them."""
    assert of("def f(x):\n    return x + 1\n") == "3acfdc530dea97c0"
    assert of(PLAIN) == "e72685f6037fd1c5"


def test_of_live_objects():
    def f(x):
        "Add one."
        return x + 1

    assert fingerprint_of(f) == fingerprint(ast.parse("def f(x): return x + 1").body[0])
    assert fingerprint_of(len) == BUILTIN
    assert fingerprint_of(eval("lambda x: x", {})) is None


def test_live_and_read_agree():
    found = dict(definitions(ast.parse(Path(__file__).read_text())))
    assert fingerprint(found["of"]) == fingerprint_of(of)


def test_definitions_reach_into_classes():
    tree = ast.parse(
        "class A:\n    def f(self): pass\n    class B:\n        def g(self): pass\ndef h(): pass"
    )
    assert [name for name, _ in definitions(tree)] == ["A", "A.f", "A.B", "A.B.g", "h"]


def test_a_run_of_statements():
    text = "def f(n):\n    a = 1\n    for i in n:\n        b = a\n        c = b\n    return c\n"
    tree = ast.parse(text)
    wanted = fingerprint(*ast.parse("b = a\nc = b").body)
    block, start = find_run(tree, 2, [wanted])
    assert [ast.unparse(node) for node in block[start : start + 2]] == ["b = a", "c = b"]
    assert find_run(tree, 1, [wanted]) is None
    assert find_run(tree, 2, ["0" * 16]) is None
