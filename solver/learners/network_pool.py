r"""A pool of briefly trained networks, whose features a set is learned for (FRePo, Zhou et al. 2022).

Each step one network of the pool is picked, its features serve the step, and it is trained for one step on the set
as it then is: Adam on half the squared error of a linear head. A network that has had `max_updates` of these is
replaced by a fresh one. At the start the networks count as trained to evenly spread ages, so that they are not all
replaced at once. So the set is learned for networks of all ages, and no training is differentiated through.

Everything is keyed: the network picked at a step by (seed, step), the weights of a fresh network by (seed, slot,
generation). Ages, generations, weights and moments of Adam are the whole state.

**Batch normalisation** takes the statistics of the set while a network is trained on it. Whoever uses the features
needs those of each row alone, so the statistics of the set are folded into weights and biases (`freeze`): with
:math:`\mu, \sigma` of the set, and scale :math:`\gamma` and shift :math:`\beta` of a channel,

.. math:: \gamma\,\frac{W x + b - \mu}{\sigma} + \beta = W' x + b', \qquad
          W' = \frac{\gamma}{\sigma} W, \quad b' = \frac{\gamma}{\sigma} (b - \mu) + \beta .

A frozen network is a plain convolutional network, which is what a file stores. The published code keeps running
averages instead (a tenth of the last, nine tenths of the new; none before the first update).
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...kernels import normal, uniform
from .._check import check_count, check_non_negative
from ..conv_networks import ConvNetworks, ConvSpec, conv_features, draw_conv_networks
from ..learner import State

RATE = 3e-4
# Rows of the set in one update, where it has more.
UPDATE_ROWS = 1000
_NORM_EPS = 1e-5  # torch's own


class NetworkPool:
    """Networks in training on a set that is being learned.

    Parameters
    ----------
    spec : ConvSpec
    n_outputs : int
        k, of the linear heads.
    size : int, default 10
        Number of networks.
    max_updates : int, default 100
        Updates after which a network is replaced, at the step after the last. 0: every network serves one step and
        is not trained, as in RFAD.
    rate : float, default 3e-4
        Of Adam.
    seed : int
    device, dtype
        Of the networks.

    Attributes
    ----------
    ages : list of int
        Updates of each network, or what it counted as at the start and its updates since.
    generations : list of int
        How often each network was replaced.

    Raises
    ------
    ValueError
        If a number is out of range.

    Notes
    -----
    Memory: three times the weights of each network, for Adam's moments.
    """

    def __init__(
        self,
        spec: ConvSpec,
        n_outputs: int,
        *,
        size: int = 10,
        max_updates: int = 100,
        rate: float = RATE,
        seed: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        check_count(size, "size")
        self.max_updates = check_count(max_updates, "max_updates", 0)
        self._seed = seed
        self._made = {"spec": spec, "n_outputs": n_outputs, "rate": rate, "device": device, "dtype": dtype}
        self.ages = [slot * max_updates // size for slot in range(size)]
        self.generations = [0] * size
        self._networks = [self._fresh(slot) for slot in range(size)]

    def pick(self, step: int) -> int:
        """The network that serves a step: uniform and independent over steps."""
        return int(float(uniform(self._seed, f"frepo.pick.{step}", 1)) * len(self.ages))

    def frozen(self, slot: int, X: Tensor) -> ConvNetworks:
        """A network as it is, in `freeze` with the rows X of the set; shares memory with it, so use it up first."""
        return self._networks[slot].frozen(X)

    def advance(self, slot: int, X: Tensor, Y: Tensor) -> None:
        """Train a network for one step on rows of the set, X (b, *input_shape) and Y (b, k), or replace it."""
        if self.ages[slot] >= self.max_updates:
            self.ages[slot] = 0
            self.generations[slot] += 1
            self._networks[slot] = self._fresh(slot)
        else:
            self._networks[slot].update(X, Y)
            self.ages[slot] += 1

    def state(self) -> State:
        """Weights and moments of all networks; ages and generations."""
        tensors = {
            f"{slot}.{name}": value
            for slot, network in enumerate(self._networks)
            for name, value in network.state().items()
        }
        return tensors, {"ages": list(self.ages), "generations": list(self.generations)}

    def restore(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        """Go back to what `state` described, bit for bit."""
        self.ages, self.generations = list(plain["ages"]), list(plain["generations"])
        parts: list[dict[str, Tensor]] = [{} for _ in self._networks]
        for name, value in tensors.items():
            slot, _, rest = name.partition(".")
            parts[int(slot)][rest] = value
        self._networks = [self._fresh(slot) for slot in range(len(parts))]
        for network, part in zip(self._networks, parts, strict=True):
            network.restore(part)

    def _fresh(self, slot: int) -> "_Network":
        return _Network(seed=self._seed, stream=f"frepo.{slot}.{self.generations[slot]}", **self._made)


def train_network(
    X: Tensor,
    Y: Tensor,
    spec: ConvSpec,
    *,
    steps: int,
    seed: int,
    count: int = 1,
    rate: float = RATE,
) -> ConvNetworks:
    """Fresh networks trained on a set, as those of the pool are.

    Parameters
    ----------
    X : Tensor, shape (m, *spec.input_shape)
        Their dtype and device are those of the networks.
    Y : Tensor, shape (m, k)
    spec : ConvSpec
    steps : int
        Updates; not below 0.
    seed : int
        Defines the weights at the start, and which rows are taken where there are more than `UPDATE_ROWS`.
    count : int, default 1
        Networks, trained independently: network i is the same for every count.
    rate : float, default 3e-4

    Returns
    -------
    ConvNetworks
        Frozen with the statistics of the set.

    Raises
    ------
    ValueError
        If a number is out of range.
    """
    check_count(steps, "steps", 0)
    trained = []
    for index in range(check_count(count, "count")):
        stream = f"frepo.stored.{index}"
        network = _Network(
            spec, Y.shape[1], rate=rate, seed=seed, stream=stream, device=X.device, dtype=X.dtype
        )
        for step in range(steps):
            rows = update_rows(len(X), seed, f"{stream}.{step}").to(X.device)
            network.update(X[rows], Y[rows])
        trained.append(network.frozen(X[update_rows(len(X), seed, stream).to(X.device)]))
    names = trained[0].tensors
    stacked = {name: torch.cat([one.tensors[name] for one in trained]) for name in names}
    return ConvNetworks(trained[0].spec, stacked)


def update_rows(m: int, seed: int, stream: str) -> Tensor:
    """Rows of a set of m points that one update takes: all, or `UPDATE_ROWS` of them without replacement."""
    if m <= UPDATE_ROWS:
        return torch.arange(m)
    return uniform(seed, f"{stream}.rows", m).argsort()[:UPDATE_ROWS]


def freeze(networks: ConvNetworks, X: Tensor) -> ConvNetworks:
    """Networks without batch normalisation that have the same features for the rows X.

    Parameters
    ----------
    networks : ConvNetworks
    X : Tensor, shape (n, *input_shape)
        Rows whose mean and variance (biased) of each channel are folded into weights and biases.

    Returns
    -------
    ConvNetworks
        `networks` themselves if they have no batch normalisation. Without derivatives.
    """
    spec = networks.spec
    if spec.norm != "batch":
        return ConvNetworks(spec, {name: value.detach() for name, value in networks.tensors.items()})
    plain = ConvSpec(spec.input_shape, spec.widths, spec.depth, spec.filter_size, spec.leak)
    folded: dict[str, Tensor] = {}
    with torch.no_grad():
        # Channels of all networks lie side by side, as groups from the second block on.
        h, count = X, networks.count
        for block in range(spec.depth):
            weight, scale, shift = (
                networks.tensors[f"{part}.{block}"] for part in ("weight", "scale", "shift")
            )
            groups = count if block else 1
            h = functional.conv2d(h, weight.flatten(0, 1), None, padding=spec.filter_size // 2, groups=groups)
            variance, mean = torch.var_mean(h, (0, 2, 3), correction=0)
            factor = scale / (variance.reshape_as(scale) + _NORM_EPS).sqrt()
            # The mean over the rows is taken without the bias, which cancels.
            offset = shift - factor * mean.reshape_as(shift)
            folded[f"weight.{block}"] = weight * factor[:, :, None, None, None]
            folded[f"bias.{block}"] = offset
            h = h * factor.flatten()[:, None, None] + offset.flatten()[:, None, None]
            h = functional.avg_pool2d(functional.leaky_relu(h, spec.leak), 2)
    return ConvNetworks(plain, folded)


class _Network:
    """One network with a linear head, and Adam."""

    def __init__(
        self,
        spec: ConvSpec,
        n_outputs: int,
        *,
        rate: float,
        seed: int,
        stream: str,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> None:
        drawn = draw_conv_networks(spec, 1, seed, stream, device=device, dtype=dtype)
        p = spec.n_features
        head = normal(seed, f"{stream}.head", (p, n_outputs)).to(device, dtype) / math.sqrt(p)
        self._parameters = {**drawn.tensors, "head": head, "offset": head.new_zeros(n_outputs)}
        for value in self._parameters.values():
            value.requires_grad_()
        self._networks = ConvNetworks(spec, {name: self._parameters[name] for name in drawn.tensors})
        self._optimizer = torch.optim.Adam(self._parameters.values(), check_non_negative(rate, "rate"))

    def update(self, X: Tensor, Y: Tensor) -> None:
        head, offset = self._parameters["head"], self._parameters["offset"]
        with torch.enable_grad():
            predicted = conv_features(self._networks, X).flatten(1) @ head + offset
            loss = 0.5 * (predicted - Y).square().sum(dim=1).mean()
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
        self._optimizer.step()

    def frozen(self, X: Tensor) -> ConvNetworks:
        return freeze(self._networks, X)

    def state(self) -> dict[str, Tensor]:
        tensors = {name: value.detach() for name, value in self._parameters.items()}
        for name, value in self._parameters.items():
            tensors |= {f"{name}:{key}": entry for key, entry in self._optimizer.state[value].items()}
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in self._parameters.items():
                value.copy_(tensors[name])
        for full, entry in tensors.items():
            name, _, key = full.partition(":")
            if key:
                # Counters stay where Adam made them, on the CPU.
                device = entry.device if key == "step" else self._parameters[name].device
                self._optimizer.state[self._parameters[name]][key] = entry.clone().to(device)
