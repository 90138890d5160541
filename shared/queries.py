"""Questions about the rows of a batch, at any size: filtered, sorted, a page at a time, while it runs and when it is done.

The shard files stay the truth. From them each process keeps, for the few batches it was asked about last, a narrow **index**
(the columns one filters and sorts by) in a DuckDB file in the local cache, and reads only the files it has not seen. A
question is answered in two steps: the index gives the numbers of the items, the shards that hold these give the rows whole.
Names of shards are ranges of items, so unfiltered rows in their own order need no index at all.

Nothing that a user typed becomes part of a statement: conditions are fixed text with parameters, orders come from a table,
and the database itself may read the shards and nothing else.
"""
# ruff: noqa: S608 - statements are built of this module's own text; what comes from outside is a parameter

import contextlib
import fcntl
import shutil
import tempfile
import threading
import weakref
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

import duckdb

from shared import results
from shared.errors import NotFound
from shared.storage import Storage

# What is sorted by, ascending, the item's number after it; rows without a label come last.
ORDERS = {
    "item": "item_id",
    "confidence": "coalesce(probability, 2)",
    "-confidence": "coalesce(-probability, 2)",
    "margin": "coalesce(margin, 2)",
}
SHARDS = "read_parquet(?, hive_partitioning = false)"
INDEXED = "item_id, label, probability, margin, decision, error_code"
TABLE = "item_id BIGINT, label VARCHAR, probability FLOAT, margin FLOAT, decision VARCHAR, error_code VARCHAR"
BATCHES = 4  # indexes kept a process; one of a million rows takes 8 MB of disk
CHUNK = 200  # shard files a statement reads at once
SLOTS = 2000  # what is sorted by is between -1 and 2
FETCHES = 8  # files fetched from a remote storage at once
CONFIG: dict[str, Any] = {
    "threads": 2,  # sorting a million rows to reach a deep page takes 60 ms instead of 110
    "memory_limit": "32MB",  # what does not fit goes to the folder of the index
    "checkpoint_threshold": "4MB",  # new rows leave the memory soon
    "enable_external_file_cache": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}


@dataclass(frozen=True)
class Filter:
    """Which rows; everything left out says nothing. `low` and `high` bound the probability: low <= p < high, and 1 is within."""

    label: str = ""
    decision: str = ""  # accept or review
    error: str = ""  # none, any, or an error code
    low: float = 0
    high: float = 1

    def sql(self) -> tuple[str, list[Any]]:
        """The condition and its parameters."""
        terms: list[tuple[str, list[Any]]] = []
        if self.label:
            terms.append(("label = ?", [self.label]))
        if self.decision:
            terms.append(("decision = ?", [self.decision]))
        if self.error:
            terms.append(
                {"none": ("error_code = ''", []), "any": ("error_code <> ''", [])}.get(self.error, ("error_code = ?", [self.error]))
            )
        if self.low > 0:
            terms.append(("probability >= ?::FLOAT", [self.low]))
        if self.high < 1:
            terms.append(("probability < ?::FLOAT", [self.high]))
        return " AND ".join(term for term, _ in terms) or "true", [value for _, values in terms for value in values]


@dataclass(frozen=True)
class Page:
    """`rows` as shared.results.ROWS has them, and how many there are on all pages."""

    rows: list[dict[str, Any]]
    total: int


@dataclass(frozen=True)
class Around:
    """Where an item stands among the rows of a filter: its place from 0 of `total`, and the items `before` and `after` it."""

    place: int
    total: int
    before: list[int]
    after: list[int]


EVERY = Filter()


