"""Training many networks at once on one small set.

Network i starts from its own weights and sees its own order of rows and its own augmentation, all of which depend on
(seed, stream, i) alone: the same network whichever others are trained beside it.

- "serial" trains network after network, several at a time, each on one core. Where a batch is larger than
  `PIECE_ROWS` and rows do not influence each other (no batch norm), its gradient is the sum of those of pieces whose
  activations stay in the cache.
- "stacked" trains all in one call per step, weights along a first axis, as many at a time as fit `STACK_BYTES`; on a
  CUDA device the step is a CUDA graph.

Both are the same formulas (`losses`, `update`), and so the same networks up to rounding. The first gives the same bits
for any number of workers.
"""

import dataclasses
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..kernels.augmentation import augment_images, draw_augmentation
from ..solver._check import check_count, check_finite, check_name
from ..solver._workers import single_core_workers
from ..solver.conv_networks import repeatable
from ..solver.networks import Network, NetworkSpec, NetworkStack, apply_stack, draw_networks
from ._captured import CapturedStep
from .draws import Draws
from .losses import row_losses, target_rows
from .pieces import gradient_in_pieces
from .schedule import Schedule, make_schedule, row_orders
from .training_recipes import TrainingRecipe, training_recipe
from .update import new_moments, step_coefficients, update

# A constant, not what is free: so the same networks are stacked, and rounded alike, wherever there is enough.
STACK_BYTES = 8 * 2**30

# Called after each epoch: its number, the numbers of the networks trained at that moment, and the networks.
OnEpoch = Callable[[int, range, NetworkStack], None]


def train_networks(
    spec: NetworkSpec,
    X: Tensor,
    Y: Tensor,
    recipe: str | TrainingRecipe,
    *,
    count: int,
    seed: int,
    stream: str = "train",
    strategy: str = "auto",
    workers: int | None = None,
    draw: Draws | None = None,
    on_epoch: OnEpoch | None = None,
    start: NetworkStack | None = None,
    met: Tensor | None = None,
) -> NetworkStack:
    """Train networks on a set.

    Parameters
    ----------
    spec : NetworkSpec
        `network_params` of a recipe are for whoever makes it.
    X : Tensor, shape (m, *spec.input_shape), floating point
        Transformed inputs. Networks are trained on its device and in its dtype.
    Y : Tensor, shape (m, spec.n_outputs)
        Target rows; what they mean is the recipe's `labels`.
    recipe : str or TrainingRecipe
    count : int
        Number of networks.
    seed : int
    stream : str, default "train"
        Trainings of different names are independent.
    strategy : {"auto", "serial", "stacked"}, default "auto"
        "stacked" on a CUDA device, otherwise "serial".
    workers : int, optional
        Threads of "serial" on a CPU, by default as many as torch uses.
    draw : Draws, optional
        Of the distributions that the points stand for: every epoch has X and, with the same targets, what is drawn
        for it, which is the same for all networks. Its rows count like others in batches and schedule.
    on_epoch : callable, optional
        Called as ``on_epoch(epoch, networks, stack)`` after each epoch with the numbers of the networks just trained
        and their weights, which go on changing. Of "serial", from several threads at once.
    start : NetworkStack, optional
        `count` networks of `spec` to start from, which stay as they are; by default drawn by seed and stream.
    met : Tensor, shape (count, 2), float64, on the CPU, optional
        Is filled with the mean loss and the share of rows put into the right class of each network over the last
        epoch, as they were met: each batch before its step.

    Returns
    -------
    NetworkStack
        Network i depends on (seed, stream, i) and the arguments, not on `count` or `workers`; of "stacked", up to
        rounding.

    Raises
    ------
    ValueError
        If shapes, names or numbers do not fit, values are not finite, or rows that are no images are to be augmented.

    Notes
    -----
    A network that diverges stays as it is, with weights that are not finite. Memory: "serial", activations of
    `PIECE_ROWS` rows for each worker (of a batch with batch norm); "stacked", of `STACK_BYTES`.
    """
    recipe = training_recipe(recipe)
    check_count(count, "count")
    check_name(strategy, ("auto", "serial", "stacked"), "strategy")
    _check_set(spec, X, Y, recipe)
    targets = target_rows(recipe, Y).to(X)
    if draw is not None:
        _check_draw(draw, X)
        targets = targets.repeat(1 + draw.count, 1)
    schedule = make_schedule(recipe, len(targets))
    job = _Job(spec, X, targets, draw, recipe, schedule, seed, stream, on_epoch, met)
    if start is None:
        start = draw_networks(spec, count, seed, f"{stream}.network", device=X.device, dtype=X.dtype)
    _check_start(spec, start, count, met)
    if strategy == "auto":
        strategy = "stacked" if X.is_cuda else "serial"
    with repeatable():
        if strategy == "stacked":
            trained = _stacked(job, start)
        else:
            trained = _serial(job, start, workers if X.device.type == "cpu" else 1)
    if met is not None:
        met /= len(targets)
    return trained


