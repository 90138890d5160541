"""Batches: order, show, download and review; and a single image at once."""

from itertools import islice
from typing import Any

from flask import Response, jsonify, request

from shared import models, review
from shared.errors import Invalid
from shared.jobs import State
from shared.queries import ORDERS, Filter
from web import orders, parameters
from web.api import accepted, blueprint, job_json, page_of_jobs, submitted
from web.backend import backend, batch_of
from web.downloads import attachment, streamed_decisions, streamed_results


@blueprint.post("/batches")
def classify() -> Response:
    """Order a batch of images to be labelled."""
    return submitted("classify", parameters.body())


@blueprint.get("/batches")
def list_batches() -> Response:
    """The newest batches."""
    return page_of_jobs("batches", "classify")


@blueprint.get("/batches/<job_id>")
def show_batch(job_id: str) -> Response:
    """A batch with its histograms and its newest rows."""
    job, store = batch_of(job_id), backend().store
    histograms = {name: store.histogram(job_id, name) for name in ("labels", "confidence", "reasons")}
    return jsonify({**job_json(job), "histograms": histograms, "latest": store.rows(job_id, "latest")})


@blueprint.get("/batches/<job_id>/rows")
def list_rows(job_id: str) -> Response:
    """Rows that are done, filtered and sorted; `total` counts those of all pages."""
    job, args = batch_of(job_id), request.args
    where = Filter(
        label=args.get("label", ""),
        decision=parameters.one_of("decision", ("accept", "review")) or "",
        error=args.get("error", ""),
        low=parameters.share("low", 0),
        high=parameters.share("high", 1),
    )
    start, limit = parameters.number("start", 0, 0, 2**53), parameters.number("limit", 100, 1, 1000)
    page = backend().queries.page(job_id, where, parameters.one_of("order", tuple(ORDERS)) or "item", start, limit)
    following = start + limit if start + limit < page.total else None
    return jsonify(rows=[_public(row) for row in page.rows], next=following, total=page.total, complete=job.state.terminal)


@blueprint.get("/batches/<job_id>/results.<any(csv,jsonl,parquet):form>")
def download_results(job_id: str, form: str) -> Response:
    """All rows as a file: the finished one, or while the batch runs what is done so far."""
    job, storage = batch_of(job_id), backend().storage
    if job.state is State.DONE and form in job.result:
        return attachment(storage, job.result[form], f"batch-{job_id}.{form}")
    return streamed_results(storage, job_id, form)


@blueprint.get("/batches/<job_id>/review")
def list_decisions(job_id: str) -> Response:
    """What people decided about the rows of a batch, in the order of the items."""
    batch_of(job_id)
    storage, start, limit = backend().storage, parameters.number("start", 0, 0, 2**53), parameters.number("limit", 100, 1, 1000)
    found = list(islice(review.decisions(storage, job_id, start), limit + 1))
    following = found[limit]["item_id"] if len(found) > limit else None
    return jsonify(decisions=[_public(each) for each in found[:limit]], next=following, total=len(review.decided(storage, job_id)))


@blueprint.put("/batches/<job_id>/review/<int(max=9999999999):item_id>")
def decide(job_id: str, item_id: int) -> Response:
    """Say of a row that its label is right (`accept`), or which `label` is."""
    batch_of(job_id)
    said = parameters.body()
    if said != {"accept": True} and (set(said) != {"label"} or not isinstance(said["label"], str)):
        raise Invalid('The body is {"accept": true} or {"label": a class name}.', field="label")
    row = backend().queries.row(job_id, item_id)
    return jsonify(_public(review.decide(backend().storage, job_id, row, said.get("label"))))


@blueprint.delete("/batches/<job_id>/review/<int(max=9999999999):item_id>")
def undo_decision(job_id: str, item_id: int) -> tuple[str, int]:
    """Take back what was decided about a row."""
    batch_of(job_id)
    review.undo(backend().storage, job_id, item_id)
    return "", 204


@blueprint.get("/batches/<job_id>/review.<any(csv,jsonl):form>")
def download_decisions(job_id: str, form: str) -> Response:
    """What people decided, as a file."""
    batch_of(job_id)
    return streamed_decisions(backend().storage, job_id, form)


@blueprint.post("/batches/<job_id>/retry-failed")
def retry_failed(job_id: str) -> Response:
    """Order the items of a batch that failed again, as a new batch."""
    return accepted(orders.retry_failed(backend(), batch_of(job_id).id))


@blueprint.post("/predict")
def predict() -> Response:
    """Label one image now: the query names the `model`; the image is the body or the form's `image`."""
    b = backend()
    name, version = models.resolve(b.storage, request.args.get("model", ""))
    image = parameters.image(b.settings.max_image_bytes)
    return jsonify(orders.predict(b, f"{name}/v{version}", image))


def _public(row: dict[str, Any]) -> dict[str, Any]:
    """A row without its locator, which may be a path on the server."""
    return {name: value for name, value in row.items() if name != "locator"}
