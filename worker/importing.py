"""Making a dataset from a folder per class, on the server or uploaded, from what a person decided about a batch or about its own images, or from an earlier version."""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from shared import edits, review
from shared.errors import DarkroomError, Invalid
from shared.images import BadImage
from shared.items import ItemReader, walk
from shared.settings import Settings
from shared.specs import EditsSource, ImportSpec, RestoreSource, ReviewSource, check_class_name
from shared.storage import Storage
from worker.examining import Collection, dropped, examine, published
from worker.progress import Progress

SPLITS = {"train", "valid", "val", "validation", "test"}
AHEAD = 4  # files in hand a thread: each may have as many bytes as the limit allows

Item = tuple[str, str, str]  # label, path below the root, locator


def import_dataset(spec: ImportSpec, job: str, storage: Storage, settings: Settings, progress: Progress) -> dict[str, Any]:
    """Make the next version of a dataset; returns dataset, version, images, dropped.

    An import into an existing dataset adds to it: the kept pictures of its newest version are carried over. A folder is a
    class, with all that lies below it; see `label_items` for folders around the classes. What a person decided about a
    batch has the label that was given, also where the dataset had another. Raises DarkroomError, with nothing published,
    for a folder name that cannot be a class, when a class has fewer than two usable pictures, and when decisions change nothing.
    """
    if done := published(storage, spec.dataset, job):
        return done
    progress.update(phase="listing")
    if isinstance(spec.source, EditsSource):
        return _edited(spec, job, storage, progress)
    if isinstance(spec.source, RestoreSource):
        return _restored(spec, spec.source.version, job, storage, progress)
    reviewed = isinstance(spec.source, ReviewSource)
    items = _decided(spec.source.batch, storage, progress) if reviewed else label_items(_listed(spec, storage, settings, progress))
    collection = Collection(storage, spec.dataset, progress)
    collection.check_labels(dict.fromkeys(label for label, _, _ in items if label))
    for looked_at, ((label, path, _), facts) in enumerate(_examined(items, storage, settings), 1):
        collection.add({"label": label, "name": path, "source": spec.source.kind}, facts, corrects=reviewed)
        collection.tell("importing", looked_at, len(items))
    if reviewed and not collection.kept.total():
        raise Invalid(_unchanged(spec.dataset, collection), field="source")
    return collection.publish(job, spec.source.model_dump(), note=spec.note, author=spec.author)


def _unchanged(name: str, collection: Collection) -> str:
    """Why what was reviewed makes no version."""
    here = collection.reasons.pop("duplicate", 0)
    others = ", ".join(f"{n} {code}" for code, n in collection.reasons.items())
    known = f"{here} of the images are in the dataset {name!r} already, with the labels they were given. " if here else ""
    return f"These decisions change nothing: {known}{f'Not usable: {others}. ' if others else ''}No version was made."


def label_items(pairs: list[tuple[str, str]]) -> list[Item]:
    """Say of which class each (path below the root, locator) is; "" for a file that lies in no class folder.

    The class is the first folder of the path, below any folders that merely hold the classes: a single folder around
    everything, as most zips have, and `train`, `valid`, `val`, `validation`, `test`, whose classes are merged. Raises
    Invalid, naming the folder, for a name that cannot be a class.
    """
    parts = [path.replace("\\", "/").split("/") for path, _ in pairs]
    depth = _class_depth(parts)
    names = {p[depth] for p in parts if len(p) > depth + 1}
    label_of = {name: _class_name(name) for name in sorted(names)}
    return [(label_of[p[depth]] if len(p) > depth + 1 else "", path, locator) for p, (path, locator) in zip(parts, pairs, strict=True)]


