"""One shard of a batch: read, decode, infer, write; and one single image.

Threads read and decode ahead of the network, also into the next shard. Whatever is wrong with an item becomes its row.
"""

import base64
import hashlib
import os
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from shared import models, portions, results
from shared.errors import DarkroomError
from shared.images import BadImage, Picture
from shared.items import ItemReader
from shared.settings import Settings
from shared.specs import ClassifySpec
from shared.storage import Storage, image_key
from worker.classifying import engines
from worker.classifying.decoding import look, plain_jpeg
from worker.classifying.engines import Engine
from worker.progress import Progress

ENGINES = 3  # that stay loaded
FETCH = 64  # addresses fetched at once


@dataclass
class Read:
    """An item as it came out of a decoding thread: what the network sees, or what was wrong."""

    item: dict[str, Any]
    pixels: Any = None  # (S, S, 3) uint8, on a GPU perhaps in its memory; dropped once the network has seen it
    jpeg: bytes = b""  # instead of pixels: what the GPU decodes
    sha256: str = ""
    width: int = 0
    height: int = 0
    ms: float = 0.0
    error_code: str = ""
    error: str = ""


@dataclass
class Warm:
    """What stays between two shards: loaded engines, decoding threads, open zips, and shards that are being read ahead."""

    storage: Storage
    settings: Settings
    cores: int = len(os.sched_getaffinity(0))
    engines: dict[tuple[str, int, str], Engine] = field(default_factory=dict)
    ahead: dict[tuple[str, str], "Future[Reading]"] = field(default_factory=dict)
    reader: tuple[str, ItemReader] | None = None  # of the batch in hand

    def __post_init__(self) -> None:
        self.decoding = ThreadPoolExecutor(self.cores, "decode")
        self.waiting = ThreadPoolExecutor(4 * self.cores + 8, "wait")  # files of an object store are waited for
        self.fetching = ThreadPoolExecutor(2, "fetch")
        self.unpacking = ThreadPoolExecutor(1, "unpack")

    def reader_of(self, job: str) -> ItemReader:
        """What reads the items of a batch; one a batch, for it keeps zips open."""
        if self.reader is None or self.reader[0] != job:
            self.reader = (job, ItemReader(self.storage, self.settings.max_image_bytes, self.settings))
        return self.reader[1]

    def engine(self, ref: str, precision: str) -> Engine:
        """The engine of a model version, loaded once. Raises NotFound, DarkroomError."""
        name, version = models.resolve(self.storage, ref)
        key = (name, version, precision)
        if key not in self.engines:
            paths = [self.storage.local(models.key(name, version, file)) for file in engines.files(precision)]
            while len(self.engines) >= ENGINES:
                del self.engines[next(iter(self.engines))]
            self.engines[key] = engines.load(paths[0].parent, precision, self.storage.cache)
        return self.engines[key]


def read_ahead(spec: ClassifySpec, job: str, shard: str, warm: Warm) -> None:
    """Begin to read a shard that will soon be asked for; it waits behind what is being read."""
    warm.ahead[job, shard] = warm.decoding.submit(Reading, spec, job, shard, warm)


def classify_shard(spec: ClassifySpec, job: str, shard: str, warm: Warm, progress: Progress) -> dict[str, Any]:
    """Label the items of a shard and write its file; returns its tally. A shard whose file exists is only counted."""
    storage = warm.storage
    try:
        if not storage.exists(results.shard_key(job, shard)):
            engine = warm.engine(spec.model, spec.precision)
            progress.update(phase="classifying", engine=engine.name)
            rows = _labelled(spec, job, shard, engine, warm, progress)
            storage.write(results.shard_key(job, shard), results.shard_bytes(rows, engine=engine.name), replace=False)
    finally:
        drop_ahead(job, shard, warm)
    return results.shard_tally(storage, job, shard)


def _labelled(spec: ClassifySpec, job: str, shard: str, engine: Engine, warm: Warm, progress: Progress) -> pa.Table:
    if (job, shard) not in warm.ahead:
        read_ahead(spec, job, shard, warm)
    reading = warm.ahead[job, shard].result()
    reads: list[Read] = []
    probabilities: list[np.ndarray] = []
    for batch in _unpacked(reading.batches(engine.batch, progress), engine, warm):
        progress.check()
        probabilities.append(_infer(batch, engine))
        reads += batch
    return _rows(reads, np.concatenate(probabilities), engine.classes, spec, models.resolve(warm.storage, spec.model))


def _unpacked(batches: Iterator[list[Read]], engine: Engine, warm: Warm) -> Iterator[list[Read]]:
    """Mini-batches with all their pixels: a GPU decodes the JPEGs of one while the network is busy with the one before."""
    if engine.unpack is None:
        yield from batches
        return
    before: Future[list[Read]] | None = None
    for batch in batches:
        coming = warm.unpacking.submit(_unpack, batch, engine, warm.settings.max_image_bytes)
        if before:
            yield before.result()
        before = coming
    if before:
        yield before.result()


