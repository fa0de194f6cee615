r"""Arc-cosine kernels: the limits of wide fully connected ReLU networks.

A network with L hidden layers of infinite width, in the parametrisation of the NTK paper (weights are standard
normal and scaled by :math:`\sigma_w/\sqrt{\text{fan-in}}`, biases by :math:`\sigma_b`), is a Gaussian process at
initialisation, whose covariance is the NNGP kernel :math:`\Sigma^{L}`; gradient descent trains it as kernel regression
with the NTK :math:`\Theta^{L}` (Lee et al. 2018; Jacot et al. 2018). With the duals :math:`\kappa_1, \kappa_0` of the
activation (`_dual_activation`):

.. math::
    \Sigma^0 = \sigma_w^2\,\frac{x\cdot y}{d} + \sigma_b^2,\qquad & \Theta^0 = \Sigma^0,\\
    \Sigma^{l+1} = \sigma_w^2\,\kappa_1(\Sigma^l) + \sigma_b^2,\qquad &
    \Theta^{l+1} = \Sigma^{l+1} + \sigma_w^2\,\kappa_0(\Sigma^l)\,\Theta^l .

These are ``stax.serial(Dense, Relu, ..., Dense)`` of neural-tangents, the last dense layer included: ``depth``
counts the activations. The defaults are the fully connected kernel of KIP (Nguyen et al. 2021).
"""

import functools
from typing import Any

import torch
from torch import Tensor

from ._block_matrix import block_matrix, by_rows
from ._check import as_rows, check_columns, check_together
from ._dual_activation import relu_duals, safe_sqrt
from ._precision import working_dtype
from ._wide_network import as_std, check_network, computing_dtype

# Numbers alive at once for an entry of a block (in derivatives: for each layer more) and for an element of its rows.
_ENTRY, _ROW = 15, 2
_ENTRY_OF_DERIVATIVE, _ENTRY_OF_LAYER, _ROW_OF_DERIVATIVE = 10, 16, 6


def arc_cosine_kernel(
    X: Any,
    Y: Any = None,
    *,
    depth: int = 1,
    kind: str = "ntk",
    weight_std: float | Tensor = 2**0.5,
    bias_std: float | Tensor = 0.1,
    leak: float = 0.0,
    precision: str = "high",
    memory_budget: int | None = None,
) -> Tensor:
    r"""NNGP or NTK of a fully connected ReLU network of infinite width.

    Parameters
    ----------
    X : array, shape (n, d)
    Y : array, shape (m, d), optional
        Default X, which gives an exactly symmetric matrix with an exact diagonal for half the work.
    depth : int, default 1
        Number of hidden layers. 0 is the linear kernel of a single dense layer.
    kind : {"ntk", "nngp"}
        Trained network, or network at initialisation.
    weight_std, bias_std : float or Tensor of shape (), default sqrt(2) and 0.1
        Standard deviations :math:`\sigma_w, \sigma_b` of all layers. sqrt(2) keeps variances constant from layer to
        layer. A tensor takes part in differentiation.
    leak : float, default 0.0
        Slope of LeakyReLU on the negative side; 1 makes the network linear.
    precision : {"high", "exact", "medium", "low"}
        "high": float32 (for float64 data float64), accurate to float32 rounding because it is computed in float64.
        "exact": float64. "medium", "low": float32 data are computed in float32. An error ε in a cosine moves an
        angle near zero by sqrt(ε), so that the NTK of nearly parallel points is then wrong by up to 5e-4 of its
        size at depth 1 and some 2.5e-4 more a layer; elsewhere, and in the NNGP, by about 1e-6.
    memory_budget : int, optional
        Bytes that temporaries may take beside the result. Default 32 MiB on a CPU, 512 MiB on a GPU.

    Returns
    -------
    Tensor, shape (n, m)
        On the device of X. Differentiable twice and in forward mode in X, Y, `weight_std` and `bias_std`, under
        vmap too; derivatives are computed from the inputs again, within `memory_budget` unless their graph is kept.
        They are finite everywhere. At parallel points the NTK has a kink, where the mean over all directions is
        returned. At a row of zeros without bias the kernel is not differentiable; there angles are held at 90°,
        which for depth 1 gives the central difference. (Forward mode inside forward mode is not right here: take
        one of the two derivatives backward.)

    Raises
    ------
    ValueError
        If an argument has the wrong shape, dtype, device or value, or the budget is too small for one entry.

    Notes
    -----
    Time O(n m (d + depth)), half of it for Y = None.

    References
    ----------
    Cho & Saul, Kernel methods for deep learning, 2009. Jacot et al., Neural tangent kernel, 2018.
    """
    check_network(depth, kind, leak)
    X, Y = _rows(X, "X"), None if Y is None else _rows(Y, "Y")
    check_together(X=X, Y=Y)
    check_columns(X, X if Y is None else Y)
    dtype, d = computing_dtype(X.dtype, precision), X.shape[1]
    diagonal = None
    if Y is None:
        diagonal = arc_cosine_diagonal(
            X,
            depth=depth,
            kind=kind,
            weight_std=weight_std,
            bias_std=bias_std,
            leak=leak,
            precision=precision,
            memory_budget=memory_budget,
        )
    return block_matrix(
        functools.partial(fully_connected_tile, depth=depth, kind=kind, leak=leak),
        [X],
        [X if Y is None else Y],
        _stds(weight_std, bias_std, X, dtype),
        diagonal=diagonal,
        dtype=working_dtype(X.dtype, precision),
        value_bytes=(dtype.itemsize * _ENTRY, dtype.itemsize * _ROW * d),
        derivative_bytes=(
            dtype.itemsize * (_ENTRY_OF_DERIVATIVE + _ENTRY_OF_LAYER * depth),
            dtype.itemsize * _ROW_OF_DERIVATIVE * d,
        ),
        memory_budget=memory_budget,
    )


