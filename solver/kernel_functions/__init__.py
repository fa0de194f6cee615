"""Kernel functions: what a set without feature map predicts with. `make_kernel_function` makes one by name."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from .._check import check_name
from ..feature_maps import FeatureMap, feature_map_names, make_feature_map
from .base import KernelFunction
from .features import FeatureKernel
from .radial import (
    CauchyKernel,
    GaussianKernel,
    LaplacianKernel,
    MaternKernel,
    RationalQuadraticKernel,
)
from .wide_conv_network import ConvNNGP, ConvNTK
from .wide_network import NNGP, NTK

__all__ = [
    "KERNEL_FUNCTIONS",
    "NNGP",
    "NTK",
    "CauchyKernel",
    "ConvNNGP",
    "ConvNTK",
    "FeatureKernel",
    "GaussianKernel",
    "KernelFunction",
    "LaplacianKernel",
    "MaternKernel",
    "RationalQuadraticKernel",
    "kernel_function_names",
    "make_kernel_function",
    "restore_kernel_function",
]

KERNEL_FUNCTIONS: dict[str, type[KernelFunction]] = {
    cls.name: cls
    for cls in (
        GaussianKernel,
        LaplacianKernel,
        CauchyKernel,
        MaternKernel,
        RationalQuadraticKernel,
        NTK,
        NNGP,
        ConvNTK,
        ConvNNGP,
    )
}


def make_kernel_function(
    spec: "str | KernelFunction | FeatureMap",
    input_shape: tuple[int, ...],
    *,
    seed: int = 0,
    sample: Callable[[], Tensor] | None = None,
    params: Mapping[str, Any] | None = None,
) -> KernelFunction:
    """Make a kernel for inputs of `input_shape`.

    Parameters
    ----------
    spec : str, KernelFunction or FeatureMap
        A name ("gaussian", "laplacian", "cauchy", "matern", "rational-quadratic", "ntk", "nngp", "conv-ntk",
        "conv-nngp"), the name of a feature map, whose linear kernel is meant (see `FeatureKernel`), or a kernel or
        map that is already made.
    input_shape : tuple of int
    seed : int, default 0
        Of feature maps, and of the rows among which a median is taken.
    sample : callable, optional
        Gives transformed training rows (n, *input_shape); called only for kernels that set a bandwidth from data.
    params : mapping, optional
        Further arguments of the kernel's constructor, or of the map's.

    Raises
    ------
    ValueError
        For an unknown name (with the nearest known one), arguments the kernel does not take, or a kernel that
        was made for inputs of another shape.

    Examples
    --------
    >>> make_kernel_function("ntk", (3, 32, 32), params={"depth": 2}).parameters()["depth"]
    2
    """
    params = dict(params or {})
    shape = tuple(input_shape)
    if isinstance(spec, FeatureMap):
        return FeatureKernel(make_feature_map(spec, shape, params=params))
    if isinstance(spec, KernelFunction):
        if params:
            raise ValueError(f"the kernel is already made: drop its parameters {sorted(params)}")
        if spec.input_shape != shape:
            raise ValueError(f"the kernel takes {spec.input_shape}, the data have shape {shape}")
        return spec
    name = check_name(spec, kernel_function_names(), "kernel")
    if name not in KERNEL_FUNCTIONS:
        return FeatureKernel(make_feature_map(name, shape, seed=seed, sample=sample, params=params))
    cls = KERNEL_FUNCTIONS[name]
    rows = sample() if sample is not None and cls.needs_sample(params) else None
    try:
        return cls.build(shape, seed=seed, sample=rows, **params)
    except TypeError as error:
        raise ValueError(f"the {name!r} kernel cannot be made with {params}: {error}") from error


def kernel_function_names() -> list[str]:
    """Names that `make_kernel_function` knows: kernels, then feature maps, which stand for their linear kernels."""
    return [*KERNEL_FUNCTIONS, *feature_map_names()]


def restore_kernel_function(name: str, parameters: dict[str, Any]) -> KernelFunction:
    """Make the kernel that a file describes."""
    return KERNEL_FUNCTIONS[check_name(name, KERNEL_FUNCTIONS, "kernel")].restore(parameters)
