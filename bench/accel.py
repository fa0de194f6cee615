"""Other people's code with and without `kernel_distill.accel`, in turns; rows of JSON for docs/accel.md.

    python bench/accel.py rbf                                    # scikit-learn's rbf_kernel, float32
    python bench/accel.py ridge                                  # KernelRidge in a grid search
    python bench/accel.py mmd --snippet FILE:NAME                # a copy of the MMD snippet, its loss by name
    python bench/accel.py k-center --peers FOLDER                # DeepCore's, FOLDER/deepcore is a clone
    python bench/accel.py krr --peers FOLDER                     # distill.py as a process, FOLDER/krr
    python bench/accel.py dm --peers FOLDER                      # main_DM.py as a process, FOLDER/vico

Clones are fetched by whoever measures, with what they need to run; nothing of them is kept. On a machine without a GPU
`stand_ins` lets scripts run that ask for CUDA by name.
"""

import argparse
import contextlib
import importlib.util
import io
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from _peer_runs import copy_of, in_turns, numbers, write_mnist
from _rows import DATA, emit, in_new_process

from kernel_distill import accel


def turns(call, targets, repeats):
    """Results and seconds of a call as it is and with targets installed; the median of the ratios."""
    seconds, results = {False: [], True: []}, {}
    for _ in range(repeats + 1):  # the first is for warming up
        for accelerated in (False, True):
            with accel.patched(*targets) if accelerated else contextlib.nullcontext():
                started = time.perf_counter()
                results[accelerated] = call()
                seconds[accelerated].append(time.perf_counter() - started)
    pairs = list(zip(seconds[False][1:], seconds[True][1:], strict=True))
    figures = {
        "seconds": round(statistics.median(b for _, b in pairs), 4),
        "original_seconds": round(statistics.median(a for a, _ in pairs), 4),
        "ratio": round(statistics.median(a / b for a, b in pairs), 2),
        "repeats": repeats,
    }
    return results, figures


def rbf(given):
    import sklearn.metrics.pairwise as pairwise

    rng = np.random.default_rng(0)
    X, Y = (rng.standard_normal((n, 3072), dtype=np.float32) for n in (4000, 2000))
    results, figures = turns(
        lambda: pairwise.rbf_kernel(X, Y, gamma=1 / 6144), ["sklearn.rbf_kernel"], given.repeats
    )
    exact = _rbf(X.astype(np.float64), Y.astype(np.float64), 1 / 6144)
    errors = {
        name: float(np.abs(results[arm] - exact).max())
        for name, arm in (("error", True), ("original_error", False))
    }
    emit("accel-rbf", shape=[4000, 2000, 3072], dtype="float32", **figures, **errors)


def _rbf(X, Y, gamma):
    square = (X**2).sum(1)[:, None] + (Y**2).sum(1) - 2 * X @ Y.T
    return np.exp(-gamma * np.maximum(square, 0))


def ridge(given):
    from sklearn.kernel_ridge import KernelRidge
    from sklearn.model_selection import GridSearchCV

    arrays = np.load(DATA / "mnist.npz")
    X = arrays["x_train"][:5000].reshape(5000, -1) / 255.0
    Y = np.eye(10)[arrays["y_train"][:5000]]

    def search():
        grid = {"alpha": np.logspace(-4, 1, 10)}
        return GridSearchCV(KernelRidge(kernel="rbf", gamma=0.02), grid, cv=5).fit(X, Y)

    results, figures = turns(search, ["sklearn"], given.repeats)
    scores = [results[arm].cv_results_["mean_test_score"] for arm in (False, True)]
    emit(
        "accel-ridge",
        shape=[5000, 784],
        alphas=10,
        folds=5,
        **figures,
        same_alpha=results[False].best_params_ == results[True].best_params_,
        largest_difference_of_scores=float(np.abs(scores[0] - scores[1]).max()),
    )


def mmd(given):
    path, _, name = given.snippet.rpartition(":")
    seconds, measured = {}, {}
    for _ in range(given.repeats):
        for column, targets in (("", "mmd"), ("original_", "")):
            found = in_new_process(MMD, path, name, targets)
            seconds.setdefault(column, []).append(found["seconds"])
            measured |= {f"{column}{key}": value for key, value in found.items()}
    ratios = [a / b for a, b in zip(seconds["original_"], seconds[""], strict=True)]
    emit(
        "accel-mmd",
        snippet=name,
        shape=[400, 400, 2048],
        ratio=round(statistics.median(ratios), 1),
        bytes_ratio=round(measured["original_bytes"] / measured["bytes"], 1),
        value_difference=abs(measured["value"] - measured["original_value"])
        / abs(measured["original_value"]),
        repeats=given.repeats,
        **measured,
    )


