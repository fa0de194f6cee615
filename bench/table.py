"""Markdown tables of accuracy rows: `python bench/table.py bench/results/cpu.jsonl`."""

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

HEADER = (
    "| data | map | points | full data, test % | distilled, test % | differing | weight_error | stored_error | s |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def spread(values):
    """Mean and deviation over seeds, in percent."""
    values = [100 * value for value in values]
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def table(rows):
    """Rows grouped by data, map and size: mean over seeds, worst error."""
    groups = defaultdict(list)
    for row in rows:
        if row["claim"] == "accuracy":
            groups[row["data"], row["feature_map"], 10 * row["per_class"]].append(row)
    lines = [HEADER]
    for (data, feature_map, points), members in groups.items():
        column = {key: [row[key] for row in members] for key in members[0]}
        lines.append(
            f"| {data} | {feature_map} | {points} | {spread(column['full_accuracy'])} |"
            f" {spread(column['accuracy'])} | {sum(column['differing'])} | {max(column['weight_error']):.0e} |"
            f" {max(column['stored_error']):.0e} | {statistics.median(column['seconds']):.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table([json.loads(line) for path in sys.argv[1:] for line in Path(path).read_text().splitlines()]))
