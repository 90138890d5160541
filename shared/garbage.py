"""What nothing refers to any more, and freeing it: `darkroom gc`.

An image is in use while a manifest has it, kept or dropped, or a batch, or a decision of a person. What is younger than the grace is left, and so is
whatever was written or touched since the oldest job began that has not ended: a job writes its images long before the version that names them,
and touches those it finds there (`Storage.touch`). A job that begins later touches later. So nothing is freed under anybody's hands, on a disk however
many jobs run meanwhile (`Storage.discard`); in a bucket, which knows no touch, no image is freed while a job that brings images has not ended.

What is looked for is found in this order: files, then what is referred to. A version that is published in between has only images that an earlier
one has, too, or that its job has touched.
"""

import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shared import datasets, portions, results
from shared.errors import DarkroomError, Invalid, NotFound, Unavailable
from shared.jobs import Job, JobStore, State
from shared.storage import ASIDE, File, Storage, store_errors

SKEW = 60  # seconds that the clocks of ledger and storage may differ
HOUR = 3600
UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": HOUR, "d": 24 * HOUR, "w": 7 * 24 * HOUR}
BRING_IMAGES = ("import", "scrape", "classify")  # kinds of jobs that write images
ROUND = 500  # files of a bucket that are deleted between two looks at what runs
WHAT = {
    "images": "images that no version, batch or decision has",
    "thumbs": "thumbnails of images that are gone",
    "uploads": "uploads whose jobs have ended, or that no job asked for",
    "exports": "exports of dataset versions; they are made again when asked for",
    "checkpoints": "last epochs of trainings that are done; they cannot be given more epochs then",
    "looks": "pictures of dataset versions as the network sees them; they are made again when asked for",
    "versions": "what was left of deleted versions, and of versions that were never finished",
    "unfinished": "files of writers that were killed, and what scrapes that have ended had decided so far",
}
IMAGE = re.compile(r"([0-9a-f]{64})\.\w+")
THUMB = re.compile(r"([0-9a-f]{64})-\d+\.webp")
FOLDERS = ("images", "thumbs", "uploads", "exports", "checkpoints", "looks", "datasets", "models", "batches", "jobs", "rules", "scrapes")
There = dict[str, list[File]]


@dataclass
class Heap:
    """What of one kind can be freed: files older than `before`; what is too young; why all of it must wait, if it must.

    `held_by`: the job because of which `before` is earlier than the grace says, if there is one; `looked`: when. Times are seconds since 1970.
    """

    kind: str
    before: float
    looked: float
    held_by: str = ""
    files: list[File] = field(default_factory=list)
    young: list[File] = field(default_factory=list)
    waits: str = ""

    @property
    def size(self) -> int:
        """Bytes that are freed."""
        return sum(f.size for f in self.files)

    def add(self, file: File) -> None:
        """Take a file that nothing refers to: to be freed now, or when it is older."""
        (self.files if file.at < self.before else self.young).append(file)

    def as_json(self) -> dict[str, Any]:
        """What the command line tells."""
        told = {"kind": self.kind, "what": WHAT[self.kind], "files": len(self.files), "bytes": self.size, "waits": self.waits}
        told["held_by"] = self.held_by if self.young else ""
        young = {"younger": len(self.young), "younger_bytes": sum(f.size for f in self.young)}
        return {**told, **young, "examples": [f.key for f in self.files[:3]]}


def seconds(text: str) -> float:
    """`1d`, `12h`, `30min`, `90s`, `0` as seconds. Raises Invalid."""
    found = re.fullmatch(r"(\d{1,9})\s*([a-z]*)", text.strip().lower())
    if not found or found[2] not in UNITS:
        raise Invalid(f"{text[:40]!r} is no length of time; write 30min, 12h, 1d or 2w.", field="older_than")
    return int(found[1]) * UNITS[found[2]]


def find(store: JobStore, storage: Storage, older_than: float) -> list[Heap]:
    """What can be freed of each kind, in the order of WHAT; nothing is deleted. `older_than`: the grace, seconds.

    Raises Unavailable when Redis cannot be reached, and DarkroomError when a manifest or the rows of a batch cannot be read: then it is not known
    what is in use.
    """
    try:
        return _find(store, storage, older_than)
    except (pa.ArrowInvalid, ValueError) as error:
        raise DarkroomError(f"A manifest or the rows of a batch cannot be read ({error}), so it is not known what is in use.") from None
    except store_errors() as error:
        raise Unavailable(f"The storage cannot be read ({error}), so it is not known what is in use.") from error


