r"""What it costs to distil n rows: FLOPs, bytes, seconds and memory of every stage, and how many workers help.

The work is `collect_statistics` over T tiles of rows on w workers, and `distill_statistics` on one machine. A worker
has c cores; M machines have room for them. With d inputs of v bytes, p features of f bytes (8 for inputs of 8, else 4),
k outputs and m points,

====================  =======================================================  ====================================
stage                 FLOPs                                                    bytes
====================  =======================================================  ====================================
start                                                                          8 d p sent to each machine: the map
read                                                                           n (v d + 8), once
transform                                                                      n d (v + f); "standardize" 4 n d f more
features              fourier, fcnn: 2 n d p, and n p cosines; or as given     fcnn, given: 3 n p f
sums                                                                           n p (24, or 16 for f = 8) + 64 n k
Gram                  n (p² + Σ w²) for panels w ≤ 384: about n p (p + 384)
cross                 2 n p k, or the time that n p features take with k = 1
merge, tiles                                                                   T - w merges
merge, rounds                                                                  log₂ w merges that wait for each other
eigen-decomposition   9 p³
ridge                 4 p² k
points                4 k p² + 3 R(p, k) + 3 R(p, m), and 2 d p² for p ≤ d
evaluation            n_test (features + 2 p k)
====================  =======================================================  ====================================

R(a, b) = 6 a b² + 20 b³ for b ≤ a is the thin singular value decomposition (Golub and Van Loan, Matrix Computations,
fig. 8.6.1; 9 p³: there, section 8.3).

**Merging.** The sums of a tile have :math:`S = 8 (p^2 + p k + p + 2 k)` bytes. The tree of the executors merges those
of neighbours wherever there is room, so one of two comes from another machine with probability (M - 1) / M: T S (M - 1)
/ M bytes in all, shared by the links, and at the end one S a round on the path that all wait for. A merge moves 3 S
through memory, and 9 S between processes. An all-reduce (`torch.distributed`, one sum a worker) has each machine send
2 S (w - 1) / w once.

**Time.** Stages run one after the other, as the code does, so seconds add up; reading does not hide behind computing.
What is done for each row is shared by the workers, the other stages are not and bound the speed-up (Amdahl):
`Estimate.useful_workers` is where both take equally long, and twice as many would save at most a quarter of the time.
Rates do not depend on sizes here, so small problems (p below 500, say) are slower than modelled.
"""

import math
from collections.abc import Callable

from ._check import check_count, check_name
from ._cost_parts import Estimate, Problem, Stage
from .machine import Machine, gram_flops
from .shards import TILE_ROWS
from .source import batch_rows

__all__ = ["REDUCTIONS", "Estimate", "Machine", "Problem", "Stage", "estimate"]

REDUCTIONS = ("tree", "all-reduce")
_MOST_WORKERS = 10**7


