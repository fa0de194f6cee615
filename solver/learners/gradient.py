"""Learners that follow a gradient: parameters, an optimiser, and a loss of each step."""

import abc
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..learner import Figures, Learner, State
from ..optimizer_state import optimizer_state, restore_optimizer


class GradientLearner(Learner):
    """Base of learners that minimise a loss over named parameters.

    A subclass sets `parameters` and `optimizer` and defines `loss`, `evaluate`, `learned` and `identity`; one
    that keeps more state (a loss table, a pool of networks) defines `extra_state` and `restore_extra`.

    Attributes
    ----------
    parameters : dict of str to Tensor
        What is learned, by name: leaves that require a gradient.
    optimizer : torch.optim.Optimizer
        Over those parameters, in their order.
    """

    parameters: dict[str, Tensor]
    optimizer: torch.optim.Optimizer

    @abc.abstractmethod
    def loss(self, step: int) -> tuple[Tensor, Figures]:
        """Loss of a step, differentiable in `parameters`, and what else to log."""

    def rate(self, step: int) -> float:
        """Factor on the learning rates at a step; 1 by default."""
        del step
        return 1.0

    def advance(self, step: int) -> Figures:
        loss, figures = self.loss(step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        factor = self.rate(step)
        for group in self.optimizer.param_groups:
            group.setdefault("base_lr", group["lr"])
            group["lr"] = group["base_lr"] * factor
        self.optimizer.step()
        self.after_step(step)
        return {"loss": loss.detach(), **figures}

    def after_step(self, step: int) -> None:
        """What follows the optimiser's step: a projection, the training of a network."""

    def extra_state(self) -> State:
        """State besides parameters and optimiser."""
        return {}, {}

    def restore_extra(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        """Undo `extra_state`."""

    def state(self) -> State:
        tensors = {f"parameter.{name}": value.detach() for name, value in self.parameters.items()}
        of_optimizer, groups = optimizer_state(self.optimizer)
        tensors |= {f"optimizer.{name}": value for name, value in of_optimizer.items()}
        extra_tensors, extra_plain = self.extra_state()
        tensors |= {f"extra.{name}": value for name, value in extra_tensors.items()}
        return tensors, {"groups": groups, "extra": extra_plain}

    def restore(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        """Go back to what `state` described, bit for bit; tensors may lie on another device.

        Raises
        ------
        ValueError
            If the state is of parameters of other names, shapes or types, or of another optimiser.
        """
        parameters = dict(_under("parameter.", tensors.items()))
        found, expected = _signature(parameters), _signature(self.parameters)
        if found != expected:
            raise ValueError(f"the state is of parameters {found}, this learner has {expected}")
        restore_optimizer(self.optimizer, dict(_under("optimizer.", tensors.items())), plain["groups"])
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(parameters[name])
        self.restore_extra(dict(_under("extra.", tensors.items())), plain["extra"])


def _signature(parameters: Mapping[str, Tensor]) -> str:
    """Names, shapes and types."""
    return ", ".join(
        f"{name} {tuple(value.shape)} {value.dtype}" for name, value in sorted(parameters.items())
    )


def _under(prefix: str, items: Iterable[tuple[str, Tensor]]) -> Iterable[tuple[str, Tensor]]:
    """Items of a prefix, without it."""
    return [(name.removeprefix(prefix), value) for name, value in items if name.startswith(prefix)]
