"""Making a dataset by searching image sources for each class.

Hits come from the sources as they are asked for, and are fetched to files, examined by processes of their own (worker/examiners.py), and noted in
a log on storage (worker/scraping/log.py): whoever goes on after a crash replays it and fetches only what is not in it.
"""

import asyncio
import itertools
import shutil
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared import sources as known_sources
from shared.errors import DarkroomError
from shared.images import BadImage
from shared.items import ItemReader
from shared.settings import Settings
from shared.specs import ClassQuery, ScrapeSpec
from shared.storage import Storage
from worker.examiner import dropped, too_small
from worker.examiners import Examiners
from worker.examining import EVERY, Collection, published
from worker.progress import Progress
from worker.scraping import bing, brave, commons, duckduckgo, flickr, folder, google, openverse, pexels, serpapi, unsplash, urls
from worker.scraping.fetch import Fetcher, FetchError
from worker.scraping.log import Log
from worker.scraping.sources import Hit, Search, SourceFailed, fits, query_of

SOURCES: dict[str, Search] = {
    "openverse": openverse.search,
    "commons": commons.search,
    "flickr": flickr.search,
    "brave": brave.search,
    "serpapi": serpapi.search,
    "google": google.search,
    "pexels": pexels.search,
    "unsplash": unsplash.search,
    "duckduckgo": duckduckgo.search,
    "bing": bing.search,
    "urls": urls.search,
    "folder": folder.search,
}
CONNECTIONS = 256
CLASSES_AT_ONCE = 8
HITS_AT_ONCE = 64  # of one class: being fetched or examined
LOOKED_AT = 5  # hits that are looked at for each image wanted, at most
STRIKES = 2  # classes for which a source fails before it is left out


@dataclass
class _Scrape:
    """What the parts of a running scrape share."""

    spec: ScrapeSpec
    settings: Settings
    collection: Collection
    log: Log
    folder: Path  # for what is fetched and not examined yet
    fetcher: Fetcher
    examiners: Examiners
    threads: ThreadPoolExecutor
    reader: ItemReader
    numbers: Iterator[int] = field(default_factory=itertools.count)
    failures: dict[str, str] = field(default_factory=dict)  # source -> sentence
    asked: dict[str, str] = field(default_factory=dict)  # source -> why it failed when it was last asked, empty if it did not
    strikes: Counter[str] = field(default_factory=Counter)
    missing: int = 0  # images that finished classes lack
    taken: set[tuple[str, str]] = field(default_factory=set)  # class and address of the hits that are decided or under way

    def __post_init__(self) -> None:
        self.taken |= {(origin["label"], where) for where, origin, _ in self.log.rows}

    def note(self, hit: Hit, facts: dict[str, Any]) -> bool:
        """A hit is decided: a row of the dataset, and of the log. Whether it was kept."""
        origin = _origin(hit)
        self.log.add(hit.image_url, origin, facts)
        return self.collection.add(origin, facts)


def scrape(spec: ScrapeSpec, job: str, storage: Storage, settings: Settings, progress: Progress) -> dict[str, Any]:
    """Make the next version of a dataset out of what the sources offer; returns dataset, version, images, dropped.

    Each class is filled from the first source, then the next, until `per_class` new images are kept. Every hit that was looked
    at is a row, kept or dropped. A scrape into an existing dataset adds to it. A source that fails is left out and the others
    go on. What an attempt that was killed has fetched is not fetched again. Raises DarkroomError, with nothing published, that names the classes
    with fewer than two images and says why sources failed.
    """
    if done := published(storage, spec.dataset, job):
        return done
    log = Log(storage, job)
    try:
        made = _scraped(spec, job, log, storage, settings, progress)
    except DarkroomError:  # the job has failed; who is merely told to stop (Cancelled) may have lost its worker, and another goes on
        log.delete()
        raise
    log.delete()
    return made


def _scraped(spec: ScrapeSpec, job: str, log: Log, storage: Storage, settings: Settings, progress: Progress) -> dict[str, Any]:
    collection = Collection(storage, spec.dataset, progress)
    labels = [c.name for c in spec.classes]
    collection.check_labels(labels)
    for _, origin, facts in log.rows:
        collection.add(origin, facts)
    collection.tell("searching", collection.kept.total(), len(labels) * spec.per_class, labels)
    folder = settings.cache / "scrapes" / job
    shutil.rmtree(folder, ignore_errors=True)  # of an attempt that was killed
    folder.mkdir(parents=True)
    try:
        failures = asyncio.run(_gather(spec, settings, collection, log, folder, storage, progress))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if collection.parent and not collection.kept:
        raise DarkroomError(" ".join(["No new images were found for any of the classes.", *failures, "No version was made."]))
    asked = spec.model_dump(
        exclude={"dataset": True, "note": True, "author": True, "classes": {"__all__": {"urls"}}}
    )  # the rows hold the addresses
    source = {"kind": "search", **asked, "failures": failures}
    return collection.publish(job, source, labels, failures, note=spec.note, author=spec.author)


