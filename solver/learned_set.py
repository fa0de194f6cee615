r"""From learned points and labels to a stored, certified set.

Points are learned after the transform, in float64. They are stored in raw units where the transform can be undone,
and cast; kernel, ridge and certificate are those of the points *as stored*. The ridge is relative to the trace while
learning, :math:`\lambda_S = r\,\mathrm{tr}(K_{SS})/m` (KIP, RFAD, FRePo), and absolute in the file. A finite feature
map means the same with :math:`K_{SS} = \Phi_S \Phi_S^\top`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ._check import check_count, check_finite, check_name
from .certificate import Certificate, Status
from .certify import kernel_rank, share_outside
from .distilled_set import DistilledSet, Space
from .encoder import Encoder
from .kernel_encoder import KernelEncoder
from .kernel_model import solve_kernel
from .points import STORAGE, cast_points
from .ridge import Ridge
from .set_factor import SetFactor, storage_tolerance
from .targets import Targets
from .transforms import Transform


def learned_set(
    encoder: Encoder | KernelEncoder,
    targets: Targets,
    x: Tensor,
    y: Tensor,
    *,
    relative_ridge: float,
    labels: Tensor | None,
    n_rows: int,
    storage: str = "float64",
    data_range: tuple[float, float] = (-math.inf, math.inf),
    heldout_score: float | None = None,
    heldout_loss: float | None = None,
    heldout_rows: int | None = None,
    selected_step: int | None = None,
    steps: int | None = None,
    class_names: tuple[str, ...] | None = None,
    provenance: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> DistilledSet:
    """Make a distilled set of what a learner has learned.

    Parameters
    ----------
    encoder : Encoder or KernelEncoder
        What the points were learned with; the kernel of a feature map is stored as an ordinary encoder.
    targets : Targets
    x : Tensor, shape (m, *input_shape)
        Learned points, after the transform.
    y : Tensor, shape (m, k)
        Learned or fixed labels.
    relative_ridge : float
        r above, not negative.
    labels : Tensor, shape (m,), int64, or None
        Nominal class of each point; None for regression, or where points have none.
    n_rows : int
        Rows of training data that were learned from.
    storage : {"float64", "float32", "float16", "uint8"}, default "float64"
        Of the points; labels are float32 for all but "float64". uint8 needs a transform that can be undone.
    data_range : tuple of float, optional
        Smallest and largest raw value of the training data, for the certificate.
    heldout_score, heldout_loss, heldout_rows, selected_step, steps
        Of the run, for the certificate; see `Certificate`.
    class_names, provenance
        As in `DistilledSet`.
    notes : sequence of str
        For the certificate.

    Returns
    -------
    DistilledSet
        In `space` "input" where the transform is bijective, else "transformed".

    Raises
    ------
    ValueError
        If shapes do not fit, values are not finite, the storage cannot hold the points, or their kernel matrix is
        singular with this ridge.

    Notes
    -----
    One kernel matrix of the points, its eigenvalues and its Cholesky factor (a thin SVD for a feature map).
    """
    encoder = encoder.storable() if isinstance(encoder, KernelEncoder) else encoder
    x, y = _points(x, encoder), y.detach().cpu().double()
    m = len(x)
    if y.shape != (m, targets.n_outputs):
        raise ValueError(f"`y` must have shape {(m, targets.n_outputs)}, got {tuple(y.shape)}")
    check_finite(y, "y")
    labels = _labels(labels, m, targets)
    said = list(notes)
    stored, z = as_stored(x, encoder.transform, storage, said)
    bijective = encoder.transform.bijective
    space: Space = "input" if bijective else "transformed"
    ridge, rank, condition = _measure(
        encoder, z, Ridge(relative_ridge, "trace"), storage_tolerance(stored.dtype)
    )
    certificate = Certificate(
        status=Status.LEARNED,
        distilled_ridge=ridge,
        rank=rank,
        condition=condition,
        max_abs_x=float(stored.double().abs().max()),
        out_of_range=share_outside(stored.double(), data_range) if bijective else None,
        n_rows=check_count(n_rows, "n_rows"),
        notes=tuple(said),
        heldout_score=heldout_score,
        heldout_loss=heldout_loss,
        heldout_rows=heldout_rows,
        selected_step=selected_step,
        steps=steps,
    )
    return DistilledSet(
        x=stored,
        y=y if storage == "float64" else y.float(),
        encoder=encoder,
        targets=targets,
        space=space,
        distilled_ridge=ridge,
        intercept=False,
        certificate=certificate,
        labels=labels,
        class_names=class_names,
        provenance=dict(provenance or {}),
    )


def as_stored(
    x: Tensor, transform: Transform, storage: str, notes: list[str] | None = None
) -> tuple[Tensor, Tensor]:
    """Transformed points as they are stored, and as a kernel sees them then, float64; clipping is noted."""
    check_storage(storage, transform)
    if not transform.bijective:
        stored = cast_points(x, storage, notes)
        return stored, stored.double()
    stored = cast_points(transform.inverse(x), storage, notes)
    return stored, transform.forward(stored)


def check_storage(storage: str, transform: Transform) -> None:
    """Raise ValueError if points after this transform cannot be stored so; known before anything is learned."""
    check_name(storage, STORAGE, "storage type")
    if storage == "uint8" and not transform.bijective:
        raise ValueError(
            f"the transform {transform.name!r} cannot be undone for every point, so points are kept after it"
            " and uint8 does not fit them: use float64, float32 or float16"
        )


def _points(x: Tensor, encoder: Encoder | KernelEncoder) -> Tensor:
    shape = encoder.transform.input_shape
    if x.ndim == 0 or len(x) == 0 or tuple(x.shape[1:]) != shape:
        raise ValueError(f"`x` must hold at least one point of shape {shape}, got {tuple(x.shape)}")
    x = x.detach().cpu().double()
    check_finite(x, "x")
    return x


def _labels(labels: Tensor | None, m: int, targets: Targets) -> Tensor | None:
    if labels is None:
        return None
    labels = labels.detach().cpu()
    if labels.dtype != torch.int64 or labels.shape != (m,):
        raise ValueError(
            f"`labels` must be int64 of shape ({m},), got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    known = targets.n_outputs if targets.is_classes else 0
    low, high = (int(end) for end in labels.aminmax())
    if low < 0 or high >= known:
        raise ValueError(
            f"`labels` are {low} to {high}, but the targets have {known} classes: give indices of classes, or None"
            " for regression"
        )
    return labels


def _measure(
    encoder: Encoder | KernelEncoder, z: Tensor, ridge: Ridge, tolerance: float
) -> tuple[float, int, float]:
    """Absolute ridge, rank and condition number of the points as stored."""
    m = len(z)
    if isinstance(encoder, KernelEncoder):
        K = encoder.kernel.matrix(z)
        absolute = ridge.absolute(float(K.trace()), m)
        solve_kernel(K, torch.empty(m, 0), absolute)  # a singular one is refused here, not by the first user
        return absolute, *kernel_rank(K, tolerance)
    F = encoder.feature_map.features(z)
    factor = SetFactor(F, tolerance=tolerance)
    return ridge.absolute(float(F.square().sum()), m), factor.rank, factor.condition
