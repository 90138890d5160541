"""A scrape that was killed goes on: the log on storage, and what is not fetched again."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from image_server import ImageServer

from shared import datasets
from shared.errors import Cancelled, DarkroomError
from shared.settings import Settings
from shared.specs import ScrapeSpec
from shared.storage import Storage, image_key
from worker.progress import Progress
from worker.scraping import log, scrape
from worker.scraping.log import Log

KEPT = {"sha256": "ab" * 32, "ext": "jpg", "bytes": 3}
GONE = {"reason": "not_found", "detail": "It is gone."}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "store"), tmp_path)


def url(n: int) -> str:
    return f"http://host/{n}.jpg"


def origin(n: int) -> dict[str, Any]:
    return {"label": "cat", "name": f"picture {n}"}


def test_what_was_noted_is_read_again_in_order(storage):
    storage.write(image_key(KEPT["sha256"], "jpg"), b"abc")
    first = Log(storage, "job1")
    first.add(url(1), origin(1), KEPT)
    assert first.write()
    first.add(url(2), origin(2), GONE)
    assert first.write()
    assert not first.write()
    again = Log(storage, "job1")
    assert again.rows == [(url(1), origin(1), KEPT), (url(2), origin(2), GONE)]
    assert again.found == {"http://host/1.jpg": KEPT, "http://host/2.jpg": GONE}


def test_a_log_of_many_files_becomes_one(storage, monkeypatch):
    monkeypatch.setattr(log, "WHOLE", 4)
    for n in range(11):  # each from where the one before has ended
        each = Log(storage, "job1")
        each.add(url(n), origin(n), GONE)
        each.write()
    assert len(storage.list("scrapes/job1")) <= 4
    assert [row[0] for row in Log(storage, "job1").rows] == [url(n) for n in range(11)]


def test_a_picture_that_the_disk_has_lost_is_no_part_of_the_log(storage):
    storage.write(image_key(KEPT["sha256"], "jpg"), b"")  # as after a power cut
    first = Log(storage, "job1")
    first.add(url(1), origin(1), KEPT)
    first.add(url(2), origin(2), GONE)
    first.write()
    assert list(Log(storage, "job1").found) == ["http://host/2.jpg"]


def test_a_damaged_end_of_a_file_costs_only_that(storage):
    first = Log(storage, "job1")
    first.add(url(1), origin(1), GONE)
    first.add(url(2), origin(2), GONE)
    first.write()
    key = "scrapes/job1/00000000.jsonl"
    storage.write(key, storage.read(key)[:-20])
    assert list(Log(storage, "job1").found) == ["http://host/1.jpg"]


# -- a whole scrape -----------------------------------------------------------------------------------------------------

PROGRAM = """
import sys
from shared.settings import Settings
from shared.specs import ScrapeSpec
from shared.storage import Storage
from worker.progress import Progress
from worker.scraping import scrape

settings = Settings.model_validate_json(sys.argv[1])
spec = ScrapeSpec.model_validate_json(sys.argv[2])
scrape(spec, "job1", Storage(settings.storage, settings.cache), settings, Progress(lambda said: None))
"""


@pytest.fixture
def server() -> Iterator[ImageServer]:
    with ImageServer() as running:
        yield running


@pytest.fixture
def settings(tmp_path: Path, server: ImageServer) -> Settings:
    addresses = {"openverse_url": f"{server.url}/openverse", "commons_url": f"{server.url}/commons"}
    return Settings(storage=str(tmp_path / "store"), cache=tmp_path / "cache", fetch_allow=["127.0.0.0/8"], **addresses)


SPEC = ScrapeSpec.model_validate(
    {"dataset": "pets", "classes": [{"name": "cat"}, {"name": "dog"}], "per_class": 200, "sources": ["openverse"]}
)


def fetched(server: ImageServer) -> Counter[str]:
    return Counter(path for path in server.paths() if path.startswith(("/img/", "/bad/")))


def test_a_scrape_that_is_killed_goes_on_without_fetching_again_what_it_has(server, settings, storage):
    for label in ("cat", "dog"):
        server.hits["openverse"][label] = [f"/bad/gone/{label}.jpg", *(f"/img/{label}-{n}.jpg" for n in range(200))]
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, settings.model_dump_json(), SPEC.model_dump_json()])
    try:
        while len(Log(storage, "job1").rows) < 60:
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    known = set(Log(storage, "job1").found)
    assert 60 <= len(known) < 402
    before = fetched(server)
    result = scrape(SPEC, "job1", storage, settings, Progress(lambda _: None))
    assert result == {"dataset": "pets", "version": 1, "images": 400, "dropped": 2}
    again = {f"{server.url}{path}" for path, times in (fetched(server) - before).items() if times}
    assert not again & known
    assert len({row["url"] for row in datasets.rows(storage, "pets", 1)}) == 400
    assert storage.list("scrapes") == [] or storage.list("scrapes/job1") == []
    assert list((settings.cache / "scrapes").iterdir()) == []


def test_a_scrape_that_is_told_to_stop_keeps_its_log_for_whoever_goes_on(server, settings, storage):
    for label in ("cat", "dog"):
        server.hits["openverse"][label] = [f"/img/{label}-{n}.jpg" for n in range(200)]
    stop = threading.Event()

    def listen(said: dict[str, Any]) -> None:  # a child is told so when its worker is gone, and not only when its job is cancelled
        if said.get("progress", {}).get("kept", 0) >= 50:
            stop.set()

    with pytest.raises(Cancelled):
        scrape(SPEC, "job1", storage, settings, Progress(listen, stop))
    known = set(Log(storage, "job1").found)
    before = fetched(server)
    assert known
    assert scrape(SPEC, "job1", storage, settings, Progress(lambda _: None))["images"] == 400
    assert not {f"{server.url}{path}" for path in fetched(server) - before} & known


def test_a_scrape_that_fails_for_good_leaves_no_log(server, settings, storage):
    server.hits["openverse"]["cat"] = ["/img/1.jpg"]
    with pytest.raises(DarkroomError, match="'cat' has 1"):
        scrape(SPEC, "job1", storage, settings, Progress(lambda _: None))
    assert storage.list("scrapes/job1") == []


def test_an_address_that_two_classes_share_is_kept_once(server, settings, storage):
    server.hits["openverse"]["cat"] = [f"/img/{n}.jpg" for n in range(3)]
    server.hits["openverse"]["dog"] = [*(f"/img/{n}.jpg" for n in range(3)), *(f"/img/dog-{n}.jpg" for n in range(200))]
    scrape(SPEC.model_copy(update={"per_class": 100}), "job1", storage, settings, Progress(lambda _: None))
    rows = datasets.rows(storage, "pets", 1, status="dropped")
    assert {row["reason"] for row in rows} == {"duplicate"}
    assert len(rows) == 3
