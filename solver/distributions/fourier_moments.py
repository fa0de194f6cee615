r"""Expected features and their products over a Gaussian, in closed form, for Fourier features and linear models.

For :math:`x \sim N(\mu, \Sigma)` and a feature :math:`\varphi_j(x) = s \cos(a_j x + b_j)`, with
:math:`\theta_j = a_j \mu + b_j` and :math:`C = A \Sigma A^\top`,

.. math:: E\,\varphi_j = s\, e^{-C_{jj}/2} \cos\theta_j, \qquad
          E\,\varphi_i \varphi_j = \tfrac{s^2}{2} \bigl[ e^-_{ij} \cos(\theta_i - \theta_j)
                                                       + e^+_{ij} \cos(\theta_i + \theta_j) \bigr], \qquad
          e^\mp_{ij} = e^{-(C_{ii} + C_{jj})/2 \,\pm\, C_{ij}},

from the characteristic function of a Gaussian, :math:`E\,e^{iax} = e^{ia\mu - a\Sigma a^\top/2}`, and
:math:`2 \cos u \cos v = \cos(u - v) + \cos(u + v)`. By the addition theorems the product is

.. math:: \tfrac{s^2}{2} \bigl[ (e^- + e^+) \cos\theta_i \cos\theta_j + (e^- - e^+) \sin\theta_i \sin\theta_j \bigr],

which needs no cosine of a pair. Sines are cosines a quarter turn later, so *paired* features need :math:`e^\mp` of
their p/2 frequencies alone. Exponents are put together before exp is taken: by Cauchy and Schwarz they are not
positive, and nothing overflows however wide the Gaussian. Each is off by about :math:`(d + r)\,2^{-53}` of
:math:`C_{ii} + C_{jj}`, and so is what it gives.

The identity map has :math:`E\,x = \mu` and :math:`E\,x x^\top = \Sigma + \mu \mu^\top`.
"""

import math

import torch
from torch import Tensor

from ..feature_maps import FeatureMap, Identity, RandomFourier

# Frequencies taken together against all others: few temporaries beside the Gram matrix, products at full rate.
_PANEL = 256


def has_moments(feature_map: FeatureMap) -> bool:
    """Whether `add_moments_` knows this map."""
    return isinstance(feature_map, (RandomFourier, Identity))


def add_moments_(
    gram: Tensor,
    feature_map: FeatureMap,
    mean: Tensor,
    factor: Tensor,
    variances: Tensor | None = None,
    weight: float = 1.0,
) -> Tensor:
    r"""Add :math:`w\,E\,\varphi \varphi^\top` over :math:`N(\mu, F F^\top + \operatorname{diag} v)` in place.

    Parameters
    ----------
    gram : Tensor, shape (p, p), float64
        Blocks below the block diagonal are not defined until `kernels.mirror_upper_` is called.
    feature_map : RandomFourier or Identity
    mean : Tensor, shape (d,), float64
        μ, flattened.
    factor : Tensor, shape (d, r), float64
        F; r may be 0.
    variances : Tensor, shape (d,), float64, optional
        v, not negative; none by default.
    weight : float, default 1
        w.

    Returns
    -------
    Tensor, shape (p,), float64
        :math:`E\,\varphi`, without the weight.

    Raises
    ------
    ValueError
        If moments of features of this map are not known, or shapes do not fit.

    Notes
    -----
    q (d + r) d + q² (d + r) / 2 multiplications and q² exponentials for q frequencies (q = p, or p/2 when paired,
    which take q² (d + r) and 2 q²); without `variances` d + r is r. Temporaries are 256 x p.
    """
    p, d = feature_map.n_features, feature_map.n_inputs
    shapes = [tuple(gram.shape), tuple(mean.shape), tuple(factor.shape[:1])]
    if shapes != [(p, p), (d,), (d,)] or (variances is not None and variances.shape != (d,)):
        raise ValueError(
            f"a Gram matrix {shapes[0]}, a mean {shapes[1]} and a factor {tuple(factor.shape)} do not go with a map of"
            f" {d} inputs to {p} features"
        )
    if isinstance(feature_map, Identity):
        gram.addmm_(factor, factor.T, alpha=weight).addr_(mean, mean, alpha=weight)
        if variances is not None:
            gram.diagonal().add_(variances, alpha=weight)
        return mean
    if not isinstance(feature_map, RandomFourier):
        raise ValueError(
            f"moments over Gaussians are known for 'fourier' and 'identity' features, not for {feature_map.name!r}"
        )
    A, paired = feature_map.frequencies, feature_map.variant == "paired"
    theta = torch.addmv(feature_map.phases, A, mean)
    cos, sin = theta.cos(), theta.sin()
    # Columns of paired features: the cosine of a phase, and that of the phase a quarter turn before.
    turns = [(cos, sin), (sin, -cos)] if paired else [(cos, sin)]
    roots = [A @ factor] if variances is None else [A @ factor, A * variances.sqrt()]
    root = torch.cat(roots, dim=1)  # C = root root'
    half = root.square().sum(dim=1) / 2
    _add_products_(gram, root, half, turns, weight / p)
    return math.sqrt(2 / p) * torch.cat([(-half).exp() * c for c, _ in turns])


def _add_products_(
    gram: Tensor, root: Tensor, half: Tensor, turns: list[tuple[Tensor, Tensor]], scale: float
) -> None:
    """Add ``scale`` times the bracket of the second formula to the blocks of all pairs of turns."""
    q = len(root)
    for start in range(0, q, _PANEL):
        rows = slice(start, min(start + _PANEL, q))
        # Of the block of cosines with sines all columns are needed, not those above the diagonal alone.
        columns = slice(start if len(turns) == 1 else 0, q)
        C = root[rows] @ root[columns].T
        both = half[rows, None] + half[columns]
        # Not positive, and zero for a feature with itself: rounding, which grows with the exponents, may say otherwise.
        minus = (C - both).clamp_max_(0)
        minus[:, start - columns.start :].fill_diagonal_(0)
        minus, plus = minus.exp_(), C.add_(both).neg_().clamp_max_(0).exp_()
        even, odd = (minus + plus).mul_(scale), minus.sub_(plus).mul_(scale)
        for i, (cos_i, sin_i) in enumerate(turns):
            for j, (cos_j, sin_j) in enumerate(turns[i:], start=i):
                block = gram[i * q + rows.start : i * q + rows.stop, j * q + columns.start : j * q + q]
                block += even * cos_i[rows, None] * cos_j[columns]
                block += odd * sin_i[rows, None] * sin_j[columns]