def arc_cosine_diagonal(
    X: Any,
    *,
    depth: int = 1,
    kind: str = "ntk",
    weight_std: float | Tensor = 2**0.5,
    bias_std: float | Tensor = 0.1,
    leak: float = 0.0,
    precision: str = "high",
    memory_budget: int | None = None,
) -> Tensor:
    """The diagonal of ``arc_cosine_kernel(X)``, shape (n,), in O(n d); arguments and derivatives as there."""
    check_network(depth, kind, leak)
    X = _rows(X, "X")
    dtype = computing_dtype(X.dtype, precision)
    stds = _stds(weight_std, bias_std, X, dtype)
    function = functools.partial(_diagonal, depth=depth, kind=kind, leak=leak)
    row = dtype.itemsize * (_ROW_OF_DERIVATIVE * X.shape[1] + _ENTRY_OF_DERIVATIVE + _ENTRY_OF_LAYER * depth)
    return by_rows(function, X, stds, derivative_bytes=row, memory_budget=memory_budget).to(
        working_dtype(X.dtype, precision)
    )


def fully_connected_tile(
    x: Tensor, y: Tensor, weight_std: Tensor, bias_std: Tensor, *, depth: int, kind: str, leak: float
) -> Tensor:
    """The kernel between rows `x`, shape (a, d), and `y`, shape (b, d), in their dtype; shape (a, b).

    Plain torch for use inside other operations: twice differentiable, under vmap too, no checks. In float32 its
    accuracy is that of ``precision="medium"``.
    """
    weight, bias = weight_std.square(), bias_std.square()
    scale = weight / x.shape[1]
    covariance = (x * scale) @ y.mT + bias
    x_variance, y_variance = (x.square().sum(1) * scale + bias, y.square().sum(1) * scale + bias)
    tangent = covariance
    for _ in range(depth):
        stds = safe_sqrt(x_variance)[:, None] * safe_sqrt(y_variance)
        value, slope = relu_duals(covariance, stds, leak)
        covariance = weight * value + bias
        if kind == "ntk":
            tangent = covariance + weight * slope * tangent
        x_variance, y_variance = (weight * _half(leak) * v + bias for v in (x_variance, y_variance))
    return tangent if kind == "ntk" else covariance


def _diagonal(
    x: Tensor, weight_std: Tensor, bias_std: Tensor, *, depth: int, kind: str, leak: float
) -> Tensor:
    """The recursion at x = y, where the angle is zero."""
    weight, bias = weight_std.square(), bias_std.square()
    tangent = variance = x.to(weight.dtype).square().sum(1) * (weight / x.shape[1]) + bias
    for _ in range(depth):
        variance = weight * _half(leak) * variance + bias
        tangent = variance + weight * _half(leak) * tangent
    return tangent if kind == "ntk" else variance


def _half(leak: float) -> float:
    """Both duals at angle zero: the mean of the squared slopes of the two sides."""
    return (1 + leak**2) / 2


def _rows(values: Any, name: str) -> Tensor:
    rows = as_rows(values, name)
    if rows.shape[1] == 0:
        raise ValueError(f"`{name}` has no columns: the kernel is a mean over them")
    return rows


def _stds(
    weight_std: float | Tensor, bias_std: float | Tensor, X: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    return [as_std(weight_std, "weight_std", X.device, dtype), as_std(bias_std, "bias_std", X.device, dtype)]
