"""A step on a CUDA device as a graph: hundreds of small kernels, launched at once."""

from collections.abc import Callable

import torch
from torch import Tensor

# A step is run so often before it is captured: libraries choose their algorithms and take their memory.
_WARMUP = 3


class CapturedStep:
    """Calls a step with tensors, from the fourth call of each shape on as a CUDA graph.

    Parameters
    ----------
    step : callable
        A function of tensors on one CUDA device that returns nothing and changes tensors in place, always the same
        ones; it must not look at values.

    Notes
    -----
    Source: CUDA graphs in the documentation of PyTorch ("CUDA semantics"), whose warm-up on a stream aside this is.
    """

    def __init__(self, step: Callable[..., None]) -> None:
        self._step = step
        self._calls: dict[tuple[torch.Size, ...], int] = {}
        self._graphs: dict[tuple[torch.Size, ...], tuple[torch.cuda.CUDAGraph, list[Tensor]]] = {}

    def __call__(self, *inputs: Tensor) -> None:
        shapes = tuple(value.shape for value in inputs)
        self._calls[shapes] = self._calls.get(shapes, 0) + 1
        if self._calls[shapes] <= _WARMUP:
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                self._step(*inputs)
            torch.cuda.current_stream().wait_stream(aside)
            return
        if shapes not in self._graphs:
            held = [value.clone() for value in inputs]
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._step(*held)
            self._graphs[shapes] = graph, held
        graph, held = self._graphs[shapes]
        for place, value in zip(held, inputs, strict=True):
            place.copy_(value)
        graph.replay()
