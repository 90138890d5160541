"""The JSON API, `/api/v1`: what programs and the command line speak.

A submission answers 202 with the job and its Location; an error is `application/problem+json` with a sentence in `detail`;
lists page by a cursor (`next` is the value for the next request, null at the end); what is polled carries an ETag.
"""

from collections.abc import Callable
from itertools import islice
from typing import Any

from flask import Blueprint, Flask, Response, current_app, jsonify, request, url_for
from werkzeug.exceptions import MethodNotAllowed, UnsupportedMediaType

from shared import aliases, datasets, models, review
from shared.compare import compare
from shared.errors import DarkroomError, Invalid, NotFound
from shared.items import upload_key
from shared.jobs import Job, State, reachable
from shared.queries import ORDERS, Filter
from shared.queue import QUEUE_OF, lengths
from shared.specs import Epochs, Version, check
from shared.storage import versions
from web import orders, parameters, problems
from web.backend import Backend, backend, batch_of, job_of
from web.downloads import attachment, streamed_decisions, streamed_results
from web.uploads import FormRequest, keep_archive, keep_blob, keep_files, keep_list, keep_manifest, keep_table, missing_blobs

blueprint = Blueprint("api", __name__, url_prefix="/api/v1")
problems.register(blueprint)

MODEL_FILES = ("model.safetensors", "info.json", "report.json", "validation.parquet", "export.pkl", "model.onnx")


def install(app: Flask) -> None:
    """Add what lies outside `/api/v1`: the probes, and uploads that share one temporary file."""
    app.request_class = FormRequest
    app.add_url_rule("/healthz", "healthz", lambda: {"status": "ok"})
    app.add_url_rule("/readyz", "readyz", health)


# -- datasets ---------------------------------------------------------------------------------------------------------


@blueprint.post("/datasets/<name>/scrape")
def scrape(name: str) -> Response:
    """Order a dataset made by searching."""
    return _submitted("scrape", parameters.body(dataset=name))


@blueprint.post("/datasets/<name>/import")
def import_(name: str) -> Response:
    """Order a dataset made from a folder, an upload or another dataset, or its next version from what was decided."""
    return _submitted("import", parameters.body(dataset=name))


@blueprint.get("/datasets")
def list_datasets() -> Response:
    """The newest version of every dataset."""
    storage = backend().storage
    return jsonify(datasets=[datasets.info(storage, name) for name in datasets.names(storage)])


@blueprint.get("/datasets/<name>")
def show_dataset(name: str) -> Response:
    """Every version of a dataset, newest first."""
    storage = backend().storage
    datasets.latest(storage, name)
    numbers = versions(storage, f"datasets/{name}")
    return jsonify(dataset=name, versions=[datasets.info(storage, name, number) for number in reversed(numbers)])


@blueprint.get("/datasets/<name>/versions/<int(max=999999):version>")
def show_dataset_version(name: str, version: int) -> Response:
    """One version of a dataset."""
    return jsonify(datasets.info(backend().storage, name, version))


# -- models -----------------------------------------------------------------------------------------------------------


@blueprint.post("/datasets/<name>/look")
def look(name: str) -> Response:
    """Order pictures of a dataset as a network will see it."""
    return _submitted("look", parameters.body(dataset=name))


@blueprint.post("/trainings")
def train() -> Response:
    """Order a training."""
    return _submitted("train", parameters.body())


@blueprint.get("/models")
def list_models() -> Response:
    """The newest version of every model."""
    storage = backend().storage
    return jsonify(models=[models.info(storage, *models.resolve(storage, name)) for name in models.names(storage)])


@blueprint.get("/models/<name>")
def show_model(name: str) -> Response:
    """Every version of a model, newest first."""
    storage = backend().storage
    return jsonify(model=name, versions=models.all_versions(storage, name), aliases=aliases.pointed(storage, name))


@blueprint.get("/models/<name>/aliases/<alias>")
def show_alias(name: str, alias: str) -> Response:
    """Where an alias of a model points, and its moves, the last first."""
    moves = aliases.log(backend().storage, name, alias)
    if not moves:
        raise NotFound(f"The model {name!r} has no alias {alias!r}.")
    return jsonify(alias=alias, version=moves[0]["version"], log=moves)


@blueprint.put("/models/<name>/aliases/<alias>")
def promote(name: str, alias: str) -> Response:
    """Let an alias point to a version."""
    version = check(Version, parameters.body().get("version"))
    return jsonify(aliases.move(backend().storage, name, alias, version))


