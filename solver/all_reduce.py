"""Statistics of all processes of a torch.distributed job, summed: for work that already runs under torchrun.

Sums are reduced to the first process and sent back from there, so that every process has the same bits.
"""

import json
from typing import Any

import torch

from .statistics import Statistics


def all_reduce(statistics: Statistics, group: Any = None) -> Statistics:
    """The sum of the statistics of all processes, in every one of them.

    Parameters
    ----------
    statistics : Statistics
        Of the rows of this process, which no other has: see `Shards.part`. Left as it is; may be empty.
    group : torch.distributed.ProcessGroup, optional
        The processes that take part, each of which must call this; by default all.

    Returns
    -------
    Statistics
        The same bits in every process. Shards that any of them left out are listed, those of the first process first.

    Raises
    ------
    ValueError
        If torch.distributed is not initialised; in every process, if encoders or targets differ between them.

    Notes
    -----
    Sends 8 p² + O(p k) bytes to the first process and back; with NCCL by way of the current GPU. A process that has
    failed before must end, or the others wait for it until the time limit of the group: torchrun sees to that.

    Examples
    --------
    Under ``torchrun --nproc-per-node 4 script.py``::

        torch.distributed.init_process_group()
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        part = kd.Shards.of(files).part(rank, world)
        total = kd.all_reduce(kd.collect_statistics(part, n_classes=1000))
    """
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized():
        raise ValueError(
            "torch.distributed is not initialised: call torch.distributed.init_process_group() under torchrun first"
        )
    if distributed.get_rank(group) < 0:
        raise ValueError("this process is not in the group: call all_reduce in those that are")
    size = distributed.get_world_size(group)
    everyone: list[Any] = [None] * size
    distributed.all_gather_object(everyone, (_identity(statistics), statistics.left_out), group=group)
    first = everyone[0][0]
    for rank, (identity, _) in enumerate(everyone):
        # All look at the same list, so that all raise or none does, and nobody waits for who has raised.
        if wrong := [name for name in first if identity[name] != first[name]]:
            raise ValueError(
                f"process {rank} has another {' and '.join(wrong)} than process 0 ({identity[wrong[0]]} and"
                f" {first[wrong[0]]}): use the same data, options and seed everywhere (Shards.part), or like="
            )
    sums = {name: _summed(values, group) for name, values in statistics.sums().items()}
    numbers = torch.tensor([statistics.weight, statistics.count], dtype=torch.float64)
    weight, count = _summed(numbers, group).tolist()
    left_out = dict.fromkeys(shard for _, shards in everyone for shard in shards)
    return statistics.with_sums(sums, weight=weight, count=int(count), left_out=tuple(left_out))


def _identity(statistics: Statistics) -> dict[str, str]:
    encoder, targets = statistics.encoder, statistics.targets
    return {
        "shape": f"{statistics.n_features} features, {statistics.n_outputs} outputs",
        "encoder": "none" if encoder is None else encoder.digest(),
        "targets": "none" if targets is None else json.dumps(targets.parameters()),
    }


def _summed(values: torch.Tensor, group: Any) -> torch.Tensor:
    """Sum of a float64 tensor over the group."""
    distributed = torch.distributed
    nccl = distributed.get_backend(group) == "nccl"
    total = values.to(f"cuda:{torch.cuda.current_device()}") if nccl else values.clone()
    root = 0 if group is None else distributed.get_global_rank(group, 0)
    distributed.reduce(total, root, group=group)
    distributed.broadcast(total, root, group=group)
    return total.cpu()
