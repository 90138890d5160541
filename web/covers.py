"""The first pictures of a dataset version, for its cards and contact sheets; kept in memory, as versions never change."""

from functools import lru_cache
from typing import Any

from shared import datasets
from shared.storage import Storage

FIRST = 12  # pictures of each class


@lru_cache(maxsize=64)  # versions never change
def first_rows(storage: Storage, name: str, version: int) -> dict[str, list[dict[str, Any]]]:
    """The first kept rows of each class of a version."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in datasets.rows(storage, name, version):
        sheet = found.setdefault(row["label"], [])
        if len(sheet) < FIRST:
            sheet.append(row)
    return found


def cover(storage: Storage, name: str, version: int, most: int = 5) -> list[dict[str, Any]]:
    """A few rows of a version for its card: of different classes first."""
    sheets = list(first_rows(storage, name, version).values())
    return [sheet[i] for i in range(FIRST) for sheet in sheets if i < len(sheet)][:most]
