r"""The KKT conditions of linear models in closed form: ridge regression, the linear SVM, logistic regression.

Their duals need no fit, they follow from the predictions. With rows :math:`\varphi_i` (a matrix Φ), weights W and
intercept b:

- **Ridge**, :math:`\tfrac\lambda2 \|W\|^2 + \tfrac12 \sum_i \|e_i\|^2` with :math:`e_i = y_i - W^\top \varphi_i - b`:
  duals :math:`\alpha_i = e_i / \lambda`, stationarity :math:`\lambda W = \Phi^\top e`. The model of all the data is the
  stationary point of a distilled set of the closed form (Chen et al. 2024, theorem 4.1): its residual is rounding.
- **Linear SVM** (Cortes and Vapnik 1995), :math:`\tfrac12 \|w\|^2 + C \sum_i \xi_i`, labels ±1:
  :math:`w = \sum_i \alpha_i y_i \varphi_i`, :math:`0 \le \alpha_i \le C`,
  :math:`\alpha_i \max(m_i - 1, 0) = 0` and :math:`(C - \alpha_i) \max(1 - m_i, 0) = 0` with margins
  :math:`m_i = y_i (w^\top \varphi_i + b)`.
- **Logistic regression**, :math:`\tfrac12 \|W\|^2 + C \sum_i L_i`: :math:`\alpha_i = C (y_i - p_i)`, p the predicted
  probabilities, and :math:`W = \Phi^\top \alpha`. It is Deep-KKT's condition (`stationarity`) with
  :math:`\lambda_i = C`.

Intercepts carry no penalty: their condition is that the duals (for the SVM times the labels) sum to zero.
"""

import dataclasses
import math

import torch
from torch import Tensor

from .._check import check_finite, check_non_negative
from ..distilled_set import DistilledSet
from ..kernel_encoder import KernelEncoder
from ..model import RidgeModel


@dataclasses.dataclass(frozen=True)
class KKTResiduals:
    """How far each condition is broken; all are 0 at an exact solution, and where there is no such condition.

    Attributes
    ----------
    stationarity : float
        Norm of what the rows leave of the weights, relative to a norm that each function names.
    intercept : float
        Norm of the sum of the duals, relative to the sum of their norms.
    primal : float
        Largest lack of margin that is not paid for by a dual at its bound.
    dual : float
        Largest breach of the sign or bound of a dual, relative to the bound (to the largest dual, without one).
    complementarity : float
        Largest product of a dual, relative as above, and what its row has of margin beyond need.
    """

    stationarity: float
    intercept: float = 0.0
    primal: float = 0.0
    dual: float = 0.0
    complementarity: float = 0.0

    @property
    def largest(self) -> float:
        return max(dataclasses.astuple(self))


def ridge_duals(F: Tensor, Y: Tensor, W: Tensor, bias: Tensor, ridge: float) -> Tensor:
    """Duals α (m, k), float64, of a ridge model: residuals over λ.

    Parameters
    ----------
    F : Tensor, shape (m, p)
    Y : Tensor, shape (m, k)
    W : Tensor, shape (p, k)
    bias : Tensor, shape (k,)
    ridge : float
        λ, absolute, above 0: the pseudo-inverse has no duals.
    """
    if not check_non_negative(ridge, "ridge"):
        raise ValueError("the duals of ridge regression are residuals over λ: λ must be above 0")
    return (Y.double() - F.double() @ W.double() - bias.double()) / ridge


def ridge_residual(ds: DistilledSet, model: RidgeModel | None = None) -> KKTResiduals:
    r"""Stationarity of a ridge model for a distilled set.

    Parameters
    ----------
    ds : DistilledSet
        Of a feature map, with its labels and λ_S.
    model : RidgeModel, optional
        ``ds.full_model``, for what the closed form promises: that the model of all the data is the set's. Default the
        model trained on the set.

    Returns
    -------
    KKTResiduals
        `stationarity` is :math:`\|\lambda_S W - \Phi_S^\top (Y_S - \Phi_S W - b)\|` relative to
        :math:`\|\Phi_S^\top Y_S\|`, the constant term of that equation, centred where there is an intercept. (The
        part of λ_S W can be any number of digits smaller, down to 0.)

    Raises
    ------
    ValueError
        If the set has a kernel, or the model other features.
    """
    if isinstance(ds.encoder, KernelEncoder):
        raise ValueError(f"the set has the kernel {ds.encoder.name!r}: its model has no finite weights")
    if model is None:
        assert isinstance(ds.model, RidgeModel)
        model = ds.model
    F, Y, W, bias = ds.features(), ds.y.double(), model.weights.double(), model.bias.double()
    if W.shape != (F.shape[1], Y.shape[1]):
        raise ValueError(
            f"the model has weights {tuple(W.shape)}, the set {F.shape[1]} features and {Y.shape[1]} labels"
        )
    E = Y - F @ W - bias
    constant = F.T @ Y
    intercept = 0.0
    if ds.intercept:
        constant = (F - F.mean(dim=0)).T @ (Y - Y.mean(dim=0))
        intercept = _share(E.sum(dim=0).norm(), Y.norm(dim=1).sum())
    return KKTResiduals(_share((ds.distilled_ridge * W - F.T @ E).norm(), constant.norm()), intercept)


