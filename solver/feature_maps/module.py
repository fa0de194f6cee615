r"""Any network as a frozen feature map: :math:`\varphi(x)` is the flattened output of a `torch.nn.Module`.

Code cannot be stored without pickle, and pickled code should not be loaded; so a file keeps a digest of the
weights, and whoever loads it brings the same module.
"""

import copy
import hashlib
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ...kernels import normal
from .._check import check_count
from .base import FeatureMap


class ModuleFeatures(FeatureMap):
    """A frozen module's output, flattened.

    Parameters
    ----------
    module : torch.nn.Module
        Takes a batch (n, *input_shape), gives a tensor of n rows. A copy is kept, in evaluation mode.
    input_shape : tuple of int
    batch_size : int, default 256
        Rows per forward pass.

    Raises
    ------
    ValueError
        If the module does not run on such inputs in float32 and in float64 (solves need the latter), if its
        output is not a tensor of the inputs' dtype with one row per input, if two runs differ, or if a row's
        output depends on the other rows.

    Notes
    -----
    Construction runs the module on two rows. Features cost one forward pass; a copy of the weights is kept
    per dtype and device used.
    """

    name: ClassVar[str] = "module"

    def __init__(
        self, module: torch.nn.Module, input_shape: tuple[int, ...], *, batch_size: int = 256
    ) -> None:
        self.batch_size = check_count(batch_size, "batch_size")
        self._identity = _identify(module)
        self._module = copy.deepcopy(module).eval().requires_grad_(False)
        self._copies: dict[tuple[torch.dtype, torch.device], torch.nn.Module] = {}
        super().__init__(input_shape, 1)
        self.n_features = self._probe()
        # The probe made a copy in each precision; most uses need one of them.
        self._copies.clear()

    def parameters(self) -> dict[str, Any]:
        """Shape, batch size, and what tells the module: class, number of parameters, digest of the state."""
        return {**super().parameters(), "batch_size": self.batch_size, **self._identity}

    @classmethod
    def restore(
        cls, parameters: dict[str, Any], tensors: dict[str, Tensor], module: torch.nn.Module | None = None
    ) -> Self:
        """Make the map again from the same module.

        Raises
        ------
        ValueError
            If no module is given, or one whose weights differ from what was saved.
        """
        if tensors:
            raise ValueError(f"a 'module' map stores no arrays, found {sorted(tensors)}")
        if module is None:
            raise ValueError(
                f"the features come from a module ({_describe(parameters)}), whose code is not stored: pass the"
                " same module, kd.load(path, module=net)"
            )
        found = _identify(module)
        # Of the class nothing is asked: it may have moved, and the loader compares features anyway.
        if found["sha256"] != parameters["sha256"]:
            raise ValueError(
                "the module is not the one the set was made with: its weights differ. Given"
                f" {_describe(found)}, saved {_describe(parameters)}"
            )
        return cls(module, tuple(parameters["input_shape"]), batch_size=parameters["batch_size"])

    def _features(self, X: Tensor) -> Tensor:
        module = self._copy(X.dtype, X.device)
        if X.shape[0] == 0:
            return X.new_zeros(0, self.n_features)
        # Cloned, because a module may begin with an operation in place.
        return torch.cat([_rows(module(rows.clone()), rows) for rows in X.split(self.batch_size)])

    def _copy(self, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
        key = (dtype, device)
        if key not in self._copies:
            self._copies[key] = copy.deepcopy(self._module).to(device=device, dtype=dtype)
        return self._copies[key]

    def _probe(self) -> int:
        """Run the module on two rows, and one alone, in both precisions; return the number of features."""
        n_features = 0
        for dtype in (torch.float32, torch.float64):
            pair = normal(0, "module.probe", (2, *self.input_shape)).to(dtype)
            module, runs = self._copy(dtype, pair.device), (pair, pair, pair[:1])
            try:
                with torch.no_grad():
                    outputs = [module(rows.clone()) for rows in runs]
            except Exception as error:
                raise ValueError(
                    f"the module {self._identity['module']} does not run on {dtype} inputs of shape"
                    f" {tuple(pair.shape)}: {error}"
                ) from error
            first, second, alone = (_rows(out, rows) for out, rows in zip(outputs, runs, strict=True))
            if not torch.equal(first, second):
                raise ValueError(
                    f"the module {self._identity['module']} gave two outputs for one input in evaluation mode:"
                    " a feature map must be deterministic (take random layers out)"
                )
            if not torch.allclose(first[:1], alone, rtol=0, atol=1e-3 * float(first.abs().max())):
                raise ValueError(
                    f"the module {self._identity['module']} gave another output for a row when it was alone:"
                    " a feature map must treat every row by itself (no statistics over the batch)"
                )
            n_features = first.shape[1]
        return n_features


def _rows(out: Any, X: Tensor) -> Tensor:
    """Output of a module for inputs X, flattened to one row per input."""
    if not isinstance(out, Tensor):
        raise ValueError(f"the module must return a tensor, got {type(out).__name__}: wrap it to return one")
    if out.ndim == 0 or out.shape[0] != X.shape[0] or out.numel() == 0:
        raise ValueError(
            f"the module must return one row for each of {X.shape[0]} inputs, got shape {tuple(out.shape)}"
        )
    if out.dtype != X.dtype:
        raise ValueError(f"the module returned {out.dtype} for {X.dtype} inputs: keep casts out of it")
    return out.flatten(1) if out.ndim > 1 else out[:, None]


def _identify(module: torch.nn.Module) -> dict[str, Any]:
    """Class, number of parameters, and sha256 over names, types, shapes and bytes of the state."""
    if not isinstance(module, torch.nn.Module):
        raise ValueError(f"`module` must be a torch.nn.Module, got {type(module).__name__}")
    digest = hashlib.sha256()
    for name, values in sorted(module.state_dict().items()):
        # Extra state that is no tensor has no bytes of its own.
        if isinstance(values, Tensor):
            values = values.detach().cpu().contiguous()
            digest.update(f"{name} {values.dtype} {tuple(values.shape)};".encode())
            digest.update(values.flatten().view(torch.uint8).numpy().tobytes())
    return {
        "module": f"{type(module).__module__}.{type(module).__qualname__}",
        "n_parameters": sum(parameter.numel() for parameter in module.parameters()),
        "sha256": digest.hexdigest(),
    }


def _describe(identity: dict[str, Any]) -> str:
    return (
        f"{identity['module']} with {identity['n_parameters']} parameters, sha256 {identity['sha256'][:12]}"
    )
