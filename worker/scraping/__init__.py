"""Making a dataset by searching image sources for each class."""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from shared.errors import DarkroomError
from shared.settings import Settings
from shared.specs import ClassQuery, ScrapeSpec
from shared.storage import Storage
from worker.examining import EVERY, Collection, dropped, examine, published, too_small
from worker.progress import Progress
from worker.scraping import commons, openverse
from worker.scraping.fetch import Fetcher, FetchError
from worker.scraping.sources import Hit, Query, Search, SourceFailed

SOURCES: dict[str, Search] = {"openverse": openverse.search, "commons": commons.search}
CLASSES_AT_ONCE = 4
HITS_AT_ONCE = 12  # of one class
LOOKED_AT = 5  # hits that are looked at for each image wanted, at most
STRIKES = 2  # classes for which a source fails before it is left out


@dataclass
class _Scrape:
    """What the parts of a running scrape share."""

    spec: ScrapeSpec
    storage: Storage
    settings: Settings
    collection: Collection
    fetcher: Fetcher
    threads: ThreadPoolExecutor
    failures: dict[str, str] = field(default_factory=dict)  # source -> sentence
    strikes: Counter[str] = field(default_factory=Counter)
    missing: int = 0  # images that finished classes lack


def scrape(spec: ScrapeSpec, job: str, storage: Storage, settings: Settings, progress: Progress) -> dict[str, Any]:
    """Make the next version of a dataset out of what the sources offer; returns dataset, version, images, dropped.

    Each class is filled from the first source, then the next, until `per_class` new images are kept. Every hit that was looked
    at is a row, kept or dropped. A scrape into an existing dataset adds to it. A source that fails is left out and the others
    go on. Raises DarkroomError, with nothing published, that names the classes with fewer than two images and says why
    sources failed.
    """
    if done := published(storage, spec.dataset, job):
        return done
    collection = Collection(storage, spec.dataset, progress)
    labels = [c.name for c in spec.classes]
    collection.check_labels(labels)
    collection.tell("searching", 0, len(labels) * spec.per_class, labels)
    failures = asyncio.run(_gather(spec, storage, settings, collection))
    if collection.parent and not collection.kept:
        raise DarkroomError(" ".join(["No new images were found for any of the classes.", *failures, "No version was made."]))
    source = {"kind": "search", **spec.model_dump(exclude={"dataset", "note", "author"}), "failures": failures}
    return collection.publish(job, source, labels, failures, note=spec.note, author=spec.author)


async def _gather(spec: ScrapeSpec, storage: Storage, settings: Settings, collection: Collection) -> list[str]:
    """Fill all classes; returns the sentences of the sources that failed. Raises Cancelled."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        async with Fetcher(settings) as fetcher:
            run = _Scrape(spec, storage, settings, collection, fetcher, threads)
            await _watched(_fill_all(run), lambda: _tell(run))
    return list(dict.fromkeys(run.failures.values()))


def _tell(run: _Scrape) -> None:
    labels = [c.name for c in run.spec.classes]
    run.collection.tell("downloading", run.collection.kept.total() + run.missing, len(labels) * run.spec.per_class, labels)


async def _watched(work: Awaitable[None], tell: Callable[[], None]) -> None:
    """Await `work`, calling `tell` every now and then; whatever that raises, such as Cancelled, stops the work."""
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            tell()
            await asyncio.wait({task}, timeout=EVERY)
        task.result()
        tell()
    finally:
        task.cancel()
        await asyncio.wait({task})


async def _fill_all(run: _Scrape) -> None:
    gate = asyncio.Semaphore(CLASSES_AT_ONCE)

    async def fill(wanted: ClassQuery) -> None:
        async with gate:
            await _fill(run, wanted)

    await _all_or_nothing([fill(wanted) for wanted in run.spec.classes])


async def _all_or_nothing(works: list[Awaitable[None]]) -> None:
    """Await all; when one raises, cancel the others and raise the same."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _fill(run: _Scrape, wanted: ClassQuery) -> None:
    """Fill one class: as many hits are in hand as images are still missing, so that none is fetched in vain."""
    per_class, kept = run.spec.per_class, run.collection.kept
    pending: set[asyncio.Task[None]] = set()
    try:
        for name in run.spec.sources:
            async with aclosing(_hits(run, name, wanted)) as hits:
                async for hit in hits:
                    while pending and len(pending) >= min(per_class - kept[wanted.name], HITS_AT_ONCE):
                        pending = await _one_done(pending)
                    if kept[wanted.name] >= per_class:
                        break
                    pending.add(asyncio.create_task(_take(run, hit)))
            while pending:
                pending = await _one_done(pending)
            if kept[wanted.name] >= per_class:
                break
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
    run.missing += max(0, per_class - kept[wanted.name])


async def _one_done(pending: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    return pending


async def _hits(run: _Scrape, name: str, wanted: ClassQuery) -> AsyncGenerator[Hit]:
    """The hits of one source for one class; a source that fails ends them, and is left out when it fails again."""
    if run.strikes[name] >= STRIKES:
        return
    limit = run.spec.per_class * LOOKED_AT
    try:
        async with aclosing(SOURCES[name](run.fetcher, Query(wanted.query or wanted.name, wanted.name, limit), run.settings)) as hits:
            async for hit in hits:
                yield hit
    except SourceFailed as error:
        run.failures[name] = str(error)
        run.strikes[name] += 1


async def _take(run: _Scrape, hit: Hit) -> None:
    """Fetch, examine and record one hit."""
    if run.spec.min_side > min(hit.width, hit.height) > 0:
        run.collection.add(_origin(hit), dropped(too_small(hit.width, hit.height, run.spec.min_side)))
        return
    try:
        data = await run.fetcher.get(hit.image_url)
    except FetchError as error:
        run.collection.add(_origin(hit), {"reason": error.code, "detail": str(error)})
        return
    loop = asyncio.get_running_loop()
    facts = await loop.run_in_executor(run.threads, examine, data, run.storage, run.settings, run.spec.min_side)
    run.collection.add(_origin(hit), facts)


def _origin(hit: Hit) -> dict[str, Any]:
    """The columns of a manifest row that say where a hit is from."""
    return {
        "label": hit.label,
        "name": hit.title,
        "source": hit.source,
        "url": hit.image_url,
        "page_url": hit.page_url,
        "licence": hit.licence,
        "licence_url": hit.licence_url,
        "creator": hit.creator,
        "query": hit.query,
    }