@blueprint.post("/models/<name>/aliases/<alias>/rollback")
def roll_back(name: str, alias: str) -> Response:
    """Let an alias point to what it pointed to before."""
    return jsonify(aliases.back(backend().storage, name, alias))


@blueprint.delete("/models/<name>/aliases/<alias>")
def drop_alias(name: str, alias: str) -> tuple[str, int]:
    """Take an alias away; its log stays."""
    if alias not in aliases.pointed(backend().storage, name):
        raise NotFound(f"The model {name!r} has no alias {alias!r}.")
    aliases.move(backend().storage, name, alias, None)
    return "", 204


@blueprint.get("/models/<name>/versions/<int(max=999999):version>/compare")
def compare_models(name: str, version: int) -> Response:
    """A version beside the one that `?with=` names, on the images both were validated on."""
    storage = backend().storage
    return jsonify(compare(storage, models.resolve(storage, request.args.get("with", "")), (name, version)))


@blueprint.delete("/models/<name>/versions/<int(max=999999):version>")
def delete_model(name: str, version: int) -> tuple[str, int]:
    """Delete a version that no alias and no job uses."""
    orders.delete_model(backend(), name, version)
    return "", 204


@blueprint.get("/models/<name>/versions/<int(max=999999):version>")
def show_model_version(name: str, version: int) -> Response:
    """One version of a model."""
    return jsonify(models.info(backend().storage, name, version))


@blueprint.get("/models/<name>/versions/<int(max=999999):version>/report")
def show_report(name: str, version: int) -> Response:
    """How a version of a model did on its validation images."""
    storage = backend().storage
    models.info(storage, name, version)
    return jsonify(models.report(storage, name, version))


@blueprint.get("/models/<name>/versions/<int(max=999999):version>/files/<file>")
def download_model_file(name: str, version: int, file: str) -> Response:
    """A file of a model version, as a download."""
    storage = backend().storage
    models.info(storage, name, version)
    if file not in MODEL_FILES:
        raise NotFound(f"A model has the files {', '.join(MODEL_FILES)}.")
    return attachment(storage, models.key(name, version, file), f"{name}-v{version}-{file}")


# -- batches ----------------------------------------------------------------------------------------------------------


@blueprint.post("/batches")
def classify() -> Response:
    """Order a batch of images to be labelled."""
    return _submitted("classify", parameters.body())


@blueprint.get("/batches")
def list_batches() -> Response:
    """The newest batches."""
    return _page_of_jobs("batches", "classify")


@blueprint.get("/batches/<job_id>")
def show_batch(job_id: str) -> Response:
    """A batch with its histograms and its newest rows."""
    job, store = batch_of(job_id), backend().store
    histograms = {name: store.histogram(job_id, name) for name in ("labels", "confidence", "reasons")}
    return jsonify({**_job_json(job), "histograms": histograms, "latest": store.rows(job_id, "latest")})


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


# -- jobs, workers, uploads -------------------------------------------------------------------------------------------


@blueprint.get("/jobs")
def list_jobs() -> Response:
    """The newest jobs, of one kind or state if asked for."""
    return _page_of_jobs("jobs", parameters.one_of("kind", tuple(QUEUE_OF)))


@blueprint.get("/jobs/<job_id>")
def show_job(job_id: str) -> Response:
    """A job; a training with its epochs and, unless `?lists=epochs` asks for these alone, the loss of its batches."""
    job = job_of(job_id)
    lists = ("epochs", "loss") if job.kind == "train" else ()
    wanted = request.args.get("lists", "epochs,loss").split(",")
    return jsonify({**_job_json(job), **{name: backend().store.rows(job_id, name) for name in lists if name in wanted}})


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


@blueprint.post("/uploads")
def upload() -> tuple[Response, int]:
    """Keep a zip or tar (the body, or a form's only file), the single files of a form, or a CSV of addresses and classes."""
    b = backend()
    if request.mimetype == "multipart/form-data":
        upload_id = keep_files(b, [file for _, file in request.files.items(multi=True)])
    else:
        upload_id = (keep_table if request.mimetype == "text/csv" else keep_archive)(b, request.stream)
    return jsonify(id=upload_id, bytes=b.storage.size(upload_key(upload_id)), source={"kind": "upload", "id": upload_id}), 201


@blueprint.post("/uploads/missing")
def missing_files() -> Response:
    """Which of these files still have to be sent, and the bytes that one may have."""
    b = backend()
    return jsonify(missing=missing_blobs(b, parameters.body().get("sha256")), max_bytes=b.settings.max_image_bytes)


