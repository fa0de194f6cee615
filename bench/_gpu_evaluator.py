"""The evaluator on a GPU: many networks at once, beside the structure of the published loop, one after the other.

The published loop (github.com/VICO-UoE/DatasetCondensation, `evaluate_synset`; written anew here) reads a loss and the
predictions on the host at every batch. Its points lie on the device and its augmentation is ours, which is kinder to
it than its own DataLoader and its parameters drawn image by image. Seconds are those of an epoch of training: the
difference of two trainings of different lengths, so that weights, warm-up and capture of the graph cancel.
"""

import time

import torch
from torch.nn import functional

from kernel_distill.kernels import augment_images, draw_augmentation, normal
from kernel_distill.nn_baselines.training import train_networks
from kernel_distill.nn_baselines.training_recipes import training_recipe
from kernel_distill.solver.networks import build_network, network_spec

CLASSES, NETWORKS = 10, 20
# What a network may differ by between the two strategies after a few steps: float32 sums in another order.
TOLERANCE = 1e-3


def evaluator_epochs(device, *, quick=False):
    """Seconds of an epoch for all networks, of ours and of the published loop, and whether the strategies agree."""
    shape, params, count, lengths = (
        ((3, 8, 8), {"width": 8, "depth": 2}, 3, (4, 8)) if quick else ((3, 32, 32), {}, NETWORKS, (10, 60))
    )
    spec = network_spec("convnet", shape, CLASSES, **params)
    X = normal(0, "bench.points", (10 * CLASSES, *shape)).float().to(device)
    y = torch.arange(CLASSES, device=device).repeat_interleave(10)
    Y = functional.one_hot(y, CLASSES).float()
    short = training_recipe("dsa", epochs=4)
    one, all_ = (
        train_networks(spec, X, Y, short, count=2, seed=0, strategy=strategy)
        for strategy in ("serial", "stacked")
    )
    error = max(
        float((one.parameters[name] - value).norm() / value.norm().clamp_min(1e-12))
        for name, value in all_.parameters.items()
        if value.ndim > 2
    )
    seconds = {
        "stacked": _an_epoch(lambda e: train_networks(
            spec, X, Y, training_recipe("dsa", epochs=e), count=count, seed=0, strategy="stacked"
        ), lengths, device),
        "published": count * _an_epoch(lambda e: _published(spec, X, y, e, device), lengths, device),
    }  # fmt: skip
    return {
        "size": dict(networks=count, points=len(X), shape=shape, epochs=lengths),
        "weight_error": error,
        "seconds_an_epoch": seconds,
        "speedup": seconds["published"] / seconds["stacked"],
        "status": "ok" if error < TOLERANCE else "wrong",
    }


def _an_epoch(train, lengths, device):
    taken = []
    for epochs in (lengths[0], *lengths):  # the first warms up
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        train(epochs)
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return (taken[2] - taken[1]) / (lengths[1] - lengths[0])


def _published(spec, X, y, epochs, device):
    network = build_network(spec, 1, device=device).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    strategy = training_recipe("dsa").augment
    for epoch in range(epochs + 1):
        order = torch.randperm(len(X), device=device)
        groups = torch.zeros(len(X), dtype=torch.int64)
        drawn = draw_augmentation(strategy, groups, tuple(X.shape[1:]), seed=epoch, stream="published")
        output = network(augment_images(X[order], drawn.to(device)))
        loss = functional.cross_entropy(output, y[order])
        loss.item()
        (output.detach().cpu().numpy().argmax(1) == y[order].cpu().numpy()).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
