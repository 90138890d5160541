"""What changed between two versions of a dataset, image by image: added, removed, relabelled.

Versions never change, and neither does a diff: the newest few are kept in memory. An image is known by the SHA-256 of its bytes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shared import datasets
from shared.errors import NotFound
from shared.storage import Storage, version_name, versions

PARTS = ("added", "removed", "relabelled")
COLUMNS = ["sha256", "ext", "label", "name", "status", "reason", "detail"]
TOLD = pa.schema([("sha256", pa.string()), ("reason", pa.string()), ("detail", pa.string())])


@dataclass(frozen=True)
class Diff:
    """From version `old` to version `new` of a dataset. Each table is sorted by label, then sha256.

    `added`: sha256, ext, label, name. `removed`: the same, with reason and detail, as the version that dropped the image says; empty where none does.
    `relabelled`: the same as added, with the label `before`. `dropped`: what was offered between the two and never kept, {reason: images}.
    """

    dataset: str
    old: int
    new: int
    added: pa.Table
    removed: pa.Table
    relabelled: pa.Table
    unchanged: int
    dropped: dict[str, int]

    @property
    def totals(self) -> dict[str, int]:
        """Images of each part."""
        return {part: len(self.part(part)) for part in PARTS}

    def part(self, name: str, label: str | None = None) -> pa.Table:
        """One of PARTS; with `label` what concerns this class alone, as it is or as it was."""
        table: pa.Table = getattr(self, name)
        if label is None:
            return table
        mine = pc.equal(table["label"], label)
        return table.filter(pc.or_(mine, pc.equal(table["before"], label)) if name == "relabelled" else mine)

    def classes(self) -> list[dict[str, Any]]:
        """What changed in each class, the most changed first: {label, added, removed, came, left}; came and left: relabelled to it and away from it."""
        counted = {
            "added": _counts(self.added["label"]),
            "removed": _counts(self.removed["label"]),
            "came": _counts(self.relabelled["label"]),
            "left": _counts(self.relabelled["before"]),
        }
        labels = {label for counts in counted.values() for label in counts}
        found = [{"label": label, **{name: counts.get(label, 0) for name, counts in counted.items()}} for label in labels]
        return sorted(found, key=lambda c: (-sum(c[name] for name in counted), c["label"]))


def diff(storage: Storage, name: str, old: int, new: int) -> Diff:
    """What changed from version `old` of a dataset to version `new`, which may also be the earlier one. Raises NotFound."""
    datasets.latest(storage, name)
    for version in (old, new):
        datasets.info(storage, name, version)
    return _diff(storage, name, old, new)


@lru_cache(maxsize=8)  # versions never change
def _diff(storage: Storage, name: str, old: int, new: int) -> Diff:
    before, after = (_kept(_read(storage, name, version)) for version in (old, new))
    dropped = _dropped(storage, name, old, new)
    was = pc.index_in(after["sha256"], before["sha256"])  # null: it is new
    known = after.append_column("before", before["label"].take(was)).filter(pc.is_valid(was))
    gone = before.filter(pc.invert(pc.is_in(before["sha256"], after["sha256"])))
    return Diff(
        name,
        old,
        new,
        added=_sorted(after.filter(pc.is_null(was))),
        removed=_sorted(_with_reasons(gone, dropped)),
        relabelled=_sorted(known.filter(pc.not_equal(known["label"], known["before"]))),
        unchanged=pc.sum(pc.equal(known["label"], known["before"])).as_py() or 0,
        dropped=_counts(dropped.filter(pc.invert(pc.is_in(dropped["sha256"], before["sha256"])))["reason"]),
    )


def _read(storage: Storage, name: str, version: int) -> pa.Table:
    try:
        with storage.open(f"datasets/{name}/{version_name(version)}/manifest.parquet") as f:
            return pq.read_table(f, columns=COLUMNS)
    except NotFound:
        raise NotFound(f"The manifest of {name} v{version} is not there.") from None


def _kept(table: pa.Table) -> pa.Table:
    return table.filter(pc.equal(table["status"], "kept")).select(["sha256", "ext", "label", "name"])


def _dropped(storage: Storage, name: str, old: int, new: int) -> pa.Table:
    """What the versions after `old`, up to `new`, did not keep, the newest first. Empty when `new` is the earlier one."""
    between = [number for number in versions(storage, f"datasets/{name}") if old < number <= new]
    tables = [_read(storage, name, number) for number in reversed(between)]
    found = [table.filter(pc.equal(table["status"], "dropped")).select(["sha256", "reason", "detail"]) for table in tables]
    return pa.concat_tables(found) if found else pa.table({"sha256": [], "reason": [], "detail": []}, TOLD)


def _with_reasons(gone: pa.Table, dropped: pa.Table) -> pa.Table:
    """Why each image went, as the newest version says that dropped it; an image that was also offered twice is not gone for that."""
    said = dropped.filter(pc.not_equal(dropped["reason"], "duplicate"))
    at = pc.index_in(gone["sha256"], said["sha256"])
    for column in ("reason", "detail"):
        gone = gone.append_column(column, pc.fill_null(said[column].take(at), ""))
    return gone


def _sorted(table: pa.Table) -> pa.Table:
    return table.sort_by([("label", "ascending"), ("sha256", "ascending")])


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    return dict(sorted(((c["values"], c["counts"]) for c in pc.value_counts(column).to_pylist()), key=lambda pair: (-pair[1], pair[0])))


def changes(storage: Storage, name: str, numbers: Iterable[int]) -> dict[int, dict[str, int] | None]:
    """By version, how many images of each part differ from the version it was made from; None for one that was made from none."""
    found: dict[int, dict[str, int] | None] = {}
    for number in numbers:
        parent = datasets.info(storage, name, number).get("parent")
        try:
            found[number] = _totals(storage, name, parent, number) if parent else None
        except NotFound:  # the parent is not there any more
            found[number] = None
    return found


@lru_cache(maxsize=4096)  # numbers alone: a page of versions asks for many
def _totals(storage: Storage, name: str, old: int, new: int) -> dict[str, int]:
    return _diff.__wrapped__(storage, name, old, new).totals
