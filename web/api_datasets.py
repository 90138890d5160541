"""The JSON API of decisions about a dataset's images; its routes are part of `web.api`'s blueprint."""

from dataclasses import asdict

from flask import Response, jsonify

from shared import datasets, edits
from web import parameters
from web.api import blueprint
from web.backend import backend


@blueprint.get("/datasets/<name>/edits")
def list_edits(name: str) -> Response:
    """What the next version would change, in the order it was decided."""
    found = edits.pending(backend().storage, name)
    start, limit = parameters.number("start", 0, 0, 2**53), parameters.number("limit", 100, 1, 1000)
    following = start + limit if start + limit < len(found) else None
    version = datasets.latest(backend().storage, name) + 1
    return jsonify(edits=edits.as_json(found[start : start + limit]), next=following, total=len(found), version=version)


@blueprint.post("/datasets/<name>/edits")
def edit(name: str) -> tuple[Response, int]:
    """Keep, relabel or remove an image of the newest version."""
    return jsonify(asdict(edits.decide(backend().storage, name, edits.parse_edit(parameters.body())))), 201


@blueprint.delete("/datasets/<name>/edits/<sha256>")
def undo_edit(name: str, sha256: str) -> tuple[str, int]:
    """Take back what was decided about an image."""
    edits.undo(backend().storage, name, sha256)
    return "", 204
