"""The JSON API of decisions about a dataset's images; its routes are part of `web.api`'s blueprint."""

import re

from flask import Response, jsonify

from shared import datasets, edits
from shared.specs import JOB_ID
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
    """Keep, relabel or remove an image of the newest version, or with `edits`, a list, several as one action."""
    said = parameters.body()
    if "edits" not in said:
        return jsonify(edits.as_json([edits.decide(backend().storage, name, edits.parse_edit(said))])[0]), 201
    action = edits.parse_action(said)
    made = edits.decide_all(backend().storage, name, action.edits, action.id)
    return jsonify(id=made[0].id, at=made[0].at, version=made[0].version, images=len(made)), 201


@blueprint.delete("/datasets/<name>/edits/<what>")
def undo_edit(name: str, what: str) -> tuple[str, int]:
    """Take back what was decided about an image, named by its SHA-256, or by an entry of the log, named by its id."""
    if re.fullmatch(JOB_ID, what):
        edits.undo_entry(backend().storage, name, what)
    else:
        edits.undo(backend().storage, name, what)
    return "", 204
