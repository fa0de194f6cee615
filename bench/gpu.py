"""All that one visit to a GPU can tell: open points, tests, timings, a distillation, RFAD, networks, D3. See gpu.sh.

    python bench/gpu.py             # on the GPU; writes bench/results/<device>.json
    python bench/gpu.py --dry-run   # the same steps on the CPU at tiny sizes; writes nothing into the repository

Each step that touches the device runs in a process of its own with a limit of time: a kernel that hangs, or that
leaves the device unusable, costs its own step and nothing else. The file is written anew after every step.
"""

import contextlib
import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
SECONDS = 545  # for everything: under the ten minutes that a visit may take
LIMITS = {"points": 60, "tests": 190, "distillation": 60, "rfad": 90, "networks": 70, "d3": 40}
AFTER = ("distillation", "rfad", "networks", "d3")  # steps that come after the timings
LEAST = 20  # seconds: less is not worth starting a process of benchmarks for
SILENCE = 60  # seconds without a result after which a benchmark is taken to hang
# The goals first: whatever the time does not suffice for is at the end.
FIRST = (
    "row-sums", "matmul", "mmd", "row-sums-symmetric", "gram-symmetric", "gram", "sample-without",
    "fourier-features", "statistics", "sample-by-loss", "sample-with", "lightweight-sensitivity", "k-center",
)  # fmt: skip


def main(arguments):
    dry = "--dry-run" in arguments
    if not dry and not torch.cuda.is_available():
        print(
            "There is no GPU here that torch can use: bench/gpu.sh measures nothing without one.",
            file=sys.stderr,
        )
        return 2
    visit = Visit(torch.device("cpu" if dry else "cuda"), dry, results(dry))
    visit.record("machine", visit.machine())
    visit.record("points", visit.in_its_own_process("points"))
    visit.record("tests", visit.tests())
    visit.timings()
    for name in AFTER:
        visit.record(name, visit.in_its_own_process(name))
    print(f"wrote {visit.path} after {visit.elapsed():.0f} s")
    return visit.status()


def results(dry):
    """The file to write: named after the device, or of a dry run and in a temporary folder."""
    if dry:
        return Path(tempfile.mkdtemp(prefix="kernel-distill-")) / "dry-run.json"
    name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    return ROOT / "bench" / "results" / f"{name}.json"


