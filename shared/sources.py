"""The image sources as everybody may know them: what each is, what it needs, and how it did when it was last asked.

How a source is searched is the business of worker/scraping. A scrape leaves `sources/<name>.json` on storage, {at, ok, sentence},
so that the form, the API and the command line can say how a source does without asking it.
"""

import time
from dataclasses import asdict, dataclass
from typing import Any

from shared.settings import Settings
from shared.specs import SourceName
from shared.storage import Storage

NAMED = "Licence and creator with each image."
UNNAMED = "No licence with the images: they are marked unknown, and a licence filter, where there is one, is its own word."


@dataclass(frozen=True)
class Source:
    """What is said of a source. `needs`: settings without which it is not asked; `terms`: an address; `licences`: a remark."""

    name: SourceName
    title: str
    line: str
    terms: str
    licences: str
    needs: tuple[str, ...] = ()
    default: bool = False

    def lacks(self, settings: Settings) -> list[str]:
        """The settings that it needs and that are empty, as variables of the environment."""
        return [f"DARKROOM_{name.upper()}" for name in self.needs if not str(getattr(settings, name) or "").strip()]

    def configured(self, settings: Settings) -> str:
        """Empty, or a sentence that says what must be set before it can be asked."""
        missing = self.lacks(settings)
        return f"{self.title} is not asked before {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} set." if missing else ""


SOURCES = (
    Source(
        "openverse",
        "Openverse",
        "Openly licensed images of many collections; no key needed.",
        "https://docs.openverse.org/terms_of_service.html",
        NAMED,
        default=True,
    ),
    Source(
        "commons",
        "Wikimedia Commons",
        "Free media files; wants to know who asks.",
        "https://commons.wikimedia.org/wiki/Commons:Reusing_content_outside_Wikimedia",
        NAMED,
        ("operator_contact",),
        default=True,
    ),
    Source(
        "flickr",
        "Flickr",
        "Photographs of its members, with your key.",
        "https://www.flickr.com/help/terms/api",
        "Licence and creator with each image; without a licence filter also images with all rights reserved.",
        ("flickr_key",),
    ),
    Source("brave", "Brave", "A web search of its own index, with your key.", "https://brave.com/search/api/", UNNAMED, ("brave_key",)),
    Source(
        "serpapi",
        "SerpApi",
        "Google's image search through a paid service, with your key.",
        "https://serpapi.com/legal",
        "A licence with some of the images; the others are marked unknown.",
        ("serpapi_key",),
    ),
    Source(
        "google",
        "Google",
        "Programmable Search, for those who are customers already; it ends on 1 January 2027.",
        "https://developers.google.com/custom-search/terms",
        UNNAMED,
        ("google_key", "google_cx"),
    ),
    Source(
        "pexels",
        "Pexels",
        "Stock photographs, with your key. Whether its terms allow training is for you to read.",
        "https://www.pexels.com/terms-of-service/",
        "One licence for all, and the creator of each.",
        ("pexels_key",),
    ),
    Source(
        "unsplash",
        "Unsplash",
        "Stock photographs, with your key. Whether its terms allow training is for you to read.",
        "https://unsplash.com/api-terms",
        "One licence for all, and the creator of each.",
        ("unsplash_key",),
    ),
    Source(
        "duckduckgo",
        "DuckDuckGo",
        "A web search without an API: unofficial, often refused, and off unless whoever runs this installation turns it on.",
        "https://duckduckgo.com/terms",
        UNNAMED,
        ("duckduckgo",),
    ),
    Source(
        "bing",
        "Bing v7",
        "Whatever still answers as Bing's retired image search did, at an address of yours.",
        "https://www.microsoft.com/en-us/bing/apis/legal",
        UNNAMED,
        ("bing_url",),
    ),
    Source("urls", "Addresses", "Addresses that you name below a class.", "", "No licence with the images."),
    Source("folder", "Folder", "A folder on the server with a folder a class.", "", "No licence with the images."),
)
BY_NAME: dict[str, Source] = {source.name: source for source in SOURCES}
OWN = ("urls", "folder")  # what the order itself brings along; the others are searched
SEARCHED: tuple[str, ...] = tuple(source.name for source in SOURCES if source.name not in OWN)


def note(storage: Storage, name: str, sentence: str) -> None:
    """Keep how a source did when a scrape last asked it; `sentence`: why it failed, empty when it did not."""
    storage.write_json(_key(name), {"at": time.time(), "ok": not sentence, "sentence": sentence})


def standings(settings: Settings, storage: Storage) -> list[dict[str, Any]]:
    """Every source with its state: the fields of `Source` and these.

    state: `needs` (`lacking` names the settings), `untried`, `works` or `failed`; at: when it was last asked, seconds since 1970, or
    None; sentence: why it failed, or what it needs.
    """
    asked = set(storage.list("sources"))
    return [
        _standing(source, settings, storage.read_json(_key(source.name)) if f"{source.name}.json" in asked else {}) for source in SOURCES
    ]


def _standing(source: Source, settings: Settings, last: dict[str, Any]) -> dict[str, Any]:
    state, sentence = "untried", str(last.get("sentence", ""))
    if last:
        state = "works" if last["ok"] else "failed"
    if lacking := source.lacks(settings):
        state, sentence = "needs", source.configured(settings)
    told = {**asdict(source), "needs": [f"DARKROOM_{name.upper()}" for name in source.needs]}
    return {**told, "state": state, "at": last.get("at"), "sentence": sentence, "lacking": lacking}


def _key(name: str) -> str:
    return f"sources/{name}.json"
