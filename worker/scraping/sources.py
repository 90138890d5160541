"""What every image source has in common: the hit, the failure, and asking for JSON."""

import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlencode

from shared.errors import DarkroomError
from shared.settings import Settings
from worker.scraping.fetch import Fetcher, FetchError

PATIENCE = 90  # seconds: a quota by the minute is waited for, one by the day is not


class SourceFailed(DarkroomError):
    """A source cannot be searched; its message is a sentence that names it."""


@dataclass(frozen=True)
class Hit:
    """One picture that a source offers. Text is empty and sizes are 0 where the source does not know."""

    source: str
    query: str
    label: str  # the class it was searched for
    rank: int  # from 0, in the order of the source
    image_url: str
    thumb_url: str
    page_url: str
    title: str
    creator: str
    licence: str
    licence_url: str
    width: int
    height: int


@dataclass(frozen=True)
class Query:
    """What is searched for in a source, for one class."""

    text: str
    label: str  # the class
    limit: int  # hits, at most


class Search(Protocol):
    """A source: a function that searches it, page by page, as its hits are asked for."""

    def __call__(self, fetcher: Fetcher, query: Query, settings: Settings) -> AsyncGenerator[Hit]:
        """At most `query.limit` hits, best first. Raises SourceFailed while iterating."""


async def ask(fetcher: Fetcher, source: str, url: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """The JSON object that an API answers. Raises SourceFailed."""
    try:
        body = await fetcher.get(f"{url}?{urlencode(parameters)}", patience=PATIENCE)
    except FetchError as error:
        raise SourceFailed(f"{source} could not be searched: {error}{_detail(error.body)}") from None
    try:
        answer = json.loads(body)
    except ValueError:
        what = "a web page" if body.lstrip()[:1] == b"<" else "broken JSON"
        raise SourceFailed(f"{source} could not be searched: it answered with {what}.") from None
    if not isinstance(answer, dict):
        raise SourceFailed(f"{source} could not be searched: its answer is not an object.")
    return answer


def _detail(body: bytes) -> str:
    """What an API says of an error of its own, ` "..."`, or nothing."""
    try:
        answer = json.loads(body)
    except ValueError:
        return ""
    detail = answer.get("detail") if isinstance(answer, dict) else None
    return f' It says: "{detail[:200]}".' if isinstance(detail, str) else ""


def entries(answer: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The objects of a list in an answer, without anything else that may be in it."""
    found = answer.get(key)
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def text(value: Any) -> str:
    """A text of an answer, with blanks made single; empty for anything that is no text."""
    return " ".join(value.encode("utf-8", "replace").decode().split())[:2000] if isinstance(value, str) else ""


def pixels(value: Any) -> int:
    """A width or height of an answer; 0 for anything that is none."""
    return value if isinstance(value, int) and 0 < value < 2**31 else 0
