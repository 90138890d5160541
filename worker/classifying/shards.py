"""One shard of a batch: read, decode, infer, write; and one single image.

Threads read and decode ahead of the network, so that it seldom waits. Whatever is wrong with an item becomes its row.
"""

import base64
import hashlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from shared import models, results
from shared.datasets import image_key
from shared.errors import DarkroomError
from shared.images import BadImage, decode
from shared.items import ItemReader
from shared.settings import Settings
from shared.specs import ClassifySpec
from shared.storage import Storage
from worker.classifying.batches import items_of
from worker.classifying.network import Network, load_network
from worker.progress import Progress

BATCH = 64  # images the network sees at once; halved when memory runs out
FETCH = 32  # addresses fetched at once
FILES = ("info.json", "model.safetensors")


@dataclass
class Read:
    """An item as it came out of a decoding thread: a picture for the network, or what was wrong."""

    item: dict[str, Any]
    tensor: torch.Tensor | None = None  # (3, S, S) uint8
    sha256: str = ""
    width: int = 0
    height: int = 0
    ms: float = 0.0
    error_code: str = ""
    error: str = ""


def network_of(ref: str, storage: Storage, warm: dict[str, Any]) -> Network:
    """The network of a model version, loaded once and kept in `warm` until another is asked for. Raises NotFound."""
    name, version = models.resolve(storage, ref)
    if warm.get("ref") != (name, version):
        warm.clear()
        paths = [storage.local(models.key(name, version, file)) for file in FILES]
        warm.update(network=load_network(paths[0].parent), ref=(name, version))
    return warm["network"]  # type: ignore[no-any-return]


def classify_shard(
    spec: ClassifySpec, job: str, shard: str, storage: Storage, settings: Settings, progress: Progress, warm: dict[str, Any]
) -> dict[str, Any]:
    """Label the items of a shard and write its file; returns its tally. A shard whose file exists is only counted."""
    if storage.exists(results.shard_key(job, shard)):
        return results.shard_tally(storage, job, shard)
    network = network_of(spec.model, storage, warm)
    name, version = models.resolve(storage, spec.model)
    items = items_of(storage, job, *results.shard_range(shard), spec.shard_size)
    progress.update(phase="classifying")
    rows: list[dict[str, Any]] = []
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for reads in _batches(_decoded(_fetched(items, storage, settings), network, storage, settings, threads), BATCH):
            progress.check()
            rows += _rows(reads, network, spec)
    for row in rows:
        row.update(model=name, model_version=version)
    storage.write(results.shard_key(job, shard), results.shard_bytes(rows), replace=False)
    return results.shard_tally(storage, job, shard)


def write_off(spec: ClassifySpec, job: str, shard: str, storage: Storage) -> dict[str, Any]:
    """The row of the one item on which workers died again and again; returns the shard's tally."""
    if not storage.exists(results.shard_key(job, shard)):
        name, version = models.resolve(storage, spec.model)
        (item,) = items_of(storage, job, *results.shard_range(shard), spec.shard_size)
        row = _row(Read(item, error_code="worker_died", error="The worker died each time it looked at this item."), None, None, spec)
        storage.write(results.shard_key(job, shard), results.shard_bytes([{**row, "model": name, "model_version": version}]), replace=False)
    return results.shard_tally(storage, job, shard)


def predict(ref: str, image: str, storage: Storage, settings: Settings, warm: dict[str, Any]) -> dict[str, Any]:
    """Label one image, base64; `{label, probability, probabilities: {class: p}, model, version, ms}`. Raises BadImage, NotFound."""
    started = time.perf_counter()
    name, version = models.resolve(storage, ref)
    network = network_of(ref, storage, warm)
    picture = decode(base64.b64decode(image), settings.max_image_bytes)
    probabilities = network.probabilities(network.prepare(picture.image)[None])[0]
    best = int(probabilities.argmax())
    return {
        "label": network.classes[best],
        "probability": float(probabilities[best]),
        "probabilities": {c: float(p) for c, p in zip(network.classes, probabilities, strict=True)},
        "model": name,
        "version": version,
        "ms": round((time.perf_counter() - started) * 1000, 1),
    }


