"""Searching for classes: from the sources to a dataset, and every way in which they and the web misbehave."""

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from image_server import ImageServer, picture
from search_server import KEY, addresses

from shared import datasets, sources
from shared.errors import Cancelled, DarkroomError
from shared.settings import Settings
from shared.specs import ScrapeSpec
from shared.storage import Storage, image_key
from worker.progress import Progress
from worker.scraping import scrape


class Room:
    """A server that stands in for the web, settings that point at it, and what the jobs told."""

    def __init__(self, folder: Path, server: ImageServer) -> None:
        self.server = server
        self.folder = folder
        self.told: list[dict[str, Any]] = []
        self.set()

    def set(self, **values: Any) -> None:
        values = {"operator_contact": "https://example.org", **values}
        there = addresses(self.server.url)
        self.settings = Settings(storage=str(self.folder / "store"), cache=self.folder, fetch_allow=["127.0.0.0/8"], **there, **values)
        self.storage = Storage(self.settings.storage, self.settings.cache)

    def offer(self, source: str, **hits: list[str] | int) -> None:
        """What a source answers to each query: paths, or how many pictures of its own."""
        for query, paths in hits.items():
            self.server.hits[source][query] = [f"/img/{source}-{query}-{n}.jpg" for n in range(paths)] if isinstance(paths, int) else paths

    def run(self, per_class: int = 3, job: str = "job1", stop: threading.Event | None = None, **values: Any) -> dict[str, Any]:
        classes = [{"name": "cat"}, {"name": "dog"}]
        spec = ScrapeSpec.model_validate({"dataset": "pets", "classes": classes, "per_class": per_class, **values})
        return scrape(spec, job, self.storage, self.settings, Progress(self.told.append, stop))

    def rows(self, status: str = "kept", label: str | None = None) -> list[dict[str, Any]]:
        return datasets.rows(self.storage, "pets", 1, status=status, label=label)

    def fails(self, *words: str, **values: Any) -> str:
        """The job fails with a sentence that holds all `words`, and no dataset is left; returns the sentence."""
        with pytest.raises(DarkroomError) as caught:
            self.run(**values)
        for word in words:
            assert word in str(caught.value)
        assert self.storage.list("datasets/pets") == []
        return str(caught.value)


@pytest.fixture
def server() -> Iterator[ImageServer]:
    with ImageServer() as running:
        yield running


@pytest.fixture
def room(tmp_path: Path, server: ImageServer) -> Room:
    return Room(tmp_path, server)


# -- the two sources -----------------------------------------------------------------------------------------------------


def test_each_class_is_filled_and_no_picture_is_fetched_in_vain(room):
    room.offer("openverse", cat=30, dog=30)
    assert room.run(per_class=5) == {"dataset": "pets", "version": 1, "images": 10, "dropped": 0}
    assert datasets.info(room.storage, "pets")["classes"] == {"cat": 5, "dog": 5}
    assert sum(path.startswith("/img/") for path in room.server.paths()) == 10


def test_a_hit_of_openverse_keeps_licence_creator_and_page(room):
    room.offer("openverse", cat=2, dog=2)
    room.run(per_class=2)
    row = next(row for row in room.rows() if row["name"] == "Photo /img/openverse-cat-0.jpg")
    assert (row["source"], row["licence"], row["creator"]) == ("openverse", "CC BY-SA 2.0", "Tim Sullivan")
    assert row["licence_url"] == "https://creativecommons.org/licenses/by-sa/2.0/"
    assert row["page_url"] == f"{room.server.url}/page/img/openverse-cat-0.jpg"
    assert row["url"] == f"{room.server.url}/img/openverse-cat-0.jpg"
    assert room.storage.read(image_key(row["sha256"], row["ext"])) == picture("openverse-cat-0.jpg")


def test_a_hit_of_commons_keeps_licence_and_the_creator_without_html(room):
    room.offer("commons", cat=2, dog=2)
    room.run(per_class=2, sources=["commons"])
    row = next(row for row in room.rows() if row["name"] == "/img/commons-cat-0.jpg")
    assert (row["source"], row["licence"], row["creator"]) == ("commons", "CC0", "Six & Seven")
    assert row["url"].endswith("/img/commons-cat-0.jpg?utm_source=commons.wikimedia.org")


def test_commons_is_read_in_order_of_rank_and_page_after_page(room):
    room.offer("commons", cat=120, dog=60)
    room.run(per_class=55, sources=["commons"])
    assert {row["name"] for row in room.rows(label="cat")} == {f"/img/commons-cat-{n}.jpg" for n in range(55)}


