"""Unsplash: stock photographs, all under its own licence (https://unsplash.com/documentation).

It wants to be told of each photograph that is used: `told` asks the address that came with the hit (`Hit.ping`), once the image
is kept. Those requests count as others do, and a demonstration key has 50 an hour: it is a poor source of large datasets.
"""

from collections.abc import AsyncGenerator
from typing import Any

from yarl import URL

from shared.settings import Settings
from worker.scraping.fetch import Fetcher
from worker.scraping.sources import Api, Hit, Query, SourceFailed, ask, ask_text, configured, listed, part, pixels, ranked, text

TITLE = "Unsplash"
PAGE = 30
LICENCE = ("Unsplash Licence", "https://unsplash.com/license")
RATES = ((50, 3600.0),)


def search(fetcher: Fetcher, query: Query, settings: Settings) -> AsyncGenerator[Hit]:
    """At most `query.limit` hits, page by page; none when the public domain is asked for. Raises SourceFailed."""
    return ranked(query, _found(fetcher, query, settings))


async def told(fetcher: Fetcher, hit: Hit, settings: Settings) -> None:
    """Tell Unsplash that a photograph is used. Raises SourceFailed."""
    if not _same_origin(hit.ping, settings.unsplash_url):  # the key goes nowhere else
        raise SourceFailed("Unsplash was not told of a photograph that is used: the address for it is not one of Unsplash.")
    await ask_text(fetcher, _api(hit.ping, settings), {})


def _same_origin(one: str, other: str) -> bool:
    try:
        return URL(one).origin() == URL(other).origin()
    except ValueError:  # no address at all
        return False


def _api(url: str, settings: Settings) -> Api:
    key = settings.unsplash_key
    return Api(TITLE, url, {"Authorization": f"Client-ID {key}"}, secrets=(key,), rates=RATES, setting="DARKROOM_UNSPLASH_KEY")


async def _found(fetcher: Fetcher, query: Query, settings: Settings) -> AsyncGenerator[Hit]:
    configured("unsplash", settings)
    if query.licence == "public":
        return
    api = _api(settings.unsplash_url, settings)
    parameters = {"query": query.text, "per_page": PAGE, "content_filter": "high" if query.safe else "low"}
    if query.language:
        parameters["lang"] = query.language
    page, pages = 1, 1
    while page <= pages:
        answer = await ask(fetcher, api, {**parameters, "page": page})
        for photo in listed(api, answer, "results"):
            if image_url := text(part(photo, "urls").get("full")):
                yield _hit(photo, image_url, query)
        page, pages = page + 1, pixels(answer.get("total_pages"))


def _hit(photo: dict[str, Any], image_url: str, query: Query) -> Hit:
    user, links = part(photo, "user"), part(photo, "links")
    creator = text(user.get("name"))
    return Hit(
        source="unsplash",
        query=query.text,
        label=query.label,
        image_url=image_url,
        thumb_url=text(part(photo, "urls").get("thumb")),
        page_url=text(links.get("html")),
        title=text(photo.get("description")) or text(photo.get("alt_description")),
        creator=creator,
        creator_url=text(part(user, "links").get("html")),
        licence=LICENCE[0],
        licence_url=LICENCE[1],
        attribution=f"Photo by {creator} on Unsplash" if creator else "Photo on Unsplash",
        width=pixels(photo.get("width")),
        height=pixels(photo.get("height")),
        ping=text(links.get("download_location")),
    )