# Value and gradient in a new process: seconds, and how far resident memory rises.
MMD = """
import importlib.util, json, resource, sys, time
import torch
from kernel_distill import accel
spec = importlib.util.spec_from_file_location("snippet", sys.argv[1])
module = sys.modules["snippet"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
if sys.argv[3]:
    accel.install(sys.argv[3])
loss = getattr(module, sys.argv[2])
loss = loss() if isinstance(loss, type) else loss
def step(n):
    torch.manual_seed(0)
    x, y = torch.randn(n, 2048, requires_grad=True), torch.randn(n, 2048) + 0.1
    started = time.perf_counter()
    value = loss(x, y)
    value.backward()
    return {"seconds": time.perf_counter() - started, "value": float(value), "gradient_norm": float(x.grad.norm())}
step(32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = step(400)
found["bytes"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
print(json.dumps(found))
"""


def k_center(given):
    import torch

    sys.path.insert(0, str(given.peers / "deepcore"))
    from deepcore.methods import kcentergreedy as peer

    torch.manual_seed(0)
    matrix = torch.randn(50_000, 512)

    def pick():
        with contextlib.redirect_stdout(io.StringIO()):
            return peer.k_center_greedy(
                matrix, 500, peer.euclidean_dist, "cpu", random_seed=0, already_selected=[]
            )

    results, figures = turns(pick, ["deepcore.k_center_greedy"], given.repeats)
    emit(
        "accel-k-center",
        shape=[50_000, 512],
        picks=500,
        **figures,
        same=bool((results[False] == results[True]).all()),
    )


def krr(given):
    with copy_of(given.peers / "krr", ("*.py", "functions/*.py", "models/*.py")) as folder:
        write_mnist(folder / "data")
        (folder / "config").mkdir()
        (folder / "config" / "distill.yaml").write_text(
            "data: {dataset: MNIST, zca_whiten: False, gpu: 0}\nmodel: {seed: 0, hidden_layer: 1}\n"
            "distill: {IPC: 1, kernel: FCNN, generate_from_real_data: False, reg_s: False}\n"
        )
        runs, figures = in_turns(
            given.repeats,
            folder=folder,
            script="distill.py",
            arguments=(),
            threads=given.threads,
            note="WEIGHT_ERRORS",
        )
    for name, accelerated in (("", True), ("original_", False)):
        printed, notes = zip(*((printed, notes) for _, printed, notes in runs[accelerated]), strict=True)
        figures[f"{name}accuracies"] = [numbers(r"acc_test: +([\d.]+)", text) for text in printed]
        figures[f"{name}best"] = [numbers(r"best accuracy: +([\d.]+)", text) for text in printed]
        figures[f"{name}weight_errors"] = [[float(note) for note in lines] for lines in notes]
    emit("accel-krr", script="distill.py", data="MNIST", feature_map="FCNN", threads=given.threads, **figures)


def dm(given):
    with copy_of(given.peers / "vico") as folder:
        write_mnist(folder / "data")
        runs, figures = in_turns(
            given.repeats,
            folder=folder,
            script="main_DM.py",
            arguments=given.arguments.split(),
            threads=given.threads,
        )
    for name, accelerated in (("", True), ("original_", False)):
        printed = [text for _, text, _ in runs[accelerated]]
        figures[f"{name}accuracies"] = [
            accuracy for text in printed for accuracy in numbers(r"test acc = ([\d.]+)", text)
        ]
    emit("accel-dm", script="main_DM.py", arguments=given.arguments, threads=given.threads, **figures)


def load(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DM_ARGUMENTS = (
    "--dataset MNIST --model ConvNet --ipc 10 --eval_mode final --num_exp 1 --num_eval 4 --epoch_eval_train 20"
    " --Iteration 6 --batch_real 64"
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("claim", choices=["rbf", "ridge", "mmd", "k-center", "krr", "dm"])
    parser.add_argument("--peers", type=Path, help="folder of clones: deepcore, krr, vico")
    parser.add_argument("--snippet", help="FILE:NAME of a loss of two samples")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--arguments", default=DM_ARGUMENTS, help="of main_DM.py")
    given = parser.parse_args()
    {"rbf": rbf, "ridge": ridge, "mmd": mmd, "k-center": k_center, "krr": krr, "dm": dm}[given.claim](given)


if __name__ == "__main__":
    main()
