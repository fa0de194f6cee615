r"""The loss of a step of distribution matching (DM), as `main` in main_DM.py of VICO-UoE/DatasetCondensation has it.

.. math:: L = \sum_c \Big\| \frac{1}{|T_c|} \sum_{x \in T_c} f(A_c x) -
                            \frac{1}{|S_c|} \sum_{s \in S_c} f(A_c s) \Big\|^2

with T_c a batch of class c, S_c its synthetic images, f the embedding of a new network and A_c one siamese
augmentation. There, class after class goes through the network, and the graphs of all classes are kept until the one
backward pass. Here rows are embedded without a graph: on a CPU in pieces whose activations stay in the cache, each by
one core, while the main thread augments the next class; on a GPU all classes at once. On a CPU, synthetic images are
differentiated through a few whole classes at a time (no two classes share a term of L), so that no graph is left when
the loss is returned and its backward pass costs nothing.
"""

import collections
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import torch
from torch import Tensor

from ...solver._workers import single_core_workers
from ...solver.learners.class_means import class_sums, mean_gaps
from ...solver.learners.class_pieces import with_gradient
from ...solver.networks import NetworkSpec
from .published_networks import known_embedding, twin

# Rows whose activations stay in the cache of one core, and rows of one call on a GPU.
PIECE_ROWS = 32
_GPU_ROWS = 4096
# The published augmentation takes its seeds from the clock, and counts up from them at every draw.
_SEEDS, _SEED_STEP = 100_000, 97

Embed = Callable[[Tensor], Tensor]


def dm_loss(
    *,
    args: Any,
    num_classes: int,
    channel: int,
    im_size: Sequence[int],
    image_syn: Tensor,
    embed: Embed,
    get_images: Callable[[int, int], Tensor],
    DiffAugment: Callable[..., Tensor],  # the script's name
) -> tuple[Tensor]:
    """The loss of a step, differentiable in the synthetic images.

    Computes what the original computes. Identical: the batches, drawn by the script's own function in the same order
    from the same generator; the augmentation of a class for a given seed. Seeds are of the clock in both, here one
    reading and a step for each class, since readings of a faster loop would fall into the same millisecond.

    Returns
    -------
    loss : Tensor, shape ()
        On the images' device, of which ``backward()`` gives `image_syn` its gradient, once on a CPU; derivatives of
        second order are an error there.
    """
    spec = known_embedding(_owner(embed), image_syn)
    assert spec is not None
    network = twin(_owner(embed), spec).train().requires_grad_(False)
    shape = (args.ipc, channel, *im_size)
    seeds = _class_seeds(num_classes)

    def images_of(c: int) -> tuple[Tensor, Tensor]:
        """Rows and synthetic images of a class, augmented alike."""
        real = get_images(c, args.batch_real)
        synthetic = image_syn[c * args.ipc : (c + 1) * args.ipc].reshape(shape)
        if not args.dsa:
            return real, synthetic
        real, synthetic = (
            DiffAugment(images, args.dsa_strategy, seed=seeds[c], param=args.dsa_param)
            for images in (real, synthetic)
        )
        return real, synthetic

    if image_syn.device.type != "cpu":
        return (_on_gpu(network.embed, images_of, num_classes),)
    return (_on_cpu(network.embed, images_of, num_classes, image_syn),)


def dm_loss_guard(
    *,
    args: Any,
    num_classes: int,
    channel: int,
    im_size: Sequence[int],
    image_syn: Tensor,
    embed: Embed,
    get_images: Callable[[int, int], Tensor],
    DiffAugment: Callable[..., Tensor],
) -> str | None:
    """Why a step is left to the original."""
    del channel, im_size, get_images, DiffAugment
    if "BN" in args.model:
        return "batch norm takes the rows of all classes at once"
    if not torch.is_grad_enabled():
        return "no gradients are wanted"
    if image_syn.dtype != torch.float32 or not (image_syn.is_leaf and image_syn.requires_grad):
        return "the synthetic images are no leaf of float32"
    if image_syn.device.type not in ("cpu", "cuda") or torch.is_autocast_enabled(image_syn.device.type):
        return "it runs under autocast, or on another device than a CPU or a CUDA device"
    if len(image_syn) != num_classes * args.ipc or args.batch_real < 1:
        return "there are not as many images of each class"
    net = _owner(embed)
    spec: NetworkSpec | None = known_embedding(net, image_syn)
    if spec is None or spec.norm == "batch" or next(net.parameters()).device != image_syn.device:
        return "the network is none that we know"
    if any(parameter.requires_grad for parameter in net.parameters()):
        return "gradients in the network's parameters are wanted"
    return None


