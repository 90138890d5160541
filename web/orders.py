"""Taking an order: check the spec and all it refers to, record the job, keep the order on storage, hint the queue.

The page, the API and, through it, the command line all order here. What comes out of `submit` is a job in the ledger;
from then on nothing is lost if this process dies.
"""

import sys
from contextlib import suppress
from typing import Any

from shared import datasets, models, review, weights
from shared.errors import Conflict, Invalid, NotFound, Unavailable
from shared.items import Source, check_place
from shared.items import check as check_source
from shared.jobs import Job, State, keep_record
from shared.queue import list_of, send
from shared.specs import (
    AdoptSpec,
    AnySpec,
    ClassifySpec,
    DatasetSource,
    ExportSpec,
    FailedSource,
    FolderSource,
    ImportSpec,
    ListSource,
    LookSpec,
    Name,
    ReviewSource,
    TrainSpec,
    UrlsSource,
    check,
    parse,
)
from shared.storage import Storage
from web.backend import Backend
from web.uploads import keep_addresses

PREDICT_SECONDS = 30
NOBODY_PREDICTS = "No worker answers single images at the moment. Start one with `darkroom worker --queues predict,classify`."
FIRST_UNIT = {"classify": "plan"}  # of the other kinds, "main", which is all there is of them


def submit(backend: Backend, kind: str, data: Any, idempotency_key: str = "") -> Job:
    """Order a job of `kind` with the spec `data`. Raises Invalid, NotFound, Conflict or Unavailable, and then nothing was ordered.

    The same `idempotency_key` within a day answers the first job again.
    """
    if len(idempotency_key) > 200:
        raise Invalid("An Idempotency-Key has at most 200 characters.")
    spec = _settle(backend, parse(kind, data))
    unit = FIRST_UNIT.get(kind, "main")
    job_id = backend.store.create(kind, spec.model_dump(mode="json"), unit, idempotency_key)
    job = backend.store.get(job_id)
    if job.kind != kind:
        raise Conflict(f"This Idempotency-Key was used before, for a job of the kind {job.kind}. Use a key of its own for each order.")
    try:
        keep_record(backend.store, backend.storage, job_id)
    except OSError as error:
        backend.store.cancel(job_id)  # an order that is not on storage was not taken
        raise Unavailable(f"The storage cannot be written ({error.strerror or error}), so nothing was ordered.") from error
    with suppress(Unavailable):  # the job is in the ledger; the sweeper sends the hint when Redis is back
        send(backend.celery, list_of(kind, job.spec), job_id, unit)
    return job


def _settle(backend: Backend, spec: AnySpec) -> AnySpec:
    """Replace what is relative (the newest version) by what it is now, and check that all of it exists."""
    storage = backend.storage
    if isinstance(spec, ClassifySpec):
        name, version = models.resolve(storage, spec.model)
        if spec.precision == "int8":
            _check_int8(models.info(storage, name, version))
        return spec.model_copy(update={"model": f"{name}/v{version}", "source": _settle_source(backend, spec.source)})
    if isinstance(spec, ExportSpec):
        name, version = models.resolve(storage, spec.model)
        return spec.model_copy(update={"model": f"{name}/v{version}"})
    if isinstance(spec, AdoptSpec) and not storage.exists(weights.key(spec.upload, "info.json")):
        raise NotFound("What was uploaded is not here any more. Send both files of the model again.")
    if isinstance(spec, ImportSpec):
        return spec.model_copy(update={"source": _settle_source(backend, spec.source)})
    if isinstance(spec, LookSpec):
        return spec.model_copy(update={"version": datasets.info(storage, spec.dataset, spec.version)["version"]})
    if isinstance(spec, TrainSpec):
        info = datasets.info(storage, spec.dataset, spec.version)
        if len(info["classes"]) < 2:
            raise Invalid(
                f"The dataset {spec.dataset!r} has {len(info['classes'])} class; a classifier needs two or more.", field="dataset"
            )
        model = spec.model or check(Name, spec.dataset)
        return spec.model_copy(update={"version": info["version"], "model": model, "start": _settle_start(storage, spec)})
    return spec