@dataclasses.dataclass(frozen=True)
class _Job:
    """What all networks have in common.

    `targets` are those of the rows of an epoch: of X, and of what is drawn.
    """

    spec: NetworkSpec
    X: Tensor
    targets: Tensor
    draw: Draws | None
    recipe: TrainingRecipe
    schedule: Schedule
    seed: int
    stream: str
    on_epoch: OnEpoch | None
    met: Tensor | None

    def coefficients(self) -> Tensor:
        return step_coefficients(self.recipe, self.schedule).to(self.X)

    def batches(self, epoch: int, networks: range) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs (networks * b, ...) and targets (networks * b, k) of each step of an epoch."""
        X = self.X if self.draw is None else torch.cat([self.X, self.draw(epoch).to(self.X)])
        n, size = len(X), self.recipe.batch_size
        orders = row_orders(n, epoch, networks, seed=self.seed, stream=self.stream).to(self.X.device)
        places = [range(start, min(start + size, n)) for start in range(0, n, size)]
        augmentation, first = None, 0
        if self.recipe.augment:
            c, h, w = X.shape[1:]
            numbers = torch.arange(networks.start, networks.stop) * len(places)
            groups = [(numbers + b).repeat_interleave(len(place)) for b, place in enumerate(places)]
            augmentation = draw_augmentation(
                self.recipe.augment,
                torch.cat(groups),
                (c, h, w),
                seed=self.seed,
                stream=f"{self.stream}.augment.{epoch}",
            ).to(self.X.device)
        for place in places:
            rows = orders[:, place.start : place.stop].flatten()
            inputs = X[rows]
            if augmentation is not None:
                inputs = augment_images(inputs, augmentation[first : first + len(rows)])
            yield inputs, self.targets[rows]
            first += len(rows)

    def finished(self, epoch: int, networks: range, stack: Callable[[], NetworkStack]) -> None:
        if self.on_epoch is not None:
            self.on_epoch(epoch, networks, stack())


def _serial(job: _Job, stack: NetworkStack, workers: int | None) -> NetworkStack:
    coefficients = job.coefficients()
    stopped = threading.Event()

    def train(number: int) -> Network:
        network = stack.network(number).train().requires_grad_(True)
        parameters = list(network.parameters())
        moments = new_moments(job.recipe, parameters)
        steps = itertools.count()
        for epoch in range(job.schedule.epochs):
            if stopped.is_set():
                break
            if epoch in job.schedule.restarts:
                moments = new_moments(job.recipe, parameters)
            met = job.met[number] if job.met is not None and epoch + 1 == job.schedule.epochs else None
            for inputs, targets in job.batches(epoch, range(number, number + 1)):
                gradients = batch_gradient(job.recipe, network, parameters, inputs, targets, met)
                update(job.recipe, parameters, gradients, moments, coefficients[next(steps)])
            job.finished(epoch, range(number, number + 1), lambda: NetworkStack.of([network]))
        return network

    with single_core_workers(workers) as pool:
        try:
            return NetworkStack.of(list(pool.map(train, range(stack.count))))
        finally:
            stopped.set()


def batch_gradient(
    recipe: TrainingRecipe,
    network: Network,
    parameters: Sequence[Tensor],
    inputs: Tensor,
    targets: Tensor,
    met: Tensor | None = None,
) -> list[Tensor]:
    """Gradient of a recipe's mean loss of a batch; the sums of losses and hits are added to `met` (2,)."""

    def loss_of(rows: slice) -> Tensor:
        outputs = network(inputs[rows])
        losses = row_losses(recipe, outputs, targets[rows])
        if met is not None:
            _add_met(met, losses, outputs, targets[rows])
        return losses.sum() / len(inputs)

    return gradient_in_pieces(network, inputs, parameters, loss_of)


@torch.no_grad()
def _add_met(met: Tensor, losses: Tensor, outputs: Tensor, targets: Tensor) -> None:
    """Add sums of losses and hits to `met` (..., 2)."""
    met[..., 0] += losses.sum(-1)
    met[..., 1] += (outputs.argmax(-1) == targets.argmax(-1)).sum(-1)


