"""Pages of batches: ordering one, watching it, and reading its rows."""

import io
from collections.abc import Mapping
from dataclasses import asdict
from itertools import pairwise
from typing import Any

from flask import Blueprint, Response, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as Redirect

from shared import datasets, models, review
from shared.errors import DarkroomError, Invalid
from shared.jobs import Job, State
from shared.queries import EVERY, ORDERS, Filter
from shared.results import CONFIDENCE_BINS
from shared.storage import versions
from web import charts, orders
from web.backend import backend, batch_of
from web.forms import SpecForm
from web.jobs import every
from web.pages import fragment
from web.uploads import keep_files, keep_list

blueprint = Blueprint("batches", __name__)
WAYS = {
    "zip": "A zip",
    "files": "Pictures",
    "tree": "A folder from here",
    "folder": "A folder on the server",
    "urls": "A list",
    "dataset": "A dataset",
}
PAGE = 96
ORDER_NAMES = {"item": "in order", "margin": "least sure first", "confidence": "lowest first", "-confidence": "highest first"}


@blueprint.get("/batches")
def index() -> str:
    """The newest batches."""
    before = request.args.get("before")
    found = backend().store.page(51, before, kind="classify")
    return render_template("batches/index.html", batches=found[:50], older=found[49].id if len(found) > 50 else None)


@blueprint.get("/batches/new")
def new() -> str:
    """The form; with `from`, that of an earlier batch, for the same images."""
    if earlier := request.args.get("from"):
        return _form(SpecForm("classify", batch_of(earlier).spec), {"way": "same", "from": earlier})
    way = request.args.get("way", "zip")
    asked = {name: request.args[name] for name in ("model", "review_below") if name in request.args}
    return _form(SpecForm("classify", asked), {"way": way if way in WAYS else "zip"})


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


@blueprint.post("/batches/<batch>/retry-failed")
def retry_failed(batch: str) -> Redirect:
    """Order the failed items of a batch again, as a new batch."""
    return redirect(url_for("batches.show", batch=orders.retry_failed(backend(), batch_of(batch).id).id), 303)


def _source(form: SpecForm) -> dict[str, Any]:
    """Where the pictures come from; an upload is kept only once the rest of the form is right."""
    way = request.form.get("way", "zip")
    if way == "same":
        return dict(batch_of(request.form.get("from", "")).spec["source"])
    if way == "folder":
        if not (path := request.form.get("path", "").strip()):
            raise Invalid("Name the folder.", field="source")
        return {"kind": "folder", "path": path}
    if way == "dataset":
        name, _, version = request.form.get("dataset", "").partition("/v")
        if not name:
            raise Invalid("Choose a dataset.", field="source")
        return {"kind": "dataset", "dataset": name, "version": version or None}
    trial = SpecForm("classify", typed=request.form)
    trial.refuse(form.data(source={"kind": "folder", "path": "/"}), Invalid(""))
    for field in form.fields:
        if field in trial.errors:
            raise Invalid(trial.errors[field], field=field)
    models.resolve(backend().storage, form.data()["model"])
    if way == "urls":
        return {"kind": "list", "id": _kept_list()}
    return {"kind": "upload", "id": keep_files(backend(), request.files.getlist(way if way in WAYS else "zip"))}


def _kept_list() -> str:
    """The id of a list that was pasted or chosen as a file."""
    file, pasted = request.files.get("list"), request.form.get("urls", "")
    if file and file.filename:
        if pasted.strip():
            raise Invalid("Paste the lines or choose a file, not both.", field="source")
        return keep_list(backend(), file.stream, is_csv=file.filename.lower().endswith(".csv"))[0]
    return keep_list(backend(), io.BytesIO(pasted.encode("utf-8", "replace")))[0]


def _form(form: SpecForm, typed: dict[str, str]) -> str:
    storage = backend().storage
    found = [info for name in models.names(storage) for info in models.all_versions(storage, name)]
    quick = any((info.get("int8") or {}).get("offered") for info in found)
    view = {
        "refs": [f"{info['model']}/v{info['version']}" for info in found],
        "precisions": [p for p in form["precision"].options if p != "int8" or quick],
        "datasets": [f"{name}/v{number}" for name in datasets.names(storage) for number in reversed(versions(storage, f"datasets/{name}"))],
        "ways": ({"same": "The same images"} if typed.get("from") else {}) | WAYS,
    }
    return render_template("batches/new.html", form=form, typed=typed, source_error=form.errors.pop("source", ""), **view)


