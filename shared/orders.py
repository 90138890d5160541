"""What an order is on its way into the ledger, whoever gives it: the web for a person, a worker for a rule or for what an import leads to.

`settle` replaces what is relative by what it is now and checks that all of it exists; `enter` records the job, keeps the order
on storage and hints the queue. From then on nothing is lost if this process dies.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from shared import datasets, edits, models, review, weights
from shared.errors import Conflict, Invalid, NotFound, Unavailable, Unwritable
from shared.items import Source, check_folder, check_place
from shared.items import check as check_source
from shared.jobs import Job, JobStore, keep_record
from shared.queue import list_of
from shared.settings import Settings
from shared.specs import (
    AdoptSpec,
    AnySpec,
    ClassesSource,
    ClassifySpec,
    DatasetSource,
    EditsSource,
    ExportSpec,
    FailedSource,
    FolderSource,
    ImportSpec,
    LookSpec,
    Name,
    PackSpec,
    RestoreSource,
    ReviewSource,
    ScrapeSpec,
    TrainSpec,
    check,
    parse,
)
from shared.storage import Storage

FIRST_UNIT = {"classify": "plan"}  # of the other kinds, "main", which is all there is of them


class Desk(Protocol):
    """Where orders are taken: the web's backend, or a worker. `send(list, job, unit)` hints the queue and may raise Unavailable."""

    @property
    def settings(self) -> Settings: ...  # noqa: D102
    @property
    def storage(self) -> Storage: ...  # noqa: D102
    @property
    def store(self) -> JobStore: ...  # noqa: D102
    @property
    def send(self) -> Callable[[str, str, str], None]: ...  # noqa: D102


def submit(desk: Desk, kind: str, data: Any, idempotency_key: str = "") -> Job:
    """Order a job of `kind` with the spec `data`. Raises Invalid, NotFound, Conflict or Unavailable, and then nothing was ordered."""
    return enter(desk, kind, settle(desk, parse(kind, data)), idempotency_key)


def enter(desk: Desk, kind: str, spec: AnySpec, idempotency_key: str = "") -> Job:
    """Record an order that is settled. Raises Conflict or Unavailable, and then nothing was ordered.

    The same `idempotency_key` within a day answers the first job again.
    """
    unit = FIRST_UNIT.get(kind, "main")
    job_id = desk.store.create(kind, spec.model_dump(mode="json"), unit, idempotency_key)
    job = desk.store.get(job_id)
    if job.kind != kind:
        raise Conflict(f"This Idempotency-Key was used before, for a job of the kind {job.kind}. Use a key of its own for each order.")
    try:
        keep_record(desk.store, desk.storage, job_id)
    except OSError as error:
        desk.store.withdraw(job_id, idempotency_key)  # an order that is not on storage was not taken
        raise Unwritable(f"The storage cannot be written ({error.strerror or error}), so nothing was ordered.") from error
    with suppress(Unavailable):  # the job is in the ledger; the sweeper sends the hint when Redis is back
        desk.send(list_of(kind, job.spec), job_id, unit)
    return job


def settle(desk: Desk, spec: AnySpec) -> AnySpec:
    """Replace what is relative (the newest version) by what it is now, and check that all of it exists. Raises Invalid, NotFound or Conflict."""
    storage = desk.storage
    if isinstance(spec, ClassifySpec):
        name, version = models.resolve(storage, spec.model)
        if spec.precision == "int8":
            _check_int8(models.info(storage, name, version))
        return spec.model_copy(update={"model": f"{name}/v{version}", "source": _settle_source(desk, spec.source)})
    if isinstance(spec, ScrapeSpec) and "folder" in spec.sources:
        return spec.model_copy(update={"folder": _settle_folder(spec.folder, desk.settings)})
    if isinstance(spec, ImportSpec):
        return spec.model_copy(update={"source": _settle_import(desk, spec), "then": spec.then and _settle_then(storage, spec.then)})
    if isinstance(spec, ExportSpec):
        name, version = models.resolve(storage, spec.model)
        return spec.model_copy(update={"model": f"{name}/v{version}"})
    if isinstance(spec, AdoptSpec) and not all(storage.touch(weights.key(spec.upload, f)) for f in ("info.json", "model.safetensors")):
        raise NotFound("What was uploaded is not here any more. Send both files of the model again.")
    if isinstance(spec, LookSpec | PackSpec):
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


