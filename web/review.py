"""The review page: the rows one is unsure of, one picture at a time and a key each; then a file of what was decided, or a dataset."""

from dataclasses import replace
from typing import Any

from flask import Blueprint, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as Redirect

from shared import models, review
from shared.errors import DarkroomError, Invalid, NotFound
from shared.jobs import Job
from shared.queries import Filter
from web import orders
from web.backend import backend, batch_of
from web.batches import address, asked, whole

blueprint = Blueprint("review", __name__)
AHEAD = 8  # pictures on the page after the one that is shown, loaded before they are asked for
KEYS = 9  # labels with a digit
USUAL = {"decision": "review", "order": "margin"}  # what an address asks for that says nothing: the rows to review, least sure first


@blueprint.get("/batches/<batch>/review")
def show(batch: str) -> str:
    """The row of the address, else the first that nobody has decided on, with the next ones behind it."""
    return _page(batch_of(batch), whole(request.args.get("item", "")))


@blueprint.post("/batches/<batch>/review/<int(max=9999999999):item_id>")
def decide(batch: str, item_id: int) -> Redirect | tuple[str, int]:
    """What the buttons do without a script: keep a decision or take it back, then show the next row."""
    job, storage, queries = batch_of(batch), backend().storage, backend().queries
    where, order = _asked()
    there = _address(where, order)
    if "undo" in request.form:
        review.undo(storage, batch, item_id)
        return redirect(url_for("review.show", batch=batch, item=item_id, **there), 303)
    try:
        label = None if "accept" in request.form else request.form.get("label", "")
        review.decide(storage, batch, queries.row(batch, item_id), label)
    except Invalid as error:
        return _page(job, item_id, wrong=str(error), typed=request.form.get("label", "")), error.status
    after = queries.around(batch, item_id, where, order).after
    return redirect(url_for("review.show", batch=batch, item=after[0] if after else None, last=item_id, **there), 303)


@blueprint.post("/batches/<batch>/review/dataset")
def make_dataset(batch: str) -> Redirect | tuple[str, int]:
    """Order a dataset, or its next version, of the images that were decided on."""
    job, name = batch_of(batch), request.form.get("dataset", "").strip()
    try:
        order = orders.submit(backend(), "import", {"dataset": name, "source": {"kind": "review", "batch": batch}})
    except DarkroomError as error:
        return _page(job, dataset=name, dataset_wrong=str(error)), error.status
    return redirect(url_for("jobs.show", job_id=order.id), 303)


def _page(job: Job, item_id: int | None = None, **more: Any) -> str:
    storage, queries = backend().storage, backend().queries
    where, order = _asked()
    decided = review.decided(storage, job.id)
    if item_id is None:
        item_id = queries.first_without(job.id, where, order, decided)
    known = _model(job)
    views, before, place = [], None, 0
    if item_id is not None:
        around = queries.around(job.id, item_id, where, order, 1, AHEAD)
        before, place = next(iter(around.before), None), around.place
        views = [
            {"row": row, "choices": _choices(row, known["classes"]), "decision": review.decision(storage, job.id, row["item_id"])}
            for row in queries.rows(job.id, [item_id, *around.after])
        ]
    return render_template(
        "batches/review.html",
        **{"wrong": "", "typed": "", "dataset": known["dataset"], "dataset_wrong": "", **more},
        job=job,
        views=views,
        before=before,
        place=place,
        last=whole(request.args.get("last", "")),
        classes=known["classes"],
        all_labels=sorted(backend().store.histogram(job.id, "labels")),
        total=queries.page(job.id, where, order, limit=0).total,
        reviewed=queries.count(job.id, where, decided),
        decided=len(decided),
        where=where,
        there=_address(where, order),
    )


def _asked() -> tuple[Filter, str]:
    """The filter and order of the address; what could not be read is nothing to review."""
    where, order = asked({**USUAL, **request.args.to_dict()})
    return replace(where, error="none"), order


def _address(where: Filter, order: str) -> dict[str, Any]:
    said = {**address(replace(where, error=""), order), "decision": where.decision, "order": order}
    return {name: value for name, value in said.items() if USUAL.get(name) != value}


def _model(job: Job) -> dict[str, Any]:
    """The classes of the batch's model, and the dataset it was trained on; empty when the model was deleted, or where it is not known."""
    try:
        info = models.info(backend().storage, *models.resolve(backend().storage, job.spec["model"]))
    except NotFound:
        return {"classes": [], "dataset": ""}
    return {"classes": info["classes"], "dataset": info.get("dataset", {}).get("name", "")}


def _choices(row: dict[str, Any], classes: list[str]) -> list[tuple[str, float | None]]:
    """The labels to choose from with their probability where it is known: the most probable first, then the model's other classes."""
    top = dict(zip(row["top_labels"] or [], row["top_probabilities"] or [], strict=True))
    return [*top.items(), *((label, None) for label in classes if label not in top)][:KEYS]
