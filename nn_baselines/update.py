r"""Steps of optimisers as functions of tensors, for one network or a stack of networks alike.

With g the gradient, w `weight_decay`, η the rate and t the number of the step since the start, from 1:

- "sgd": :math:`g \leftarrow g + w\theta,\; m \leftarrow \mu m + g,\; \theta \leftarrow \theta - \eta m`;
- "adam" (Kingma and Ba, ICLR 2015): :math:`g \leftarrow g + w\theta`, then
  :math:`m \leftarrow \beta_1 m + (1 - \beta_1) g,\; v \leftarrow \beta_2 v + (1 - \beta_2) g^2` and

.. math:: \theta \leftarrow \theta - \frac{\eta}{1 - \beta_1^t}\,
          \frac{m}{\sqrt{v} / \sqrt{1 - \beta_2^t} + \epsilon};

- "adamw" (Loshchilov and Hutter, ICLR 2019): the same, with :math:`\theta \leftarrow (1 - \eta w)\theta` first and no
  w in g.

These are the steps of `torch.optim`, which keeps its rate and count on the host and one set of them per object. Here
they are a row of a table of tensors, so a step can be captured in a CUDA graph, and nothing else in it depends on
time.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .schedule import Schedule
from .training_recipes import TrainingRecipe

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


def step_coefficients(recipe: TrainingRecipe, schedule: Schedule) -> Tensor:
    """The numbers of each step, float64, shape (steps, 3): what `update` multiplies by.

    The step size, the square root of 1 - β₂^t, and the factor of the weights: 1 but for the decay of "adamw".
    """
    rates = schedule.rates
    first = torch.zeros(len(rates), dtype=torch.float64)
    for epoch in sorted(schedule.restarts):
        first[epoch * schedule.batches :] = epoch * schedule.batches
    t = torch.arange(1, len(rates) + 1, dtype=torch.float64) - first
    adaptive = recipe.optimizer != "sgd"
    decay = recipe.weight_decay if recipe.optimizer == "adamw" else 0.0
    size = rates / (1 - _BETA1**t) if adaptive else rates
    return torch.stack([size, (1 - _BETA2**t).sqrt(), 1 - rates * decay], dim=1)


def new_moments(recipe: TrainingRecipe, parameters: Sequence[Tensor]) -> list[list[Tensor]]:
    """What the optimiser gathers, one list for each moment, all zero."""
    moments = 1 if recipe.optimizer == "sgd" else 2
    return [[torch.zeros_like(parameter) for parameter in parameters] for _ in range(moments)]


@torch.no_grad()
def update(
    recipe: TrainingRecipe,
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    moments: list[list[Tensor]],
    coefficients: Tensor,
) -> None:
    """One step, in place.

    Parameters
    ----------
    recipe : TrainingRecipe
    parameters, gradients : sequences of Tensor
        Of one network, or of many along a first axis; gradients are overwritten.
    moments : list of list of Tensor
        As `new_moments` made them.
    coefficients : Tensor, shape (3,)
        A row of `step_coefficients`, on the parameters' device and in their dtype.
    """
    size, root, keep = coefficients.unbind()
    coupled = recipe.weight_decay if recipe.optimizer != "adamw" else 0.0
    for index, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
        if coupled:
            gradient.add_(parameter, alpha=coupled)
        if recipe.optimizer == "sgd":
            velocity = moments[0][index].mul_(recipe.momentum).add_(gradient)
            parameter.sub_(velocity * size)
            continue
        mean = moments[0][index].lerp_(gradient, 1 - _BETA1)
        square = moments[1][index].mul_(_BETA2).addcmul_(gradient, gradient, value=1 - _BETA2)
        parameter.mul_(keep).sub_(mean / square.sqrt().div_(root).add_(_EPSILON) * size)