def test_what_commons_calls_no_bitmap_is_passed_over(room):
    room.offer("commons", cat=["/img/scan.pdf", "/img/c1.jpg", "/img/c2.jpg"], dog=2)
    room.run(per_class=2, sources=["commons"])
    assert "/img/scan.pdf" not in room.server.paths()


def test_openverse_is_never_asked_deeper_than_it_answers(room):
    room.set(openverse_client_id="darkroom", openverse_client_secret=KEY)  # who may ask more often
    room.offer("openverse", cat=[f"/bad/gone/{n}.jpg" for n in range(300)], dog=3)
    room.offer("commons", cat=3)
    room.run(per_class=50)
    asked = [request.query for request in room.server.seen if request.path == "/openverse" and request.query["q"] == "cat"]
    assert max(int(query["page"]) for query in asked) == 12


def test_the_words_to_search_for_may_differ_from_the_class_name(room):
    room.offer("openverse", cat=2, wolf=2)
    room.run(per_class=2, classes=[{"name": "cat"}, {"name": "dog", "query": "wolf"}])
    assert datasets.info(room.storage, "pets")["classes"] == {"cat": 2, "dog": 2}


def test_the_next_source_fills_what_the_first_lacks(room):
    room.offer("openverse", cat=2, dog=9)
    room.offer("commons", cat=9, dog=9)
    room.run(per_class=5)
    assert sorted(row["source"] for row in room.rows(label="cat")) == ["commons"] * 3 + ["openverse"] * 2
    assert {row["source"] for row in room.rows(label="dog")} == {"openverse"}


def test_a_hit_keeps_what_names_its_creator_and_what_was_searched_for(room):
    room.offer("openverse", cat=2, wolf=2)
    room.run(per_class=2, classes=[{"name": "cat"}, {"name": "dog", "query": "wolf"}])
    row = room.rows(label="dog")[0]
    assert (row["query"], row["creator_url"]) == ("wolf", "https://stocksnap.io/author/1")
    assert row["attribution"].endswith("by Tim Sullivan is licensed under CC BY-SA 2.0.")


def test_a_hit_whose_licence_was_not_asked_for_is_a_row_and_is_not_fetched(room):
    room.set(flickr_key=KEY)
    room.offer("flickr", cat=10, dog=10)
    room.run(per_class=2, sources=["flickr"], licence="public")
    assert {row["licence"] for row in room.rows()} == {"CC0 1.0"}
    room.set(serpapi_key=KEY)
    room.offer("serpapi", cat=4, dog=4)
    room.run(per_class=2, sources=["serpapi"], licence="known", job="job2")
    rows = datasets.rows(room.storage, "pets", 2, status="dropped")
    assert {(row["reason"], row["detail"]) for row in rows} == {("licence", "The source names no licence of this image.")}
    assert not {row["url"].removeprefix(room.server.url) for row in rows} & set(room.server.paths())


