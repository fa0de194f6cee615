"""What executors promise, on the serial one: order, the merge tree, errors, retries, results in a store."""

import functools
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from kernel_distill.solver.executors import (
    Executor,
    Retry,
    SerialExecutor,
    Task,
    TaskError,
    make_executor,
)
from kernel_distill.solver.executors.merge_tree import MergeTree, Node

from .executor_cases import array_store, wait_for


def letters(n):
    return [Task(f"task {i}", (chr(97 + i),)) for i in range(n)]


def bracket(first, second):
    return f"({first}{second})"


def level_by_level(results, merge):
    """The tree by its definition: neighbours of a level are merged, a last one without a neighbour rises."""
    while len(results) > 1:
        pairs = [results[i : i + 2] for i in range(0, len(results), 2)]
        results = [merge(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
    return results[0]


class Failing:
    """Raises the errors one after the other, then returns."""

    def __init__(self, *errors):
        self.errors, self.calls = list(errors), 0

    def __call__(self, value):
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return value


@pytest.mark.parametrize(
    ("n", "expected"),
    [(1, "a"), (2, "(ab)"), (3, "((ab)c)"), (5, "(((ab)(cd))e)"), (7, "(((ab)(cd))((ef)g))")],
)
def test_neighbours_are_merged_in_the_order_of_the_tasks(n, expected):
    assert SerialExecutor().map_reduce(str.lower, bracket, letters(n)) == expected


@given(st.integers(1, 26).flatmap(lambda n: st.permutations(range(n))))
@settings(deadline=None)
def test_the_tree_depends_on_no_order_of_arrival(order):
    tree = MergeTree(len(order))
    for index in order:
        assert not tree.done
        pair = tree.put(Node(0, index), chr(97 + index))
        while pair is not None:
            merged = bracket(pair.first, pair.second)
            # A node holds the leaves that its value was made of.
            assert [ord(c) - 97 for c in merged if c.isalpha()] == list(tree.leaves(pair.node))
            pair = tree.put(pair.node, merged)
    assert tree.done
    assert tree.root == level_by_level([chr(97 + i) for i in range(len(order))], bracket)


def test_a_long_reduction_holds_one_result_a_level():
    alive, most = 0, 0

    class Counted:
        def __init__(self, *_):
            nonlocal alive, most
            alive += 1
            most = max(most, alive)

        def __del__(self):
            nonlocal alive
            alive -= 1

    SerialExecutor().map_reduce(Counted, lambda first, second: first, [*letters(26), Task("last")])
    assert most <= 7  # six levels, and the newest


def test_results_come_in_order_with_shared_arguments_first():
    tasks = [Task(str(i), (i,)) for i in (3, 1, 2)]
    assert SerialExecutor().map(divmod, tasks, shared=(7,)) == [(2, 1), (7, 0), (3, 1)]


def test_no_tasks():
    assert SerialExecutor().map(str, []) == []
    with pytest.raises(ValueError, match="nothing to merge: 0 tasks"):
        SerialExecutor().map_reduce(str, bracket, [])


def test_names_are_unique():
    with pytest.raises(ValueError, match="two tasks are named 'task 0'"):
        SerialExecutor().map(str.lower, letters(2) + letters(1))


def test_a_merge_may_change_its_first_argument():
    tasks = [Task(str(i), (np.full(3, i),)) for i in range(6)]
    total = SerialExecutor().map_reduce(np.copy, lambda a, b: np.add(a, b, out=a), tasks)
    assert total.tolist() == [15, 15, 15]
    assert tasks[0].arguments[0].tolist() == [0, 0, 0]


def test_progress(capsys):
    SerialExecutor().map(str.lower, letters(3), label="letters", progress=True)
    assert "letters: 1/3" in capsys.readouterr().err
    SerialExecutor().map(str.lower, letters(3), label="letters", progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "error", [OSError("disk full"), RuntimeError("device lost"), MemoryError(), ConnectionError("gone")]
)
def test_what_may_be_the_machine_is_tried_again(error, caplog):
    function, executor = Failing(error, OSError("again")), SerialExecutor()
    assert executor.map(function, letters(2)) == ["a", "b"]
    assert [retry.task for retry in executor.retries] == ["task 0", "task 0"]
    assert executor.retries[0].reason.startswith(type(error).__name__)
    assert executor.retries[1] == Retry("task 0", "OSError: again")
    assert [record.name for record in caplog.records] == ["kernel_distill"] * 2
    assert "'task 0' is run again (2 of 3): OSError: again" in caplog.records[1].getMessage()


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad row 3"),
        TypeError("no"),
        KeyError("x"),
        ZeroDivisionError("0"),
        ImportError("no arrow"),
    ],
)
def test_bad_input_and_bad_code_come_out_as_they_are(error):
    function, executor = Failing(error), SerialExecutor()
    with pytest.raises(type(error)) as caught:
        executor.map(function, letters(3))
    assert caught.value is error
    assert function.calls == 1
    assert executor.retries == []


