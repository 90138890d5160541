"""Making a dataset from images that have classes, on the server, uploaded, at addresses or in another dataset, from what a person decided, or from an earlier version."""

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Self

from shared import datasets, edits, review
from shared.errors import DarkroomError, Invalid
from shared.images import BadImage
from shared.items import ItemReader, offered_name, walk
from shared.settings import Settings
from shared.specs import ClassesSource, EditsSource, FolderSource, ImportSpec, RestoreSource, ReviewSource, UploadSource
from shared.storage import Storage, image_key
from shared.tables import MAX_TABLE
from worker import layouts
from worker.examiners import Examiners
from worker.examining import EVERY, Collection, published
from worker.layouts import Offer, Renaming
from worker.progress import Progress
from worker.scraping.fetch import Fetcher, FetchError

AHEAD = 4  # files in hand a thread: each may have as many bytes as the limit allows
FETCHED_AHEAD = 32  # addresses in hand
FEW = 16  # files that one process has examined before another would have started


def import_dataset(spec: ImportSpec, job: str, storage: Storage, settings: Settings, progress: Progress) -> dict[str, Any]:
    """Make the next version of a dataset; returns dataset, version, images, dropped.

    An import into an existing dataset adds to it: the kept pictures of its newest version are carried over. What a folder or zip says of its
    pictures is read by worker/layouts.py. What a person decided about a batch has the label that was given, also where the dataset had another.
    The dataset itself as the source makes its classes anew, and changes nothing else. Raises DarkroomError, with nothing published, for a
    folder name that cannot be a class, a class to rename that is not there, when a class has fewer than two usable pictures, and when
    decisions change nothing.
    """
    if done := published(storage, spec.dataset, job):
        return done
    progress.update(phase="listing")
    collection = Collection(storage, spec.dataset, progress)
    renaming = Renaming(spec.classes)
    match spec.source:
        case EditsSource():
            return _edited(spec, job, storage, collection, renaming)
        case RestoreSource():
            return _restored(spec, spec.source.version, job, collection)
        case ClassesSource() if spec.source.dataset == spec.dataset:
            return _renamed(spec, job, storage, collection, renaming)
        case ClassesSource():
            _take_over(spec.source, storage, collection, renaming)
        case ReviewSource():
            _add(_decided(spec.source.batch, storage, progress, renaming), collection, spec, settings, progress, corrects=True)
        case FolderSource() | UploadSource():
            _add(_offered(spec.source, storage, settings, progress, renaming), collection, spec, settings, progress)
    renaming.check()
    if isinstance(spec.source, ReviewSource) and not collection.kept.total():
        raise Invalid(_unchanged(spec.dataset, collection), field="source")
    return collection.publish(job, _source(spec), note=spec.note, author=spec.author)


def _add(
    offers: list[Offer], collection: Collection, spec: ImportSpec, settings: Settings, progress: Progress, corrects: bool = False
) -> None:
    """Read what is offered, and add it."""
    collection.check_labels(dict.fromkeys(label for offer in offers if (label := offer.said["label"])))
    for looked_at, (offer, facts) in enumerate(_examined(offers, collection.storage, settings, progress.check), 1):
        collection.add({"name": offer.path, "source": spec.source.kind, **offer.said}, facts, corrects=corrects)
        collection.tell("importing", looked_at, len(offers))


def _source(spec: ImportSpec) -> dict[str, Any]:
    """What the version says of where it is from."""
    return {**spec.source.model_dump(), **({"renamed": spec.classes} if spec.classes else {})}


def _unchanged(name: str, collection: Collection) -> str:
    """Why what was reviewed makes no version."""
    here = collection.reasons.pop("duplicate", 0)
    others = ", ".join(f"{n} {code}" for code, n in collection.reasons.items())
    known = f"{here} of the images are in the dataset {name!r} already, with the labels they were given. " if here else ""
    return f"These decisions change nothing: {known}{f'Not usable: {others}. ' if others else ''}No version was made."


def _offered(
    source: FolderSource | UploadSource, storage: Storage, settings: Settings, progress: Progress, renaming: Renaming
) -> list[Offer]:
    """What the files of a folder or an upload offer. Raises Invalid, NotFound, Cancelled."""
    files = []
    for path, locator, _ in walk(source, storage, settings, wanted=offered_name):
        progress.check()
        files.append((path, locator))
    reader = ItemReader(storage, MAX_TABLE, settings)

    def read(locator: str) -> bytes:
        try:
            return reader.read(locator)
        except BadImage as error:
            raise Invalid(f"A table that says what the images are cannot be read: {error}", field="source") from None

    offers = layouts.offers(files, read, renaming)
    renaming.check()  # before anything is read
    return offers


def _decided(batch: str, storage: Storage, progress: Progress, renaming: Renaming) -> list[Offer]:
    """What a person decided about a batch, the newest decision last: of equal pictures it is the one that counts."""
    found = []
    for decision in review.decisions(storage, batch):
        progress.check()
        label = renaming(decision["given_label"])
        locator = decision["locator"] if label else f"error:left_out:The class {decision['given_label']!r} was left out."
        found.append((decision["at"], Offer(decision["uri"], locator, {"label": label or ""})))
    if not found:
        raise Invalid(f"Nobody has reviewed a row of the batch {batch} yet.", field="source")
    return [offer for _, offer in sorted(found, key=lambda pair: pair[0])]


def _edited(spec: ImportSpec, job: str, storage: Storage, collection: Collection, renaming: Renaming) -> dict[str, Any]:
    """The newest version with the edits that no version includes yet. Raises DarkroomError, with nothing published, when none changes anything."""
    entries = edits.unmade(storage, spec.dataset)
    changes = edits.changes_of(entries)
    if not changes:
        raise DarkroomError(f"No change of {spec.dataset} waits any more; perhaps another job has made the version meanwhile.")
    collection.change(changes)
    if spec.classes:
        collection.rename(renaming)
        renaming.check()
    collection.tell("importing", len(changes), len(changes))
    return collection.publish(job, _source(spec), entries=entries, note=spec.note, author=spec.author)


