"""How good a small set is: networks trained on it and tested, as `evaluate_synset` of published code does it.

`utils.py` of VICO-UoE/DatasetCondensation, copied by most later work: E + 1 epochs of SGD with momentum 0.9 and weight
decay 5e-4 on shuffled batches, augmented by one random operation each; after epoch E // 2 + 1 the rate falls to a tenth
and the momentum is lost; then one look at all test rows. That is the recipe "dsa" (or "dc-bench", without augmentation)
of `nn_baselines.training_recipes`, which starts here from the weights of the network that is given.

`evaluation_loop` is the loop around it in main.py and main_DM.py: all networks at once, on a CPU each on a core of its
own, on a GPU in one graph for all.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...nn_baselines.accuracy import network_accuracies
from ...nn_baselines.training import train_networks
from ...nn_baselines.training_recipes import TrainingRecipe, training_recipe
from ...solver.networks import NetworkSpec, NetworkStack
from .._call import random_state_kept
from .diff_augment import why_not_settings
from .loaded_rows import loaded_rows, why_not_rows
from .published_networks import copy_into, known_network, stacked
from .published_sources import is_known

# What the published class of augmentation parameters says, which are constants of ours.
_PARAMETERS = {
    "aug_mode": "S",
    "prob_flip": 0.5,
    "ratio_scale": 1.2,
    "ratio_rotate": 15.0,
    "ratio_crop_pad": 0.125,
    "ratio_cutout": 0.5,
    "brightness": 1.0,
    "saturation": 2.0,
    "contrast": 0.5,
}
# Accuracies below are compared as if they were this one, of which 0.3 is four standard deviations of the difference of
# two counts of 10,000 test rows.
_LEAST_ACCURACY = 0.05
# Test rows of one piece on its way through the networks.
_TEST_ROWS = 8192


def evaluate_synset(
    it_eval: int, net: nn.Module, images_train: Tensor, labels_train: Tensor, testloader: Any, args: Any
) -> tuple[nn.Module, float, float]:
    """Train a network on a set and test it.

    Computes what the original computes, with other random orders and augmentations, from a seed that is drawn from
    torch's global generator. Identical: the network's initial weights, the schedule and its batches' sizes, the test
    rows, the network that is returned (in evaluation mode, with its trained weights and running averages), the line
    that is printed. Gradients are not left behind. Rows of few images at a time keep activations in the cache of a
    core; test rows are decoded once.

    Returns
    -------
    net : Module
        The one that was given.
    acc_train : float
        Of the last epoch's batches, each before its step.
    acc_test : float
    """
    device = torch.device(args.device)
    net = net.to(device)
    spec = known_network(net, images_train)
    assert spec is not None
    stack, scores = _evaluated(spec, stacked([net], spec), images_train, labels_train, testloader, args)
    copy_into(net, stack, 0)
    net.eval()
    _print(it_eval, scores[0], args)
    return net, scores[0].train_accuracy, scores[0].test_accuracy


def evaluate_synset_guard(
    it_eval: int, net: nn.Module, images_train: Tensor, labels_train: Tensor, testloader: Any, args: Any
) -> str | None:
    """Why a call is left to the original."""
    del it_eval
    return _other_data(images_train, labels_train, testloader, args) or _other_network(
        net, images_train, labels_train, testloader, args
    )


def evaluation_loop(
    *,
    args: Any,
    model_eval: str,
    channel: int,
    num_classes: int,
    im_size: Sequence[int],
    image_syn: Tensor,
    label_syn: Tensor,
    testloader: Any,
    get_network: Callable[..., nn.Module],
    evaluate_synset: Callable[..., Any],
) -> tuple[list[float]]:
    """Test accuracies of several networks trained on the same set, all at once.

    Computes what one call of `evaluate_synset` after the other computes. Identical: as there; networks are made by
    the script's own function, which seeds by the clock, so the clock is waited for between two of them.
    """
    del evaluate_synset
    nets = []
    for _ in range(args.num_eval):
        nets.append(get_network(model_eval, channel, num_classes, im_size).to(args.device))
        _wait_for_the_clock()
    images = image_syn.detach()
    spec = known_network(nets[0], images)
    assert spec is not None
    _, scores = _evaluated(spec, stacked(nets, spec), images, label_syn.detach(), testloader, args)
    for number, score in enumerate(scores):
        _print(number, score, args)
    return ([score.test_accuracy for score in scores],)


def evaluation_loop_guard(
    *,
    args: Any,
    model_eval: str,
    channel: int,
    num_classes: int,
    im_size: Sequence[int],
    image_syn: Tensor,
    label_syn: Tensor,
    testloader: Any,
    get_network: Callable[..., nn.Module],
    evaluate_synset: Callable[..., Any],
) -> str | None:
    """Why a passage is left to the original."""
    if not is_known("vico.evaluate_synset", evaluate_synset):
        return "its evaluate_synset is none that we know"
    if not isinstance(args.num_eval, int) or args.num_eval < 2:
        return "there are no several networks"
    images, labels = image_syn.detach(), label_syn.detach()
    reason = _other_data(images, labels, testloader, args)
    if reason is not None:
        return reason
    with random_state_kept():
        net = get_network(model_eval, channel, num_classes, im_size).to(args.device)
        return _other_network(net, images, labels, testloader, args)


def accuracy_gap(original: Any, replacement: Any) -> float:
    """Difference of two test accuracies, or of the means of two loops', as a part of the original's.

    A part, so that a network that has learned nothing does not pass for one that has learned little.
    """
    one, other = (
        float(np.mean(result[0]) if isinstance(result[0], list) else result[2])
        for result in (original, replacement)
    )
    return abs(one - other) / max(one, _LEAST_ACCURACY)


class _Score(NamedTuple):
    train_loss: float
    train_accuracy: float
    test_accuracy: float
    seconds: float


def _evaluated(
    spec: NetworkSpec, start: NetworkStack, images: Tensor, labels: Tensor, testloader: Any, args: Any
) -> tuple[NetworkStack, list[_Score]]:
    """Networks trained from where they start, and their scores."""
    device = torch.device(args.device)
    X = images.detach().to(device).float()
    Y = nn.functional.one_hot(labels.detach().to(device).long(), spec.n_outputs).to(X.dtype)
    rows = loaded_rows(testloader, device)
    if _strategy(args):
        # What the published augmentation leaves there, and scripts print.
        args.dsa_param.Siamese, args.dsa_param.latestseed = False, -1
    seed = int(torch.randint(2**31, ()))
    met = torch.zeros(start.count, 2, dtype=torch.float64)
    begin = time.perf_counter()
    stack = train_networks(spec, X, Y, _recipe(args), count=start.count, seed=seed, start=start, met=met)
    seconds = (time.perf_counter() - begin) / start.count
    pieces = zip(*(part.split(_TEST_ROWS) for part in rows), strict=True)
    tested = network_accuracies(stack, pieces)
    return stack, [
        _Score(float(loss), np.float64(train), np.float64(test), seconds)
        for (loss, train), test in zip(met.tolist(), tested.tolist(), strict=True)
    ]


def _recipe(args: Any) -> TrainingRecipe:
    """The schedule that the options of a script ask for."""
    return training_recipe(
        "dsa",
        augment=_strategy(args),
        rate=float(args.lr_net),
        epochs=int(args.epoch_eval_train),
        batch_size=args.batch_train,
    )


def _strategy(args: Any) -> str:
    return "" if not args.dsa or args.dsa_strategy in ("none", "None") else args.dsa_strategy


def _other_options(args: Any) -> str | None:
    """Why options are not those of the recipe."""
    wanted = ("device", "lr_net", "epoch_eval_train", "batch_train", "dsa")
    if not all(hasattr(args, name) for name in wanted):
        return "an option is missing"
    if torch.device(args.device).type not in ("cpu", "cuda"):
        return "it runs on another device than a CPU or a CUDA device"
    if torch.is_autocast_enabled(torch.device(args.device).type):
        return "it runs under autocast"
    if not (isinstance(args.batch_train, int) and args.batch_train > 0 and int(args.epoch_eval_train) > 0):
        return "there are no batches, or no epochs"
    if not 0 < float(args.lr_net) < float("inf"):
        return "the rate is not positive"
    if not args.dsa:
        given = getattr(args, "dc_aug_param", 0)
        if given is not None and not (isinstance(given, dict) and given.get("strategy") == "none"):
            return "it augments in the way of DC"
        return None
    if not isinstance(getattr(args, "dsa_strategy", None), str):
        return "its augmentation strategy is no text"
    return _other_augmentation(_strategy(args), getattr(args, "dsa_param", None))


def _other_augmentation(strategy: str, parameters: Any) -> str | None:
    """Why an augmentation is not that of the recipe."""
    if not strategy:
        return None
    names = strategy.split("_")
    reason = why_not_settings(names, parameters)
    if reason is not None:
        return reason
    if len(set(names)) < len(names):
        return "its augmentation strategy names an operation twice"
    if any(getattr(parameters, name, None) != value for name, value in _PARAMETERS.items()):
        return "its augmentation has other parameters"
    return None


def _other_data(images: Any, labels: Any, testloader: Any, args: Any) -> str | None:
    """Why options or rows are not those of the recipe; no network is looked at."""
    return _other_options(args) or _other_rows(images, labels) or why_not_rows(testloader)


def _other_rows(images: Any, labels: Any) -> str | None:
    """Why images and labels are not those of a small set with classes."""
    if (
        not isinstance(images, Tensor)
        or images.ndim != 4
        or not len(images)
        or not images.is_floating_point()
    ):
        return "the rows are no images"
    if not isinstance(labels, Tensor) or labels.shape != images.shape[:1]:
        return "there is not one class for each image"
    if not bool(torch.isfinite(images).all()):
        return "images are not finite"
    return None


def _other_network(net: Any, images: Tensor, labels: Tensor, testloader: Any, args: Any) -> str | None:
    """Why a network is none of ours, or cannot be trained or tested here; test rows are read."""
    spec = known_network(net, images)
    if spec is None:
        return "the network is none that we know"
    if spec.norm == "batch" and len(labels) % args.batch_train == 1:
        return "batch norm is given a single row"
    rows = loaded_rows(testloader, torch.device(args.device))
    if tuple(rows[0].shape[1:]) != spec.input_shape:
        return "test rows have another shape"
    for classes in (labels.long(), rows[1]):
        if not 0 <= int(classes.min()) <= int(classes.max()) < spec.n_outputs:
            return "classes are none of the network's"
    return None


def _print(number: int, score: _Score, args: Any) -> None:
    """The line of the original."""
    now = time.strftime("[%Y-%m-%d %H:%M:%S]", time.localtime())
    print(
        f"{now} Evaluate_{number:02d}: epoch = {int(args.epoch_eval_train):04d} train time = {int(score.seconds)} s"
        f" train loss = {score.train_loss:.6f} train acc = {score.train_accuracy:.4f},"
        f" test acc = {score.test_accuracy:.4f}"
    )


def _wait_for_the_clock() -> None:
    """Two networks of one millisecond would be the same one."""
    time.sleep(0.002)
