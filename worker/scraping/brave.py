"""Brave: an image search of its own index (https://api-dashboard.search.brave.com). One answer a query: it has no pages."""

from collections.abc import AsyncGenerator
from typing import Any

from shared.settings import Settings
from worker.scraping.fetch import Fetcher
from worker.scraping.sources import UNKNOWN, Api, Hit, Query, SourceFailed, ask, configured, listed, part, pixels, ranked, text

TITLE = "Brave"
MOST = 200  # hits of a query
LONGEST = 400  # characters of a query


def search(fetcher: Fetcher, query: Query, settings: Settings) -> AsyncGenerator[Hit]:
    """At most `query.limit` hits, and never more than 200. Raises SourceFailed, also for a licence filter: it has none."""
    return ranked(query, _found(fetcher, query, settings))


async def _found(fetcher: Fetcher, query: Query, settings: Settings) -> AsyncGenerator[Hit]:
    configured("brave", settings)
    if query.licence != "any":
        raise SourceFailed(f"Brave names no licences and cannot filter by them, so it was not asked for `{query.licence}`.")
    key = settings.brave_key
    api = Api(TITLE, settings.brave_url, {"X-Subscription-Token": key}, secrets=(key,), setting="DARKROOM_BRAVE_KEY")
    region = {"country": query.country.upper(), "search_lang": query.language} if query.region else {}
    parameters = {"q": query.text[:LONGEST], "count": min(MOST, query.limit), "safesearch": "strict" if query.safe else "off", **region}
    for result in listed(api, await ask(fetcher, api, parameters), "results"):
        if hit := _hit(result, query):
            yield hit


def _hit(result: dict[str, Any], query: Query) -> Hit | None:
    properties = part(result, "properties")
    image_url = text(properties.get("url"))
    if not image_url:
        return None
    return Hit(
        source="brave",
        query=query.text,
        label=query.label,
        image_url=image_url,
        thumb_url=text(part(result, "thumbnail").get("src")),
        page_url=text(result.get("url")),
        title=text(result.get("title")),
        licence=UNKNOWN,
        width=pixels(properties.get("width")),
        height=pixels(properties.get("height")),
    )
