"""Statistics on a cluster, their faults, and the cost model against the clock, as rows of JSON.

    python bench/scale.py model                      # seconds and bytes of docs/scale.md: measured and modelled
    python bench/scale.py statistics                 # Ray with 2 workers against the serial run, n = 1,000,000
    python bench/scale.py faults                     # 20 runs, a worker killed at a random moment in each
    python bench/scale.py statistics --n 20000 --features 256 --repeats 1    # small, to see that it runs

Options: --n rows, --features p, --repeats, --runs (of faults), --seed. Run them on an idle machine.
"""

import argparse
import functools
import os
import random
import signal
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from _rows import emit, in_new_process, median_seconds

import kernel_distill as kd
import kernel_distill.solver.shards
from kernel_distill.solver.cost import Machine, Problem, estimate

# Rows, inputs, features, outputs, map.
POINTS = (
    (100_000, 64, 1024, 10, "fourier"),
    (60_000, 64, 2048, 10, "fourier"),
    (30_000, 784, 2048, 10, "fourier"),
    (15_000, 64, 4096, 10, "fourier"),
    (20_000, 768, 1024, 1000, "fourier"),
    (100_000, 784, 784, 10, "fcnn"),
    (100_000, 784, 784, 10, "identity"),
)


def rows_of(n, d, k, seed=0):
    """Rows, float32, and labels."""
    X = np.random.default_rng(seed).standard_normal((n, d), dtype=np.float32)
    return X, np.arange(n) % k


def map_params(feature_map, p):
    """Arguments of the feature map; a length scale of its own would take a pass over the rows."""
    return {
        "fourier": {"n_features": p, "length_scale": 8.0},
        "fcnn": {"widths": [p]},
        "identity": {},
    }[feature_map]


def collect(X, y, feature_map, p, k, **options):
    """Statistics with everything given that would be fitted."""
    return kd.collect_statistics(
        X,
        y,
        feature_map=feature_map,
        feature_params=map_params(feature_map, p),
        transform="none",
        n_classes=k,
        progress=False,
        **options,
    )


MEMORY = """
import json, re, sys
import numpy as np, torch, kernel_distill as kd
torch.set_num_threads(1)
n, d, p, k = map(int, sys.argv[1:5])
X, y = np.random.default_rng(0).standard_normal((n, d), dtype=np.float32), np.arange(n) % k
options = dict(feature_map="fourier", transform="none", n_classes=k, progress=False)
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 2**10
kd.collect_statistics(X[:500], y[:500], feature_params={"n_features": 16, "length_scale": 8.0}, **options)
before = peak()  # as the system may take back pages of libraries at any time, what is held now says less
statistics = kd.collect_statistics(X, y, feature_params={"n_features": p, "length_scale": 8.0}, **options)
streaming = peak() - before
kd.distill_statistics(statistics, space="features")
print(json.dumps({"streaming": streaming, "solving": peak() - before}))
"""


def model(options):
    """Seconds and bytes of collecting and of solving at several sizes, beside those of the cost model."""
    machine = Machine.measured(disk=float("inf"))
    rates = ("cores", "gram", "features", "cosines", "thin", "bandwidth", "eigen")
    emit("machine", **{name: getattr(machine, name) for name in rates})
    for n, d, p, k, feature_map in POINTS:
        n = min(n, options.n or n)
        X, y = rows_of(n, d, k)
        statistics = collect(X, y, feature_map, p, k)
        streaming, solving = median_seconds(
            functools.partial(collect, X, y, feature_map, p, k),
            functools.partial(kd.distill_statistics, statistics, space="features"),
            repeats=options.repeats,
        )
        found = estimate(Problem(n, d, p, k, feature_map=feature_map, test_rows=0), machine)
        shared = found.shared_seconds
        emit(
            "model",
            rows=n,
            inputs=d,
            features=p,
            outputs=k,
            feature_map=feature_map,
            threads=machine.cores,
            streaming=streaming,
            modelled_streaming=shared,
            streaming_ratio=streaming / shared,
            solving=solving,
            modelled_solving=found.seconds - shared,
            solving_ratio=solving / (found.seconds - shared),
            longest=found.bottleneck.name,
        )
    for n, d, p, k in ((50_000, 64, 1024, 10), (50_000, 64, 3072, 10), (20_000, 64, 1024, 1000)):
        n = min(n, options.n or n)
        measured = in_new_process(MEMORY, *map(str, (n, d, p, k)))
        found = estimate(Problem(n, d, p, k, test_rows=0), machine)
        modelled = {
            "modelled_streaming": found.worker_memory,
            "modelled_solving": max(found.worker_memory, found.driver_memory + found.problem.partial_bytes),
        }
        emit("memory", rows=n, inputs=d, features=p, outputs=k, **measured, **modelled)


