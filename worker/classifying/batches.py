"""The two ends of a batch: listing its items, a portion at a time, and gathering its results."""

import time
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shared import models, portions, results
from shared.errors import DarkroomError
from shared.items import ITEMS, Item, walk
from shared.settings import Settings
from shared.specs import ClassifySpec
from shared.storage import Storage
from worker.progress import Progress

PORTION = 32_768  # items a planning unit lists, rounded up to whole shards: some seconds of listing, some MB of memory
CHUNK = 2048  # items between two looks at whether to stop
RESULT_GROUP = 8192  # rows of a row group of results.parquet


def plan(spec: ClassifySpec, job: str, first: int, storage: Storage, settings: Settings, progress: Progress) -> dict[str, Any]:
    """List the next portion of the items, from item `first` on: {"first", "last", "over": whether these were the last}.

    Raises DarkroomError when there are none at all.
    """
    models.resolve(storage, spec.model)
    spans = {results.shard_range(name): name for name in portions.names(storage, job)}
    for (start, end), name in spans.items():
        if start == first:  # the planner died between writing and telling
            return {"first": first, "last": end, "over": portions.facts(storage, job, name)[1]}
    before = next((name for (_, end), name in spans.items() if end == first), None)
    cursor = portions.facts(storage, job, before)[0] if before else ""
    items = walk(spec.source, storage, settings, after=cursor)
    most = -(-PORTION // spec.shard_size) * spec.shard_size
    tables, last = [], first
    while chunk := list(islice(items, min(CHUNK, first + most - last))):
        tables.append(_table(chunk, last))
        last, cursor = last + len(chunk), chunk[-1][2]
        progress.update(phase="planning", listed=last)
    if not last:
        raise DarkroomError("There are no images in what was given; nothing was classified.")
    over = next(items, None) is None
    portions.write(storage, job, first, pa.concat_tables(tables or [ITEMS.empty_table()]), spec.shard_size, cursor, over)
    return {"first": first, "last": last, "over": over}


def _table(items: list[Item], first: int) -> pa.Table:
    uris, locators, _ = zip(*items, strict=True)
    return pa.table([range(first, first + len(items)), uris, locators], schema=ITEMS)


def finish(spec: ClassifySpec, job: str, started: float, storage: Storage, progress: Progress) -> dict[str, Any]:
    """Gather the shards into results.csv and results.parquet, then write info.json; returns the job's result.

    Keys: items, errors, review, seconds, images_per_second, engine, csv and parquet (storage keys).
    """
    names = results.shards(storage, job)
    base = f"batches/{job}"
    counts = {"done": 0, "errors": 0, "review": 0}
    waiting: list[pa.Table] = []
    with (
        storage.writing(f"{base}/results.csv") as csv,
        storage.writing(f"{base}/results.parquet") as parquet,
        pq.ParquetWriter(parquet, results.TOLD, compression="zstd") as writer,
    ):
        csv.write(results.csv_header())
        for name in names:
            if results.shard_range(name)[0] != counts["done"]:
                raise AssertionError(f"shard {name} does not follow item {counts['done']}")
            rows, tally = results.shard(storage, job, name)
            for field, n in tally["counts"].items():
                counts[field] += n
            waiting.append(rows)
            if name == names[-1] or sum(map(len, waiting)) >= RESULT_GROUP:
                table, waiting = pa.concat_tables(waiting), []
                csv.write(results.csv_rows(table))
                writer.write_table(table.select(results.TOLD.names))
            progress.update(phase="finishing", gathered=counts["done"])
    if portions.planned(storage, job) != (counts["done"], True):
        raise AssertionError(f"the shards hold {counts['done']} items, and planned were {portions.planned(storage, job)}")
    for folder in (base, f"{base}/items", f"{base}/shards"):
        storage.clear_unfinished(folder)  # of workers that were killed
    seconds = max(time.time() - started, 1e-3)
    result = {
        "items": counts["done"],
        "errors": counts["errors"],
        "review": counts["review"],
        "seconds": round(seconds, 3),
        "images_per_second": round(counts["done"] / seconds, 2),
        "engine": results.shard_facts(storage, job, names[-1]).get("engine", ""),
        "csv": f"{base}/results.csv",
        "parquet": f"{base}/results.parquet",
    }
    storage.write_json(f"{base}/info.json", {**result, "model": spec.model, "created": time.time()})
    return result
