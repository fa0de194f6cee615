"""Learned sets on real data: the figures of docs/learned.md, as rows of JSON.

    python bench/learned.py kip                # one recipe from start to end: test accuracy at both, seconds
    python bench/learned.py label_solve
    python bench/learned.py full_kip [seconds] # full-data KIP and KIP by batches at equal time
    python bench/learned.py ablation [kip rfad] [mnist fashion cifar10]  # starts and picks, five seeds each
    python bench/learned.py all

Data sets are read from KERNEL_DISTILL_DATA (default: shared/data beside the checkout).
"""

import sys
import time
from pathlib import Path

import torch
from _rows import DATA, ROOT, emit

import kernel_distill as kd

SOURCES = {"mnist": "mnist.npz", "fashion": "fashion_mnist.npz", "cifar10": "cifar10_jpeg"}
# Of the ablation: one point a class, so that where it starts from matters; seconds of the loop of every run.
SECONDS = {"kip": {"mnist": 3.0, "fashion": 3.0, "cifar10": 10.0}, "rfad": dict.fromkeys(SOURCES, 6.0)}
METHODS = {
    "kip": kd.KIP(batch_size=2000),
    "rfad": kd.RFAD(networks=2, width=32, kept_networks=4, batch_size=300, lr=2e-2, scale_lr=3e-2),
}
INITS = ("random", "kernel-density")
# The first table of losses of all rows would take RFAD twice its budget here: a pool of candidates has one.
PICKS = {"kip": ("uniform", "loss"), "rfad": ("uniform", "loss,pool=3000")}


def recipe(name, source, *, steps=None):
    """A recipe as it stands, and its start: the same points with their own labels and no steps."""
    data, recipe = kd.load_data(DATA / SOURCES[source]), kd.load_recipe(name)
    arguments = recipe.arguments()
    method = arguments["method"].model_copy(update={"labels": "fixed"})
    start = kd.distill(data, **{**arguments, "method": method, "loop": kd.Loop(steps=0)}, progress=False)
    started = time.perf_counter()
    ds = kd.distill(data, **arguments, progress=False)
    emit(
        "recipe",
        recipe=name,
        start=start.score(data.x_test, data.y_test),
        accuracy=ds.score(data.x_test, data.y_test),
        heldout=ds.certificate.heldout_score,
        steps=ds.certificate.steps,
        loop_seconds=ds.provenance["run"]["seconds"],
        seconds=round(time.perf_counter() - started, 1),
        threads=torch.get_num_threads(),
    )


def kip():
    """KIP's notebook: 100 points of CIFAR-10, 300 steps."""
    recipe("kip-fc1-cifar10-100", "cifar10")


def label_solve():
    """Label Solve: 500 balanced points of CIFAR-10, before and after."""
    recipe("label-solve-fc1-cifar10-500", "cifar10")


def full_kip(seconds=60, n_features=4096):
    """The loss over all rows from G and B, beside the same loss over batches; one budget of time for both."""
    data = kd.load_data(DATA / SOURCES["mnist"])
    params = {"n_features": n_features}
    for per_class in (1, 10):
        for name, method, more in (
            ("full", kd.FullKIP(), {"feature_map": "fourier", "feature_params": params}),
            ("batches", kd.KIP(kernel="fourier", kernel_params=params, labels="solved"), {}),
            ("batches", kd.KIP(kernel="fourier", kernel_params=params, labels="learned"), {}),
        ):
            started = time.perf_counter()
            loop = kd.Loop(steps=10**6, time_limit=float(seconds))
            ds = kd.distill(
                data, method=method, per_class=per_class, near="data", loop=loop, progress=False, **more
            )
            emit(
                "full_kip",
                arm=name,
                labels=method.labels,
                points=len(ds),
                n_features=n_features,
                accuracy=ds.score(data.x_test, data.y_test),
                steps=ds.certificate.steps,
                figures=ds.provenance["run"]["figures"],
                loop_seconds=ds.provenance["run"]["seconds"],
                seconds=round(time.perf_counter() - started, 1),
            )


def ablation(*names):
    """Where points start and how batches are drawn, at equal time: five seeds, test accuracy."""
    methods = [name for name in names if name in METHODS] or list(METHODS)
    sources = [name for name in names if name in SOURCES] or list(SOURCES)
    for source in sources:
        data = kd.load_data(DATA / SOURCES[source])
        for name in methods:
            found = kd.ablate(
                data,
                METHODS[name],
                inits=INITS,
                picks=PICKS[name],
                seeds=5,
                time_limit=SECONDS[name][source],
                out=ROOT / "build" / f"ablation-{name}-{source}",
            )
            print(found, file=sys.stderr)
            for arm in found.to_dict()["arms"]:
                emit("ablation", method=name, data=source, time_limit=SECONDS[name][source], **arm)


def main(argv):
    commands = (kip, label_solve, full_kip, ablation)
    known = {command.__name__: command for command in commands}
    name, *rest = argv or ["all"]
    if name != "all" and name not in known:
        sys.exit(f"usage: {Path(__file__).name} {' | '.join(known)} | all")
    for command in known.values() if name == "all" else [known[name]]:
        command(*rest)


if __name__ == "__main__":
    main(sys.argv[1:])
