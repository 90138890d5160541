"""A folder on the server that holds a folder a class, where DARKROOM_IMPORT_ROOTS allows it.

Its hits carry a locator of shared/items.py, `file:...`, in place of an address. The name of a class is never part of a path: the
folders that are there are compared with it.
"""

import asyncio
import os
import unicodedata
from collections.abc import AsyncGenerator
from pathlib import Path

from shared.errors import Invalid
from shared.items import check_folder, walk_folder
from shared.settings import Settings
from worker.scraping.fetch import Fetcher
from worker.scraping.sources import UNKNOWN, Hit, Query, SourceFailed, ranked


def search(fetcher: Fetcher, query: Query, settings: Settings) -> AsyncGenerator[Hit]:
    """At most `query.limit` of the pictures in the folder of the class, by name; none if it has no folder. Raises SourceFailed."""
    return ranked(query, _found(query, settings))


async def _found(query: Query, settings: Settings) -> AsyncGenerator[Hit]:
    try:
        above = check_folder(query.folder.strip(), settings)
        for place in await asyncio.to_thread(folders_of, above, query.label):
            for path, locator, _ in walk_folder(place):
                yield Hit(source="folder", query="", label=query.label, image_url=locator, title=path, licence=UNKNOWN)
    except Invalid as error:
        raise SourceFailed(f"The folder could not be read: {error}") from None
    except OSError as error:
        raise SourceFailed(f"The folder {query.folder} cannot be read ({error.strerror or error}).") from None


def folders_of(above: Path, label: str) -> list[Path]:
    """The folders directly in `above` that have the name of a class, whatever their case; no symbolic links. Raises OSError."""
    with os.scandir(above) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False) and _plain(entry.name) == _plain(label))


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip().casefold()