def _settle_start(storage: Storage, spec: TrainSpec) -> str:
    """What a training starts from, with the version if it is a model. Raises Invalid or NotFound."""
    if not spec.from_model:
        return spec.start
    name, version = models.resolve(storage, spec.start)
    models.check_start(models.info(storage, name, version), spec.arch)
    return f"{name}/v{version}"


def _settle_source(backend: Backend, source: Source) -> Source:
    """The source as the ledger keeps it: small, and the same whenever it is read. Raises Invalid, NotFound or Conflict."""
    storage = backend.storage
    check_source(source, storage, backend.settings)
    match source:
        case FolderSource():
            return FolderSource(path=check_place(source.path, backend.settings))
        case UrlsSource():
            return ListSource(id=keep_addresses(backend, source.urls))
        case DatasetSource():
            return DatasetSource(dataset=source.dataset, version=datasets.info(storage, source.dataset, source.version)["version"])
        case FailedSource():
            job = backend.store.get(source.batch)
            if not job.state.terminal:
                raise Conflict("The batch still runs; its failed items can be retried when it has ended.")
            if not job.counts.get("errors"):
                raise Conflict("No item of this batch failed, so there is nothing to retry.")
        case ReviewSource():
            if not review.decided(storage, source.batch):
                raise Invalid(f"Nobody has reviewed a row of the batch {source.batch} yet; accept or relabel some first.", field="source")
    return source


def _check_int8(info: dict[str, Any]) -> None:
    """Raises Invalid unless 8-bit arithmetic was found to keep the labels of this model version."""
    found = info.get("int8")
    if found and found.get("offered"):
        return
    if not found:
        why = "It was not tried when this version was trained."
    else:
        why = found.get("why") or f"It keeps only {found['agreement']:.1%} of the labels of the validation images."
    raise Invalid(f"{info['model']} v{info['version']} has no int8. {why} Choose fast or exact.", field="precision")


def cancel(backend: Backend, job_id: str) -> State:
    """Ask a job to end; its state afterwards. A running job is `running` until its workers have stopped. Raises NotFound, Conflict."""
    job = backend.store.get(job_id)
    if job.state.terminal:
        raise Conflict(f"The job has ended already: it is {job.state}.")
    state = backend.store.cancel(job_id)
    keep_record(backend.store, backend.storage, job_id)  # the wish, too: Redis may forget it before the job has stopped
    return state


def pause(backend: Backend, job_id: str) -> State:
    """Let a batch rest; its state afterwards, `running` until its workers have put down what they hold. Raises NotFound, Conflict."""
    job = backend.store.get(job_id)
    if job.kind != "classify":
        raise Conflict(f"Only a batch can be paused; this job is of the kind {job.kind}.")
    if job.state.terminal:
        raise Conflict(f"The job has ended already: it is {job.state}.")
    state = backend.store.pause(job_id)
    keep_record(backend.store, backend.storage, job_id)
    return state


def resume(backend: Backend, job_id: str) -> Job:
    """Let a paused batch go on, or a failed or cancelled training, as a new job from its last finished epoch. Raises NotFound, Conflict."""
    job = backend.store.get(job_id)
    if job.kind == "train" and job.state in {State.FAILED, State.CANCELLED}:
        return submit(backend, "train", {**job.spec, "continues": _kept(backend, job)})
    if not job.pause:
        raise Conflict(f"The job is not paused; it is {job.state}.")
    for unit in backend.store.resume(job_id):
        with suppress(Unavailable):  # the sweeper sends what cannot be sent now
            send(backend.celery, list_of(job.kind, job.spec), job_id, unit)
    keep_record(backend.store, backend.storage, job_id)
    return backend.store.get(job_id)


