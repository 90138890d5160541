"""The contact sheet that a person reviews. Everything is gzipped for who takes that."""

import gzip

from flask import Response, jsonify, request

from shared import datasets, sheet
from shared.errors import Invalid
from shared.jobs import Job
from shared.specs import MODEL_REF
from web.api import blueprint
from web.backend import backend, batch_of


@blueprint.get("/datasets/<name>/versions/<int(max=999999):version>/sheet")
def show_sheet(name: str, version: int) -> Response:
    """The kept images of a version as columns."""
    storage = backend().storage
    info = datasets.info(storage, name, version)
    tag = f"{version}-{info['hash'][:24]}-{int(info['created'])}"
    if request.if_none_match.contains(tag):
        response = Response(status=304)
        response.set_etag(tag)
        return response
    return _packed(sheet.index(storage, name, version, info["hash"]), tag)


@blueprint.get("/datasets/<name>/versions/<int(max=999999):version>/sheet/decisions")
def show_sheet_decisions(name: str, version: int) -> Response:
    """What was decided about its images."""
    return _packed(sheet.packed(sheet.decisions(backend().storage, name, version)))


@blueprint.get("/datasets/<name>/versions/<int(max=999999):version>/sheet/findings")
def show_sheet_findings(name: str, version: int) -> Response:
    """Which of its images a cleaning report finds fault with."""
    return _packed(sheet.packed(sheet.findings(backend().storage, name, version)))


@blueprint.get("/datasets/<name>/versions/<int(max=999999):version>/sheet/verdicts")
def show_sheet_verdicts(name: str, version: int) -> Response:
    """What `?by=`, a model version or a batch, said of its images."""
    storage, by = backend().storage, request.args.get("by", "")
    if MODEL_REF.fullmatch(by) and "/" in by:
        said = sheet.validated(storage, by)
    else:
        if not is_about(batch := batch_of(by), name):
            raise Invalid(f"The batch {by} was not ordered over the dataset {name!r}.", field="by")
        said = sheet.labelled(storage, batch.id)
    return _packed(sheet.packed(sheet.verdicts(storage, name, version, said)))


@blueprint.get("/datasets/<name>/versions/<int(max=999999):version>/images/<sha256>")
def show_image(name: str, version: int, sha256: str) -> Response:
    """The manifest row of an image."""
    return jsonify(sheet.facts(backend().storage, name, version, sha256))


def is_about(batch: Job, name: str) -> bool:
    """Whether a batch was ordered over the images of a dataset."""
    source = batch.spec["source"]
    return (source["kind"], source.get("dataset")) == ("dataset", name)


def _packed(data: bytes, tag: str = "") -> Response:
    """Gzipped JSON as an answer, unpacked for who does not take it."""
    zipped = request.accept_encodings.quality("gzip") > 0
    response = Response(data if zipped else gzip.decompress(data), mimetype="application/json")
    response.vary.add("Accept-Encoding")
    if zipped:
        response.content_encoding = "gzip"
    if tag:
        response.set_etag(tag)
    return response
