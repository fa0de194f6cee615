"""The cases of `kernel-distill bench` at small sizes under pytest-benchmark: `pytest bench --benchmark-enable`."""

import functools

import pytest
import torch

from kernel_distill._bench.case import Bench
from kernel_distill._bench.cases import CASES

BENCH = Bench(torch.device("cpu"), quick=True)


@functools.cache
def problem(name, index):
    case = CASES[name]
    return case.build(BENCH, **case.quick[index])


def contenders():
    for case in CASES.values():
        for index in range(len(case.quick)):
            rivals = problem(case.name, index).rivals
            names = ["ours", *(name for name, rival in rivals.items() if not isinstance(rival, str))]
            for name in names:
                mark = pytest.mark.benchmark(group=case.name)
                yield pytest.param(case.name, index, name, id=f"{case.name}-{name}", marks=mark)


@pytest.mark.parametrize(("case", "index", "name"), list(contenders()))
def test_kernel(benchmark, case, index, name):
    made = problem(case, index)
    result = benchmark(made.ours if name == "ours" else made.rivals[name])
    if name == "ours":
        assert made.error(result) <= made.tolerance
