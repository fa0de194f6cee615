"""Choose rows by name of a method, from all rows together or so many of each class."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...kernels.random import random_bits
from .._check import check_count, check_finite, check_name
from .choice import Choice
from .coreset import Coreset
from .herding import herding, kernel_herding
from .k_center import k_center
from .k_means import k_means
from .sensitivity import kernel_density, leverage, lightweight, rbf
from .uniform import random_rows

# A method takes rows (n, d), how many to choose of them, and a seed.
CORESETS: dict[str, Callable[..., Choice]] = {
    "random": random_rows,
    "k-means": k_means,
    "k-center": k_center,
    "herding": herding,
    "kernel-herding": kernel_herding,
    "lightweight": lightweight,
    "kernel-density": kernel_density,
    "rbf": rbf,
    "leverage": leverage,
}


def select(
    X: Tensor,
    groups: Tensor | None,
    counts: int | Sequence[int],
    method: str,
    *,
    seed: int,
    names: Sequence[Any] | None = None,
    **params: Any,
) -> Coreset:
    """Choose rows that stand for all.

    Parameters
    ----------
    X : Tensor, shape (n, d), float32 or float64
        Rows: flattened inputs, or any embedding of them.
    groups : Tensor, shape (n,), int64, or None
        Class of each row, from 0; None for one budget over all rows.
    counts : sequence of int, or int
        Rows of each class, zero for none; the number of all, without `groups`.
    method : {"random", "k-means", "k-center", "herding", "kernel-herding", "lightweight", "kernel-density", "rbf", \
"leverage"}
    seed : int
        Of everything random. What is chosen of a class depends on its own rows, its number and the seed alone.
    names : sequence, optional
        Of the classes, for messages; by default their numbers.
    **params
        Options of the method: ``max_iterations`` and ``batch_size`` of "k-means"; ``kernel`` and ``bandwidth`` of
        "kernel-herding", "kernel-density" and "leverage", which also has ``ridge`` and ``n_features``.

    Returns
    -------
    Coreset

    Raises
    ------
    ValueError
        If a class has fewer rows than asked for, a row is not finite, or a name or option is unknown.

    Notes
    -----
    Copies the rows of one class at a time. Cost in products, n being the rows of a class and m those chosen: n d for
    "random" and "lightweight"; n d m for "k-center" and "herding", times iterations for "k-means"; n² d for
    "kernel-density" and "kernel-herding"; some 10 n d² for "rbf"; 2 n p² for "leverage".
    """
    if X.ndim != 2 or X.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"`X` must be a float32 or float64 matrix with samples as rows, got {X.dtype} of shape {tuple(X.shape)}"
        )
    rows = X.detach()
    check_finite(rows, "X")
    return choose(
        lambda index: rows if len(index) == len(rows) else rows[index.to(rows.device)],
        groups,
        len(rows),
        counts,
        method,
        seed=seed,
        names=names,
        params=params,
    )


def choose(
    fetch: Callable[[Tensor], Tensor],
    groups: Tensor | None,
    n: int,
    counts: int | Sequence[int],
    method: str,
    *,
    seed: int,
    names: Sequence[Any] | None,
    params: dict[str, Any],
) -> Coreset:
    """`select` of rows that `fetch` gives by increasing indices (b,), one class after another."""
    run = CORESETS[check_name(method, CORESETS, "coreset")]
    known = [name for name, one in inspect.signature(run).parameters.items() if one.kind is one.KEYWORD_ONLY]
    for name in params:
        if name not in known:
            raise ValueError(
                f"coreset {method!r} takes no option {name!r}: it has {', '.join(known) or 'none'}"
            )
    parts: list[tuple[Tensor, Choice]] = []
    notes: list[str] = []
    for group, label, index, m in _budgets(groups, n, counts, names):
        own = int(random_bits(seed, f"coreset.{method}.{group}", 1)[0])
        choice = run(fetch(index), m, own, **params)
        parts.append((index[choice.indices.cpu()], choice))
        notes += [f"{label}{note}" for note in choice.notes]
    chances = [part.inclusion_probabilities for _, part in parts if part.inclusion_probabilities is not None]
    return Coreset(
        indices=torch.cat([index for index, _ in parts]),
        weights=torch.cat([part.weights for _, part in parts]).cpu(),
        inclusion_probabilities=torch.cat(chances).cpu() if chances else None,
        method=method,
        seed=seed,
        notes=tuple(notes),
    )


def _budgets(
    groups: Tensor | None, n: int, counts: int | Sequence[int], names: Sequence[Any] | None
) -> list[tuple[int, str, Tensor, int]]:
    """Number, label for messages, rows and budget of every class of which rows are asked for."""
    if groups is None:
        if isinstance(counts, Sequence):
            raise ValueError(
                "counts by class need the class of each row: give `groups`, or one number of rows"
            )
        everything = [(0, "", torch.arange(n), check_count(counts, "counts"))]
    else:
        if not isinstance(counts, Sequence):
            raise ValueError(
                f"with `groups`, `counts` must be one number for each class, got {counts!r}: leave `groups` out for"
                " one budget over all rows"
            )
        groups = groups.cpu()
        if groups.shape != (n,) or groups.is_floating_point():
            raise ValueError(
                f"`groups` must be {n} integers, one a row, got {groups.dtype} of shape {tuple(groups.shape)}"
            )
        if n and not 0 <= int(groups.min()) <= int(groups.max()) < len(counts):
            raise ValueError(
                f"`groups` must lie in 0 ... {len(counts) - 1}, for as many `counts`, got"
                f" {int(groups.min())} ... {int(groups.max())}"
            )
        everything = [
            (
                group,
                f"class {(group if names is None else names[group])!r}: ",
                (groups == group).nonzero().flatten(),
                check_count(count, "counts", 0),
            )
            for group, count in enumerate(counts)
        ]
    for _, label, index, m in everything:
        if m > len(index):
            raise ValueError(
                f"{label}{m} rows are asked for, but there are {len(index)}: ask for fewer, or give more rows"
            )
    asked = [one for one in everything if one[-1]]
    if not asked:
        raise ValueError("no rows are asked for: all `counts` are zero")
    return asked