def _restored(spec: ImportSpec, version: int, job: str, collection: Collection) -> dict[str, Any]:
    """The rows of an earlier version as the next one; its parent is the newest, whatever was published meanwhile. Raises NotFound."""
    collection.restore(version)
    collection.tell("importing", collection.kept.total(), collection.kept.total())
    return collection.publish(job, _source(spec), note=spec.note, author=spec.author)


def _renamed(spec: ImportSpec, job: str, storage: Storage, collection: Collection, renaming: Renaming) -> dict[str, Any]:
    """The newest version with its classes renamed, merged or left out. Raises Invalid when that changes nothing."""
    before = datasets.info(storage, spec.dataset)["classes"]
    if not spec.classes or all(spec.classes.get(name, name) == name for name in before):
        raise Invalid(f"No class of {spec.dataset} would be called otherwise; say which is, as in: old = new.", field="classes")
    collection.rename(renaming)
    renaming.check()
    return collection.publish(job, _source(spec), note=spec.note, author=spec.author)


def _take_over(source: ClassesSource, storage: Storage, collection: Collection, renaming: Renaming) -> None:
    """Add the images of another dataset, or of some of its classes, with all that is known of them. Raises Invalid or NotFound."""
    info = datasets.info(storage, source.dataset, source.version)
    if strange := [name for name in source.classes or () if name not in info["classes"]]:
        raise Invalid(f"{source.dataset} v{info['version']} has no class {strange[0]!r}.", field="source")
    rows = datasets.rows(storage, source.dataset, info["version"])
    rows = [row for row in rows if source.classes is None or row["label"] in source.classes]
    renamed = [renaming(row["label"]) for row in rows]
    collection.check_labels(dict.fromkeys(label for label in renamed if label))
    for done, (row, label) in enumerate(zip(rows, renamed, strict=True), 1):
        facts = {} if label else {"reason": "left_out", "detail": f"The class {row['label']!r} was left out."}
        if storage.is_local and label and not storage.touch(image_key(row["sha256"], row["ext"])):  # or `darkroom gc` might free it
            facts = {"reason": "not_found", "detail": "The image is not on the storage any more."}
        collection.add({**row, "label": label or ""}, facts)
        collection.tell("importing", done, len(rows))


def _examined(
    offers: list[Offer], storage: Storage, settings: Settings, check: Callable[[], None]
) -> Iterator[tuple[Offer, dict[str, Any]]]:
    """Each offer with what was found, in order, so that of equal files it is always the first that is kept. `check` raises Cancelled.

    Files are read here, and examined by processes of their own; only a few files a process are in memory.
    """
    reader = ItemReader(storage, settings.max_image_bytes, settings)
    ahead: deque[tuple[Offer, Future[dict[str, Any]]]] = deque()
    width = min(len(os.sched_getaffinity(0)), -(-len(offers) // FEW)) or 1
    with _Downloads(settings) as downloads, Examiners(settings, width) as examiners, ThreadPoolExecutor(width) as threads:
        most = AHEAD * width
        if any(_is_address(offer) for offer in offers):
            most = max(most, FETCHED_AHEAD)
        try:
            for offer in offers:
                coming = downloads.get(offer.locator) if _is_address(offer) else None
                ahead.append((offer, threads.submit(_look, offer, reader, examiners, coming)))
                if len(ahead) >= most:
                    first, future = ahead.popleft()
                    yield first, _result(future, check)
            for offer, future in ahead:
                yield offer, _result(future, check)
        finally:
            downloads.stop()  # or a thread would wait for what nobody wants any more
            threads.shutdown(cancel_futures=True)


def _result(future: Future[dict[str, Any]], check: Callable[[], None]) -> dict[str, Any]:
    """What was found, however long a server takes to answer; Cancelled is raised meanwhile."""
    while not wait([future], EVERY).done:
        check()
    return future.result()


def _is_address(offer: Offer) -> bool:
    return offer.locator.startswith(("http://", "https://"))


def _look(offer: Offer, reader: ItemReader, examiners: Examiners, coming: Future[bytes] | None) -> dict[str, Any]:
    try:
        data = coming.result() if coming else reader.read(offer.locator)
        facts = examiners.examine(data)
    except (BadImage, FetchError) as error:
        return {"reason": error.code, "detail": str(error)}
    if offer.sha256 and facts["sha256"] != offer.sha256 and not facts.get("reason"):
        return {**facts, "reason": "changed", "detail": "The bytes are not those that the table tells of."}
    return facts


class _Downloads:
    """Fetches addresses in a thread of its own, which is there once there is an address."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop: asyncio.AbstractEventLoop | None = None
        self._under_way: set[Future[bytes]] = set()

    def __enter__(self) -> Self:
        return self

    def get(self, url: str) -> Future[bytes]:
        """The bytes at an address, some time later; raises FetchError then."""
        if self._loop is None:
            fetcher = Fetcher(self._settings)
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
            self._thread.start()
            self._fetcher = asyncio.run_coroutine_threadsafe(fetcher.__aenter__(), self._loop).result()
        future = asyncio.run_coroutine_threadsafe(self._fetcher.get(url), self._loop)
        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)
        return future

    def stop(self) -> None:
        """Give up what is under way."""
        for future in list(self._under_way):
            future.cancel()

    def __exit__(self, *_: object) -> None:
        if self._loop is None:
            return
        asyncio.run_coroutine_threadsafe(self._fetcher.__aexit__(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
