"""The two ends of a batch: listing its items, and gathering its results."""

import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shared import models, results
from shared.errors import DarkroomError
from shared.items import ITEMS, check_folder, check_zip, open_zip, walk_folder, walk_zip
from shared.settings import Settings
from shared.specs import ClassifySpec, FolderSource, UploadSource
from shared.storage import Storage
from worker.progress import Progress


def items_key(job: str) -> str:
    """Where the manifest of a batch's items lies on storage."""
    return f"batches/{job}/items.parquet"


def plan(spec: ClassifySpec, job: str, storage: Storage, settings: Settings, progress: Progress) -> dict[str, Any]:
    """List the items as a Parquet manifest, one row group a shard, as a stream.

    Returns `{"items": n, "shards": [names]}`. Raises DarkroomError when there are none.
    """
    models.resolve(storage, spec.model)
    count = 0
    shards: list[str] = []
    with storage.writing(items_key(job)) as f, pq.ParquetWriter(f, ITEMS, compression="zstd") as writer:
        for uris, locators in _groups(_items(spec, storage, settings), spec.shard_size):
            writer.write_table(pa.table([range(count, count + len(uris)), uris, locators], schema=ITEMS))
            shards.append(results.shard_name(count, count + len(uris)))
            count += len(uris)
            progress.update(phase="planning", listed=count)
        if not count:
            raise DarkroomError("There are no pictures in what was given; nothing was classified.")
    return {"items": count, "shards": shards}


def _items(spec: ClassifySpec, storage: Storage, settings: Settings) -> Iterator[tuple[str, str]]:
    """(uri, locator) of each item."""
    source = spec.source
    if isinstance(source, FolderSource):
        yield from walk_folder(check_folder(source.path, settings))
    elif isinstance(source, UploadSource):
        with open_zip(storage, source.id) as archive:
            check_zip(archive, settings)
            yield from walk_zip(archive, source.id)
    else:
        yield from ((url, url) for url in source.urls)


def _groups(pairs: Iterator[tuple[str, str]], size: int) -> Iterator[tuple[list[str], list[str]]]:
    uris: list[str] = []
    locators: list[str] = []
    for uri, locator in pairs:
        # a file name in a broken encoding is no valid text; it stays readable in the locator alone
        uris.append(uri.encode("utf-8", "replace").decode())
        locators.append(locator)
        if len(uris) == size:
            yield uris, locators
            uris, locators = [], []
    if uris:
        yield uris, locators


def items_of(storage: Storage, job: str, first: int, last: int, shard_size: int) -> list[dict[str, Any]]:
    """The items [first, last) of a batch, which lie within one row group: {item_id, uri, locator}."""
    with storage.open(items_key(job)) as f:
        group = pq.ParquetFile(f).read_row_group(first // shard_size)
    return group.slice(first % shard_size, last - first).to_pylist()  # type: ignore[no-any-return]


def finish(spec: ClassifySpec, job: str, started: float, storage: Storage, progress: Progress) -> dict[str, Any]:
    """Gather the shards into results.csv and results.parquet, then write info.json; returns the job's result.

    Keys: items, errors, review, seconds, images_per_second, csv and parquet (storage keys).
    """
    progress.update(phase="finishing")
    seconds = max(time.time() - started, 1e-3)
    names = results.shards(storage, job)
    counts = _check_complete(storage, job, names)
    base = f"batches/{job}"
    with storage.writing(f"{base}/results.csv") as f:
        for text in results.csv_lines(results.tables(storage, job)):
            f.write(text.encode())
            progress.check()
    with storage.writing(f"{base}/results.parquet") as f, pq.ParquetWriter(f, results.ROWS, compression="zstd") as writer:
        for table in results.tables(storage, job):
            writer.write_table(table.cast(results.ROWS))
            progress.check()
    storage.clear_unfinished(f"{base}/shards")  # of workers that were killed
    result = {
        "items": counts["done"],
        "errors": counts["errors"],
        "review": counts["review"],
        "seconds": round(seconds, 3),
        "images_per_second": round(counts["done"] / seconds, 2),
        "csv": f"{base}/results.csv",
        "parquet": f"{base}/results.parquet",
    }
    storage.write_json(f"{base}/info.json", {**result, "model": spec.model, "created": time.time()})
    return result


def _check_complete(storage: Storage, job: str, names: list[str]) -> dict[str, int]:
    """The counts of all shards, which must follow each other without gap or overlap from item 0 to the last."""
    with storage.open(items_key(job)) as f:
        items = pq.ParquetFile(f).metadata.num_rows
    counts = {"done": 0, "errors": 0, "review": 0}
    position = 0
    for name in names:
        first, position_after = results.shard_range(name)
        if first != position:
            raise AssertionError(f"shard {name} does not follow item {position}")
        position = position_after
        for field, n in results.shard_tally(storage, job, name)["counts"].items():
            counts[field] += n
    if position != items or counts["done"] != items:
        raise AssertionError(f"the shards hold {counts['done']} of {items} items")
    return counts
