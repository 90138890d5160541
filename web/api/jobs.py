"""Jobs of every kind, and the workers that do them."""

from flask import Response, jsonify, request

from shared.jobs import reachable
from shared.queue import QUEUE_OF, lengths
from shared.specs import Epochs, check
from web import orders, parameters
from web.api import accepted, blueprint, job_json, page_of_jobs
from web.backend import backend, job_of


@blueprint.get("/jobs")
def list_jobs() -> Response:
    """The newest jobs, of one kind or state if asked for."""
    return page_of_jobs("jobs", parameters.one_of("kind", tuple(QUEUE_OF)))


@blueprint.get("/jobs/<job_id>")
def show_job(job_id: str) -> Response:
    """A job; a training with its epochs and, unless `?lists=epochs` asks for these alone, the loss of its batches."""
    job = job_of(job_id)
    lists = ("epochs", "loss") if job.kind == "train" else ()
    wanted = request.args.get("lists", "epochs,loss").split(",")
    return jsonify({**job_json(job), **{name: backend().store.rows(job_id, name) for name in lists if name in wanted}})


@blueprint.post("/jobs/<job_id>/cancel")
def cancel_job(job_id: str) -> Response:
    """Ask a job to end."""
    orders.cancel(backend(), job_of(job_id).id)
    return accepted(job_of(job_id))


@blueprint.post("/jobs/<job_id>/pause")
def pause_job(job_id: str) -> Response:
    """Let a batch rest."""
    orders.pause(backend(), job_of(job_id).id)
    return accepted(job_of(job_id))


@blueprint.post("/jobs/<job_id>/resume")
def resume_job(job_id: str) -> Response:
    """Let a paused batch go on, or a training that failed or was cancelled, as a new job."""
    return accepted(orders.resume(backend(), job_of(job_id).id))


@blueprint.post("/jobs/<job_id>/extend")
def extend_job(job_id: str) -> Response:
    """Order more epochs of a training that is done."""
    epochs = check(Epochs, parameters.body().get("epochs"))
    return accepted(orders.extend(backend(), job_of(job_id).id, epochs))


@blueprint.post("/jobs/<job_id>/retry")
def retry_job(job_id: str) -> Response:
    """Order again what a failed or cancelled job asked for."""
    return accepted(orders.retry(backend(), job_of(job_id).id))


@blueprint.get("/workers")
def list_workers() -> Response:
    """The live workers, and how many messages wait in each queue."""
    store = backend().store
    workers = store.workers()
    with reachable():
        return jsonify(workers=workers, queues=lengths(store.redis))
