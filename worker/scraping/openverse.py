"""Openverse: openly licensed images of many collections (https://api.openverse.org/v1/).

It shows 240 hits of a query and no more, whoever asks. A query that has as many is asked again for each licence, and a licence
that has as many for each collection that was seen among its hits, and once for all others.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any
from urllib.parse import urljoin

from shared.settings import Settings
from worker.scraping.fetch import Fetcher
from worker.scraping.sources import Api, Hit, Query, SourceFailed, ask, entries, listed, once, pixels, ranked, text, uses

TITLE = "Openverse"
PAGE = 20  # the most without a key; more is answered 401
DEEPEST = 240  # hits of a query, with or without a key
ANYBODY = ((20, 60.0), (200, 86400.0))
REGISTERED = ((100, 60.0), (10_000, 86400.0))
CODES = ("by", "by-sa", "cc0", "pdm", "by-nc", "by-nc-sa", "by-nd", "by-nc-nd")


def search(fetcher: Fetcher, query: Query, settings: Settings) -> AsyncGenerator[Hit]:
    """At most `query.limit` hits, page by page. Raises SourceFailed."""
    return ranked(query, _found(fetcher, query, settings))


async def _found(fetcher: Fetcher, query: Query, settings: Settings) -> AsyncGenerator[Hit]:
    api = await _api(fetcher, settings)
    seen: dict[str, int] = {}  # hits by collection
    async with aclosing(_pages(fetcher, api, query, _filter(query), seen)) as hits:
        async for hit in hits:
            yield hit
    if sum(seen.values()) < DEEPEST:
        return
    for code in (code for code in CODES if _suits(code, query)):
        of_licence: dict[str, int] = {}
        async with aclosing(_pages(fetcher, api, query, {"license": code}, of_licence)) as hits:
            async for hit in hits:
                yield hit
        if sum(of_licence.values()) < DEEPEST:
            continue
        collections = sorted(filter(None, {**seen, **of_licence}))
        others = [{"excluded_source": ",".join(collections)}] if collections else []
        for part in [*({"source": name} for name in collections), *others]:
            async with aclosing(_pages(fetcher, api, query, {"license": code, **part}, {})) as hits:
                async for hit in hits:
                    yield hit


def _filter(query: Query) -> dict[str, str]:
    match query.licence:
        case "commercial" | "modification":
            return {"license_type": query.licence}
        case "public":
            return {"license": "cc0,pdm"}
    return {}  # all that it has is licensed


def _suits(code: str, query: Query) -> bool:
    return query.licence in {"any", "known"} or query.licence in uses(_licence(code, ""))


async def _api(fetcher: Fetcher, settings: Settings) -> Api:
    """How it is asked: by anybody, or with the token of a registered user. Raises SourceFailed."""
    if not (settings.openverse_client_id and settings.openverse_client_secret):
        return Api(TITLE, settings.openverse_url, rates=ANYBODY)
    token = await once(fetcher, "the token of Openverse", lambda: _token(fetcher, settings))
    return Api(
        TITLE,
        settings.openverse_url,
        {"Authorization": f"Bearer {token}"},
        secrets=(token, settings.openverse_client_secret),
        rates=REGISTERED,
        setting="DARKROOM_OPENVERSE_CLIENT_SECRET",
    )


async def _token(fetcher: Fetcher, settings: Settings) -> str:
    secret = settings.openverse_client_secret
    form = {"client_id": settings.openverse_client_id, "client_secret": secret, "grant_type": "client_credentials"}
    address = urljoin(settings.openverse_url, "../auth_tokens/token/")
    answer = await ask(fetcher, Api(TITLE, address, secrets=(secret,), setting="DARKROOM_OPENVERSE_CLIENT_SECRET"), {}, form)
    token = answer.get("access_token")
    if not isinstance(token, str) or not token.isascii() or not token.isprintable():
        raise SourceFailed("Openverse could not be searched: it gave no token for DARKROOM_OPENVERSE_CLIENT_ID.")
    return token


async def _pages(fetcher: Fetcher, api: Api, query: Query, part: dict[str, str], seen: dict[str, int]) -> AsyncGenerator[Hit]:
    """The hits of one part of a query; `seen` counts them by collection."""
    for page in range(1, DEEPEST // PAGE + 1):
        mature = {} if query.safe else {"mature": "true"}
        answer = await ask(fetcher, api, {"q": query.text[:200], "page": page, "page_size": PAGE, **part, **mature})
        for result in listed(api, answer, "results"):
            collection = text(result.get("source"))
            seen[collection] = seen.get(collection, 0) + 1
            if image_url := text(result.get("url")):
                yield _hit(result, image_url, query)
        if not entries(answer, "results") or page >= (pixels(answer.get("page_count")) or DEEPEST):
            return


def _hit(result: dict[str, Any], image_url: str, query: Query) -> Hit:
    return Hit(
        source="openverse",
        query=query.text,
        label=query.label,
        image_url=image_url,
        thumb_url=text(result.get("thumbnail")),
        page_url=text(result.get("foreign_landing_url")),
        title=text(result.get("title")),
        creator=text(result.get("creator")),
        creator_url=text(result.get("creator_url")),
        licence=_licence(text(result.get("license")), text(result.get("license_version"))),
        licence_url=text(result.get("license_url")),
        attribution=text(result.get("attribution")),
        width=pixels(result.get("width")),
        height=pixels(result.get("height")),
    )


def _licence(code: str, version: str) -> str:
    """by-sa, 2.0 -> CC BY-SA 2.0, as Creative Commons writes it."""
    names = {"cc0": "CC0", "pdm": "Public Domain Mark", "": ""}
    return f"{names.get(code, f'CC {code.upper()}')} {version}".strip()
