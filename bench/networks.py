"""Networks trained on small sets, beside the published ways of doing it: figures as rows of JSON.

    python bench/networks.py evaluator [--per-class 1 10] [--networks 20] [--epochs 10] [--timed N] [--peer PATH]

`evaluator`: the same random points of CIFAR-10; as many ConvNet-3 (width 128) networks trained with DSA by
`train_networks` and by the published serial loop, and measured on all 10,000 test images. Both run in turns of two
networks, in this process, the first of a turn in turn. Printed are seconds and CPU seconds of both, and the
Kolmogorov-Smirnov test on the two samples of accuracies. With --peer, the rival is a clone of
VICO-UoE/DatasetCondensation instead of our own wording of its loop. With --timed, only the first so many networks are
timed (0: none), and the rival's other networks are tested by `network_accuracies` as well.

Data sets are read from KERNEL_DISTILL_DATA (default: shared/data beside the checkout).
"""

import argparse
import contextlib
import statistics
import sys
import time

import torch
from _rows import DATA, emit

import kernel_distill as kd
from kernel_distill.kernels import random_bits
from kernel_distill.nn_baselines.accuracy import network_accuracies
from kernel_distill.nn_baselines.training import train_networks
from kernel_distill.nn_baselines.training_recipes import training_recipe
from kernel_distill.solver.networks import NetworkStack, build_network, network_spec

MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
TURN = 2


def cifar10():
    """Normalised train and test images as published, and their classes."""
    data = kd.load_data(DATA / "cifar10_jpeg")
    shift, scale = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, DEVIATION))

    def images(values):
        values = torch.as_tensor(values)
        return (values.float() / 255 - shift) / scale

    return (
        images(data.x_train),
        torch.as_tensor(data.y_train).long(),
        images(data.x_test),
        torch.as_tensor(data.y_test).long(),
    )


def random_points(classes, per_class, seed):
    """Indices of so many rows of each class."""
    order = torch.from_numpy(random_bits(seed, "bench.points", len(classes)).argsort())
    return torch.cat([order[classes[order] == c][:per_class] for c in range(10)])


def evaluator(arguments):
    from _published_evaluator import clone, evaluate
    from scipy.stats import ks_2samp

    published = clone(arguments.peer) if arguments.peer else evaluate
    x_train, y_train, x_test, y_test = cifar10()
    x_test, y_test = x_test[: arguments.test], y_test[: arguments.test]
    spec = network_spec("convnet", (3, 32, 32), 10)
    recipe = training_recipe("dsa", epochs=arguments.epochs)
    timed = arguments.networks if arguments.timed is None else min(arguments.timed, arguments.networks)
    for per_class in arguments.per_class:
        torch.manual_seed(arguments.seed)
        chosen = random_points(y_train, per_class, arguments.seed)
        x, y = x_train[chosen], y_train[chosen]
        rows = torch.nn.functional.one_hot(y, 10).float()

        # Both are called before the loop over points goes on (B023).
        def ours(count, turn, _=None):
            options = {"count": count, "seed": arguments.seed, "stream": f"bench.{turn}"}
            stack = train_networks(spec, x, rows, recipe, **options)  # noqa: B023
            return network_accuracies(stack, [(x_test, y_test)]).tolist()

        def theirs(count, turn, tested=None):
            with contextlib.redirect_stdout(sys.stderr):
                found = [
                    published(x, y, x_test[:tested], y_test[:tested], arguments.epochs)  # noqa: B023
                    for _ in range(count)
                ]
            if tested is None:
                return [accuracy for _, accuracy in found]
            stack = NetworkStack.of([as_ours(net, spec) for net, _ in found])
            return network_accuracies(stack, [(x_test, y_test)]).tolist()

        seconds, cpu, accuracy = ({ours: [], theirs: []} for _ in range(3))
        for turn, start in enumerate(range(0, timed, TURN)):
            count = min(TURN, timed - start)
            for side in (ours, theirs) if turn % 2 else (theirs, ours):
                started, used = time.perf_counter(), time.process_time()
                accuracy[side] += side(count, turn)
                seconds[side].append(time.perf_counter() - started)
                cpu[side].append(time.process_time() - used)
                print(per_class, turn, side.__name__, seconds[side][-1], file=sys.stderr, flush=True)
        for side in (ours, theirs) if arguments.networks > timed else ():
            accuracy[side] += side(arguments.networks - timed, "rest", 256)
        ratios = [b / a for a, b in zip(seconds[ours], seconds[theirs], strict=True)]
        test = ks_2samp(accuracy[ours], accuracy[theirs])
        emit(
            "evaluator",
            rival="clone" if arguments.peer else "published loop",
            points=len(x),
            epochs=arguments.epochs,
            test_rows=len(x_test),
            threads=torch.get_num_threads(),
            timed_networks=timed,
            seconds=round(sum(seconds[ours]), 1),
            rival_seconds=round(sum(seconds[theirs]), 1),
            ratios_by_turn=[round(ratio, 2) for ratio in ratios],
            cpu_seconds=round(sum(cpu[ours]), 1),
            rival_cpu_seconds=round(sum(cpu[theirs]), 1),
            networks=arguments.networks,
            accuracy=round(statistics.mean(accuracy[ours]), 4),
            deviation=round(statistics.stdev(accuracy[ours]), 4),
            rival_accuracy=round(statistics.mean(accuracy[theirs]), 4),
            rival_deviation=round(statistics.stdev(accuracy[theirs]), 4),
            ks=round(float(test.statistic), 3),
            p_value=round(float(test.pvalue), 3),
        )


def as_ours(net, spec):
    """A published ConvNet as a network of ours, by the order of its parameters."""
    network = build_network(spec)
    with torch.no_grad():
        for own, other in zip(network.parameters(), net.parameters(), strict=True):
            own.copy_(other)
    return network


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("evaluator")
    command.set_defaults(run=evaluator)
    command.add_argument("--per-class", type=int, nargs="+", default=[1, 10])
    command.add_argument("--networks", type=int, default=20)
    command.add_argument("--timed", type=int, help="networks to take the time of; default all, 0 for none")
    command.add_argument("--epochs", type=int, default=10)
    command.add_argument("--test", type=int, default=10_000, help="test images, from the first")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--peer", help="folder of a clone of VICO-UoE/DatasetCondensation")
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
