"""Ray gives what the serial executor gives: on two CPUs, with workers, machines and results lost."""

import dataclasses
import importlib.util
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from kernel_distill.solver.executors import SerialExecutor, Task, TaskError
from kernel_distill.solver.executors.wheel import check_wheel, unpack_wheel

from . import ray_cluster as fixtures
from .executor_cases import array_store, wait_for

ray_cluster, ray_executor = fixtures.ray_cluster, fixtures.ray_executor
ROOT = Path(__file__).parents[2]


@dataclasses.dataclass
class Sums:
    total: torch.Tensor
    counts: np.ndarray


def sums(scale, number):
    return Sums(scale * torch.sin(torch.arange(40_000.0) + number), np.full(30_000, number))


def add(first, second):
    first.total += second.total
    first.counts += second.counts
    return first


def tasks_of(n, *arguments):
    return [Task(f"task {i}", (i, *arguments)) for i in range(n)]


def equal(a, b):
    return torch.equal(a.total, b.total) and np.array_equal(a.counts, b.counts)


def mark(folder, name):
    """Leave one file a call; how many calls there were, with this one."""
    for i in range(100):
        try:
            (folder / f"{name}.{i}").touch(exist_ok=False)
            return i + 1
        except FileExistsError:
            continue
    raise AssertionError("too many calls")


def calls(folder, name="*"):
    return len(list(folder.glob(f"{name}.*")))


def dies_once(number, folder, how):
    if number == 2 and mark(folder, number) == 1:
        how()
    return number


def exit_process():
    os._exit(1)


def kill_process():
    os.kill(os.getpid(), signal.SIGKILL)


def full_disk():
    raise OSError("disk full")


def raising(number, folder, error):
    mark(folder, number)
    if number == 1:
        raise error
    return number


@pytest.mark.parametrize("n", [1, 2, 7])
def test_equal_to_the_serial_executor(ray_executor, n):
    scale = torch.full((1,), 0.1)
    ray, serial = ray_executor, SerialExecutor()
    results = ray.map(sums, tasks_of(n), shared=(scale,))
    assert all(map(equal, results, serial.map(sums, tasks_of(n), shared=(scale,))))
    total = ray.map_reduce(sums, add, tasks_of(n), shared=(scale,))
    assert equal(total, serial.map_reduce(sums, add, tasks_of(n), shared=(scale,)))
    # What comes back is the caller's own.
    total.counts += 1
    results[0].counts += 1
    assert ray.retries == []


def test_shared_arguments_stay_as_they_are(ray_executor):
    shared = np.zeros(30_000)
    tasks = [Task(str(i), (np.full(30_000, i),)) for i in range(5)]
    result = ray_executor.map_reduce(np.add, np.add, tasks, shared=(shared,))
    assert set(result) == {10.0}
    assert not shared.any()


def test_calls(ray_executor, capfd):
    assert ray_executor.map(abs, []) == []
    with pytest.raises(ValueError, match="nothing to merge"):
        ray_executor.map_reduce(abs, max, [])
    with pytest.raises(ValueError, match="two tasks are named 'task 0'"):
        ray_executor.map(abs, tasks_of(1) * 2)
    ray_executor.map(abs, tasks_of(3), label="numbers", progress=True)
    assert "numbers: 1/3" in capfd.readouterr().err


def surroundings(number):
    return torch.get_num_threads(), importlib.util.find_spec("solver"), importlib.util.find_spec("kernels")


def test_workers_use_the_threads_they_are_given(ray_cluster):
    from kernel_distill.solver.executors.ray import RayExecutor

    for cpus, threads in ((0.5, 1), (1, 1), (2, 2)):
        found = RayExecutor(cpus_per_task=cpus).map(surroundings, tasks_of(2))
        assert found == [(threads, None, None)] * 2


@pytest.mark.parametrize("how", [exit_process, kill_process, full_disk])
def test_a_task_that_was_lost_runs_again(ray_executor, tmp_path, how, caplog):
    assert ray_executor.map(dies_once, tasks_of(5, tmp_path, how)) == list(range(5))
    reason = "OSError: disk full" if how is full_disk else "WorkerCrashedError: The worker died"
    # Ray may have handed the worker's next task to the process that died: that one is named too.
    lost = {retry.task: retry.reason for retry in ray_executor.retries}
    assert lost["task 2"].startswith(reason)
    assert "'task 2' is run again (1 of 3)" in caplog.text
    assert calls(tmp_path) == 2


def merge_that_dies_once(first, second):
    first, folder = first
    if second[0] == 3 and mark(folder, "merge") == 1:
        exit_process()
    return first + second[0], folder


