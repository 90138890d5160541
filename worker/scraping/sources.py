"""What every image source has in common: the hit, the query, the licence filter, the failure, and asking for JSON.

A source is a file of its own with a function `search`. What is secret of it goes through `Api` alone: it is taken out of every
answer before anything else sees it, so that it can stand in no message, no row and no log.
"""

import asyncio
import json
import re
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Protocol
from urllib.parse import quote, quote_plus, urlencode

from shared.errors import DarkroomError
from shared.settings import Settings
from shared.sources import BY_NAME
from shared.specs import ClassQuery, Licence, ScrapeSpec
from worker.scraping.fetch import Extra, Fetcher, FetchError

PATIENCE = 90  # seconds: a quota by the minute is waited for, one by the day is not
UNKNOWN = "unknown"  # the licence of a hit whose source names none
CLAIMS: dict[Licence, str] = {"commercial": "commercial use", "modification": "modification", "public": "public domain"}
SPANS = {60.0: "minute", 3600.0: "hour", 86400.0: "day"}
CREATIVE_COMMONS = re.compile(r"(?:creativecommons\.org/licenses/|\bcc[ -])(by(?:[ -](?:nc|nd|sa))*)", re.IGNORECASE)
PUBLIC = re.compile(r"creativecommons\.org/publicdomain/|\bcc0\b|\bcc-zero\b|public domain|\bpdm?\b|government work", re.IGNORECASE)
STOCK = re.compile(r"\b(?:unsplash|pexels) licence\b", re.IGNORECASE)
LICENCE_PAGE = re.compile(r"creativecommons\.org/(licenses|publicdomain)/([a-z-]+)/([\d.]+)?", re.IGNORECASE)


class SourceFailed(DarkroomError):
    """A source cannot be searched; its message is a sentence that names it."""


@dataclass(frozen=True)
class Hit:
    """One picture that a source offers. Text is empty and sizes are 0 where the source does not know."""

    source: str
    query: str
    label: str  # the class it was searched for
    image_url: str  # or a locator of shared/items.py, `file:...`, of the source `folder`
    rank: int = 0  # from 0, in the order of the source
    thumb_url: str = ""
    page_url: str = ""
    title: str = ""
    creator: str = ""
    creator_url: str = ""
    licence: str = ""
    licence_url: str = ""
    attribution: str = ""  # the sentence to name the creator with
    width: int = 0
    height: int = 0
    ping: str = ""  # an address to be told when the image is used; see `worker/scraping/unsplash.py`


@dataclass(frozen=True)
class Query:
    """What is searched for in a source, for one class."""

    text: str
    label: str  # the class
    limit: int  # hits, at most
    licence: Licence = "any"
    min_side: int = 1  # pixels
    safe: bool = True
    region: str = ""  # country and language, `us-en`
    urls: tuple[str, ...] = ()  # of the class, for the source `urls`
    folder: str = ""  # that holds a folder a class, for the source `folder`

    @property
    def country(self) -> str:
        """`us`, or nothing."""
        return self.region.partition("-")[0]

    @property
    def language(self) -> str:
        """`en`, or nothing."""
        return self.region.partition("-")[2]


class Search(Protocol):
    """A source: a function that searches it, page by page, as its hits are asked for."""

    def __call__(self, fetcher: Fetcher, query: Query, settings: Settings) -> AsyncGenerator[Hit]:
        """At most `query.limit` hits, best first, none twice. Raises SourceFailed while iterating."""


def query_of(spec: ScrapeSpec, wanted: ClassQuery, limit: int) -> Query:
    """What the sources are asked for one class of a scrape; `limit`: hits, at most."""
    return Query(
        text=wanted.query or wanted.name,
        label=wanted.name,
        limit=limit,
        licence=spec.licence,
        min_side=spec.min_side,
        safe=spec.safe,
        region=spec.region,
        urls=tuple(wanted.urls),
        folder=spec.folder,
    )


async def ranked(query: Query, found: AsyncGenerator[Hit]) -> AsyncGenerator[Hit]:
    """The first hit of each address with its rank, at most `query.limit`: a query that was split finds some of them twice."""
    seen: set[str] = set()
    async with aclosing(found):
        async for hit in found:
            if hit.image_url not in seen:
                yield replace(hit, rank=len(seen))
                seen.add(hit.image_url)
            if len(seen) >= query.limit:
                return


# -- licences ---------------------------------------------------------------------------------------------------------


