"""Openverse: openly licensed images of many collections (https://api.openverse.org/v1/)."""

from collections.abc import AsyncGenerator
from typing import Any

from shared.settings import Settings
from worker.scraping.fetch import Fetcher
from worker.scraping.sources import Hit, Query, SourceFailed, ask, entries, pixels, text

PAGE = 20  # the most without a key; more is answered 401
DEEPEST = 240  # hits of a query, with or without a key


async def search(fetcher: Fetcher, query: Query, settings: Settings) -> AsyncGenerator[Hit]:
    """At most `query.limit` hits (and never more than 240), page by page. Raises SourceFailed."""
    rank = 0
    for page in range(1, DEEPEST // PAGE + 1):
        answer = await ask(fetcher, "Openverse", settings.openverse_url, {"q": query.text[:200], "page": page, "page_size": PAGE})
        if not isinstance(answer.get("results"), list):
            raise SourceFailed("Openverse could not be searched: its answer holds no results.")
        for result in entries(answer, "results"):
            if rank >= query.limit:
                return
            if image_url := text(result.get("url")):
                yield _hit(result, image_url, query, rank)
                rank += 1
        if not answer["results"] or page >= (pixels(answer.get("page_count")) or DEEPEST):
            return


def _hit(result: dict[str, Any], image_url: str, query: Query, rank: int) -> Hit:
    return Hit(
        source="openverse",
        query=query.text,
        label=query.label,
        rank=rank,
        image_url=image_url,
        thumb_url=text(result.get("thumbnail")),
        page_url=text(result.get("foreign_landing_url")),
        title=text(result.get("title")),
        creator=text(result.get("creator")),
        licence=_licence(text(result.get("license")), text(result.get("license_version"))),
        licence_url=text(result.get("license_url")),
        width=pixels(result.get("width")),
        height=pixels(result.get("height")),
    )


def _licence(code: str, version: str) -> str:
    """by-sa, 2.0 -> CC BY-SA 2.0, as Creative Commons writes it."""
    names = {"cc0": "CC0", "pdm": "Public Domain Mark", "": ""}
    return f"{names.get(code, f'CC {code.upper()}')} {version}".strip()