@blueprint.get("/batches/<batch>")
def show(batch: str) -> str:
    """A batch: how far it is, its histograms, its newest rows, then all rows done so far."""
    job = batch_of(batch)
    backend().queries.prepare(batch)
    return render_template("batches/show.html", **_view(job), **_rows(job))


@blueprint.get("/batches/<batch>/live")
def show_live(batch: str) -> Response:
    """The live part of a batch's page."""
    return fragment("batches/_live.html", **_view(batch_of(batch)))


@blueprint.get("/batches/<batch>/items/<int(max=9999999999):item_id>")
def item(batch: str, item_id: int) -> str:
    """A closer look at one row, with the rows beside it on the sheet it was opened from."""
    job, queries = batch_of(batch), backend().queries
    row = queries.row(batch, item_id)
    where, order = asked(request.args)
    around = queries.around(batch, item_id, where, order)
    top = [(label, p, charts.bar(p)) for label, p in zip(row["top_labels"] or [], row["top_probabilities"] or [], strict=True)]
    view = {"around": around, "there": address(where, order), "decision": review.decision(backend().storage, batch, item_id)}
    return render_template("batches/item.html", job=job, row=row, top=top, **view)


def asked(args: Mapping[str, str]) -> tuple[Filter, str]:
    """The filter and order that an address asks for; what makes no sense says nothing."""
    decision, order = args.get("decision", ""), args.get("order", "")
    where = Filter(
        label=args.get("label", ""),
        decision=decision if decision in {"accept", "review"} else "",
        error=args.get("error", ""),
        low=_share(args.get("low"), 0),
        high=_share(args.get("high"), 1),
    )
    return where, order if order in ORDERS else "item"


def address(where: Filter, order: str) -> dict[str, Any]:
    """What `asked` reads, for `url_for`: only what differs from all rows in their own order."""
    said = {**asdict(where), "order": order}
    plain = {**asdict(EVERY), "order": "item"}
    return {name: value for name, value in said.items() if value != plain[name]}


def _share(text: str | None, default: float) -> float:
    try:
        share = float(text or default)
    except ValueError:
        return default
    return share if 0 <= share <= 1 else default


def _view(job: Job) -> dict[str, Any]:
    store = backend().store
    counts = store.histogram(job.id, "confidence")
    bins = [counts.get(str(i), 0) for i in range(CONFIDENCE_BINS)]
    edges = list(pairwise(i / CONFIDENCE_BINS for i in range(CONFIDENCE_BINS + 1)))
    links = [url_for("batches.show", batch=job.id, **address(Filter(low=low, high=high), "item"), _anchor="rows") for low, high in edges]
    review_below = float(job.spec.get("review_below", 0))
    return {
        "job": job,
        "every": every(job),
        "labels": charts.bar_rows(store.histogram(job.id, "labels")),
        "bins": [(low, high, n, link) for (low, high), n, link in zip(edges, bins, links, strict=True) if n],
        "confidence_chart": charts.confidence(bins, review_below, links),
        "reasons": store.histogram(job.id, "reasons"),
        "latest": store.rows(job.id, "latest"),
        "decided": len(review.decided(backend().storage, job.id)) if job.state.terminal else 0,
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
    where, order = asked(request.args)
    page = max(1, whole(request.args.get("page", "")) or 1)
    found = backend().queries.page(job.id, where, order, (page - 1) * PAGE, PAGE)
    return {
        "rows": found.rows,
        "total": found.total,
        "page": page,
        "pages": -(-found.total // PAGE),
        "where": where,
        "order": order,
        "orders": ORDER_NAMES,
        "there": address(where, order),
        "all_labels": sorted(backend().store.histogram(job.id, "labels")),
        "steps": [i / CONFIDENCE_BINS for i in range(CONFIDENCE_BINS + 1)],
        "as_table": request.args.get("as") == "table",
    }


def whole(text: str) -> int | None:
    """A whole number of an address, or None for anything else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 12 else None
