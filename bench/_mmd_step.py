"""The MMD step of D3: ours, and the structure of the published loop, from one start, at the size it was published with.

The published structure (github.com/sunnytqin/D3, distill_distribution.py; written anew here) decodes all draws with a
graph, then takes one class after the other: a permutation of the list of its rows on the host, embedded; its images,
embedded; a kernel matrix of both for each of five bandwidths. The graph of all classes is kept until one backward pass.
Ours are two forward passes of the decoder and one of the network, and a backward pass of both, class by class and draw
by draw. Rows are synthetic and the network random: neither time nor memory depends on their values.
"""

import numpy as np
import torch

from kernel_distill._bench.clock import paired
from kernel_distill.nn_baselines.d3 import D3Learner
from kernel_distill.nn_baselines.d3_options import D3
from kernel_distill.solver.learners.rows import TrainingRows
from kernel_distill.solver.source import ArraySource
from kernel_distill.solver.targets import Targets
from kernel_distill.solver.transforms import make_transform

BANDWIDTHS = (1.0, 2.0, 4.0, 8.0, 16.0)
# float64, where rounding does not flip the sign of an activation: in float32 an error of 1e-6 in an image moves the
# exact gradient by 1e-4.
TOLERANCE = 1e-9
PUBLISHED = {"classes": 200, "draws": 30, "side": 64, "width": 128, "kernels": 256}
SMALL = {"classes": 3, "draws": 4, "side": 16, "width": 8, "kernels": 16}


def mmd_step(device, *, seconds=20.0, **size):
    """Seconds and peak memory of a step of either, and whether both have the same gradient.

    Parameters
    ----------
    device : torch.device
    seconds : float
        About how long to repeat.
    **size
        In place of `PUBLISHED`: classes, draws (of each), side (pixels), width (of the ConvNet), kernels (of the
        decoder).

    Returns
    -------
    dict
        "gradient_error": relative difference at the size `SMALL`, in float64; above `TOLERANCE` the status is "wrong"
        and nothing is timed.
    """
    size = {**PUBLISHED, **size}
    error = gradient_error(device)
    if not error < TOLERANCE:
        return {"status": "wrong", "gradient_error": error}
    learner = make_learner(device, size, torch.float32)
    calls = {"ours": lambda: gradient(learner, ours), "published": lambda: gradient(learner, published)}
    for call in calls.values():
        call()
    timings = paired(calls, device, seconds=seconds, most=10)
    return {
        "status": "ok",
        "size": size,
        "gradient_error": error,
        "seconds": {name: timing.median for name, timing in timings.items()},
        "speed": timings["published"].ratio(timings["ours"]),
        "peak_bytes": {name: timing.memory for name, timing in timings.items()},
    }


def make_learner(device, size, dtype):
    """A learner of the MMD part alone, of random networks."""
    side, classes, draws = size["side"], size["classes"], size["draws"]
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(classes), draws)
    X = rng.normal(size=(len(y), 3, side, side)).astype(np.float32)
    transform = make_transform("none", lambda: [], X.shape[1:])
    targets = Targets.from_labels(y, "centred")
    rows = TrainingRows(
        ArraySource(X, y), transform, targets, seed=0, holdout=0.0, dtype=dtype, device=device
    )
    options = D3(
        network_params={"width": size["width"]},
        decoder_params={"width": size["kernels"]},
        trajectory_weight=0.0,
        mmd_network="random",
        labels="hard",
        mmd_samples=draws,
    )
    return D3Learner(
        rows, torch.arange(classes), options, trajectories=None, seed=1, judge=lambda x, y: {"loss": 0.0}
    )


def gradient(learner, loss):
    """The gradient of a loss in latents and decoder."""
    leaves = [value for name, value in learner.parameters.items() if name != "rate"]
    return torch.autograd.grad(loss(learner), leaves)


def ours(learner):
    return learner._mmd_loss(0)[0]


def published(learner):
    matching, rows, m = learner._matching, learner._rows, len(learner.classes)
    embed = matching._features(0)
    mean, deviation = learner.parameters["mean"], (learner.parameters["log_variance"] / 2).exp()
    noise = learner._noise("draws.0", matching.draws * m).split(m)
    samples = torch.stack([learner._decoder(mean + eps * deviation) for eps in noise], dim=1)
    loss, rng = 0.0, np.random.default_rng(0)
    for c in range(m):
        members = (rows.classes == c).nonzero()[:, 0].numpy()
        real = rows.inputs(torch.from_numpy(rng.permutation(members)[: matching.draws]))
        loss = loss + _unbiased(embed(samples[c]), embed(real).detach())
    return loss


def _unbiased(X, Y):
    """The sum of five Gaussian kernels in the unbiased estimate, by one matrix of squared distances."""
    m, n = len(X), len(Y)
    Z = torch.cat([X, Y])
    product = Z @ Z.T
    norms = product.diagonal()[:, None]
    squared = norms - 2 * product + norms.T
    K = sum(torch.exp(-squared / (2 * width**2)) for width in BANDWIDTHS)
    inner, outer, cross = K[:m, :m], K[m:, m:], K[:m, m:]
    of_x = (inner.sum() - inner.diagonal().sum()) / (m * (m - 1))
    of_y = (outer.sum() - outer.diagonal().sum()) / (n * (n - 1))
    return of_x + of_y - 2 * cross.mean()


def gradient_error(device):
    """Relative difference of the two gradients, all of a class's rows being used, in float64."""
    learner = make_learner(device, SMALL, torch.float64)
    flat = [torch.cat([g.flatten() for g in gradient(learner, loss)]) for loss in (ours, published)]
    return float((flat[0] - flat[1]).norm() / flat[1].norm())
