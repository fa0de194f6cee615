"""Steps of RFAD on a GPU: ours, and the structure of the published loop, at its CIFAR-10 setting and from one start.

The published structure (github.com/yolky/RFAD, distillation.py; written anew here) makes eight networks one after the
other on the host and moves them over, copies four batches of 1,280 rows from the host, concatenates float32 features,
forms the kernel matrix, and computes an accuracy on the host at every step. The numbers are synthetic, of
CIFAR-10's shape and in ten classes; the time does not depend on their values.
"""

import statistics

import numpy as np
import torch

from kernel_distill._bench.clock import paired
from kernel_distill.solver.conv_networks import conv_features, draw_conv_networks
from kernel_distill.solver.learners.rfad import RFAD, RFADLearner
from kernel_distill.solver.learners.rows import TrainingRows
from kernel_distill.solver.optimizers import AdaBelief
from kernel_distill.solver.source import ArraySource
from kernel_distill.solver.targets import Targets
from kernel_distill.solver.transforms import Standardize

CLASSES, STEPS_A_CALL = (
    10,
    4,
)  # several steps a call: the host runs ahead of the device where nothing makes it wait
RIDGE = 5e-3


def rfad_steps(device, *, quick=False):
    """Seconds of a step of either, and whether they compute the same.

    Returns
    -------
    dict
        "loss_error": relative difference of the losses for the same networks and rows; with more than 1e-3 the
        status is "wrong" and there are no seconds. "losses": means of the last steps of short runs from the same
        start, for each of two seeds.
    """
    shape, per_class, width, networks, batch = (
        ((3, 8, 8), 1, 8, 2, 16) if quick else ((3, 32, 32), 1, 256, 8, 1280)
    )
    rows, start, labels = problem(shape, per_class, 200 if quick else 12_000, device)
    options = dict(width=width, networks=networks, kept_networks=1, batch_size=4 * batch)
    size = dict(shape=shape, points=len(start), width=width, networks=networks, batch=4 * batch)

    def ours(seed=0, **changes):
        return RFADLearner(rows, start, labels, RFAD(**options, **changes), seed=seed)

    error = loss_error(ours(), networks)
    if not error < 1e-3:
        return {"size": size, "status": "wrong", "loss_error": error}
    runs = {
        "ours": Run(ours().advance),
        "ours, grouped": Run(ours(strategy="grouped").advance),
        "ours, float32": Run(ours(real_precision="float32").advance),
        "published": Run(Published(rows, start, labels, width, networks, batch).step),
    }
    for run in runs.values():
        run()
    timings = paired(runs, device, seconds=1.0 if quick else 15.0, most=10)
    steps, last = (2, 1) if quick else (30, 10)
    losses = {"ours": [], "published": []}
    for seed in range(2):
        published = Published(rows, start, labels, width, networks, batch, seed)
        for name, step in {"ours": ours(seed).advance, "published": published.step}.items():
            found = [step(number)["loss"] for number in range(steps)]
            losses[name].append(statistics.fmean(float(loss) for loss in found[-last:]))
    return {
        "size": size,
        "status": "ok",
        "loss_error": error,
        "seconds": {name: timing.median / STEPS_A_CALL for name, timing in timings.items()},
        "times_published": timings["published"].ratio(timings["ours"]),
        "memory": {name: timing.memory for name, timing in timings.items()},
        "losses": losses,
    }


def problem(shape, per_class, n, device):
    """Rows in classes that overlap, points to start from, and their labels."""
    rng = np.random.default_rng(0)
    y = np.arange(n) % CLASSES
    X = rng.normal(size=(n, *shape)).astype(np.float32)
    X += 0.3 * rng.normal(size=(CLASSES, *shape)).astype(np.float32)[y]
    transform = Standardize.fit(lambda: [torch.from_numpy(X)], shape)
    rows = TrainingRows(
        ArraySource(X, y), transform, Targets.from_labels(y, "centred"), seed=0, holdout=0.02, device=device
    )
    index = torch.cat([(rows.classes == c).nonzero()[:per_class, 0] for c in range(CLASSES)])
    return rows, rows.inputs(index).double(), rows.outputs(index)


