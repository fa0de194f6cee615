r"""ZCA whitening, in the three definitions that published distilled sets use.

All three are :math:`z = \nu\bigl((x - a) / s\bigr)\, W` with :math:`W = (C + \rho I)^{-1/2}` symmetric; they
differ in the shift *a*, the scale *s*, the per-sample map :math:`\nu`, the second moment *C* and the
regulariser :math:`\rho`, and they are different matrices: a set made under one and tested under another
loses tens of points of accuracy.

==========  ====================  =====================  =====================  =============
name        a, s                  :math:`\nu`            C                      :math:`\rho`
==========  ====================  =====================  =====================  =============
zca-kip     channel mean, std     centre, unit norm      :math:`X^\top X / n`   0.1 tr(C) / d
zca-rfad    channel mean, std     none (SVHN: as kip)    :math:`X^\top X / n`   0.1 tr(C) / d
zca-kornia  column mean, 255      none                   unbiased covariance    0.1
==========  ====================  =====================  =====================  =============
"""

import math
from typing import Any, Self

import torch
from torch import Tensor

from ...kernels import gram_add_, mirror_upper_
from .._check import check_non_negative
from .base import Chunks, Transform
from .moments import blocks, moments


class ZCA(Transform):
    """What the three kinds share; use `ZCAKip`, `ZCARfad` or `ZCAKornia` to fit one.

    Parameters
    ----------
    input_shape : tuple of int
        Shape of one raw input, d values.
    shift, scale : Tensor, shape (d,), float64
        Subtracted from the flattened raw values, then divided by.
    matrix : Tensor, shape (d, d), float64
        Symmetric positive definite whitening matrix. It alone is stored (8 d² bytes: 75 MB for 32x32
        colour images); its inverse is computed when first needed.
    settings : dict
        Plain JSON values: ``per_sample`` (bool), ``typical_norm`` (the root mean square of the norms that
        per-sample normalisation removed; 1 without it), and how the matrix was made.

    Notes
    -----
    Fitting: two passes, n d² multiplications, one O(d³) eigendecomposition, O(d²) memory.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        shift: Tensor,
        scale: Tensor,
        matrix: Tensor,
        settings: dict[str, Any],
    ) -> None:
        super().__init__(input_shape)
        self.shift, self.scale, self.matrix = shift.cpu(), scale.cpu(), matrix.cpu()
        self.settings = settings
        self._gain = 1.0 / self.scale
        self._inverse_matrix: Tensor | None = None

    @property
    def bijective(self) -> bool:
        """False with per-sample normalisation, which forgets the mean and the norm of each row.

        Then `inverse` returns the row of mean zero (in standardised units) and of typical norm.
        """
        return not self.settings["per_sample"]

    def parameters(self) -> dict[str, Any]:
        """Shape and settings."""
        return {**super().parameters(), "settings": dict(self.settings)}

    def tensors(self) -> dict[str, Tensor]:
        """``shift``, ``scale`` and ``matrix``, float64."""
        return {"shift": self.shift, "scale": self.scale, "matrix": self.matrix}

    @classmethod
    def restore(cls, parameters: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """Make the transform that `parameters` and `tensors` describe."""
        shape = tuple(parameters["input_shape"])
        d = math.prod(shape)
        stored = [
            cls._stored(tensors, name, size)
            for name, size in (("shift", (d,)), ("scale", (d,)), ("matrix", (d, d)))
        ]
        return cls(shape, *stored, settings=dict(parameters["settings"]))

    def _forward(self, X: Tensor) -> Tensor:
        flat = (X.flatten(1) - self._as("shift", X)).mul_(self._as("_gain", X))
        if self.settings["per_sample"]:
            flat, _ = _unit_rows(flat)
        return (flat @ self._as("matrix", X)).reshape(X.shape)

    def _inverse(self, Z: Tensor) -> Tensor:
        if self._inverse_matrix is None:
            self._inverse_matrix = torch.linalg.inv(self.matrix)
        flat = Z.flatten(1) @ self._as("_inverse_matrix", Z) * self.settings["typical_norm"]
        return (flat * self._as("scale", Z) + self._as("shift", Z)).reshape(Z.shape)

    @classmethod
    def _fit_relative(
        cls,
        chunks: Chunks,
        input_shape: tuple[int, ...],
        reg: float,
        *,
        per_sample: bool,
        ddof: int,
        rank_control: bool,
    ) -> Self:
        """Fit a kind that standardises channels and whose regulariser is relative to the trace."""
        reg = check_non_negative(reg, "reg")
        found = moments(chunks, input_shape)
        pixels = math.prod(input_shape[1:])
        shift = found.mean.repeat_interleave(pixels)
        scale = found.std(ddof).repeat_interleave(pixels)
        second, norms = _second_moment(chunks, input_shape, shift, scale, per_sample)
        second /= found.rows
        kept = found.rows if rank_control else len(second)
        matrix = _inverse_root(second, reg * float(second.trace()) / len(second), kept)
        typical_norm = (norms / found.rows) ** 0.5 if per_sample else 1.0
        settings = {"per_sample": bool(per_sample), "typical_norm": typical_norm, "reg": reg}
        return cls(input_shape, shift, scale, matrix, settings)


class ZCAKip(ZCA):
    """Whitening of the published KIP sets; registered as ``"zca-kip"``.

    Channel-standardised values (population deviation), each row centred and divided by its norm, then
    ``(X'X / n + reg tr/d I)^(-1/2)`` without removing column means. With fewer rows than values, all but the
    n leading directions are left unscaled, as published. A row that is constant becomes zero.

    Not bijective. The published code takes channel statistics from all training rows and the matrix from all
    but the last 5000; here both come from the rows that are given, a small difference in the matrix.

    Source: ``_get_whitening_transform`` and ``_get_preprocess_op`` in ``kip/nn_training.ipynb`` of
    google-research/google-research (zca_reg 0.1).
    """

    name = "zca-kip"

    @classmethod
    def fit(cls, chunks: Chunks, input_shape: tuple[int, ...], *, reg: float = 0.1) -> Self:
        """Fit on a stream of raw rows; `reg` multiplies the mean eigenvalue."""
        return cls._fit_relative(chunks, input_shape, reg, per_sample=True, ddof=0, rank_control=True)


class ZCARfad(ZCA):
    """Whitening of the published RFAD sets; registered as ``"zca-rfad"``.

    Channel-standardised values (unbiased deviation: it is torch's default there), then
    ``(X'X / n + reg tr/d I)^(-1/2)`` without removing column means. The published code normalises rows
    as in `ZCAKip` for SVHN only: pass ``per_sample=True`` there.

    Source: ``get_zca_matrix``, ``layernorm_data`` and ``transform_data`` in ``data.py`` of yolky/RFAD at
    c9ef03e, called by ``run_distillation.py``.
    """

    name = "zca-rfad"

    @classmethod
    def fit(
        cls, chunks: Chunks, input_shape: tuple[int, ...], *, reg: float = 0.1, per_sample: bool = False
    ) -> Self:
        """Fit on a stream of raw rows; `reg` multiplies the mean eigenvalue."""
        return cls._fit_relative(chunks, input_shape, reg, per_sample=per_sample, ddof=1, rank_control=False)


class ZCAKornia(ZCA):
    """Whitening of the MTT, TESLA and DATM sets; registered as ``"zca-kornia"``.

    Pixels in [0, 1], column means removed, ``(unbiased covariance + eps I)^(-1/2)`` with an *absolute* eps.

    Source: ``zca_mean`` in ``kornia/enhance/zca.py`` of kornia/kornia, which those codes call as
    ``ZCAWhitening(eps=0.1, compute_inv=True)`` on the output of torchvision's ``ToTensor``.
    """

    name = "zca-kornia"

    @classmethod
    def fit(
        cls, chunks: Chunks, input_shape: tuple[int, ...], *, eps: float = 0.1, scale: float | None = None
    ) -> Self:
        """Fit on a stream of raw rows.

        Parameters
        ----------
        chunks, input_shape
            As in `Transform.fit`.
        eps : float, default 0.1
            Added to every eigenvalue.
        scale : float, optional
            Raw value that becomes 1; by default 255 for uint8 rows and 1 for others.
        """
        eps = check_non_negative(eps, "eps")
        if scale is None:
            first = next(iter(chunks()), None)
            scale = 255.0 if first is not None and first.dtype == torch.uint8 else 1.0
        scale = check_non_negative(scale, "scale")
        if scale == 0:
            raise ValueError("`scale` must be positive")
        d = math.prod(input_shape)
        found = moments(_flat(chunks, input_shape), (d,))
        if found.rows < 2:
            raise ValueError("the unbiased covariance of 'zca-kornia' needs at least 2 rows, got 1")
        shift, unit = found.mean, torch.full_like(found.mean, scale)
        covariance, _ = _second_moment(chunks, input_shape, shift, unit, per_sample=False)
        matrix = _inverse_root(covariance / (found.rows - 1), eps, d)
        settings = {"per_sample": False, "typical_norm": 1.0, "eps": eps}
        return cls(input_shape, shift, unit, matrix, settings)


def _second_moment(
    chunks: Chunks, input_shape: tuple[int, ...], shift: Tensor, scale: Tensor, per_sample: bool
) -> tuple[Tensor, float]:
    """Sum of x'x over the shifted and scaled rows (d, d), and of the squared norms removed from them."""
    total = shift.new_zeros(len(shift), len(shift))
    norms = 0.0
    for X in blocks(chunks, input_shape):
        flat = (X.flatten(1) - shift).div_(scale)
        if per_sample:
            flat, norm = _unit_rows(flat)
            norms += float(norm.square().sum())
        gram_add_(total, flat)
    return mirror_upper_(total), norms


def _unit_rows(X: Tensor) -> tuple[Tensor, Tensor]:
    """Rows centred and divided by their norm, and the norms; a row that is constant to rounding becomes 0."""
    floor = 8 * torch.finfo(X.dtype).eps * torch.linalg.vector_norm(X, dim=1, keepdim=True)
    X = X - X.mean(dim=1, keepdim=True)
    norm = torch.linalg.vector_norm(X, dim=1, keepdim=True)
    return X / torch.where(norm <= floor, torch.inf, norm), norm


def _inverse_root(second: Tensor, ridge: float, kept: int) -> Tensor:
    """``(second + ridge I)^(-1/2)``, exactly symmetric; all but the `kept` leading directions unscaled."""
    values, vectors = torch.linalg.eigh(second)
    values = values + ridge
    d = len(values)
    floor = d * torch.finfo(values.dtype).eps * float(values[-1])
    if not float(values[0]) > floor:
        raise ValueError(
            f"the inputs span fewer than {d} directions and the regulariser adds {ridge:.3g}: a singular"
            " matrix has no inverse root. Use the default regulariser, or data that are not constant"
        )
    roots = values.rsqrt()
    roots[: max(0, d - kept)] = 1.0
    return mirror_upper_((vectors * roots) @ vectors.T)


def _flat(chunks: Chunks, input_shape: tuple[int, ...]) -> Chunks:
    """Flatten rows, so that statistics are per column; rows of another shape go on, to be refused."""
    return lambda: (
        chunk.flatten(1) if tuple(chunk.shape[1:]) == tuple(input_shape) else chunk for chunk in chunks()
    )
