"""A trained network that predicts from raw inputs and knows its own file: what Deep-KKT learns from."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..solver.encoder import Encoder
from ..solver.feature_maps import make_feature_map
from ..solver.learners.rows import TrainingRows
from ..solver.model import Model
from ..solver.networks import Network, NetworkSpec, NetworkStack
from ..solver.networks.network import network_of
from ..solver.store import read_file, write_file
from ..solver.targets import Targets
from .accuracy import network_accuracies
from .experts import train_expert
from .training_recipes import TrainingRecipe

_KIND = "trained-network"
_PREFIX = "network."
# Rows that pass through the network together: on a CPU their activations stay in the cache.
_PIECE_ROWS = 32


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedNetwork(Model[Encoder]):
    """A network, the transform of its inputs, and what its outputs mean.

    Attributes
    ----------
    encoder : Encoder
        The transform, and no features.
    targets : Targets
        Classes, in the order of the outputs.
    network : Network
        In evaluation mode, on the CPU.
    class_names : tuple of str or None
    provenance : dict
        How it was trained, as plain JSON.
    """

    encoder: Encoder
    targets: Targets
    network: Network
    class_names: tuple[str, ...] | None = None
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        spec = self.network.spec
        shape = "x".join(map(str, spec.input_shape))
        return f"TrainedNetwork({spec.name} for {shape}, {spec.n_outputs} classes)"

    @property
    def width(self) -> int:
        return self.network.n_features

    def scores(self, encoded: Tensor) -> Tensor:
        rows = encoded.reshape(len(encoded), *self.network.spec.input_shape)
        rows = rows.to(next(self.network.parameters()).dtype)
        with torch.no_grad():
            found = [self.network(piece) for piece in rows.split(_PIECE_ROWS)]
        return torch.cat(found).double()

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write one .safetensors file.

        Raises
        ------
        FileExistsError
            If `path` exists and `force` is not set.
        """
        header = {
            "network": self.network.spec.parameters(),
            "encoder": self.encoder.parameters(),
            "targets": self.targets.parameters(),
            "class_names": self.class_names,
            "provenance": self.provenance,
        }
        weights = {f"{_PREFIX}{name}": value for name, value in self.network.state_dict().items()}
        write_file(path, _KIND, header, {**weights, **self.encoder.tensors()}, force=force)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "TrainedNetwork":
        """Read what `save` wrote, bit for bit.

        Raises
        ------
        FileNotFoundError, ValueError
            If there is no such file, or it is truncated, of another kind or version, or inconsistent.
        """
        header, tensors = read_file(path, _KIND)
        try:
            spec = NetworkSpec.restore(header["network"])
            weights = {
                name.removeprefix(_PREFIX): tensors.pop(name)
                for name in list(tensors)
                if name.startswith(_PREFIX)
            }
            network = network_of(spec, weights).eval()
            encoder = Encoder.restore(header["encoder"], tensors)
            targets = Targets.restore(header["targets"])
            names, provenance = header["class_names"], header["provenance"]
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(f"{os.fspath(path)} is not a consistent trained network: {error!r}") from None
        if (spec.input_shape, spec.n_outputs) != (encoder.transform.input_shape, targets.n_outputs):
            raise ValueError(
                f"{os.fspath(path)} is inconsistent: the network takes {spec.input_shape} to {spec.n_outputs} outputs,"
                f" its data are {encoder.transform.input_shape} of {targets.n_outputs} classes"
            )
        return cls(encoder, targets, network, None if names is None else tuple(names), provenance)


def fit_network(
    rows: TrainingRows,
    spec: NetworkSpec,
    recipe: TrainingRecipe,
    *,
    seed: int,
    single: bool = True,
    class_names: tuple[str, ...] | None = None,
    provenance: dict[str, Any] | None = None,
    progress: bool | None = None,
) -> TrainedNetwork:
    """Train a network on all training rows; arguments and errors as in `train_expert`.

    Its accuracy on the rows held out, where there are any, is "heldout_score" of its provenance.
    """
    network = train_expert(rows, spec, recipe, seed=seed, single=single, progress=progress)
    shape = rows.transform.input_shape
    made = {
        "recipe": recipe.model_dump(mode="json"),
        "single": single,
        "seed": seed,
        "rows": rows.identity,
        **_held_out_score(network, rows),
        **(provenance or {}),
    }
    encoder = Encoder(rows.transform, make_feature_map("identity", shape, seed=seed))
    return TrainedNetwork(encoder, rows.targets, network.cpu().eval(), class_names, made)


def _held_out_score(network: Network, rows: TrainingRows) -> dict[str, float]:
    if not rows.n_held_out:
        return {}
    pieces = ((inputs, targets.argmax(1)) for inputs, targets in rows.held_out())
    return {"heldout_score": float(network_accuracies(NetworkStack.of([network]), pieces).mean())}


def network_from(path: str | os.PathLike[str], rows: TrainingRows, spec: NetworkSpec) -> TrainedNetwork:
    """Read a trained network that is to be used on these rows.

    Raises
    ------
    FileNotFoundError, ValueError
        As `TrainedNetwork.load`, and if network, classes or transform are not those of the rows.
    """
    found = TrainedNetwork.load(path)
    if found.network.spec != spec:
        raise ValueError(f"{Path(path)} holds {found.network.spec}, wanted is {spec}")
    if found.targets.classes != rows.targets.classes:
        raise ValueError(f"{Path(path)} was trained on other classes than {rows.targets.classes}")
    if not same_transform(found.encoder, rows):
        raise ValueError(
            f"the network of {Path(path)} sees inputs through another transform than that of these rows: pass"
            " transform=TrainedNetwork.load(path).encoder.transform"
        )
    return found


def same_transform(encoder: Encoder, rows: TrainingRows) -> bool:
    """Whether rows are transformed as an encoder does, value for value."""
    a, b = encoder.transform, rows.transform
    if a.name != b.name or a.parameters() != b.parameters():
        return False
    first, second = a.tensors(), b.tensors()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
