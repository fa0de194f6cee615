"""When a network's training steps happen and at which rate: a recipe's schedule, for a set of so many points.

The schedules are defined in `training_recipes`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.random import random_bits
from .training_recipes import TrainingRecipe


@dataclass(frozen=True)
class Schedule:
    """The epochs and steps of a training.

    Attributes
    ----------
    epochs : int
        Epochs that are run: of "drop", one more than its E.
    batches : int
        Steps in each of them.
    rates : Tensor, shape (epochs * batches,), float64
        Rate of each step.
    restarts : frozenset of int
        Epochs before which the optimiser forgets what it has gathered.
    """

    epochs: int
    batches: int
    rates: Tensor
    restarts: frozenset[int]


def make_schedule(recipe: TrainingRecipe, n: int) -> Schedule:
    """The schedule of a recipe for n points.

    Where the recipe counts steps, they are rounded up to whole epochs.
    """
    batches = math.ceil(n / recipe.batch_size)
    epochs = recipe.epochs
    if recipe.steps:
        steps = next((steps for size, steps in recipe.steps if n <= size), recipe.steps[-1][1])
        epochs = math.ceil(steps / batches)
    if recipe.schedule == "drop":
        restart = epochs // 2 + 2
        rates = torch.full((epochs + 1,), recipe.rate, dtype=torch.float64)
        rates[restart:] *= 0.1
        restarts = frozenset({restart} if restart <= epochs else ())
        return Schedule(epochs + 1, batches, rates.repeat_interleave(batches), restarts)
    total = epochs * batches
    step = torch.arange(total, dtype=torch.float64)
    share = torch.ones_like(step)
    if recipe.schedule == "cosine":
        warmup = min(recipe.warmup, total // 2)
        fall = 0.5 * (1 + torch.cos(math.pi * (step - warmup) / max(total - warmup, 1)))
        fall = recipe.final_rate + (1 - recipe.final_rate) * fall
        share = torch.where(step < warmup, step / max(warmup, 1), fall)
    return Schedule(epochs, batches, recipe.rate * share, frozenset())


def row_orders(n: int, epoch: int, networks: range, *, seed: int, stream: str) -> Tensor:
    """The order of n rows in an epoch, of each of some networks: int64, shape (len(networks), n).

    Row i is a permutation that depends on (seed, stream, epoch, networks[i]) alone.
    """
    bits = random_bits(seed, f"{stream}.order.{epoch}", len(networks) * n, networks.start * n)
    return torch.from_numpy(bits.reshape(len(networks), n).argsort(axis=1, kind="stable"))
