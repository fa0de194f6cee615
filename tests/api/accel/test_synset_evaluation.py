"""Networks trained on a set and tested as published code does it: the same schedule, weights in place, our speed."""

import argparse
import ast
import copy
import dataclasses
import importlib
import inspect
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)

from kernel_distill import accel
from kernel_distill.accel import _report, registry
from kernel_distill.accel._call import VerificationError, accelerated
from kernel_distill.accel._fingerprint import definition_of, find_run, fingerprint, fingerprint_of
from kernel_distill.accel._records import records
from kernel_distill.accel.registry.vico import EVALUATE_SYNSET, EVALUATION_LOOP
from kernel_distill.accel.replacements import diff_augment, synset_evaluation
from kernel_distill.accel.replacements.loaded_rows import loaded_rows, why_not_rows
from kernel_distill.accel.replacements.published_networks import known_network, twin
from kernel_distill.solver.networks import build_network, network_spec

from .peers import peer_path

K, SHAPE = 3, (2, 8, 8)
CPU = torch.device("cpu")
STRATEGY = "color_crop_cutout_flip_scale_rotate"

# A script with the published interface, in words of our own.
SCRIPT = """
import torch

def get_network(model, channel, num_classes, im_size):
    return make(model)

def evaluate_synset(it_eval, net, images_train, labels_train, testloader, args):
    calls.append(it_eval)
    return net, 1.0, 0.5

def main(args, model_eval, channel, num_classes, im_size, image_syn, label_syn, testloader):
    accs = []
    for number in range(args.num_eval):
        model = get_network(model_eval, channel, num_classes, im_size)
        accs.append(evaluate_synset(number, model, image_syn.detach(), label_syn, testloader, args)[2])
    return accs

calls = []
"""


def pairs(n, shape=SHAPE):
    """Rows and classes."""
    classes = torch.arange(n) % K
    rows = torch.randn(n, *shape, generator=torch.Generator().manual_seed(n))
    rows[:, 0] += classes[:, None, None].float() - 1
    return TensorDataset(rows, classes)


