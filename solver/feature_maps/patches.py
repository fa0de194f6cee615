r"""Random patches: one layer of filters taken from the images, the strong classical map for images.

Every patch u (all channels, k × k) of an image is contrast-normalised and ZCA-whitened,

.. math:: \bar u = \frac{u - \mathrm{mean}(u)}{\sqrt{\mathrm{var}(u) + \epsilon}}, \qquad
          v = P (\bar u - M), \quad P = (C + \zeta I)^{-1/2},

with M, C the mean and covariance of normalised patches of the training sample. A filter is such a v at unit
length; its responses :math:`z = \langle f, v \rangle` pass the two-sided soft threshold
:math:`\max(0, z - \alpha), \max(0, -z - \alpha)` and are averaged over a grid × grid of cells.

Sources: Coates, Ng and Lee, AISTATS 2011, and Coates and Ng, ICML 2011 (normalisation, whitening, the
two-sided threshold, patches as filters); Recht et al., ICML 2019 (the same map with ridge regression).
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ...kernels import uniform
from .._check import check_count, check_finite, check_non_negative
from .base import FeatureMap

# Patches that the whitening is estimated from.
_N_STATISTICS = 10_000


class RandomPatches(FeatureMap):
    """Soft-thresholded, pooled responses of whitened random patches; made by `build` from training rows.

    ``p = 2 * n_filters * grid**2``. There is no preimage. Ridge regression on CIFAR-10 (a copy that was
    compressed to JPEG, quality 75) with the default map, p = 6300, is right on 72.8 % of the test set.

    Parameters
    ----------
    input_shape : (c, h, w)
    filters : Tensor, shape (n_filters, c, patch_size, patch_size), float32
        Unit filters times the whitening, P f.
    bias : Tensor, shape (n_filters,), float32
        -<P f, M>.
    epsilon : float
        Added to a patch's variance, in squared units of the inputs.
    threshold : float, default 0.5
        alpha.
    grid : int, default 3
        Cells along each axis of the image; 1 pools the whole image.

    Raises
    ------
    ValueError
        If filters, bias, grid and images do not fit each other.

    Notes
    -----
    Cost per image: 2 · n_filters · c · patch_size² · (h - patch_size + 1)(w - patch_size + 1) operations.
    """

    name: ClassVar[str] = "patches"

    def __init__(
        self,
        input_shape: tuple[int, ...],
        filters: Tensor,
        bias: Tensor,
        *,
        epsilon: float,
        threshold: float = 0.5,
        grid: int = 3,
    ) -> None:
        shape = _check_shape(input_shape, int(filters.shape[-1]), check_count(grid, "grid"))
        if filters.ndim != 4 or filters.shape[1] != shape[0] or filters.shape[2] != filters.shape[3]:
            raise ValueError(
                f"`filters` must have shape (n_filters, {shape[0]}, k, k) for inputs of shape {shape}, got"
                f" {tuple(filters.shape)}"
            )
        if bias.shape != filters.shape[:1]:
            raise ValueError(f"`bias` must have shape ({filters.shape[0]},), got {tuple(bias.shape)}")
        super().__init__(shape, 2 * filters.shape[0] * grid**2)
        self.filters = filters.detach().float().contiguous()
        self.bias = bias.detach().float().contiguous()
        self.epsilon = check_non_negative(epsilon, "epsilon")
        self.threshold = check_non_negative(threshold, "threshold")
        self.grid = grid
        _, h, w = shape
        self._cells = _cell_averages(h - filters.shape[-2] + 1, w - filters.shape[-1] + 1, grid)
        # Of the same rounded filters, so that float32 and float64 features are the same map.
        self._cast: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor, Tensor]] = {}

    @classmethod
    def needs_sample(cls, params: Mapping[str, Any]) -> bool:
        """Always: the filters are patches of the data."""
        del params
        return True

    @classmethod
    def build(  # pyright: ignore[reportIncompatibleMethodOverride]  # its own parameters by name
        cls,
        input_shape: tuple[int, ...],
        *,
        seed: int,
        sample: Tensor | None,
        n_filters: int = 360,
        patch_size: int = 6,
        grid: int = 3,
        threshold: float = 0.5,
        contrast: float = 0.1,
        whitening: float = 0.3,
    ) -> Self:
        """Take whitening and filters from a sample of training rows.

        Parameters
        ----------
        input_shape : (c, h, w)
        seed : int
            Which patches are drawn.
        sample : Tensor, shape (n, *input_shape)
            Transformed training rows; a thousand or more, so that 10,000 patches differ.
        n_filters : int, default 360, which gives 6480 features of any image
            Time is linear in it and independent of `grid`, so at a given p a finer grid is cheaper; 356
            filters on 3 × 3 cells were as accurate on CIFAR-10 as 800 on 2 × 2 in less than half the time.
        patch_size : int, default 6
        grid, threshold
            See the class.
        contrast : float, default 0.1
            Epsilon as a share of the mean variance of a patch, so that units do not matter.
        whitening : float, default 0.3
            Zeta; normalised patches have variance near one.

        Raises
        ------
        ValueError
            If there is no sample, it is not finite, or it has fewer than `n_filters` different patches with
            contrast (flat background gives no filters).
        """
        n_filters = check_count(n_filters, "n_filters")
        k = check_count(patch_size, "patch_size")
        contrast = check_non_negative(contrast, "contrast")
        whitening = check_non_negative(whitening, "whitening")
        shape = _check_shape(input_shape, k, check_count(grid, "grid"))
        if sample is None or sample.shape[0] == 0:
            raise ValueError(
                "a 'patches' map takes its filters from data: pass `sample`, some hundreds of transformed"
                " training rows or more"
            )
        if tuple(sample.shape[1:]) != shape:
            raise ValueError(f"`sample` must have shape (n, {shape}), got {tuple(sample.shape)}")
        check_finite(sample, "sample")

        patches = _draw(sample, k, max(_N_STATISTICS, 2 * n_filters), seed)
        patches = patches - patches.mean(dim=1, keepdim=True)
        variance = patches.square().mean(dim=1, keepdim=True)
        epsilon = contrast * float(variance.mean())
        patches = patches / (variance + epsilon).sqrt().clamp_min(torch.finfo(torch.float64).tiny)
        statistics = patches[:_N_STATISTICS]
        mean = statistics.mean(dim=0)
        values, vectors = torch.linalg.eigh(torch.cov(statistics.T, correction=0))
        # A patch has mean zero, so one eigenvalue per patch is zero: with zeta = 0 it must stay out.
        scale = torch.where(values > 1e-9 * values[-1], (values.clamp_min(0) + whitening).rsqrt(), 0.0)
        whiten = (vectors * scale) @ vectors.T

        # Flat patches are all the same filter, -P M, and on MNIST they are most of the patches.
        chosen = patches[(variance > epsilon).flatten() & (variance > 0).flatten()][:n_filters]
        if chosen.shape[0] < n_filters:
            raise ValueError(
                f"found {chosen.shape[0]} different patches with contrast in {sample.shape[0]} sample rows,"
                f" {n_filters} filters were asked for: pass more rows or lower `n_filters`"
            )
        filters = torch.nn.functional.normalize((chosen - mean) @ whiten, dim=1) @ whiten
        # Removing the mean of a filter removes the mean of the patch it meets.
        filters = filters - filters.mean(dim=1, keepdim=True)
        return cls(
            shape,
            filters.reshape(n_filters, -1, k, k),
            -filters @ mean,
            epsilon=epsilon,
            threshold=threshold,
            grid=grid,
        )

    def parameters(self) -> dict[str, Any]:
        """Shape, epsilon, threshold and grid."""
        return {
            **super().parameters(),
            "epsilon": self.epsilon,
            "threshold": self.threshold,
            "grid": self.grid,
        }

    def tensors(self) -> dict[str, Tensor]:
        """Filters and bias, in the float32 that features are made with."""
        return {"filters": self.filters, "bias": self.bias}

    @classmethod
    def restore(cls, parameters: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """Make the map from stored filters; its features are the same bits."""
        if sorted(tensors) != ["bias", "filters"]:
            raise ValueError(f"a 'patches' map stores 'filters' and 'bias', found {sorted(tensors)}")
        shape = tuple(parameters["input_shape"])
        return cls(**{**parameters, **tensors, "input_shape": shape})

    def _features(self, X: Tensor) -> Tensor:
        key = (X.dtype, X.device)
        if key not in self._cast:
            self._cast[key] = (self.filters.to(X).flatten(1), self.bias.to(X), self._cells.to(X))
        if X.shape[0] == 0:
            return X.new_zeros(0, self.n_features)
        # Responses are some hundred times larger than images, so they are made in tiles. Buffers that are
        # used again spare the system from handing out fresh pages for every tile, which took as long as the
        # product. Tiles below 32 MiB would stay in a CPU's cache and save a fifth more on an idle machine, but
        # then threads meet so often that one busy core slows everything several times.
        places = self._cells.shape[1]
        tile = max(1, (2**23 if X.device.type == "cpu" else 2**27) // (places * self.filters.shape[0]))
        buffers = None
        if X.shape[0] > tile and not (torch.is_grad_enabled() and X.requires_grad):
            buffers = X.new_empty(2, tile, places, self.filters.shape[0])
        return torch.cat([self._tile(rows, *self._cast[key], buffers) for rows in X.split(tile)])

    def _tile(
        self, X: Tensor, filters: Tensor, bias: Tensor, cells: Tensor, buffers: Tensor | None
    ) -> Tensor:
        n, k, a = X.shape[0], self.filters.shape[-1], self.threshold
        windows = X.unfold(2, k, 1).unfold(3, k, 1).permute(0, 2, 3, 1, 4, 5)
        patches = windows.reshape(-1, filters.shape[1])
        patches = patches - patches.mean(dim=1, keepdim=True)
        patches = patches * (patches.square().mean(dim=1, keepdim=True) + self.epsilon).rsqrt()
        z = cut = None
        if buffers is not None:
            z, cut = buffers[0, :n].flatten(0, 1), buffers[1, :n]
        z = torch.addmm(bias, patches, filters.T, out=z).reshape(n, -1, filters.shape[0])
        # max(0, z - a) = max(z, a) - a, and an average passes the constant through.
        above = torch.matmul(cells, torch.clamp(z, min=a, out=cut)) - a
        below = torch.matmul(cells, torch.clamp(z, max=-a, out=cut)) + a
        return torch.cat([above, -below], dim=1).flatten(1)


def _draw(sample: Tensor, k: int, count: int, seed: int) -> Tensor:
    """At most `count` different patches of `sample`, float64, shape (count, c * k * k)."""
    n, c, h, w = sample.shape
    rows, columns = h - k + 1, w - k + 1
    draw = (uniform(seed, "patches", count) * (n * rows * columns)).long()
    # Repeats are dropped, the order of first appearance is kept.
    draw = torch.tensor(list(dict.fromkeys(draw.tolist())), device=sample.device)
    place = draw % (rows * columns)
    axis = torch.arange(k, device=sample.device)
    i = (draw // (rows * columns)).reshape(-1, 1, 1, 1)
    row = (place // columns).reshape(-1, 1, 1, 1) + axis[:, None]
    column = (place % columns).reshape(-1, 1, 1, 1) + axis
    channel = torch.arange(c, device=sample.device).reshape(-1, 1, 1)
    return sample[i, channel, row, column].double().flatten(1)


def _cell_averages(rows: int, columns: int, grid: int) -> Tensor:
    """Matrix (grid**2, rows * columns) that averages over each cell of a near-even partition."""
    cell_row = torch.arange(rows) * grid // rows
    cell_column = torch.arange(columns) * grid // columns
    cell = (cell_row[:, None] * grid + cell_column).flatten()
    member = (cell == torch.arange(grid**2)[:, None]).double()
    return member / member.sum(dim=1, keepdim=True)


def _check_shape(input_shape: tuple[int, ...], k: int, grid: int) -> tuple[int, ...]:
    if len(input_shape) != 3:
        raise ValueError(f"a 'patches' map takes images (c, h, w), got inputs of shape {tuple(input_shape)}")
    smallest = min(input_shape[1:])
    if k > smallest or grid > smallest - k + 1:
        raise ValueError(
            f"patches of {k} × {k} pooled over a {grid} × {grid} grid do not fit images of shape"
            f" {tuple(input_shape)}: lower `patch_size` or `grid`"
        )
    return tuple(input_shape)
