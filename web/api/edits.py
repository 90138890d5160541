"""Decisions about a dataset's images, and what was found about them."""

import re

from flask import Response, jsonify

from shared import datasets, edits, findings
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


@blueprint.get("/datasets/<name>/versions/<int(max=999999):version>/findings")
def show_findings(name: str, version: int) -> Response:
    """What looks odd about the images of a version, and which of it stands."""
    found = findings.read(backend().storage, name, version)
    accepted = findings.accepted(backend().storage, name)
    stands = {kind: [sha256 for sha256 in images if sha256 in accepted[kind]] for kind, images in found["images"].items()}
    told = {kind: images for kind, images in stands.items() if images}
    return jsonify(dataset=name, version=version, counts=findings.counts(found), **found, accepted=told)


@blueprint.post("/datasets/<name>/accepted")
def accept_finding(name: str) -> tuple[str, int]:
    """Let images have a finding, so that it is not shown again; or not, with `"accepted": false`."""
    said = findings.parse_acceptance(parameters.body())
    findings.accept(backend().storage, name, said.finding, said.images, said.accepted)
    return "", 204
