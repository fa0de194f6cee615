"""Statistics of the processes of a torch.distributed job: the same sum in all, or the same refusal."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from kernel_distill import Statistics, collect_statistics
from kernel_distill.solver.all_reduce import all_reduce
from kernel_distill.solver.shards import Shards

SUMS = ("gram", "cross", "feature_sum", "target_sum", "target_square")
PRELUDE = """
import os, sys
import numpy as np, torch
import kernel_distill as kd
from kernel_distill.solver.all_reduce import all_reduce
from kernel_distill.solver.shards import Shards
rank, world = int(sys.argv[1]), 2
folder = sys.argv[2]
torch.distributed.init_process_group(
    "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world
)
"""


def together(body, folder):
    """Output of two processes that run `body` as one job."""
    command = [sys.executable, "-c", PRELUDE + body]
    jobs = [
        subprocess.Popen(
            [*command, str(rank), str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        results = [job.communicate(timeout=60) for job in jobs]
    finally:
        for job in jobs:
            job.kill()
    assert all(job.returncode == 0 for job in jobs), [error for _, error in results]
    return [output for output, _ in results]


def rows():
    rng = np.random.default_rng(0)
    return rng.normal(size=(300, 4)), np.arange(300) % 3


OPTIONS = {"feature_map": "fourier", "transform": "standardize", "progress": False}


def test_every_process_has_the_sum_and_refusals_are_everywhere(tmp_path):
    X, y = rows()
    for i in range(6):
        np.savez(tmp_path / f"s{i}.npz", x=X[i * 50 : (i + 1) * 50], y=y[i * 50 : (i + 1) * 50])
    np.savez(tmp_path / "s6.npz", x=X[:50] * np.nan, y=y[:50])
    body = """
options = dict(feature_map="fourier", transform="standardize", progress=False)
files = [f"{folder}/s{i}.npz" for i in range(7)]
part = kd.collect_statistics(Shards.of(files).part(rank, world, whole=True), on_bad="skip", **options)
before = part.gram.clone()
total = all_reduce(part)
total.save(f"{folder}/total{rank}")
assert torch.equal(part.gram, before) and part.count == 150

def refused(statistics):
    try:
        all_reduce(statistics)
    except ValueError as error:
        print(str(error).partition(" (")[0])

other = dict(options, seed=rank)
refused(kd.collect_statistics(files[:6] and Shards.of(files[:6]), **other))
refused(kd.Statistics(3 + rank, 2))
refused(kd.collect_statistics(Shards.of(files[:6]), targets=["one-hot", "centred"][rank], **options))
empty = kd.Statistics(3, 2)
part = kd.Statistics(3, 2).add(torch.ones(2, 3), torch.ones(2, 2)) if rank else empty
part.left_out = (f"of {rank}", "of both")
total = all_reduce(part)
print(total.count, total.weight, total.gram[0, 2].item(), *total.left_out)
alone = torch.distributed.new_group([1])
print(all_reduce(part, alone).count if rank else "-")
torch.distributed.destroy_process_group()
"""
    outputs = [output.splitlines() for output in together(body, tmp_path)]
    assert outputs[0][:4] == outputs[1][:4]
    assert outputs[0][:3] == [
        "process 1 has another encoder than process 0",
        "process 1 has another shape than process 0",
        "process 1 has another targets than process 0",
    ]
    assert outputs[0][3] == "2 2.0 2.0 of 0 of both of 1"
    assert [lines[4] for lines in outputs] == ["-", "2"]
    totals = [Statistics.load(tmp_path / f"total{rank}") for rank in range(2)]
    once = collect_statistics(X, y, **OPTIONS)
    for name in SUMS:
        assert torch.equal(getattr(totals[0], name), getattr(totals[1], name))
        error = (getattr(totals[0], name) - getattr(once, name)).abs().max()
        assert error <= 1e-12 * getattr(once, name).abs().max()
    assert totals[0].count == totals[1].count == 300
    assert totals[0].left_out == totals[1].left_out
    assert len(totals[0].left_out) == 1
    assert "s6.npz" in totals[0].left_out[0]


def test_without_a_job_it_says_what_to_do():
    with pytest.raises(ValueError, match="init_process_group"):
        all_reduce(Statistics(2, 2))


def test_parts_need_no_process_group():
    X, y = rows()
    parts = [collect_statistics(Shards.of(X, y, tile_rows=40).part(i, 2), **OPTIONS) for i in range(2)]
    assert (parts[0] + parts[1]).count == 300