class Flipped(Dataset):
    """Rows that may be others at the next reading."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        X, label = self.data[index]
        return (X.flip(2) if torch.rand(()) < 0.5 else X), label


class ConvNet(nn.Module):
    """The published layout: layers in `features`, then `classifier`."""

    def __init__(self, norm="instance", pooling=nn.AvgPool2d, activation=nn.ReLU, dropout=0.0, width=4):
        super().__init__()
        layers, c, side = [], SHAPE[0], SHAPE[1]
        norms = {
            "instance": lambda: nn.GroupNorm(width, width),
            "group": lambda: nn.GroupNorm(4, width),
            "batch": lambda: nn.BatchNorm2d(width),
            "layer": lambda: nn.LayerNorm([width, side, side]),
        }
        for _ in range(2):
            layers.append(nn.Conv2d(c, width, 3, padding=1))
            layers += [norms[norm]()] if norm in norms else []
            layers.append(activation())
            layers += [pooling(2)] if pooling else []
            c, side = width, side // 2 if pooling else side
        self.features, self.dropout = nn.Sequential(*layers), dropout
        self.classifier = nn.Linear(width * side * side, K)

    def embed(self, x):
        return self.features(x).flatten(1)

    def forward(self, x):
        return self.classifier(nn.functional.dropout(self.embed(x), self.dropout, self.training))


class Swish(nn.Module):
    def forward(self, x):
        return x * x.sigmoid()


class Parameters:
    """Of the augmentation; the published table of functions is in the module of its class."""

    def __init__(self, **changes):
        vars(self).update({**synset_evaluation._PARAMETERS, **changes})


@pytest.fixture(autouse=True)
def table(monkeypatch):
    """What the augmentation does, by the names of functions."""
    made = types.ModuleType("invented_table")
    made.AUGMENT_FNS = {
        name: [types.SimpleNamespace(__name__=function) for function in functions]
        for name, functions in diff_augment._FUNCTIONS.items()
    }
    monkeypatch.setitem(sys.modules, made.__name__, made)
    monkeypatch.setattr(Parameters, "__module__", made.__name__)
    return made.AUGMENT_FNS


def options(**changes):
    parameters = Parameters()
    given = {"device": "cpu", "lr_net": 0.05, "epoch_eval_train": 6, "batch_train": 64, "dsa": False}
    given |= {"dc_aug_param": None, "dsa_strategy": STRATEGY, "dsa_param": parameters, "num_eval": 3}
    return argparse.Namespace(**{**given, **changes})


def seeded(make=ConvNet, seed=0, **given):
    torch.manual_seed(seed)
    return make(**given)


def small_set(n=9):
    X, classes = pairs(n).tensors
    return X, classes.double()  # whatever they are, labels become integers


def loader(n=40, **given):
    return DataLoader(**{"dataset": pairs(n), "batch_size": 16, **given})


def plain_evaluation(net, X, classes, test, args):
    """What is published, for sets of one batch without augmentation, where no random number is drawn."""
    rate, epochs = args.lr_net, args.epoch_eval_train
    optimizer = torch.optim.SGD(net.parameters(), rate, momentum=0.9, weight_decay=5e-4)
    for epoch in range(epochs + 1):
        net.train()
        outputs = net(X)
        loss = nn.functional.cross_entropy(outputs, classes.long())
        seen = (outputs.argmax(1) == classes).double().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if epoch == epochs // 2 + 1:
            optimizer = torch.optim.SGD(net.parameters(), 0.1 * rate, momentum=0.9, weight_decay=5e-4)
    net.eval()
    hits = [(net(x).argmax(1) == c).double() for x, c in test]
    return float(loss.detach()), float(seen), float(torch.cat(hits).mean())


@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
@pytest.mark.parametrize("epochs", [1, 6, 7])
def test_is_the_published_training_from_the_weights_that_are_given(norm, epochs, capsys):
    X, classes = small_set()
    args, net = options(epoch_eval_train=epochs), seeded(norm=norm)
    expected = copy.deepcopy(net).double()
    # Only the oracle is in double precision.
    test = [(x.double(), c) for x, c in loader()]
    loss, seen, tested = plain_evaluation(expected, X.double(), classes, test, args)
    assert synset_evaluation.evaluate_synset_guard(4, net, X, classes, loader(), args) is None
    found, train, accuracy = synset_evaluation.evaluate_synset(4, net, X, classes, loader(), args)
    assert found is net
    assert not net.training
    assert (type(train), type(accuracy)) == (np.float64, np.float64)
    assert (train, accuracy) == (pytest.approx(seen), pytest.approx(tested))
    states = net.state_dict(), expected.state_dict()
    for (name, value), other in zip(states[0].items(), states[1].values(), strict=True):
        # Float32 through eight steps.
        torch.testing.assert_close(value.double(), other.double(), rtol=1e-4, atol=1e-5, msg=name)
    line = capsys.readouterr().out
    assert f"Evaluate_04: epoch = {epochs:04d} train time = 0 s train loss = {loss:.6f}"[:-4] in line
    assert f" train acc = {seen:.4f}, test acc = {tested:.4f}\n" in line


def test_the_seed_is_torchs_and_augmentation_leaves_what_the_published_one_leaves():
    X, classes = small_set()
    states = []
    for seed in (1, 1, 2):
        args, net = options(dsa=True, batch_train=4), seeded()
        torch.manual_seed(seed)
        synset_evaluation.evaluate_synset(0, net, X, classes, loader(), args)
        states.append(net.classifier.weight.detach().clone())
        assert (args.dsa_param.Siamese, args.dsa_param.latestseed) == (False, -1)
    assert torch.equal(states[0], states[1])
    assert not torch.allclose(states[0], states[2], atol=1e-3)


NETWORKS = {
    "instance": {},
    "batch": {"norm": "batch"},
    "layer": {"norm": "layer"},
    "group": {"norm": "group", "width": 8},
    "none": {"norm": "none"},
    "max": {"pooling": nn.MaxPool2d},
    "no pooling": {"pooling": None},
    "sigmoid": {"activation": nn.Sigmoid},
    "leaky": {"activation": nn.LeakyReLU},
    "swish": {"activation": Swish},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_published_networks_are_known_by_their_layers(name):
    net, X = seeded(**NETWORKS[name]), small_set()[0]
    before = copy.deepcopy(net.state_dict())
    spec = known_network(net, X)
    assert spec is not None
    torch.testing.assert_close(twin(net, spec).eval()(X), net.eval()(X), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("published", ["MLP", "LeNet", "AlexNet", "AlexNetBN", "VGG", "ResNet", "ResNet_AP"])
def test_published_networks_are_known_by_their_class(published):
    ours = {"VGG": "vgg11", "ResNet": "resnet18", "ResNet_AP": "resnet18-ap", "AlexNetBN": "alexnet-bn"}
    spec = network_spec(ours.get(published, published.lower()), (1, 28, 28), 4)
    inner = build_network(spec)

    def init(self):
        nn.Module.__init__(self)
        self.body = nn.ModuleList(inner.children())

    def forward(self, x):
        return self.body[1](self.body[0](x))

    net = type(published, (nn.Module,), {"__init__": init, "forward": forward})()
    assert known_network(net, torch.randn(3, 1, 28, 28)) == spec


def unlike(net):
    net.features[2] = nn.Tanh()
    return net


def frozen(net):
    net.classifier.bias.requires_grad_(False)
    return net


def hooked(net):
    net.register_forward_hook(lambda *given: None)
    return net


def scaled(net):
    net.forward = lambda x: 1.01 * ConvNet.forward(net, x)
    return net


@pytest.mark.parametrize(
    "net",
    [
        pytest.param(lambda: unlike(ConvNet()), id="other layer"),
        pytest.param(lambda: frozen(ConvNet()), id="frozen"),
        pytest.param(lambda: hooked(ConvNet()), id="hook"),
        pytest.param(lambda: scaled(ConvNet()), id="other outputs"),
        pytest.param(lambda: ConvNet(dropout=0.5), id="other outputs in training"),
        pytest.param(lambda: ConvNet(norm="batch").double(), id="double"),
        pytest.param(lambda: ConvNet(activation=lambda: nn.LeakyReLU(0.2)), id="other slope"),
        pytest.param(lambda: nn.DataParallel(ConvNet()), id="wrapped"),
        pytest.param(lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, K)), id="other class"),
    ],
)
def test_other_networks_are_left_to_the_original(net):
    X, classes = small_set()
    state = torch.get_rng_state()
    made = net()
    torch.set_rng_state(state)
    reason = synset_evaluation.evaluate_synset_guard(0, made, X, classes, loader(), options())
    assert reason == "the network is none that we know"
    assert torch.equal(torch.get_rng_state(), state)


LEFT = {
    "dc": ({"dc_aug_param": {"strategy": "crop_noise"}}, "it augments in the way of DC"),
    "dc missing": ({"dc_aug_param": 0}, "it augments in the way of DC"),
    "strategy": (
        {"dsa": True, "dsa_strategy": "flip_blur"},
        "the strategy names an operation that is not published",
    ),
    "no text": ({"dsa": True, "dsa_strategy": None}, "its augmentation strategy is no text"),
    "twice": (
        {"dsa": True, "dsa_strategy": "flip_flip"},
        "its augmentation strategy names an operation twice",
    ),
    "parameters": (
        {"dsa": True, "dsa_param": types.SimpleNamespace(**synset_evaluation._PARAMETERS)},
        "param is not of a class beside the published functions",
    ),
    "saturation": (
        {"dsa": True, "dsa_param": Parameters(saturation=1.0)},
        "its augmentation has other parameters",
    ),
    "mode": ({"dsa": True, "dsa_param": Parameters(aug_mode="M")}, "its augmentation has other parameters"),
    "epochs": ({"epoch_eval_train": 0}, "there are no batches, or no epochs"),
    "rate": ({"lr_net": 0}, "the rate is not positive"),
    "device": ({"device": "meta"}, "it runs on another device than a CPU or a CUDA device"),
}


@pytest.mark.parametrize("name", LEFT)
def test_other_options_are_left_to_the_original(name):
    changes, reason = LEFT[name]
    X, classes = small_set()
    assert (
        synset_evaluation.evaluate_synset_guard(0, seeded(), X, classes, loader(), options(**changes))
        == reason
    )


def test_no_augmentation_by_any_of_its_names_is_known():
    X, classes = small_set()
    for changes in (
        {"dsa": True, "dsa_strategy": "none", "dsa_param": None},
        {"dc_aug_param": {"strategy": "none", "crop": 4}},
    ):
        guard = synset_evaluation.evaluate_synset_guard
        assert guard(0, seeded(), X, classes, loader(), options(**changes)) is None


def test_an_edited_table_of_operations_is_left_to_the_original(table):
    X, classes = small_set()

    def reason():
        guard = synset_evaluation.evaluate_synset_guard
        return guard(0, seeded(), X, classes, loader(), options(dsa=True))

    assert reason() is None
    table["color"] = table["color"][:1]
    assert reason() == "the strategy names an operation that is not published"
    table["color"], table["crop"] = [types.SimpleNamespace(__name__="rand_brightness")], table["flip"]
    assert reason() == "the strategy names an operation that is not published"


def test_other_rows_are_left_to_the_original():
    X, classes = small_set()

    def reason(X=X, classes=classes, test=None, net=None):
        test = test or loader()
        return synset_evaluation.evaluate_synset_guard(0, net or seeded(), X, classes, test, options())

    assert reason(X=X.flatten(1)) == "the rows are no images"
    assert reason(X=X.long()) == "the rows are no images"
    assert reason(X=X / 0) == "images are not finite"
    assert reason(classes=classes[:4]) == "there is not one class for each image"
    assert reason(classes=classes + 1) == "classes are none of the network's"
    one = seeded(norm="batch")
    assert reason(X=X[:1], classes=classes[:1], net=one) in (
        "the network is none that we know",
        "batch norm is given a single row",
    )
    assert reason(test=DataLoader(pairs(8, (2, 4, 4)))) == "test rows have another shape"


def test_test_rows_are_kept_until_one_of_them_changes():
    test = loader()
    X, classes = loaded_rows(test, CPU)
    assert torch.equal(X, test.dataset.tensors[0])
    assert torch.equal(classes, test.dataset.tensors[1])
    assert loaded_rows(loader(dataset=test.dataset, batch_size=3), CPU)[0] is X
    # Neither the first, nor the middle, nor the last; the second without torch's knowledge.
    test.dataset.tensors[0][5] += 1
    test.dataset.tensors[1].numpy()[[6, 7]] = [2, 1]
    found = loaded_rows(test, CPU)
    assert torch.equal(found[0], test.dataset.tensors[0])
    assert torch.equal(found[1], test.dataset.tensors[1])
    assert not torch.equal(found[0], X)
    assert not torch.equal(found[1], classes)
    test.dataset.tensors = pairs(12).tensors
    assert len(loaded_rows(test, CPU)[0]) == 12


class ToTensor:
    def __call__(self, image):
        return torch.from_numpy(np.array(image)).float().div(255).permute(2, 0, 1)


class Cifar:
    """The interface of torchvision's."""

    def __init__(self, transform):
        self.data = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3), np.uint8)
        self.targets, self.transform, self.target_transform = [0, 1, 2] * 3, transform, None

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.data[index])), self.targets[index]


