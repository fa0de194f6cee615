"""Steps of DM on a GPU: ours, and the structure of the published loop, at its CIFAR-10 setting and from one start.

The published structure (github.com/VICO-UoE/DatasetCondensation, main_DM.py; written anew here) makes a network on the
host and moves it over; then takes one class after the other: a permutation of the list of its rows on the host, 256 of
them augmented and embedded, the points augmented and embedded; and reads the loss on the host at every step. Rows lie
on the device in float32. Augmentation is ours in both, which is kinder to the published loop than its own. The numbers
are synthetic, of CIFAR-10's shape and in ten classes; the time does not depend on their values.
"""

import numpy as np
import torch

from kernel_distill._bench.clock import paired
from kernel_distill.kernels.augmentation import augment_images, draw_augmentation
from kernel_distill.solver.learners.dm import DM, DMLearner
from kernel_distill.solver.learners.rows import TrainingRows
from kernel_distill.solver.networks import Network, build_network
from kernel_distill.solver.source import ArraySource
from kernel_distill.solver.targets import Targets
from kernel_distill.solver.transforms import Standardize

CLASSES = 10
STEPS_A_CALL = 4  # the host runs ahead of the device where nothing makes it wait
STRATEGY = DM().augment


def dm_steps(device, *, quick=False):
    """Seconds of a step of either for 1 and 10 points a class, and whether they compute the same.

    Returns
    -------
    dict
        For each number of points a class, "loss_error": relative difference of our loss from one of class after class
        for the same network, rows and augmentation; with more than 1e-3 the status is "wrong" and there are no
        seconds. "repeatable": whether two runs end in the same bits.
    """
    shape, width, batch, n = ((3, 8, 8), 8, 8, 400) if quick else ((3, 32, 32), 128, 256, 20_000)
    rows = problem(shape, n, device)
    found = {"size": dict(shape=shape, width=width, batch=batch, rows=n), "kept_as": str(rows._cache.dtype)}
    for per_class in (1, 2) if quick else (1, 10):
        found[f"ipc_{per_class}"] = _of_points(rows, per_class, width, batch, device, quick)
    right = all(value["status"] == "ok" for name, value in found.items() if name.startswith("ipc"))
    return {**found, "status": "ok" if right else "wrong"}


def _of_points(rows, per_class, width, batch, device, quick):
    index = torch.cat([(rows.classes == c).nonzero()[:per_class, 0] for c in range(CLASSES)])
    options = DM(network_params={"width": width}, batch_real=batch)

    def ours():
        return DMLearner(
            rows,
            rows.inputs(index).double(),
            rows.outputs(index),
            rows.classes[index],
            options,
            seed=0,
            judge=lambda x, y: {"loss": 0.0, "score": 0.0},
        )

    error = loss_error(ours())
    if not error < 1e-3:
        return {"status": "wrong", "loss_error": error}
    first, second = ours(), ours()
    for step in range(3):
        first.advance(step)
        second.advance(step)
    same = torch.equal(first.learned()["x"], second.learned()["x"])
    runs = {
        "ours": Run(first.advance),
        "published": Run(Published(rows, index, first._spec, batch).step),
    }
    for run in runs.values():
        run()
    timings = paired(runs, device, seconds=1.0 if quick else 10.0, most=10)
    return {
        "status": "ok",
        "loss_error": error,
        "repeatable": same,
        "seconds": {name: timing.median / STEPS_A_CALL for name, timing in timings.items()},
        "times_published": timings["published"].ratio(timings["ours"]),
        "memory": {name: timing.memory for name, timing in timings.items()},
    }


def problem(shape, n, device):
    """Images of bytes in classes that differ in brightness."""
    rng = np.random.default_rng(0)
    y = np.arange(n) % CLASSES
    X = np.clip(rng.normal(128, 40, (n, *shape)) + 5 * y[:, None, None, None], 0, 255).astype(np.uint8)
    transform = Standardize.fit(lambda: [torch.from_numpy(X)], shape)
    source, targets = ArraySource(X, y), Targets.from_labels(y, "centred")
    return TrainingRows(source, transform, targets, seed=0, holdout=0.02, device=device)


class Run:
    """A few steps a call, numbered on."""

    def __init__(self, step):
        self._step, self._number = step, 100

    def __call__(self):
        for _ in range(STEPS_A_CALL):
            self._step(self._number)
            self._number += 1


class Published:
    """The published loop's structure."""

    def __init__(self, rows, index, spec, batch):
        self._X, self._spec, self._batch, self._device = (
            rows.inputs(torch.arange(rows.n)),
            spec,
            batch,
            rows.device,
        )
        self._members = [(rows.classes == c).nonzero()[:, 0].tolist() for c in range(CLASSES)]
        self._points = rows.inputs(index).clone().requires_grad_()
        self._optimizer = torch.optim.SGD([self._points], lr=1.0, momentum=0.5)
        self._random = np.random.default_rng(0)

    def step(self, number):
        network = Network(self._spec)  # torch's own draws, as there
        network = network.to(self._device).train().requires_grad_(False)
        loss = torch.zeros((), device=self._device)
        for c, points in enumerate(self._points.chunk(CLASSES)):
            X = self._X[self._random.permutation(self._members[c])[: self._batch]]
            real = network.embed(augmented(X, c, f"dm.augment.{number}")).detach()
            made = network.embed(augmented(points, c, f"dm.augment.{number}"))
            loss = loss + ((real.mean(0) - made.mean(0)) ** 2).sum()
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return loss.item()


def augmented(X, c, stream):
    """Images of a class, all augmented alike."""
    groups = [c] * len(X)
    changes = draw_augmentation(STRATEGY, groups, tuple(X.shape[1:]), seed=0, stream=stream, siamese=True)
    return augment_images(X, changes.to(X.device))


def loss_error(learner):
    """Relative difference of our loss, with points moved off their rows, and one of class after class in float64."""
    x, rows = learner.parameters["x"], learner._seen
    with torch.no_grad():
        x += 0.5 * x.roll(1, 0)
    with torch.backends.cudnn.flags(allow_tf32=False):  # what is checked is the formula
        loss = float(learner.loss(0)[0].detach())
    index = learner._picker.draw(0).index
    network = build_network(learner._spec, 0, "dm.network.0", device=rows.device, dtype=torch.float64)
    total = 0.0
    with torch.no_grad():
        for c in range(CLASSES):
            X = rows.inputs(index[rows.classes[index] == c]).double()
            points = x[learner.classes == c].double()
            means = [network.embed(augmented(part, c, "dm.augment.0")).mean(0) for part in (X, points)]
            total += float(((means[0] - means[1]) ** 2).sum())
    return abs(loss / total - 1)
