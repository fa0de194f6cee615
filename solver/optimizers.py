r"""Optimisers by name, two that torch lacks, and the cosine schedule.

With g the gradient, :math:`m \leftarrow \beta_1 m + (1 - \beta_1) g` and t counted from 1:

`AdaBelief` (Zhuang et al., NeurIPS 2020, Algorithm 2): Adam around the mean of the gradients,

.. math:: s \leftarrow \beta_2 s + (1 - \beta_2)(g - m)^2 + \epsilon, \qquad
          \theta \leftarrow \theta - \eta\, \frac{m / (1 - \beta_1^t)}
                                                 {\sqrt{s / (1 - \beta_2^t)} + \epsilon}.

ε enters s itself and so adds up, up to ε / (1 - β₂), in the paper as in the code that RFAD runs
(torch_optimizer 0.3, neither rectified nor with weight decay).

`LAMB` (You et al., ICLR 2020, Algorithm 2, with the identity for φ), as optax has it, which FRePo runs:
:math:`v \leftarrow \beta_2 v + (1 - \beta_2) g^2` and, for each tensor by itself,

.. math:: u = \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon} + w \theta, \qquad
          \theta \leftarrow \theta - \eta\, \frac{\|\theta\|}{\|u\|} u,

the ratio being 1 where either norm is 0.
"""

import abc
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ._check import check_name

_BETAS = (0.9, 0.999)


def make_optimizer(
    name: str, groups: Iterable[Tensor] | Iterable[dict[str, Any]], **options: Any
) -> torch.optim.Optimizer:
    """The optimiser of a name.

    Parameters
    ----------
    name : {"adam", "adamw", "sgd", "adabelief", "lamb"}
    groups : iterable of Tensor or of dict
        Parameters, or groups of them ("params") with options of their own.
    **options
        As the optimiser's class takes them: `lr` (1e-3 by default in all five), `betas`, `eps`, `weight_decay`,
        `momentum`, ...

    Raises
    ------
    ValueError
        If the name is not known, or an option is out of range.
    """
    classes: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "sgd": torch.optim.SGD,
        "adabelief": AdaBelief,
        "lamb": LAMB,
    }
    return classes[check_name(name, classes, "optimizer")](groups, **options)


def cosine(step: int, steps: int, warmup: int = 0) -> float:
    """Factor on the learning rate: linear from 0 to 1 over `warmup` steps, then half a cosine down to 0 at `steps`.

    Steps count from 0, so that with a warm-up the first step moves nothing; 0 from `steps` on. As
    ``optax.warmup_cosine_decay_schedule`` with initial and final value 0.
    """
    if not 0 <= warmup < steps:
        raise ValueError(f"`warmup` must be from 0 to below `steps`, got {warmup} of {steps}")
    if step < warmup:
        return step / warmup
    return (1 + math.cos(math.pi * min(1.0, (step - warmup) / (steps - warmup)))) / 2


class _Moments(torch.optim.Optimizer, abc.ABC):
    """Optimisers that keep two running means of each parameter's gradients. Their state is tensors only."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, options)
        for group in self.param_groups:
            for name, value in group.items():
                if name in ("lr", "eps", "weight_decay") and not 0 <= value < math.inf:
                    raise ValueError(f"`{name}` must be finite and not negative, got {value!r}")
            if not all(0 <= beta < 1 for beta in group["betas"]):
                raise ValueError(f"`betas` must be in [0, 1), got {group['betas']!r}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take a step; `closure`, if given, computes loss and gradients first."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, self._state_of(parameter), group)
        return loss

    @abc.abstractmethod
    def _update(
        self, parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]
    ) -> None:
        """Update running means and parameter, in place."""

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        """State of a parameter, its steps counted on: on the CPU, where reading them waits for nothing."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["mean"] = torch.zeros_like(parameter)
            state["square"] = torch.zeros_like(parameter)
        state["step"] += 1
        return state


class AdaBelief(_Moments):
    """AdaBelief (formula above).

    Parameters
    ----------
    params : iterable of Tensor or of dict
    lr : float, default 1e-3
    betas : pair of float, default (0.9, 0.999)
    eps : float, default 1e-16
        As RFAD sets it.
    """

    def __init__(
        self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = _BETAS, eps: float = 1e-16
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps)

    def _update(
        self, parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]
    ) -> None:
        (beta1, beta2), eps, t = group["betas"], group["eps"], float(state["step"])
        mean = state["mean"].lerp_(gradient, 1 - beta1)
        surprise = gradient - mean
        square = state["square"].mul_(beta2).addcmul_(surprise, surprise, value=1 - beta2).add_(eps)
        root = (square / (1 - beta2**t)).sqrt_().add_(eps)
        parameter.addcdiv_(mean, root, value=-group["lr"] / (1 - beta1**t))


class LAMB(_Moments):
    """LAMB (formula above).

    Parameters
    ----------
    params : iterable of Tensor or of dict
    lr : float, default 1e-3
        The length of a step relative to that of the parameter.
    betas : pair of float, default (0.9, 0.999)
    eps : float, default 1e-6
    weight_decay : float, default 0
        w; decoupled, and inside the ratio.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = _BETAS,
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def _update(
        self, parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]
    ) -> None:
        (beta1, beta2), t = group["betas"], float(state["step"])
        mean = state["mean"].lerp_(gradient, 1 - beta1)
        square = state["square"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        update = (mean / (1 - beta1**t)).div_((square / (1 - beta2**t)).sqrt_().add_(group["eps"]))
        update.add_(parameter, alpha=group["weight_decay"])
        length, moved = parameter.norm(), update.norm()
        # Both norms stay on the device: a branch on them would wait for it.
        ratio = torch.where((length == 0) | (moved == 0), torch.ones_like(length), length / moved)
        parameter.sub_(update.mul_(ratio * group["lr"]))
