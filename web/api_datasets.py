"""The JSON API of decisions about a dataset's images, and of its exports; its routes are part of `web.api`'s blueprint."""

from dataclasses import asdict

from flask import Response, jsonify, request

from shared import datasets, edits
from shared.errors import NotFound
from shared.specs import Name, check
from web import orders, parameters
from web.api import accepted, blueprint
from web.backend import backend
from web.downloads import attachment


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


@blueprint.get("/datasets/<name>/versions/<int(max=999999):version>/exports")
def list_exports(name: str, version: int) -> Response:
    """The zips that were made of a version and are still there."""
    datasets.info(backend().storage, name, version)
    return jsonify(exports=datasets.exports(backend().storage, name, version))


@blueprint.post("/datasets/<name>/versions/<int(max=999999):version>/exports/<form>")
def export_dataset(name: str, version: int, form: str) -> Response:
    """Order a version as a zip."""
    spec = {"dataset": check(Name, name), "version": version, "format": form}
    return accepted(orders.submit(backend(), "pack", spec, request.headers.get("Idempotency-Key", "")))


@blueprint.get("/datasets/<name>/versions/<int(max=999999):version>/exports/<form>")
def download_export(name: str, version: int, form: str) -> Response:
    """A version as a zip, once it was made."""
    storage = backend().storage
    datasets.info(storage, name, version)
    if form not in {found["format"] for found in datasets.exports(storage, name, version)}:
        raise NotFound(
            f"{name} v{version} was not exported as {form[:40]!r}, or the zip was freed since. Order it with a POST to this address."
        )
    return attachment(storage, datasets.export_key(name, version, form), f"{name}-v{version}-{form}.zip")
