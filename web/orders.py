"""What a person may order and undo: the page, the API and, through it, the command line all order here, by way of `shared.orders`."""

import sys
from contextlib import suppress
from typing import Any

from shared import datasets, models, rules
from shared.errors import Conflict, Invalid, Unavailable
from shared.jobs import EXPLAIN, QUESTIONS, Job, State, keep_record
from shared.orders import enter, settle
from shared.queue import list_of
from shared.specs import ClassifySpec, ListSource, UrlsSource, parse
from shared.storage import Storage, versions
from web.backend import Backend
from web.uploads import keep_addresses

PREDICT_SECONDS = 30
EXPLAIN_SECONDS = 50  # the first answer waits for a process that imports torch
NOBODY_PREDICTS = "No worker answers single images at the moment. Start one with `darkroom worker --queues predict,classify`."


def submit(backend: Backend, kind: str, data: Any, idempotency_key: str = "") -> Job:
    """Order a job of `kind` with the spec `data`. Raises Invalid, NotFound, Conflict or Unavailable, and then nothing was ordered.

    The same `idempotency_key` within a day answers the first job again.
    """
    if len(idempotency_key) > 200:
        raise Invalid("An Idempotency-Key has at most 200 characters.")
    spec = settle(backend, parse(kind, data))
    if isinstance(spec, ClassifySpec) and isinstance(spec.source, UrlsSource):  # many addresses are no matter for a ledger
        spec = spec.model_copy(update={"source": ListSource(id=keep_addresses(backend, spec.source.urls))})
    return enter(backend, kind, spec, idempotency_key)


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
            backend.send(list_of(job.kind, job.spec), job_id, unit)
    keep_record(backend.store, backend.storage, job_id)
    return backend.store.get(job_id)


def extend(backend: Backend, job_id: str, epochs: int) -> Job:
    """Order more epochs of a training that is done: a new job, which makes the next version of its model. Raises NotFound, Conflict, Invalid."""
    job = backend.store.get(job_id)
    if job.kind != "train" or job.state != State.DONE:
        raise Conflict(f"Only a training that is done can have more epochs; this {job.kind} is {job.state}.")
    parent = f"{job.result['model']}/v{job.result['version']}"
    more = {"epochs": epochs, "frozen_epochs": 0, "continues": _kept(backend, job), "parent": parent, "rule": None}
    return submit(backend, "train", {**job.spec, **more})


def goes_on(backend: Backend, job: Job) -> str | None:
    """The job whose last finished epoch a training that has ended can go on from: itself, or the one it continued; None: there is none."""
    if job.kind != "train" or not job.state.terminal:
        return None
    candidates = [job_id for job_id in (job.id, job.spec.get("continues")) if job_id]
    return next((job_id for job_id in candidates if backend.storage.exists(models.checkpoint_key(job_id))), None)


def _kept(backend: Backend, job: Job) -> str:
    found = goes_on(backend, job)
    if found is None or not backend.storage.touch(
        models.checkpoint_key(found)
    ):  # it counts as new: `darkroom gc` leaves it for the new job
        raise Conflict("This training ended before its first epoch did, so there is nothing to go on from. Order it again with `retry`.")
    return found


def to_retrain(backend: Backend, job: Job) -> str:
    """The model to train again on a version made of edits: the one that gave cause, else the newest on that dataset; empty where there is none."""
    storage, source = backend.storage, job.spec.get("source", {})
    if source.get("kind") != "edits":
        return ""
    there = [made for name in models.names(storage) for made in models.all_versions(storage, name)]
    refs = {f"{made['model']}/v{made['version']}": made for made in there}
    on_it = {ref: made["created"] for ref, made in refs.items() if made.get("dataset", {}).get("name") == job.spec["dataset"]}
    return str(source["model"]) if source.get("model") in refs else max(on_it, key=on_it.__getitem__, default="")


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
        if ref in (
            job.spec.get("model"),
            job.spec.get("start"),
            job.spec.get("then"),
        ):  # of a training, `model` is a name without a version
            raise Conflict(f"{ref} is in use by the job {job.id}, which is {job.state}. Wait for it, or cancel it.")
    models.delete(backend.storage, name, version)


