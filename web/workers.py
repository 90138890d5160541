"""The page of workers: who lives, what each does, and what waits in the queues."""

from typing import Any

from flask import Blueprint, Response, render_template

from shared.errors import NotFound
from shared.jobs import hide_password, reachable
from shared.queue import QUEUES, lengths
from web.backend import backend
from web.orders import describe
from web.pages import fragment, page_of

blueprint = Blueprint("workers", __name__)
SERVES = {
    "predict": "one image at once, while somebody waits",
    "classify": "batches, a shard at a time",
    "train": "trainings",
    "scrape": "datasets, from searches, folders and uploads",
}


@blueprint.get("/workers")
def index() -> str:
    """Live workers and queues, and how to add a worker."""
    address = backend().settings.redis_url or ""
    return render_template(
        "workers/index.html", **_view(), redis_url=hide_password(address) if "://" in address else "", storage=backend().storage.url
    )


@blueprint.get("/workers/live")
def index_live() -> Response:
    """The live part of the page."""
    return fragment("workers/_live.html", **_view())


def _view() -> dict[str, Any]:
    store = backend().store
    workers = [{**worker, "doing": [_doing(*unit) for unit in worker["busy"]]} for worker in store.workers()]
    with reachable():
        waiting = lengths(store.redis)
    served = {name: sum(name in worker.get("queues", ()) for worker in workers) for name in QUEUES}
    queues = [{"name": name, "serves": SERVES[name], "waiting": waiting[name], "workers": served[name]} for name in QUEUES]
    return {"workers": workers, "queues": queues, "every": 2 if any(w["busy"] for w in workers) else 10}


def _doing(job_id: str, unit: str) -> dict[str, str]:
    """A unit of work as a link to its job."""
    try:
        job = backend().store.get(job_id)
    except NotFound:  # an expired lease of a ledger that was cleared
        return {"title": unit, "url": "", "unit": ""}
    return {"title": describe(job), "url": page_of(job), "unit": "" if unit == "main" else unit}