class Visit:
    """The steps, and the file that collects what they found."""

    def __init__(self, device, dry, path):
        self.device, self.dry, self.path = device, dry, path
        self.started = time.monotonic()
        self.found = {"rows": []}

    def elapsed(self):
        return time.monotonic() - self.started

    def left(self):
        return SECONDS - self.elapsed()

    def record(self, step, result):
        """Add what a step found, show it, and write everything so far."""
        self.found[step] = result
        if step != "rows":
            print(f"\n== {step}, {self.elapsed():.0f} s\n{json.dumps(result, indent=1)}", flush=True)
        self.path.parent.mkdir(exist_ok=True)
        copies = [self.path, *([Path(out) / self.path.name] if (out := os.environ.get("OUT")) else [])]
        for path in copies:
            unfinished = path.with_name(path.name + ".part")
            unfinished.write_text(json.dumps(self.found, indent=1) + "\n")
            unfinished.replace(path)

    def status(self):
        """1 if a test failed or a result is wrong, otherwise 0."""
        rows = [row for row in self.found["rows"] if row["status"] in ("wrong", "failed")]
        tests = self.found["tests"]
        right = all(self.found.get(name, {}).get("status") in ("ok", None) for name in AFTER)
        return int(bool(rows) or bool(tests["failed"]) or tests["passed"] == 0 or not right)

    def machine(self):
        from kernel_distill._bench.machine import describe_machine

        git = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return {**describe_machine(self.device), "commit": git.stdout.strip() or None}

    def in_its_own_process(self, step):
        """What a step prints, objects of JSON on lines, as one; with the reason if it came to an end too early."""
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
            limit = min(LIMITS[step], self.left())
            status = run(self._this("--step", step), limit, stdout=out, stderr=errors)
            out.seek(0)
            errors.seek(0)
            found = {}
            for line in out:
                try:
                    found |= json.loads(line)
                except (ValueError, TypeError):  # a compiler's remark, or a line cut off
                    print(line.rstrip(), file=sys.stderr)
            if status is None:
                found["unknown"] = f"stopped after {limit:.0f} s"
            elif status:
                found["unknown"] = errors.read().strip()[-1000:] or f"ended with status {status}"
        return found

    def tests(self):
        """Counts, and the names of tests that failed."""
        if importlib.util.find_spec("pytest") is None:
            return {"passed": 0, "failed": [], "reason": "pytest is not installed here: no test was run"}
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.xml"
            # A dry run has no test of a GPU to run, and takes another that is quick.
            on_gpu = ["-m", "gpu", "tests/kernels", "tests/nn_baselines"]
            what = ["tests/kernels/test_random.py"] if self.dry else on_gpu
            command = [sys.executable, "-m", "pytest", "-q", *what, "-p", "no:cacheprovider"]
            # Plugins and warnings of the project's own configuration are not to be relied on here.
            command += ["-o", "addopts=--import-mode=importlib", "-o", "filterwarnings=default"]
            command += [f"--junitxml={report}", "--tb=short"]
            if importlib.util.find_spec("xdist") and not self.dry:
                command += ["-n", "6"]
                # A kernel that hangs ends its worker, not the others.
                if importlib.util.find_spec("pytest_timeout"):
                    command += ["--timeout=90", "--timeout-method=thread"]
            print(f"\n== tests: {shlex.join(command)}", flush=True)
            status = run(command, min(LIMITS["tests"], self.left()))
            return {**_counts(report), **({"reason": "stopped: no time left"} if status is None else {})}

    def timings(self, names=None):
        """Benchmarks, in processes that are replaced when one of them hangs or breaks the device."""
        from _gpu_timings import summary

        from kernel_distill._bench.cases import CASES

        names = names or [*FIRST, *(name for name in CASES if name not in FIRST)]
        while names:
            limit = self.left() - sum(LIMITS[name] for name in AFTER)
            if limit < LEAST:
                self._lose(names, "late", "no time left")
                break
            ended, begun, status, reason = self._some_timings(names, limit)
            names = names[ended:]
            if begun:
                self._lose(names[:1], status, reason)
                names = names[1:]
            elif names and not ended:
                self._lose(names, status, reason)
                break
        self.record("rows", self.found["rows"])
        print(f"\n== timings, {self.elapsed():.0f} s\n{summary(self.found['rows'])}", flush=True)

    def _lose(self, names, status, reason):
        self.found["rows"] += [{"case": name, "status": status, "reason": reason} for name in names]

    def _some_timings(self, names, limit):
        """Run a process through `names`: how many it ended, whether it began another, and what became of that."""
        until = time.monotonic() + limit
        ended = begun = lines = 0
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "rows.jsonl"
            out.touch()
            process = subprocess.Popen(
                self._this("--step", "timings", str(out), *names), cwd=ROOT, start_new_session=True
            )
            heard = time.monotonic()
            try:
                while True:
                    running = process.poll() is None
                    for line in out.read_text().split("\n")[lines:-1]:
                        message = json.loads(line)
                        self._take(message)
                        begun, ended = begun + ("begin" in message), ended + ("end" in message)
                        lines, heard = lines + 1, time.monotonic()
                    if not running:
                        break
                    if time.monotonic() > until:
                        return ended, begun > ended, "late", "no time left"
                    if time.monotonic() - heard > SILENCE:
                        return ended, begun > ended, "failed", f"gave no result for {SILENCE} s"
                    time.sleep(0.1)
            finally:
                end(process)
        return ended, begun > ended, "failed", f"its process ended with status {process.returncode}"

    def _take(self, message):
        if "ceilings" in message:
            self.found.setdefault("ceilings", message["ceilings"])
        if "row" in message:
            self.found["rows"].append(message["row"])
            self.record("rows", self.found["rows"])

    def _this(self, *arguments):
        return [sys.executable, __file__, *(["--dry-run"] if self.dry else []), *arguments]


def run(command, limit, **streams):
    """Exit status of a command, None if it was stopped with all that it started when the time was up."""
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **streams)
    try:
        return process.wait(max(1, limit))
    except subprocess.TimeoutExpired:
        return None
    finally:
        end(process)


def end(process):
    """Stop a process and whatever it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def step(name, device, dry, arguments):
    """Run one step in this process."""
    if name == "points":
        from _gpu_points import open_points

        for point, answer in open_points(device, quick=dry):
            print(json.dumps({point: answer}), flush=True)
    elif name == "distillation":
        from _gpu_distillation import distillation

        print(json.dumps(distillation(device, quick=dry)))
    elif name == "rfad":
        from _gpu_rfad import rfad_steps

        print(json.dumps(rfad_steps(device, quick=dry)))
    elif name == "networks":
        from _gpu_evaluator import evaluator_epochs
        from _gpu_networks import dm_steps

        dm = dm_steps(device, quick=dry)
        print(json.dumps({"dm": dm, "status": dm["status"]}), flush=True)
        trained = evaluator_epochs(device, quick=dry)
        print(json.dumps({"evaluator": trained, "status": max(dm["status"], trained["status"])}))
    elif name == "d3":
        from _mmd_step import SMALL, mmd_step

        print(json.dumps(mmd_step(device, **(SMALL if dry else {}))))
    else:
        from _gpu_timings import time_cases

        time_cases(device, dry, *arguments)


def _counts(report):
    if not report.exists():
        return {"passed": 0, "failed": ["pytest wrote no report"]}
    failed, skipped, total = [], 0, 0
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        total += 1
        skipped += case.find("skipped") is not None
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(f"{case.get('classname')}::{case.get('name')}")
    return {"passed": total - skipped - len(failed), "skipped": skipped, "failed": failed}


if __name__ == "__main__":
    given = sys.argv[1:]
    if "--step" in given:
        at = given.index("--step")
        dry_run = "--dry-run" in given[:at]
        step(given[at + 1], torch.device("cpu" if dry_run else "cuda"), dry_run, given[at + 2 :])
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is stopped
        sys.exit(main(given))
