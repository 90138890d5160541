"""Pages of jobs: the list, and one job while it lives and after it has ended."""

import time
from contextlib import suppress
from typing import Any

from flask import Blueprint, Response, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as Redirect

from shared import models, rules
from shared.compare import compare
from shared.errors import Invalid, NotFound
from shared.jobs import Job, State
from shared.queue import QUEUE_OF
from shared.specs import Epochs, LookSpec, check
from web import charts, orders
from web.backend import backend, job_of
from web.pages import fragment, page_of

blueprint = Blueprint("jobs", __name__)
PAGE = 50
JUST_ORDERED = 30  # seconds in which a job that is next usually begins


@blueprint.get("/jobs")
def index() -> str:
    """All jobs, newest first, of one kind or state if asked for."""
    return render_template("jobs/index.html", **_listing())


@blueprint.get("/jobs/live")
def index_live() -> Response:
    """The live part of the list."""
    return fragment("jobs/_list.html", **_listing())


def _listing() -> dict[str, Any]:
    kind, state, before = (request.args.get(name, "") for name in ("kind", "state", "before"))
    kind, state = kind if kind in QUEUE_OF else "", state if state in set(State) else ""
    found = backend().store.page(PAGE + 1, before or None, kind or None, (State(state),) if state else ())
    jobs = found[:PAGE]
    every = 0 if before else (1 if any(not j.state.terminal for j in jobs) else 10)
    older = jobs[-1].id if len(found) > PAGE else None
    return {
        "jobs": jobs,
        "older": older,
        "kind": kind,
        "state": state,
        "before": before,
        "every": every,
        "kinds": QUEUE_OF,
        "states": State,
    }


@blueprint.get("/jobs/<job_id>")
def show(job_id: str) -> str:
    """One job."""
    return render_template("jobs/show.html", **_view(job_of(job_id)))


@blueprint.get("/jobs/<job_id>/live")
def show_live(job_id: str) -> Response:
    """The live part of a job's page."""
    return fragment("jobs/_live.html", **_view(job_of(job_id)))


@blueprint.post("/jobs/<job_id>/cancel")
def cancel(job_id: str) -> Redirect:
    """Ask the job to end."""
    job = job_of(job_id)
    orders.cancel(backend(), job.id)
    return redirect(page_of(job), 303)


@blueprint.post("/jobs/<job_id>/pause")
def pause(job_id: str) -> Redirect:
    """Let a batch rest."""
    job = job_of(job_id)
    orders.pause(backend(), job.id)
    return redirect(page_of(job), 303)


@blueprint.post("/jobs/<job_id>/resume")
def resume(job_id: str) -> Redirect:
    """Let a paused batch go on, or a training that failed or was cancelled."""
    return redirect(page_of(orders.resume(backend(), job_of(job_id).id)), 303)


@blueprint.post("/jobs/<job_id>/extend")
def extend(job_id: str) -> Redirect:
    """Order more epochs of a training that is done."""
    epochs = check(Epochs, request.form.get("epochs", ""))
    return redirect(page_of(orders.extend(backend(), job_of(job_id).id, epochs)), 303)


@blueprint.post("/jobs/<job_id>/retry")
def retry(job_id: str) -> Redirect:
    """Order the same again: a new job."""
    return redirect(page_of(orders.retry(backend(), job_of(job_id).id)), 303)


def every(job: Job) -> int:
    """Seconds between two looks at a job: 1 while it runs and when it has just been ordered, 10 while it waits, 0 when it has ended."""
    soon = job.state == State.RUNNING or time.time() - job.created < JUST_ORDERED
    return 0 if job.state.terminal else 1 if soon else 10


def _view(job: Job) -> dict[str, Any]:
    view: dict[str, Any] = {"job": job, "every": every(job), "made": _made(job), "ahead": 0}
    if job.state == State.QUEUED:
        waiting = backend().store.page(200, job.id, states=(State.QUEUED,))
        view["ahead"] = sum(QUEUE_OF[other.kind] == QUEUE_OF[job.kind] for other in waiting)
        view["served"] = any(QUEUE_OF[job.kind] in worker.get("queues", ()) for worker in backend().store.workers())
    if job.kind == "train":
        view["goes_on"] = orders.goes_on(backend(), job)
        view["rule"] = _rule(job)
        view["beside"] = _beside(job)
        view |= training_charts(backend().store.rows(job.id, "epochs"), backend().store.rows(job.id, "loss"), job.progress)
    return view


def _rule(job: Job) -> rules.Rule | None:
    """The rule that ordered a training, if it is still there."""
    with suppress(NotFound):
        return rules.get(backend().storage, job.spec["rule"]) if job.spec.get("rule") else None
    return None


def _beside(job: Job) -> dict[str, Any] | None:
    """A retrained model beside the one it came from: parent and made (their infos), and found, as `compare` has it, or why there is nothing."""
    if job.state != State.DONE:
        return None
    storage, told = backend().storage, {}
    try:
        told["made"] = made = models.info(storage, job.result["model"], job.result["version"])
        if not made.get("parent"):
            return None
        told["parent"] = parent = models.info(storage, *models.resolve(storage, made["parent"]))
        refs = [(info["model"], info["version"]) for info in (parent, made)]
        return {**told, "found": compare(storage, *refs)}
    except (NotFound, Invalid) as error:
        return {**told, "why": str(error)}


def training_charts(epochs: list[dict[str, Any]], loss: list[list[float]], progress: dict[str, Any]) -> dict[str, Any]:
    """Table and curves of a training, under way or done."""
    planned = int(progress.get("epochs") or len(epochs))
    batches = int(progress.get("total") or (loss[-1][0] if loss else 0))
    step = max(1, len(loss) // 20)
    return {
        "epochs": epochs,
        "loss_chart": charts.loss_by_batch(loss, planned, batches),
        "error_chart": charts.error_by_epoch(epochs),
        "loss_table": loss[::step],
    }


def _made(job: Job) -> dict[str, str] | None:
    """What a finished job made, and where it is shown."""
    result = job.result
    if job.state != State.DONE:
        return None
    if job.kind in {"train", "export", "adopt"}:
        return {
            "title": f"{result['model']} v{result['version']}",
            "url": url_for("models.show", name=result["model"], version=result["version"]),
        }
    if job.kind == "pack":
        where = {"name": result["dataset"], "version": result["version"], "form": result["format"]}
        return {"verb": "Download", "title": "the zip", "url": url_for("api.download_export", **where)}
    if job.kind == "look":
        shown = {name: job.spec[name] for name in LookSpec.model_fields if name not in {"dataset", "version"}}
        return {"title": "the pictures", "url": url_for("datasets.look", name=result["dataset"], version=result["version"], **shown)}
    if job.kind == "classify":
        return {"title": "its batch", "url": url_for("batches.show", batch=job.id)}
    return {
        "title": f"{result['dataset']} v{result['version']}",
        "url": url_for("datasets.show", name=result["dataset"], version=result["version"]),
        "retrain": orders.to_retrain(backend(), job),
    }