def delete_dataset(backend: Backend, name: str, version: int | None = None) -> None:
    """Delete a version of a dataset that nothing needs, or without a version all of it. Raises NotFound, and Conflict that says what needs it."""
    storage = backend.storage
    datasets.info(storage, name, version)
    there = versions(storage, f"datasets/{name}")
    leaving = there if version is None else [version]
    if why := _needed_by(backend, name, leaving) or (version is None and _watched(storage, name)):
        raise Conflict(why)
    for number in reversed(leaving):
        datasets.delete(storage, name, number)


def _needed_by(backend: Backend, name: str, leaving: list[int]) -> str:
    """The sentence that says what needs one of these versions of a dataset; empty when nothing does."""
    storage = backend.storage
    for number in versions(storage, f"datasets/{name}"):
        if number not in leaving and (parent := datasets.info(storage, name, number).get("parent")) in leaving:
            return f"{name} v{number} was made from v{parent}, so v{parent} stays. Delete v{number} first."
    for made in (made for model in models.names(storage) for made in models.all_versions(storage, model)):
        on = made.get("dataset") or {}
        if on.get("name") == name and on["version"] in leaving:
            return f"The model {made['model']}/v{made['version']} was trained on {name} v{on['version']}. Delete the model version first."
    for job in backend.store.page(sys.maxsize):
        used = {job.spec.get("dataset")} if not job.state.terminal else set()
        source = job.spec.get("source")
        if isinstance(source, dict) and source.get("kind") == "dataset" and source.get("version") in leaving:
            if job.kind == "classify" and source["dataset"] == name:
                return f"The batch {job.id} has labelled the images of {name} v{source['version']}, and shows them."
            used |= {source["dataset"]} if not job.state.terminal else set()
        if name in used:
            return f"{name} is in use by the job {job.id}, which is {job.state}. Wait for it, or cancel it."
    return ""


def _watched(storage: Storage, name: str) -> str:
    found = rules.found(storage, name)
    return f"The rule {found[0].id} watches {name}: {found[0]}. Delete the rule first." if found else ""


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
        case "pack":
            return f"Export {spec['dataset']} v{spec['version']} as {spec['format']}"
        case "export":
            return f"Export {spec['model']} as ONNX"
        case "adopt":
            return f"Import the model {spec['model']}"
        case "scrape":
            return f"Scrape {spec['dataset']}"
        case _:
            source = spec["source"]
            if source["kind"] == "restore":
                return f"Restore {spec['dataset']} v{source['version']}"
            if source.get("dataset") == spec["dataset"]:
                return f"Rename classes of {spec['dataset']}"
            return f"{'Correct' if source['kind'] == 'edits' else 'Import'} {spec['dataset']}"


def predict(backend: Backend, ref: str, image: bytes) -> dict[str, Any]:
    """Label one image now and wait for the answer: label, probability, probabilities {class: p}, model, version, ms.

    Raises Unavailable when no worker takes such questions or none answers in time, Invalid when the image cannot be used.
    """
    return _answered(backend, {"model": ref}, image, QUESTIONS, PREDICT_SECONDS)


def explain(backend: Backend, info: dict[str, Any], image: bytes, label: str = "") -> dict[str, Any]:
    """Where the model with this info looks in one image: what `predict` answers, and class, heat and seen (`worker/classifying/gradcam.py`).

    `label`: the class to look for; none is the one it predicts. Raises as `predict` does, and Invalid for a class that it does not know.
    """
    ref = f"{info['model']}/v{info['version']}"
    if label and label not in info["classes"]:
        raise Invalid(f"The model {ref} has no class {label!r}.", field="class")
    return _answered(backend, {"model": ref, "label": label}, image, EXPLAIN, EXPLAIN_SECONDS)


def _answered(backend: Backend, question: dict[str, Any], image: bytes, line: str, seconds: float) -> dict[str, Any]:
    if not any("predict" in worker.get("queues", ()) for worker in backend.store.workers()):
        raise Unavailable(NOBODY_PREDICTS)
    answer = backend.store.await_answer(backend.store.ask(question, image, line), seconds)
    if answer is None:
        raise Unavailable(f"No worker answered within {seconds} seconds; they may be busy with a batch. {NOBODY_PREDICTS}")
    if "error" in answer:
        raise Invalid(str(answer["error"]), field="image")
    return answer