class Edited(Cifar):
    pass


def test_stored_bytes_are_known_by_their_transform(monkeypatch):
    data = Cifar(ToTensor())
    test = DataLoader(data, batch_size=4)
    assert why_not_rows(test) == "test rows are made anew at each reading"
    monkeypatch.setattr(Cifar, "__module__", "torchvision.datasets.cifar")
    assert why_not_rows(test) == "test rows are made anew at each reading"  # its method is another's
    monkeypatch.setattr(Cifar.__getitem__, "__module__", Cifar.__module__)
    assert "ToTensor" in why_not_rows(test)
    monkeypatch.setattr(ToTensor, "__module__", "torchvision.transforms.transforms")
    assert why_not_rows(test) is None
    assert why_not_rows(DataLoader(Edited(ToTensor()))) == "test rows are made anew at each reading"
    X, classes = loaded_rows(test, CPU)
    assert torch.equal(X, torch.from_numpy(data.data).float().div(255).permute(0, 3, 1, 2))
    assert classes.tolist() == data.targets
    assert loaded_rows(test, CPU)[0] is X
    assert loaded_rows(DataLoader(data), CPU)[0] is X
    data.targets = torch.zeros(9, 8)
    assert "no pairs" in why_not_rows(test)
    data.targets = [0, 1, 2] * 3
    data.data[3, 0, 0], data.targets[4] = 255 - data.data[3, 0, 0], 2
    found = loaded_rows(test, CPU)
    torch.testing.assert_close(found[0][3, :, 0, 0], 1 - X[3, :, 0, 0])
    assert found[1][4] == 2


