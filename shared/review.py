"""What a person decided about the rows of a batch: that the model's label is right, or which label is.

A decision is one small file beside the result, `batches/<job id>/review/<item_id>.json`, written whole or not at all. Two
people never overwrite more than the same row, the last one wins, and to undo is to delete. The row itself never changes:
the file repeats what the model said, so that it can be read and exported without the row.
"""

import csv
import io
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from shared.errors import Invalid, NotFound
from shared.specs import ClassName, check
from shared.storage import Storage

KEPT = ("item_id", "uri", "locator", "sha256", "model", "model_version", "probability")  # of the row, as they are
COLUMNS = ("item_id", "uri", "sha256", "model_label", "probability", "given_label", "decided_at")


def decision_key(batch: str, item_id: int) -> str:
    """Where the decision about a row lies on storage."""
    return f"batches/{batch}/review/{item_id}.json"


def decide(storage: Storage, batch: str, row: dict[str, Any], label: str | None = None) -> dict[str, Any]:
    """Keep what a person says of a row (as shared.queries answers it): `label`, or without one that the model is right.

    The decision: item_id, uri, locator, sha256, model, model_version, probability and model_label of the row, then action
    (accept or relabel), given_label, and at (seconds since 1970). A new class name is taken as well as one of the model's.
    Raises Invalid for a label that is no class name, and for a row without a label, whose picture could not be read.
    """
    if row["error_code"]:
        raise Invalid(f"Item {row['item_id']} could not be read ({row['error_code']}), so there is nothing to review.", field="item_id")
    given = row["label"] if label is None else check(ClassName, label)
    decision = {name: row[name] for name in KEPT} | {
        "model_label": row["label"],
        "action": "accept" if given == row["label"] else "relabel",
        "given_label": given,
        "at": time.time(),
    }
    storage.write_json(decision_key(batch, row["item_id"]), decision)
    return decision


def undo(storage: Storage, batch: str, item_id: int) -> None:
    """Take a decision back; nothing happens if there is none."""
    storage.delete(decision_key(batch, item_id))


def decision(storage: Storage, batch: str, item_id: int) -> dict[str, Any] | None:
    """The decision about a row, or None."""
    try:
        return storage.read_json(decision_key(batch, item_id))  # type: ignore[no-any-return]
    except NotFound:
        return None


def decided(storage: Storage, batch: str) -> list[int]:
    """The items that were decided on, ascending."""
    return sorted(int(name.removesuffix(".json")) for name in storage.list(f"batches/{batch}/review"))


def decisions(storage: Storage, batch: str, start: int = 0) -> Iterator[dict[str, Any]]:
    """Every decision as `decide` made it, in the order of the items, from item `start` on; read one by one."""
    for item_id in decided(storage, batch):
        if item_id >= start and (found := decision(storage, batch, item_id)):  # it may have been undone since the listing
            yield found


def csv_lines(found: Iterator[dict[str, Any]]) -> Iterator[str]:
    """Decisions as CSV, the header first: COLUMNS, with `decided_at` in ISO 8601 and cells safe for spreadsheets."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for each in found:
        writer.writerow([_cell(value) for value in _exported(each).values()])
        yield out.getvalue()
        out.seek(0)
        out.truncate()
    yield out.getvalue()


def jsonl_lines(found: Iterator[dict[str, Any]]) -> Iterator[str]:
    """Decisions as one JSON object a line, with the keys COLUMNS."""
    for each in found:
        yield json.dumps(_exported(each), ensure_ascii=False) + "\n"


def _exported(each: dict[str, Any]) -> dict[str, Any]:
    moment = datetime.fromtimestamp(each["at"], UTC).isoformat(timespec="seconds")
    return {name: each.get(name) for name in COLUMNS} | {"decided_at": moment}


def _cell(value: Any) -> Any:
    """Text that a spreadsheet would run as a formula gets an apostrophe in front, as in shared.results."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else value