def _find(store: JobStore, storage: Storage, older_than: float) -> list[Heap]:
    now = time.time()
    jobs = _jobs(store, storage)
    before, held_by = _before(jobs, now - older_than)
    heaps = {kind: Heap(kind, before, now, held_by) for kind in WHAT}
    heaps["thumbs"].before = now  # made again in no time
    heaps["unfinished"].before = min(before, now - HOUR)  # a large upload may stand still for a while
    there = {folder: _listed(storage, folder, heaps["unfinished"]) for folder in FOLDERS}
    _sort_versions(there, heaps["versions"])
    condemned = {f.key for f in heaps["versions"].files}
    wanted, shown = _wanted(storage, there, condemned)
    _sort_images(there, wanted, shown, heaps)
    _sort_uploads(storage, there, jobs, heaps["uploads"])
    _sort_checkpoints(there["checkpoints"], jobs, heaps["checkpoints"])
    for file in there["scrapes"]:
        if (job := jobs.get(file.key.split("/")[1])) is None or job.state.terminal:
            heaps["unfinished"].add(file)
    for kind in ("exports", "looks"):
        for file in there[kind]:
            heaps[kind].add(file)
    if not storage.is_local and _brought(jobs.values(), now):
        heaps["images"].waits = "A bucket's images are freed only while no import, scrape or batch is under way."
    return list(heaps.values())


def free(store: JobStore, storage: Storage, heaps: Iterable[Heap]) -> dict[str, dict[str, int]]:
    """Delete what was found; by kind, how many files and bytes that was. What was touched since stays. Raises Unavailable."""
    freed = {}
    for heap in heaps:
        freed[heap.kind] = {"files": 0, "bytes": 0}
        try:
            for file in _still_free(store, storage, heap):
                if storage.discard(file.key, heap.before):
                    freed[heap.kind]["files"] += 1
                    freed[heap.kind]["bytes"] += file.size
                elif heap.kind == "uploads":
                    break  # somebody has just asked for this one, and so for files that it names, which come last
        except store_errors() as error:
            raise Unavailable(f"The storage cannot be written ({error}). What was freed before is gone; do it again.") from error
    return freed


def _still_free(store: JobStore, storage: Storage, heap: Heap) -> Iterator[File]:
    for n, file in enumerate([] if heap.waits else heap.files):
        if heap.kind == "images" and not storage.is_local and n % ROUND == 0 and _brought(_jobs(store, storage).values(), heap.looked):
            return
        yield file


# -- who refers to what -----------------------------------------------------------------------------------------------


def _jobs(store: JobStore, storage: Storage) -> dict[str, Job]:
    """Every job of the ledger, and those that the storage alone knows."""
    known = {job.id: job for job in store.page(sys.maxsize)}
    for name in storage.list("jobs"):
        if name.removesuffix(".json") not in known:
            record = storage.read_json(f"jobs/{name}")
            known[record["id"]] = Job(**{**record, "state": State(record["state"])})
    return known


def _before(jobs: dict[str, Job], before: float) -> tuple[float, str]:
    """Everything younger stays, and which job is to blame: since when the oldest one is under way. One that is paused has nothing in hand."""
    held = min(((job.created - SKEW, job.id) for job in jobs.values() if _under_way(job)), default=(before, ""))
    return min(held, (before, ""))


def _under_way(job: Job) -> bool:
    return not job.state.terminal and job.state is not State.PAUSED


def _brought(jobs: Iterable[Job], since: float) -> bool:
    """Whether a job has brought images since then, or still does."""
    return any(job.kind in BRING_IMAGES and (_under_way(job) or (job.ended or 0) > since - SKEW) for job in jobs)


def _listed(storage: Storage, folder: str, unfinished: Heap) -> list[File]:
    """The files below a folder; those of killed writers are `unfinished`, and what a killed `free` had put aside is put back."""
    found = []
    for file in storage.files(folder):
        if not file.name.startswith("."):
            found.append(file)
        elif file.name.endswith(".tmp"):
            unfinished.add(file)
        elif file.name.endswith(ASIDE):
            storage.put_back(file.key)
    return found


def _wanted(storage: Storage, there: There, condemned: set[str]) -> tuple[set[str], set[str]]:
    """SHA-256 of the images in use; and of all pictures of which batches show a thumbnail, wherever their bytes are."""
    wanted: set[str] = set()
    for file in there["datasets"]:
        if file.key not in condemned:
            with suppress(NotFound):  # another gc has freed it, or its dataset was deleted
                wanted.update(_named_by(storage, file))
    shown: set[str] = set()
    for batch in sorted({file.key.split("/")[1] for file in there["batches"]}):
        for column in _rows_of(storage, batch):
            shown.update(_distinct(column))
    return wanted | shown, shown


def _named_by(storage: Storage, file: File) -> Iterable[str]:
    """The images that a manifest or an entry of the log names; a file of another kind names none. Raises NotFound."""
    if file.name == "manifest.parquet":
        with storage.open(file.key) as f:
            return _distinct(pq.read_table(f, columns=["sha256"])["sha256"])
    if "/edits/" in file.key and file.name.endswith(".json"):
        entry = storage.read_json(file.key)
        return [each["sha256"] for each in entry.get("edits", [entry])]  # of one image, or of many
    return ()