def _owner(embed: Any) -> Any:
    """The module of which `embed` is the method."""
    return (
        embed.__self__ if getattr(embed, "__name__", "") == "embed" and hasattr(embed, "__self__") else None
    )


def _class_seeds(count: int) -> list[int]:
    start = int(time.time() * 1000)
    return [(start + _SEED_STEP * c) % _SEEDS for c in range(count)]


def _on_gpu(embed: Embed, images_of: Callable[[int], tuple[Tensor, Tensor]], k: int) -> Tensor:
    pairs = [images_of(c) for c in range(k)]
    (real, of), (synthetic, classes) = (_joined(list(images)) for images in zip(*pairs, strict=True))
    del pairs
    wanted = torch.zeros((), device=real.device)
    with torch.no_grad():
        for rows, part in zip(real.split(_GPU_ROWS), of.split(_GPU_ROWS), strict=True):
            wanted = wanted + class_sums(embed(rows), part, k)
    return mean_gaps(wanted, class_sums(embed(synthetic), classes, k)).sum()


def _on_cpu(
    embed: Embed, images_of: Callable[[int], tuple[Tensor, Tensor]], k: int, image_syn: Tensor
) -> Tensor:
    synthetic: list[Tensor] = []
    means: list[Tensor] = []
    together = max(1, min(PIECE_ROWS * k // len(image_syn), -(-k // torch.get_num_threads())))
    with single_core_workers(None) as pool:
        waiting: collections.deque[list[Future[Tensor]]] = collections.deque()
        for c in range(k):
            real, of_class = images_of(c)
            synthetic.append(of_class)
            waiting.append(
                [pool.submit(_mean_part, embed, rows, len(real)) for rows in real.split(PIECE_ROWS)]
            )
            # One class ahead: the rows of no more than two are in memory.
            if len(waiting) > 1:
                means.append(_sum(waiting.popleft()))
        means.append(_sum(waiting.popleft()))
        groups = [slice(first, first + together) for first in range(0, k, together)]
        parts = [pool.submit(_gap, embed, torch.stack(means[group]), synthetic[group]) for group in groups]
        values, gradients = zip(*(part.result() for part in parts), strict=True)
    inner = [part for gradient in gradients for part in gradient.unbind()]
    (gradient,) = torch.autograd.grad(synthetic, image_syn, inner)
    return with_gradient(image_syn, torch.stack(values).sum(), gradient)


@torch.no_grad()
def _mean_part(embed: Embed, rows: Tensor, count: int) -> Tensor:
    """What rows add to the mean of the features of `count` rows."""
    return embed(rows).sum(0) / count


def _sum(futures: list[Future[Tensor]]) -> Tensor:
    return torch.stack([future.result() for future in futures]).sum(0)


def _gap(embed: Embed, means: Tensor, images: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Squared distances of some classes' mean features from those wanted, and the gradient in their images."""
    with torch.enable_grad():
        leaf = torch.stack([each.detach() for each in images]).requires_grad_()
        found = embed(leaf.flatten(0, 1)).unflatten(0, leaf.shape[:2]).mean(1)
        value = (means - found).square().sum()
        (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


def _joined(images: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Images of classes in order, and the class of each."""
    sizes = torch.tensor([len(each) for each in images], device=images[0].device)
    return torch.cat(images), torch.arange(len(images), device=sizes.device).repeat_interleave(sizes)
