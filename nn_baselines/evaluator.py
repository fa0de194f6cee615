r"""Networks trained on a set, and what they make of the test rows, which are looked at once.

`train_on` trains M networks on a set by a recipe, and where there is something to choose (rates, the epoch to stop
after) chooses it by the mean accuracy of these networks on rows held out of the training data: one choice for all M of
them, because it is a choice of recipe. `examine` then shows the test rows, piece by piece and every piece once, to all
networks of all sets. Published codes differ in this: VICO's (DC, DSA, DM) take the last epoch at a fixed rate, as the
recipes here do when nothing is given to choose from; MTT's, FRePo's and DD-Ranking's choose by the test set.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..solver._check import check_count, check_finite
from ..solver.networks import NetworkSpec, NetworkStack
from ..solver.source import to_tensor
from ..solver.transforms import Transform
from .accuracy import network_accuracies
from .draws import Draws
from .schedule import make_schedule
from .training import train_networks
from .training_recipes import TrainingRecipe

# Bytes of raw test rows, as float32, in one piece.
PIECE_BYTES = 128 * 2**20
# Epochs, evenly spread, after which the held-out rows are looked at where the epoch is chosen.
LOOKS = 10

Pieces = Callable[[], Iterable[tuple[Tensor, Tensor]]]


@dataclasses.dataclass(frozen=True)
class Choice:
    """What is chosen on held-out rows; by default nothing.

    Attributes
    ----------
    rates : tuple of float
        Learning rates to try, each in the place of the recipe's; empty for the recipe's.
    epoch : bool
        Whether to stop after the best of `LOOKS` epochs, evenly spread, instead of the last.
    pieces : callable, or None
        Gives the held-out rows anew at every call: pieces of transformed inputs and classes (int64).

    Raises
    ------
    ValueError
        If there is something to choose and no rows to choose on, or a rate is not positive.
    """

    rates: tuple[float, ...] = ()
    epoch: bool = False
    pieces: Pieces | None = None

    def __post_init__(self) -> None:
        for rate in self.rates:
            if not (math.isfinite(rate) and rate > 0):
                raise ValueError(f"learning rates must be positive, got {rate!r}")
        if (self.rates or self.epoch) and self.pieces is None:
            raise ValueError("rates and epochs are chosen on held-out rows: give `pieces`")


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """Networks trained on one set.

    Attributes
    ----------
    stack : NetworkStack
    rate : float
        Learning rate they were trained with.
    epoch : int or None
        Epoch, counted from 1, after which they were taken; None for the last.
    held_out : float or None
        Their mean accuracy on the held-out rows, where something was chosen: the best, hence optimistic.
    diverged : int
        Networks with a weight that is not finite.
    """

    stack: NetworkStack
    rate: float
    epoch: int | None
    held_out: float | None
    diverged: int


def train_on(
    spec: NetworkSpec,
    X: Tensor,
    Y: Tensor,
    recipe: TrainingRecipe,
    *,
    count: int = 5,
    seed: int = 0,
    choice: Choice | None = None,
    workers: int | None = None,
    draw: Draws | None = None,
) -> Trained:
    """Train networks on a set, with the rate and the epoch chosen on held-out rows where that is asked for.

    Parameters
    ----------
    spec : NetworkSpec
    X : Tensor, shape (m, *input_shape), floating point
        Transformed points.
    Y : Tensor, shape (m, k), floating point
        As `recipe.labels` says.
    recipe : TrainingRecipe
    count : int, default 5
        M.
    seed : int
        Network i depends on it and on i, not on the rate.
    choice : Choice, optional
    workers : int, optional
        As for `train_networks`; changes nothing but time.
    draw : Draws, optional
        As for `train_networks`; the same samples for every rate.

    Returns
    -------
    Trained

    Notes
    -----
    One training for every rate. With `choice.epoch`, `LOOKS` copies of the weights are kept, on the CPU.
    """
    choice = choice or Choice()
    best: Trained | None = None
    for rate in choice.rates or (recipe.rate,):
        changed = recipe.model_copy(update={"rate": float(rate)})
        found = _train(spec, X, Y, changed, check_count(count, "count"), seed, choice, workers, draw)
        # The first of equals: rates are tried in the order given.
        if best is None or (found.held_out or 0) > (best.held_out or 0):
            best = found
    assert best is not None
    return best


def _train(
    spec: NetworkSpec,
    X: Tensor,
    Y: Tensor,
    recipe: TrainingRecipe,
    count: int,
    seed: int,
    choice: Choice,
    workers: int | None,
    draw: Draws | None,
) -> Trained:
    """Networks of one rate."""
    options: dict[str, Any] = {
        "count": count,
        "seed": seed,
        "stream": "evaluate",
        "workers": workers,
        "draw": draw,
    }
    if not choice.epoch:
        stack = train_networks(spec, X, Y, recipe, **options)
        held_out = _mean_accuracy(stack, choice, workers) if choice.rates else None
        return Trained(stack, recipe.rate, None, held_out, _diverged(stack))
    total = make_schedule(recipe, len(X) * (1 if draw is None else 1 + draw.count)).epochs
    looks = {-(-total * (look + 1) // LOOKS) for look in range(LOOKS)}
    # By epoch: the accuracies and weights of the networks that have come so far, by the first one's number.
    seen: dict[int, dict[int, tuple[Tensor, NetworkStack]]] = {epoch: {} for epoch in sorted(looks)}

    def look(epoch: int, networks: range, stack: NetworkStack) -> None:
        if epoch + 1 in looks:
            # One worker: others are training meanwhile.
            scores = network_accuracies(stack, _pieces(choice), workers=1)
            seen[epoch + 1][networks.start] = scores, _on_cpu(stack)

    train_networks(spec, X, Y, recipe, on_epoch=look, **options)
    means = {epoch: float(torch.cat([s for s, _ in found.values()]).mean()) for epoch, found in seen.items()}
    best = max(means, key=lambda epoch: means[epoch])  # the first of equals
    parts = [stack for _, (_, stack) in sorted(seen[best].items())]
    stack = dataclasses.replace(
        parts[0],
        **{
            name: {
                key: torch.cat([getattr(part, name)[key] for part in parts])
                for key in getattr(parts[0], name)
            }
            for name in ("parameters", "buffers")
        },
    ).to(X.device)
    return Trained(stack, recipe.rate, best, means[best], _diverged(stack))


def _pieces(choice: Choice) -> Iterable[tuple[Tensor, Tensor]]:
    assert choice.pieces is not None
    return choice.pieces()


def _mean_accuracy(stack: NetworkStack, choice: Choice, workers: int | None) -> float:
    return float(network_accuracies(stack, _pieces(choice), workers=workers).mean())


def _on_cpu(stack: NetworkStack) -> NetworkStack:
    """A copy that does not change with the networks that are still being trained."""
    copies = {
        name: {key: value.detach().to("cpu", copy=True) for key, value in getattr(stack, name).items()}
        for name in ("parameters", "buffers")
    }
    return dataclasses.replace(stack, **copies)


def _diverged(stack: NetworkStack) -> int:
    sound = torch.ones(stack.count, dtype=torch.bool)
    for value in stack.parameters.values():
        sound &= torch.isfinite(value.detach().flatten(1)).all(dim=1).cpu()
    return int((~sound).sum())


@dataclasses.dataclass(frozen=True, eq=False)
class Examinee:
    """Networks, what they see of raw rows, and the right answers.

    Attributes
    ----------
    stack : NetworkStack
    transform : Transform
        The same object for networks that share it: rows are then transformed once.
    classes : Tensor, shape (n,), int64
        Class of each test row, as the networks number them.
    """

    stack: NetworkStack
    transform: Transform
    classes: Tensor


def examine(
    examinees: Sequence[Examinee],
    X: Any,
    *,
    device: torch.device | str = "cpu",
    workers: int | None = None,
    piece_bytes: int = PIECE_BYTES,
) -> list[Tensor]:
    """Accuracies of networks on test rows, every row read once.

    Parameters
    ----------
    examinees : sequence of Examinee
    X : array, shape (n, *input_shape)
        Raw test rows: NumPy (memory-mapped or not) or torch.
    device : torch.device or str, default "cpu"
        Of the networks.
    workers : int, optional
        As for `network_accuracies`.
    piece_bytes : int, default 128 MiB
        Of a piece of rows.

    Returns
    -------
    list of Tensor, each of shape (networks,), float64
        Share of right answers of each network of each examinee.

    Raises
    ------
    ValueError
        If there are no rows, not as many classes as rows, or a value is not finite.
    """
    n = len(X)
    for each in examinees:
        if n == 0 or each.classes.shape != (n,):
            raise ValueError(f"expected one class for each of {n} rows, got {tuple(each.classes.shape)}")
    hits = [torch.zeros(each.stack.count, dtype=torch.float64) for each in examinees]
    step = max(1, piece_bytes // (4 * math.prod(X.shape[1:])))
    for start in range(0, n, step):
        raw = to_tensor(X[start : start + step])
        check_finite(raw, "X", start)
        raw = raw.to(device)
        seen: dict[int, Tensor] = {}
        for index, each in enumerate(examinees):
            if id(each.transform) not in seen:
                seen[id(each.transform)] = each.transform.forward(raw, torch.float32)
            truth = each.classes[start : start + step].to(device)
            shares = network_accuracies(each.stack, [(seen[id(each.transform)], truth)], workers=workers)
            # A share of so many rows is a number of hits.
            hits[index] += (shares.cpu() * len(raw)).round()
    return [found / n for found in hits]