def _stacked(job: _Job, stack: NetworkStack) -> NetworkStack:
    size = min(len(job.targets), job.recipe.batch_size)
    together = max(1, STACK_BYTES // (size * _bytes_per_row(stack.network(0), job.X[:2])))
    numbers = torch.arange(stack.count).split(together)
    parts = [_train_together(job, stack, range(int(part[0]), int(part[-1]) + 1)) for part in numbers]
    join = {
        name: {key: torch.cat([getattr(part, name)[key] for part in parts]) for key in getattr(stack, name)}
        for name in ("parameters", "buffers")
    }
    return dataclasses.replace(stack, **join)


def _train_together(job: _Job, stack: NetworkStack, networks: range) -> NetworkStack:
    """Networks of a stack, trained in one call per step."""
    rows = slice(networks.start, networks.stop)
    weights = {key: value[rows].detach().clone() for key, value in stack.parameters.items()}
    buffers = {key: value[rows].clone() for key, value in stack.buffers.items()}
    live = {key: value.requires_grad_() for key, value in weights.items()}
    part = dataclasses.replace(stack, parameters=live, buffers=buffers)
    parameters = list(live.values())
    moments = new_moments(job.recipe, parameters)
    met = None if job.met is None else torch.zeros(len(networks), 2, dtype=job.met.dtype, device=job.X.device)

    def step(inputs: Tensor, targets: Tensor, coefficients: Tensor) -> None:
        with torch.enable_grad():
            outputs = apply_stack(part, inputs, training=True)
            losses = row_losses(job.recipe, outputs, targets)
            gradients = torch.autograd.grad(losses.sum() / inputs.shape[1], parameters)
        if met is not None:
            _add_met(met, losses, outputs, targets)
        update(job.recipe, parameters, gradients, moments, coefficients)

    advance = CapturedStep(step) if job.X.is_cuda else step
    coefficients, steps = job.coefficients(), itertools.count()
    count = len(networks)
    for epoch in range(job.schedule.epochs):
        if epoch in job.schedule.restarts:
            for value in (value for moment in moments for value in moment):
                value.zero_()
        if met is not None:
            met.zero_()  # the last epoch's stay
        for inputs, targets in job.batches(epoch, networks):
            x, y = inputs.unflatten(0, (count, -1)), targets.unflatten(0, (count, -1))
            advance(x, y, coefficients[next(steps)])
        job.finished(epoch, networks, lambda: part)
    if met is not None and job.met is not None:
        job.met[rows] = met.cpu()
    return dataclasses.replace(part, parameters={key: value.detach() for key, value in live.items()})


def _bytes_per_row(network: Network, X: Tensor) -> int:
    """Bytes that a row's activations take until the backward pass."""
    own = {parameter.data_ptr() for parameter in network.parameters()}
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        if value.data_ptr() not in own:
            kept[value.data_ptr()] = value.nbytes
        return value

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        network.eval().requires_grad_(True)(X)
    return max(1, sum(kept.values()) // len(X))


def _check_set(spec: NetworkSpec, X: Tensor, Y: Tensor, recipe: TrainingRecipe) -> None:
    if X.ndim == 0 or len(X) == 0 or tuple(X.shape[1:]) != spec.input_shape:
        raise ValueError(
            f"`X` must hold one or more rows of shape {spec.input_shape}, as the network takes, got {tuple(X.shape)}"
        )
    if not X.is_floating_point():
        raise ValueError(f"`X` must be floating point, got {X.dtype}: transform it first")
    if tuple(Y.shape) != (len(X), spec.n_outputs):
        raise ValueError(f"`Y` must have shape {(len(X), spec.n_outputs)}, got {tuple(Y.shape)}")
    if not Y.is_floating_point():
        raise ValueError(f"`Y` must be floating point, got {Y.dtype}: give one-hot rows for classes")
    if recipe.augment and X.ndim != 4:
        raise ValueError(
            f'recipe {recipe.name!r} augments images (c, h, w), got rows of shape {spec.input_shape}: use augment=""'
        )
    check_finite(X, "X")
    check_finite(Y, "Y")


def _check_start(spec: NetworkSpec, start: NetworkStack, count: int, met: Tensor | None) -> None:
    if start.spec != spec or start.count != count:
        raise ValueError(
            f"`start` must hold {count} networks {spec}, got {start.count} networks {start.spec}"
        )
    if met is None:
        return
    if met.shape != (count, 2) or met.dtype != torch.float64 or met.device.type != "cpu":
        raise ValueError(
            f"`met` must be float64 of shape {(count, 2)} on the CPU, got {met.dtype} {tuple(met.shape)}"
        )
    met.zero_()


def _check_draw(draw: Draws, X: Tensor) -> None:
    found = (len(draw.distribution), *draw.distribution.input_shape)
    if found != tuple(X.shape):
        raise ValueError(
            f"`draw` must be of {len(X)} distributions over inputs of {tuple(X.shape[1:])}, one for each row of `X`,"
            f" got {found[0]} over {found[1:]}"
        )
