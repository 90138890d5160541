"""Ordering a scrape: the form with its sources, the API and the command line; the states that they show of each source."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from flask.testing import FlaskClient
from werkzeug.datastructures import MultiDict
from werkzeug.serving import make_server
from werkzeug.test import TestResponse

from cli.main import cli
from shared import sources
from shared.jobs import Job
from shared.settings import Settings
from shared.storage import Storage
from web import create_app
from web.backend import Backend
from web.forms import class_lines

HOSTILE = "<img src=x onerror=alert(1)>"
KEY = "a-key-that-nobody-sees"
FAILURE = f"Wikimedia Commons could not be searched: it answered with {HOSTILE}."


@pytest.fixture
def keyed(settings: Settings) -> Settings:
    """An installation with a key of Brave, whose sources were asked before: one works, one fails."""
    keyed = settings.model_copy(update={"brave_key": KEY, "openverse_client_secret": KEY, "operator_contact": "https://example.org"})
    storage = Storage(keyed.storage, keyed.cache)
    sources.note(storage, "openverse", "")
    sources.note(storage, "commons", FAILURE)
    return keyed


@pytest.fixture
def client(keyed: Settings) -> FlaskClient:
    return create_app(keyed).test_client()


@pytest.fixture
def run(keyed: Settings) -> Iterator[Callable[..., Result]]:
    server = make_server("127.0.0.1", 0, create_app(keyed), threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield lambda *args: CliRunner().invoke(cli, ["--url", f"http://127.0.0.1:{server.port}", *map(str, args)])
    server.shutdown()
    thread.join()
    server.server_close()


def post(client: FlaskClient, *pairs: tuple[str, str], **form: str) -> TestResponse:
    token = re.search(r'name="csrf_token" value="([^"]+)"', client.get("/datasets/new").text)
    assert token
    return client.post("/datasets/new", data=MultiDict([("csrf_token", token[1]), ("way", "scrape"), *pairs, *form.items()]))


def ordered(client: FlaskClient, keyed: Settings, *pairs: tuple[str, str], **form: str) -> Job:
    answer = post(client, *pairs, **{"dataset": "wonders", "classes": "Taj Mahal\nPetra", "safe": "1", **form})
    assert answer.status_code == 303, re.findall(r'class="wrong"[^>]*>[^<]*', answer.text)
    return Backend(keyed).store.get(answer.location.rsplit("/", 1)[1])


def listed(page: str) -> list[str]:
    return re.findall(r'name="listed" value="(\w+)"', page)


def ticked(page: str) -> list[str]:
    return re.findall(r'name="sources" value="(\w+)" checked', page)


# -- the form -----------------------------------------------------------------------------------------------------------


def test_the_form_lists_all_searches_with_what_each_needs_and_how_it_did(client):
    page = client.get("/datasets/new").text
    assert listed(page) == list(sources.SEARCHED)
    assert ticked(page) == ["openverse", "commons"]
    assert "works, <time" in page
    assert "failed <time" in page
    assert "<code>DARKROOM_FLICKR_KEY</code>" in page
    assert 'href="https://www.flickr.com/help/terms/api"' in page
    assert sources.UNNAMED in page


def test_the_form_shows_neither_a_key_nor_the_markup_of_what_a_source_said(client):
    page = client.get("/datasets/new").text
    assert KEY not in page
    assert HOSTILE not in page
    assert "it answered with &lt;img" in page


def test_a_scrape_is_ordered_with_all_fields_of_the_form(client, keyed, tmp_path):
    (tmp_path / "mine").mkdir()
    lines = "Taj Mahal\r\n  https://example.org/1.jpg\r\n  https://example.org/2.jpg?size=9\r\n\r\nPetra = Petra Jordan ruins\r\n"
    more = {
        "per_class": "7",
        "licence": "commercial",
        "min_side": "200",
        "region": "de-DE",
        "folder": str(tmp_path / "mine"),
        "note": "first",
    }
    spec = ordered(client, keyed, ("sources", "flickr"), ("sources", "openverse"), classes=lines, **more).spec
    assert spec["classes"] == [
        {"name": "Taj Mahal", "query": "", "urls": ["https://example.org/1.jpg", "https://example.org/2.jpg?size=9"]},
        {"name": "Petra", "query": "Petra Jordan ruins", "urls": []},
    ]
    assert spec["sources"] == ["urls", "folder", "flickr", "openverse"]
    assert {name: spec[name] for name in ("per_class", "licence", "min_side", "safe", "region", "note")} == {
        "per_class": 7, "licence": "commercial", "min_side": 200, "safe": True, "region": "de-de", "note": "first",
    }  # fmt: skip
    assert spec["folder"] == str(tmp_path / "mine")


def test_safe_search_can_be_turned_off(client, keyed):
    answer = post(client, ("sources", "openverse"), dataset="wonders", classes="Taj Mahal\nPetra")
    assert Backend(keyed).store.get(answer.location.rsplit("/", 1)[1]).spec["safe"] is False


def test_a_source_is_moved_and_everything_typed_stays(client, keyed):
    pairs = [("sources", "commons"), ("sources", "brave"), *(("listed", name) for name in sources.SEARCHED)]
    answer = post(client, *pairs, dataset="Not yet a name", classes=f"{HOSTILE}\nPetra", note="second", up="brave")
    assert answer.status_code == 200
    assert listed(answer.text)[:4] == ["openverse", "commons", "brave", "flickr"]
    assert ticked(answer.text) == ["commons", "brave"]
    assert 'value="Not yet a name"' in answer.text
    assert 'value="second"' in answer.text
    assert "&lt;img src=x onerror=alert(1)&gt;\nPetra</textarea>" in answer.text
    assert Backend(keyed).store.page(9) == []


@pytest.mark.parametrize("order", [[], ["altavista", "<b>"], ["brave", "brave"]])
def test_an_order_of_sources_that_is_none_is_put_right(client, order):
    answer = post(client, *(("listed", name) for name in order), up="openverse")
    assert sorted(listed(answer.text)) == sorted(sources.SEARCHED)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("region", "Germany", "A region is a country and a language"),
        ("folder", "/not/there", "There is no folder /not/there"),
        ("folder", "relative", "is not an absolute path"),
        ("licence", "free", "Input should be"),
        ("min_side", "0", "greater than or equal to 1"),
        ("note", "x" * 501, "at most 500 characters"),
        ("classes", "Taj Mahal\nhttps://\nPetra", "Taj Mahal: not an http or https address"),
        ("classes", "https://example.org/1.jpg\nPetra\nPETRA", "twice"),
        ("classes", "Petra", "at least 2"),
    ],
)
def test_what_does_not_fit_is_told_at_its_field_and_stays(client, keyed, field, value, words):
    answer = post(client, ("sources", "openverse"), **{"dataset": "wonders", "classes": "Taj Mahal\nPetra", field: value})
    assert answer.status_code == 422
    (wrong,) = re.findall(rf'id="wrong-{field}">(.*?)</p>', answer.text)
    assert words in re.sub("<[^>]+>", "", wrong)
    assert ticked(answer.text) == ["openverse"]
    assert value in answer.text.replace("\r\n", "\n") or field == "licence"
    assert Backend(keyed).store.page(9) == []


def test_a_form_without_a_source_is_refused_at_the_sources(client):
    answer = post(client, dataset="wonders", classes="Taj Mahal\nPetra")
    assert re.search(r'id="wrong-sources">Choose one source', answer.text)
    assert ticked(answer.text) == []


def test_addresses_alone_are_source_enough(client, keyed):
    job = ordered(client, keyed, classes="a\nhttps://example.org/1.jpg\nb\nhttps://example.org/2.jpg")
    assert job.spec["sources"] == ["urls"]


def test_a_class_that_is_markup_is_data_in_the_form_and_on_the_page_of_the_job(client, keyed):
    script = "<script>alert(1)</script>"
    job = ordered(client, keyed, ("sources", "openverse"), classes=f"{script}\n../../etc/passwd\n{HOSTILE}")
    assert [c["name"] for c in job.spec["classes"]] == [script, "../../etc/passwd", "<img src"]  # the words follow the first equals sign
    for page in (f"/jobs/{job.id}", "/jobs", "/"):
        text = client.get(page).text
        assert script not in text
        assert HOSTILE not in text


def test_lines_below_a_class_are_addresses_of_its_images():
    assert class_lines("a = b = c\n HTTP://x/1.jpg\nd") == [
        {"name": "a", "query": "b = c", "urls": ["HTTP://x/1.jpg"]},
        {"name": "d", "query": ""},
    ]


# -- the API ------------------------------------------------------------------------------------------------------------


def test_the_api_tells_the_state_of_each_source_and_no_key(client):
    answer = client.get("/api/v1/sources")
    found = {entry["name"]: entry for entry in answer.json["sources"]}
    assert list(found) == [source.name for source in sources.SOURCES]
    assert (found["openverse"]["state"], found["commons"]["state"], found["brave"]["state"]) == ("works", "failed", "untried")
    assert found["commons"]["sentence"] == FAILURE
    assert (found["flickr"]["state"], found["flickr"]["lacking"]) == ("needs", ["DARKROOM_FLICKR_KEY"])
    assert KEY not in answer.text


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"sources": ["altavista"]}, "sources"),
        ({"sources": "openverse"}, "sources"),
        ({"sources": []}, "sources"),
        ({"folder": "/not/there"}, "folder"),
        ({"folder": "/\0"}, "folder"),
        ({"region": 5}, "region"),
        ({"licence": None}, "licence"),
        ({"classes": [{"name": "a", "urls": ["javascript:alert(1)"]}, {"name": "b"}]}, "classes"),
        ({"classes": [{"name": "a", "urls": "http://x"}, {"name": "b"}]}, "classes"),
        ({"classes": [{"name": "a", "query": "x" * 201}, {"name": "b"}]}, "classes"),
    ],
)
def test_the_api_names_the_field_that_does_not_fit(client, keyed, body, field):
    answer = client.post("/api/v1/datasets/wonders/scrape", json={"classes": [{"name": "a"}, {"name": "b"}], **body})
    assert (answer.status_code, json.loads(answer.data)["field"]) == (422, field)
    assert Backend(keyed).store.page(9) == []


def test_a_folder_outside_the_roots_is_refused(keyed, tmp_path):
    client = create_app(keyed.model_copy(update={"import_roots": ["/srv/photos"]})).test_client()
    answer = client.post("/api/v1/datasets/wonders/scrape", json={"classes": [{"name": "a"}, {"name": "b"}], "folder": str(tmp_path)})
    assert "DARKROOM_IMPORT_ROOTS" in json.loads(answer.data)["detail"]


# -- the command line ---------------------------------------------------------------------------------------------------


def test_the_command_line_shows_the_state_of_each_source(run):
    lines = {line.split("\t")[0]: line.split("\t")[2] for line in run("dataset", "sources").stdout.splitlines()}
    assert re.fullmatch("works, (just now|.* ago)", lines["openverse"])
    assert re.fullmatch(rf"failed (just now|.* ago): {re.escape(FAILURE)}", lines["commons"])
    assert lines["flickr"] == "needs DARKROOM_FLICKR_KEY"
    assert lines["google"] == "needs DARKROOM_GOOGLE_KEY and DARKROOM_GOOGLE_CX"
    assert (lines["brave"], lines["urls"]) == ("not asked yet", "comes with the order")


def test_the_command_line_shows_no_key(run):
    assert KEY not in run("dataset", "sources").output + run("dataset", "sources", "--json").output


def test_a_scrape_is_ordered_with_all_fields_of_the_command_line(run, tmp_path):
    args: list[Any] = [
        "--class",
        "Taj Mahal",
        "--class",
        "Petra=Petra Jordan ruins",
        "--address",
        "Petra=https://example.org/1.jpg?a=b",
        "--per-class",
        150,
    ]
    args += [
        "--sources",
        "brave",
        "--sources",
        "openverse",
        "--licence",
        "public",
        "--no-safe",
        "--region",
        "us-en",
        "--folder",
        tmp_path,
        "--note",
        "x",
    ]
    spec = json.loads(run("dataset", "scrape", "wonders", *args, "--json").stdout)["spec"]
    assert spec["classes"][1] == {"name": "Petra", "query": "Petra Jordan ruins", "urls": ["https://example.org/1.jpg?a=b"]}
    assert spec["sources"] == ["urls", "folder", "brave", "openverse"]
    assert (spec["licence"], spec["safe"], spec["region"], spec["folder"], spec["note"]) == ("public", False, "us-en", str(tmp_path), "x")


@pytest.mark.parametrize("address", ["Sphinx=https://example.org/1.jpg", "https://example.org/1.jpg", "Petra=ftp://example.org/1.jpg"])
def test_an_address_of_no_class_is_refused(run, address):
    done = run("dataset", "scrape", "wonders", "--class", "Petra", "--class", "b", "--address", address)
    assert done.exit_code == 2
    assert "address" in done.stderr


def test_every_source_is_a_choice_of_the_command_line(run):
    text = run("dataset", "scrape", "--help").output
    assert all(source.name in text for source in sources.SOURCES)


def test_the_settings_that_a_source_needs_exist():
    assert all(name in Settings.model_fields for source in sources.SOURCES for name in source.needs)
    assert Path(__file__).parents[1].joinpath("docs", "operations.md").read_text().count("DARKROOM_FLICKR_KEY") >= 2
