"""Wikimedia Commons: free media files (https://commons.wikimedia.org/w/api.php)."""

from collections.abc import AsyncGenerator
from html.parser import HTMLParser
from typing import Any

from shared.settings import Settings
from worker.scraping.fetch import Fetcher
from worker.scraping.sources import Hit, Query, SourceFailed, ask, entries, pixels, text

PAGE = 50  # hits of one answer
PAGES = 40  # answers of one query, in case it never ends
THUMB = 330  # pixels: one of the widths that are kept ready


async def search(fetcher: Fetcher, query: Query, settings: Settings) -> AsyncGenerator[Hit]:
    """At most `query.limit` hits, page by page. Raises SourceFailed, also when `operator_contact` is not set."""
    if not settings.operator_contact.strip():
        raise SourceFailed(
            "Wikimedia Commons answers only to those who say who they are: set DARKROOM_OPERATOR_CONTACT to a web address or e-mail."
        )
    parameters = _parameters(query.text)
    rank = 0
    for _ in range(PAGES):
        answer = await ask(fetcher, "Wikimedia Commons", settings.commons_url, parameters)
        if error := answer.get("error"):
            said = text(error.get("info")) if isinstance(error, dict) else ""
            raise SourceFailed(f"Wikimedia Commons could not be searched: {said or 'it answered with an error'}.")
        for page in _pages(answer):
            hit = _hit(page, query, rank)
            if rank >= query.limit:
                return
            if hit:
                yield hit
                rank += 1
        further = answer.get("continue")
        if not isinstance(further, dict):
            return
        parameters |= further


def _parameters(query: str) -> dict[str, Any]:
    return {
        "action": "query",
        "format": "json",
        "formatversion": 2,
        "generator": "search",
        "gsrnamespace": 6,
        "gsrsearch": f"{query} filetype:bitmap",
        "gsrlimit": PAGE,
        "gsroffset": 0,
        "prop": "imageinfo",
        "iiprop": "url|size|mime|mediatype|extmetadata",
        "iiurlwidth": THUMB,
        "iiextmetadatafilter": "ObjectName|Artist|LicenseShortName|License|LicenseUrl|UsageTerms|AttributionRequired",
    }


def _pages(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The pages of an answer by rank, in which they do not come; no `query` means no hit."""
    query = answer.get("query")
    return sorted(entries(query, "pages"), key=lambda page: pixels(page.get("index"))) if isinstance(query, dict) else []


def _hit(page: dict[str, Any], query: Query, rank: int) -> Hit | None:
    """A page as a hit; None for what is no picture, such as a PDF or a drawing."""
    info = next(iter(entries(page, "imageinfo")), {})
    image_url = text(info.get("url"))
    if info.get("mediatype") != "BITMAP" or not image_url:
        return None
    return Hit(
        source="commons",
        query=query.text,
        label=query.label,
        rank=rank,
        image_url=image_url,
        thumb_url=text(info.get("thumburl")),
        page_url=text(info.get("descriptionurl")),
        title=text(page.get("title")).removeprefix("File:"),
        creator=_plain(_extra(info, "Artist")),
        licence=_plain(_extra(info, "LicenseShortName") or _extra(info, "UsageTerms")),
        licence_url=_extra(info, "LicenseUrl"),
        width=pixels(info.get("width")),
        height=pixels(info.get("height")),
    )


def _extra(info: dict[str, Any], key: str) -> str:
    metadata = info.get("extmetadata")
    entry = metadata.get(key) if isinstance(metadata, dict) else None
    return text(entry.get("value")) if isinstance(entry, dict) else ""


class _Text(HTMLParser):
    """Collects the text of HTML."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


def _plain(html: str) -> str:
    """HTML without its tags: the author's name is a link."""
    parser = _Text()
    parser.feed(html)
    parser.close()
    return text("".join(parser.parts))
