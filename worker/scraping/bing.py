"""An image search that answers as Bing's version 7 did, at an address of whoever runs this installation.

Microsoft ended its own in August 2025; who still has a service of the same shape names it with `bing_url`.
"""

from collections.abc import AsyncGenerator
from typing import Any

from shared.settings import Settings
from worker.scraping.fetch import Fetcher
from worker.scraping.sources import Api, Hit, Query, ask, claim, configured, listed, pixels, ranked, text

TITLE = "Bing v7"
PAGE = 150
PAGES = 20  # answers of one query, in case it never ends
DEEPEST = PAGE * PAGES
FILTERS = {"commercial": "ShareCommercially", "modification": "Modify", "public": "Public"}


def search(fetcher: Fetcher, query: Query, settings: Settings) -> AsyncGenerator[Hit]:
    """At most `query.limit` hits, page by page. Raises SourceFailed."""
    return ranked(query, _found(fetcher, query, settings))


async def _found(fetcher: Fetcher, query: Query, settings: Settings) -> AsyncGenerator[Hit]:
    configured("bing", settings)
    licence = claim(TITLE, query)
    parameters = {"q": query.text, "count": PAGE, "imageType": "photo", "safeSearch": "Strict" if query.safe else "Off"}
    parameters |= {"minWidth": query.min_side, "minHeight": query.min_side}
    if query.region:
        parameters["mkt"] = f"{query.language}-{query.country.upper()}"
    if query.licence in FILTERS:
        parameters["license"] = FILTERS[query.licence]
    offset, last = 0, -1
    api = _api(settings)
    for _ in range(PAGES):
        answer = await ask(fetcher, api, {**parameters, "offset": offset})
        results = listed(api, answer, "value")
        for result in results:
            if image_url := text(result.get("contentUrl")):
                yield _hit(result, image_url, licence, query)
        last, offset = offset, pixels(answer.get("nextOffset"))
        if not results or offset <= last or offset >= (pixels(answer.get("totalEstimatedMatches")) or DEEPEST):
            return


def _api(settings: Settings) -> Api:
    key = settings.bing_key
    headers = {"Ocp-Apim-Subscription-Key": key} if key else {}
    return Api(TITLE, settings.bing_url, headers, secrets=(key,), setting="DARKROOM_BING_KEY" if key else "")


def _hit(result: dict[str, Any], image_url: str, licence: str, query: Query) -> Hit:
    return Hit(
        source="bing",
        query=query.text,
        label=query.label,
        image_url=image_url,
        thumb_url=text(result.get("thumbnailUrl")),
        page_url=text(result.get("hostPageUrl")),
        title=text(result.get("name")),
        licence=licence,
        width=pixels(result.get("width")),
        height=pixels(result.get("height")),
    )
