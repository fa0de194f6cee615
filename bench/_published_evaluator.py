"""The published evaluation loop, one network after the other, as something to measure against.

The protocol of `evaluate_synset` and `DiffAugment` (dataset condensation, Zhao and Bilen 2021-2023), written for
this benchmark: a DataLoader over a TensorDataset, one random operation of DSA a batch, a loss and an accuracy read
back every batch, batches of 256 in training and in testing. `clone` runs the authors' own code instead.
"""

import math
import sys
import types

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

STRATEGY = "color_crop_cutout_flip_scale_rotate"


def convnet(channels, classes, width=128, depth=3, size=32):
    """The published ConvNet with instance norm, drawn by torch's own generator."""
    layers = []
    for block in range(depth):
        layers += [nn.Conv2d(width if block else channels, width, 3, padding=1), nn.GroupNorm(width, width)]
        layers += [nn.ReLU(inplace=True), nn.AvgPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * (size >> depth) ** 2, classes))


def diff_augment(x, strategy=STRATEGY):
    """One operation of the strategy for the batch, with parameters for each image."""
    operations = strategy.split("_")
    name = operations[int(torch.randint(len(operations), ()))]
    n, _, h, w = x.shape

    def each(low, high):
        return low + (high - low) * torch.rand(n, 1, 1, 1)

    if name == "flip":
        return torch.where(each(0, 1) < 0.5, x.flip(3), x)
    if name == "color":
        x = x + each(-0.5, 0.5)
        mean = x.mean(1, keepdim=True)
        x = (x - mean) * each(0, 2) + mean
        mean = x.mean((1, 2, 3), keepdim=True)
        return (x - mean) * each(0.5, 1.5) + mean
    if name == "crop":
        most = int(h / 8 + 0.5)
        padded = F.pad(x, [most] * 4)
        down = torch.arange(h) + torch.randint(0, 2 * most + 1, (n, 1))
        right = torch.arange(w) + torch.randint(0, 2 * most + 1, (n, 1))
        return padded[torch.arange(n)[:, None, None], :, down[:, :, None], right[:, None]].permute(0, 3, 1, 2)
    if name == "cutout":
        side = int(h / 2 + 0.5)
        first = torch.randint(0, h + (1 - side % 2), (2, n, 1)) - side // 2
        inside = [
            (place >= at.clamp(0)) & (place < (at + side).clamp(max=h))
            for place, at in ((torch.arange(h), first[0]), (torch.arange(w), first[1]))
        ]
        return x * ~(inside[0][:, None, :, None] & inside[1][:, None, None, :])
    theta = torch.zeros(n, 2, 3)
    if name == "scale":
        theta[:, 0, 0], theta[:, 1, 1] = (each(1 / 1.2, 1.2).flatten() for _ in range(2))
    else:
        angle = each(-15, 15).flatten() * math.pi / 180
        theta[:, 0, 0], theta[:, 1, 1] = angle.cos(), angle.cos()
        theta[:, 0, 1], theta[:, 1, 0] = (-angle).sin(), angle.sin()
    return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)


def epoch(loader, net, optimizer=None):
    """One pass, a training pass with an optimiser; mean loss and accuracy."""
    net.train(optimizer is not None)
    loss_sum, hits, rows = 0.0, 0, 0
    for images, labels in loader:
        if optimizer is not None:
            images = diff_augment(images)
        output = net(images)
        loss = F.cross_entropy(output, labels)
        loss_sum += loss.item() * len(labels)
        hits += (output.detach().cpu().numpy().argmax(-1) == labels.numpy()).sum()
        rows += len(labels)
        if optimizer is not None:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return loss_sum / rows, hits / rows


def evaluate(images, labels, test_images, test_labels, epochs):
    """One new network after the published schedule, and its test accuracy."""
    net, rate = convnet(images.shape[1], int(test_labels.max()) + 1, size=images.shape[-1]), 0.01

    def sgd():
        return torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)

    optimizer = sgd()
    train = DataLoader(TensorDataset(images, labels), batch_size=256, shuffle=True)
    for number in range(epochs + 1):
        epoch(train, net, optimizer)
        if number == epochs // 2 + 1:
            rate *= 0.1
            optimizer = sgd()
    return net, float(epoch(DataLoader(TensorDataset(test_images, test_labels), batch_size=256), net)[1])


def clone(path):
    """`evaluate` by the code of a clone of VICO-UoE/DatasetCondensation, without the packages that it only imports."""
    for name, members in {
        "torchvision": {"datasets": None, "transforms": None},
        "scipy.ndimage.interpolation": {"rotate": None},
    }.items():
        sys.modules.setdefault(name, types.ModuleType(name)).__dict__.update(members)
    sys.path.insert(0, str(path))
    import networks
    import utils

    sys.path.remove(str(path))
    parameters = utils.ParamDiffAug()

    def evaluate(images, labels, test_images, test_labels, epochs):
        arguments = types.SimpleNamespace(
            device="cpu",
            lr_net=0.01,
            epoch_eval_train=epochs,
            batch_train=256,
            dsa=True,
            dsa_strategy=STRATEGY,
            dsa_param=parameters,
            dc_aug_param=None,
        )
        size = tuple(images.shape[2:])
        net = networks.ConvNet(images.shape[1], 10, 128, 3, "relu", "instancenorm", "avgpooling", size)
        test = DataLoader(TensorDataset(test_images, test_labels), batch_size=256)
        net, _, accuracy = utils.evaluate_synset(0, net, images, labels, test, arguments)
        return net, float(accuracy)

    return evaluate
