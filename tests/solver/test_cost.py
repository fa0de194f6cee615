"""The cost model: formulas against counted FLOPs and weighed objects, scaling laws, units, bad input."""

import dataclasses
import io
import pickle

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import kernel_distill as kd
from kernel_distill.kernels import gram_add_
from kernel_distill.solver import machine
from kernel_distill.solver.cost import Machine, Problem, estimate
from kernel_distill.solver.encoder import Encoder
from kernel_distill.solver.feature_maps import make_feature_map
from kernel_distill.solver.machine import RATES, gram_flops
from kernel_distill.solver.ridge import RidgePath
from kernel_distill.solver.shards import TILE_ROWS
from kernel_distill.solver.source import batch_rows
from kernel_distill.solver.transforms.identity import Identity

STREAMING = ("read", "transform", "features", "sums", "Gram", "cross")


def counted(call):
    # Products in place are not among those that the counter knows.
    in_place = {torch.ops.aten.addmm_: lambda _, a, b, **rest: 2 * a[0] * a[1] * b[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        call()
    return counter.get_total_flops()


def by_name(found):
    return {stage.name: stage for stage in found.stages}


def stages(problem, machine=None, *args, **options):
    return by_name(estimate(problem, machine or Machine(), *args, **options))


@pytest.mark.parametrize("p", [1, 100, 384, 385, 1000])
def test_flops_of_a_gram_product(p):
    gram, F = torch.zeros(p, p), torch.ones(7, p)
    assert gram_flops(7, p) == counted(lambda: gram_add_(gram, F))


@pytest.mark.parametrize(("p", "k"), [(30, 4), (500, 10), (40, 100)])
def test_flops_of_statistics_are_those_of_gram_and_cross(p, k):
    F, Y = torch.ones(9, p, dtype=torch.float64), torch.ones(9, k, dtype=torch.float64)
    statistics = kd.Statistics(p, k)
    found = stages(Problem(9, 5, p, k))
    assert found["Gram"].flops + found["cross"].flops == counted(lambda: statistics.add(F, Y))


@pytest.mark.parametrize(
    ("name", "p", "params"),
    [
        ("fourier", 33, {"n_features": 33, "length_scale": 1.0}),
        ("fcnn", 11, {"widths": [11]}),
        ("identity", 20, {}),
    ],
)
def test_flops_of_features(name, p, params):
    feature_map = make_feature_map(name, (20,), params=params)
    problem = Problem(13, 20, p, 2, feature_map=name)
    X = torch.ones(13, 20)
    assert stages(problem)["features"].flops == counted(lambda: feature_map.features(X))
    assert stages(dataclasses.replace(problem, row_flops=7.5))["features"].flops == 13 * 7.5


def test_flops_of_the_ridge_solution():
    F = torch.randn(50, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    statistics = kd.Statistics(12, 3).add(F, F[:, :3])
    # The eigen-decomposition is not counted; the product of means and weights, 2 p k, is not modelled.
    made = counted(lambda: RidgePath.from_statistics(statistics).weights(1.0))
    assert stages(Problem(50, 12, 12, 3))["ridge"].flops == made - 2 * 12 * 3


def sums_of(p, k, rows=20):
    statistics = kd.Statistics(p, k)
    statistics.add(torch.ones(rows, p, dtype=torch.float64), torch.ones(rows, k, dtype=torch.float64))
    return statistics


@pytest.mark.parametrize(("p", "k"), [(256, 10), (300, 700)])
def test_a_partial_sum_weighs_what_it_weighs(p, k, tmp_path):
    statistics, weight = sums_of(p, k), Problem(100, 5, p, k).partial_bytes
    names = ("gram", "cross", "feature_sum", "target_sum", "target_square")
    assert weight == sum(getattr(statistics, name).nbytes for name in names)
    # Tensors of one object; a file; what a process sends to another.
    statistics.save(tmp_path / "sums.safetensors")
    for found in ((tmp_path / "sums.safetensors").stat().st_size, len(pickle.dumps(statistics))):
        assert weight <= found <= 1.01 * weight


def test_a_feature_map_weighs_what_is_sent_to_each_worker():
    feature_map = make_feature_map("fourier", (200,), params={"n_features": 500, "length_scale": 1.0})
    encoder = Encoder(Identity((200,)), feature_map)
    sent = stages(Problem(1000, 200, 500, 3), workers=4, tiles=4)["start"].network
    assert 4 * len(pickle.dumps(encoder)) == pytest.approx(sent, rel=0.01)


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
def test_bytes_that_are_read_are_those_of_the_files(dtype):
    size = 0
    for array in (np.zeros((500, 30), dtype), np.zeros(500, np.int64)):
        file = io.BytesIO()
        np.save(file, array)
        size += len(file.getvalue()) - 128  # what numpy writes before the values
    assert stages(Problem(500, 30, 8, 2, np.dtype(dtype).itemsize))["read"].read == size


def test_memory_of_a_batch():
    n, d, p, k = 100_000, 20, 4096, 3
    rows = batch_rows(p, d)
    found = stages(Problem(n, d, p, k), tiles=1)
    statistics = kd.Statistics(p, k)
    F = torch.zeros(rows, p)
    statistics.add(F, torch.zeros(rows, k, dtype=torch.float64))
    weights = 1.5 * 8 * d * p  # in float64, and cast to float32
    assert found["features"].memory == F.nbytes + weights
    assert found["sums"].memory == statistics._buffer.nbytes + rows * 16 * k
    assert found["Gram"].memory == statistics.gram.nbytes
    whole = estimate(Problem(n, d, p, k), Machine(), tiles=1)
    assert whole.worker_memory == sum(found[name].memory for name in STREAMING)
    assert whole.driver_memory == found["eigen-decomposition"].memory == 5 * statistics.gram.nbytes


@pytest.mark.parametrize("feature_map", ["fourier", "fcnn"])
def test_twice_the_rows_take_twice_as_long_to_stream(feature_map):
    one = Problem(500_000, 64, 1000, 10, feature_map=feature_map, transform="standardize")
    two = dataclasses.replace(one, rows=1_000_000)
    for (name, a), b in zip(stages(one).items(), stages(two).values(), strict=True):
        if name == "merge, tiles":
            continue
        factor = 2 if name in STREAMING else 1
        assert b.seconds == pytest.approx(factor * a.seconds), name
        assert b.flops == pytest.approx(factor * a.flops), name
        assert b.memory == a.memory, name


def test_twice_the_features():
    a, b = stages(Problem(10**6, 64, 3840, 10)), stages(Problem(10**6, 64, 7680, 10))
    powers = {"features": 1, "sums": 1, "cross": 1, "Gram": 2, "ridge": 2, "eigen-decomposition": 3}
    for name, power in powers.items():
        assert b[name].flops == pytest.approx(2**power * a[name].flops, rel=0.05), name
        assert b[name].seconds == pytest.approx(2**power * a[name].seconds, rel=0.05), name


@pytest.mark.parametrize("reduction", ["tree", "all-reduce"])
def test_workers_divide_only_what_they_share(reduction):
    problem, machine = Problem(2**27, 64, 1000, 10), Machine(start_up=0)
    found = [stages(problem, machine, w, reduction=reduction) for w in (2, 4)]
    for (name, two), four in zip(found[0].items(), found[1].values(), strict=True):
        if name in STREAMING:
            assert four.seconds == pytest.approx(two.seconds / 2), name
            assert four.flops == two.flops, name
        elif not name.startswith(("start", "merge")):  # they depend on how many there are
            assert four == two, name
    assert {name for name, stage in found[0].items() if stage.shared} == {*STREAMING, "merge, tiles"}


def test_cores_divide_arithmetic_of_workers():
    one, four = (stages(Problem(10**6, 64, 512, 10), cores=c) for c in (1, 4))
    for name in STREAMING[1:]:
        assert four[name].seconds == pytest.approx(one[name].seconds / 4), name
    assert four["read"] == one["read"]
    assert four["eigen-decomposition"] == one["eigen-decomposition"]


@pytest.mark.parametrize(("workers", "rounds"), [(1, 0), (2, 1), (3, 2), (8, 3), (9, 4)])
def test_a_tree_over_machines(workers, rounds):
    """Five tiles each: all but 1 / w of the sums move once, and one a round and to the driver on the longest path."""
    problem, machine = Problem(10**6, 64, 512, 10), Machine()
    S = problem.partial_bytes
    merge = [
        stage
        for stage in estimate(problem, machine, workers, tiles=5 * workers).stages
        if "merge" in stage.name
    ]
    remote = (workers - 1) / workers
    assert sum(stage.network for stage in merge) == pytest.approx(5 * workers * S * remote)
    added = (9 if workers > 1 else 3) * S / machine.bandwidth / machine.cores
    assert merge[0].seconds == pytest.approx(4 * (added + remote * S / machine.network))
    hops = rounds + 1 if workers > 1 else 0
    assert merge[1].seconds == pytest.approx(rounds * added + hops * S / machine.network)


def test_workers_of_one_machine_share_its_disk_and_need_no_network():
    problem, machine = Problem(10**6, 64, 512, 10), Machine(cores=4)
    whole, split = (stages(problem, machine, w, cores=c, tiles=8) for w, c in ((1, 4), (4, 1)))
    assert sum(stage.network for stage in split.values()) == 0
    for name in STREAMING:
        assert split[name].seconds == pytest.approx(whole[name].seconds), name
    # Eight on two machines: two links carry half of the eight sums, and sixteen tiles' other eight.
    eight = stages(problem, machine, 8, cores=1, tiles=16)
    S = problem.partial_bytes
    assert eight["merge, tiles"].network == eight["merge, rounds"].network == 8 * S / 2
    added = 9 * S / machine.bandwidth
    assert eight["merge, tiles"].seconds == pytest.approx(added + 4 * S / 2 / machine.network)
    assert eight["start"].network == 2 * 8 * 64 * 512
    eight = estimate(problem, machine, 8, cores=1, tiles=16)
    assert eight.machine_memory == 4 * eight.worker_memory
    assert eight.worker_memory >= 4 * S  # two sums in shared memory, and two copies


@pytest.mark.parametrize("workers", [2, 3, 8])
def test_an_all_reduce_sends_two_sums_less_a_part(workers):
    problem, machine = Problem(10**6, 64, 512, 10), Machine()
    found = stages(problem, machine, workers, tiles=workers, reduction="all-reduce")
    S, part = problem.partial_bytes, (workers - 1) / workers
    assert found["merge, rounds"].network / workers == pytest.approx(2 * S * part)
    added = 3 * S * part / machine.bandwidth / machine.cores
    assert found["merge, rounds"].seconds == pytest.approx(2 * S * part / machine.network + added)
    assert found["merge, tiles"].seconds == found["merge, tiles"].network == 0


def test_tiles_that_workers_do_not_divide():
    problem = Problem(10**6, 64, 512, 10)

    def gram(workers, tiles):
        return stages(problem, None, workers, tiles=tiles)["Gram"].seconds

    assert gram(4, 5) == pytest.approx(gram(1, 1) * 2 / 5)  # one does two of the five
    assert gram(8, 5) == pytest.approx(gram(1, 1) / 5)  # three do nothing
    assert estimate(problem, Machine(), 8, tiles=5).useful_workers <= 5


@pytest.mark.parametrize("rows", [1, TILE_ROWS, TILE_ROWS + 1, 10**6])
def test_tiles_are_those_of_shards(rows):
    shards = kd.solver.shards.Shards.of(np.empty((rows, 1), np.uint8), np.empty(rows, np.int64))
    assert estimate(Problem(rows, 1, 8, 2), Machine()).tiles == len(
        shards.tiles([s.look() for s in shards.shards], frozenset())
    )


@pytest.mark.parametrize("options", [{}, {"tiles": 300}, {"reduction": "all-reduce"}, {"cores": 1}])
def test_useful_workers_are_where_both_parts_take_equally_long(options):
    problem, machine = Problem(10**6, 64, 1000, 10), Machine(start_up=0.1)
    options = {"tiles": 10**5} | options

    def enough(workers):
        found = estimate(problem, machine, workers, **options)
        return found.shared_seconds <= found.seconds - found.shared_seconds

    useful = estimate(problem, machine, 3, **options).useful_workers
    assert 5 < useful < 10_000
    assert [enough(w) for w in (1, useful // 2, useful - 1, useful, 2 * useful)] == [False] * 3 + [True] * 2


@pytest.mark.parametrize(("network", "cores"), [(1e7, 1), (1e7, 8), (1e8, 1), (1e9, 8)])
def test_a_slow_network_makes_no_more_workers_useful(network, cores):
    """The first worker on another machine may cost more than it saves: the fewest are sought, by trying all."""
    problem, machine = Problem(10**5, 64, 4096, 10), Machine(cores=8, network=network)
    found = [estimate(problem, machine, workers, cores=cores, tiles=100) for workers in range(1, 101)]
    enough = [each.workers for each in found if 2 * each.shared_seconds <= each.seconds]
    assert found[0].useful_workers == (enough or [100])[0]


def test_a_store_that_all_read_from_bounds_them():
    problem = Problem(TILE_ROWS * 800, 768, 512, 10)
    store = Machine(storage=4e9, disk=1e9, cores=1)
    four, eight, many = (stages(problem, store, w)["read"] for w in (4, 8, 800))
    assert (four.limit, four.shared) == ("disk", True)
    assert (many.limit, many.shared) == ("storage", False)
    assert eight.seconds == many.seconds == pytest.approx(four.seconds) == problem.rows * (768 * 4 + 8) / 4e9
    assert estimate(problem, store).useful_workers < estimate(problem, Machine()).useful_workers


@pytest.mark.parametrize(
    "options", [{}, {"workers": 5, "tiles": 12}, {"workers": 5, "reduction": "all-reduce"}]
)
def test_a_machine_twice_as_fast_takes_half_as_long(options):
    """Every term is a quantity over one rate: nothing is counted in the wrong unit."""
    problem = Problem(10**6, 64, 512, 1000, transform="standardize")
    slow = Machine(storage=5e8, start_up=0)
    fast = dataclasses.replace(slow, **{name: 2 * getattr(slow, name) for name in RATES})
    for a, b in zip(
        estimate(problem, slow, **options).stages, estimate(problem, fast, **options).stages, strict=True
    ):
        assert b.seconds == pytest.approx(a.seconds / 2), a.name
        assert b.limit == a.limit, a.name
    limits = {stage.limit for stage in estimate(problem, slow, **options).stages}
    assert limits <= {*RATES, "start_up", ""}


def test_double_inputs_have_double_features():
    narrow, wide = (stages(Problem(10**6, 64, 512, 10, v)) for v in (4, 8))
    assert wide["features"].seconds > narrow["features"].seconds
    # No conversion, and no buffer for it.
    assert wide["sums"].seconds < narrow["sums"].seconds
    assert narrow["sums"].memory - wide["sums"].memory == 8 * 512 * batch_rows(512, 64)


def test_measuring_a_machine(monkeypatch):
    """Calls that take 1, 2, ... seconds."""
    clock = iter(range(1, 100))

    def pretend(call, seconds):
        call()
        return float(next(clock))

    monkeypatch.setattr(machine, "_median", pretend)
    found = Machine.measured(disk=3.0, memory=5e9)
    threads = torch.get_num_threads()
    values = 4096 * 2048
    assert found == Machine(
        cores=threads,
        memory=5e9,
        thin=values / 1 / threads,
        gram=gram_flops(4096, 2048) / (2 - 1) / threads,  # statistics, less their cross product
        features=2 * values * 512 / 3 / threads,
        cosines=values / 4 / threads,
        bandwidth=12 * values / 5 / threads,
        eigen=9 * 1536**3 / 6,
        disk=3.0,
        notes=found.notes,
    )
    assert len(found.notes) == 4
    assert found.notes[0] == f"{threads} thread{'s' * (threads > 1)} of torch"


def test_a_measurement_is_the_median_of_several_runs(monkeypatch):
    ticks = iter([0, 9, 10, 11, 20, 25])
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(ticks))
    calls = []
    assert machine._median(lambda: calls.append(0), seconds=0) == 5
    assert len(calls) == 4  # the first is not counted


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Problem(0, 1, 1, 1), "`rows` must be an integer of at least 1"),
        (lambda: Problem(5, 1.5, 1, 1), "`inputs` must be an integer"),
        (lambda: Problem(5, 1, 1, 1, 3), "`value_bytes` must be 1, 2, 4 or 8, got 3"),
        (lambda: Problem(5, 1, 1, 1, points=0), "`points`"),
        (lambda: Problem(5, 1, 1, 1, test_rows=-1), "`test_rows`"),
        (lambda: Problem(5, 1, 1, 1, row_flops=float("nan")), "`row_flops` must be finite"),
        (lambda: Problem(5, 1, 1, 1, feature_map="furrier"), "did you mean 'fourier'"),
        (lambda: Problem(5, 1, 1, 1, transform="zca"), "unknown transform of a cost 'zca'"),
        (lambda: Problem(5, 3, 4, 1, feature_map="identity"), "as many features as inputs, got 4 and 3"),
        (lambda: Machine(cores=0), "`cores`"),
        (lambda: Machine(network=0), "`network` of a machine must be a number above zero, got 0"),
        (lambda: Machine(gram=float("nan")), "`gram`"),
        (lambda: Machine(disk="fast"), "`disk` of a machine must be a number above zero, got 'fast'"),
        (lambda: Machine(start_up=-1), "`start_up`"),
        (lambda: estimate(Problem(5, 1, 1, 1), Machine(), 0), "`workers`"),
        (lambda: estimate(Problem(5, 1, 1, 1), Machine(), cores=0), "`cores`"),
        (
            lambda: estimate(Problem(5, 1, 1, 1), Machine(), tiles=6),
            "`tiles` must not exceed the 5 rows, got 6",
        ),
        (lambda: estimate(Problem(5, 1, 1, 1), Machine(), reduction="ring"), "unknown reduction 'ring'"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_smallest_problem():
    found = estimate(Problem(1, 1, 1, 1, test_rows=0), Machine(), 3)
    assert found.tiles == 1
    assert by_name(found)["merge, rounds"].seconds == 0
    assert found.useful_workers == 1
