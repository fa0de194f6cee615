"""Accuracies of many networks in one pass over rows."""

from collections.abc import Iterable

import torch
from torch import Tensor

from ..solver._workers import single_core_workers
from ..solver.networks import Network, NetworkStack, apply_stack

# Rows whose activations stay in the cache of one core, and rows of one call on other devices.
_PIECE_ROWS = 32
_STACK_ROWS = 8192
# Rows of one task of a worker: enough tasks for all workers where networks are few.
_TASK_ROWS = 512


def network_accuracies(
    stack: NetworkStack, pieces: Iterable[tuple[Tensor, Tensor]], *, workers: int | None = None
) -> Tensor:
    """Share of rows each network puts into the right class.

    Parameters
    ----------
    stack : NetworkStack
        Networks, evaluated with their running statistics where they have any.
    pieces : iterable of (inputs, classes)
        Transformed inputs (b, ...) in the dtype and on the device of the networks, and int64 classes (b,). Looked at
        once, piece after piece; pieces may be empty.
    workers : int, optional
        Threads on a CPU, by default as many as torch uses. The result does not depend on it.

    Returns
    -------
    Tensor, shape (stack.count,), float64
        On the CPU. The predicted class is that of the largest output, the first of equal ones; of outputs that are
        NaN, as `torch.argmax` has it, the first of these.

    Raises
    ------
    ValueError
        If there are no rows at all, or a piece has not as many classes as rows.
    """
    total = 0
    networks: list[Network] = []
    with single_core_workers(workers) as pool:
        correct = torch.zeros(stack.count, dtype=torch.int64)
        for inputs, classes in pieces:
            if classes.shape != inputs.shape[:1]:
                raise ValueError(
                    f"a piece has {len(inputs)} rows and classes of shape {tuple(classes.shape)}: give one class a row"
                )
            total += len(inputs)
            if inputs.device.type != "cpu":
                rows = max(1, _STACK_ROWS // stack.count)
                for x, c in zip(inputs.split(rows), classes.to(inputs.device).split(rows), strict=True):
                    correct += _stacked_hits(stack, x, c).cpu()
                continue
            networks = networks or [stack.network(i).eval() for i in range(stack.count)]
            tasks = [
                (i, pool.submit(_hits, networks[i], x, c))
                for x, c in zip(inputs.split(_TASK_ROWS), classes.split(_TASK_ROWS), strict=True)
                for i in range(stack.count)
            ]
            for i, task in tasks:
                correct[i] += task.result()
    if total == 0:
        raise ValueError("there are no rows to measure accuracy on: give at least one")
    return correct.double() / total


@torch.inference_mode()
def _hits(network: Network, X: Tensor, classes: Tensor) -> int:
    pairs = zip(X.split(_PIECE_ROWS), classes.split(_PIECE_ROWS), strict=True)
    return sum(int((network(x).argmax(1) == c).sum()) for x, c in pairs)


@torch.inference_mode()
def _stacked_hits(stack: NetworkStack, X: Tensor, classes: Tensor) -> Tensor:
    return (apply_stack(stack, X).argmax(-1) == classes).sum(1)
