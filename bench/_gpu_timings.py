"""The timings of a visit to a GPU: the process that takes them, and the lines that sum them up."""

import dataclasses
import json

import torch

from kernel_distill._bench.case import Bench
from kernel_distill._bench.machine import measure_ceilings
from kernel_distill._bench.run import absences, choose_cases, duration, in_words, measure, rows_table
from kernel_distill._tables import as_text


def time_cases(device, dry, out, *names):
    """Append ceilings and rows to a file; ends where the device no longer answers."""
    bench = Bench(device, quick=dry)
    with open(out, "a", buffering=1, encoding="utf-8") as file:

        def tell(**message):
            file.write(json.dumps(message) + "\n")

        ceilings = measure_ceilings(device, quick=dry)
        tell(ceilings=dataclasses.asdict(ceilings))
        for name in names:
            (case,) = choose_cases([name])
            rows = []
            tell(begin=name)
            for numbers in case.sizes(bench):
                rows.append(measure(bench, case, numbers, ceilings))
                tell(row=rows[-1])
            print(as_text(rows_table(case, rows)), *filter(None, [absences(rows)]), sep="\n", flush=True)
            tell(end=name)
            if device.type == "cuda":
                torch.cuda.synchronize()  # raises where a kernel has broken the device: the next process goes on


def summary(rows):
    """A line a row: time, share of the floor, and the best of the rivals that are accurate."""
    lines = []
    for row in rows:
        label = f"{row['case']} {in_words(row.get('size', {}))}".rstrip()
        if row["status"] != "ok":
            lines.append(f"{label}: {row['status']}, {row.get('reason', row.get('error'))}")
            continue
        floor = f", {100 / row['times_floor']:.0f} % of the rate of the floor" if "times_floor" in row else ""
        rivals = [
            (rival["ratio"], name)
            for name, rival in row["rivals"].items()
            if rival.get("accurate") and not name.startswith("our ")
        ]
        best = f", {min(rivals)[0]:.3g}x {min(rivals)[1]}" if rivals else ""
        lines.append(f"{label}: {duration(row['seconds'])}{floor}{best}")
    return "\n".join(lines)
