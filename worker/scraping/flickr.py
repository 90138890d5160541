"""Flickr: photographs of its members (https://www.flickr.com/services/api/).

Which number stands for which licence is read from Flickr itself, as it adds some. After 4,000 hits of a query it repeats them;
such a query is asked again for each licence.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from shared.settings import Settings
from worker.scraping.fetch import Fetcher
from worker.scraping.sources import (
    Api,
    Hit,
    Query,
    SourceFailed,
    ask,
    attribution,
    configured,
    entries,
    licence_name,
    once,
    part,
    pixels,
    ranked,
    said_of,
    text,
    uses,
)

TITLE = "Flickr"
PAGE = 500
DEEPEST = 4000  # hits of a query, after which it repeats them
SIZES = ("l", "m", "s")  # the largest that a hit has is taken: 1024, 500 or 240 pixels
RATES = ((3600, 3600.0),)

Licences = dict[str, tuple[str, str]]  # number -> name, address


def search(fetcher: Fetcher, query: Query, settings: Settings) -> AsyncGenerator[Hit]:
    """At most `query.limit` hits, page by page. Raises SourceFailed."""
    return ranked(query, _found(fetcher, query, settings))


async def _found(fetcher: Fetcher, query: Query, settings: Settings) -> AsyncGenerator[Hit]:
    configured("flickr", settings)
    api = Api(TITLE, settings.flickr_url, keys={"api_key": settings.flickr_key}, rates=RATES, setting="DARKROOM_FLICKR_KEY")
    licences: Licences = await once(fetcher, "the licences of Flickr", lambda: _licences(fetcher, api))
    numbers = [number for number, licence in licences.items() if _suits(licence, query)]
    if not numbers:
        return
    found = 0
    async with aclosing(_pages(fetcher, api, query, [] if len(numbers) == len(licences) else numbers, licences)) as hits:
        async for hit in hits:
            found += 1
            if hit:
                yield hit
    if found < DEEPEST:
        return
    for number in numbers:
        async with aclosing(_pages(fetcher, api, query, [number], licences)) as hits:
            async for hit in hits:
                if hit:
                    yield hit


async def _pages(fetcher: Fetcher, api: Api, query: Query, numbers: list[str], licences: Licences) -> AsyncGenerator[Hit | None]:
    """The hits of a query with one of these licences, with any if there is none; None stands for one that cannot be fetched."""
    parameters = {
        "text": query.text,
        "per_page": PAGE,
        "media": "photos",
        "safe_search": 1 if query.safe else 3,
        "sort": "relevance",
        "extras": "license,owner_name,o_dims,url_l,url_m,url_s",
        **({"license": ",".join(numbers)} if numbers else {}),
    }
    for page in range(1, DEEPEST // PAGE + 1):
        photos = part(await _call(fetcher, api, "flickr.photos.search", {**parameters, "page": page}), "photos")
        if not isinstance(photos.get("photo"), list):
            raise SourceFailed("Flickr could not be searched: its answer holds no photos.")
        for photo in entries(photos, "photo"):
            yield _hit(photo, query, licences)
        if page >= pixels(photos.get("pages")):
            return


async def _call(fetcher: Fetcher, api: Api, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """What a method of the API answers. Raises SourceFailed, also when that is an error with the status 200."""
    answer = await ask(fetcher, api, {"method": method, **parameters, "format": "json", "nojsoncallback": 1})
    if answer.get("stat") != "ok":
        hint = " Is DARKROOM_FLICKR_KEY right?" if answer.get("code") == 100 else ""
        raise SourceFailed(f"Flickr could not be searched: {text(said_of(answer))[:200] or 'it answered with an error'}.{hint}")
    return answer


async def _licences(fetcher: Fetcher, api: Api) -> Licences:
    answer = await _call(fetcher, api, "flickr.photos.licenses.getInfo", {})
    found: Licences = {}
    for licence in entries(part(answer, "licenses"), "license"):
        url = text(licence.get("url"))
        found[str(licence.get("id"))] = (licence_name(url) or text(licence.get("name")), url)
    if not found:
        raise SourceFailed("Flickr could not be searched: it names no licences.")
    return found


def _suits(licence: tuple[str, str], query: Query) -> bool:
    return query.licence in {"any", "known"} or query.licence in uses(*licence)


def _hit(photo: dict[str, Any], query: Query, licences: Licences) -> Hit | None:
    """A photograph as a hit; None for one that cannot be fetched."""
    size = next((size for size in SIZES if text(photo.get(f"url_{size}"))), None)
    if size is None:
        return None
    licence, licence_url = licences.get(str(photo.get("license")), ("", ""))
    owner, title, creator = text(photo.get("owner")), text(photo.get("title")), text(photo.get("ownername"))
    page = f"https://www.flickr.com/photos/{owner}/{text(photo.get('id'))}" if owner else ""
    return Hit(
        source="flickr",
        query=query.text,
        label=query.label,
        image_url=text(photo.get(f"url_{size}")),
        thumb_url=text(photo.get("url_s")),
        page_url=page,
        title=title,
        creator=creator,
        creator_url=f"https://www.flickr.com/photos/{owner}" if owner else "",
        licence=licence,
        licence_url=licence_url,
        attribution=attribution(title, creator, licence, page),
        width=pixels(photo.get(f"width_{size}")),
        height=pixels(photo.get(f"height_{size}")),
    )