def test_rows_that_are_not_read_in_order_or_again_are_left_to_the_original():
    data = pairs(50)
    in_order = SequentialSampler(data)

    def reason(data=data, **given):
        test = DataLoader(data, **given)
        found = synset_evaluation.evaluate_synset_guard(0, seeded(), *small_set(), test, options())
        assert found == why_not_rows(test)
        return found or ""

    assert (
        reason() == reason(sampler=in_order) == reason(batch_sampler=BatchSampler(in_order, 8, False)) == ""
    )
    assert "in order" in reason(sampler=SequentialSampler(range(20)))
    assert "in order" in reason(sampler=RandomSampler(data))
    assert "in order" in reason(batch_sampler=[[0, 1]])
    assert "no plain" in reason(batch_size=None)
    assert "drops rows" in reason(batch_sampler=BatchSampler(in_order, 8, True))
    assert "drops rows" in reason(drop_last=True)
    assert "drops rows" in reason(TensorDataset(*(each[:0] for each in data.tensors)))
    assert "no plain" in reason(collate_fn=lambda batch: batch)
    assert "no plain" in reason(worker_init_fn=print)
    assert "made anew" in reason(Flipped(data))
    assert "made anew" in reason(Subset(data, [1, 2]))
    assert "made anew" in reason(TensorDataset(data.tensors[0]))
    assert "no pairs" in reason(TensorDataset(data.tensors[0], torch.eye(50)))
    assert "no plain tensors" in reason(TensorDataset(data.tensors[0].to_sparse(), data.tensors[1]))
    assert why_not_rows([]) == "the test loader is no plain DataLoader"


