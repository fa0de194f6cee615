"""What a cost is asked for and what it is answered with: a problem, its stages, their sums."""

import dataclasses
import math

from ._check import check_count, check_name
from .machine import Machine

FEATURE_MAPS = ("fourier", "fcnn", "identity")
TRANSFORMS = ("none", "standardize")
# Stages that hold their part of a batch at the same time.
_BATCH = ("read", "transform", "features", "sums", "Gram", "cross")


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is to be distilled.

    Attributes
    ----------
    rows, inputs, features, outputs : int
        n, d, p and k.
    value_bytes : int, default 4
        v, of one stored input: 1 (uint8), 2, 4 or 8. Inputs of 8 bytes have float64 features.
    feature_map : {"fourier", "fcnn", "identity"}, default "fourier"
        "fcnn" with one layer.
    row_flops : float, optional
        FLOPs of the features of one row, for any other map.
    transform : {"none", "standardize"}, default "none"
        Already fitted.
    points : int, optional
        m; default one an output.
    test_rows : int, default 10,000
        Rows that the set is evaluated on.
    """

    rows: int
    inputs: int
    features: int
    outputs: int
    value_bytes: int = 4
    feature_map: str = "fourier"
    row_flops: float | None = None
    transform: str = "none"
    points: int | None = None
    test_rows: int = 10_000

    def __post_init__(self) -> None:
        for name in ("rows", "inputs", "features", "outputs"):
            check_count(getattr(self, name), name)
        check_count(self.test_rows, "test_rows", 0)
        if self.points is not None:
            check_count(self.points, "points")
        if self.value_bytes not in (1, 2, 4, 8):
            raise ValueError(f"`value_bytes` must be 1, 2, 4 or 8, got {self.value_bytes!r}")
        check_name(self.feature_map, FEATURE_MAPS, "feature map of a cost")
        check_name(self.transform, TRANSFORMS, "transform of a cost")
        if self.row_flops is not None and not 0 <= self.row_flops < math.inf:
            raise ValueError(f"`row_flops` must be finite and not negative, got {self.row_flops!r}")
        if self.feature_map == "identity" and self.row_flops is None and self.features != self.inputs:
            raise ValueError(
                f"the identity map has as many features as inputs, got {self.features} and {self.inputs}"
            )

    @property
    def feature_bytes(self) -> int:
        """Of one feature, f."""
        return 8 if self.value_bytes == 8 else 4

    @property
    def flops_per_row(self) -> float:
        """Of the features of one row."""
        if self.row_flops is not None:
            return self.row_flops
        return 0.0 if self.feature_map == "identity" else 2.0 * self.inputs * self.features

    @property
    def partial_bytes(self) -> int:
        """S, of the statistics of one tile."""
        p, k = self.features, self.outputs
        return 8 * (p * p + p * k + p + 2 * k)


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage, all workers together.

    Attributes
    ----------
    name : str
    flops : float
    read : float
        Bytes of data read from disk or store.
    network : float
        Bytes between machines, but for what is read.
    seconds : float
        From its start to its end.
    memory : float
        Bytes that it holds on one machine.
    limit : str
        What it waits for: a rate of `Machine`, or "" where it takes no time.
    shared : bool
        Whether workers share it; the others take no less time with more of them.
    """

    name: str
    flops: float
    read: float
    network: float
    seconds: float
    memory: float
    limit: str
    shared: bool


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What `estimate` found.

    Attributes
    ----------
    problem : Problem
    machine : Machine
    workers, cores, tiles : int
        Cores are those of one worker.
    reduction : str
    stages : tuple of Stage
    useful_workers : int
        Fewest workers whose shared stages take no longer than the others, or one or two more where these do not divide
        the tiles; the number of tiles where even as many workers spend most of their time on them.
    """

    problem: Problem
    machine: Machine
    workers: int
    cores: int
    tiles: int
    reduction: str
    stages: tuple[Stage, ...]
    useful_workers: int

    @property
    def seconds(self) -> float:
        """From start to end."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def shared_seconds(self) -> float:
        """Of stages that workers share."""
        return sum(stage.seconds for stage in self.stages if stage.shared)

    @property
    def bottleneck(self) -> Stage:
        """The stage that takes longest."""
        return max(self.stages, key=lambda stage: stage.seconds)

    @property
    def network(self) -> float:
        """Bytes between machines."""
        return sum(stage.network for stage in self.stages)

    @property
    def worker_memory(self) -> float:
        """Most bytes that a worker holds: a batch in all its forms and the sums, or what a merge holds."""
        streaming = sum(stage.memory for stage in self.stages if stage.name in _BATCH)
        return max(streaming, *(stage.memory for stage in self.stages if stage.name.startswith("merge")))

    @property
    def machine_memory(self) -> float:
        """Bytes of all workers of one machine, should they all merge at the same time."""
        beside = min(self.workers, self.tiles, max(1, self.machine.cores // self.cores))
        return beside * self.worker_memory

    @property
    def driver_memory(self) -> float:
        """Most bytes that the machine holds that solves."""
        return max(stage.memory for stage in self.stages if not stage.shared)
