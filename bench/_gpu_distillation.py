"""Closed-form distillation of data that lie on a GPU: the arithmetic of `kernel_distill.distill`, put together by hand.

`distill` itself runs on a CPU. This measures what its parts cost on a device, at the size of CIFAR-10 with a fully
connected map of p = d = 3072: features, statistics, 24 ridges, ten points, and their way back to the input space. The
numbers are synthetic, of CIFAR-10's shape; the time does not depend on their values.
"""

import torch

from kernel_distill._bench.clock import paired
from kernel_distill.kernels._precision import inner_products
from kernel_distill.kernels.statistics import mirror_upper_, statistics_add_
from kernel_distill.solver.closed_form import theorem_features
from kernel_distill.solver.feature_maps.linear_system import LinearSystem

SLOPE = 0.1
HELD_OUT = 0.05


def distillation(device, *, quick=False):
    """Seconds of the whole with either way through the ridges, and how exact the set is.

    Returns
    -------
    dict
        Of either way: the error of the model trained on the set against the full one, relative, and seconds. No
        seconds if a set is wrong.
    """
    n, d, k = (500, 48, 10) if quick else (50_000, 3072, 10)
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, device=device, generator=generator)

    layer = normal(d, d).double() / d**0.5
    X = normal(n, d) @ (torch.arange(1, d + 1, device=device).rsqrt()[:, None] * normal(d, d) / d**0.5)
    classes = (X @ normal(d, k)).argmax(1)
    Y = torch.nn.functional.one_hot(classes, k).float()
    ways = {"cholesky": cholesky_path, "eigh": eigen_path}
    found = {}
    for way, path in ways.items():
        x, labels, W = distil(X, Y, layer, path)
        F = torch.nn.functional.leaky_relu(x @ layer.T, SLOPE)
        trained = torch.linalg.pinv(F, rtol=1e-9) @ labels
        found[f"stored_error_{way}"] = float((trained - W).norm() / W.norm())
    wrong = [name for name, error in found.items() if not error < 1e-6]
    if wrong:
        return {"size": [n, d, k], "status": "wrong", **found}
    calls = {way: lambda path=path: distil(X, Y, layer, path) for way, path in ways.items()}
    timings = paired(calls, device, seconds=1.0 if quick else 5.0)
    return {
        "size": [n, d, k],
        "status": "ok",
        **found,
        "seconds": {way: timing.median for way, timing in timings.items()},
        "memory": {way: timing.memory for way, timing in timings.items()},
    }


def distil(X, Y, layer, path):
    """Ten points in the input space, their labels, and the full model that they carry."""
    p, k = len(layer), Y.shape[1]
    held = int(HELD_OUT * len(X))
    F = torch.nn.functional.leaky_relu(inner_products(X, layer.float(), "high"), SLOPE)
    totals = torch.zeros(p, p, dtype=torch.float64, device=X.device), X.new_zeros(p, k, dtype=torch.float64)
    gram, cross = statistics_add_(*totals, F[held:], Y[held:])
    mirror_upper_(gram)
    ridges = [float(gram.diagonal().mean()) * 10 ** (-11 + step / 2) for step in range(24)]
    models = path(gram, cross, ridges)
    predicted = (F[:held].double() @ torch.cat(models, dim=1)).reshape(held, len(ridges), k)
    right = (predicted.argmax(2) == Y[:held].argmax(1, keepdim=True)).double().mean(0)
    right = torch.where(predicted.isfinite().all(2).all(0), right, -1.0)
    chosen = int(right.argmax())
    statistics_add_(gram, cross, F[:held], Y[:held])
    mirror_upper_(gram)
    W = cholesky_path(gram, cross, ridges[chosen : chosen + 1])[0]
    made = theorem_features(W, torch.eye(k, dtype=torch.float64, device=X.device))
    z = torch.where(made.features < 0, made.features / SLOPE, made.features)
    return LinearSystem(layer).solve(z, torch.zeros_like(z)), made.labels, W


def cholesky_path(gram, cross, ridges):
    """A factorisation for each ridge; NaN where there is none."""
    models = []
    for ridge in ridges:
        system = gram.clone()
        system.diagonal().add_(ridge)
        factor, info = torch.linalg.cholesky_ex(system)
        model = torch.cholesky_solve(cross, factor)
        models.append(torch.where(info == 0, model, torch.nan))
    return models


def eigen_path(gram, cross, ridges):
    """One eigen-decomposition for all ridges."""
    values, vectors = torch.linalg.eigh(gram)
    coefficients = vectors.T @ cross
    return [vectors @ (coefficients / (values.clamp(min=0) + ridge)[:, None]) for ridge in ridges]