def _class_depth(parts: list[list[str]]) -> int:
    """How many folders lie around the class folders."""
    depth = 0
    merged = False
    while True:
        folders = {p[depth].lower() for p in parts if len(p) > depth + 1}
        deeper = any(len(p) > depth + 2 for p in parts)
        splits = folders <= SPLITS and not merged
        if not deeper or (len(folders) != 1 and not splits):
            return depth
        merged = merged or splits
        depth += 1


def _class_name(folder: str) -> str:
    try:
        return check_class_name(folder)
    except ValueError as error:
        shown = folder.encode("utf-8", "replace").decode()
        raise Invalid(f"The folder {shown[:120]!r} cannot be a class: {error}.", field="source") from None


def _listed(spec: ImportSpec, storage: Storage, settings: Settings, progress: Progress) -> list[tuple[str, str]]:
    """(path below the root, locator) of each file that looks like a picture. Raises Invalid, NotFound, Cancelled."""
    pairs = []
    for path, locator, _ in walk(spec.source, storage, settings):
        progress.check()
        pairs.append((path, locator))
    if not pairs:
        raise Invalid("There are no pictures in the folder.", field="source")
    return pairs


def _decided(batch: str, storage: Storage, progress: Progress) -> list[Item]:
    """What a person decided about a batch, the newest decision last: of equal pictures it is the one that counts."""
    found = []
    for decision in review.decisions(storage, batch):
        progress.check()
        found.append((decision["at"], (decision["given_label"], decision["uri"], decision["locator"])))
    if not found:
        raise Invalid(f"Nobody has reviewed a row of the batch {batch} yet.", field="source")
    return [item for _, item in sorted(found, key=lambda pair: pair[0])]


def _edited(spec: ImportSpec, job: str, storage: Storage, progress: Progress) -> dict[str, Any]:
    """The newest version with the edits that no version includes yet. Raises DarkroomError, with nothing published, when none changes anything."""
    collection = Collection(storage, spec.dataset, progress)
    entries = edits.unmade(storage, spec.dataset)
    changes = edits.changes_of(entries)
    if not changes:
        raise DarkroomError(f"No change of {spec.dataset} waits any more; perhaps another job has made the version meanwhile.")
    collection.change(changes)
    collection.tell("importing", len(changes), len(changes))
    return collection.publish(job, spec.source.model_dump(), entries=entries, note=spec.note, author=spec.author)


def _restored(spec: ImportSpec, version: int, job: str, storage: Storage, progress: Progress) -> dict[str, Any]:
    """The rows of an earlier version as the next one; its parent is the newest, whatever was published meanwhile. Raises NotFound."""
    collection = Collection(storage, spec.dataset, progress)
    collection.restore(version)
    collection.tell("importing", collection.kept.total(), collection.kept.total())
    return collection.publish(job, spec.source.model_dump(), note=spec.note, author=spec.author)


def _examined(items: list[Item], storage: Storage, settings: Settings) -> Iterator[tuple[Item, dict[str, Any]]]:
    """Each item with what was found, in order, so that of equal files it is always the first that is kept.

    Pillow lets go of the interpreter while it decodes, so threads are enough; only a few files a thread are in memory.
    """
    reader = ItemReader(storage, settings.max_image_bytes, settings)
    width = os.cpu_count() or 1
    ahead: deque[tuple[Item, Future[dict[str, Any]]]] = deque()
    with ThreadPoolExecutor(width) as threads:
        try:
            for item in items:
                ahead.append((item, threads.submit(_look, item, reader, storage, settings)))
                if len(ahead) >= AHEAD * width:
                    first, future = ahead.popleft()
                    yield first, future.result()
            for item, future in ahead:
                yield item, future.result()
        finally:
            threads.shutdown(cancel_futures=True)


def _look(item: Item, reader: ItemReader, storage: Storage, settings: Settings) -> dict[str, Any]:
    label, _, locator = item
    if not label:
        return {"reason": "no_class", "detail": "The file lies in no class folder."}
    try:
        return examine(reader.read(locator), storage, settings)
    except BadImage as error:
        return dropped(error)
