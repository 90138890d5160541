"""Wikimedia Commons: free media files (https://commons.wikimedia.org/w/api.php)."""

from collections.abc import AsyncGenerator
from html.parser import HTMLParser
from typing import Any

from shared.settings import Settings
from worker.scraping.fetch import Fetcher
from worker.scraping.sources import Api, Hit, Query, SourceFailed, ask, attribution, entries, pixels, ranked, said_of, text

TITLE = "Wikimedia Commons"
PAGE = 50  # hits of one answer
PAGES = 40  # answers of one query, in case it never ends
THUMB = 330  # pixels: one of the widths that are kept ready


def search(fetcher: Fetcher, query: Query, settings: Settings) -> AsyncGenerator[Hit]:
    """At most `query.limit` hits, page by page. Raises SourceFailed, also when `operator_contact` is not set."""
    return ranked(query, _found(fetcher, query, settings))


async def _found(fetcher: Fetcher, query: Query, settings: Settings) -> AsyncGenerator[Hit]:
    if not settings.operator_contact.strip():
        raise SourceFailed(
            "Wikimedia Commons answers only to those who say who they are: set DARKROOM_OPERATOR_CONTACT to a web address or e-mail."
        )
    api = Api(TITLE, settings.commons_url)
    parameters = _parameters(query.text)
    for _ in range(PAGES):
        answer = await ask(fetcher, api, parameters)
        if error := answer.get("error"):
            said = text(error.get("info")) if isinstance(error, dict) else said_of(error)
            raise SourceFailed(f"Wikimedia Commons could not be searched: {said or 'it answered with an error'}.")
        for page in _pages(answer):
            if hit := _hit(page, query):
                yield hit
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


def _hit(page: dict[str, Any], query: Query) -> Hit | None:
    """A page as a hit; None for what is no picture, such as a PDF or a drawing."""
    info = next(iter(entries(page, "imageinfo")), {})
    image_url = text(info.get("url"))
    if info.get("mediatype") != "BITMAP" or not image_url:
        return None
    title = text(page.get("title")).removeprefix("File:")
    creator, creator_url = _plain(_extra(info, "Artist"))
    licence, _ = _plain(_extra(info, "LicenseShortName") or _extra(info, "UsageTerms"))
    return Hit(
        source="commons",
        query=query.text,
        label=query.label,
        image_url=image_url,
        thumb_url=text(info.get("thumburl")),
        page_url=text(info.get("descriptionurl")),
        title=title,
        creator=creator,
        creator_url=creator_url,
        licence=licence,
        licence_url=_extra(info, "LicenseUrl"),
        attribution=attribution(title, creator, licence, "via Wikimedia Commons"),
        width=pixels(info.get("width")),
        height=pixels(info.get("height")),
    )


def _extra(info: dict[str, Any], key: str) -> str:
    metadata = info.get("extmetadata")
    entry = metadata.get(key) if isinstance(metadata, dict) else None
    return text(entry.get("value")) if isinstance(entry, dict) else ""


class _Text(HTMLParser):
    """Collects the text of HTML, and where its first link leads."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.link = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a" and not self.link:
            self.link = next((value for name, value in attrs if name == "href" and value), "")

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


def _plain(html: str) -> tuple[str, str]:
    """HTML without its tags, and the address of its first link: the author's name is a link."""
    parser = _Text()
    parser.feed(html)
    parser.close()
    link = text(parser.link)
    address = f"https:{link}" if link.startswith("//") else link
    return text("".join(parser.parts)), address if address.startswith(("https://", "http://")) else ""