def test_a_merge_that_was_lost_runs_again(ray_executor, tmp_path):
    total, _ = ray_executor.map_reduce(pair, merge_that_dies_once, tasks_of(5, tmp_path))
    assert total == 10
    assert "merge of task 2 to task 3" in {retry.task for retry in ray_executor.retries}


def pair(number, folder):
    return number, folder


def bad_merge(first, second):
    raise OSError("disk full")


def test_a_merge_that_raises_is_not_tried_again(ray_executor):
    with pytest.raises(TaskError, match=r"merge of task 0 to task 1' failed once .* OSError: disk full"):
        ray_executor.map_reduce(abs, bad_merge, tasks_of(2))
    assert ray_executor.retries == []


class Odd(ValueError):
    """Pickles, but does not come back: its arguments are not those it was made with."""

    def __init__(self, row, column):
        super().__init__(f"row {row}, column {column}")


class Locked(OSError):
    def __init__(self):
        super().__init__("the file is locked")
        self.lock = threading.Lock()


def raise_odd(number):
    raise Odd(3, 4)


def raise_locked(number):
    raise Locked


@pytest.mark.parametrize("error", [ValueError("bad row 3"), TypeError("no"), KeyError("x")])
def test_bad_input_and_bad_code_come_out_as_they_are(ray_executor, tmp_path, error):
    with pytest.raises(type(error)) as caught:
        ray_executor.map(raising, tasks_of(3, tmp_path, error))
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)
    assert "Raised by task 'task 1' in a Ray worker" in caught.value.__notes__[0]
    assert calls(tmp_path, 1) == 1
    assert ray_executor.retries == []


def test_errors_that_do_not_pickle(ray_executor):
    with pytest.raises(ValueError, match="Odd: row 3, column 4"):
        ray_executor.map(raise_odd, tasks_of(1))
    assert ray_executor.retries == []
    with pytest.raises(TaskError, match="the last time: OSError: Locked: the file is locked"):
        ray_executor.map(raise_locked, tasks_of(1))


def test_a_task_is_given_up(ray_cluster, tmp_path):
    from kernel_distill.solver.executors.ray import RayExecutor

    executor = RayExecutor(retries=1)
    with pytest.raises(TaskError, match=r"'task 1' failed 2 times .* OSError: disk full") as caught:
        executor.map(raising, tasks_of(3, tmp_path, OSError("disk full")))
    assert type(caught.value.__cause__) is OSError
    assert calls(tmp_path, 1) == 2
    assert [retry.task for retry in executor.retries] == ["task 1"]


def no_pickle(number):
    return threading.Lock()


def test_results_that_do_not_pickle(ray_executor):
    with pytest.raises(TypeError, match="cannot pickle"):
        ray_executor.map(no_pickle, tasks_of(1))


def test_a_worker_of_another_version_is_refused(ray_executor, monkeypatch):
    import kernel_distill

    here = kernel_distill.__version__
    monkeypatch.setattr(kernel_distill, "__version__", "9.9")
    expected = f"a worker has kernel-distill {here}, but this process 9.9: install the same version"
    with pytest.raises(ValueError, match=re.escape(expected)):
        ray_executor.map(abs, tasks_of(1))


def test_a_worker_that_lacks_a_module_is_refused(ray_executor, monkeypatch):
    ghost = type(sys)("ghost")
    exec("def function(number): pass", ghost.__dict__)
    monkeypatch.setitem(sys.modules, "ghost", ghost)
    with pytest.raises(ValueError, match=r"cannot load what it is sent \(No module named 'ghost'\): install"):
        ray_executor.map(ghost.function, tasks_of(1))


def slow(number, folder):
    mark(folder, number)
    time.sleep(0.3)
    return np.arange(3.0) + number


def test_an_interrupt_hands_out_nothing_more(ray_executor, tmp_path):
    watch = threading.Thread(target=interrupt_when, args=(lambda: calls(tmp_path) >= 3,))
    watch.start()
    with pytest.raises(KeyboardInterrupt):
        ray_executor.map(slow, tasks_of(40, tmp_path))
    watch.join()
    assert ray_executor.map(abs, tasks_of(3)) == [0, 1, 2]
    assert calls(tmp_path) < 12