def _fetched(items: list[dict[str, Any]], storage: Storage, settings: Settings) -> Iterator[tuple[dict[str, Any], bytes | BadImage | None]]:
    """The items in order, each with its bytes if it is an address; any other is read later, in a thread."""
    if not items[0]["locator"].startswith(("http:", "https:")):
        yield from ((item, None) for item in items)
        return
    from worker.scraping.fetch import fetch_all

    # a few at a time: an item may have as many bytes as the limit allows
    for start in range(0, len(items), FETCH):
        chunk = items[start : start + FETCH]
        answers = dict(fetch_all([item["locator"] for item in chunk], settings))
        for index, item in enumerate(chunk):
            answer = answers[index]
            yield item, answer if isinstance(answer, bytes) else BadImage(answer.code, str(answer))


def _decoded(
    sources: Iterator[tuple[dict[str, Any], bytes | BadImage | None]],
    network: Network,
    storage: Storage,
    settings: Settings,
    threads: ThreadPoolExecutor,
) -> Iterator[Read]:
    """Decode in threads, in order, at most two mini-batches ahead."""
    reader = ItemReader(storage, settings.max_image_bytes)
    ahead: list[Future[Read]] = []
    for item, data in sources:
        ahead.append(threads.submit(_read, item, data, reader, network, storage, settings))
        if len(ahead) >= 2 * BATCH:
            yield ahead.pop(0).result()
    for future in ahead:
        yield future.result()


def _read(
    item: dict[str, Any], data: bytes | BadImage | None, reader: ItemReader, network: Network, storage: Storage, settings: Settings
) -> Read:
    started = time.perf_counter()
    read = Read(item)
    try:
        if isinstance(data, BadImage):
            raise data
        fetched = data is not None
        data = reader.read(item["locator"]) if data is None else data
        read.sha256 = hashlib.sha256(data).hexdigest()
        picture = decode(data, settings.max_image_bytes)
        read.width, read.height = picture.width, picture.height
        read.tensor = network.prepare(picture.image)
        if fetched:  # the page shows it without fetching it again
            key = image_key(read.sha256, picture.extension)
            storage.write(key, data, durable=False, replace=False)
            item["locator"] = f"image:{read.sha256}.{picture.extension}"
    except BadImage as error:
        read.error_code, read.error = error.code, str(error)
    except DarkroomError as error:
        read.error_code, read.error = "unreadable", str(error)
    read.ms = (time.perf_counter() - started) * 1000
    return read


def _batches(reads: Iterator[Read], size: int) -> Iterator[list[Read]]:
    while batch := list(islice(reads, size)):
        yield batch


def _rows(reads: list[Read], network: Network, spec: ClassifySpec) -> list[dict[str, Any]]:
    """The rows of a mini-batch, in its order."""
    good = [read for read in reads if read.tensor is not None]
    started = time.perf_counter()
    probabilities = iter(_infer(torch.stack([read.tensor for read in good]), network)) if good else iter(())
    share = (time.perf_counter() - started) * 1000 / max(len(good), 1)
    rows = []
    for read in reads:
        if read.tensor is not None:
            read.ms += share
        rows.append(_row(read, next(probabilities) if read.tensor is not None else None, network.classes, spec))
    return rows


def _infer(batch: torch.Tensor, network: Network) -> np.ndarray:
    """(N, 3, S, S) uint8 -> (N, C) float32; in halves when memory runs out. Raises DarkroomError when one image is too much."""
    try:
        return network.probabilities(batch)
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise DarkroomError("The device has not enough memory for a single image of this model.") from None
    torch.cuda.empty_cache()
    half = len(batch) // 2
    return np.concatenate([_infer(batch[:half], network), _infer(batch[half:], network)])


def _row(read: Read, probabilities: np.ndarray | None, classes: list[str] | None, spec: ClassifySpec) -> dict[str, Any]:
    row: dict[str, Any] = {
        **read.item,
        "sha256": read.sha256,
        "label": "",
        "probability": None,
        "top_labels": [],
        "top_probabilities": [],
        "margin": None,
        "entropy": None,
        "decision": "",
        "error_code": read.error_code,
        "error": read.error,
        "width": read.width or None,
        "height": read.height or None,
        "ms": read.ms,
    }
    if probabilities is None or classes is None:
        return row
    order = np.argsort(-probabilities, kind="stable")
    top = order[: spec.top_k]
    best = float(probabilities[order[0]])
    return row | {
        "label": classes[order[0]],
        "probability": best,
        "top_labels": [classes[i] for i in top],
        "top_probabilities": [float(probabilities[i]) for i in top],
        "margin": best - float(probabilities[order[1]]) if len(order) > 1 else best,
        "entropy": float(-(probabilities * np.log(np.maximum(probabilities, 1e-12))).sum()),
        "decision": "accept" if best >= spec.review_below else "review",
    }
