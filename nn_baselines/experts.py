r"""Networks trained on all rows, and the trajectories of their parameters.

Training is that on a set (`schedule`, `update`, a `TrainingRecipe`), with batches of training rows in place of points:
every epoch goes through all rows in a new order. It serves the accuracy of the full data, the trained network of
Deep-KKT, and the experts of trajectory matching, which are networks of their own weights and orders, kept after every
epoch (``buffer.py`` of Cazenavette et al., CVPR 2022: 100 networks, 50 epochs at a rate of 0.01 without momentum).
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..kernels.augmentation import augment_images, draw_augmentation
from ..solver._check import check_count, check_finite
from ..solver.conv_networks import repeatable
from ..solver.learners.rows import TrainingRows
from ..solver.networks import Network, NetworkSpec, build_network
from ..solver.progress import track
from ..solver.store import read_file, write_file
from .losses import target_rows
from .network_gradient import flat_parameters
from .schedule import make_schedule, row_orders
from .training import batch_gradient
from .training_recipes import TrainingRecipe
from .update import new_moments, step_coefficients, update

KIND = "trajectory"


def train_expert(
    rows: TrainingRows,
    spec: NetworkSpec,
    recipe: TrainingRecipe,
    *,
    seed: int,
    stream: str = "expert",
    single: bool = True,
    on_epoch: Callable[[int, Network], object] | None = None,
    progress: bool | None = False,
) -> Network:
    """A network trained on all training rows.

    Parameters
    ----------
    rows : TrainingRows
        Arithmetic is in their dtype on their device.
    spec : NetworkSpec
    recipe : TrainingRecipe
        For the full data as in dataset condensation, "dc-bench"; for Deep-KKT, "adam"
        at 1e-3 with a weight decay of 0.005 and ``augment="flip_crop"``, `single` off.
    seed : int
    stream : str, default "expert"
        Weights, orders and augmentation depend on (seed, stream) alone.
    single : bool, default True
        One random operation of ``recipe.augment`` for each batch, as published; False: all of them for every image.
    on_epoch : callable, optional
        Called with the number of epochs so far, from 0, and the network, which it must not change.
    progress : bool, optional
        As for `track`; silent by default.

    Returns
    -------
    Network
        In evaluation mode.

    Raises
    ------
    ValueError
        If the network or the recipe do not fit the rows, or training diverged.

    Notes
    -----
    Two passes over all rows an epoch, forward and backward. The same bits again on the same device and threads.
    """
    if (spec.input_shape, spec.n_outputs) != (rows.transform.input_shape, rows.targets.n_outputs):
        raise ValueError(
            f"the network takes {spec.input_shape} to {spec.n_outputs} outputs, the rows have"
            f" {rows.transform.input_shape} and {rows.targets.n_outputs}"
        )
    if recipe.augment and len(spec.input_shape) != 3:
        raise ValueError(
            f'recipe {recipe.name!r} augments images (c, h, w), got rows of shape {spec.input_shape}: use augment=""'
        )
    network = build_network(spec, seed, f"{stream}.network", device=rows.device, dtype=rows.dtype).train()
    parameters: list[Tensor] = list(network.parameters())
    schedule = make_schedule(recipe, rows.n)
    steps = iter(step_coefficients(recipe, schedule).to(rows.device, rows.dtype))
    moments = new_moments(recipe, parameters)
    if on_epoch is not None:
        on_epoch(0, network)
    with repeatable():
        for epoch in track(range(schedule.epochs), "training", schedule.epochs, show=progress):
            if epoch in schedule.restarts:
                moments = new_moments(recipe, parameters)
            order = row_orders(rows.n, epoch, range(1), seed=seed, stream=stream)[0]
            for number, index in enumerate(order.split(recipe.batch_size)):
                X = rows.inputs(index)
                if recipe.augment:
                    drawn = draw_augmentation(
                        recipe.augment,
                        torch.full((len(index),), number),
                        rows.transform.input_shape,  # pyright: ignore[reportArgumentType]
                        seed=seed,
                        stream=f"{stream}.augment.{epoch}",
                        single=single,
                    )
                    X = augment_images(X, drawn.to(rows.device))
                targets = target_rows(recipe, rows.outputs(index)).to(X)
                gradients = batch_gradient(recipe, network, parameters, X, targets)
                update(recipe, parameters, gradients, moments, next(steps))
            if on_epoch is not None:
                on_epoch(epoch + 1, network)
    if not torch.isfinite(flat_parameters(network)).all():
        raise ValueError(f"training on all rows diverged at a rate of {recipe.rate}: lower it")
    return network.eval()


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Parameters of experts after each epoch, in memory or in files, of which only what is asked for is read.

    Attributes
    ----------
    spec : NetworkSpec
    epochs : int
        Of training: snapshots are numbered from 0 to this.
    identity : dict
        Plain JSON that tells how they were made: network, recipe, seed, rows.
    parts : tuple of Tensor or Path
        Of each expert: snapshots (epochs + 1, P), or the file that holds them.
    """

    spec: NetworkSpec
    epochs: int
    identity: dict[str, Any]
    parts: tuple[Tensor | Path, ...]

    def __len__(self) -> int:
        return len(self.parts)

    def snapshot(self, expert: int, epoch: int) -> Tensor:
        """`flat_parameters` (P,) of an expert after so many epochs, on the CPU."""
        part = self.parts[expert]
        if isinstance(part, Tensor):
            return part[epoch]
        import safetensors

        with safetensors.safe_open(part, framework="pt") as file:
            return file.get_slice("snapshots")[epoch].clone()