def interrupt_when(condition):
    while not condition():
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("reduce", [False, True])
def test_stored_results_are_not_computed_again(ray_executor, tmp_path, reduce):
    def run(n, store=None, executor=ray_executor):
        if reduce:
            return executor.map_reduce(slow, np.subtract, tasks_of(n, tmp_path), store=store)
        return executor.map(slow, tasks_of(n, tmp_path), store=store)

    store = array_store(tmp_path / "store")
    run(3, store)
    assert len(list(store.folder.glob("*.npy"))) == 3 == calls(tmp_path)
    result = run(5, store)
    assert calls(tmp_path) == 5
    np.testing.assert_array_equal(result, run(5, executor=SerialExecutor()))
    (store.folder / "task_1").touch()
    next(store.folder.glob("task_1*.npy")).write_bytes(b"")
    with pytest.raises(ValueError, match="stored result of task 'task 1'"):
        run(5, store)


DRIVER = """
import sys, time, numpy as np
from pathlib import Path
from kernel_distill.solver.executors import Task, TaskStore
from kernel_distill.solver.executors.ray import RayExecutor

def slow(number):
    time.sleep(0.3)
    return np.arange(3.0) + number

def write(path, result):
    np.save(path.with_suffix(".part.npy"), result)
    path.with_suffix(".part.npy").rename(path)

store = TaskStore(Path(sys.argv[2]), {"of": "tests"}, write, np.load, ".npy")
tasks = [Task(f"task {i}", (i,)) for i in range(40)]
RayExecutor(sys.argv[1]).map_reduce(slow, np.add, tasks, store=store)
"""


def test_a_killed_driver_goes_on(ray_cluster, ray_executor, tmp_path):
    address, folder = ray_cluster.get_runtime_context().gcs_address, tmp_path / "store"
    process = subprocess.Popen([sys.executable, "-c", DRIVER, address, str(folder)])
    try:
        wait_for(lambda: len(list(folder.glob("task_??????*.npy"))) >= 3, process)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    for part in folder.glob("*.part.npy"):
        part.unlink()
    there = len(list(folder.glob("*.npy")))
    assert 3 <= there < 40
    calls_folder = tmp_path / "calls"
    calls_folder.mkdir()
    tasks = tasks_of(40, calls_folder)
    total = ray_executor.map_reduce(quick, np.add, tasks, store=array_store(folder))
    assert calls(calls_folder) == 40 - there
    np.testing.assert_array_equal(total, sum(np.arange(3.0) + i for i in range(40)))


def quick(number, folder):
    mark(folder, number)
    return np.arange(3.0) + number


CHECKOUT = """
import importlib.util, sys
import ray
from kernel_distill.solver.executors import Task
from kernel_distill.solver.executors.ray import RayExecutor

def found():
    return [name for name in ("solver", "kernels", "api") if importlib.util.find_spec(name)]

with RayExecutor(sys.argv[1]) as executor:
    # Ray alone puts the current folder on the path of workers.
    print(ray.get(ray.remote(found).remote()), executor.map(found, [Task("a")]))
assert not ray.is_initialized()
"""


def test_workers_do_not_see_the_checkout(ray_cluster):
    address = ray_cluster.get_runtime_context().gcs_address
    process = subprocess.run(
        [sys.executable, "-c", CHECKOUT, address], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert process.stdout.strip() == "['solver', 'kernels', 'api'] [[]]"
    assert ray_cluster.is_initialized()
    assert ray_cluster.cluster_resources()["CPU"] == 2  # it left, and stopped nothing


def test_bad_options(ray_cluster, tmp_path):
    from kernel_distill.solver.executors.ray import RayExecutor

    with pytest.raises(ValueError, match="`cpus_per_task` must be greater than 0"):
        RayExecutor(cpus_per_task=0)
    with pytest.raises(ValueError, match="`gpus_per_task` must be finite and not negative"):
        RayExecutor(gpus_per_task=-1)
    with pytest.raises(ValueError, match=r"uses the Ray at .* already, not 10\.0\.0\.1:6379"):
        RayExecutor("10.0.0.1:6379")
    with pytest.raises(
        ValueError, match="largest machine of the cluster has 2 CPUs: no task would ever start"
    ):
        RayExecutor(cpus_per_task=3).map(abs, tasks_of(1))
    with pytest.raises(FileNotFoundError, match="there is no wheel"):
        RayExecutor(wheel=tmp_path / "none.whl")
    (tmp_path / "some.whl").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"some\.whl is not a wheel"):
        RayExecutor(wheel=tmp_path / "some.whl")


def test_no_gpu_is_asked_for_where_there_is_none(ray_executor):
    assert ray_executor.map(abs, [Task("a", (1,), gpus=1.0), Task("b", (2,), gpus=1.5)]) == [1, 2]