def _unpack(batch: list[Read], engine: Engine, max_bytes: int) -> list[Read]:
    packed = [read for read in batch if read.jpeg]
    started = time.perf_counter()
    for read, pixels in zip(packed, engine.unpack([read.jpeg for read in packed]) if engine.unpack else (), strict=True):
        read.pixels, data, read.jpeg = pixels, read.jpeg, b""
        if pixels is None:
            _look(read, data, engine.image_size, False, max_bytes, engine.resize)
    for read in packed:
        read.ms += (time.perf_counter() - started) * 1000 / len(packed)
    return batch


def drop_ahead(job: str, shard: str, warm: Warm) -> None:
    """Stop reading a shard, unless it has been read to its end."""
    future = warm.ahead.pop((job, shard), None)
    if future is not None and not future.cancel() and future.exception() is None:
        future.result().close()


def write_off(spec: ClassifySpec, job: str, shard: str, storage: Storage) -> dict[str, Any]:
    """The row of the one item on which workers died again and again; returns the shard's tally."""
    if not storage.exists(results.shard_key(job, shard)):
        (item,) = portions.items(storage, job, *results.shard_range(shard))
        read = Read(item, error_code="worker_died", error="The worker died each time it looked at this item.")
        rows = _rows([read], np.zeros((0, 1), np.float32), [""], spec, models.resolve(storage, spec.model))
        storage.write(results.shard_key(job, shard), results.shard_bytes(rows), replace=False)
    return results.shard_tally(storage, job, shard)


def predict(ref: str, image: str, warm: Warm) -> dict[str, Any]:
    """Label one image, base64; `{label, probability, probabilities: {class: p}, model, version, ms}`. Raises BadImage, NotFound."""
    started = time.perf_counter()
    name, version = models.resolve(warm.storage, ref)
    engine = warm.engine(ref, "exact")
    pixels, _ = look(base64.b64decode(image), engine.image_size, True, warm.settings.max_image_bytes, engine.resize)
    probabilities = engine(engine.stack([pixels]))[0]
    best = int(probabilities.argmax())
    return {
        "label": engine.classes[best],
        "probability": float(probabilities[best]),
        "probabilities": {c: float(p) for c, p in zip(engine.classes, probabilities, strict=True)},
        "model": name,
        "version": version,
        "ms": round((time.perf_counter() - started) * 1000, 1),
    }


class Reading:
    """The items of a shard on their way through the decoding threads, in order, a few mini-batches ahead of the network."""

    def __init__(self, spec: ClassifySpec, job: str, shard: str, warm: Warm) -> None:
        name, version = models.resolve(warm.storage, spec.model)
        self.warm = warm
        info = models.info(warm.storage, name, version)
        self.size: int = info["image_size"]
        self.resize: str = info.get("resize", "squish")
        self.exact = spec.precision == "exact"
        self.packed = engines.unpacks(spec.precision)
        self.reader = warm.reader_of(job)
        self.items = portions.items(warm.storage, job, *results.shard_range(shard))
        self.fetched: dict[str, tuple[Future[list[Any]], int]] = {}
        self.submitted = 0
        self.futures: deque[Future[Read]] = deque()
        self._submit(2 * engines.CPU_BATCH)

    def batches(self, size: int, progress: Progress) -> Iterator[list[Read]]:
        """The items, `size` at a time. Says when all are read, and while they are awaited lets the unit be stopped."""
        batch: list[Read] = []
        self._submit(3 * size)
        told = False
        while self.futures:
            batch.append(self.futures.popleft().result())
            self._submit(3 * size)
            if not told and self.submitted == len(self.items) and len(self.futures) <= size:
                progress.have_read()
                told = True
            if len(batch) == size or not self.futures:
                yield batch
                batch = []

    def close(self) -> None:
        """Give up what is not read yet."""
        for future in self.futures:
            future.cancel()

    def _submit(self, most: int) -> None:
        """Keep `most` items in the hands of the threads."""
        while len(self.futures) < most and self.submitted < len(self.items):
            item = self.items[self.submitted]
            if _is_address(item) and item["item_id"] not in self.fetched:
                self._fetch(self.submitted)
            threads = self.warm.decoding if self._is_at_hand(item) else self.warm.waiting
            self.futures.append(threads.submit(self._read, item, self.fetched.pop(item["item_id"], None)))
            self.submitted += 1

    def _is_at_hand(self, item: dict[str, Any]) -> bool:
        """Whether reading an item keeps a core busy and does not wait; an address is fetched elsewhere before it is read."""
        place = item["locator"].partition(":")[0]
        return place != "bucket" and (self.warm.storage.is_local or place in {"file", "path", "http", "https", "error"})

    def _fetch(self, start: int) -> None:
        """Fetch the next addresses together; few at a time, for each may have as many bytes as the limit allows."""
        from worker.scraping.fetch import fetch_all

        chunk = [item for item in self.items[start : start + FETCH] if _is_address(item)]
        answers = self.warm.fetching.submit(fetch_all, [item["locator"] for item in chunk], self.warm.settings)
        for index, item in enumerate(chunk):
            self.fetched[item["item_id"]] = (answers, index)

    def _read(self, item: dict[str, Any], fetched: tuple["Future[list[Any]]", int] | None) -> Read:
        """Read and decode one item: in a thread."""
        storage, settings = self.warm.storage, self.warm.settings
        read = Read(item)
        try:
            data = _answer(fetched) if fetched else self.reader.read(item["locator"])
            started = time.perf_counter()
            read.sha256 = hashlib.sha256(data).hexdigest()
            if self.packed and not fetched and len(data) <= settings.max_image_bytes and (size := plain_jpeg(data)):
                (read.width, read.height), read.jpeg = size, data
            else:
                picture = _look(read, data, self.size, self.exact, settings.max_image_bytes, self.resize)
                if fetched and picture:  # the page shows it without fetching it again
                    key = image_key(read.sha256, picture.extension)
                    if not storage.touch(key):  # it counts as new: `darkroom gc` leaves it for the row that will refer to it
                        storage.write(key, data, durable=False, replace=False)
                    item["locator"] = f"image:{read.sha256}.{picture.extension}"
            read.ms = (time.perf_counter() - started) * 1000
        except BadImage as error:
            read.error_code, read.error = error.code, str(error)
        except DarkroomError as error:
            read.error_code, read.error = "unreadable", str(error)
        return read


