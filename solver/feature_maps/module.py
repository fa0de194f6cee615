r"""Any network as a frozen feature map: :math:`\varphi(x)` is the flattened output of a `torch.nn.Module`.

Code cannot be stored without pickle, and pickled code should not be loaded; so a file keeps a digest of the
weights, and whoever loads it brings the same module.
"""

import copy
import hashlib
import math
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
        If the module cannot be run on such inputs, in float32 or in float64 (statistics and solves need the
        latter), if its output is not a floating tensor with one row per input, or if two runs differ.

    Notes
    -----
    Rows are features of their own input only where the module does not mix rows; batch normalisation does not
    in evaluation mode.
    """

    name: ClassVar[str] = "module"

    def __init__(
        self, module: torch.nn.Module, input_shape: tuple[int, ...], *, batch_size: int = 256
    ) -> None:
        if not isinstance(module, torch.nn.Module):
            raise ValueError(f"`module` must be a torch.nn.Module, got {type(module).__name__}")
        self.batch_size = check_count(batch_size, "batch_size")
        self._class = _qualified_name(module)
        self._n_parameters = sum(parameter.numel() for parameter in module.parameters())
        self._digest = _digest(module)
        self._module = copy.deepcopy(module).eval().requires_grad_(False)
        self._copies: dict[tuple[torch.dtype, torch.device], torch.nn.Module] = {}
        super().__init__(input_shape, 1)
        self.n_features = self._probe()

    def parameters(self) -> dict[str, Any]:
        """Shape, batch size, and what tells the module: class, number of parameters, digest of the state."""
        return {
            **super().parameters(),
            "batch_size": self.batch_size,
            "module": self._class,
            "n_parameters": self._n_parameters,
            "sha256": self._digest,
        }

    @classmethod
    def restore(
        cls, parameters: dict[str, Any], tensors: dict[str, Tensor], module: torch.nn.Module | None = None
    ) -> Self:
        """Make the map again from the same module.

        Raises
        ------
        ValueError
            If no module is given, or one whose class, size or weights differ from what was saved.
        """
        if tensors:
            raise ValueError(f"a 'module' map stores no arrays, found {sorted(tensors)}")
        wanted = f"{parameters['module']} with {parameters['n_parameters']} parameters"
        if module is None:
            raise ValueError(
                f"the features come from a module ({wanted}), whose code is not stored: pass the same module,"
                " kd.load(path, module=net)"
            )
        made = cls(module, tuple(parameters["input_shape"]), batch_size=parameters["batch_size"])
        given = made.parameters()
        if given["sha256"] != parameters["sha256"]:
            found = f"{given['module']} with {given['n_parameters']} parameters"
            what = (
                "the same class and size with other weights" if found == wanted else f"{found}, not {wanted}"
            )
            raise ValueError(
                f"the module is not the one the set was made with: it is {what} (sha256"
                f" {given['sha256'][:12]}, saved {parameters['sha256'][:12]})"
            )
        return made

    def _features(self, X: Tensor) -> Tensor:
        module = self._copy(X.dtype, X.device)
        if X.shape[0] == 0:
            return X.new_zeros(0, self.n_features)
        return torch.cat([_run(module, rows) for rows in X.split(self.batch_size)])

    def _copy(self, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
        key = (dtype, device)
        if key not in self._copies:
            self._copies[key] = copy.deepcopy(self._module).to(device=device, dtype=dtype)
        return self._copies[key]

    def _probe(self) -> int:
        """Run the module on two rows, twice in both precisions; return the number of features."""
        rows = normal(0, "module.probe", (2, *self.input_shape))
        first = rows
        for dtype in (torch.float32, torch.float64):
            module = self._copy(dtype, rows.device)
            try:
                with torch.no_grad():
                    first, second = (_run(module, rows.to(dtype)) for _ in range(2))
            except ValueError:
                raise
            except Exception as error:
                raise ValueError(
                    f"the module {self._class} does not run on {str(dtype).removeprefix('torch.')} inputs of"
                    f" shape {tuple(rows.shape)}: {error}"
                ) from error
            if not torch.equal(first, second):
                raise ValueError(
                    f"the module {self._class} gave two outputs for the same input in evaluation mode: a"
                    " feature map must be deterministic (take random layers out)"
                )
        return first.shape[1]


def _run(module: torch.nn.Module, X: Tensor) -> Tensor:
    out = module(X)
    if not isinstance(out, Tensor):
        raise ValueError(f"the module must return a tensor, got {type(out).__name__}: wrap it to return one")
    if out.ndim == 0 or out.shape[0] != X.shape[0] or out.numel() == 0:
        raise ValueError(
            f"the module must return one row for each of {X.shape[0]} inputs, got shape {tuple(out.shape)}"
        )
    if out.dtype != X.dtype:
        raise ValueError(f"the module returned {out.dtype} for {X.dtype} inputs: keep casts out of it")
    return out.reshape(X.shape[0], math.prod(out.shape[1:]))


def _qualified_name(module: torch.nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _digest(module: torch.nn.Module) -> str:
    """sha256 over names, types, shapes and bytes of the state dict, in order of name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)};".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
