"""The results of a batch: one row per item, in shard files, readable while the batch runs.

A shard is named by the items it covers, `shards/00000000-00000256.parquet`, so the shards that exist say what is done,
and a shard that was split is two names. A shard's file holds its tally in its metadata; it is done when it exists.
"""

import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from shared.storage import Storage

ROWS = pa.schema(
    [
        ("item_id", pa.int64()),  # position in the batch, from 0
        ("uri", pa.string()),  # path within the folder or zip, or the address
        ("locator", pa.string()),  # how its bytes are read: shared/items.py
        ("sha256", pa.string()),
        ("label", pa.string()),
        ("probability", pa.float32()),
        ("top_labels", pa.list_(pa.string())),  # the k most probable, best first
        ("top_probabilities", pa.list_(pa.float32())),
        ("margin", pa.float32()),  # best minus second best probability
        ("entropy", pa.float32()),  # of all probabilities, nats
        ("decision", pa.string()),  # accept or review; empty for an error
        ("error_code", pa.string()),  # stable; empty if labelled
        ("error", pa.string()),  # a sentence
        ("model", pa.string()),
        ("model_version", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("ms", pa.float32()),  # decoding and its share of the mini-batch, milliseconds
    ]
)
TEXT_COLUMNS = ("uri", "sha256", "label", "top_labels", "decision", "error_code", "error", "model")
TOLD = pa.schema([field for field in ROWS if field.name != "locator"])  # what is given out: a locator may be a path on the server
CONFIDENCE_BINS = 20
LATEST = 12  # rows of a shard that the page shows as the newest


def shard_name(first: int, last: int) -> str:
    """Items [first, last) -> `00000000-00000256`: the unit of work and the file's stem."""
    return f"{first:08d}-{last:08d}"


def shard_range(name: str) -> tuple[int, int]:
    """`00000000-00000256` -> (0, 256)."""
    first, last = name.split("-")
    return int(first), int(last)


def shard_key(batch: str, name: str) -> str:
    """Where a shard's file lies on storage."""
    return f"batches/{batch}/shards/{name}.parquet"


def shard_bytes(rows: pa.Table, **about: str) -> bytes:
    """Rows as a Parquet file that carries its own tally, and what else is said `about` it, in its metadata."""
    out = io.BytesIO()
    pq.write_table(rows.replace_schema_metadata({"tally": json.dumps(tally(rows)), **about}), out, compression="zstd")
    return out.getvalue()


def tally(rows: pa.Table) -> dict[str, Any]:
    """What a shard adds to its batch, in the form that JobStore.commit takes."""
    good = rows.filter(pc.equal(rows["error_code"], ""))
    bins = np.minimum(good["probability"].to_numpy() * CONFIDENCE_BINS, CONFIDENCE_BINS - 1).astype(int)
    review = pc.sum(pc.equal(good["decision"], "review")).as_py() or 0
    newest = rows.slice(max(len(rows) - LATEST, 0)).select(["item_id", "uri", "label", "probability", "decision", "error_code", "error"])
    return {
        "counts": {"done": len(rows), "errors": len(rows) - len(good), "review": review},
        "hashes": {
            "labels": _counted(good["label"]),
            "confidence": {str(bin_): int(n) for bin_, n in enumerate(np.bincount(bins)) if n},
            "reasons": _counted(rows["error_code"].filter(pc.not_equal(rows["error_code"], ""))),
        },
        "latest": [json.dumps(row) for row in newest.to_pylist()],
    }


def _counted(values: pa.ChunkedArray) -> dict[str, int]:
    return {found["values"]: found["counts"] for found in pc.value_counts(values).to_pylist()}


def shard_tally(storage: Storage, batch: str, name: str) -> dict[str, Any]:
    """The tally of a shard that is done. Raises NotFound."""
    return json.loads(shard_facts(storage, batch, name)["tally"])  # type: ignore[no-any-return]


def shard_facts(storage: Storage, batch: str, name: str) -> dict[str, str]:
    """What the file of a shard says about itself: `tally` and `engine`. Raises NotFound."""
    with storage.open(shard_key(batch, name)) as f:
        return {key.decode(): value.decode() for key, value in pq.read_schema(f).metadata.items()}


def shards(storage: Storage, batch: str) -> list[str]:
    """Names of the shards that are done, in the order of their items."""
    return [n.removesuffix(".parquet") for n in storage.list(f"batches/{batch}/shards")]


def shard(storage: Storage, batch: str, name: str) -> tuple[pa.Table, dict[str, Any]]:
    """The rows of a shard that is done, and its tally. Raises NotFound."""
    with storage.open(shard_key(batch, name)) as f:
        table = pq.read_table(f)
    return table.replace_schema_metadata(None), json.loads(table.schema.metadata[b"tally"])


def tables(storage: Storage, batch: str) -> Iterator[pa.Table]:
    """The rows done so far, a table a shard, in the order of the items."""
    for name in shards(storage, batch):
        yield shard(storage, batch, name)[0]


def csv_lines(found: Iterator[pa.Table]) -> Iterator[bytes]:
    """CSV, a table at a time, the header first."""
    yield csv_header()
    yield from map(csv_rows, found)


def csv_header() -> bytes:
    """The first line of the CSV."""
    return ",".join(TOLD.names).encode() + b"\n"


def csv_rows(rows: pa.Table) -> bytes:
    """Rows as CSV. Lists are joined by `|`.

    Text that a spreadsheet would run as a formula gets an apostrophe in front (OWASP, "CSV Injection").
    """
    out = io.BytesIO()
    table = pa.table([_cells(name, rows[name]) for name in TOLD.names], names=TOLD.names)
    pa.csv.write_csv(table, out, pa.csv.WriteOptions(include_header=False))
    return out.getvalue()


def _cells(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_list(column.type):
        column = pc.binary_join(column.cast(pa.list_(pa.string())), "|")
    if name in TEXT_COLUMNS:
        return pc.replace_substring_regex(column, r"\A([=+\-@\t\r\n])", r"'\1")
    return column


def jsonl_lines(found: Iterator[pa.Table]) -> Iterator[str]:
    """One JSON object a row."""
    for table in found:
        yield "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table.select(TOLD.names).to_pylist())