def statistics(options):
    """Two workers of one thread against one process of two threads or of one, over a memory map on disk."""
    n, p, d, k = options.n or 1_000_000, options.features, 64, 10
    from kernel_distill.solver.executors.ray import RayExecutor

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        file = np.lib.format.open_memmap(path, "w+", np.float32, (n, d))
        for start in range(0, n, 100_000):
            rows = file[start : start + 100_000]
            rows[:] = np.random.default_rng(start).standard_normal(rows.shape, dtype=np.float32)
        file.flush()
        X, y = np.load(path, mmap_mode="r"), np.arange(n) % k
        found = {}

        def run(name, threads, executor=None):
            torch.set_num_threads(threads)
            # "fcnn" and "identity" have no p of their own here: the claim is of Fourier features.
            found[name] = collect(X, y, "fourier", p, k, executor=executor)

        started = time.perf_counter()
        with RayExecutor(num_cpus=2) as cluster:
            connected = time.perf_counter() - started
            # The first tasks wait for two new processes to import torch.
            collect(X[:4096], y[:4096], "fourier", 16, k, executor=cluster)
            start_up = time.perf_counter() - started
            two, one, ray = median_seconds(
                lambda: run("two", 2),
                lambda: run("one", 1),
                lambda: run("ray", 1, cluster),
                repeats=options.repeats,
            )
        run("tiles", 1, "serial")
    ideal = min(two, one / 2)
    emit(
        "statistics",
        rows=n,
        inputs=d,
        features=p,
        outputs=k,
        workers=2,
        repeats=options.repeats,
        serial_two_threads=two,
        serial_one_thread=one,
        ray=ray,
        ideal=ideal,
        overhead=ray / ideal - 1,
        connected=connected,
        start_up=start_up,
        overhead_with_start_up=(ray + start_up) / ideal - 1,
        difference=max(difference(found["ray"], found[name]) for name in ("one", "two")),
        same_bits=same(found["ray"], found["tiles"]),
        retries=len(cluster.retries),
    )


SUMS = ("gram", "cross", "feature_sum", "target_sum", "target_square")


def difference(a, b):
    """Largest of ||a - b|| / ||b|| over the Gram matrix and the cross products."""
    return max(float((getattr(a, s) - getattr(b, s)).norm() / getattr(b, s).norm()) for s in SUMS[:2])


def same(a, b):
    """Whether all sums are the same bits."""
    return (a.count, a.weight) == (b.count, b.weight) and all(
        torch.equal(getattr(a, name), getattr(b, name)) for name in SUMS
    )


def faults(options):
    """Right answers of runs in each of which one busy worker is killed at a random moment."""
    from kernel_distill.solver.executors.ray import RayExecutor

    n, p, d, k = options.n or 100_000, min(options.features, 1024), 64, 10
    X, y = rows_of(n, d, k)
    shards = kd.solver.shards.Shards.of(X, y, tile_rows=max(1, n // 40))
    torch.set_num_threads(1)
    started = time.perf_counter()
    expected = collect(shards, None, "fourier", p, k)
    # Two workers, and some time of the run after the last moment at which one may be killed.
    length = 0.4 * (time.perf_counter() - started)
    choice = random.Random(options.seed)
    right = killed = retries = 0
    with RayExecutor(num_cpus=2) as cluster:
        collect(X[:4096], y[:4096], "fourier", 16, k, executor=cluster)
        for number in range(options.runs):
            moment = choice.uniform(0, length)
            over, victims = threading.Event(), []
            killer = threading.Thread(target=kill_one, args=(moment, over, victims, choice))
            executor = RayExecutor()
            started = time.perf_counter()
            killer.start()
            try:
                found = collect(shards, None, "fourier", p, k, executor=executor)
            finally:
                over.set()
                killer.join()
            seconds = time.perf_counter() - started
            ok = same(found, expected)
            right, killed, retries = right + ok, killed + len(victims), retries + len(executor.retries)
            emit(
                "fault",
                run=number,
                moment=moment,
                seconds=seconds,
                killed=victims,
                right=ok,
                retries=[f"{retry.task}: {retry.reason}"[:200] for retry in executor.retries],
            )
    emit(
        "faults", rows=n, features=p, tiles=40, runs=options.runs, killed=killed, right=right, retries=retries
    )


def kill_one(moment, over, victims, choice):
    """Kill a process of ours that runs a task, as soon after the moment as there is one."""
    over.wait(moment)
    while not over.is_set():
        busy = sorted(busy_workers())
        if busy:
            pid, name = choice.choice(busy)
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            victims.append(name)
            return
        time.sleep(0.002)


def busy_workers():
    """(pid, task) of Ray workers below this process that run a task or a merge: their titles say which.

    Ray's own agents have such titles too; without them a whole machine counts as lost, which is another experiment.
    """
    parents, titles = {}, {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The name of the program stands in brackets, and may hold any character.
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            titles[int(entry.name)] = (
                (entry / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
            )
        except (FileNotFoundError, ProcessLookupError):
            continue
    for pid, title in titles.items():
        if title.startswith(("ray::X rows", "ray::merge of")) and _below(pid, parents):
            yield pid, title.removeprefix("ray::")


def _below(pid, parents):
    while pid in parents:
        pid = parents[pid]
        if pid == os.getpid():
            return True
    return False


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("claim", choices=("model", "statistics", "faults"))
    parser.add_argument("--n", type=int)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    {"model": model, "statistics": statistics, "faults": faults}[options.claim](options)


if __name__ == "__main__":
    main()
