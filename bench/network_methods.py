"""Sets that networks are trained on, every method from end to end: the tables of docs/networks.md, as rows of JSON.

    python bench/network_methods.py digits                   # every method, 3 seeds, 1 and 10 points a class
    python bench/network_methods.py mnist fashion            # DM, one point a class, 3 seeds
    python bench/network_methods.py few                      # CIFAR-10, 1 % of the rows: DM without and with Deep-KKT
    python bench/network_methods.py digits --only dm,mtt --per-class 1

Time decides how long a method learns (`SECONDS`), not steps: what it needs first (experts, a trained network) is
counted beside it. Networks are those of `NETWORK`, small ones, so that a CPU gets through; the figures say nothing of
published settings.
"""

import argparse
import time

import torch
from _rows import DATA, emit

import kernel_distill as kd

NETWORK = {
    "digits": {"width": 32, "depth": 2},
    "mnist": {"width": 32},
    "fashion": {"width": 32},
    "few": {"width": 32},
}
SOURCES = {
    "digits": "digits",
    "mnist": DATA / "mnist.npz",
    "fashion": DATA / "fashion_mnist.npz",
    "few": DATA / "cifar10_jpeg",
}
METHODS = {
    "digits": ("dm", "dc", "dsa", "mtt", "dkkt", "dkkt+dm", "kip", "frepo"),
    "mnist": ("dm",),
    "fashion": ("dm",),
    "few": ("dm", "dkkt+dm"),
}
SECONDS = {"digits": 15.0, "mnist": 120.0, "fashion": 120.0, "few": 150.0}
EPOCHS = {"digits": 300, "mnist": 200, "fashion": 200, "few": 100}
# Digits are not mirrored.
AUGMENT = {
    "digits": "color_crop_cutout_scale_rotate",
    "mnist": "color_crop_cutout_scale_rotate",
    "fashion": "color_crop_cutout_flip_scale_rotate",
    "few": "color_crop_cutout_flip_scale_rotate",
}
# Share of the rows that DM sees, and sets of each method.
FRACTION = {"digits": 0.1, "few": 0.01}
SEEDS = {"digits": 3, "mnist": 3, "fashion": 3, "few": 2}
PER_CLASS = {"digits": [1, 10], "mnist": [1], "fashion": [1], "few": [10]}


def method(tag, name):
    """Options of a method for a data set."""
    network, augment = NETWORK[name], AUGMENT[name]
    common = {"network_params": network, "judge_networks": 2, "judge_epochs": 100}
    bare = {
        **common,
        "network_params": network | {"norm": "none"},
        "augment": "crop_flip" if "flip" in augment else "crop",
    }
    options = {
        "dm": lambda: kd.DM(
            **common,
            augment=augment,
            batch_real=64,
            fraction=FRACTION[name] if name == "few" else 1.0,
            evaluate_every=100,
        ),
        "dc": lambda: kd.DC(**common, batch_real=64, evaluate_every=20),
        "dsa": lambda: kd.DSA(**common, augment=augment, batch_real=64, evaluate_every=20),
        "mtt": lambda: kd.MTT(
            **common,
            augment=augment,
            experts=10,
            expert_epochs=20,
            max_start_epoch=10,
            lr=100.0,
            evaluate_every=50,
        ),
        "dkkt": lambda: kd.DKKT(**bare, evaluate_every=100),
        "dkkt+dm": lambda: kd.DKKTDM(
            **bare,
            fraction=FRACTION[name],
            dm=kd.DM(network_params=network, augment=augment, batch_real=64),
            expert_epochs=10 if name == "few" else 30,
            evaluate_every=100,
        ),
        "kip": lambda: kd.KIP(evaluate_every=50),
        "frepo": lambda: kd.FRePo(width=32, evaluate_every=100),
    }
    return options[tag]()


def table(name, tags, per_class):
    """One table: every method, all seeds, beside random and k-center rows."""
    data = kd.load_data(SOURCES[name])
    sets, spent = {}, {}
    for tag in tags:
        for seed in range(SEEDS[name]):
            started = time.perf_counter()
            ds = kd.distill(
                data,
                method=method(tag, name),
                per_class=per_class,
                seed=seed,
                loop=kd.Loop(steps=10**6, time_limit=SECONDS[name]),
                progress=False,
            )
            sets.setdefault(tag, []).append(ds)
            spent.setdefault(tag, []).append(time.perf_counter() - started)
    evaluation = kd.evaluate(
        sets,
        data,
        recipe="dsa",
        networks={"convnet": NETWORK[name]},
        epochs=EPOCHS[name],
        augment=AUGMENT[name],
        count=5,
        progress=False,
    )
    for row in evaluation.rows:
        seconds = spent.get(row.name, []) if row.trained_on == "distilled" else []
        emit(
            "network_methods",
            data=name,
            set=row.name,
            trained_on=row.trained_on,
            per_class=per_class,
            sets=SEEDS[name],
            networks=row.networks,
            accuracy=round(row.score, 4),
            deviation=round(row.std, 4),
            interval=[round(end, 4) for end in row.interval],
            seconds_of_a_set=[round(value, 1) for value in seconds],
            steps=[ds.certificate.steps for ds in sets[row.name]] if seconds else [],
            selected=[ds.certificate.selected_step for ds in sets[row.name]] if seconds else [],
            threads=torch.get_num_threads(),
        )
    print(evaluation)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", choices=SOURCES)
    parser.add_argument("--only", help="methods, with commas between")
    parser.add_argument("--per-class", type=int, action="append")
    given = parser.parse_args()
    for name in given.names:
        for per_class in given.per_class or PER_CLASS[name]:
            table(name, given.only.split(",") if given.only else METHODS[name], per_class)


if __name__ == "__main__":
    main()