@pytest.mark.parametrize("retries", [0, 2])
def test_a_task_is_given_up(retries):
    errors = [OSError(f"failure {i}\nand more") for i in range(9)]
    function, executor = Failing(*errors), SerialExecutor(retries)
    with pytest.raises(
        TaskError, match=f"task 'task 0' failed .* the last time: OSError: failure {retries}$"
    ) as caught:
        executor.map(function, letters(3))
    assert caught.value.__cause__ is errors[retries]
    assert function.calls == retries + 1
    assert len(executor.retries) == retries


def test_each_task_has_its_own_retries():
    calls = dict.fromkeys("abcd", 0)

    def function(letter):
        calls[letter] += 1
        if calls[letter] <= 2:
            raise OSError(letter)
        return letter

    executor = SerialExecutor(retries=2)
    assert executor.map(function, letters(4)) == list("abcd")
    assert len(executor.retries) == 8


def test_a_merge_that_raises_is_not_tried_again():
    merge = Failing(OSError("disk full"))
    with pytest.raises(TaskError, match=r"'merge of task 0 to task 1' failed once .* OSError: disk full"):
        SerialExecutor().map_reduce(str.lower, lambda a, b: merge(a + b), letters(3))
    assert merge.calls == 1
    with pytest.raises(ValueError, match="shapes"):
        SerialExecutor().map_reduce(str.lower, lambda a, b: Failing(ValueError("shapes"))(a), letters(2))


@pytest.mark.parametrize("retries", [-1, 1.5, True, "3"])
def test_bad_retries(retries):
    with pytest.raises(ValueError, match="`retries` must be an integer of at least 0"):
        SerialExecutor(retries)


def test_make_executor():
    serial = SerialExecutor()
    assert make_executor(serial) is serial
    assert isinstance(make_executor(None), SerialExecutor)
    assert isinstance(make_executor("serial"), Executor)
    with pytest.raises(ValueError, match="unknown executor 'rey'; did you mean 'ray'"):
        make_executor("rey")


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'kernel-distill\[ray\]'"):
        make_executor("ray")


def double(x):
    return 2 * x


def numbers(n):
    return [Task(f"shard/{i}", (np.arange(3.0) + i,)) for i in range(n)]


def counted(function):
    @functools.wraps(function)
    def call(*arguments):
        call.calls += 1
        return function(*arguments)

    call.calls = 0
    return call


@pytest.mark.parametrize("reduce", [False, True])
def test_stored_results_are_not_computed_again(reduce, tmp_path):
    def run(tasks, function, store):
        if reduce:
            return [SerialExecutor().map_reduce(function, np.subtract, tasks, store=store)]
        return SerialExecutor().map(function, tasks, store=store)

    expected = run(numbers(5), double, None)
    first, second = counted(double), counted(double)
    run(numbers(3), first, array_store(tmp_path / "a" / "b"))
    results = run(numbers(5), second, array_store(tmp_path / "a" / "b"))
    assert (first.calls, second.calls) == (3, 2)
    np.testing.assert_array_equal(results, expected)
    assert not list(tmp_path.rglob("*.tmp"))


def test_tasks_that_failed_leave_those_before_them(tmp_path):
    with pytest.raises(ValueError, match="bad"):
        SerialExecutor().map(
            lambda x: Failing(*([ValueError("bad")] if x[0] == 2 else []))(x),
            numbers(4),
            store=array_store(tmp_path),
        )
    function = counted(double)
    SerialExecutor().map(function, numbers(4), store=array_store(tmp_path))
    assert function.calls == 2