def svm_residuals(
    X: Tensor, signs: Tensor, w: Tensor, bias: float, duals: Tensor, C: float = math.inf
) -> KKTResiduals:
    """Conditions of a linear SVM.

    Parameters
    ----------
    X : Tensor, shape (n, p)
    signs : Tensor, shape (n,)
        -1 or 1.
    w : Tensor, shape (p,)
    bias : float
    duals : Tensor, shape (n,)
        α; 0 for rows that are no support vectors.
    C : float, default infinity
        Price of a lack of margin; infinite for the hard margin.

    Returns
    -------
    KKTResiduals
        `stationarity` is relative to ``|w|``.

    Raises
    ------
    ValueError
        If shapes do not fit, labels are not signs, `C` is not above 0, or values are not finite.
    """
    X, signs, w, duals = (value.double() for value in (X, signs, w, duals))
    if X.ndim != 2 or w.shape != X.shape[1:] or not signs.shape == duals.shape == X.shape[:1]:
        raise ValueError(
            "`X` (n, p), `w` (p,), `signs` and `duals` (n,) must fit, got"
            f" {', '.join(str(tuple(value.shape)) for value in (X, w, signs, duals))}: flatten weights and duals, and"
            " give 0 for rows that are no support vectors"
        )
    for name, value in (("X", X), ("w", w), ("duals", duals)):
        check_finite(value, name)
    if not (signs.abs() == 1).all():
        raise ValueError("`signs` must be -1 or 1")
    if not C > 0:
        raise ValueError(f"`C` must be above 0, got {C!r}")
    margins = signs * (X @ w + bias)
    bound = C if math.isfinite(C) else max(float(duals.abs().max()), torch.finfo(torch.float64).tiny)
    shares = duals / bound
    unpaid = (1 - shares).clamp_min(0) if math.isfinite(C) else torch.ones_like(shares)
    beyond = (shares - 1).clamp_min(0) if math.isfinite(C) else torch.zeros_like(shares)
    return KKTResiduals(
        stationarity=_share((w - X.T @ (duals * signs)).norm(), w.norm()),
        intercept=_share((duals * signs).sum().abs(), duals.abs().sum()),
        primal=float((unpaid * (1 - margins).clamp_min(0)).max()),
        dual=float(torch.maximum((-shares).clamp_min(0), beyond).max()),
        complementarity=float((shares.abs() * (margins - 1).clamp_min(0)).max()),
    )


def logistic_duals(X: Tensor, classes: Tensor, W: Tensor, bias: Tensor, C: float = 1.0) -> Tensor:
    """Duals α (n, k), float64, of logistic regression: C times (one-hot labels minus probabilities).

    Parameters
    ----------
    X : Tensor, shape (n, p)
    classes : Tensor, shape (n,), int64
    W : Tensor, shape (p, k)
        One column (k = 1) for two classes by one sigmoid; class 1 is the positive one.
    bias : Tensor, shape (k,)
    C : float, default 1.0
        Weight of the losses against ``|W|²/2``.

    Raises
    ------
    ValueError
        If classes are out of range.
    """
    scores = X.double() @ W.double() + bias.double()
    k = max(2, scores.shape[1])
    if tuple(classes.shape) != (len(X),) or not 0 <= int(classes.min()) <= int(classes.max()) < k:
        raise ValueError(f"`classes` must be {len(X)} numbers from 0 to {k - 1}")
    if scores.shape[1] == 1:
        return C * (classes.double()[:, None] - scores.sigmoid())
    return C * (torch.nn.functional.one_hot(classes, k).double() - scores.softmax(dim=1))


def logistic_residuals(
    X: Tensor, classes: Tensor, W: Tensor, bias: Tensor, C: float = 1.0, *, intercept: bool = True
) -> KKTResiduals:
    """Conditions of logistic regression: there is no constraint, so only stationarity can fail.

    Parameters
    ----------
    X, classes, W, bias, C
        As for `logistic_duals`.
    intercept : bool, default True
        Whether `bias` was fitted.

    Returns
    -------
    KKTResiduals
        `stationarity` is relative to ``|W|``.
    """
    duals = logistic_duals(X, classes, W, bias, C)
    return KKTResiduals(
        stationarity=_share((W.double() - X.double().T @ duals).norm(), W.double().norm()),
        intercept=_share(duals.sum(dim=0).norm(), duals.norm(dim=1).sum()) if intercept else 0.0,
    )


def _share(part: Tensor, whole: Tensor) -> float:
    """Their ratio; where both vanish nothing is broken."""
    return float(part / whole) if float(whole) > 0 else (0.0 if float(part) == 0 else math.inf)
