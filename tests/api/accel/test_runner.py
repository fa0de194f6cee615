"""`python -m kernel_distill.accel` runs a script as Python would, with what it defines and imports replaced."""

import ast
import dataclasses
import re
import subprocess
import sys
import textwrap

import pytest
from typer.testing import CliRunner

from kernel_distill import accel
from kernel_distill.accel import _runner
from kernel_distill.accel.__main__ import app

SCRIPT = """
import sys
import invented_peer
def total(x, times=2):
    return float(np.sum(x)) * times
import numpy as np
if __name__ == "__main__":
    print(total([1.0]), invented_peer.Net.twice(3), sys.argv[1:], __file__)
"""


@pytest.fixture
def command(peer, monkeypatch, tmp_path):
    """Run the command on a script in this process, as if it had been started anew."""

    def run(text, *arguments, options=()):
        script = tmp_path / "script.py"
        script.write_text(textwrap.dedent(text))
        monkeypatch.setattr(sys, "argv", list(sys.argv))
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
        return CliRunner().invoke(app, [*options, str(script), *arguments])

    return run


def test_the_script_and_what_it_imports(command, peer, tmp_path):
    done = command(SCRIPT, "--flag", "--profile", "7")
    assert done.exit_code == 0, done.output
    assert done.stdout == f"2.0 6 ['--flag', '--profile', '7'] {tmp_path / 'script.py'}\n"
    assert peer.made.calls == ["total", "twice"]


def test_only_named_targets(command, peer):
    command(SCRIPT, options=("--target", "invented.twice"))
    assert peer.made.calls == ["twice"]


def test_profile_report_and_verification(command, tmp_path):
    page = tmp_path / "page.html"
    done = command(SCRIPT, options=("--verify", "1", "--profile", "--report", str(page)))
    assert done.exit_code == 0, done.output
    assert "invented.total" in done.stderr
    assert re.search(r"__main__\.total +1 +1 .* 0 +[\d.]+ x", done.stderr)
    assert "__main__.total" in page.read_text()
    again = command(SCRIPT, options=("--report", str(page)))
    assert again.exit_code == 2
    assert "exists" in again.stderr


def test_a_wrong_replacement_stops_the_script(command, peer, monkeypatch):
    monkeypatch.setattr(peer.made, "total", lambda x, times=2: 5.0)
    done = command(SCRIPT, options=("--verify", "1"))
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith("error: invented.total: verified call 1: difference 1.5")
    assert done.stdout == ""
    assert command(SCRIPT, options=("--verify", "1", "--tol", "2")).exit_code == 0


def test_show_patch(command):
    done = command("import invented_peer\ninvented_peer.main(1)\n", options=("--show-patch",))
    assert "invented.inverse: Net.inverse -> invented:inverse (exact)" in done.stderr
    assert "+    if __region__.needs_original:" in done.stderr
    assert "-    for i in range(n):" in done.stderr


@pytest.mark.parametrize(
    ("text", "status", "expected"),
    [
        ("raise KeyError('mine')", 1, "KeyError: 'mine'"),
        ("raise ValueError('mine')", 1, "ValueError: mine"),
        ("import sys; sys.exit(7)", 7, ""),
        ("def f(:", 1, "SyntaxError"),
    ],
)
def test_errors_are_the_scripts_own(command, text, status, expected):
    done = command(text)
    assert done.exit_code == status
    assert expected in done.stderr
    assert "_runner.py" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.py"], "there is no script nowhere.py"),
        (["--target", "invented.totl", "SCRIPT"], "did you mean 'invented.total'"),
        (["--verify", "-1", "SCRIPT"], "`verify` must be an integer of at least 0"),
        (["--verify", "many", "SCRIPT"], "Invalid value"),
        (["--explain", "nothing"], "unknown target 'nothing'"),
        (["--wrong", "SCRIPT"], "No such option"),
    ],
)
def test_what_a_user_can_get_wrong(peer, tmp_path, arguments, message):
    script = tmp_path / "script.py"
    script.write_text("")
    done = CliRunner().invoke(app, [str(script) if word == "SCRIPT" else word for word in arguments])
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())


def test_definitions_of_the_script_wait_for_what_they_depend_on(command, peer, monkeypatch):
    """And definitions within `if` and `try` are met."""
    text = """
    try:
        def total(x, times=2):
            return float(np.sum(x)) * times
    finally:
        pass
    import numpy as np
    if True:
        def noisy(n):
            return np.random.rand(n)
    print(total([1]), len(noisy(2)))
    """
    needed = dataclasses.replace(peer.known["total"], requires={"noisy": peer.known["noisy"].hashes})
    monkeypatch.setitem(peer.known, "total", needed)
    done = command(text)
    assert done.stdout == "2.0 2\n", done.stderr
    assert peer.made.calls == ["total", "noisy"]
    assert "__main__" not in done.stderr


def test_a_failed_verification_is_told_even_where_it_was_caught(command, peer, monkeypatch):
    monkeypatch.setattr(peer.made, "total", lambda x, times=2: 5.0)
    text = "import invented_peer\ntry:\n    invented_peer.total([1])\nexcept RuntimeError:\n    print('caught')\n"
    done = command(text, options=("--verify", "1"))
    assert (done.exit_code, done.stdout) == (1, "caught\n")
    assert "error: invented.total: verified call 1" in done.stderr


def test_the_script_sees_what_python_would_show_it(command, tmp_path):
    done = command(
        "import builtins, os, sys\nos.chdir('/')\n"
        "print(__file__, sys.path[0], __builtins__ is builtins, __spec__, type(__loader__).__name__, __name__)"
    )
    place = tmp_path / "script.py"
    assert done.stdout == f"{place} {tmp_path} True None SourceFileLoader __main__\n"


def test_nothing_heavy_is_loaded_before_the_script(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nprint([name for name in ('torch', 'numpy', 'sklearn') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "kernel_distill.accel", str(script)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"


def test_list_and_explain(peer):
    done = CliRunner().invoke(app, ["--list"])
    assert done.exit_code == 0
    assert "invented.loop" in done.stdout
    assert (
        "replaces: statements of main of any module"
        in CliRunner().invoke(app, ["--explain", "invented.loop"]).stdout
    )


def test_adoption_comes_after_each_definition_whose_name_is_known(peer):
    accel.install()
    text = "class Net:\n    pass\n\ndef other():\n    pass\n\ndef main(n):\n    pass\n"
    kinds = [type(node).__name__ for node in _runner.with_adoption(ast.parse(text)).body]
    assert kinds == ["ClassDef", "Expr", "FunctionDef", "FunctionDef", "Expr"]


def test_as_a_process_of_its_own(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom sklearn.metrics.pairwise import rbf_kernel\n"
        "print(hasattr(rbf_kernel, '__wrapped__'), sys.argv[1:])\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "kernel_distill.accel", "--profile", str(script), "--profile"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "True ['--profile']\n"
    assert "targets" in done.stderr


def test_a_module_instead_of_a_script(peer, monkeypatch):
    (peer.folder / "invented_user.py").write_text("import invented_peer\nprint(invented_peer.total([2]))\n")
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    done = CliRunner().invoke(app, ["-m", "invented_user"])
    assert done.stdout == "4.0\n"
    assert peer.made.calls == ["total"]
