"""SerpApi: Google's image search through a paid service (https://serpapi.com/google-images-api)."""

from collections.abc import AsyncGenerator
from typing import Any

from shared.settings import Settings
from worker.scraping.fetch import Fetcher
from worker.scraping.sources import (
    UNKNOWN,
    Api,
    Hit,
    Query,
    SourceFailed,
    ask,
    configured,
    licence_name,
    listed,
    pixels,
    ranked,
    said_of,
    text,
)

TITLE = "SerpApi"
PAGES = 100  # `ijn` goes from 0 to 99
NOTHING = "hasn't returned any results"  # which comes as an error


def search(fetcher: Fetcher, query: Query, settings: Settings) -> AsyncGenerator[Hit]:
    """At most `query.limit` hits, page by page. Raises SourceFailed."""
    return ranked(query, _found(fetcher, query, settings))


async def _found(fetcher: Fetcher, query: Query, settings: Settings) -> AsyncGenerator[Hit]:
    configured("serpapi", settings)
    api = Api(TITLE, settings.serpapi_url, keys={"api_key": settings.serpapi_key}, setting="DARKROOM_SERPAPI_KEY")
    parameters = {"engine": "google_images", "q": query.text, "safe": "active" if query.safe else "off"}
    if query.region:
        parameters |= {"gl": query.country, "hl": query.language}
    for page in range(PAGES):
        answer = await ask(fetcher, api, {**parameters, "ijn": page})
        said = text(said_of(answer.get("error")))
        if said and NOTHING not in said:
            raise SourceFailed(f"SerpApi could not be searched: {said[:200]}")
        results = [] if said else listed(api, answer, "images_results")
        for result in results:
            if image_url := text(result.get("original")):
                yield _hit(result, image_url, query)
        if not results:
            return


def _hit(result: dict[str, Any], image_url: str, query: Query) -> Hit:
    licence_url = text(result.get("license_details_url"))
    return Hit(
        source="serpapi",
        query=query.text,
        label=query.label,
        image_url=image_url,
        thumb_url=text(result.get("thumbnail")),
        page_url=text(result.get("link")),
        title=text(result.get("title")),
        licence=licence_name(licence_url) or UNKNOWN,
        licence_url=licence_url,
        width=pixels(result.get("original_width")),
        height=pixels(result.get("original_height")),
    )