async def _gather(
    spec: ScrapeSpec, settings: Settings, collection: Collection, log: Log, folder: Path, storage: Storage, progress: Progress
) -> list[str]:
    """Fill all classes; returns the sentences of the sources that failed. Raises Cancelled."""
    with Examiners(settings) as examiners, ThreadPoolExecutor(examiners.width) as threads:
        async with Fetcher(settings, concurrency=CONNECTIONS) as fetcher:
            reader = ItemReader(storage, settings.max_image_bytes, settings)
            run = _Scrape(spec, settings, collection, log, folder, fetcher, examiners, threads, reader)
            await _watched(_fill_all(run), lambda: _tell(run, progress))
    for name, sentence in run.asked.items():
        known_sources.note(storage, name, sentence)
    return list(dict.fromkeys(run.failures.values()))


async def _tell(run: _Scrape, progress: Progress) -> None:
    """Publish the counts, and keep the log."""
    labels = [c.name for c in run.spec.classes]
    run.collection.tell("downloading", run.collection.kept.total() + run.missing, len(labels) * run.spec.per_class, labels)
    if await asyncio.to_thread(run.log.write):
        progress.kept()


async def _watched(work: Awaitable[None], tell: Callable[[], Awaitable[None]]) -> None:
    """Await `work`, calling `tell` every now and then; whatever that raises, such as Cancelled, stops the work."""
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            await tell()
            await asyncio.wait({task}, timeout=EVERY)
        task.result()
        await tell()
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
    hand = _Hand()
    try:
        for name in run.spec.sources:
            async with aclosing(_hits(run, name, wanted)) as hits:
                async for hit in hits:
                    while hand.held and hand.held >= min(per_class - kept[wanted.name], HITS_AT_ONCE):
                        await hand.less()
                    if kept[wanted.name] >= per_class:
                        break
                    if (hit.label, hit.image_url) not in run.taken:
                        run.taken.add((hit.label, hit.image_url))
                        hand.take(_take(run, hit))
            await hand.empty()
            if kept[wanted.name] >= per_class:
                break
    finally:
        await hand.drop()
    run.missing += max(0, per_class - kept[wanted.name])


class _Hand:
    """Work under way; whatever a piece of it raises, `less` and `empty` raise."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._ended: list[asyncio.Task[None]] = []

    @property
    def held(self) -> int:
        """How much of it there is."""
        return len(self._tasks)

    def take(self, work: Coroutine[Any, Any, None]) -> None:
        """Begin one more."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._ended.append(task)
        self._changed.set()

    async def less(self) -> None:
        """Wait until at least one more has ended."""
        await self._changed.wait()
        self._changed.clear()
        while self._ended:
            self._ended.pop().result()

    async def empty(self) -> None:
        """Wait until all has ended."""
        while self._tasks or self._ended:
            await self.less()

    async def drop(self) -> None:
        """Stop what is under way, and wait until it has."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _hits(run: _Scrape, name: str, wanted: ClassQuery) -> AsyncGenerator[Hit]:
    """The hits of one source for one class; a source that fails ends them, and is left out when it fails again."""
    if run.strikes[name] >= STRIKES:
        return
    query = query_of(run.spec, wanted, run.spec.per_class * LOOKED_AT)
    try:
        async with aclosing(SOURCES[name](run.fetcher, query, run.settings)) as hits:
            async for hit in hits:
                run.asked[name] = ""
                if why := fits(hit, query):
                    run.collection.add(_origin(hit), {"reason": "licence", "detail": why})
                else:
                    yield hit
        run.asked[name] = ""
    except SourceFailed as error:
        run.failures[name] = run.asked[name] = str(error)
        run.strikes[name] += 1


async def _take(run: _Scrape, hit: Hit) -> None:
    """Fetch, examine and note one hit."""
    if run.spec.min_side > min(hit.width, hit.height) > 0:
        run.note(hit, dropped(too_small(hit.width, hit.height, run.spec.min_side)))
    elif run.note(hit, run.log.found.get(hit.image_url) or await _found(run, hit)) and hit.ping:
        await _tell_source(run, hit)


async def _found(run: _Scrape, hit: Hit) -> dict[str, Any]:
    """What there is at the address of a hit: columns of a manifest row. A locator of a file here is read from the source `folder` alone."""
    loop = asyncio.get_running_loop()
    path = run.folder / f"{next(run.numbers)}.part"
    picture: bytes | Path = b""
    try:
        if hit.source == "folder":
            picture = await loop.run_in_executor(run.threads, run.reader.read, hit.image_url)
        else:
            picture = await run.fetcher.fetch(hit.image_url, path)
        return await loop.run_in_executor(run.threads, run.examiners.examine, picture, run.spec.min_side)
    except (FetchError, BadImage) as error:
        return {"reason": error.code, "detail": str(error)}
    finally:
        if picture is path:
            path.unlink(missing_ok=True)


async def _tell_source(run: _Scrape, hit: Hit) -> None:
    """Tell a source that wants to know it that an image is used; what goes wrong stands with the version."""
    try:
        await unsplash.told(run.fetcher, hit, run.settings)
    except SourceFailed as error:
        run.failures[f"{hit.source}, told"] = str(error)


def _origin(hit: Hit) -> dict[str, Any]:
    """The columns of a manifest row that say where a hit is from."""
    return {
        "label": hit.label,
        "name": hit.title,
        "source": hit.source,
        "url": "" if hit.source == "folder" else hit.image_url,  # where a file lies on the server is nobody's business
        "page_url": hit.page_url,
        "licence": hit.licence,
        "licence_url": hit.licence_url,
        "creator": hit.creator,
        "creator_url": hit.creator_url,
        "attribution": hit.attribution,
        "query": hit.query,
    }