def runs_a_while(number, folder):
    mark(folder, os.getpid())
    time.sleep(0.1)
    return np.sin(np.arange(30_000.0) + number)


@pytest.mark.slow
def test_runs_with_a_worker_killed_at_a_random_moment(ray_cluster, tmp_path):
    from kernel_distill.solver.executors.ray import RayExecutor

    chance = random.Random(0)
    killed = retried = 0
    for run in range(5):  # bench/scale.py makes 20
        folder = tmp_path / str(run)
        folder.mkdir()
        tasks = tasks_of(12, folder)
        executor, pids = RayExecutor(), []
        killer = threading.Thread(target=kill_one, args=(folder, 0.7 * chance.random(), chance, pids))
        killer.start()
        total = executor.map_reduce(runs_a_while, np.add, tasks)
        killer.join()
        assert np.array_equal(total, SerialExecutor().map_reduce(sines, np.add, tasks)), run
        killed += len(pids)
        retried += bool(executor.retries)
    assert killed == 5
    assert retried >= 1  # the others were idle, or between two tasks


def sines(number, folder):
    return np.sin(np.arange(30_000.0) + number)


def kill_one(folder, seconds, chance, pids):
    """Kill one of the processes that have run a task, some time after the first of them began."""
    while not calls(folder):
        time.sleep(0.005)
    time.sleep(seconds)
    pid = chance.choice(sorted({int(file.name.split(".")[0]) for file in folder.iterdir()}))
    os.kill(pid, signal.SIGKILL)
    pids.append(pid)


INTERRUPT = """
import os, signal, sys, threading, time
from pathlib import Path
from kernel_distill.solver.executors import Task
from kernel_distill.solver.executors.ray import RayExecutor

folder = Path(sys.argv[1])

def long(number):
    (folder / str(os.getpid())).touch()
    time.sleep(600)

def interrupt():
    while not list(folder.iterdir()):
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt).start()
executor = RayExecutor(num_cpus=1)
try:
    executor.map(long, [Task("a", (0,))])
except KeyboardInterrupt:
    (worker,) = folder.iterdir()
    end = time.monotonic() + 60
    while Path("/proc", worker.name).exists() and time.monotonic() < end:
        time.sleep(0.1)
    print(Path("/proc", worker.name).exists())
"""


@pytest.mark.slow
def test_an_interrupt_ends_what_runs_on_a_cluster_that_was_started_here(tmp_path):
    pytest.importorskip("ray")
    assert run_script(INTERRUPT, tmp_path) == ["False"]


NODES = """
import os, sys, threading, time
from pathlib import Path
import numpy as np
import ray
from ray.cluster_utils import Cluster
from kernel_distill.solver.executors import Task
from kernel_distill.solver.executors.ray import RayExecutor

folder = Path(sys.argv[1])
memory = dict(object_store_memory=80 * 2**20)
cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=0, include_dashboard=False, **memory))

def far(number, name, seconds):
    (folder / f"{name}.{number}.{os.urandom(4).hex()}").write_text(ray.get_runtime_context().get_node_id())
    time.sleep(seconds[number])
    return np.full(200_000, number)

def lose(name, number, delay):
    while not (files := list(folder.glob(f"{name}.{number}.*"))) or not files[0].read_text():
        time.sleep(0.02)
    time.sleep(delay)
    cluster.remove_node(next(node for node in nodes if node.node_id == files[0].read_text()))

def run(name, number, delay, seconds):
    # `number` loses its machine `delay` seconds after it began.
    thread = threading.Thread(target=lose, args=(name, number, delay))
    thread.start()
    with RayExecutor(cluster.address) as executor:
        total = executor.map_reduce(far, np.add, [Task(f"task {i}", (i, name, seconds)) for i in range(3)])
        thread.join()
    assert total.shape == (200_000,) and set(total) == {3}
    print([(retry.task, retry.reason.partition(":")[0]) for retry in executor.retries])

nodes = [cluster.add_node(num_cpus=1, **memory) for _ in range(3)]
cluster.wait_for_nodes()
run("machine", 0, 1.0, [6, 1, 1])
nodes.append(cluster.add_node(num_cpus=1, **memory))
cluster.wait_for_nodes()
run("result", 0, 2.0, [0.5, 8, 8])
cluster.shutdown()
"""