def test_the_store_of_other_work_is_refused(tmp_path):
    SerialExecutor().map(double, numbers(1), store=array_store(tmp_path, seed=0, data={"rows": 5}))
    with pytest.raises(ValueError, match=r"holds results of other work \(data.rows was 5, is 6\)"):
        SerialExecutor().map(double, numbers(1), store=array_store(tmp_path, seed=0, data={"rows": 6}))
    assert SerialExecutor().map(double, [], store=array_store(tmp_path, seed=0, data={"rows": 5})) == []


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "other.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds files \(other.npy\) but no identity.json"):
        SerialExecutor().map(double, numbers(1), store=array_store(tmp_path))


def test_a_damaged_identity_is_refused(tmp_path):
    SerialExecutor().map(double, numbers(1), store=array_store(tmp_path))
    (tmp_path / "identity.json").write_text('{"of": ')
    with pytest.raises(ValueError, match=r"identity\.json is damaged"):
        SerialExecutor().map(double, numbers(1), store=array_store(tmp_path))


def test_a_damaged_result_is_reported_by_name(tmp_path):
    SerialExecutor().map(double, numbers(2), store=array_store(tmp_path))
    path = sorted(tmp_path.glob("*.npy"))[1]
    path.write_bytes(b"")
    with pytest.raises(
        ValueError, match=f"task 'shard/1', .*{path.name}, cannot be read: .* truncated; delete"
    ):
        SerialExecutor().map(double, numbers(2), store=array_store(tmp_path))


def test_any_name_makes_a_file_of_its_own(tmp_path):
    names = ["a/b", "a:b", "a_b", "../a", "", ".", "a" * 300, "é", "a.npy", "identity", "A b"]
    tasks = [Task(name, (np.full(2, i),)) for i, name in enumerate(names)]
    folder = tmp_path / "store"
    SerialExecutor().map(double, tasks, store=array_store(folder))
    assert len(list(folder.glob("*.npy"))) == len(names) == len(list(tmp_path.rglob("*.npy")))
    function = counted(double)
    results = SerialExecutor().map(function, tasks, store=array_store(folder))
    assert function.calls == 0
    assert [result[0] for result in results] == [2 * i for i in range(len(names))]


def test_an_identity_is_plain_json(tmp_path):
    with pytest.raises(ValueError, match=r"identity of a store must be plain JSON: .* not JSON serializable"):
        SerialExecutor().map(double, [], store=array_store(tmp_path, path=tmp_path))
    # Tuples come back as lists and are the same identity.
    for _ in range(2):
        SerialExecutor().map(double, [], store=array_store(tmp_path, shape=(2, 3)))
    assert json.loads((tmp_path / "identity.json").read_text())["shape"] == [2, 3]


KILLED = """
import sys, time, numpy as np
from pathlib import Path
from kernel_distill.solver.executors import SerialExecutor, Task, TaskStore

def slow(x):
    time.sleep(0.2)
    return 2 * x

def write(path, result):
    np.save(path.with_suffix(".part.npy"), result)
    path.with_suffix(".part.npy").rename(path)

store = TaskStore(Path(sys.argv[1]), {"of": "tests"}, write, np.load, ".npy")
SerialExecutor().map_reduce(slow, np.add, [Task(f"t{i}", (np.arange(3.0) + i,)) for i in range(50)], store=store)
"""


def test_a_killed_run_goes_on(tmp_path):
    folder = tmp_path / "store"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(folder)])
    wait_for(lambda: len(list(folder.glob("t?.npy"))) >= 3, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for part in folder.glob("*.part.npy"):
        part.unlink()
    there = len(list(folder.glob("*.npy")))
    assert 3 <= there < 50
    tasks = [Task(f"t{i}", (np.arange(3.0) + i,)) for i in range(50)]
    function = counted(double)
    total = SerialExecutor().map_reduce(function, np.add, tasks, store=array_store(folder))
    assert function.calls == 50 - there
    np.testing.assert_array_equal(total, SerialExecutor().map_reduce(double, np.add, tasks))