class Run:
    """A few steps a call, numbered on."""

    def __init__(self, step):
        self._step, self._number = step, 0

    def __call__(self):
        for _ in range(STEPS_A_CALL):
            self._step(self._number)
            self._number += 1


class Published:
    """The published loop's structure, with Platt's cross-entropy."""

    def __init__(self, rows, start, labels, width, networks, batch, seed=0):
        everything = torch.arange(rows.n)
        self._X, self._classes = rows.inputs(everything).cpu(), rows.classes
        self._device, self._labels = rows.device, labels.float()
        self._sizes, self._networks, self._batch = (rows.transform.input_shape[0], width), networks, batch
        d = start[0].numel()
        self._points = start.float().requires_grad_()
        self._matrix = torch.eye(d, device=self._device).requires_grad_()
        self._log_scale = torch.zeros((), dtype=torch.float64, device=self._device).requires_grad_()
        groups = [([self._points], 1e-3), ([self._matrix], 5e-5), ([self._log_scale], 1e-2)]
        self._optimizer = AdaBelief([{"params": params, "lr": lr} for params, lr in groups], eps=1e-16)
        self._random = torch.Generator().manual_seed(seed)

    def step(self, number):
        del number
        self._optimizer.zero_grad()
        models = [self._model() for _ in range(self._networks)]
        X, classes = [], []
        for _ in range(4):
            index = torch.randperm(len(self._X), generator=self._random)[: self._batch]
            X.append(self._X[index].to(self._device))
            classes.append(self._classes[index].to(self._device))
        points = (self._points.flatten(1) @ self._matrix).reshape(self._points.shape)
        classes = torch.cat(classes)
        predicted = published_predictions(models, points, self._labels, X)
        correct = predicted.detach().cpu().numpy().argmax(1) == classes.cpu().numpy()
        loss = torch.nn.functional.cross_entropy(self._log_scale.exp() * predicted, classes)
        loss.backward()
        self._optimizer.step()
        return {"loss": loss.detach().cpu().item(), "accuracy": float(correct.mean())}

    def _model(self):
        channels, width = self._sizes
        layers = []
        for before in (channels, width, width):
            layer = torch.nn.Conv2d(before, width, 3, padding=1)
            torch.nn.init.normal_(layer.weight, 0, (2 / (9 * before)) ** 0.5, generator=self._random)
            torch.nn.init.normal_(layer.bias, 0, 0.1, generator=self._random)
            layers += [layer, torch.nn.ReLU(inplace=True), torch.nn.AvgPool2d(2, 2)]
        return torch.nn.Sequential(*layers, torch.nn.Flatten()).to(self._device)


def published_predictions(models, points, labels, batches):
    """Predictions on batches: features of one network after the other, the kernel matrix formed."""
    F_S = torch.cat([model(points) for model in models], 1)
    F_S = F_S / F_S.shape[1] ** 0.5
    K = 2 * F_S @ F_S.T + 0.01
    K = K + RIDGE * torch.trace(K) / len(K) * torch.eye(len(K), device=K.device)
    with torch.no_grad():
        parts = [torch.cat([model(X) for model in models], 1) / F_S.shape[1] ** 0.5 for X in batches]
        F_T = torch.cat(parts)
    solved = torch.linalg.solve(K.double(), labels.double())
    return (2 * F_T @ F_S.T + 0.01).double() @ solved


def loss_error(learner, networks):
    """Relative difference of our loss and the published formula's, for the networks and rows of step 0."""
    with torch.no_grad():
        loss, _ = learner.loss(0)
        rows, spec = learner.rows, learner.spec
        drawn = draw_conv_networks(
            spec, networks, learner.seed, "rfad.networks.0", device=rows.device, dtype=rows.dtype
        )
        models = [
            lambda X, i=i: conv_features(drawn.select(slice(i, i + 1)), X).flatten(1) for i in range(networks)
        ]
        index = learner.picker.draw(0).index
        points = learner.learned()["x"].to(rows.dtype)
        predicted = published_predictions(models, points, learner.learned()["y"], [rows.inputs(index)])
        wanted = torch.nn.functional.cross_entropy(predicted, rows.outputs(index).argmax(1))
    return abs(float(loss) / float(wanted) - 1)