def test_no_random_numbers_are_drawn_by_the_guard():
    (X, classes), net = small_set(), seeded()
    state = torch.get_rng_state()
    for test in (loader(), loader(shuffle=True), DataLoader(Flipped(pairs(40)))):
        synset_evaluation.evaluate_synset_guard(0, net, X, classes, test, options(dsa=True))
        assert torch.equal(torch.get_rng_state(), state)


def test_large_test_sets_are_not_kept(monkeypatch):
    monkeypatch.setenv("KERNEL_DISTILL_ACCEL_CACHE", "20000")
    assert "more than half" in why_not_rows(loader())


@pytest.mark.parametrize(("score", "other"), [(0.5, 0.3), (0.16, 0.1), (0.05, 0.005), (0.3, 0.0)])
def test_networks_that_learned_nothing_do_not_verify(score, other):
    results = [(None, 1.0, each) for each in (score, other)]
    assert synset_evaluation.accuracy_gap(*results) > EVALUATE_SYNSET.tolerance
    loops = [([each, each],) for each in (score, other)]
    assert synset_evaluation.accuracy_gap(*loops) > EVALUATION_LOOP.tolerance
    assert synset_evaluation.accuracy_gap(results[0], (None, 0.5, 0.9 * score)) < EVALUATE_SYNSET.tolerance


