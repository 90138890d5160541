"""Results: readable while the batch runs, safe for spreadsheets."""

import csv
import io
import json

import pyarrow as pa
import pytest

from shared import results
from shared.storage import Storage


def row(n, label="cat", probability=0.9, error="", **more):
    good = not error
    return {
        "item_id": n, "uri": f"{n}.jpg", "locator": f"file:/{n}.jpg", "sha256": "", "label": label if good else "",
        "probability": probability if good else None, "top_labels": [label, "dog"] if good else [], "top_probabilities": [probability, 0.1] if good else [],
        "margin": probability - 0.1 if good else None, "entropy": 0.3 if good else None,
        "decision": ("accept" if probability > 0.6 else "review") if good else "", "error_code": error, "error": "It is empty." if error else "",
        "model": "pets", "model_version": 1, "width": 4, "height": 4, "ms": 1.5, **more,
    }  # fmt: skip


@pytest.fixture
def storage(tmp_path):
    return Storage(str(tmp_path / "store"), tmp_path / "cache")


def put(storage, first, rows):
    name = results.shard_name(first, first + len(rows))
    storage.write(results.shard_key("b", name), results.shard_bytes(pa.Table.from_pylist(rows, schema=results.ROWS)))
    return name


def test_a_shard_is_named_by_its_items():
    assert results.shard_range(results.shard_name(256, 512)) == (256, 512)


def test_a_shard_carries_its_tally(storage):
    name = put(storage, 0, [row(0), row(1, "dog", 0.4), row(2, error="empty")])
    tally = results.shard_tally(storage, "b", name)
    assert tally["counts"] == {"done": 3, "errors": 1, "review": 1}
    assert tally["hashes"] == {"labels": {"cat": 1, "dog": 1}, "confidence": {"18": 1, "8": 1}, "reasons": {"empty": 1}}
    assert [json.loads(t)["item_id"] for t in tally["latest"]] == [0, 1, 2]


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "\nx"])
def test_a_cell_that_a_spreadsheet_would_run_gets_an_apostrophe(storage, name):
    put(storage, 0, [row(0, label=name, uri=name)])
    text = b"".join(results.csv_lines(results.tables(storage, "b"))).decode()
    (line,) = list(csv.DictReader(io.StringIO(text, newline="")))
    assert line["uri"] == line["label"] == "'" + name
    assert line["probability"] == "0.9"


def test_a_csv_keeps_commas_quotes_and_line_breaks(storage):
    put(storage, 0, [row(0, uri='a,"b"\nc.jpg')])
    text = b"".join(results.csv_lines(results.tables(storage, "b"))).decode()
    assert list(csv.DictReader(io.StringIO(text, newline="")))[0]["uri"] == 'a,"b"\nc.jpg'  # noqa: RUF015


def test_jsonl_has_a_line_a_row(storage):
    put(storage, 0, [row(0), row(1, error="empty")])
    lines = "".join(results.jsonl_lines(results.tables(storage, "b"))).splitlines()
    assert [json.loads(line)["error_code"] for line in lines] == ["", "empty"]
