"""`train_network`: a data set in, a trained network out."""

from collections.abc import Mapping
from typing import Any

from ._inputs import check_class_names, prepare_rows, unpack
from ._learn import resolve_device
from .nn_baselines.trained_network import TrainedNetwork, fit_network
from .nn_baselines.training_recipes import TrainingRecipe, training_recipe
from .solver.learners.rows import TrainingRows
from .solver.networks import network_spec

# Deep Support Vectors (Lee et al., NeurIPS 2024), appendix: Adam at 1e-3, decay 0.005, flips and crops.
DEFAULT_RECIPE = TrainingRecipe(
    name="deep-kkt",
    optimizer="adam",
    rate=1e-3,
    weight_decay=5e-3,
    schedule="cosine",
    epochs=30,
    augment="crop_flip",
)


def train_network(
    X: Any,
    y: Any = None,
    *,
    network: str = "convnet",
    network_params: Mapping[str, Any] | None = None,
    recipe: str | TrainingRecipe = DEFAULT_RECIPE,
    epochs: int | None = None,
    transform: Any = "auto",
    n_classes: int | None = None,
    holdout: float = 0.05,
    seed: int = 0,
    device: str = "auto",
    progress: bool | None = None,
    class_names: tuple[str, ...] | None = None,
) -> TrainedNetwork:
    """Train a network on a whole training set, as the one that `DKKT` learns from.

    Parameters
    ----------
    X : array, shape (n, c, h, w) or (n, h, w), or Data
        Raw images, or what `load_data` returns (its training split).
    y : array, shape (n,)
        Class labels.
    network : str, default "convnet"
        "convnet", "mlp", "lenet", "alexnet", "vgg11", "resnet18", "resnet18-ap", or one of them ending in "-bn".
    network_params : mapping, optional
        Its options, for instance ``{"width": 64, "depth": 2}``.
    recipe : str or TrainingRecipe
        By default Adam at 1e-3 with a decay of 0.005, flips and crops of every image, 30 epochs on a cosine: the
        published settings of Deep Support Vectors where they are known (rate, decay, augmentation). A name
        ("dsa", ...) takes the recipe by which networks are trained on distilled sets, and for "convnet" the network
        options that belong to it, where `network_params` do not say otherwise.
    epochs : int, optional
        In place of the recipe's own.
    transform, n_classes, seed, device, progress, class_names
        As in `distill`.
    holdout : float, default 0.05
        Share of rows that are not trained on: the same that `distill` with this seed holds out. The accuracy on
        them is kept in ``provenance["heldout_score"]``; with 0 there is none.

    Returns
    -------
    TrainedNetwork
        With ``predict``, ``score`` and ``save``.

    Raises
    ------
    ValueError
        If the data cannot be used, names or options are not known, or training diverges.

    Notes
    -----
    `epochs` passes over the rows, forward and backward: on two cores about two minutes an epoch for 50,000 colour
    images of 32 x 32 pixels and the default network.

    Examples
    --------
    >>> import kernel_distill as kd
    >>> data = kd.load_data("digits")
    >>> net = kd.train_network(data, network="mlp", epochs=40, progress=False)
    >>> net.score(data.x_test, data.y_test) > 0.8
    True
    """
    X, y, task, n_classes, class_names, origin = unpack(X, y, "classification", n_classes, class_names)
    source, fitted, coding = prepare_rows(
        X, y, transform=transform, task=task, targets="centred", n_classes=n_classes
    )
    rows = TrainingRows(source, fitted, coding, seed=seed, holdout=holdout, device=resolve_device(device))
    chosen = training_recipe(recipe) if epochs is None else training_recipe(recipe, epochs=epochs)
    if chosen.labels != "hard":
        chosen = training_recipe(chosen, labels="hard")
    own = chosen.network_params if network == "convnet" else {}
    spec = network_spec(network, fitted.input_shape, coding.n_outputs, **{**own, **(network_params or {})})
    return fit_network(
        rows,
        spec,
        chosen,
        seed=seed,
        # Mode "one operation a batch" is that of small sets.
        single=chosen.name != DEFAULT_RECIPE.name,
        class_names=check_class_names(class_names, coding),
        provenance=origin,
        progress=progress,
    )
