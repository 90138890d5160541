"""The results of a batch: one row per item, in shard files, readable while the batch runs.

A shard is named by the items it covers, `shards/00000000-00000256.parquet`, so the shards that exist say what is done,
and a shard that was split is two names. A shard's file holds its tally in its metadata; it is done when it exists.
"""

import csv
import heapq
import io
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shared.errors import NotFound
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
CSV_COLUMNS = [name for name in ROWS.names if name != "locator"]
CONFIDENCE_BINS = 20


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


def shard_bytes(rows: list[dict[str, Any]]) -> bytes:
    """Rows as a Parquet file that carries its own tally."""
    out = io.BytesIO()
    table = pa.Table.from_pylist(rows, schema=ROWS).replace_schema_metadata({"tally": json.dumps(tally(rows))})
    pq.write_table(table, out, compression="zstd")
    return out.getvalue()


def tally(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What a shard adds to its batch, in the form that JobStore.commit takes."""
    good = [r for r in rows if not r["error_code"]]
    return {
        "counts": {"done": len(rows), "errors": len(rows) - len(good), "review": sum(r["decision"] == "review" for r in good)},
        "hashes": {
            "labels": dict(Counter(r["label"] for r in good)),
            "confidence": dict(Counter(str(min(int(r["probability"] * CONFIDENCE_BINS), CONFIDENCE_BINS - 1)) for r in good)),
            "reasons": dict(Counter(r["error_code"] for r in rows if r["error_code"])),
        },
        "latest": [
            json.dumps({k: r[k] for k in ("item_id", "uri", "label", "probability", "decision", "error_code", "error")}) for r in rows[-12:]
        ],
    }


def shard_tally(storage: Storage, batch: str, name: str) -> dict[str, Any]:
    """The tally of a shard that is done. Raises NotFound."""
    with storage.open(shard_key(batch, name)) as f:
        return json.loads(pq.read_schema(f).metadata[b"tally"])  # type: ignore[no-any-return]


def shards(storage: Storage, batch: str) -> list[str]:
    """Names of the shards that are done, in the order of their items."""
    return [n.removesuffix(".parquet") for n in storage.list(f"batches/{batch}/shards")]


def tables(storage: Storage, batch: str) -> Iterator[pa.Table]:
    """The rows done so far, a table a shard, in the order of the items."""
    for name in shards(storage, batch):
        with storage.open(shard_key(batch, name)) as f:
            yield pq.read_table(f).replace_schema_metadata(None)


def page(
    storage: Storage,
    batch: str,
    start: int = 0,
    limit: int = 100,
    label: str | None = None,
    decision: str | None = None,
    errors: bool = False,
) -> list[dict[str, Any]]:
    """Rows done so far in the order of their items, from item `start` on, at most `limit`; filtered by label, decision or errors."""
    found: list[dict[str, Any]] = []
    for name in shards(storage, batch):
        if shard_range(name)[1] <= start:
            continue
        with storage.open(shard_key(batch, name)) as f:
            for row in pq.read_table(f).to_pylist():
                if (
                    row["item_id"] < start
                    or (label is not None and row["label"] != label)
                    or (decision and row["decision"] != decision)
                    or (errors and not row["error_code"])
                ):
                    continue
                found.append(row)
                if len(found) == limit:
                    return found
    return found


def row(storage: Storage, batch: str, item_id: int) -> dict[str, Any]:
    """One row. Raises NotFound."""
    found = page(storage, batch, item_id, 1)
    if not found or found[0]["item_id"] != item_id:
        raise NotFound(f"The batch has no row for item {item_id} yet.")
    return found[0]


def least_sure(storage: Storage, batch: str, limit: int = 100) -> list[dict[str, Any]]:
    """The rows with the smallest margin between best and second best label, least sure first."""
    rows = (r for t in tables(storage, batch) for r in t.to_pylist() if not r["error_code"])
    return heapq.nsmallest(limit, rows, key=lambda r: (r["margin"], r["item_id"]))


def csv_lines(found: Iterator[pa.Table]) -> Iterator[str]:
    """CSV text, a shard at a time, the header first. Lists are joined by `|`.

    Text that a spreadsheet would run as a formula gets an apostrophe in front (OWASP, "CSV Injection").
    """
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_MINIMAL, lineterminator="\r\n")
    writer.writerow(CSV_COLUMNS)
    for table in found:
        for r in table.to_pylist():
            writer.writerow([_cell(name, r[name]) for name in CSV_COLUMNS])
        yield out.getvalue()
        out.seek(0)
        out.truncate()
    yield out.getvalue()


def jsonl_lines(found: Iterator[pa.Table]) -> Iterator[str]:
    """One JSON object a row."""
    for table in found:
        yield "".join(json.dumps({k: v for k, v in r.items() if k != "locator"}, ensure_ascii=False) + "\n" for r in table.to_pylist())


def _cell(name: str, value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, list):
        value = "|".join(f"{v:.6g}" if isinstance(v, float) else str(v) for v in value)
    elif isinstance(value, float):
        return f"{value:.6g}"
    if name in TEXT_COLUMNS and str(value).startswith(("=", "+", "-", "@", "\t", "\r", "\n")):
        return f"'{value}"
    return value