def original(it_eval, net, images_train, labels_train, testloader, args):
    net = net.to(args.device)
    _, seen, tested = plain_evaluation(net, images_train, labels_train, testloader, args)
    return net, np.float64(seen), np.float64(tested)


def test_a_verified_call_agrees_and_leaves_the_network_trained_once(monkeypatch):
    target = dataclasses.replace(EVALUATE_SYNSET, hashes=(fingerprint_of(original),), requires={})
    monkeypatch.setattr(accel._call.Settings, "verify", 1)
    accel._call.forget_calls(EVALUATE_SYNSET.name)
    X, classes = small_set()
    nets = seeded(), seeded()
    plain_evaluation(nets[1], X, classes, loader(), options())
    found, _, _ = accelerated(target, original)(0, nets[0], X, classes, loader(), options())
    assert found is nets[0]
    torch.testing.assert_close(nets[0].classifier.weight, nets[1].classifier.weight, rtol=1e-4, atol=1e-5)
    assert records[target.name].verified == 1
    monkeypatch.setattr(accel._call.Settings, "verify", 9)

    def failing(*given):
        return given[1], 0.0, 2.0

    failing.__signature__ = inspect.signature(original)
    with pytest.raises(VerificationError, match=r"vico\.evaluate_synset: verified call"):
        accelerated(target, failing)(0, seeded(), X, classes, loader(), options())


@pytest.fixture
def script(monkeypatch, tmp_path):
    """The script as a module, with targets that know it."""
    (tmp_path / "invented_script.py").write_text(SCRIPT)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("invented_script")
    body = definition_of(module.main).body
    known = (
        dataclasses.replace(EVALUATE_SYNSET, hashes=(fingerprint_of(module.evaluate_synset),), requires={}),
        dataclasses.replace(EVALUATION_LOOP, hashes=(fingerprint(*body[:2]),), hints=("calls",)),
    )
    for holder in (registry, _report):
        monkeypatch.setattr(holder, "all_targets", lambda: known)
    records.clear()
    module.make = lambda model: ConvNet()
    yield module
    accel.uninstall()
    records.clear()
    sys.modules.pop("invented_script")


def run(script, test, **changes):
    X, classes = small_set()
    return script.main(options(**changes), "ConvNet", 2, K, (8, 8), X.requires_grad_(), classes, test)


def test_the_loop_trains_every_network_of_the_script(script, capsys):
    X, classes = small_set()
    # They are of the generator's first numbers: the guard looks at one network more, and puts them back.
    torch.manual_seed(0)
    nets = [ConvNet() for _ in range(3)]
    torch.manual_seed(0)
    with accel.patched("vico"):
        found = run(script, loader())
    expected = [plain_evaluation(net, X, classes, loader(), options())[2] for net in nets]
    assert found == pytest.approx(expected)
    assert all(type(each) is np.float64 for each in found)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("Evaluate_")[1][:2] for line in lines] == ["00", "01", "02"]
    assert script.calls == []
    assert records["vico.evaluation_loop"].accelerated == 1


def test_the_loop_is_left_alone_where_its_evaluation_is(script):
    with accel.patched("vico"):
        assert run(script, loader(shuffle=True)) == [0.5] * 3
        assert run(script, loader(), num_eval=1) != [0.5]
        script.evaluate_synset = lambda *given: (None, 0.0, 0.25)
        assert run(script, loader()) == [0.25] * 3
    assert script.calls == [0, 1, 2]
    assert "its evaluate_synset is none that we know" in records["vico.evaluation_loop"].declined


def test_a_loop_that_is_left_alone_finds_the_generator_as_it_was(script, monkeypatch):
    seen, made = [], []
    script.make = lambda model: made.append(model) or ConvNet()
    monkeypatch.setattr(synset_evaluation, "known_network", lambda *given: None)
    with accel.patched("vico"):
        for changes in ({}, {"lr_net": 0}):  # the second is refused before a network is made
            torch.manual_seed(7)
            run(script, loader(), **changes)
            seen.append(torch.rand(()).item())
            made.append(None)
    torch.manual_seed(7)
    run(script, loader())
    assert seen == [torch.rand(()).item()] * 2
    assert made[:9] == ["ConvNet"] * 4 + [None] + ["ConvNet"] * 3 + [None]


