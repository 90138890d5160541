"""Pexels: stock photographs, all under its own licence (https://www.pexels.com/api/documentation/)."""

from collections.abc import AsyncGenerator
from typing import Any

from shared.settings import Settings
from worker.scraping.fetch import Fetcher
from worker.scraping.sources import Api, Hit, Query, ask, configured, listed, part, pixels, ranked, text

TITLE = "Pexels"
PAGE = 80
PAGES = 100  # answers of one query, in case it never ends
LICENCE = ("Pexels Licence", "https://www.pexels.com/license/")
RATES = ((200, 3600.0),)  # and 20,000 a month


def search(fetcher: Fetcher, query: Query, settings: Settings) -> AsyncGenerator[Hit]:
    """At most `query.limit` hits, page by page; none when the public domain is asked for. Raises SourceFailed."""
    return ranked(query, _found(fetcher, query, settings))


async def _found(fetcher: Fetcher, query: Query, settings: Settings) -> AsyncGenerator[Hit]:
    configured("pexels", settings)
    if query.licence == "public":
        return
    key = settings.pexels_key
    api = Api(TITLE, settings.pexels_url, {"Authorization": key}, secrets=(key,), rates=RATES, setting="DARKROOM_PEXELS_KEY")
    for page in range(1, PAGES + 1):
        answer = await ask(fetcher, api, {"query": query.text, "page": page, "per_page": PAGE})
        for photo in listed(api, answer, "photos"):
            if image_url := text(part(photo, "src").get("original")):
                yield _hit(photo, image_url, query)
        if not answer.get("next_page"):
            return


def _hit(photo: dict[str, Any], image_url: str, query: Query) -> Hit:
    creator = text(photo.get("photographer"))
    return Hit(
        source="pexels",
        query=query.text,
        label=query.label,
        image_url=image_url,
        thumb_url=text(part(photo, "src").get("medium")),
        page_url=text(photo.get("url")),
        title=text(photo.get("alt")),
        creator=creator,
        creator_url=text(photo.get("photographer_url")),
        licence=LICENCE[0],
        licence_url=LICENCE[1],
        attribution=f"Photo by {creator} on Pexels" if creator else "Photo on Pexels",
        width=pixels(photo.get("width")),
        height=pixels(photo.get("height")),
    )
