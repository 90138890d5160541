"""DuckDuckGo's image search, which has no API: what its own page asks, `i.js` with a token that stands in the page.

It is off by default and often refuses. The package `ddgs` speaks the same protocol; it is not used, because it makes its
connections itself, past the checks of worker/scraping/fetch.py, poses as a browser, and its addresses cannot be set.
"""

import re
from collections.abc import AsyncGenerator
from typing import Any
from urllib.parse import urljoin

from shared.settings import Settings
from worker.scraping.fetch import Fetcher
from worker.scraping.sources import Api, Hit, Query, SourceFailed, ask, ask_text, claim, configured, listed, pixels, ranked, text

TITLE = "DuckDuckGo"
PAGE = 100
PAGES = 20  # answers of one query, in case it never ends
TOKEN = re.compile(r"""vqd=(?:"([^"&]+)"|'([^'&]+)'|([^&"'\s<>]+)&)""")
FILTERS = {"commercial": "ShareCommercially", "modification": "Modify", "public": "Public"}


def search(fetcher: Fetcher, query: Query, settings: Settings) -> AsyncGenerator[Hit]:
    """At most `query.limit` hits, page by page. Raises SourceFailed."""
    return ranked(query, _found(fetcher, query, settings))


async def _found(fetcher: Fetcher, query: Query, settings: Settings) -> AsyncGenerator[Hit]:
    configured("duckduckgo", settings)
    licence = claim(TITLE, query)
    home = settings.duckduckgo_url
    found = TOKEN.search(await ask_text(fetcher, Api(TITLE, home), {"q": query.text}))
    if not found:
        raise SourceFailed("DuckDuckGo could not be searched: its page holds no token, so it does not want to be asked at the moment.")
    api = Api(TITLE, urljoin(home, "i.js"), {"Referer": home})
    parameters = {
        "o": "json",
        "q": query.text,
        "l": query.region or "us-en",
        "vqd": found[found.lastindex or 1],
        "p": 1 if query.safe else -1,
    }
    if query.licence in FILTERS:
        parameters["f"] = f",,,,,license:{FILTERS[query.licence]}"
    for page in range(PAGES):
        answer = await ask(fetcher, api, {**parameters, "ct": "AT", **({"s": page * PAGE} if page else {})})
        results = listed(api, answer, "results")
        for result in results:
            if image_url := text(result.get("image")):
                yield _hit(result, image_url, licence, query)
        if not results or not answer.get("next"):
            return


def _hit(result: dict[str, Any], image_url: str, licence: str, query: Query) -> Hit:
    return Hit(
        source="duckduckgo",
        query=query.text,
        label=query.label,
        image_url=image_url,
        thumb_url=text(result.get("thumbnail")),
        page_url=text(result.get("url")),
        title=text(result.get("title")),
        licence=licence,
        width=pixels(result.get("width")),
        height=pixels(result.get("height")),
    )
