"""The items of a batch as they were listed: `batches/<id>/items/<first>-<last>.parquet`, a portion a file.

A portion's metadata holds `cursor`, from where the listing goes on, and `over`: whether there is nothing behind it. So work
begins with the first portion, and a planner that was killed goes on behind the last.
"""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shared.items import ITEMS
from shared.results import shard_name, shard_range
from shared.storage import Storage

GROUP = 1024  # least items of a row group, rounded up to whole shards


def names(storage: Storage, batch: str) -> list[str]:
    """The portions that are listed, `<first>-<last>`, in order."""
    return [name.removesuffix(".parquet") for name in storage.list(f"batches/{batch}/items")]


def write(storage: Storage, batch: str, first: int, items: pa.Table, shard_size: int, cursor: str, over: bool) -> None:
    """Write the portion that begins with item `first`; `items` are those of `ITEMS`."""
    table = pa.concat_tables([ITEMS.empty_table(), items]).replace_schema_metadata({"cursor": cursor, "over": str(int(over))})
    with storage.writing(_key(batch, shard_name(first, first + len(items)))) as f:
        pq.write_table(table, f, row_group_size=-(-GROUP // shard_size) * shard_size, compression="zstd")


def facts(storage: Storage, batch: str, name: str) -> tuple[str, bool]:
    """(cursor, over) of a portion."""
    with storage.open(_key(batch, name)) as f:
        metadata = pq.read_schema(f).metadata
    return metadata[b"cursor"].decode(), metadata[b"over"] == b"1"


def planned(storage: Storage, batch: str) -> tuple[int, bool]:
    """How many items of a batch are listed, and whether these are all."""
    found = names(storage, batch)
    return (shard_range(found[-1])[1], facts(storage, batch, found[-1])[1]) if found else (0, False)


def items(storage: Storage, batch: str, first: int, last: int) -> list[dict[str, Any]]:
    """The items [first, last), which are a shard or part of one: {item_id, uri, locator}."""
    start, name = next((span[0], n) for n in names(storage, batch) if (span := shard_range(n))[0] <= first < span[1])
    with storage.open(_key(batch, name)) as f:
        file = pq.ParquetFile(f)
        size = file.metadata.row_group(0).num_rows
        groups = range((first - start) // size, (last - 1 - start) // size + 1)
        found = file.read_row_groups(list(groups)).slice(first - start - groups[0] * size, last - first)
    return found.to_pylist()  # type: ignore[no-any-return]


def _key(batch: str, name: str) -> str:
    return f"batches/{batch}/items/{name}.parquet"
