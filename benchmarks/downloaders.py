"""One way of getting pictures from a list of addresses, alone in a process of its own: `python -m benchmarks.downloaders NAME FOLDER`.

FOLDER holds urls.txt, an address a line. The last line on standard output is JSON: `seconds`, `files` (how many pictures are there afterwards), and
`peak_mb`, the most memory that the processes held, in millions of bytes. Libraries are imported before the clock starts.
"""

import argparse
import asyncio
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONNECTIONS = 256
CLASSES = 5


def download_images(urls: list[str], folder: Path) -> Callable[[], int]:
    """fastai's, with its defaults, but for the limit on how many."""
    from fastai.vision.utils import download_images as download

    def run() -> int:
        download(folder / "files", urls=urls, max_pics=len(urls))
        return sum(1 for path in (folder / "files").iterdir() if path.stat().st_size)

    return run


def fetcher(urls: list[str], folder: Path) -> Callable[[], int]:
    """Darkroom's downloader alone: files in a folder."""
    from worker.scraping.fetch import Fetcher

    async def fetch() -> None:
        async with Fetcher(_settings(folder), concurrency=CONNECTIONS) as client:
            await asyncio.gather(*(one(client, url, folder / "files" / f"{n}.jpg") for n, url in enumerate(urls)))

    async def one(client: Fetcher, url: str, path: Path) -> None:
        _keep(await client.fetch(url, path), path)

    def run() -> int:
        (folder / "files").mkdir()
        asyncio.run(fetch())
        return sum(1 for path in (folder / "files").iterdir() if path.stat().st_size)

    return run


def _keep(got: bytes | Path, path: Path) -> None:
    if isinstance(got, bytes):
        path.write_bytes(got)


def scrape(urls: list[str], folder: Path) -> Callable[[], int]:
    """Darkroom's scrape of these addresses: fetched, decoded in full, hashed, measured, and published as a dataset version."""
    from shared.specs import parse
    from shared.storage import Storage
    from worker.progress import Progress
    from worker.scraping import scrape as gather

    settings = _settings(folder)
    each = len(urls) // CLASSES
    classes = [{"name": f"class {n}", "urls": urls[n * each : (n + 1) * each]} for n in range(CLASSES)]
    order = parse("scrape", {"dataset": "pictures", "classes": classes, "per_class": each, "sources": ["urls"]})

    def run() -> int:
        made: dict[str, Any] = gather(
            order,
            "bench",
            Storage(settings.storage, settings.cache),
            settings,
            Progress(lambda _: None),  # type: ignore[arg-type]
        )
        return int(made["images"])

    return run


def _settings(folder: Path) -> Any:
    from shared.settings import Settings

    return Settings(storage=str(folder / "store"), cache=folder / "cache", fetch_allow=["127.0.0.0/8"])


CONTENDERS = {"download_images": download_images, "fetcher": fetcher, "scrape": scrape}


def main() -> None:
    """Download once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=CONTENDERS)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    run = CONTENDERS[args.name]((args.folder / "urls.txt").read_text().split(), args.folder)
    started = time.perf_counter()
    files = run()
    seconds = time.perf_counter() - started
    # of the largest of the processes that it had waited for; the examiners are alike, and as many as cores
    held = [resource.getrusage(who).ru_maxrss * 1024 / 1e6 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(json.dumps({"seconds": seconds, "files": files, "peak_mb": held[0] + 2 * held[1]}))


if __name__ == "__main__":
    main()
