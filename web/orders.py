"""Taking an order: check the spec and all it refers to, record the job, keep the order on storage, hint the queue.

The page, the API and, through it, the command line all order here. What comes out of `submit` is a job in the ledger;
from then on nothing is lost if this process dies.
"""

from contextlib import suppress
from typing import Any

from shared import datasets, models
from shared.errors import Conflict, Invalid, NotFound, Unavailable
from shared.items import check_folder, upload_key
from shared.jobs import Job, State, keep_record
from shared.queue import send, send_predict
from shared.specs import AnySpec, ClassifySpec, FolderSource, ImportSpec, Name, TrainSpec, UploadSource, check, parse
from web.backend import Backend

PREDICT_SECONDS = 30
NOBODY_PREDICTS = "No worker answers single images at the moment. Start one with `darkroom worker --queues predict,classify`."
FIRST_UNIT = {"import": "main", "scrape": "main", "train": "main", "classify": "plan"}


def submit(backend: Backend, kind: str, data: Any, idempotency_key: str = "") -> Job:
    """Order a job of `kind` with the spec `data`. Raises Invalid, NotFound, Conflict or Unavailable, and then nothing was ordered.

    The same `idempotency_key` within a day answers the first job again.
    """
    if len(idempotency_key) > 200:
        raise Invalid("An Idempotency-Key has at most 200 characters.")
    spec = _settle(backend, parse(kind, data))
    unit = FIRST_UNIT[kind]
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
        send(backend.celery, kind, job_id, unit)
    return job


def _settle(backend: Backend, spec: AnySpec) -> AnySpec:
    """Replace what is relative (the newest version) by what it is now, and check that all of it exists."""
    storage = backend.storage
    if isinstance(spec, ImportSpec | ClassifySpec):
        if isinstance(spec.source, FolderSource):
            folder = check_folder(spec.source.path, backend.settings)
            spec = spec.model_copy(update={"source": FolderSource(path=str(folder))})
        elif isinstance(spec.source, UploadSource) and not storage.exists(upload_key(spec.source.id)):
            raise NotFound(f"There is no upload {spec.source.id!r}; it may have been cleared. Upload the file again.")
    if isinstance(spec, ClassifySpec):
        name, version = models.resolve(storage, spec.model)
        return spec.model_copy(update={"model": f"{name}/v{version}"})
    if isinstance(spec, TrainSpec):
        info = datasets.info(storage, spec.dataset, spec.version)
        if len(info["classes"]) < 2:
            raise Invalid(
                f"The dataset {spec.dataset!r} has {len(info['classes'])} class; a classifier needs two or more.", field="dataset"
            )
        model = spec.model or check(Name, spec.dataset)
        return spec.model_copy(update={"version": info["version"], "model": model})
    return spec


def cancel(backend: Backend, job_id: str) -> State:
    """Ask a job to end; its state afterwards. A running job is `running` until its workers have stopped. Raises NotFound, Conflict."""
    job = backend.store.get(job_id)
    if job.state.terminal:
        raise Conflict(f"The job has ended already: it is {job.state}.")
    state = backend.store.cancel(job_id)
    if state.terminal:
        keep_record(backend.store, backend.storage, job_id)
    return state


def retry(backend: Backend, job_id: str) -> Job:
    """Order again what a failed or cancelled job asked for: a new job. Raises NotFound, Conflict."""
    job = backend.store.get(job_id)
    if job.state not in {State.FAILED, State.CANCELLED}:
        raise Conflict(f"Only a failed or cancelled job can be ordered again; this one is {job.state}.")
    return submit(backend, job.kind, job.spec)


def describe(job: Job) -> str:
    """What a job is about, in a few words: `train clothing on fashion v2`."""
    spec = job.spec
    match job.kind:
        case "train":
            return f"Train {spec['model']} on {spec['dataset']} v{spec['version']}"
        case "classify":
            return f"Classify with {spec['model']}"
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
    send_predict(backend.celery, question)
    answer = backend.store.await_answer(question, PREDICT_SECONDS)
    if answer is None:
        raise Unavailable(f"No worker answered within {PREDICT_SECONDS} seconds; they may be busy with a batch. {NOBODY_PREDICTS}")
    if "error" in answer:
        raise Invalid(str(answer["error"]), field="image")
    return answer