class Queries:
    """The indexes of the batches asked about last. One a process, used by all its threads; make it after any fork."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._indexes: OrderedDict[str, _Index] = OrderedDict()
        self._lock = threading.Lock()
        self._home: tuple[Path, IO[str]] | None = None  # where the indexes lie, and the lock that keeps it ours

    def page(self, batch: str, where: Filter = EVERY, order: str = "item", start: int = 0, limit: int = 100) -> Page:
        """The rows done so far that `where` lets through, sorted by one of ORDERS, from the `start`-th on, at most `limit`."""
        index = self._index(batch)
        items, total = index.span(start, limit) if (where, order) == (EVERY, "item") else index.find(where, order, start, limit)
        return Page(index.rows(items), total)

    def row(self, batch: str, item_id: int) -> dict[str, Any]:
        """One row. Raises NotFound."""
        found = self.rows(batch, [item_id])
        if not found:
            raise NotFound(f"The batch has no row for item {item_id} yet.")
        return found[0]

    def rows(self, batch: str, items: Sequence[int]) -> list[dict[str, Any]]:
        """The rows of some items, in their order; those that are not done are left out."""
        return self._index(batch).rows(items)

    def around(self, batch: str, item_id: int, where: Filter = EVERY, order: str = "item", before: int = 1, after: int = 1) -> Around:
        """Where an item stands under a filter and order, whether it is one of the rows itself or not. Raises NotFound."""
        index = self._index(batch)
        return (
            index.beside(item_id, before, after)
            if (where, order) == (EVERY, "item")
            else index.around(item_id, where, order, before, after)
        )

    def count(self, batch: str, where: Filter, items: Sequence[int]) -> int:
        """How many of `items` are rows that `where` lets through."""
        return self._index(batch).count(where, items)

    def first_without(self, batch: str, where: Filter, order: str, items: Sequence[int]) -> int | None:
        """The first row that `where` lets through and that is none of `items`."""
        return self._index(batch).first_without(where, order, items)

    def prepare(self, batch: str) -> None:
        """Read what is new in the background: who looks at a batch will soon ask something of it."""
        threading.Thread(target=self._index(batch).refresh, daemon=True).start()

    def _index(self, batch: str) -> "_Index":
        with self._lock:
            if batch not in self._indexes:
                if not self._home:
                    self._home = _own_folder(self.storage.cache / "queries")
                    weakref.finalize(self, shutil.rmtree, self._home[0], ignore_errors=True)
                self._indexes[batch] = _Index(self.storage, batch, self._home[0])
                if len(self._indexes) > BATCHES:
                    self._indexes.popitem(last=False)  # it goes when the last thread is done with it
            self._indexes.move_to_end(batch)
            return self._indexes[batch]


class _Index:
    """The narrow rows of one batch. Threads take turns at its database, so that its memory is that of one question."""

    def __init__(self, storage: Storage, batch: str, home: Path) -> None:
        self.storage, self.batch = storage, batch
        self._names: list[str] = []  # shards that exist, by the last look
        self._seen: set[str] = set()  # those whose rows are in the database
        self._complete = False  # none will be added any more
        self._filling = threading.Lock()  # held while new shards are taken in, the turns between them left to others
        self._turn = threading.Lock()
        folder = Path(tempfile.mkdtemp(dir=home))
        readable = Path(storage.root) if storage.is_local else storage.cache / "storage"
        self._db = duckdb.connect(folder / "rows.duckdb", config={**CONFIG, "temp_directory": str(folder)})
        self._db.execute("SET allowed_directories = ?", [[str(readable.resolve())]])
        self._db.execute("SET enable_external_access = false")  # no other file, no network, no extension
        self._db.execute("SET lock_configuration = true")
        self._db.execute(f"CREATE TABLE rows ({TABLE})")
        weakref.finalize(self, _close, self._db, folder)

    # -- without the database ---------------------------------------------------------------------------------------------

    def span(self, start: int, limit: int) -> tuple[list[int], int]:
        """The items done that are the `start`-th to the `start + limit`-th, and how many are done."""
        ranges = [results.shard_range(name) for name in self._look()]
        ends = list(accumulate(last - first for first, last in ranges))
        items: list[int] = []
        for at in range(bisect_right(ends, start), len(ranges)):
            if len(items) >= limit:
                break
            first, last = ranges[at]
            first += max(0, start - (ends[at] - (last - first)))
            items += range(first, min(last, first + limit - len(items)))
        return items, ends[-1] if ends else 0

    def beside(self, item_id: int, before: int, after: int) -> Around:
        """`around` among all rows in their own order. Raises NotFound."""
        name = self._holding([item_id])
        if not name:
            raise NotFound(f"The batch has no row for item {item_id} yet.")
        first, _ = results.shard_range(name[0])
        place = item_id - first + sum(b - a for a, b in map(results.shard_range, self._names[: self._names.index(name[0])]))
        start = max(0, place - before)
        items, total = self.span(start, place - start + 1 + after)
        at = place - start
        return Around(place, total, items[:at][::-1], items[at + 1 :])

    def rows(self, items: Sequence[int]) -> list[dict[str, Any]]:
        """Whole rows, read from the shards that hold them."""
        names = self._holding(items)
        if not names:
            return []
        paths = self._paths(names)
        with self._turn:
            found = self._db.execute(f"SELECT * FROM {SHARDS} WHERE item_id IN (SELECT unnest(?))", [paths, list(items)])
            columns = [column[0] for column in found.description or ()]
            rows = {row["item_id"]: row for row in (dict(zip(columns, values, strict=True)) for values in found.fetchall())}
        return [rows[item] for item in items if item in rows]

    def _look(self) -> list[str]:
        """The shards that exist now."""
        if not self._complete:
            complete = self.storage.exists(f"batches/{self.batch}/info.json")  # asked first: all shards are there before it is
            self._names = results.shards(self.storage, self.batch)
            self._complete = complete
        return self._names

    def _holding(self, items: Sequence[int]) -> list[str]:
        """The shards that hold these items; listed anew only when one is not among those known."""
        found = [_holder(self._names, item) for item in items]
        if None in found:
            names = self._look()
            found = [_holder(names, item) for item in items]
        return sorted({name for name in found if name})

    def _paths(self, names: Sequence[str]) -> list[str]:
        """Local paths of shards, fetched first where the storage is remote."""
        keys = [results.shard_key(self.batch, name) for name in names]
        if self.storage.is_local:
            return [str(self.storage.local(key)) for key in keys]
        with ThreadPoolExecutor(FETCHES) as pool:
            return [str(path.resolve()) for path in pool.map(self.storage.local, keys)]

    # -- with it ----------------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Take in the rows of the shards that are new."""
        with self._filling:
            new = [name for name in self._look() if name not in self._seen]
            for at in range(0, len(new), CHUNK):
                chunk = new[at : at + CHUNK]
                paths = self._paths(chunk)
                with self._turn:
                    self._db.execute(f"INSERT INTO rows SELECT {INDEXED} FROM {SHARDS}", [paths])
                self._seen.update(chunk)

    def find(self, where: Filter, order: str, start: int, limit: int) -> tuple[list[int], int]:
        """The items of a page, and how many there are on all pages."""
        condition, values = where.sql()
        slot = f"floor({ORDERS[order]} * {SLOTS})" if order != "item" else "0"
        with self._asking() as db:
            # Counted by slots of the key first: only those that the page lies in are sorted, however deep it is.
            counts = db.execute(f"SELECT {slot}, count(*) FROM rows WHERE {condition} GROUP BY ALL ORDER BY ALL", values).fetchall()
            ends = list(accumulate(count for _, count in counts))
            if not ends or start >= ends[-1]:
                return [], ends[-1] if ends else 0
            first, last = bisect_right(ends, start), bisect_left(ends, min(start + limit, ends[-1]))
            bounds = [counts[first][0], counts[last][0], limit, start - (ends[first] - counts[first][1])]
            found = db.execute(
                f"SELECT item_id FROM rows WHERE {condition} AND {slot} BETWEEN ? AND ? ORDER BY {ORDERS[order]}, item_id LIMIT ? OFFSET ?",
                [*values, *bounds],
            )
            return _items(found), ends[-1]

    def around(self, item_id: int, where: Filter, order: str, before: int, after: int) -> Around:
        """Where an item stands. Raises NotFound."""
        condition, values = where.sql()
        key = ORDERS[order]
        with self._asking() as db:
            here = db.execute(f"SELECT {key}, item_id FROM rows WHERE item_id = ?", [item_id]).fetchone()
            if here is None:
                raise NotFound(f"The batch has no row for item {item_id} yet.")
            total = _number(db, f"SELECT count(*) FROM rows WHERE {condition}", values)
            place = _number(db, f"SELECT count(*) FROM rows WHERE {condition} AND ({key}, item_id) < (?, ?)", [*values, *here])
            beside = (
                f"SELECT item_id FROM rows WHERE {condition} AND ({key}, item_id) {{0}} (?, ?) ORDER BY {key} {{1}}, item_id {{1}} LIMIT ?"
            )
            earlier = _items(db.execute(beside.format("<", "DESC"), [*values, *here, before]))
            later = _items(db.execute(beside.format(">", "ASC"), [*values, *here, after]))
        return Around(place, total, earlier, later)

    def count(self, where: Filter, items: Sequence[int]) -> int:
        """How many of `items` the filter lets through."""
        condition, values = where.sql()
        with self._asking() as db:
            return _number(db, f"SELECT count(*) FROM rows WHERE {condition} AND item_id IN (SELECT unnest(?))", [*values, list(items)])

    def first_without(self, where: Filter, order: str, items: Sequence[int]) -> int | None:
        """The first row of a filter that is none of `items`."""
        condition, values = where.sql()
        with self._asking() as db:
            found = db.execute(
                f"SELECT item_id FROM rows WHERE {condition} AND item_id NOT IN (SELECT unnest(?)) ORDER BY {ORDERS[order]}, item_id LIMIT 1",
                [*values, list(items)],
            )
            return next(iter(_items(found)), None)

    @contextlib.contextmanager
    def _asking(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """The database, up to date, while it is this thread's turn."""
        self.refresh()
        with self._turn:
            yield self._db


def _holder(names: Sequence[str], item_id: int) -> str | None:
    """The shard of sorted `names` that holds an item."""
    at = bisect_right(names, item_id, key=lambda name: results.shard_range(name)[0]) - 1
    return names[at] if at >= 0 and item_id < results.shard_range(names[at])[1] else None


def _items(found: duckdb.DuckDBPyConnection) -> list[int]:
    return [item for (item,) in found.fetchall()]


def _number(db: duckdb.DuckDBPyConnection, statement: str, values: Sequence[Any]) -> int:
    (number,) = db.execute(statement, values).fetchone() or (0,)
    return int(number)


def _own_folder(home: Path) -> tuple[Path, IO[str]]:
    """A folder for this process alone and the lock on it, which the kernel releases however the process ends.

    Folders whose lock nobody holds were left by processes that are gone (killed, perhaps), and are deleted.
    """
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as door:
        fcntl.flock(door, fcntl.LOCK_EX)  # nobody clears up between the making of a folder and its lock
        for folder in filter(Path.is_dir, home.iterdir()):
            with (folder / "lock").open("w") as lock, contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
        own = Path(tempfile.mkdtemp(dir=home))
        mine = (own / "lock").open("w")
        fcntl.flock(mine, fcntl.LOCK_EX)
        return own, mine


def _close(db: duckdb.DuckDBPyConnection, folder: Path) -> None:
    db.close()
    shutil.rmtree(folder, ignore_errors=True)
