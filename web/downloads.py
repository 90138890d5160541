"""Files for download: from storage as they are, or made while they are sent, so that no size is too large."""

import io
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from flask import Response, request, send_file
from werkzeug.wsgi import wrap_file

from shared import results, review
from shared.storage import Storage

TYPES = {
    "csv": "text/csv",
    "jsonl": "application/jsonl",
    "parquet": "application/vnd.apache.parquet",
    "json": "application/json",
    "zip": "application/zip",
}


def attachment(storage: Storage, key: str, name: str) -> Response:
    """A file on storage as a download called `name`. Raises NotFound."""
    kind = TYPES.get(name.rsplit(".", 1)[-1], "application/octet-stream")
    if storage.is_local:
        return send_file(storage.local(key), kind, as_attachment=True, download_name=name)
    size = storage.size(key)
    response = Response(wrap_file(request.environ, storage.open(key)), mimetype=kind, direct_passthrough=True)
    response.content_length = size
    response.headers.set("Content-Disposition", "attachment", filename=name)
    return response


def streamed_results(storage: Storage, batch: str, form: str) -> Response:
    """The rows of a batch that are done so far as csv, jsonl or parquet, a shard at a time."""
    forms: dict[str, Callable[[Iterator[pa.Table]], Iterator[Any]]] = {
        "csv": results.csv_lines,
        "jsonl": results.jsonl_lines,
        "parquet": parquet_chunks,
    }
    response = Response(forms[form](results.tables(storage, batch)), mimetype=TYPES[form])
    response.headers.set("Content-Disposition", "attachment", filename=f"batch-{batch}.{form}")
    return response


def streamed_decisions(storage: Storage, batch: str, form: str) -> Response:
    """What people decided about the rows of a batch as csv or jsonl, a decision at a time."""
    lines = {"csv": review.csv_lines, "jsonl": review.jsonl_lines}[form]
    response = Response(lines(review.decisions(storage, batch)), mimetype=TYPES[form])
    response.headers.set("Content-Disposition", "attachment", filename=f"batch-{batch}-review.{form}")
    return response


def parquet_chunks(tables: Iterator[pa.Table]) -> Iterator[bytes]:
    """A Parquet file in pieces, a row group a table."""
    sink = _Sink()
    with pq.ParquetWriter(sink, results.TOLD, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table.select(results.TOLD.names).cast(results.TOLD))
            yield sink.taken()
    yield sink.taken()


class _Sink(io.RawIOBase):
    """Where a writer writes; what it wrote is taken away piece by piece."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._at = 0

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        piece = bytes(data)  # type: ignore[call-overload]
        self._pieces.append(piece)
        self._at += len(piece)
        return len(piece)

    def tell(self) -> int:
        return self._at

    def taken(self) -> bytes:
        """What was written since the last call."""
        piece = b"".join(self._pieces)
        self._pieces.clear()
        return piece
