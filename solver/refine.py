r"""Points for maps without preimage: the exact full-data loss, at a cost independent of n.

For a set with features Φ_S (m, p), the best labels give the model in row(Φ_S) with the least full-data ridge
loss. With M = G + λI and MW = B, that loss exceeds the full model's by

.. math:: \|W\|_M^2 - \operatorname{tr}\bigl(B^\top \Phi_S^\top (\Phi_S M \Phi_S^\top)^{-1} \Phi_S B\bigr),

in which labels are eliminated and only the points remain. It is evaluated from G and B, over all rows and
without sampling noise, and minimised by L-BFGS-B (SciPy), in the box of the data's values if asked.
"""

import numpy as np
import torch
from torch import Tensor

from ._check import check_count
from .fit import FullModel
from .progress import track


def excess_loss(full: FullModel, F: Tensor) -> Tensor:
    """Relative excess of the full-data ridge loss of the best model in row(F); 0 is exact, differentiable.

    Parameters
    ----------
    full : FullModel
    F : Tensor, shape (m, p), float64

    Returns
    -------
    Tensor, scalar
        ``||W_S - W||_M^2 / ||W||_M^2`` in [0, 1].
    """
    C = F - F.mean(dim=0) if full.intercept else F
    W = full.model.weights
    with torch.no_grad():
        MW = full.data.gram_times(W.T).T + full.ridge * W
        whole = (W * MW).sum()
    MC = _GramTimes.apply(C, full)
    # Points enter by their span only: normalise rows, so that the jitter means the same for all of them.
    norms = C.norm(dim=1, keepdim=True).clamp_min(torch.finfo(C.dtype).tiny)
    C, MC = C / norms, MC / norms
    system = C @ MC.T
    system = (system + system.T) / 2
    jitter = 1e-12 * float(system.detach().diagonal().mean())
    factor = torch.linalg.cholesky(system + jitter * torch.eye(len(C), dtype=C.dtype))
    half = torch.linalg.solve_triangular(factor, C @ MW, upper=False)
    return 1 - half.square().sum() / whole


class _GramTimes(torch.autograd.Function):
    """(G + λ) applied to rows; symmetric, so its own adjoint."""

    @staticmethod
    def forward(ctx, C: Tensor, full: FullModel) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.full = full
        return full.data.gram_times(C) + full.ridge * C

    @staticmethod
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.full.data.gram_times(grad) + ctx.full.ridge * grad, None


def refine_points(
    full: FullModel,
    start: Tensor,
    *,
    steps: int = 200,
    bounds: str = "free",
    progress: bool | None = None,
) -> tuple[Tensor, tuple[str, ...]]:
    """Minimise `excess_loss` over the points.

    Parameters
    ----------
    full : FullModel
    start : Tensor, shape (m, *input_shape)
        Transformed points.
    steps : int, default 200
        Iterations of L-BFGS-B.
    bounds : {"free", "data"}
        "data" keeps raw values in the range of the training data (transforms with one range for every
        value of a channel: those that act on values one by one).
    progress : bool, optional

    Returns
    -------
    Tensor, shape (m, *input_shape), float64
    notes : tuple of str

    Notes
    -----
    Each evaluation costs m p² + m² p multiplications and one forward and backward of the map for m points.
    """
    import scipy.optimize

    check_count(steps, "refine_steps")
    feature_map, transform = full.model.encoder.feature_map, full.model.encoder.transform
    box = None
    if bounds == "data" and not transform.elementwise:
        raise ValueError(
            f"bounds='data' needs a transform that acts on values one by one, {transform.name!r} mixes them: use"
            " bounds='free' or transform='standardize'"
        )
    if bounds == "data":
        edges = [transform.forward(torch.full_like(start[:1], value)) for value in full.data_range]
        low, high = (edge.expand_as(start).reshape(-1).numpy() for edge in edges)
        box = np.minimum(low, high), np.maximum(low, high)
    history: list[float] = []

    def loss_and_gradient(values: np.ndarray) -> tuple[float, np.ndarray]:
        z = torch.from_numpy(values).reshape(start.shape).requires_grad_()
        loss = excess_loss(full, feature_map.features(z))
        (gradient,) = torch.autograd.grad(loss, z)
        history.append(float(loss.detach()))
        return history[-1], gradient.reshape(-1).numpy()

    ticks = track(range(steps), "refining points", steps, show=progress)

    def tick(_: np.ndarray) -> None:
        next(ticks, None)

    initial = start.reshape(-1).double().numpy()
    if box is not None:
        initial = np.clip(initial, *box)
    result = scipy.optimize.minimize(
        loss_and_gradient,
        initial,
        jac=True,
        method="L-BFGS-B",
        bounds=None if box is None else list(zip(*box, strict=True)),
        callback=tick,
        options={"maxiter": steps, "maxfun": 2 * steps, "maxcor": 20, "ftol": 1e-14, "gtol": 1e-12},
    )
    ticks.close()  # pyright: ignore[reportAttributeAccessIssue]
    note = (
        f"excess loss {history[0]:.4g} at the start, {float(result.fun):.4g} after {result.nit} steps of L-BFGS"
        + ("" if result.nit < steps else " (stopped at the limit of steps)")
    )
    return torch.from_numpy(np.asarray(result.x)).reshape(start.shape), (note,)
