"""The most memory that torch held at once, to the byte."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class PeakMemory(TorchDispatchMode):
    """Counts the storages that operations inside the ``with`` block make; `peak` is in bytes.

    What the block keeps (results, gradients) is counted too. Scratch inside one operator is not seen.
    """

    def __init__(self):
        super().__init__()
        self.peak = self._live = 0
        self._sizes = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self._count((args, kwargs), new=False)  # what was there before the block is not counted
        result = function(*args, **(kwargs or {}))
        self._count(result, new=True)
        return result

    def _count(self, values, new):
        for value in torch.utils._pytree.tree_leaves(values):
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                if storage._cdata not in self._sizes:
                    self._sizes[storage._cdata] = storage.nbytes() if new else 0
                    self._live += self._sizes[storage._cdata]
                    self.peak = max(self.peak, self._live)
                    weakref.finalize(storage, self._free, storage._cdata)

    def _free(self, key):
        self._live -= self._sizes.pop(key)
