"""`distill`: a data set in, a distilled set out."""

import os
from collections.abc import Mapping
from typing import Any

import torch

from ._job import Job
from ._methods import MethodOptions
from .solver.distilled_set import DistilledSet
from .solver.executors import Executor
from .solver.feature_maps import FeatureMap
from .solver.loop import Loop
from .solver.transforms import Transform


def distill(
    X: Any,
    y: Any = None,
    *,
    method: str | MethodOptions = "closed-form",
    per_class: int = 1,
    n_points: int | None = None,
    feature_map: str | FeatureMap | torch.nn.Module = "fcnn",
    feature_params: Mapping[str, Any] | None = None,
    transform: str | Transform = "auto",
    ridge: Any = "auto",
    distilled_ridge: float = 0.0,
    near: Any = "auto",
    labels: str = "auto",
    space: str = "auto",
    bounds: str = "free",
    storage: str = "float64",
    task: str = "auto",
    targets: str = "auto",
    n_classes: int | None = None,
    intercept: bool = False,
    sample_weight: Any = None,
    precision: str = "auto",
    holdout: float = 0.05,
    loop: Loop | None = None,
    subtasks: int = 1,
    executor: str | Executor | None = None,
    seed: int = 0,
    device: str = "auto",
    batch_bytes: int | None = None,
    progress: bool | None = None,
    class_names: tuple[str, ...] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> DistilledSet:
    r"""Distil a training set into points on which ridge regression gives the full model.

    Parameters
    ----------
    X : array, shape (n, d), (n, h, w) or (n, c, h, w), Data, or stream
        Raw inputs of any real dtype: NumPy (memory maps too), torch or CuPy. Or what `load_data` returns
        (its training split is used, and its checksums are kept). Or, without `y`, an iterable of
        ``(X, y)`` or ``(X, y, weight)`` batches such as a DataLoader; memory does not grow with n.
    y : array, shape (n,) or (n, k)
        Class labels (integers or strings), or numbers with ``task="regression"``.
    method : str or options of a method, default "closed-form"
        In closed form: "closed-form", the exact set nearest to reference points; "theorem", the published
        construction (Theorem 4.1 of Chen et al. 2024) with one-hot labels; "all-ridges", one set, of
        rank(Φ) points, that is exact for every ridge at once; "label-solve", reference points as they are,
        labels solved (exact from p points on).
        Learned: "full-kip", points that minimise the exact full-data loss by L-BFGS, for maps without
        preimage; "kip", "rfad", "frepo" for kernels of wide networks and networks themselves. For training
        networks on: "dm", "dc", "dsa", "mtt"; "dkkt", from a trained network alone, and "dkkt+dm", with a
        fraction of the data. Distributions in the place of points (`DistributionalSet`): "d3", Gaussians in the
        latent space of a decoder, and "class-gaussians", for Fourier features and linear models in closed form. A
        name takes the defaults of the method; `KIP`, `FullKIP`, `RFAD`, `FRePo`, `DM`, `DC`, `DSA`, `MTT`, `DKKT`,
        `D3` and `ClassGaussians` hold its options.
    per_class : int, default 1
        Points, or distributions, a class (an output, for regression).
    n_points : int, optional
        Number of points instead; fewer than the rank of the model gives the nearest model of lower rank.
    feature_map : str, FeatureMap or torch.nn.Module, default "fcnn"
        "identity" (linear model), "fourier", "fcnn", "deep-linear", "conv", "coupling", "patches", a map
        that is already made, or a frozen network.
    feature_params : mapping, optional
        Arguments of the map, for instance ``{"n_features": 4096}``.
    transform : str or Transform, default "auto"
        "standardize" (by channel, by column for vectors), "zca-kip", "zca-rfad", "zca-kornia", "none".
        "auto" standardises images and leaves vectors as they are.
    ridge : str, float, Ridge or sequence of float, default "auto"
        λ of the full model, or how to choose it: "holdout" (5 % of the rows, then refitted on all),
        "loo", "gcv"; candidates as a sequence. "auto" is "holdout" for classes ("loo" below 2000 rows) and
        "gcv" for regression.
    distilled_ridge : float, default 0.0
        λ_S, absolute, with which the set is to be trained. Any value is exact.
    near : str or array, default "auto"
        Where points are placed (closed forms) or start from (learned methods): "noise" with the mean and
        spread of the data, "data", random rows of each class, the name of a coreset (see `coreset`:
        "k-center", "k-means", "herding", "lightweight", "kernel-density", "leverage", ...), or given raw points
        (m, *input_shape). "auto" is "noise" for closed forms, "dc" and "dkkt", and "data" for other learned
        methods.
    labels : {"auto", "one-hot", "solved"}, default "auto"
        Labels that the points are made for: one-hot rows (up to a common scale, with an intercept a common
        offset too, and the last digits, which are solved for after storage), or whatever the full model
        predicts at the points, which leaves them closer to the reference. "auto" is "one-hot" near noise and
        "solved" near data or given points. Learned methods have their own option.
    space : {"auto", "input", "features"}, default "auto"
        Where the set lives. "auto" takes the input space wherever the feature map can be inverted.
    bounds : {"free", "data"}, default "free"
        "data" keeps values in the range of the training data as far as exactness allows.
    storage : {"float64", "float32", "float16", "uint8"}, default "float64"
        Type in which points are kept; labels are solved again after rounding.
    task : {"auto", "classification", "regression"}, default "auto"
        "auto" is classification for integer and string labels; floating-point `y` must say "regression".
    targets : {"auto", "one-hot", "centred"}, default "auto"
        Encoding of labels; "centred" subtracts 1/k, as KIP, RFAD and FRePo do. "auto" is "one-hot" for closed forms
        and "full-kip", and "centred" for the other learned methods.
    n_classes : int, optional
        Labels are 0 .. n_classes - 1; needed for streams.
    intercept : bool, default False
        Unpenalised intercept; off as in the papers.
    sample_weight : array, shape (n,), optional
    precision : {"auto", "high", "exact"}, default "auto"
        Arithmetic of features over the data set: that of the data, float32, or float64. Sums, solves and
        everything about the distilled points are float64 always.
    holdout : float, default 0.05
        Share of the rows that learned methods hold out (at most 5000 rows): they choose among the sets on
        the way, and nothing else does. 0 chooses by training rows.
    loop : Loop, optional
        Steps, budget of time, patience, checkpoint, log and callbacks of a learned method.
    subtasks : int, default 1
        Blocks of neighbouring classes, each of which is distilled by itself and merged with the others (`merge`).
        Networks then learn from a block without the other classes, and the steps and seconds of `loop` are those of
        each block. For methods whose sets networks are trained on, and "class-gaussians", where nothing changes by it.
    executor : {"serial", "ray"} or Executor, optional
        Where the subtasks run; by default here, one after the other.
    seed : int, default 0
        Defines weights of the map, held-out rows, reference points. The same for any chunking.
    device : str, default "auto"
        Of learned methods; "auto" takes a GPU where there is one. Closed forms run on the CPU. A device asked
        for by name is used or refused.
    batch_bytes : int, optional
        Memory of one batch of features; default 64 MiB.
    progress : bool, optional
        True, False, or (default) after two seconds of work.
    class_names : tuple of str, optional
    provenance : mapping, optional
        Plain values to keep in the file.

    Returns
    -------
    DistilledSet
        With ``certificate``, ``predict``, ``score`` and ``save``.

    Raises
    ------
    ValueError
        For input that cannot be used, saying what was found and what to do.

    Notes
    -----
    Cost of closed forms: one feature pass, n p² multiplications for the statistics, about 9 p³ for the
    factorisation, and O(m p²) for the points. Memory: O(p²) beyond one batch. Learned methods: see their options.
    An option that a method has no use for is refused, not ignored.

    References
    ----------
    Chen, Huang and Weng, "Provable and Efficient Dataset Distillation for Kernel Ridge Regression",
    NeurIPS 2024; see the modules `solver.closed_form`, `solver.ridge`, `solver.points` and `solver.learners`.

    Examples
    --------
    >>> import kernel_distill as kd
    >>> data = kd.load_data("digits")
    >>> ds = kd.distill(data.x_train, data.y_train, feature_map="identity")
    >>> len(ds), ds.certificate.stored_error < 1e-10
    (10, True)
    """
    job = Job(**locals())
    if job.subtasks > 1 and job.method_name != "class-gaussians":
        from ._subtasks import learn_subtasks

        return learn_subtasks(job, job.learned)
    if job.learned is not None:
        from ._learn import learn

        return learn(job, job.learned)
    from ._closed_form import closed_form

    return closed_form(job)


def load(path: str | os.PathLike[str], *, module: torch.nn.Module | None = None) -> DistilledSet:
    """Read a distilled set from its file; see `DistilledSet.load`."""
    return DistilledSet.load(path, module=module)
