"""Addresses of images that the order names below a class."""

from collections.abc import AsyncGenerator

from shared.settings import Settings
from worker.scraping.fetch import Fetcher
from worker.scraping.sources import UNKNOWN, Hit, Query, ranked


def search(fetcher: Fetcher, query: Query, settings: Settings) -> AsyncGenerator[Hit]:
    """At most `query.limit` of the addresses of the class, in their order."""
    return ranked(query, _found(query))


async def _found(query: Query) -> AsyncGenerator[Hit]:
    for url in query.urls:
        yield Hit(source="urls", query="", label=query.label, image_url=url, licence=UNKNOWN)
