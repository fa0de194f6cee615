"""Memory budgets: peaks are asserted, not estimated."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest


@pytest.mark.slow
def test_streaming_a_memory_map_stays_within_its_budget(tmp_path):
    """Two passes' worth of rows leave the peak where it is: memory does not grow with n."""
    code = """
import json, re, sys
import numpy as np, kernel_distill as kd
kd.distill, kd.Statistics
X = np.memmap(sys.argv[1], dtype=np.float32, mode="r").reshape(-1, 784)[: int(sys.argv[2])]
def peak():  # of this program; ru_maxrss would begin with that of the process that started it
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = peak()
kd.collect_statistics(X, np.arange(len(X)) % 10, feature_map="identity", transform="none", progress=False)
print(json.dumps((peak() - before) / 2**10))
"""
    path = tmp_path / "rows.f32"
    block = np.random.default_rng(0).standard_normal((50_000, 784), dtype=np.float32)
    with path.open("wb") as file:
        for _ in range(6):
            block.tofile(file)

    def peak_mib(rows):
        done = subprocess.run(
            [sys.executable, "-c", code, str(path), str(rows)], capture_output=True, check=True
        )
        return json.loads(done.stdout)

    if not Path("/proc/self/status").exists():
        pytest.skip("peak memory is read from /proc, which this system has not")
    small, large = peak_mib(100_000), peak_mib(300_000)
    assert small > 1  # or nothing was measured
    assert large < 2048
    assert large < small + 100  # 200,000 more rows are 600 MiB