def uses(licence: str, licence_url: str = "") -> frozenset[str]:
    """What a licence allows, as far as its name or address tells: any of commercial, modification and public."""
    text = f"{licence} {licence_url}"
    if terms := [part for match in CREATIVE_COMMONS.finditer(text) for part in re.split("[ -]", match[1].lower())]:
        return frozenset(use for part, use in (("nc", "commercial"), ("nd", "modification")) if part not in terms)
    if PUBLIC.search(text):
        return frozenset({"commercial", "modification", "public"})
    if STOCK.search(text):
        return frozenset({"commercial", "modification"})
    return frozenset(use for use, name in CLAIMS.items() if f"{name}, says " in licence)


def fits(hit: Hit, query: Query) -> str | None:
    """None if the licence of a hit is one that was asked for, else a sentence that says why it is not."""
    named = hit.licence not in {"", UNKNOWN} and ", says " not in hit.licence
    match query.licence:
        case "any":
            return None
        case "known":
            return None if named else "The source names no licence of this image."
        case _ if query.licence in uses(hit.licence, hit.licence_url):
            return None
    if not named:
        return "The source names no licence of this image."
    return f"Its licence ({hit.licence[:100]}) does not say that it is {_allowed(query.licence)}."


def _allowed(licence: Licence) -> str:
    return "in the public domain" if licence == "public" else f"free for {CLAIMS[licence]}"


def claim(title: str, query: Query) -> str:
    """The licence of the hits of a source that filters by licence and names none. Raises SourceFailed when a name was asked for."""
    if query.licence == "known":
        raise SourceFailed(f"{title} names no licence with its images, so none of them fits the licence filter `known`; it was not asked.")
    return f"{CLAIMS[query.licence]}, says {title}" if query.licence in CLAIMS else UNKNOWN


def licence_name(url: str) -> str:
    """`CC BY-SA 2.0`, `CC0 1.0` or `Public Domain Mark 1.0` out of an address of Creative Commons; empty for any other."""
    match = LICENCE_PAGE.search(url)
    if not match:
        return ""
    code, version = match[2].lower(), match[3] or ""
    names = {"zero": "CC0", "mark": "Public Domain Mark"}
    name = names.get(code, "Public Domain") if match[1].lower() == "publicdomain" else f"CC {code.upper()}"
    return f"{name} {version}".strip()


def attribution(title: str, creator: str, licence: str, where: str = "") -> str:
    """The sentence to name a creator with, where the source has none of its own: `"Bark" by Tim Sullivan, CC BY 2.0`."""
    work = f'"{title}"' if title else "Image"
    return ", ".join(part for part in (f"{work} by {creator}" if creator else work, licence, where) if part)


# -- asking -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Api:
    """How a source is asked. `rates`: (requests, seconds) each, so many within so long; `setting`: that which holds its key."""

    title: str
    url: str
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    keys: dict[str, str] = field(default_factory=dict, repr=False)  # parameters of the address that are secret
    secrets: tuple[str, ...] = field(default=(), repr=False)  # what must not be seen anywhere; the values of `keys` are of them
    rates: tuple[tuple[int, float], ...] = ()
    setting: str = ""


def configured(name: str, settings: Settings) -> None:
    """Raises SourceFailed with what must be set before the source can be asked."""
    if sentence := BY_NAME[name].configured(settings):
        raise SourceFailed(sentence)


async def ask(fetcher: Fetcher, api: Api, parameters: dict[str, Any], form: dict[str, str] | None = None) -> dict[str, Any]:
    """The JSON object that an API answers. Raises SourceFailed."""
    body = await ask_text(fetcher, api, parameters, form)
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        what = "a web page" if body.lstrip()[:1] == "<" else "broken JSON"
        raise SourceFailed(f"{api.title} could not be searched: it answered with {what}.") from None
    if not isinstance(answer, dict):
        raise SourceFailed(f"{api.title} could not be searched: its answer is not an object.")
    return answer


