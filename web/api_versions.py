"""What programs ask of a dataset's versions beside what web/api.py answers: what changed between two, and deleting; on its blueprint."""

from flask import Response, jsonify, request

from shared import datasets
from shared.diff import PARTS, diff
from web import orders, parameters
from web.api import blueprint
from web.backend import backend


@blueprint.get("/datasets/<name>/diff")
def show_diff(name: str) -> Response:
    """What changed from version `?from=` to `?to=`: totals, changes of each class, and the images of each part, a page at a time."""
    storage = backend().storage
    new = parameters.number("to", datasets.latest(storage, name), 1, 999_999)
    old = parameters.number("from", datasets.info(storage, name, new).get("parent") or 1, 1, 999_999)
    found = diff(storage, name, old, new)
    start, limit = parameters.number("start", 0, 0, 2**53), parameters.number("limit", 100, 1, 1000)
    tables = {part: found.part(part, request.args.get("label")) for part in PARTS}
    return jsonify(
        {
            "dataset": name,
            "from": old,
            "to": new,
            "total": {part: len(table) for part, table in tables.items()},
            "unchanged": found.unchanged,
            "dropped": found.dropped,
            "classes": found.classes(),
            **{part: table.slice(start, limit).to_pylist() for part, table in tables.items()},
            "next": start + limit if any(start + limit < len(table) for table in tables.values()) else None,
        }
    )


@blueprint.delete("/datasets/<name>/versions/<int(max=999999):version>")
def delete_dataset_version(name: str, version: int) -> tuple[str, int]:
    """Delete a version of a dataset that nothing needs."""
    orders.delete_dataset(backend(), name, version)
    return "", 204


@blueprint.delete("/datasets/<name>")
def delete_dataset(name: str) -> tuple[str, int]:
    """Delete a dataset that nothing needs."""
    orders.delete_dataset(backend(), name)
    return "", 204
