"""The rows in the middle of clusters: k-means, and of each cluster the row nearest to its centre."""

import numpy as np
import torch
from torch import Tensor

from ...kernels import k_center_greedy, k_means_plus_plus
from .._check import check_count
from .choice import Choice, cell_sizes
from .k_center import k_center


def k_means(
    X: Tensor, m: int, seed: int, *, max_iterations: int = 100, batch_size: int | None = None
) -> Choice:
    """Choose m rows, one of each of m clusters.

    Lloyd's iterations of scikit-learn from our k-means++ seeds, n d m products each; with `batch_size`, those of its
    MiniBatchKMeans. Taking the row from the cluster itself keeps rows distinct. Where a cluster ends empty, the row
    farthest from those chosen takes its place. Runs on the CPU.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans

    check_count(max_iterations, "max_iterations")
    try:
        start = k_means_plus_plus(X, m, seed=seed).indices
    except ValueError:
        # Rows are finite: fewer than m of them are different, and farthest-first takes all those there are.
        return k_center(X, m, seed)
    rows = X.cpu().numpy()
    options = {"init": rows[start.cpu().numpy()], "n_init": 1, "max_iter": max_iterations}
    options["random_state"] = seed % 2**32
    if batch_size is None:
        fitted = KMeans(m, **options).fit(rows)
    else:
        fitted = MiniBatchKMeans(m, batch_size=check_count(batch_size, "batch_size"), **options).fit(rows)
    centres, labels = np.asarray(fitted.cluster_centers_), np.asarray(fitted.labels_)
    chosen = torch.from_numpy(_nearest_in_cell(rows, centres, labels)).to(X.device)
    if len(chosen) < m:
        chosen = torch.cat([chosen, k_center_greedy(X, m - len(chosen), initial=chosen.cpu()).indices])
    return Choice(chosen, cell_sizes(X, chosen))


def _nearest_in_cell(rows: np.ndarray, centres: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Of each cell that is not empty, in order, the row nearest to its centre: the first of equals."""
    distances = np.empty(len(rows))
    step = max(1, 2**22 // rows.shape[1])
    for low in range(0, len(rows), step):
        part = slice(low, low + step)
        distances[part] = ((rows[part] - centres[labels[part]]) ** 2).sum(axis=1)
    order = np.lexsort((distances, labels))
    _, first = np.unique(labels[order], return_index=True)
    return order[first].astype(np.int64)
