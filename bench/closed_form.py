"""The closed form on real data: accuracy, exactness, speed and memory, as rows of JSON.

    python bench/closed_form.py accuracy [mnist fashion cifar10]   # tables of docs/results.md
    python bench/closed_form.py floor                              # time against the floor of its own arithmetic
    python bench/closed_form.py ridges                             # 24 ridges instead of one
    python bench/closed_form.py stream                             # memory and throughput of 2,000,000 rows
    python bench/closed_form.py shards                             # merging and unlearning
    python bench/closed_form.py patches                            # the wide map for images, in feature space
    python bench/closed_form.py storage                            # float64, float32, float16, uint8
    python bench/closed_form.py import                             # what the import costs
    python bench/closed_form.py process mnist fcnn                 # one whole process: load, distil, score, save
    python bench/closed_form.py all

Data sets are read from KERNEL_DISTILL_DATA (default: shared/data beside the checkout).
"""

import itertools
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from _rows import DATA, emit, in_new_process, median_seconds

import kernel_distill as kd
from kernel_distill.kernels import gram_add_
from kernel_distill.solver.ridge import RidgePath

SOURCES = {"mnist": "mnist.npz", "fashion": "fashion_mnist.npz", "cifar10": "cifar10_jpeg"}
MAPS = ("identity", "fcnn", "fourier")


def accuracy(*names, seeds=4, per_class=(1, 10, 50)):
    """Test accuracy of the full and the distilled model, and the exactness between them."""
    for name in names or SOURCES:
        data = kd.load_data(DATA / SOURCES[name])
        for feature_map in MAPS:
            for seed in range(seeds):
                for count in per_class:
                    started = time.perf_counter()
                    ds = kd.distill(data, feature_map=feature_map, per_class=count, seed=seed, progress=False)
                    seconds = time.perf_counter() - started
                    row = kd.evaluate(ds, data).rows[0]
                    emit(
                        "accuracy",
                        data=name,
                        feature_map=feature_map,
                        seed=seed,
                        per_class=count,
                        full_accuracy=row.full_score,
                        accuracy=row.score,
                        differing=row.n_different,
                        weight_error=ds.certificate.weight_error,
                        stored_error=ds.certificate.stored_error,
                        condition=ds.certificate.condition,
                        ridge=ds.certificate.ridge,
                        seconds=round(seconds, 3),
                    )


def storage(rows=20_000):
    """What narrower storage costs: error of the weights and test accuracy, labels solved after rounding."""
    data = kd.load_data(DATA / SOURCES["mnist"])
    for feature_map in ("identity", "fcnn"):
        for per_class, near in ((1, "noise"), (10, "noise"), (50, "data")):
            for kind in ("float64", "float32", "float16", "uint8"):
                ds = kd.distill(
                    data.x_train[:rows],
                    data.y_train[:rows],
                    feature_map=feature_map,
                    per_class=per_class,
                    near=near,
                    storage=kind,
                    progress=False,
                )
                row = kd.evaluate(ds, (data.x_test, data.y_test)).rows[0]
                emit(
                    "storage",
                    feature_map=feature_map,
                    points=len(ds),
                    near=near,
                    storage=kind,
                    full_accuracy=row.full_score,
                    accuracy=row.score,
                    stored_error=ds.certificate.stored_error,
                    nbytes=ds.nbytes,
                )


def floor(repeats=3):
    """The whole of distil against one feature product, one half Gram product and one factorisation."""
    data = kd.load_data(DATA / SOURCES["cifar10"])
    X = torch.from_numpy(data.x_train)
    ds = kd.distill(data, feature_map="fcnn", per_class=1, progress=False)
    p = ds.encoder.feature_map.n_features
    weight = torch.randn(p, p)
    rows = 2730

    def lower_bound():
        gram = torch.zeros(p, p, dtype=torch.float64)
        for start in range(0, len(X), rows):
            features = X[start : start + rows].flatten(1).float() @ weight
            gram_add_(gram, features.double())
        torch.linalg.eigh(gram)

    def whole():
        kd.distill(data, feature_map="fcnn", per_class=1, progress=False)

    seconds, least = median_seconds(whole, lower_bound, repeats=repeats)
    emit(
        "floor", data="cifar10", feature_map="fcnn", p=p, seconds=seconds, floor=least, ratio=seconds / least
    )


def ridges(repeats=3):
    """24 candidates for the ridge instead of one, everything else the same."""
    data = kd.load_data(DATA / SOURCES["mnist"])

    def run(candidates):
        kd.distill(data, feature_map="fcnn", ridge=candidates, progress=False)

    many = [10.0 ** (step / 2) for step in range(-12, 12)]
    seconds, one = median_seconds(lambda: run(many), lambda: run([1.0]), repeats=repeats)
    emit(
        "ridges",
        data="mnist",
        feature_map="fcnn",
        candidates=24,
        seconds=seconds,
        one=one,
        ratio=seconds / one,
    )


