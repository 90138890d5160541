"""Rows of a batch, filtered and sorted: the same from many shards, while they arrive, and on any storage."""

import os
import random
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from conftest import until
from test_results import row

from shared import queries, results
from shared.errors import NotFound
from shared.queries import EVERY, ORDERS, Filter, Queries
from shared.storage import Storage


@pytest.fixture(params=["local", "remote"])
def storage(request, tmp_path):
    url = str(tmp_path / "a[1]*b='c'" / "store") if request.param == "local" else f"memory://{tmp_path.name}"
    return Storage(url, tmp_path / "cache")


@pytest.fixture
def asked(storage):
    return Queries(storage)


def put(storage, first, rows, batch="b"):
    name = results.shard_name(first, first + len(rows))
    storage.write(results.shard_key(batch, name), results.shard_bytes(pa.Table.from_pylist(rows, schema=results.ROWS)))


def many(count=300):
    """Rows of all kinds, the same at every call."""
    dice = random.Random(1)
    rows = []
    for n in range(count):
        p = round(dice.random(), 3)
        rows.append(row(n, dice.choice(["cat", "dog", "it's"]), p, error="empty" if n % 17 == 0 else "truncated" if n % 23 == 0 else ""))
    return rows


def ids(page):
    return [r["item_id"] for r in page.rows]


def passes(r, where):
    p = r["probability"]
    return (
        (not where.label or r["label"] == where.label)
        and (not where.decision or r["decision"] == where.decision)
        and {"": True, "none": not r["error_code"], "any": bool(r["error_code"])}.get(where.error, r["error_code"] == where.error)
        and (where.low == 0 or (p is not None and p >= where.low))
        and (where.high == 1 or (p is not None and p < where.high))
    )


FILTERS = [
    EVERY, Filter(label="dog"), Filter(label="it's"), Filter(label="nothing"), Filter(decision="review"), Filter(error="any"), Filter(error="none"),
    Filter(error="truncated"), Filter(low=0.25, high=0.75), Filter("cat", "accept", "none", 0.7, 0.9), Filter(label="x' OR 1=1 --"), Filter(error="' OR ''='"),
]  # fmt: skip
KEYS = {
    "item": lambda r: r["item_id"],
    "confidence": lambda r: (2 if r["probability"] is None else r["probability"], r["item_id"]),
    "-confidence": lambda r: (2 if r["probability"] is None else -r["probability"], r["item_id"]),
    "margin": lambda r: (2 if r["margin"] is None else r["margin"], r["item_id"]),
}


def test_every_order_has_a_test():
    assert set(KEYS) == set(ORDERS)


@pytest.mark.parametrize("order", KEYS)
def test_any_page_of_any_question_is_what_a_look_at_every_row_gives(storage, asked, order):
    rows = many()
    for first in range(0, len(rows), 40):
        put(storage, first, rows[first : first + 40])
    for where in FILTERS:
        expected = sorted((r for r in rows if passes(r, where)), key=KEYS[order])
        for start in (0, 7, 100, 290, 500):
            page = asked.page("b", where, order, start, 25)
            assert (ids(page), page.total) == ([r["item_id"] for r in expected[start : start + 25]], len(expected)), (where, start)


def test_a_row_comes_whole(storage, asked):
    put(storage, 0, [row(0), row(1, "dog", 0.5)])
    schema = {field.name for field in results.ROWS}
    found = asked.row("b", 1)
    assert set(found) == schema
    assert (found["top_labels"], found["probability"], found["uri"]) == (["dog", "dog"], 0.5, "1.jpg")


def test_a_row_that_is_not_there_yet_is_not_found(storage, asked):
    put(storage, 0, [row(0)])
    for missing in (1, 10**9):
        with pytest.raises(NotFound):
            asked.row("b", missing)
        with pytest.raises(NotFound):
            asked.around("b", missing)
        with pytest.raises(NotFound):
            asked.around("b", missing, Filter(label="cat"))


def test_a_batch_without_rows_has_an_empty_page(asked):
    assert asked.page("b") == asked.page("b", Filter(label="cat")) == queries.Page([], 0)


def test_shards_that_arrive_are_seen_by_the_next_question(storage, asked):
    rows = many(120)
    put(storage, 80, rows[80:])
    assert ids(asked.page("b", limit=2)) == [80, 81]
    assert asked.page("b", Filter(error="none")).total == sum(not r["error_code"] for r in rows[80:])
    put(storage, 0, rows[:40])
    assert ids(asked.page("b", start=39, limit=2)) == [39, 80]
    assert asked.page("b", Filter(error="none")).total == sum(not r["error_code"] for r in rows[:40] + rows[80:])
    assert asked.row("b", 3)["uri"] == "3.jpg"
    put(storage, 40, rows[40:80])
    storage.write_json("batches/b/info.json", {})
    assert asked.page("b", Filter(error="none")).total == sum(not r["error_code"] for r in rows)


