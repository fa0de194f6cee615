"""What a loop tells others while it runs: JSON lines, TensorBoard, Weights & Biases.

A callback is called with one record after another, in the order of the steps; a `close` method, if it has one,
is called at the end, also after an error. A record is a mapping with

- "kind": "start" of a call, "step", "evaluation", or "end";
- "step": of "start" and "end", the steps taken so far; of the others, those that the figures describe the set
  after (the loss of record "step" 0 is that of the start);
- "seconds": since the start of the run, over all legs;
- "figures": numbers by name; of "end", those of the best set;
- "evaluated", of "start": steps of the evaluations that count. Where the run goes on from a checkpoint, whatever
  was recorded beyond that step, and evaluations that do not count, are void: they are made again;
- "stopped" and "best_step", of "end".
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from .store import write_bytes

Record = Mapping[str, Any]
Callback = Callable[[Record], object]


# How a line of a log begins.
_LINE = '{"kind": '


class JSONLines:
    """A file of JSON lines, one record each, which reads as one run however often that was interrupted.

    Numbers that are not finite, which JSON lacks, are text: "nan", "inf", "-inf".

    Parameters
    ----------
    path : path
        A log that exists is replaced, save for what still counts of it where its run goes on. A file that is no
        log is refused with ValueError.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file: IO[str] | None = None

    def __call__(self, record: Record) -> None:
        if record["kind"] == "start":
            self.close()
            write_bytes(self.path, "".join(self._valid(record)).encode(), force=True)
            self._file = open(self.path, "a", encoding="utf-8", newline="\n")  # noqa: SIM115 (closed by `close`)
            return
        assert self._file is not None, "a log is told first where it starts"
        figures = {
            name: value if math.isfinite(value) else str(value) for name, value in record["figures"].items()
        }
        self._file.write(json.dumps({**record, "figures": figures}, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _valid(self, start: Record) -> list[str]:
        """Lines of the file that count for a run that goes on from `start`."""
        if not self.path.is_file():
            return []
        kept = []
        for line in self.path.read_bytes().decode(errors="replace").splitlines(keepends=True):
            try:
                record = json.loads(line)
            except ValueError:
                if not line.endswith("\n") and (kept or _LINE.startswith(line) or line.startswith(_LINE)):
                    break  # the line that was being written when the run was killed
                record = None
            if not isinstance(record, dict) or not {"kind", "step"} <= record.keys():
                raise ValueError(f"{self.path} exists and is not a log of a run: give another name")
            kind, step = record["kind"], record["step"]
            if (kind == "step" and step < start["step"]) or (
                kind == "evaluation" and step in start["evaluated"]
            ):
                kept.append(line)
        return kept


class TensorBoard:
    """Event files for TensorBoard: one curve for each figure, under "step/", "evaluation/" and "end/".

    Parameters
    ----------
    folder : path
        Where the event files go. A run that goes on adds a file, and voids what lies beyond its checkpoint.

    Raises
    ------
    ImportError
        If the package tensorboard is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("TensorBoard needs the package tensorboard: pip install tensorboard") from error
        self.folder = folder
        self._make, self._writer = SummaryWriter, None

    def __call__(self, record: Record) -> None:
        if record["kind"] == "start":
            self.close()
            # Void is what comes from this step on, of which an evaluation at this step is still good.
            void = record["step"] + 1 if record["evaluated"] else 0
            self._writer = self._make(os.fspath(self.folder), purge_step=void)
            return
        assert self._writer is not None, "TensorBoard is told first where a run starts"
        for name, value in record["figures"].items():
            self._writer.add_scalar(f"{record['kind']}/{name}", value, record["step"])

    def close(self) -> None:
        """Write what is left, and close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class WandB:
    """A run of Weights & Biases: figures under "step/", "evaluation/" and "end/".

    Parameters
    ----------
    **options
        Of ``wandb.init``: project, name, config, mode, ... For a run in legs, give ``id`` and ``resume="allow"``.

    Raises
    ------
    ImportError
        If the package wandb is not installed.
    """

    def __init__(self, **options: Any) -> None:
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError("WandB needs the package wandb: pip install wandb") from error
        self._init, self._options = wandb.init, options
        self._run: Any = None

    def __call__(self, record: Record) -> None:
        if record["kind"] == "start":
            self.close()
            self._run = self._init(**self._options)
            return
        figures = {f"{record['kind']}/{name}": value for name, value in record["figures"].items()}
        self._run.log({**figures, "seconds": record["seconds"]}, step=record["step"])

    def close(self) -> None:
        """Finish the run."""
        if self._run is not None:
            self._run.finish()
            self._run = None