def estimate(
    problem: Problem,
    machine: Machine,
    workers: int = 1,
    *,
    cores: int | None = None,
    tiles: int | None = None,
    reduction: str = "tree",
) -> Estimate:
    """Cost of distilling from statistics.

    Parameters
    ----------
    problem : Problem
    machine : Machine
        Every worker runs on one like it.
    workers : int, default 1
    cores : int, optional
        Of each worker; default all of its machine. With fewer, workers share machines: with their links and disks.
    tiles : int, optional
        Parts that the rows are cut into; default those of `Shards`, 32,768 rows each. Workers beyond their number have
        nothing to do, and a number that the workers do not divide leaves some of them waiting for the last.
    reduction : {"tree", "all-reduce"}, default "tree"

    Returns
    -------
    Estimate

    Raises
    ------
    ValueError
        If numbers are not positive, or there are more tiles than rows.

    Examples
    --------
    >>> from kernel_distill.solver.cost import Machine, Problem, estimate
    >>> found = estimate(Problem(1_000_000, 784, 2048, 10), Machine(), workers=8)
    >>> found.bottleneck.name, found.problem.partial_bytes
    ('Gram', 33734816)
    """
    check_count(workers, "workers")
    cores = machine.cores if cores is None else check_count(cores, "cores")
    if tiles is not None and check_count(tiles, "tiles") > problem.rows:
        raise ValueError(f"`tiles` must not exceed the {problem.rows} rows, got {tiles}")
    check_name(reduction, REDUCTIONS, "reduction")
    parts = tiles or math.ceil(problem.rows / TILE_ROWS)

    def stages_of(count: int) -> tuple[Stage, ...]:
        return _stages(problem, machine, count, cores, parts, reduction)

    return Estimate(
        problem=problem,
        machine=machine,
        workers=workers,
        cores=cores,
        tiles=parts,
        reduction=reduction,
        stages=stages_of(workers),
        useful_workers=_useful(stages_of, min(parts, _MOST_WORKERS), max(1, machine.cores // cores)),
    )


def _useful(stages_of: Callable[[int], tuple[Stage, ...]], most: int, beside: int) -> int:
    """Fewest workers whose shared stages take no longer than the rest.

    More workers shorten what they share, but for the second, with whom sums go between processes, and the first on
    another machine, with whom they go over the network: so one worker, one machine, and more are searched in turn.
    Where workers do not divide the tiles it may be one or two too many.
    """

    def enough(workers: int) -> bool:
        stages = stages_of(workers)
        shared = sum(stage.seconds for stage in stages if stage.shared)
        return 2 * shared <= sum(stage.seconds for stage in stages)

    low, high = 0, most
    for bound in (1, beside):
        if low < bound < most:
            if enough(bound):
                high = bound
                break
            low = bound
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _stages(
    problem: Problem, machine: Machine, workers: int, cores: int, tiles: int, reduction: str
) -> tuple[Stage, ...]:
    busy = min(workers, tiles)
    beside = min(busy, max(1, machine.cores // cores))
    machines = math.ceil(busy / beside)
    # Tiles are alike and a worker takes one after the other: the last round may find some workers without one.
    turns = math.ceil(tiles / busy)
    sent = machines * _map_bytes(problem) if machines > 1 else 0.0
    start = (machine.start_up if workers > 1 else 0.0) + sent / machines / machine.network
    return (
        _alone("start", _map_bytes(problem), 0, sent, start_up=start),
        *_streaming(problem, machine, cores, turns / tiles, beside),
        *_merging(problem, machine, cores, busy, machines, tiles, reduction),
        *_solving(problem, machine),
    )


def _streaming(
    problem: Problem, machine: Machine, cores: int, share: float, beside: int
) -> tuple[Stage, ...]:
    """What is done for each row, on the worker with the largest share of them."""
    n, d, p, k = problem.rows, problem.inputs, problem.features, problem.outputs
    v, f, batch = problem.value_bytes, problem.feature_bytes, min(n, batch_rows(p, d))
    bytes_in = n * (v * d + 8)
    own, together = bytes_in * share / (machine.disk / beside), bytes_in / machine.storage
    place = "storage" if together > own else "disk"
    passes = n * d * (v + f + (4 * f if problem.transform == "standardize" else 0))
    made = {"features": n * problem.flops_per_row / (machine.gram if f == 8 else machine.features)}
    if problem.feature_map == "fourier" and problem.row_flops is None:
        made["cosines"] = n * p / machine.cosines
    elif problem.flops_per_row:
        made["bandwidth"] = 3 * f * n * p / machine.bandwidth
    sums = n * (p * (24 if f == 4 else 16) + 64 * k)
    gram, cross = gram_flops(n, p), 2.0 * n * p * k
    by_columns, by_rows = cross / machine.gram, n * p / machine.thin
    crossed = {"gram": by_columns} if by_columns > by_rows else {"thin": by_rows}

    def stage(name: str, memory: float, flops: float, **waits: float) -> Stage:
        seconds = sum(waits.values()) * share / cores
        return Stage(name, flops, 0, 0, seconds, memory, _limit(waits), shared=True)

    return (
        Stage("read", 0, bytes_in, 0, max(own, together), batch * (v * d + 8), place, place == "disk"),
        stage("transform", 2 * batch * d * f, 0, bandwidth=passes / machine.bandwidth),
        stage("features", f * batch * p + 1.5 * _map_bytes(problem), n * problem.flops_per_row, **made),
        stage("sums", batch * (8 * p * (f == 4) + 16 * k), 0, bandwidth=sums / machine.bandwidth),
        stage("Gram", 8 * p * p, gram, gram=gram / machine.gram),
        stage("cross", 8 * p * k, cross, **crossed),
    )


def _merging(
    problem: Problem,
    machine: Machine,
    cores: int,
    busy: int,
    machines: int,
    tiles: int,
    reduction: str,
) -> tuple[Stage, ...]:
    """As many sums of tiles as there are workers' turns; then those of workers, in rounds that all wait for."""
    S, remote = problem.partial_bytes, (machines - 1) / machines
    own = math.ceil(tiles / busy) - 1
    if reduction == "tree":
        # Between processes sums are copied into shared memory and out of it.
        passes, held = (9 * S, 4 * S) if busy > 1 else (3 * S, 2 * S)
        rounds = math.ceil(math.log2(busy))
        sent = (tiles - busy) * S * remote, busy * S * remote
        on_link = own * S * remote * math.ceil(busy / machines), _crossings(machines) * S
    else:
        passes, held = 3 * S, 2 * S
        rounds = (busy - 1) / busy
        around = 2 * S * rounds * (machines > 1)
        sent, on_link = (0.0, machines * around), (0.0, around)
    added = passes / machine.bandwidth / cores
    waits = {"bandwidth": own * added, "network": on_link[0] / machine.network}
    last = {"bandwidth": rounds * added, "network": on_link[1] / machine.network}
    return (
        Stage(
            "merge, tiles", 0, 0, sent[0], sum(waits.values()), held * (own > 0), _limit(waits), shared=True
        ),
        _alone("merge, rounds", held * (busy > 1), 0, sent[1], **last),
    )


def _crossings(machines: int) -> int:
    """Rounds of a tree that go from machine to machine, and the way of the last sum to the driver."""
    return math.ceil(math.log2(machines)) + 1 if machines > 1 else 0


def _solving(problem: Problem, machine: Machine) -> tuple[Stage, ...]:
    """What one machine does with the sums, with all its cores."""
    d, p, k = problem.inputs, problem.features, problem.outputs
    m = k if problem.points is None else problem.points
    S, sent, everything = problem.partial_bytes, _map_bytes(problem), machine.gram * machine.cores
    ridge = 4.0 * p * p * k
    points = 4.0 * k * p * p + 3 * _thin_svd(p, k) + 3 * _thin_svd(p, m) + (2.0 * d * p * p if p <= d else 0)
    test = problem.test_rows * (problem.flops_per_row + 2.0 * p * k)
    batch = min(problem.test_rows, batch_rows(p, d))
    return (
        _alone("eigen-decomposition", 5 * 8.0 * p * p, 9.0 * p**3, eigen=9.0 * p**3 / machine.eigen),
        _alone("ridge", 2 * S, ridge, gram=ridge / everything),
        _alone("points", S + 32.0 * m * p + sent, points, eigen=points / machine.eigen),
        _alone("evaluation", 8.0 * batch * p + sent, test, gram=test / everything),
    )


def _alone(name: str, memory: float, flops: float, sent: float = 0.0, **waits: float) -> Stage:
    return Stage(name, flops, 0, sent, sum(waits.values()), memory, _limit(waits), shared=False)


def _map_bytes(problem: Problem) -> float:
    """Of the weights of a feature map, float64."""
    made = problem.feature_map != "identity" and problem.row_flops is None
    return 8.0 * problem.inputs * problem.features if made else 0.0


def _thin_svd(a: int, b: int) -> float:
    """FLOPs of the thin singular value decomposition of (a, b)."""
    long, short = max(a, b), min(a, b)
    return 6.0 * long * short**2 + 20.0 * short**3


def _limit(waits: dict[str, float]) -> str:
    """What takes longest."""
    limit = max(waits, key=lambda key: waits[key])
    return limit if waits[limit] > 0 else ""