def _settle_folder(path: str, settings: Settings) -> str:
    """The folder of a scrape, in one way of writing it. Raises Invalid."""
    try:
        return str(check_folder(path.strip(), settings))
    except Invalid as error:
        raise Invalid(str(error), field="folder") from None


def _settle_start(storage: Storage, spec: TrainSpec) -> str:
    """What a training starts from, with the version if it is a model. Raises Invalid or NotFound."""
    if not spec.from_model:
        return spec.start
    name, version = models.resolve(storage, spec.start)
    models.check_start(models.info(storage, name, version), spec.arch)
    return f"{name}/v{version}"


def _settle_then(storage: Storage, ref: str) -> str:
    """The version of a model that is to be retrained. Raises Invalid or NotFound."""
    name, version = models.resolve(storage, ref)
    models.retraining(models.info(storage, name, version))
    return f"{name}/v{version}"


def _settle_import(desk: Desk, spec: ImportSpec) -> Source:
    """What a version is made of. Raises Invalid, NotFound or Conflict."""
    match spec.source:
        case EditsSource():
            return _settle_edits(desk.storage, spec.dataset, spec.source)
        case RestoreSource(version=version):
            _check_restore(desk.storage, spec.dataset, version)
            if spec.classes:
                raise Invalid("A version is restored as it was; rename its classes afterwards.", field="classes")
            return spec.source
    source = _settle_source(desk, spec.source)
    if isinstance(source, ClassesSource) and source.dataset == spec.dataset:
        _check_renaming(desk.storage, spec, source)
    return source


def _check_restore(storage: Storage, dataset: str, version: int) -> None:
    """Raises NotFound for a version that is not there, and Conflict for one that would change nothing."""
    newest, old = datasets.info(storage, dataset), datasets.info(storage, dataset, version)
    if version == newest["version"]:
        raise Conflict(f"v{version} is the newest version of {dataset}; there is nothing to restore.")
    if old["hash"] == newest["hash"]:
        raise Conflict(f"v{newest['version']}, the newest version of {dataset}, has the images and labels of v{version} already.")


def _settle_edits(storage: Storage, dataset: str, source: EditsSource) -> EditsSource:
    """The source with the version of the model it names. Raises NotFound, and Conflict when nothing would change."""
    if not edits.pending(storage, dataset):
        raise Conflict(f"No change of {dataset} waits to be made; keep, relabel or remove some of its images first.")
    if source.model is None:
        return source
    name, version = models.resolve(storage, source.model)
    return EditsSource(model=f"{name}/v{version}")


def _check_renaming(storage: Storage, spec: ImportSpec, source: ClassesSource) -> None:
    """A dataset may be its own source to have its classes renamed. Raises Conflict for an older version, Invalid when nothing is renamed."""
    info = datasets.info(storage, spec.dataset)
    if source.version != info["version"]:
        raise Conflict(
            f"{spec.dataset} v{source.version} is not its newest version, v{info['version']}; only that one's classes are renamed."
        )
    if source.classes is not None:
        raise Invalid("Name the classes to leave out, rather than those to keep.", field="source")
    if strange := [name for name in spec.classes if name not in info["classes"]]:
        raise Invalid(f"{spec.dataset} v{info['version']} has no class {strange[0]!r}.", field="classes")
    if not spec.classes:
        raise Invalid("Say which class is called otherwise from now on, as in: old = new.", field="classes")


def _settle_source(desk: Desk, source: Source) -> Source:
    """The source as the ledger keeps it: small, and the same whenever it is read. Raises Invalid, NotFound or Conflict."""
    storage = desk.storage
    check_source(source, storage, desk.settings)
    match source:
        case FolderSource():
            return FolderSource(path=check_place(source.path, desk.settings))
        case DatasetSource():
            return source.model_copy(update={"version": datasets.info(storage, source.dataset, source.version)["version"]})
        case FailedSource():
            job = desk.store.get(source.batch)
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
