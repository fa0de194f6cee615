"""`support_vectors`: the rows that a trained network leans on most."""

from typing import Any

import torch

from ._inputs import unpack
from .nn_baselines.trained_network import TrainedNetwork
from .solver._check import check_finite
from .solver.kkt import SupportVectors, deep_support_vectors, trained_model
from .solver.model import as_rows
from .solver.source import as_array, to_tensor


def support_vectors(
    network: TrainedNetwork,
    X: Any,
    y: Any = None,
    *,
    per_class: int = 1,
    by: str = "dual",
    tolerance: float = 1e-4,
    max_iterations: int = 200,
) -> SupportVectors:
    """Select the deep support vectors of a trained network among rows.

    Duals λ ≥ 0 of all rows are fitted so that the network is stationary under their loss, and the rows with the largest
    are kept, class by class.

    Parameters
    ----------
    network : TrainedNetwork
        From `train_network`, with ``network_params={"norm": "none"}``: weights in front of a norm are reached by no
        duals.
    X : array, shape (n, c, h, w) or (n, h, w), or Data
        Raw rows, those that it was trained on or others; of a `Data`, the training split with its labels.
    y : array, shape (n,)
    per_class : int, default 1
        Rows of each class, as many as the class has at most.
    by : {"dual", "contribution"}, default "dual"
        By λ, as published, or by λ times the length of the row's gradient.
    tolerance, max_iterations : float and int, default 1e-4 and 200
        Of the fit; ``fitted.converged`` says whether they sufficed.

    Returns
    -------
    SupportVectors
        ``indices`` (m,), class by class, the largest first, and the ``fitted`` duals of all rows.

    Raises
    ------
    ValueError
        If rows or labels are not those of the network, or a number is out of range.

    Notes
    -----
    Two forward and one backward pass over all rows for each iteration; memory for the transformed rows in float32.

    References
    ----------
    Lee et al., "Deep Support Vectors", NeurIPS 2024, section 5. See `solver.kkt.support_vectors`.

    Examples
    --------
    >>> import kernel_distill as kd
    >>> data = kd.load_data("digits")
    >>> net = kd.train_network(data, network="mlp", epochs=10, progress=False)
    >>> found = kd.support_vectors(net, data, per_class=2, max_iterations=20)
    >>> ds = kd.distill(data, method="label-solve", near=data.x_train[found.indices.numpy()], per_class=2)
    >>> len(ds)
    20
    """
    X, y, *_ = unpack(X, y, "classification", None, None)
    if y is None:
        raise ValueError("support vectors are chosen class by class: give labels `y`")
    X = as_rows(as_array(X, "X"), network.encoder.transform.input_shape)
    classes = network.targets.indices(y)
    raw = to_tensor(X)
    check_finite(raw, "X")
    rows = network.encoder.transform.forward(raw, torch.float32)
    model = trained_model(network.network, dtype=torch.float32)
    return deep_support_vectors(
        model,
        rows,
        classes,
        per_class,
        by=by,  # pyright: ignore[reportArgumentType]
        tolerance=tolerance,
        max_iterations=max_iterations,
    )
