"""The state of an optimiser as tensors and plain values, and back, bit for bit."""

from typing import Any

import torch
from torch import Tensor


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """What its next step depends on, besides parameters.

    Returns
    -------
    tensors : dict
        By number of the parameter and name: "0.momentum_buffer".
    groups : list of dict
        Options of each group; plain values.

    Raises
    ------
    TypeError
        If it keeps anything but tensors of a parameter.
    """
    saved = optimizer.state_dict()
    groups = [
        {key: value for key, value in group.items() if key != "params"} for group in saved["param_groups"]
    ]
    tensors: dict[str, Tensor] = {}
    for index, entries in saved["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{key}"] = value
            elif value is not None:  # SGD without momentum keeps None, and starts from nothing as well
                raise TypeError(
                    f"{type(optimizer).__name__} keeps {key} as {type(value).__name__}: only tensors"
                )
    return tensors, groups


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], groups: list[dict[str, Any]]
) -> None:
    """Undo `optimizer_state`; tensors may lie on another device.

    Raises
    ------
    ValueError
        If the state is of another optimiser.
    """
    saved = optimizer.state_dict()
    if [group.keys() - {"base_lr"} for group in groups] != [
        group.keys() - {"base_lr", "params"} for group in saved["param_groups"]
    ]:
        raise ValueError(f"the state is of another optimiser than {type(optimizer).__name__}")
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        # The optimiser would go on with the tensor that it is given.
        state.setdefault(int(index), {})[key] = value.clone()
    restored = [
        {key: tuple(value) if isinstance(old.get(key), tuple) else value for key, value in new.items()}
        | {"params": old["params"]}
        for new, old in zip(groups, saved["param_groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": restored})
