"""Sets of distributions: D3 by subtasks, its analytic form, and what stands beside them at the same bytes.

    python bench/d3.py tiny-imagenet [--seconds 150] [--epochs 20]   # the recipes for a CPU, and the table
    python bench/d3.py ablation [--seeds 2] [--steps 80]             # bandwidths, priors a class, subtasks: digits
    python bench/d3.py step [--classes 10]                           # one MMD step beside the published loop

`step` is at the published size but for the number of classes, of which the published loop keeps all activations: about
240 MB each.
Data sets are read from KERNEL_DISTILL_DATA (default: shared/data beside the checkout).
"""

import argparse
import time
from pathlib import Path

import torch
from _rows import DATA, emit

import kernel_distill as kd

TINY = {"d3": "d3-tiny-imagenet-cpu", "d3, 5 subtasks": "d3-tiny-imagenet-cpu-5"}
ANALYTIC = {
    "class-gaussians": "class-gaussians-tiny-imagenet",
    "class-gaussians, diagonal": "class-gaussians-tiny-imagenet-diagonal",
}
NETWORK = {"convnet": {"width": 32}}
DIGITS = {
    "recipe": "d3",
    "networks": {"convnet": {"width": 32, "depth": 2}},
    "count": 3,
    "epochs": 150,
    "augment": "",
}


def tiny_imagenet(given):
    """D3 in one piece and by subtasks, class Gaussians, and random and closed-form rows of as many bytes."""
    data = kd.load_data(DATA / "tiny_imagenet_200")
    learned, exact, seconds = {}, {}, {}
    for name, recipe in TINY.items():
        chosen = kd.load_recipe(recipe)
        # Equal time: each subtask has its share of it.
        changes: dict = {"loop.time_limit": given.seconds / (chosen.subtasks or 1), "loop.steps": 10**6}
        if given.experts:
            changes["method.experts_folder"] = str(given.experts / recipe)
        learned[name], seconds[name] = timed(data, **chosen.replaced(changes).arguments())
        beside = f"random, bytes of {name}"
        learned[beside], seconds[beside] = random_rows(data, learned[name].nbytes)
    networks = kd.evaluate(
        learned,
        data,
        recipe="d3",
        networks=NETWORK,
        epochs=given.epochs,
        count=2,
        baselines=(),
        progress=False,
    )
    for row in networks.rows:
        ds = learned[row.name]
        run = {"steps": ds.certificate.steps, "selected_step": ds.certificate.selected_step}
        more = {"deviation": round(row.std, 4), "epochs": given.epochs, "notes": list(ds.certificate.notes)}
        show("networks", row, seconds, data, **run, **more)
    for name, recipe in ANALYTIC.items():
        exact[name], seconds[name] = timed(data, **kd.load_recipe(recipe).arguments())
    for name, ds in [*exact.items(), *((name, learned[name]) for name in TINY)]:
        beside = f"closed-form, bytes of {name}"
        exact[beside], seconds[beside] = closed_form(data, ds.nbytes)
    # As many real rows as a closed form has points stand beside it, with the same features.
    for row in kd.evaluate(exact, data, baselines="random").rows:
        if row.trained_on == "distilled" or row.name.startswith("closed-form"):
            show("ridge", row, seconds, data)


def show(model, row, seconds, data, **more):
    """A row of the table."""
    emit(
        "d3-tiny-imagenet",
        model=model,
        set=row.name,
        trained_on=row.trained_on,
        entries=row.points,
        nbytes=row.nbytes,
        float32_images=round(row.nbytes / (4 * data.x_train[0].size), 1),
        accuracy=round(row.score, 4),
        seconds=round(seconds[row.name], 1) if row.trained_on == "distilled" else None,
        threads=torch.get_num_threads(),
        **more,
    )


def timed(data, **arguments):
    """A set, and the seconds that it took."""
    started = time.perf_counter()
    ds = kd.distill(data, progress=False, **arguments)
    return ds, time.perf_counter() - started


def random_rows(data, nbytes):
    """Real rows as a set of about so many bytes: their pixels as bytes, and float32 labels."""
    values, k = data.x_train[0].size, len(data.class_names)
    method = kd.DM(network_params={"width": 8}, judge_networks=1, judge_epochs=1)
    points = max(k, nbytes // (values + 4 * k))
    return timed(data, method=method, n_points=points, near="random", storage="uint8", loop=kd.Loop(steps=0))


def closed_form(data, nbytes):
    """The closed form for Fourier features in about so many bytes; fewer points than classes are a lower rank."""
    values, k = data.x_train[0].size, len(data.class_names)
    points = max(1, nbytes // (4 * (values + k)))
    return timed(
        data,
        n_points=points,
        feature_map="fourier",
        feature_params={"n_features": 1024},
        storage="float32",
        labels="solved",
        near="data",
    )


def ablation(given):
    """What the paper leaves open: bandwidths, priors a class, subtasks; digits, a small ConvNet."""
    data = kd.load_data("digits")
    base = kd.D3(
        network_params={"width": 32, "depth": 2},
        decoder_params={"width": 32},
        experts=2,
        expert_epochs=15,
        max_start_epoch=10,
        lr_latent=0.1,
        lr_decoder=1e-3,
        augment="",
        judge_networks=2,
        judge_epochs=100,
        evaluate_every=50,
    )
    for vary in (
        {"bandwidths": [(1.0, 2.0, 4.0, 8.0, 16.0), "median"]},
        {"per_class": [1, 2, 5]},
        {"subtasks": [1, 2, 5]},
    ):
        result = kd.ablate(data, base, vary=vary, seeds=given.seeds, steps=given.steps, evaluate=DIGITS)
        print(result)
        emit("d3-ablation", vary=sorted(vary), steps=given.steps, result=result.to_dict())


def step(given):
    """An MMD step on the CPU, beside the structure of the published loop."""
    from _mmd_step import mmd_step

    emit("d3-mmd-step", **mmd_step(torch.device("cpu"), classes=given.classes, seconds=given.seconds))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("tiny-imagenet")
    one.add_argument("--seconds", type=float, default=150.0, help="of the loop of each D3 set")
    one.add_argument("--epochs", type=int, default=20, help="of the networks that are trained on the sets")
    one.add_argument("--experts", type=Path, help="folder to keep experts in, and to take them from")
    one.set_defaults(run=tiny_imagenet)
    two = commands.add_parser("ablation")
    two.add_argument("--seeds", type=int, default=2)
    two.add_argument("--steps", type=int, default=80)
    two.set_defaults(run=ablation)
    three = commands.add_parser("step")
    three.add_argument("--classes", type=int, default=10)
    three.add_argument("--seconds", type=float, default=60.0)
    three.set_defaults(run=step)
    given = parser.parse_args()
    given.run(given)


if __name__ == "__main__":
    main()
