"""Google's Programmable Search, for those who are customers already; it ends on 1 January 2027.

A query shows 99 hits, as the first and the number of an answer may be 100 together. One that has as many is asked again for each size of image that Google tells apart. Each answer of ten
costs a request of the quota.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from shared.settings import Settings
from worker.scraping.fetch import Fetcher
from worker.scraping.sources import Api, Hit, Query, ask, claim, configured, entries, part, pixels, ranked, text

TITLE = "Google"
PAGE = 10
DEEPEST = 100  # the first hit of an answer and their number, together
SIZES = ("large", "xlarge", "xxlarge", "huge", "medium", "small")
RIGHTS = {  # in the words of its own documentation of `rights`
    "commercial": "(cc_publicdomain|cc_attribute|cc_sharealike|cc_nonderived).-(cc_noncommercial)",
    "modification": "(cc_publicdomain|cc_attribute|cc_sharealike|cc_noncommercial).-(cc_nonderived)",
    "public": "cc_publicdomain",
}


def search(fetcher: Fetcher, query: Query, settings: Settings) -> AsyncGenerator[Hit]:
    """At most `query.limit` hits, page by page. Raises SourceFailed."""
    return ranked(query, _found(fetcher, query, settings))


async def _found(fetcher: Fetcher, query: Query, settings: Settings) -> AsyncGenerator[Hit]:
    configured("google", settings)
    licence = claim(TITLE, query)
    api = Api(TITLE, settings.google_url, keys={"key": settings.google_key}, setting="DARKROOM_GOOGLE_KEY")
    parameters = {"cx": settings.google_cx, "q": query.text, "searchType": "image", "safe": "active" if query.safe else "off"}
    if query.licence in RIGHTS:
        parameters["rights"] = RIGHTS[query.licence]
    if query.region:
        parameters |= {"gl": query.country, "hl": query.language}
    for size in ("", *SIZES):
        found = 0
        async with aclosing(_pages(fetcher, api, {**parameters, **({"imgSize": size} if size else {})})) as items:
            async for item in items:
                found += 1
                if image_url := text(item.get("link")):
                    yield _hit(item, image_url, licence, query)
        if not size and found < DEEPEST - 1:
            return


async def _pages(fetcher: Fetcher, api: Api, parameters: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
    """The items of a query, at most 99."""
    for start in range(1, DEEPEST, PAGE):
        answer = await ask(fetcher, api, {**parameters, "start": start, "num": min(PAGE, DEEPEST - start)})
        for item in entries(answer, "items"):  # there is no such list where nothing is found
            yield item
        if not entries(part(answer, "queries"), "nextPage"):
            return


def _hit(item: dict[str, Any], image_url: str, licence: str, query: Query) -> Hit:
    image = part(item, "image")
    return Hit(
        source="google",
        query=query.text,
        label=query.label,
        image_url=image_url,
        thumb_url=text(image.get("thumbnailLink")),
        page_url=text(image.get("contextLink")),
        title=text(item.get("title")),
        licence=licence,
        width=pixels(image.get("width")),
        height=pixels(image.get("height")),
    )