def extend(backend: Backend, job_id: str, epochs: int) -> Job:
    """Order more epochs of a training that is done: a new job, which makes the next version of its model. Raises NotFound, Conflict, Invalid."""
    job = backend.store.get(job_id)
    if job.kind != "train" or job.state != State.DONE:
        raise Conflict(f"Only a training that is done can have more epochs; this {job.kind} is {job.state}.")
    parent = f"{job.result['model']}/v{job.result['version']}"
    more = {"epochs": epochs, "frozen_epochs": 0, "continues": _kept(backend, job), "parent": parent}
    return submit(backend, "train", {**job.spec, **more})


def goes_on(backend: Backend, job: Job) -> str | None:
    """The job whose last finished epoch a training that has ended can go on from: itself, or the one it continued; None: there is none."""
    if job.kind != "train" or not job.state.terminal:
        return None
    candidates = [job_id for job_id in (job.id, job.spec.get("continues")) if job_id]
    return next((job_id for job_id in candidates if backend.storage.exists(models.checkpoint_key(job_id))), None)


def _kept(backend: Backend, job: Job) -> str:
    found = goes_on(backend, job)
    if found is None:
        raise Conflict("This training ended before its first epoch did, so there is nothing to go on from. Order it again with `retry`.")
    return found


def retry(backend: Backend, job_id: str) -> Job:
    """Order again what a failed or cancelled job asked for: a new job. Raises NotFound, Conflict."""
    job = backend.store.get(job_id)
    if job.state not in {State.FAILED, State.CANCELLED}:
        raise Conflict(f"Only a failed or cancelled job can be ordered again; this one is {job.state}.")
    return submit(backend, job.kind, job.spec)


def retry_failed(backend: Backend, job_id: str) -> Job:
    """Order the failed items of a batch again, as a new batch with the same spec. Raises NotFound, Conflict."""
    job = backend.store.get(job_id)
    return submit(backend, "classify", {**job.spec, "source": {"kind": "failed", "batch": job_id}})


def delete_model(backend: Backend, name: str, version: int) -> None:
    """Delete a version of a model that nothing uses. Raises NotFound, Conflict."""
    ref = f"{name}/v{version}"
    models.info(backend.storage, name, version)
    for job in backend.store.page(sys.maxsize, states=tuple(state for state in State if not state.terminal)):
        if ref in (job.spec.get("model"), job.spec.get("start")):  # of a training, `model` is a name without a version
            raise Conflict(f"{ref} is in use by the job {job.id}, which is {job.state}. Wait for it, or cancel it.")
    models.delete(backend.storage, name, version)


def describe(job: Job) -> str:
    """What a job is about, in a few words: `train clothing on fashion v2`."""
    spec = job.spec
    match job.kind:
        case "train":
            return f"Train {spec['model']} on {spec['dataset']} v{spec['version']}"
        case "classify":
            return f"Classify with {spec['model']}"
        case "look":
            return f"Look at {spec['dataset']} v{spec['version']}"
        case "export":
            return f"Export {spec['model']} as ONNX"
        case "adopt":
            return f"Import the model {spec['model']}"
        case "scrape":
            return f"Scrape {spec['dataset']}"
        case _:
            return f"Import {spec['dataset']}"


def predict(backend: Backend, ref: str, image: bytes) -> dict[str, Any]:
    """Label one image now and wait for the answer: label, probability, probabilities {class: p}, model, version, ms.

    Raises Unavailable when no worker takes such questions or none answers in time, Invalid when the image cannot be used.
    """
    if not any("predict" in worker.get("queues", ()) for worker in backend.store.workers()):
        raise Unavailable(NOBODY_PREDICTS)
    question = backend.store.ask({"model": ref}, image)
    answer = backend.store.await_answer(question, PREDICT_SECONDS)
    if answer is None:
        raise Unavailable(f"No worker answered within {PREDICT_SECONDS} seconds; they may be busy with a batch. {NOBODY_PREDICTS}")
    if "error" in answer:
        raise Invalid(str(answer["error"]), field="image")
    return answer
