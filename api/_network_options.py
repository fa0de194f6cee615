"""What `evaluate` is told about networks: checked before anything is read or trained."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .nn_baselines.baseline_points import ALWAYS, BASELINES
from .nn_baselines.training_recipes import TrainingRecipe, training_recipe
from .solver._check import check_count, check_name
from .solver.executors import Executor
from .solver.networks import NETWORKS, NetworkSpec, network_spec

# Networks of a set: published tables have 5 (DC-BENCH, MTT) or 20 (DC, DSA, DM).
COUNT = 5
# Epochs over all training rows where the recipe has more, which are meant for a handful of points.
FULL_EPOCHS = 50


@dataclasses.dataclass(frozen=True)
class NetworkOptions:
    """Which networks are trained on what, and how; see `evaluate`.

    Attributes
    ----------
    recipe : TrainingRecipe
    networks : dict of str to dict
        Options by the name of the network.
    count : int
    baselines : tuple of str
    rates : tuple of float
    choose_epoch : bool
    full_accuracy : dict of str to float
        By network.
    full_epochs : int
    device : torch.device
        Of everything but trainings: those go to `train_device`.
    train_device : str
        As given; "auto" is for each machine to say.
    executor : Executor
        What trains networks.
    workers : int or None
    progress : bool or None
    confidence : float
    seed : int
    """

    recipe: TrainingRecipe
    networks: dict[str, dict[str, Any]]
    count: int
    baselines: tuple[str, ...]
    rates: tuple[float, ...]
    choose_epoch: bool
    full_accuracy: dict[str, float]
    full_epochs: int
    device: torch.device
    train_device: str
    executor: Executor
    workers: int | None
    progress: bool | None
    confidence: float
    seed: int

    @property
    def chooses(self) -> bool:
        """Whether anything is chosen on held-out rows."""
        return bool(self.rates) or self.choose_epoch

    @property
    def hard_recipe(self) -> TrainingRecipe:
        """The recipe with hard labels, as real rows have them."""
        return training_recipe(self.recipe, labels="hard")

    @property
    def needs_training(self) -> str:
        """What training rows are needed for, in words; empty if for nothing."""
        if self.baselines:
            return f"baselines ({', '.join(self.baselines)}; none with `baselines=()`) are drawn from"
        return "rates and epochs are chosen on" if self.chooses else ""

    def spec(self, network: str, input_shape: tuple[int, ...], n_classes: int) -> NetworkSpec:
        """The network for such rows."""
        return network_spec(network, input_shape, n_classes, **self._options(network))

    def label(self, network: str) -> str:
        """Its name in tables, with the options that were given."""
        given = ", ".join(f"{key}={value}" for key, value in sorted(self.networks[network].items()))
        return f"{network} ({given})" if given else network

    def _options(self, network: str) -> dict[str, Any]:
        # A recipe's network is the convnet; what it says of widths and norms means nothing for others.
        own = self.recipe.network_params if network == "convnet" else {}
        return {**own, **self.networks[network]}


def network_options(
    recipe: str | TrainingRecipe,
    changes: Mapping[str, Any],
    *,
    networks: str | Sequence[str] | Mapping[str, Mapping[str, Any]] | None,
    count: int | None,
    baselines: str | Sequence[str] | None,
    rates: float | Sequence[float],
    full_accuracy: float | Mapping[str, float] | None,
    full_epochs: int | None,
    seed: int,
    **rest: Any,
) -> NetworkOptions:
    """Check arguments of `evaluate` and fill in what was not given.

    Raises
    ------
    ValueError
        If a name is unknown, a number out of range, or the recipe cannot use what is asked for.
    """
    for name in changes:
        check_name(name, TrainingRecipe.model_fields, "argument of evaluate, or field of a recipe,")
    made = training_recipe(recipe, **changes)
    if networks is None or isinstance(networks, str):
        networks = [networks or "convnet"]
    options = networks if isinstance(networks, Mapping) else {name: {} for name in networks}
    if not options:
        raise ValueError("`networks` is empty: name one or more")
    for name in options:
        check_name(name, NETWORKS, "network")
    wanted = _baselines(baselines)
    if "label-solve" in wanted and made.labels == "hard":
        raise ValueError(
            f"baseline 'label-solve' has soft labels, of which recipe {made.name!r} takes the classes alone: use one"
            " with soft labels, such as 'soft-label' or 'frepo'"
        )
    if full_accuracy is not None and "full" in wanted:
        raise ValueError(
            "either train networks on all rows (baseline 'full') or give `full_accuracy`, not both"
        )
    if full_epochs is not None and "full" not in wanted:
        raise ValueError("`full_epochs` is for the baseline 'full': name it, or leave this out")
    tried = (rates,) if isinstance(rates, (int, float)) else tuple(rates)
    known = (
        {name: full_accuracy for name in options}
        if isinstance(full_accuracy, (int, float))
        else full_accuracy
    )
    for name, value in (known or {}).items():
        check_name(name, options, "network of `full_accuracy`")
        if not 0 <= value <= 1:
            raise ValueError(f"`full_accuracy` must be a fraction in [0, 1], not a percentage, got {value!r}")
    return NetworkOptions(
        recipe=made,
        networks={name: dict(values) for name, values in options.items()},
        count=COUNT if count is None else check_count(count, "count"),
        baselines=wanted,
        rates=tuple(training_recipe(made, rate=rate).rate for rate in tried),
        full_accuracy=dict(known or {}),
        full_epochs=min(made.epochs, FULL_EPOCHS)
        if full_epochs is None
        else check_count(full_epochs, "full_epochs"),
        seed=check_count(seed, "seed", 0),
        **rest,
    )


def _baselines(baselines: str | Sequence[str] | None) -> tuple[str, ...]:
    """Baselines in the order of tables: those that always stand there, unless none are wanted at all."""
    named = [baselines] if isinstance(baselines, str) else list(baselines or ())
    for name in named:
        check_name(name, BASELINES, "baseline")
    if baselines is not None and not named:
        return ()
    return tuple(name for name in BASELINES if name in ALWAYS or name in named)
