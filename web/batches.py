"""Pages of batches: ordering one, watching it, and reading its rows."""

from itertools import pairwise
from typing import Any

from flask import Blueprint, Response, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as Redirect

from shared import models, results
from shared.errors import DarkroomError, Invalid, NotFound
from shared.jobs import Job, State
from shared.results import CONFIDENCE_BINS
from web import charts, orders
from web.backend import backend, batch_of
from web.forms import SpecForm
from web.jobs import every
from web.pages import fragment
from web.uploads import keep_files

blueprint = Blueprint("batches", __name__)
WAYS = {
    "zip": "A zip",
    "files": "Pictures",
    "tree": "A folder from here",
    "folder": "A folder on the server",
    "urls": "Addresses",
}
PAGE = 96


@blueprint.get("/batches")
def index() -> str:
    """The newest batches."""
    before = request.args.get("before")
    found = backend().store.page(51, before, kind="classify")
    return render_template("batches/index.html", batches=found[:50], older=found[49].id if len(found) > 50 else None)


@blueprint.get("/batches/new")
def new() -> str:
    """The form."""
    way = request.args.get("way", "zip")
    return _form(SpecForm("classify", {"model": request.args.get("model", "")}), {"way": way if way in WAYS else "zip"})


@blueprint.post("/batches/new")
def create() -> Redirect | tuple[str, int]:
    """Order a batch."""
    form = SpecForm("classify", typed=request.form)
    data = form.data()
    try:
        data["source"] = _source(form)
        return redirect(url_for("batches.show", batch=orders.submit(backend(), "classify", data).id), 303)
    except DarkroomError as error:
        status = form.refuse(data, error)
        return _form(form, request.form.to_dict()), status


def _source(form: SpecForm) -> dict[str, Any]:
    """Where the pictures come from; an upload is kept only once the rest of the form is right."""
    way = request.form.get("way", "zip")
    if way == "folder":
        if not (path := request.form.get("path", "").strip()):
            raise Invalid("Name the folder.", field="source")
        return {"kind": "folder", "path": path}
    if way == "urls":
        return {"kind": "urls", "urls": request.form.get("urls", "").split()}
    trial = SpecForm("classify", typed=request.form)
    trial.refuse(form.data(source={"kind": "folder", "path": "/"}), Invalid(""))
    for field in form.fields:
        if field in trial.errors:
            raise Invalid(trial.errors[field], field=field)
    models.resolve(backend().storage, form.data()["model"])
    return {"kind": "upload", "id": keep_files(backend(), request.files.getlist(way if way in WAYS else "zip"))}


def _form(form: SpecForm, typed: dict[str, str]) -> str:
    storage = backend().storage
    refs = [f"{info['model']}/v{info['version']}" for name in models.names(storage) for info in models.all_versions(storage, name)]
    return render_template("batches/new.html", form=form, typed=typed, ways=WAYS, refs=refs, source_error=form.errors.pop("source", ""))


@blueprint.get("/batches/<batch>")
def show(batch: str) -> str:
    """A batch: how far it is, its histograms, its newest rows, then all rows done so far."""
    job = batch_of(batch)
    return render_template("batches/show.html", **_view(job), **_rows(job))


@blueprint.get("/batches/<batch>/live")
def show_live(batch: str) -> Response:
    """The live part of a batch's page."""
    return fragment("batches/_live.html", **_view(batch_of(batch)))


@blueprint.get("/batches/<batch>/items/<int(max=9999999999):item_id>")
def item(batch: str, item_id: int) -> str:
    """A closer look at one row, with the rows beside it."""
    job = batch_of(batch)
    row = results.row(backend().storage, batch, item_id)
    top = [(label, p, charts.bar(p)) for label, p in zip(row["top_labels"] or [], row["top_probabilities"] or [], strict=True)]
    return render_template("batches/item.html", job=job, row=row, top=top, neighbours=_neighbours(batch, item_id))


def _neighbours(batch: str, item_id: int) -> tuple[int | None, int | None]:
    storage = backend().storage
    after = results.page(storage, batch, item_id + 1, 1)
    try:
        before = results.row(storage, batch, item_id - 1)["item_id"] if item_id else None
    except NotFound:
        before = None
    return before, after[0]["item_id"] if after else None


def _view(job: Job) -> dict[str, Any]:
    store = backend().store
    counts = store.histogram(job.id, "confidence")
    bins = [counts.get(str(i), 0) for i in range(CONFIDENCE_BINS)]
    review_below = float(job.spec.get("review_below", 0))
    edges = pairwise(i / CONFIDENCE_BINS for i in range(CONFIDENCE_BINS + 1))
    return {
        "job": job,
        "every": every(job),
        "labels": charts.bar_rows(store.histogram(job.id, "labels")),
        "bins": [(low, high, n) for (low, high), n in zip(edges, bins, strict=True) if n],
        "confidence_chart": charts.confidence(bins, review_below),
        "reasons": store.histogram(job.id, "reasons"),
        "latest": store.rows(job.id, "latest"),
        **_pace(job),
    }


def _pace(job: Job) -> dict[str, Any]:
    """Images a second, and the seconds left while the batch runs."""
    done, items = job.counts.get("done", 0), job.counts.get("items", 0)
    if job.result.get("images_per_second"):
        return {"rate": job.result["images_per_second"], "left": None}
    _, now = store_clock(job)
    spent = now - job.started if job.started else 0.0
    rate = done / spent if spent > 0 and done else None
    running = job.state == State.RUNNING and rate and items
    return {"rate": rate, "left": (items - done) / rate if running and rate else None}


def store_clock(job: Job) -> tuple[float, float]:
    """When the job was created, and its end or now: both by Redis's clock, as the ledger's times are."""
    if job.ended:
        return job.created, job.ended
    seconds, micros = backend().store.redis.time()
    return job.created, seconds + micros / 1e6


def _rows(job: Job) -> dict[str, Any]:
    """One page of the rows done so far, as the address asks for them."""
    storage, args = backend().storage, request.args
    start = int(args["start"]) if args.get("start", "").isascii() and args.get("start", "").isdigit() and len(args["start"]) < 12 else 0
    label, decision, order = args.get("label") or None, args.get("decision", ""), args.get("order", "")
    decision = decision if decision in {"accept", "review", "error"} else ""
    if order == "least-sure":
        found, more = results.least_sure(storage, job.id, PAGE), None
    else:
        wanted = decision if decision != "error" else None
        page = results.page(storage, job.id, start, PAGE + 1, label, wanted or None, errors=decision == "error")
        found, more = page[:PAGE], page[PAGE]["item_id"] if len(page) > PAGE else None
    view = {"label": label, "decision": decision, "order": order}
    labels = sorted(backend().store.histogram(job.id, "labels"))
    return {"rows": found, "next_start": more, "start": start, "view": view, "all_labels": labels, "as_table": args.get("as") == "table"}