def test_the_loop_is_verified_by_the_mean(script):
    script.make = lambda model: seeded()
    X, classes = small_set()
    # Of the original's accuracy, which is 0.5.
    gap = 2 * abs(plain_evaluation(seeded(), X, classes, loader(), options())[2] - 0.5)
    with accel.patched("vico", verify=1, tolerance=gap + 0.01):
        assert run(script, loader()) == [0.5] * 3
    assert records["vico.evaluation_loop"].verified == 1
    assert gap > 0.01
    with accel.patched("vico", verify=2, tolerance=gap - 0.01), pytest.raises(VerificationError):
        run(script, loader())


# Everything that get_network of the clone makes that is small enough to pass twice through a few rows.
PUBLISHED = [
    "MLP",
    "ConvNet",
    "LeNet",
    "AlexNet",
    "AlexNetBN",
    "VGG11",
    "VGG11BN",
    "ResNet18",
    "ResNet18BN",
    "ResNet18BN_AP",
    "ConvNetD1",
    "ConvNetD4",
    "ConvNetW32",
    "ConvNetAS",
    "ConvNetAL",
    "ConvNetASwish",
    "ConvNetASwishBN",
    "ConvNetNN",
    "ConvNetBN",
    "ConvNetLN",
    "ConvNetGN",
    "ConvNetNP",
    "ConvNetMP",
]


@pytest.fixture
def clone(monkeypatch):
    """utils.py of the clone."""
    folder = str(peer_path("vico"))
    for name in ("torchvision", "torchvision.datasets", "torchvision.transforms"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["torchvision"].datasets = sys.modules["torchvision.datasets"]
    sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]
    rotation = types.ModuleType("scipy.ndimage.interpolation")
    rotation.rotate = None
    monkeypatch.setitem(sys.modules, rotation.__name__, rotation)
    monkeypatch.syspath_prepend(folder)
    for name in ("utils", "networks"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module("utils")
    yield module
    for name in ("utils", "networks"):
        sys.modules.pop(name, None)


@pytest.mark.data
@pytest.mark.filterwarnings("ignore")
def test_the_published_source_is_known(clone):
    assert fingerprint_of(clone.evaluate_synset) in EVALUATE_SYNSET.hashes
    for name, hashes in EVALUATE_SYNSET.requires.items():
        assert fingerprint_of(getattr(clone, name)) in hashes
    for file in ("main.py", "main_DM.py"):
        tree = ast.parse((Path(clone.__file__).parent / file).read_text())
        assert find_run(tree, EVALUATION_LOOP.length, EVALUATION_LOOP.hashes) is not None


@pytest.mark.data
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)], ids=["28", "32"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_networks_are_known(clone, name, shape):
    net = clone.get_network(name, shape[0], 10, shape[1:])
    assert known_network(net, torch.randn(4, *shape)) is not None


@pytest.mark.data
@pytest.mark.filterwarnings("ignore")
def test_the_published_evaluation_agrees(clone, monkeypatch):
    monkeypatch.setattr(accel._call.Settings, "verify", 1)
    accel._call.forget_calls(EVALUATE_SYNSET.name)
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(20, 1, 28, 28, generator=generator) + torch.arange(20).view(-1, 1, 1, 1) % 2
    classes = torch.arange(20) % 2
    test = DataLoader(clone.TensorDataset(X, classes), batch_size=8)
    args = options(dsa=True, dsa_param=clone.ParamDiffAug(), batch_train=16, epoch_eval_train=30, lr_net=0.01)
    accelerated(EVALUATE_SYNSET, clone.evaluate_synset)(
        0, clone.get_network("MLP", 1, 2, (28, 28)), X, classes, test, args
    )
