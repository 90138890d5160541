"""What a running scrape has decided so far, on storage, so that whoever goes on with it fetches nothing again.

`scrapes/<job>/<number>.jsonl`: the first line says from which row on the file tells, each line after it is one hit: its address, what its source says, and what
was found. A file never changes; every `WHOLE`th tells all from the first row, after which those before it are deleted. Nothing is forced to the disk: what a power
cut has damaged is fetched again.
"""

import json
from typing import Any

from shared.storage import Storage, image_key

WHOLE = 64
Row = tuple[
    str, dict[str, Any], dict[str, Any]
]  # address or locator of a hit, what its source says, and what was found: columns of a manifest


class Log:
    """The rows of one scrape, in the order they were decided."""

    def __init__(self, storage: Storage, job: str) -> None:
        """Read what an earlier attempt has left."""
        self._storage = storage
        self._folder = f"scrapes/{job}"
        names = storage.list(self._folder)
        self.rows: list[Row] = []
        for name in names:
            first, rows = _read(storage, f"{self._folder}/{name}")
            self.rows[first:] = rows
        self.rows = [row for row in self.rows if _there(storage, row[2])]
        self.found = {where: facts for where, _, facts in self.rows}
        self._number = max((int(name.partition(".")[0]) for name in names), default=-1) + 1
        self._written = 0  # what is left out of a damaged log is written anew

    def add(self, where: str, origin: dict[str, Any], facts: dict[str, Any]) -> None:
        """Note one hit; `write` keeps it."""
        self.rows.append((where, origin, facts))
        self.found[where] = facts

    def write(self) -> bool:
        """Keep what was noted since; whether there was anything. Not to be called twice at once."""
        rows = len(self.rows)
        if rows == self._written:
            return False
        first = 0 if self._number % WHOLE == 0 else self._written
        lines = [json.dumps({"first": first}), *(json.dumps(row) for row in self.rows[first:rows])]
        self._storage.write(f"{self._folder}/{self._number:08}.jsonl", "\n".join([*lines, ""]).encode(), durable=False)
        if first == 0:
            for name in self._storage.list(self._folder):
                if int(name.partition(".")[0]) < self._number:
                    self._storage.delete(f"{self._folder}/{name}")
        self._number, self._written = self._number + 1, rows
        return True

    def delete(self) -> None:
        """The scrape has ended: its version tells the same."""
        self._storage.delete(self._folder)


def _read(storage: Storage, key: str) -> tuple[int, list[Row]]:
    """The place of a file's first row, and its rows up to the first that is damaged."""
    rows: list[Row] = []
    first = 0
    for number, line in enumerate(storage.read(key).splitlines()):
        try:
            said = json.loads(line)
        except ValueError:  # the machine went down before the disk had it
            break
        if number == 0:
            first = said["first"]
        else:
            rows.append((said[0], said[1], said[2]))
    return first, rows


def _there(storage: Storage, facts: dict[str, Any]) -> bool:
    """Whether the bytes of a picture that was kept are on storage in full; the disk may not have had them when the machine went down."""
    if "ext" not in facts:
        return True
    key = image_key(facts["sha256"], facts["ext"])
    return storage.exists(key) and storage.size(key) == facts["bytes"]