def expert_trajectories(
    rows: TrainingRows,
    spec: NetworkSpec,
    recipe: TrainingRecipe,
    *,
    count: int,
    seed: int,
    folder: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> Trajectories:
    """Trajectories of experts, trained or taken from a folder.

    Parameters
    ----------
    rows, spec, recipe
        As for `train_expert`.
    count : int
        Number of experts: expert i is the same for every count.
    seed : int
    folder : path, optional
        One .safetensors file an expert, written whole as soon as it is trained; made if it does not exist. Experts
        that are there already are taken as they are, so that an interrupted call goes on, and a larger one adds to
        it. By default all are kept in memory.
    progress : bool, optional
        As for `track`.

    Returns
    -------
    Trajectories

    Raises
    ------
    ValueError
        As `train_expert`, and if a file of the folder is of other experts than these, or damaged.

    Notes
    -----
    4 (epochs + 1) P bytes an expert: 65 MB for ConvNet-3 and 50 epochs.
    """
    check_count(count, "count")
    identity = {
        "network": spec.parameters(),
        "recipe": recipe.model_dump(mode="json", exclude={"name", "network_params", "fresh"}),
        "seed": seed,
        "rows": rows.identity,
    }
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
    parts: list[Tensor | Path] = []
    epochs = make_schedule(recipe, rows.n).epochs
    for index in track(range(count), "experts", count, show=progress):
        header = {"expert": index, **identity}
        path = None if folder is None else Path(folder) / f"expert-{index:04d}.safetensors"
        if path is not None and path.exists():
            _check_file(path, header)
            parts.append(path)
            continue
        kept: list[Tensor] = []
        train_expert(
            rows,
            spec,
            recipe,
            seed=seed,
            stream=f"expert.{index}",
            on_epoch=lambda epoch, network, kept=kept: kept.append(flat_parameters(network).cpu()),
        )
        snapshots = torch.stack(kept)
        if path is None:
            parts.append(snapshots)
        else:
            # Another process may have been faster: its file would be equal.
            write_file(path, KIND, header, {"snapshots": snapshots}, force=True)
            parts.append(path)
    return Trajectories(spec, epochs, identity, tuple(parts))


def _check_file(path: Path, header: dict[str, Any]) -> None:
    """Refuse a file that is damaged or of another expert."""
    found, tensors = read_file(path, KIND)
    for key in header:
        if found.get(key) != header[key]:
            raise ValueError(
                f"{path} is of experts with another {key}: {found.get(key)}, wanted {header[key]}; choose another"
                " folder"
            )
    check_finite(tensors["snapshots"], "snapshots")
