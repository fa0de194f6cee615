"""Memory that a kernel forgets to write is NaN, so that a test sees it."""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") == "1":
    # Triton 3.6 turns a loop bound into an index by int(array of one element), which NumPy 2.4 refuses.
    from triton.runtime import interpreter

    _patch = interpreter._patch_lang_tensor

    def _with_index(tensor, *scope):
        _patch(tensor, *scope)
        index = lambda self: int(self.handle.data.item())  # noqa: E731
        scope[0].set_attr(tensor, "__index__", index) if scope else setattr(tensor, "__index__", index)

    interpreter._patch_lang_tensor = _with_index


def _poisoned(allocate):
    def filled(*args, **kwargs):
        tensor = allocate(*args, **kwargs)
        if tensor.is_floating_point():
            tensor.fill_(torch.nan)
        return tensor

    return filled


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """`torch.empty` and its kin return NaN in every test of this folder."""
    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, _poisoned(getattr(torch, name)))
    for name in ("new_empty",):
        monkeypatch.setattr(torch.Tensor, name, _poisoned(getattr(torch.Tensor, name)))