@blueprint.put("/uploads/blobs/<sha256>")
def upload_file(sha256: str) -> tuple[Response, int]:
    """Keep one file under the SHA-256 of its bytes, which are the body."""
    new = keep_blob(backend(), sha256, request.stream)
    return jsonify(sha256=sha256), 201 if new else 200


@blueprint.post("/uploads/manifest")
def upload_manifest() -> tuple[Response, int]:
    """Make an upload of files that were sent one by one: a JSON line each, name and SHA-256."""
    if request.mimetype not in {"application/jsonl", "application/x-ndjson"}:
        raise UnsupportedMediaType("Send the names as JSON lines, with the header Content-Type: application/jsonl.")
    upload_id, count = keep_manifest(backend(), request.stream)
    return jsonify(id=upload_id, items=count, source={"kind": "upload", "id": upload_id}), 201


@blueprint.post("/uploads/list")
def upload_list() -> tuple[Response, int]:
    """Keep a list of addresses or server paths: plain lines, or CSV."""
    if request.mimetype not in {"text/plain", "text/csv"}:
        raise UnsupportedMediaType("Send the list with the header Content-Type: text/plain or text/csv.")
    upload_id, count = keep_list(backend(), request.stream, is_csv=request.mimetype == "text/csv")
    return jsonify(id=upload_id, items=count, source={"kind": "list", "id": upload_id}), 201


@blueprint.get("/health")
def health() -> tuple[Response, int]:
    """Whether Redis answers and the storage can be written."""
    b = backend()
    checks = {"redis": _trouble(lambda: _ping(b)), "storage": _trouble(b.storage.check)}
    well = not any(checks.values())
    return jsonify(
        status="ok" if well else "unavailable", checks={name: text or "ok" for name, text in checks.items()}
    ), 200 if well else 503


def _ping(b: Backend) -> None:
    store = b.store
    with reachable():
        store.redis.ping()


def _trouble(check: Callable[[], None]) -> str:
    try:
        check()
    except DarkroomError as error:
        return str(error)
    return ""


# -- what the routes share --------------------------------------------------------------------------------------------


def _submitted(kind: str, spec: dict[str, Any]) -> Response:
    return accepted(orders.submit(backend(), kind, spec, request.headers.get("Idempotency-Key", "")))


def accepted(job: Job) -> Response:
    """A job that was ordered: 202 with the job and its Location."""
    response = jsonify(_job_json(job))
    response.status_code = 202
    response.location = url_for("api.show_job", job_id=job.id)
    return response


def _job_json(job: Job) -> dict[str, Any]:
    """The job with a title and its queue."""
    return {**job.as_json(), "title": orders.describe(job), "queue": QUEUE_OF[job.kind]}


def _page_of_jobs(key: str, kind: str | None) -> Response:
    limit, before = parameters.number("limit", 50, 1, 500), request.args.get("before")
    state = parameters.one_of("state", tuple(State))
    found = backend().store.page(limit + 1, before or None, kind, (State(state),) if state else ())
    shown = found[:limit]
    return jsonify({key: [_job_json(job) for job in shown], "next": shown[-1].id if len(found) > limit else None})


def _public(row: dict[str, Any]) -> dict[str, Any]:
    """A row without its locator, which may be a path on the server."""
    return {name: value for name, value in row.items() if name != "locator"}


@blueprint.after_request
def _revalidate(response: Response) -> Response:
    """Give what is polled an ETag, and answer 304 to who has it already."""
    if request.method in {"GET", "HEAD"} and response.status_code == 200 and response.is_json and not response.is_streamed:
        response.headers.setdefault("Cache-Control", "private, no-cache")
        response.add_etag()
        response.make_conditional(request)
    return response


@blueprint.route("/", defaults={"rest": ""}, methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
@blueprint.route("/<path:rest>", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
def unknown(rest: str) -> Response:
    """Whatever else is asked below the API: told in the API's own way, not as a page."""
    adapter = current_app.create_url_adapter(request)
    allowed = [method for method in ("GET", "POST", "PUT", "DELETE") if adapter and adapter.match(method=method)[0] != request.endpoint]
    if allowed:
        raise MethodNotAllowed(allowed, f"{request.path} takes {' and '.join(allowed)}, not {request.method}.")
    raise NotFound(f"The API has nothing at {request.path}.")
