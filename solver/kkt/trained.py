r"""A trained model as the KKT conditions see it: scores as a function of parameters, a loss, and a decay.

Training to the end with weight decay, :math:`\min_\theta \sum_i c_i L_i(\theta) + \tfrac12 \sum_j s_j \theta_j^2`,
stops where

.. math:: s \circ \theta^* + \sum_i \lambda_i \nabla_\theta L_i(\theta^*) = 0, \qquad \lambda_i = c_i \ge 0 ,

the stationarity condition of Deep-KKT (Lee et al., "Deep Support Vectors", NeurIPS 2024, equation 8), which has
s = 1. **The scale s** only names the unit of the duals: for one number s the residual at λ is s times the residual
of s = 1 at λ / s. A parameter without a penalty, as the intercept of an SVM or a logistic regression, has s = 0.

**What a normalisation hides.** Scores that do not change when a weight tensor is multiplied by a number (weights
before a batch, instance or group normalisation) have gradients orthogonal to that tensor, whatever the rows. No
duals reach it: its part of the residual is at least ``|s θ|``.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from .._check import check_non_negative

ScoreFunction = Callable[[Mapping[str, Tensor], Tensor], Tensor]
Losses = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(scores: Tensor, Y: Tensor) -> Tensor:
    """Cross-entropy (n,) of scores (n, k): Y are classes (n,) int64, or rows (n, k) of probabilities."""
    if Y.ndim == 1:
        return scores.logsumexp(dim=1) - scores.gather(1, Y[:, None])[:, 0]
    return -(Y * scores.log_softmax(dim=1)).sum(dim=1)


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedModel:
    """A frozen model.

    Attributes
    ----------
    function : callable
        Parameters by name and rows (n, ...) to scores (n, k). The scores of a row must depend on that row alone.
    parameters : dict of str to Tensor
        θ*, all of one floating dtype and on one device.
    losses : callable, default `cross_entropy`
        Scores (n, k) and targets to losses (n,).
    decay : float or mapping of str to float, default 1.0
        s, of all parameters or of each by name.

    Raises
    ------
    ValueError
        If there are no parameters, they are of several types, or a decay is negative or of no parameter.
    """

    function: ScoreFunction
    parameters: dict[str, Tensor]
    losses: Losses = cross_entropy
    decay: float | Mapping[str, float] = 1.0

    def __post_init__(self) -> None:
        kinds = {(str(value.dtype), str(value.device)) for value in self.parameters.values()}
        if len(kinds) != 1 or not next(iter(self.parameters.values())).is_floating_point():
            raise ValueError(
                "`parameters` must be one or more floating tensors of one dtype and device, got"
                f" {sorted(kinds) or 'none'}"
            )
        object.__setattr__(self, "parameters", {name: p.detach() for name, p in self.parameters.items()})
        if isinstance(self.decay, Mapping):
            if self.decay.keys() != self.parameters.keys():
                raise ValueError(
                    f"`decay` must name every parameter ({', '.join(self.parameters)}), got"
                    f" {', '.join(self.decay)}"
                )
            for name, value in self.decay.items():
                check_non_negative(value, f"decay[{name!r}]")
        else:
            check_non_negative(self.decay, "decay")

    @property
    def size(self) -> int:
        """Number of parameters P."""
        return sum(value.numel() for value in self.parameters.values())

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.parameters.values())).dtype

    @property
    def device(self) -> torch.device:
        return next(iter(self.parameters.values())).device

    def target(self) -> dict[str, Tensor]:
        """What the weighted gradients are to cancel, s θ*, by name."""
        decay = self.decay if isinstance(self.decay, Mapping) else dict.fromkeys(self.parameters, self.decay)
        return {name: float(decay[name]) * value for name, value in self.parameters.items()}

    def losses_of(self, parameters: Mapping[str, Tensor], X: Tensor, Y: Tensor) -> Tensor:
        """Losses (n,) of rows."""
        return self.losses(self.function(parameters, X), Y)


def trained_model(
    network: nn.Module,
    *,
    losses: Losses = cross_entropy,
    decay: float | Mapping[str, float] = 1.0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> TrainedModel:
    """A network as it is, frozen: a copy in evaluation mode, so that rows do not depend on each other.

    Parameters
    ----------
    network : torch.nn.Module
        Left as it is.
    losses, decay
        As for `TrainedModel`.
    dtype : torch.dtype, optional
        Of the copy; float64 where gradients of rows that the network is sure of matter: those are differences of
        probabilities that are nearly one.
    device : torch.device or str, optional
        Of the copy.
    """
    frozen = copy.deepcopy(network).to(device=device, dtype=dtype).eval().requires_grad_(False)

    def function(parameters: Mapping[str, Tensor], X: Tensor) -> Tensor:
        return torch.func.functional_call(frozen, dict(parameters), (X,))

    return TrainedModel(function, dict(frozen.named_parameters()), losses, decay)