def test_addresses_and_a_folder_of_the_order_come_before_the_searches(room, tmp_path):
    for name in ("cat", "Dog"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        (tmp_path / "mine" / name / "1.jpg").write_bytes(picture(f"mine {name}"))
    room.offer("openverse", cat=9, dog=9)
    classes = [{"name": "cat", "urls": [f"{room.server.url}/img/given.jpg"]}, {"name": "dog"}]
    room.run(per_class=3, classes=classes, folder=str(tmp_path / "mine"))
    assert sorted(row["source"] for row in room.rows(label="cat")) == ["folder", "openverse", "urls"]
    assert sorted(row["source"] for row in room.rows(label="dog")) == ["folder", "openverse", "openverse"]
    assert {row["licence"] for row in room.rows() if row["source"] != "openverse"} == {"unknown"}
    assert not any(str(tmp_path) in str(row) for row in room.rows())
    assert "given.jpg" not in str(datasets.info(room.storage, "pets"))  # ten thousand of them would weigh on every page


def test_a_search_that_offers_a_file_of_the_server_is_refused(room, tmp_path):
    (tmp_path / "secret.jpg").write_bytes(picture("secret"))
    room.offer("openverse", cat=[f"file://{tmp_path}/secret.jpg", "/img/1.jpg", "/img/2.jpg"], dog=2)
    room.run(per_class=3, sources=["openverse"])
    assert [row["reason"] for row in room.rows("dropped")] == ["blocked_address"]


def test_unsplash_is_told_of_each_photograph_that_is_kept_and_of_no_other(room):
    room.set(unsplash_key=KEY)
    room.offer("unsplash", cat=["/img/c1.jpg", "/bad/gone/c2.jpg", "/img/c3.jpg"], dog=["/img/d1.jpg", "/img/d2.jpg"])
    room.run(per_class=2, sources=["unsplash"])
    told = {path.removeprefix("/unsplash-used/") for path in room.server.paths() if path.startswith("/unsplash-used/")}
    assert told == {"c1.jpg", "c3.jpg", "d1.jpg", "d2.jpg"}


def test_no_key_is_in_what_a_scrape_leaves_behind(room):
    keys = {f"{name}_key": KEY for name in ("flickr", "brave", "serpapi", "google", "pexels", "unsplash", "bing")}
    room.set(**keys, google_cx="engine", openverse_client_id="darkroom", openverse_client_secret=KEY)
    names = ["openverse", "flickr", "brave", "serpapi", "google", "pexels", "unsplash", "bing"]
    for name in names:
        room.server.hits[name] = {label: [f"/img/{name}-{label}.jpg?key={KEY}"] for label in ("cat", "dog")}
    room.run(per_class=9, sources=names)
    left = [path for path in Path(room.settings.storage).rglob("*") if path.is_file() and path.suffix in {".json", ".parquet"}]
    assert len(left) > len(names)
    assert len(room.rows()) == 16
    assert not [path for path in left if KEY.encode() in path.read_bytes()]
    assert KEY not in str(room.rows())
    assert KEY not in str(room.told)


def test_a_class_name_is_data_wherever_it_is_searched_for(room):
    names = ["<img src=x onerror=alert(1)>", "../../etc/passwd", "a&b=c#d"]
    room.server.hits["openverse"] = {name: [f"/img/{n}-{k}.jpg" for k in range(2)] for n, name in enumerate(names)}
    room.run(per_class=2, classes=[{"name": name} for name in names], sources=["openverse"])
    assert datasets.info(room.storage, "pets")["classes"] == dict.fromkeys(sorted(names), 2)


# -- sources that fail ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fault", "words"), [("forbidden", "403"), ("html", "web page"), ("truncated", "broken JSON"), ("empty", "broken JSON"), ("busy", "429")])  # fmt: skip
def test_a_source_that_fails_leaves_the_work_to_the_other_and_is_told(room, fault, words):
    room.server.faults["openverse"] = fault
    room.offer("commons", cat=3, dog=3)
    assert room.run()["images"] == 6
    (failure,) = datasets.info(room.storage, "pets")["source"]["failures"]
    assert failure.startswith("Openverse could not be searched")
    assert words in failure


def test_when_every_source_fails_the_job_fails_with_what_each_said(room):
    room.server.faults.update(openverse="forbidden", commons="html")
    room.fails("Openverse could not be searched", "Not for you.", "Wikimedia Commons could not be searched", "web page")


def test_how_each_source_did_is_kept_for_those_who_order_next(room):
    room.server.faults["openverse"] = "forbidden"
    room.offer("commons", cat=3, dog=3)
    room.run()
    found = {entry["name"]: entry for entry in sources.standings(room.settings, room.storage)}
    assert (found["openverse"]["state"], found["commons"]["state"], found["urls"]["state"]) == ("failed", "works", "untried")
    assert "answered 403" in found["openverse"]["sentence"]


def test_how_a_source_did_is_kept_when_the_scrape_fails(room):
    room.server.faults.update(openverse="forbidden", commons="html")
    room.fails("Openverse could not be searched")
    assert {name: sources.standings(room.settings, room.storage)[n]["state"] for n, name in enumerate(("openverse", "commons"))} == {
        "openverse": "failed",
        "commons": "failed",
    }


def test_a_source_that_failed_twice_is_not_asked_again(room):
    room.server.faults["openverse"] = "forbidden"
    names = [f"class {n}" for n in range(12)]
    room.offer("commons", **dict.fromkeys(names, 2))
    room.run(per_class=2, classes=[{"name": name} for name in names])
    assert room.server.paths().count("/openverse") < len(names)


def test_commons_without_a_contact_is_passed_over_when_the_other_source_suffices(room):
    room.set(operator_contact="")
    room.offer("openverse", cat=2, dog=2)
    assert room.run(per_class=3)["images"] == 4
    assert "/commons" not in room.server.paths()


def test_commons_alone_without_a_contact_fails_and_says_what_to_set(room):
    room.set(operator_contact="")
    room.fails("DARKROOM_OPERATOR_CONTACT", sources=["commons"])


def test_the_contact_is_sent_with_every_request(room):
    room.offer("commons", cat=2, dog=2)
    room.run(per_class=2, sources=["commons"])
    assert {request.headers["User-Agent"] for request in room.server.seen} == {"Darkroom/0.1 (https://example.org)"}


def test_classes_without_enough_pictures_are_named(room):
    room.offer("openverse", cat=3, dog=1)
    sentence = room.fails("'dog' has 1", "'unicorn' has 0", classes=[{"name": n} for n in ("cat", "dog", "unicorn")])
    assert "'cat'" not in sentence


# -- pictures that fail --------------------------------------------------------------------------------------------------


def test_every_hit_ends_as_a_row_kept_or_dropped_with_a_reason(room):
    faults = {
        "/bad/html/x.jpg": "unsupported", "/bad/truncated/x.jpg": "truncated", "/bad/empty/x.jpg": "empty", "/bad/bomb/x.png": "too_large",
        "/bad/forbidden/x.jpg": "forbidden", "/bad/gone/x.jpg": "not_found", "/bad/noai/x.jpg": "opted_out", "/hop/4/x.jpg": "http_error",
        "/to?http://169.254.169.254/": "blocked_address", "http://10.0.0.1/x.jpg": "blocked_address", "/img/tiny.jpg": "too_small",
    }  # fmt: skip
    room.offer("openverse", cat=[*faults, "/img/1.jpg", "/busy/1/1/2.jpg", "/hop/3/3.jpg"], dog=3)
    room.run(sources=["openverse"])
    assert {row["name"].removeprefix("Photo "): row["reason"] for row in room.rows("dropped")} == faults
    assert all(row["detail"].endswith(".") and row["label"] == "cat" for row in room.rows("dropped"))
    assert len(room.rows(label="cat")) == 3


def test_a_picture_smaller_than_asked_for_is_dropped_when_it_is_seen(room):
    room.offer("openverse", cat=4, dog=4)
    room.fails("No usable images", "8 too_small", min_side=81, sources=["openverse"])


def test_the_same_bytes_under_two_addresses_are_kept_once(room):
    room.offer("openverse", cat=["/img/a.jpg", "/copy/1/a.jpg", "/copy/2/a.jpg", "/img/b.jpg"], dog=2)
    room.run(per_class=4, sources=["openverse"])
    assert [row["reason"] for row in room.rows("dropped")] == ["duplicate"] * 2
    assert {row["sha256"] for row in room.rows(label="cat")} == {hashlib.sha256(picture(n)).hexdigest() for n in ("a.jpg", "b.jpg")}


# -- adding, progress, cancelling ----------------------------------------------------------------------------------------


def test_a_second_scrape_adds_new_pictures_to_the_dataset(room):
    room.offer("openverse", cat=4, dog=4)
    room.run(per_class=2)
    assert room.run(per_class=2, job="job2") == {"dataset": "pets", "version": 2, "images": 8, "dropped": 4}
    assert datasets.info(room.storage, "pets")["parent"] == 1


def test_a_second_scrape_that_finds_nothing_new_makes_no_version(room):
    room.offer("openverse", cat=2, dog=2)
    room.run(per_class=2, sources=["openverse"])
    with pytest.raises(DarkroomError, match="No new images"):
        room.run(per_class=2, sources=["openverse"], job="job2")
    assert datasets.latest(room.storage, "pets") == 1


def test_progress_shows_each_class_and_the_latest_pictures(room):
    room.offer("openverse", cat=30, dog=1)
    room.offer("commons", dog=["/img/d.jpg", "/bad/gone/x.jpg"])
    room.run(per_class=20)
    last = room.told[-1]["progress"]
    assert last["classes"] == {"cat": 20, "dog": 2}
    assert (last["done"], last["total"], last["kept"], last["dropped"], last["reasons"]) == (40, 40, 22, 1, {"not_found": 1})
    assert len(last["latest"]) == 22
    for entry in last["latest"]:
        assert room.storage.exists(image_key(entry["sha256"], entry["ext"]))


def test_a_cancel_stops_a_scrape_that_waits_for_a_slow_server(room):
    room.offer("openverse", cat=["/bad/drip/1.jpg"] * 20, dog=["/bad/drip/2.jpg"] * 20)
    stop = threading.Event()
    outcome: list[type[BaseException]] = []

    def work() -> None:
        try:
            room.run(stop=stop)
        except Cancelled as cancelled:
            outcome.append(type(cancelled))

    thread = threading.Thread(target=work)
    thread.start()
    while not any(path.startswith("/bad/drip") for path in room.server.paths()):
        assert thread.is_alive()
    stop.set()
    thread.join(20)  # the server would drip for 40 seconds
    assert outcome == [Cancelled]
    assert datasets.names(room.storage) == []
