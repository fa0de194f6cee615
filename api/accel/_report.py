"""What has happened so far, as a table, and what a target is, in words."""

import dataclasses
import io
import os
from typing import Any

from ._install import active
from ._records import records
from ._stand_in import ModuleTarget
from ._target import Region, Target
from .registry import all_targets, select

_MEANING = {
    "exact": "the same numbers, up to {tolerance:.1g} {measure}",
    "statistical": "the same distribution; when verified, a difference of {tolerance:.1g} {measure} is accepted",
    "corrects": "another result, because the original's is wrong; installed by its full name only",
}


@dataclasses.dataclass(frozen=True)
class Report:
    """Rows, one for each target that is installed or was called.

    Attributes
    ----------
    rows : tuple of dict
        "target", "class", "places", "calls", "accelerated", "declined" (by reason), "unknown" (places left alone),
        "seconds", "verified", "difference", and of verified calls "speed": seconds of the original over ours.
    """

    rows: tuple[dict[str, Any], ...]

    def __str__(self) -> str:
        from .._tables import as_text

        return "\n\n".join(as_text(part) for part in self._tables())

    def html(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write the tables as a page.

        Raises
        ------
        FileExistsError
            If the file exists and `force` is not set.
        """
        from rich.console import Console

        from ..solver.store import write_bytes

        console = Console(file=io.StringIO(), width=180, record=True)
        for part in self._tables():
            console.print(part)
        write_bytes(path, console.export_html().encode(), force=force)

    def _tables(self) -> list[Any]:
        from .._tables import table

        done, left = [], []
        for row in self.rows:
            seen = row["verified"] > 0
            compared = (row["difference"], f"{row['speed']:.1f} x") if seen else (None, None)
            done.append([row["target"], row["class"], row["places"] or None, row["calls"]])
            done[-1] += [row["accelerated"], row["seconds"], row["verified"], *compared]
            left += [(row["target"], reason, count) for reason, count in row["declined"].items()]
            left += [(row["target"], place, None) for place in row["unknown"]]
        columns = ("target", "class", "where", "calls", "here", "seconds", "verified", "difference", "speed")
        tables = [table(columns, done, title="targets")]
        if left:
            tables.append(table(("target", "why", "calls"), left, title="left to the original"))
        return tables


def report() -> Report:
    """What the targets that are installed, or were called, have done since the program began."""
    rows = []
    classes = {target.name: target.equivalence for target in all_targets()}
    for name in sorted({*active, *(name for name, entry in records.items() if entry.calls)}):
        entry = records.get(name)
        found = dataclasses.asdict(entry) if entry else {}
        spent = found.get("replacement_seconds", 0.0)
        rows.append(
            {
                "target": name,
                "class": classes[name],
                "places": found.get("places", []),
                "calls": found.get("calls", 0),
                "accelerated": found.get("accelerated", 0),
                "declined": found.get("declined", {}),
                "unknown": found.get("unknown", []),
                "seconds": found.get("seconds", 0.0),
                "verified": found.get("verified", 0),
                "difference": found.get("difference", 0.0),
                "speed": found.get("original_seconds", 0.0) / spent if spent else 0.0,
            }
        )
    return Report(tuple(rows))


def explain(name: str) -> str:
    """What a target, or every target of a group, replaces, and what it keeps.

    Raises
    ------
    ValueError
        If there is none of this name.
    """
    names = [target.name for target in select((name,))]
    names += [target.name for target in all_targets() if target.group == name and target.name not in names]
    return "\n\n".join(_explained(target) for target in all_targets() if target.name in names)


def targets_page() -> str:
    """The page docs/accel-targets.md: what each target changes and keeps."""
    lines = [
        "# What `kernel_distill.accel` replaces",
        "",
        "Written by `kernel-distill accel --list --markdown`. How it works: [accel.md](accel.md).",
    ]
    for target in all_targets():
        lines += [
            "",
            f"## {target.name}",
            "",
            _sentence(target.summary),
            "",
            f"- **Replaces** {_place(target)}{'' if target.is_default else ', only where it is named'}.",
            f"- **Class** {target.equivalence}: {_meaning(target)}.",
            f"- **Changes:** {_sentence(target.changes)}",
            f"- **Bit for bit:** {_sentence(target.identical)}",
            f"- **In distribution only:** {_sentence(target.distribution)}",
        ]
    return "\n".join(lines) + "\n"


def _place(target: Target) -> str:
    if isinstance(target, ModuleTarget):
        return f"the module `{target.qualname}`"
    where = "any module" if target.module is None else f"`{target.module}`"
    return f"{'statements of ' if isinstance(target, Region) else ''}`{target.qualname}` of {where}"


def _sentence(text: str) -> str:
    """With a capital letter and a full stop; a name that begins it is left as it is."""
    first = text.split()[0]
    begun = text if "_" in first or "`" in first else text[0].upper() + text[1:]
    return begun if begun.endswith(".") else f"{begun}."


def _meaning(target: Target) -> str:
    if target.equivalence == "exact" and not target.tolerance:
        return "the same numbers"
    return _MEANING[target.equivalence].format(tolerance=target.tolerance, measure=target.measure)


def _explained(target: Target) -> str:
    lines = [
        f"{target.name}: {target.summary}",
        f"  replaces: {_place(target).replace('`', '')}, {len(target.hashes)} known source(s)",
        f"  class: {target.equivalence}: {_meaning(target)}",
        f"  changes: {target.changes}",
        f"  identical: {target.identical}",
        f"  in distribution only: {target.distribution}",
        f"  installed: {'yes' if target.name in active else 'no'}",
    ]
    return "\n".join(lines)
