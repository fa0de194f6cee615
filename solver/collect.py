r"""Statistics over shards as a map-reduce: one task a tile, and sums that merge along a fixed tree.

The encoder is made once, by the process that calls, and sent to all; tiles and the order of merging depend on the data
alone. So the result is the same bits for any executor and any number of workers of equally many threads, and that of
one pass up to the order of float64 sums.

**Bad shards.** A file that is missing, truncated or not what the others are, rows that are not finite, and labels that
are unknown are errors that name the shard; or, where the caller says so, the shard is left out. Where other tiles of it
had been summed by then, everything is summed again without it, so that nothing of it stays.
"""

import collections
import hashlib
import json
from pathlib import Path
from typing import Any

from .encoder import Encoder
from .executors import Task, TaskStore
from .shard_source import Bad, ShardSource, Unit, named
from .shards import Shards, Tile
from .source import batch_rows
from .statistics import Statistics
from .targets import Targets


def collect_sums(
    source: ShardSource,
    encoder: Encoder,
    targets: Targets,
    batch_bytes: int | None = None,
    checkpoint: Path | None = None,
) -> Statistics:
    """Statistics of the rows of a source, or of the part of them that is asked for (`Shards.part`).

    Parameters
    ----------
    source : ShardSource
        With the executor that does the work.
    encoder : Encoder
    targets : Targets
    batch_bytes : int, optional
        Memory of one batch of features; default 64 MiB.
    checkpoint : Path, optional
        Folder for the sums of finished tiles.

    Raises
    ------
    ValueError
        If a shard is bad and must not be left out, or the checkpoint is of other work.

    Notes
    -----
    A tile of b rows costs b p²/2 multiplications; 8 p² bytes of sums travel once for each.
    """
    feature_map, shards = encoder.feature_map, source.shards
    budget = [] if batch_bytes is None else [batch_bytes]
    rows = batch_rows(feature_map.n_features, feature_map.n_inputs, *budget)
    store = None
    if checkpoint is not None:
        store = TaskStore(checkpoint, _identity(source, encoder, targets, rows), _write, Statistics.load)
    left_out = dict(source.left_out)
    while True:
        tiles = _share(shards, [tile for tile in source.tiles if tile.unit not in left_out])
        total = Statistics(feature_map.n_features, targets.n_outputs)
        if tiles:
            total = source.executor.map_reduce(
                _sums_of,
                _merged,
                [Task(tile.name, (tile,)) for tile in tiles],
                shared=(shards, source.skip, encoder, targets, rows),
                label="features and statistics",
                store=store,
                progress=source.progress,
            )
        found: dict[Unit, str] = {}
        for entry in total.left_out:
            number, start, reason = json.loads(entry)
            found.setdefault((number, start), reason)
        if found and not source.skip:
            raise ValueError(next(iter(found.values())))
        left_out |= found
        counts = collections.Counter(tile.unit for tile in tiles)
        # What is one task has added nothing; of what is several, the others may have added theirs.
        if all(counts[unit] == 1 for unit in found):
            break
    if shards.share[1] == 1 and total.count == 0 and left_out:
        raise ValueError(f"no shard is left: {next(iter(left_out.values()))}")
    total.encoder, total.targets = encoder, targets
    total.left_out = tuple(left_out[unit] for unit in sorted(left_out))
    return total


def _share(shards: Shards, tiles: list[Tile]) -> list[Tile]:
    index, count, whole = shards.share
    return [tile for tile in tiles if tile.shard % count == index] if whole else tiles[index::count]


def _identity(source: ShardSource, encoder: Encoder, targets: Targets, rows: int) -> dict[str, Any]:
    prints = [
        [shard.fingerprint(), look.n_rows]
        for shard, look in zip(source.shards.shards, source.looks, strict=True)
        if look is not None
    ]
    return {
        "encoder": encoder.digest(),
        "targets": hashlib.sha256(json.dumps(targets.parameters()).encode()).hexdigest(),
        "shards": hashlib.sha256(json.dumps(prints).encode()).hexdigest(),
        "rows": source.n_rows,
        "tile_rows": source.shards.tile_rows,
        "batch_rows": rows,
        "part": list(source.shards.share),
    }


def _sums_of(
    shards: Shards, skip: bool, encoder: Encoder, targets: Targets, rows: int, tile: Tile
) -> Statistics:
    """Sums of a tile, without the encoder, which the caller has; of a bad one nothing but the reason."""
    statistics = Statistics(encoder.feature_map.n_features, targets.n_outputs)
    size = tile.stop - tile.start
    # Batches of nearly one size: products of a handful of rows are rounded in another way than those of many.
    rows = -(-size // -(-size // rows))

    def add() -> Statistics:
        for batch in shards.shards[tile.shard].batches(rows, tile.start, tile.stop):
            Y = targets.encode(batch.y, batch.start)
            statistics.add(encoder(batch.X), Y, batch.weight, first_row=batch.start)
        return statistics.without_buffer()

    found = named(add, tile.name, tile.unit, skip)
    if isinstance(found, Bad):
        empty = Statistics(statistics.n_features, statistics.n_outputs)
        empty.left_out = (json.dumps([*found.unit, found.reason]),)
        return empty
    return found


def _merged(first: Statistics, second: Statistics) -> Statistics:
    return first.merge_(second)


def _write(path: Path, statistics: Statistics) -> None:
    """Keep the sums of a tile; what was bad is looked at again, since a file may be there the next time."""
    if not statistics.left_out:
        statistics.save(path, force=True)