def run_script(code, *arguments, **options):
    """What a script prints, in a process that starts and stops a cluster of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=240,
        **options,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout.splitlines()


@pytest.mark.slow
def test_a_lost_machine_and_a_lost_result(tmp_path):
    pytest.importorskip("ray")
    machine, result = run_script(NODES, tmp_path, cwd=tmp_path)
    assert machine == "[('task 0', 'NodeDiedError')]"
    assert result == "[('task 0', 'ObjectReconstructionFailedError')]"


GPUS = """
import os
import ray
from kernel_distill.solver.executors import Task
from kernel_distill.solver.executors.ray import RayExecutor

ray.init("local", num_cpus=2, num_gpus=1, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False)

def given():
    return ray.get_runtime_context().get_assigned_resources().get("GPU"), os.environ.get("CUDA_VISIBLE_DEVICES") == "0"

tasks = [Task("none"), Task("half", gpus=0.5), Task("one", gpus=1.0)]
print(RayExecutor().map(given, tasks))
print(RayExecutor(gpus_per_task=0.25).map(given, tasks))
print(RayExecutor(gpus_per_task=0).map(given, tasks))
for gpus in (1.5, 2):
    try:
        RayExecutor(gpus_per_task=gpus).map(given, tasks)
    except ValueError as error:
        print(error)
ray.shutdown()
"""


@pytest.mark.slow
def test_shares_of_a_gpu(tmp_path):
    pytest.importorskip("ray")
    assert run_script(GPUS, cwd=tmp_path) == [
        "[(None, False), (0.5, True), (1.0, True)]",
        "[(None, False), (0.125, True), (0.25, True)]",
        "[(None, False), (None, False), (None, False)]",
        "task 'one' asks for 1.5 GPUs: more than one must be a whole number",
        "task 'one' asks for 2 GPUs, but the largest machine of the cluster has 1",
    ]


WHEEL = """
import importlib.util, os, sys
sys.path.insert(0, sys.argv[2])
from kernel_distill.solver.executors import Task
from kernel_distill.solver.executors.ray import RayExecutor

def where():
    import kernel_distill.solver.statistics

    found = [name for name in ("solver", "kernels") if importlib.util.find_spec(name)]
    return kernel_distill.solver.statistics.__file__, found

with RayExecutor(wheel=sys.argv[1], num_cpus=1) as executor:
    (file, found), = executor.map(where, [Task("a")])
    print("py_modules" in file, file.startswith(os.getcwd()), found)
    try:
        RayExecutor(wheel=sys.argv[1])
    except ValueError as error:
        print(error)
import ray
print(ray.is_initialized())
try:
    executor.map(where, [Task("a")])
except RuntimeError as error:
    print(error)
"""


def build_wheel(source, folder):
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        source,
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        folder,
    ]
    subprocess.run([*map(str, command), "--disable-pip-version-check"], check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_workers_get_the_wheel(tmp_path):
    pytest.importorskip("ray")
    # Built from a copy: the build leaves files beside the sources.
    source = tmp_path / "source"
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("api", "kernels", "nn_baselines", "solver", "bench/recipes"):
        shutil.copytree(ROOT / name, source / name, ignore=skip)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    wheel = build_wheel(source, tmp_path / "wheel")
    # This process runs the same modules, which its workers do not see; they see those of this checkout, and the wheel.
    site = tmp_path / "site"
    unpack_wheel(wheel, site)
    inside, refused, running, closed = run_script(WHEEL, wheel, site, cwd=ROOT)
    assert inside == "True False []"
    assert "workers get a wheel only as it starts" in refused
    assert running == "False"
    assert closed == "this executor is closed, or Ray was shut down: make a new RayExecutor"


def test_a_wheel_of_other_sources_is_refused(tmp_path):
    path = tmp_path / "some.whl"
    folder = ROOT / "solver" / "executors"
    for change, message in (
        ({}, None),
        (
            {"serial.py": b"pass"},
            r"1 modules differ, kernel_distill/solver/executors/serial\.py first; build it again",
        ),
        ({"new.py": b""}, r"1 modules differ, kernel_distill/solver/executors/new\.py"),
        ({"base.py": None}, r"1 modules differ, kernel_distill/solver/executors/base\.py"),
    ):
        files = {file.name: file.read_bytes() for file in folder.glob("*.py")} | change
        with zipfile.ZipFile(path, "w") as wheel:
            for name, content in files.items():
                if content is not None:
                    wheel.writestr(f"kernel_distill/solver/executors/{name}", content)
        if message is None:
            assert check_wheel(path) == path
        else:
            with pytest.raises(ValueError, match=message):
                check_wheel(path)
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("other/module.py", b"")
    with pytest.raises(ValueError, match="the wheel holds other, which is no package of this kernel_distill"):
        check_wheel(path)
