"""Losses of a recipe, defined in `training_recipes`: what rows are compared with, and the loss of each."""

import torch
from torch import Tensor

from .training_recipes import TrainingRecipe


def target_rows(recipe: TrainingRecipe, Y: Tensor) -> Tensor:
    """What the outputs of networks are compared with: (m, k) in the dtype of Y.

    Raises
    ------
    ValueError
        If rows that are to be probabilities are none.
    """
    if recipe.labels == "hard":
        classes = torch.zeros_like(Y).scatter_(1, Y.argmax(1, keepdim=True), 1.0)
        return classes - 1 / Y.shape[1] if recipe.loss == "mse" else classes
    if recipe.labels == "probabilities":
        if bool((Y < 0).any()) or float((Y.sum(1) - 1).abs().max()) > 1e-3:
            raise ValueError(
                'labels "probabilities" need target rows that are not negative and sum to 1: use "scores" for others'
            )
        return Y
    return Y if recipe.loss == "mse" else (Y / recipe.temperature).softmax(1)


def row_losses(recipe: TrainingRecipe, outputs: Tensor, targets: Tensor) -> Tensor:
    """Losses (..., b) of outputs (..., b, k) against rows that `target_rows` made."""
    if recipe.loss == "mse":
        return (outputs - recipe.label_scale * targets).square().mean(-1) / recipe.label_scale**2
    return -(targets * (outputs / recipe.temperature).log_softmax(-1)).sum(-1)