def _rows_of(storage: Storage, batch: str) -> Iterator[pa.ChunkedArray]:
    """The hashes of the rows of a batch, and of the images in the storage that are still to be labelled."""
    if storage.exists(f"batches/{batch}/info.json"):
        with storage.open(f"batches/{batch}/results.parquet") as f:
            yield pq.read_table(f, columns=["sha256"])["sha256"]
        return
    for name in results.shards(storage, batch):
        with storage.open(results.shard_key(batch, name)) as f:
            yield pq.read_table(f, columns=["sha256"])["sha256"]
    for name in portions.names(storage, batch):
        with storage.open(f"batches/{batch}/items/{name}.parquet") as f:
            locators = pq.read_table(f, columns=["locator"])["locator"]
        images = locators.filter(pc.starts_with(locators, "image:"))
        yield pc.utf8_slice_codeunits(images, len("image:"), len("image:") + 64)


def _distinct(column: pa.ChunkedArray) -> list[str]:
    return pc.unique(column).to_pylist()  # type: ignore[no-any-return]


# -- what is free -----------------------------------------------------------------------------------------------------


def _sort_versions(there: There, heap: Heap) -> None:
    """What is left of versions of datasets and models that were deleted a while ago, or whose writer was killed before it was done."""
    for kind in ("datasets", "models"):
        folders: dict[str, list[File]] = {}
        for file in there[kind]:
            name, version, *rest = file.key.split("/")[1:]
            if rest and re.fullmatch(r"v\d+", version):
                folders.setdefault(f"{kind}/{name}/{version}", []).append(file)
        for folder, files in folders.items():
            if f"{folder}/info.json" not in {file.key for file in files}:
                since = max(file.at for file in files)  # also of deleted.json: the version counts until then
                for file in files:
                    if file.name != datasets.DELETED:
                        heap.add(File(file.key, file.size, since))


def _sort_images(there: There, wanted: set[str], shown: set[str], heaps: dict[str, Heap]) -> None:
    images = [(found[1], file) for file in there["images"] if (found := IMAGE.fullmatch(file.name))]
    for sha256, file in images:
        if sha256 not in wanted:
            heaps["images"].add(file)
    freed = {file.key for file in heaps["images"].files}
    left = shown | {sha256 for sha256, file in images if file.key not in freed}
    for file in there["thumbs"]:
        if (found := THUMB.fullmatch(file.name)) and found[1] not in left:
            heaps["thumbs"].add(file)


def _sort_uploads(storage: Storage, there: There, jobs: dict[str, Job], heap: Heap) -> None:
    """Uploads that no job will read again. Those of batches with rows stay: their pages show the pictures."""
    asked: dict[str, list[Job]] = {}
    for job in jobs.values():
        source = job.spec.get("source")
        named = (job.spec.get("upload"), source.get("id") if isinstance(source, dict) else None)
        for upload in filter(None, named):
            asked.setdefault(str(upload), []).append(job)
    with_rows = {file.key.split("/")[1] for file in there["batches"] if "/shards/" in file.key}
    blobs, staying = [], []
    for file in there["uploads"]:
        if file.key.startswith("uploads/blobs/"):
            blobs.append(file)
            continue
        upload = file.name.partition(".")[0]
        since = max([file.at, *(_needed_until(job, with_rows) for job in asked.get(upload, []))])
        if since < heap.before:
            heap.files.append(file)
        else:
            staying.append(file)
            if since < float("inf"):
                heap.young.append(file)
    in_use = _blobs_of(storage, staying)
    for file in blobs:
        if file.name not in in_use:
            heap.add(file)


def _needed_until(job: Job, with_rows: set[str]) -> float:
    """Until when a job needs what was uploaded for it, seconds since 1970. `with_rows`: the batches of which pages show pictures."""
    if not job.state.terminal or job.id in with_rows:
        return float("inf")
    return job.ended or job.created


def _blobs_of(storage: Storage, uploads: list[File]) -> set[str]:
    """The files that these uploads name by their content."""
    named: set[str] = set()
    for file in uploads:
        if file.name.endswith(".files.parquet"):
            with storage.open(file.key) as f:
                locators = pq.read_table(f, columns=["locator"])["locator"]
            named.update(_distinct(pc.utf8_slice_codeunits(locators.filter(pc.starts_with(locators, "blob:")), len("blob:"))))
    return named


def _sort_checkpoints(files: list[File], jobs: dict[str, Job], heap: Heap) -> None:
    """Checkpoints of trainings that are done. One that failed or was cancelled can be resumed from its own."""
    continued = {job.spec.get("continues") for job in jobs.values() if not job.state.terminal}
    for file in files:
        name = file.key.split("/")[1]
        job = jobs.get(name)
        if name not in continued and (job is None or job.state is State.DONE):
            heap.add(File(file.key, file.size, max(file.at, (job and job.ended) or 0.0)))