async def ask_text(fetcher: Fetcher, api: Api, parameters: dict[str, Any], form: dict[str, str] | None = None) -> str:
    """What an API answers, without its secrets, asked no faster than it allows. Raises SourceFailed."""
    await _turn(fetcher, api)
    words = urlencode({**parameters, **api.keys})
    address = f"{api.url}{'&' if '?' in api.url else '?'}{words}" if words else api.url
    extra = Extra(api.headers, form, tuple(filter(None, (*api.secrets, *api.keys.values()))))
    try:
        body = await fetcher.get(address, patience=PATIENCE, extra=extra)
    except FetchError as error:
        hint = f" Is {api.setting} right?" if error.code == "forbidden" and api.setting else ""
        said = _hidden(f"{error}{_detail(error.body)}", api)
        raise SourceFailed(f"{api.title} could not be searched: {said}{hint}") from None
    return _hidden(body.decode("utf-8", "replace"), api)


def _hidden(text: str, api: Api) -> str:
    """Text in which a service may have repeated a key, without it."""
    for secret in filter(None, (*api.secrets, *api.keys.values())):
        for written in (secret, quote_plus(secret), quote(secret)):
            text = text.replace(written, "[key]")
    return text


def _detail(body: bytes) -> str:
    """What an API says of an error of its own, ` It says: "..."`, or nothing."""
    try:
        said = text(said_of(json.loads(body)))
    except (ValueError, RecursionError):
        said = "" if b"<" in body else text(body[:200].decode("utf-8", "replace"))  # a word of plain text says something, a page does not
    return f' It says: "{said[:200]}".' if said else ""


def said_of(answer: Any, deep: int = 4) -> str:
    """The sentence in an answer that is an error, wherever services put it; empty where there is none."""
    if isinstance(answer, list):
        return said_of(answer[0], deep - 1) if answer and deep else ""
    if isinstance(answer, dict):
        keys = ("detail", "message", "error", "errors") if deep else ()
        return next((said for key in keys if (said := said_of(answer.get(key), deep - 1))), "")
    return answer if isinstance(answer, str) else ""


async def _turn(fetcher: Fetcher, api: Api) -> None:
    """Wait until the source may be asked once more. Raises SourceFailed when that takes longer than our patience."""
    sent: deque[float] = fetcher.notes.setdefault(f"{api.title} was asked", deque(maxlen=max((n for n, _ in api.rates), default=1)))
    now = asyncio.get_running_loop().time
    while (wait := due(sent, api.rates, now())) > 0:
        if wait > PATIENCE:
            many, seconds = max(api.rates, key=lambda rate: due(sent, [rate], now()))
            raise SourceFailed(
                f"{api.title} may be asked {many:,} times {'an' if seconds == 3600 else 'a'} {SPANS[seconds]}, and this scrape has done so; "
                "order the rest later."
            )
        await asyncio.sleep(wait)
    sent.append(now())


def due(sent: Sequence[float], rates: Sequence[tuple[int, float]], now: float) -> float:
    """Seconds until one more request keeps all `rates`, (requests, seconds) each; `sent`: when the earlier ones were, oldest first."""
    return max((sent[-many] + seconds - now for many, seconds in rates if len(sent) >= many), default=0.0)


async def once(fetcher: Fetcher, name: str, make: Callable[[], Awaitable[Any]]) -> Any:
    """What `make` answers, asked for once while the fetcher is open, however many want it at the same time."""
    async with fetcher.notes.setdefault(f"{name}, being asked", asyncio.Lock()):
        if name not in fetcher.notes:
            fetcher.notes[name] = await make()
    return fetcher.notes[name]


# -- reading answers --------------------------------------------------------------------------------------------------


def listed(api: Api, answer: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The results of an answer. Raises SourceFailed when it holds no list of them, with what it says instead."""
    if not isinstance(answer.get(key), list):
        raise SourceFailed(f"{api.title} could not be searched: {text(said_of(answer))[:200] or 'its answer holds no results'}.")
    return entries(answer, key)


def entries(answer: Any, key: str) -> list[dict[str, Any]]:
    """The objects of a list in an answer, without anything else that may be in it."""
    found = answer.get(key) if isinstance(answer, dict) else None
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def part(answer: Any, key: str) -> dict[str, Any]:
    """An object within an answer; an empty one where there is none."""
    found = answer.get(key) if isinstance(answer, dict) else None
    return found if isinstance(found, dict) else {}


def text(value: Any) -> str:
    """A text of an answer, with blanks made single; empty for anything that is no text."""
    return " ".join(value.encode("utf-8", "replace").decode().split())[:4096] if isinstance(value, str) else ""


def pixels(value: Any) -> int:
    """A width or height of an answer; 0 for anything that is none."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        value = int(value)
    return value if isinstance(value, int) and 0 < value < 2**31 else 0