@pytest.mark.parametrize("where", [EVERY, Filter(error="none"), Filter(decision="review", error="none")], ids=repr)
@pytest.mark.parametrize("order", KEYS)
def test_an_item_knows_its_place_and_its_neighbours(storage, asked, where, order):
    rows = many(100)
    for first in (0, 50):
        put(storage, first, rows[first : first + 50])
    line = [r["item_id"] for r in sorted((r for r in rows if passes(r, where)), key=KEYS[order])]
    for place in (0, 1, len(line) // 2, len(line) - 1):
        around = asked.around("b", line[place], where, order, before=2, after=3)
        assert (around.place, around.total) == (place, len(line))
        assert (around.before, around.after) == (line[max(0, place - 2) : place][::-1], line[place + 1 : place + 4])


def test_the_first_that_was_not_decided_and_how_many_were(storage, asked):
    put(storage, 0, [row(0, probability=0.5), row(1, probability=0.3), row(2, probability=0.4), row(3, error="empty")])
    where = Filter(decision="review")
    assert [asked.first_without("b", where, "margin", done) for done in ([], [1], [1, 2], [0, 1, 2])] == [1, 2, 0, None]
    assert asked.count("b", where, [1, 2, 3, 77]) == 2


def test_many_threads_ask_while_shards_arrive(storage, asked):
    rows = many(400)

    def ask(n):
        if n % 2:
            put(storage, n * 10, rows[n * 10 : n * 10 + 10])
        return asked.page("b", Filter(error="none"), "margin", limit=400)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(40)))
    assert all(len(page.rows) == page.total for page in answers)
    there = [r for r in rows if (r["item_id"] // 10) % 2]
    assert asked.page("b", Filter(error="none")).total == sum(not r["error_code"] for r in there)


def test_batches_beyond_the_few_that_are_kept_are_read_again(storage, asked):
    names = [f"b{n}" for n in range(queries.BATCHES + 2)]
    for name in names:
        put(storage, 0, [row(0), row(1, "dog")], name)
    for name in [*names, *names]:
        assert ids(asked.page(name, Filter(label="dog"))) == [1]
    kept = [path for path in (storage.cache / "queries").glob("*/*") if path.is_dir()]
    assert len(kept) == queries.BATCHES


def test_the_database_reads_shards_and_nothing_else(storage, asked, tmp_path):
    put(storage, 0, [row(0)])
    asked.page("b", Filter(label="cat"))
    (index,) = asked._indexes.values()
    (tmp_path / "secret.csv").write_text("a\n1\n")
    for statement in (
        f"FROM read_csv('{tmp_path}/secret.csv')",
        f"COPY (SELECT 1) TO '{tmp_path}/out.csv'",
        f"ATTACH '{tmp_path}/other.duckdb'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET memory_limit = '10GB'",
    ):
        with pytest.raises(duckdb.Error):
            index._db.execute(statement)


HOLD = """
import sys, time
from pathlib import Path
from shared.queries import Filter, Queries
from shared.storage import Storage
asked = Queries(Storage(sys.argv[1], Path(sys.argv[2])))
asked.page("b", Filter(label="cat"))
print("ready", flush=True)
time.sleep(float(sys.argv[3]))
"""


def folders(cache: Path) -> set[str]:
    return {path.name for path in (cache / "queries").iterdir() if path.is_dir()}


def test_what_a_killed_process_left_is_cleared_and_what_a_live_one_uses_is_not(tmp_path):
    storage = Storage(str(tmp_path / "store"), tmp_path / "cache")
    put(storage, 0, [row(0)])

    def start(seconds):
        command = [sys.executable, "-c", HOLD, storage.url, str(storage.cache), seconds]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        return process

    killed = start("60")
    left = folders(storage.cache)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert folders(storage.cache) == left
    living = start("60")
    assert not left & (in_use := folders(storage.cache))
    mine = Queries(storage)
    assert mine.page("b", Filter(label="cat")).total == 1
    assert in_use < folders(storage.cache)
    living.kill()
    living.wait()


def test_a_process_that_ends_leaves_nothing(tmp_path):
    storage = Storage(str(tmp_path / "store"), tmp_path / "cache")
    put(storage, 0, [row(0)])
    subprocess.run([sys.executable, "-c", HOLD, storage.url, str(storage.cache), "0"], check=True, capture_output=True)
    assert folders(storage.cache) == set()


def test_an_index_is_prepared_in_the_background(storage, asked):
    put(storage, 0, [row(0), row(1)])
    asked.prepare("b")
    (index,) = asked._indexes.values()
    until(lambda: index._seen, 10)