def _look(read: Read, data: bytes, size: int, exact: bool, max_bytes: int, resize: str) -> Picture | None:
    """Decode an item here; the picture, or None when it cannot be decoded and the item says why."""
    try:
        read.pixels, picture = look(data, size, exact, max_bytes, resize)
    except BadImage as error:
        read.error_code, read.error = error.code, str(error)
        return None
    read.width, read.height = picture.width, picture.height
    return picture


def _is_address(item: dict[str, Any]) -> bool:
    return item["locator"].startswith(("http:", "https:"))  # type: ignore[no-any-return]


def _answer(fetched: tuple["Future[list[Any]]", int]) -> bytes:
    answers, index = fetched
    _, answer = answers.result()[index]
    if isinstance(answer, bytes):
        return answer
    raise BadImage(answer.code, str(answer))


def _infer(reads: list[Read], engine: Engine) -> np.ndarray:
    """(number of items that could be decoded, C) float32; the items forget their pixels."""
    good = [read for read in reads if read.pixels is not None]
    if not good:
        return np.zeros((0, len(engine.classes)), np.float32)
    started = time.perf_counter()
    probabilities = engine(engine.stack([read.pixels for read in good]))
    share = (time.perf_counter() - started) * 1000 / len(good)
    for read in good:
        read.ms += share
        read.pixels = None
    return probabilities


def _rows(reads: list[Read], probabilities: np.ndarray, classes: list[str], spec: ClassifySpec, model: tuple[str, int]) -> pa.Table:
    """The rows of a shard, `results.ROWS`, from its items and the (G, C) probabilities of the G that could be decoded."""
    good = np.array([not read.error_code for read in reads])
    which = pa.array(np.cumsum(good) - 1, mask=~good)  # an item's row in `probabilities`, or null
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, : max(spec.top_k, 2)]
    best = np.take_along_axis(probabilities, order, axis=1)
    k = min(spec.top_k, probabilities.shape[1])
    margin = best[:, 0] - best[:, 1] if probabilities.shape[1] > 1 else best[:, 0]
    entropy = -(probabilities * np.log(np.maximum(probabilities, 1e-12))).sum(axis=1)
    decision = np.where(best[:, 0] >= spec.review_below, "accept", "review")
    names = pa.array(classes)
    ends = np.concatenate([[0], np.cumsum(good * k)]).astype(np.int32)
    sizes = [(read.width or None, read.height or None) for read in reads]
    columns = {
        "item_id": [read.item["item_id"] for read in reads],
        "uri": [read.item["uri"] for read in reads],
        "locator": [read.item["locator"] for read in reads],
        "sha256": [read.sha256 for read in reads],
        "label": names.take(pa.array(order[:, 0])).take(which).fill_null(""),
        "probability": pa.array(best[:, 0]).take(which),
        "top_labels": pa.ListArray.from_arrays(ends, names.take(pa.array(order[:, :k].ravel()))),
        "top_probabilities": pa.ListArray.from_arrays(ends, pa.array(best[:, :k].ravel())),
        "margin": pa.array(margin).take(which),
        "entropy": pa.array(entropy.astype(np.float32)).take(which),
        "decision": pa.array(decision, pa.string()).take(which).fill_null(""),
        "error_code": [read.error_code for read in reads],
        "error": [read.error for read in reads],
        "model": [model[0]] * len(reads),
        "model_version": [model[1]] * len(reads),
        "width": [width for width, _ in sizes],
        "height": [height for _, height in sizes],
        "ms": [read.ms for read in reads],
    }
    return pa.table(columns, schema=results.ROWS)