STREAM = """
import json, re, sys, time
import numpy as np, torch, kernel_distill as kd
kd.distill, kd.Statistics
from kernel_distill.kernels import gram_add_
def peak():  # of this program; ru_maxrss would begin with that of the process that started it
    return int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) / 2**10
before = peak()
n, d = int(sys.argv[2]), 784
X = np.memmap(sys.argv[1], dtype=np.float32, mode="r", shape=(n, d))
y = np.arange(n) % 10
started = time.perf_counter()
statistics = kd.collect_statistics(X, y, feature_map="identity", transform="none", progress=False)
seconds = time.perf_counter() - started
above = peak() - before
block = torch.from_numpy(np.array(X[:100_000])).double()
G = torch.zeros(d, d, dtype=torch.float64)
gram_add_(G, block)
started = time.perf_counter()
for _ in range(4):
    gram_add_(G, block)
rate = 4 * len(block) / (time.perf_counter() - started)
print(json.dumps({"seconds": seconds, "mib_above_import": above, "rows_per_second": n / seconds,
                  "gram_rows_per_second": rate, "share_of_gram_rate": n / seconds / rate}))
"""


def stream(n=2_000_000):
    """Peak memory and throughput of the statistics of a memory map of n x 784 float32."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.f32"
        block = np.random.default_rng(0).standard_normal((100_000, 784), dtype=np.float32)
        with path.open("wb") as file:
            for _ in range(n // len(block)):
                block.tofile(file)
        runs = [in_new_process(STREAM, str(path), str(n)) for _ in range(3)]
    runs.sort(key=lambda run: run["share_of_gram_rate"])
    emit("stream", rows=n, columns=784, **runs[1])


def shards():
    """Eight shards merged and one subtracted, against the direct computation."""
    data = kd.load_data(DATA / SOURCES["mnist"])
    whole = kd.collect_statistics(data, feature_map="fcnn", progress=False)
    cuts = np.linspace(0, len(data.x_train), 9).astype(int)
    parts = [
        kd.collect_statistics(data.x_train[a:b], data.y_train[a:b], like=whole, progress=False)
        for a, b in itertools.pairwise(cuts)
    ]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged + part
    seven = kd.collect_statistics(
        data.x_train[: cuts[7]], data.y_train[: cuts[7]], like=whole, progress=False
    )

    def error(a, b):
        return float(
            ((a.gram - b.gram).norm() / b.gram.norm()).maximum((a.cross - b.cross).norm() / b.cross.norm())
        )

    emit("shards", merged=error(merged, whole), unlearned=error(merged - parts[7], seven))


def patches(seed=0):
    """Random patch features of CIFAR-10 (JPEG q75): wide, no inverse; the set lives in feature space."""
    data = kd.load_data(DATA / SOURCES["cifar10"])
    started = time.perf_counter()
    ds = kd.distill(data, feature_map="patches", per_class=1, seed=seed, progress=False)
    seconds = time.perf_counter() - started
    row = kd.evaluate(ds, data).rows[0]
    emit(
        "patches",
        data="cifar10",
        n_features=ds.encoder.feature_map.n_features,
        points=len(ds),
        space=ds.space,
        full_accuracy=row.full_score,
        accuracy=row.score,
        differing=row.n_different,
        stored_error=ds.certificate.stored_error,
        ridge=ds.certificate.ridge,
        seconds=round(seconds, 1),
    )


def path(repeats=3, p=3072):
    """One eigen-decomposition against as many Cholesky factorisations as there are ridges."""
    F = torch.randn(2 * p, p, dtype=torch.float64)
    statistics = kd.Statistics(p, 10).add(F, torch.randn(2 * p, 10))
    lambdas = [10.0 ** (step / 2) for step in range(-12, 12)]

    def one():
        found = RidgePath.from_statistics(statistics)
        for value in lambdas:
            found.weights(value)

    def each():
        for value in lambdas:
            system = statistics.gram.clone()
            system.diagonal().add_(value)
            torch.cholesky_solve(statistics.cross, torch.linalg.cholesky(system))

    path_seconds, cholesky_seconds = median_seconds(one, each, repeats=repeats)
    emit("path", p=p, ridges=len(lambdas), eigh=path_seconds, cholesky_each=cholesky_seconds)


def process(name, feature_map):
    """What a user's script does from start to end, for timing from outside the process."""
    data = kd.load_data(DATA / SOURCES[name] if name in SOURCES else name)
    ds = kd.distill(data, feature_map=feature_map, per_class=1, progress=False)
    accuracy = ds.score(data.x_test, data.y_test)
    with tempfile.TemporaryDirectory() as folder:
        ds.save(Path(folder) / "set.safetensors")
    print(f"{name} {feature_map}: {accuracy:.4f}, stored error {ds.certificate.stored_error:.1e}")


IMPORT = """
import json, time
import torch
started = time.perf_counter()
import kernel_distill as kd
bare = time.perf_counter() - started
kd.distill, kd.load_data
print(json.dumps({"import": bare, "first_use": time.perf_counter() - started}))
"""


def import_cost(repeats=5):
    """Seconds beyond importing torch, for the package and for everything `distill` needs."""
    runs = [in_new_process(IMPORT) for _ in range(repeats)]
    emit("import", **{key: float(np.median([run[key] for run in runs])) for key in runs[0]})


CLAIMS = {
    "import": import_cost,
    "shards": shards,
    "stream": stream,
    "ridges": ridges,
    "path": path,
    "floor": floor,
    "patches": patches,
    "storage": storage,
    "accuracy": accuracy,
}
OTHER = {"process": process}


def main(arguments):
    commands = CLAIMS | OTHER
    if not arguments or arguments[0] not in (*commands, "all"):
        sys.exit(f"usage: closed_form.py {{{' | '.join(commands)} | all}} [arguments]\n\n{__doc__}")
    if arguments[0] == "all":
        for claim in CLAIMS.values():
            claim()
    else:
        commands[arguments[0]](*arguments[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
