"""Each image source in its own wire format: what a hit holds, how far it is paged, what it needs, and how it fails without a word of its key."""

import asyncio
import json
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, get_args
from urllib.parse import unquote

import pytest
from image_server import ImageServer, picture
from search_server import FLICKR_DEEPEST, KEY, addresses

from shared import sources as known
from shared.errors import DarkroomError, Invalid
from shared.items import ItemReader
from shared.settings import Settings, load
from shared.specs import SourceName, parse
from shared.storage import Storage
from worker.scraping import SOURCES, unsplash
from worker.scraping.fetch import Fetcher
from worker.scraping.sources import Hit, Query, SourceFailed, attribution, due, fits, licence_name, uses

KEYS = {
    "flickr_key": KEY, "brave_key": KEY, "serpapi_key": KEY, "google_key": KEY, "google_cx": "engine", "pexels_key": KEY,
    "unsplash_key": KEY, "duckduckgo": True, "bing_key": KEY, "operator_contact": "https://example.org",
}  # fmt: skip
KEYED = ["flickr", "brave", "serpapi", "google", "pexels", "unsplash", "bing"]
APIS = [*known.SEARCHED]
TITLES = {source.name: source.title for source in known.SOURCES}


@pytest.fixture(scope="module")
def running() -> Iterator[ImageServer]:
    with ImageServer() as server:
        yield server


@pytest.fixture
def server(running: ImageServer) -> ImageServer:
    """The server as it was at first."""
    for part in (running.hits, running.faults, running.seen):
        part.clear()
    running.licences, running.collections = ["by-sa"], ["flickr"]
    return running


def made(server: ImageServer, **values: Any) -> Settings:
    allowed = ["127.0.0.0/8", "::1/128"]
    return Settings(**{"fetch_allow": allowed, **addresses(server.url), **KEYS, **values})


def registered(server: ImageServer, **values: Any) -> Settings:
    """As `made`, as a registered user of Openverse, who may ask more often."""
    return made(server, openverse_client_id="darkroom", openverse_client_secret=KEY, **values)


def search(name: str, settings: Settings, text: str = "cat", limit: int = 1000, **more: Any) -> list[Hit]:
    """All hits of a source for a query."""

    async def run() -> list[Hit]:
        async with Fetcher(settings) as fetcher, aclosing(SOURCES[name](fetcher, Query(text, "cat", limit, **more), settings)) as hits:
            return [hit async for hit in hits]

    return asyncio.run(run())


def fails(name: str, settings: Settings, **more: Any) -> str:
    """The sentence with which a source fails."""
    with pytest.raises(SourceFailed) as caught:
        search(name, settings, **more)
    sentence = str(caught.value)
    assert sentence.startswith(TITLES[name])
    assert sentence.endswith((".", "?"))
    return sentence


def found_or_told(name: str, settings: Settings) -> list[Hit] | str:
    """The hits of a source, or its title when it fails with a sentence that begins with it."""
    try:
        return search(name, settings)
    except SourceFailed as error:
        return str(error)[: len(TITLES[name])]


def offer(server: ImageServer, name: str, many: int, query: str = "cat") -> list[str]:
    paths = [f"/img/{name}-{query}-{n}.jpg".replace(" ", "-") for n in range(many)]
    server.hits[name][query] = paths
    return [server.url + path for path in paths]


def asked(server: ImageServer, name: str) -> list[dict[str, str]]:
    """The parameters of each request to a source, in order."""
    return [
        dict(request.query)
        for request in server.seen
        if request.path == f"/{name}" and request.query.get("method") != "flickr.photos.licenses.getInfo"
    ]


# -- what all of them do ------------------------------------------------------------------------------------------------


def test_the_spec_the_list_and_the_searches_name_the_same_sources():
    assert list(SOURCES) == [source.name for source in known.SOURCES] == list(get_args(SourceName))


@pytest.mark.parametrize("name", APIS)
def test_a_hit_says_where_the_picture_is_whose_it_is_and_what_it_was_asked_for(server, name):
    urls = offer(server, name, 3)
    hits = search(name, made(server))
    assert [hit.image_url.partition("?")[0] for hit in hits] == urls
    assert [hit.rank for hit in hits] == [0, 1, 2]
    assert {(hit.source, hit.query, hit.label) for hit in hits} == {(name, "cat", "cat")}
    assert {(hit.width, hit.height) for hit in hits} == {(96, 80)}
    assert all(hit.title and hit.page_url.startswith("http") and hit.thumb_url.startswith(server.url) for hit in hits)


@pytest.mark.parametrize("name", APIS)
def test_no_hit_is_no_failure(server, name):
    assert search(name, made(server)) == []


@pytest.mark.parametrize("name", APIS)
def test_no_more_hits_are_given_than_were_asked_for_and_no_page_is_asked_for_in_vain(server, name):
    offer(server, name, 400)
    assert len(search(name, made(server), limit=20)) == 20
    assert len(asked(server, name)) <= 2  # Google's pages are of ten


@pytest.mark.parametrize("name", APIS)
def test_an_address_that_comes_twice_is_one_hit(server, name):
    server.hits[name]["cat"] = ["/img/a.jpg", "/img/a.jpg", "/img/b.jpg"]
    assert len(search(name, made(server))) == 2


@pytest.mark.parametrize("name", APIS)
@pytest.mark.parametrize(
    ("fault", "words"),
    [("unauthorised", "answered 401"), ("forbidden", "answered 403"), ("busy", "asks to wait 86400 seconds"), ("html", "web page"), ("truncated", "broken JSON"), ("empty", "broken JSON"), ("list", "not an object")],
)  # fmt: skip
def test_a_fault_of_a_source_is_a_sentence(server, name, fault, words):
    offer(server, name, 3)
    server.faults["i.js" if name == "duckduckgo" else name] = fault
    assert words in fails(name, made(server))


@pytest.mark.parametrize("name", APIS)
def test_what_is_asked_of_a_source_is_data_whatever_it_holds(server, name):
    hostile = '<img src=x onerror="alert(1)"> & ../../etc/passwd?q=%00#'
    offer(server, name, 2, hostile)
    assert len(search(name, made(server), hostile)) == 2


@pytest.mark.parametrize("name", APIS)
def test_an_answer_of_odd_types_is_no_bug(server, name):
    server.faults["i.js" if name == "duckduckgo" else name] = "odd"
    assert found_or_told(name, made(server)) in ([], TITLES[name])


# -- keys ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [source.name for source in known.SOURCES if source.needs])
def test_a_source_is_not_asked_before_it_is_configured_and_says_what_to_set(server, name):
    empty = {setting: False if setting == "duckduckgo" else "" for setting in known.BY_NAME[name].needs}
    sentence = fails(name, made(server, **empty))
    assert all(f"DARKROOM_{setting.upper()}" in sentence for setting in empty)
    assert server.seen == []


@pytest.mark.parametrize("name", KEYED)
def test_a_wrong_key_is_told_and_not_shown_even_if_the_service_repeats_it(server, name):
    wrong = "wr0ng+key/of=them"
    sentence = fails(name, made(server, **{f"{name}_key": wrong}))
    assert "[key]" in sentence
    assert wrong not in sentence
    assert "wr0ng" not in sentence


@pytest.mark.parametrize("name", [*KEYED, "openverse"])
def test_a_key_is_not_sent_on_to_another_host(server, name):
    server.faults[name] = "away"
    sentence = fails(name, registered(server))
    assert KEY not in sentence
    for request in server.seen:
        if request.path == "/echo":
            assert not {"Authorization", "X-Subscription-Token", "Ocp-Apim-Subscription-Key"} & set(request.headers)
            assert KEY not in unquote(request.raw_path)


@pytest.mark.parametrize("name", KEYED)
def test_no_hit_holds_the_key(server, name):
    server.hits[name]["cat"] = [f"/img/a.jpg?key={KEY}"]
    (hit,) = search(name, made(server))
    assert KEY not in repr(hit)


def test_no_setting_that_is_secret_is_shown_with_the_settings(server):
    assert KEY not in repr(registered(server))


@pytest.mark.parametrize("key", ["two words", "a\nb", "schlüssel"])
def test_a_key_that_could_be_no_part_of_a_header_is_refused_and_not_shown(key, monkeypatch):
    monkeypatch.setenv("DARKROOM_BRAVE_KEY", key)
    with pytest.raises(DarkroomError, match="DARKROOM_BRAVE_KEY") as caught:
        load()
    assert key not in str(caught.value)


# -- Openverse ----------------------------------------------------------------------------------------------------------


def test_a_hit_of_openverse_has_licence_creator_and_the_sentence_to_name_them_with(server):
    offer(server, "openverse", 1)
    (hit,) = search("openverse", made(server))
    assert (hit.licence, hit.licence_url) == ("CC BY-SA 2.0", "https://creativecommons.org/licenses/by-sa/2.0/")
    assert (hit.creator, hit.creator_url) == ("Tim Sullivan", "https://stocksnap.io/author/1")
    assert hit.attribution.endswith("by Tim Sullivan is licensed under CC BY-SA 2.0.")


def test_openverse_is_split_by_licence_where_a_query_shows_no_more(server):
    server.licences = ["by", "by-sa", "cc0", "by-nc-nd"]
    urls = offer(server, "openverse", 600)
    assert {hit.image_url for hit in search("openverse", registered(server), limit=5000)} == set(urls)
    assert max(int(query["page"]) for query in asked(server, "openverse")) == 12
    assert not [query for query in asked(server, "openverse") if "source" in query]


def test_openverse_is_split_by_collection_where_a_licence_shows_no_more(server):
    server.collections = ["flickr", "met", "europeana"]
    urls = offer(server, "openverse", 600)
    assert {hit.image_url for hit in search("openverse", registered(server), limit=5000)} == set(urls)


def test_openverse_is_not_asked_again_where_a_query_shows_all(server):
    offer(server, "openverse", 239)
    assert len(search("openverse", registered(server))) == 239
    assert len(asked(server, "openverse")) == 12


@pytest.mark.parametrize(("licence", "left"), [("any", 4), ("known", 4), ("commercial", 3), ("modification", 3), ("public", 1)])
def test_openverse_filters_by_licence(server, licence, left):
    server.licences = ["by", "by-nc", "by-nd", "cc0"]
    offer(server, "openverse", 4)
    hits = search("openverse", made(server), licence=licence)
    assert len(hits) == left
    assert all(fits(hit, Query("cat", "cat", 9, licence=licence)) is None for hit in hits)


def test_a_registered_user_of_openverse_asks_with_a_token_that_is_asked_for_once(server):
    offer(server, "openverse", 50)
    search("openverse", registered(server))
    assert server.paths().count("/auth_tokens/token/") == 1
    assert {r.headers.get("Authorization") for r in server.seen if r.path == "/openverse"} == {"Bearer t0ken-of-openverse"}


def test_a_wrong_secret_of_openverse_is_told_and_not_shown(server):
    sentence = fails("openverse", made(server, openverse_client_id="darkroom", openverse_client_secret="wr0ng-secret"))
    assert "DARKROOM_OPENVERSE_CLIENT_SECRET" in sentence
    assert "wr0ng" not in sentence


def test_openverse_is_told_when_mature_pictures_may_come(server):
    offer(server, "openverse", 1)
    search("openverse", made(server))
    search("openverse", made(server), safe=False)
    assert [query.get("mature") for query in asked(server, "openverse")] == [None, "true"]


# -- Wikimedia Commons --------------------------------------------------------------------------------------------------


def test_a_hit_of_commons_has_creator_and_the_page_of_the_creator_without_html(server):
    offer(server, "commons", 1)
    (hit,) = search("commons", made(server))
    assert (hit.creator, hit.creator_url) == ("Six & Seven", "https://commons.wikimedia.org/wiki/User:Six")
    assert hit.attribution == f'"{hit.title}" by Six & Seven, CC0, via Wikimedia Commons'


# -- Flickr -------------------------------------------------------------------------------------------------------------


def test_a_hit_of_flickr_has_the_name_of_its_licence_as_flickr_tells_it(server):
    offer(server, "flickr", 5)
    hits = search("flickr", made(server))
    assert [hit.licence for hit in hits] == ["All Rights Reserved", "CC BY-NC 2.0", "CC BY 2.0", "CC0 1.0", "CC BY-ND 4.0"]
    assert (hits[2].creator, hits[2].page_url) == ("Tim Sullivan", "https://www.flickr.com/photos/47140246@N02/2")
    assert hits[2].creator_url == "https://www.flickr.com/photos/47140246@N02"
    assert hits[2].attribution == f'"{hits[2].title}" by Tim Sullivan, CC BY 2.0, {hits[2].page_url}'


@pytest.mark.parametrize(
    ("licence", "numbers"), [("any", None), ("known", None), ("commercial", "4,9,15"), ("modification", "2,4,9"), ("public", "9")]
)
def test_flickr_is_asked_for_the_licences_that_fit(server, licence, numbers):
    offer(server, "flickr", 5)
    search("flickr", made(server), licence=licence)
    assert asked(server, "flickr")[0].get("license") == numbers


def test_flickr_is_split_by_licence_where_it_begins_to_repeat_itself(server):
    urls = offer(server, "flickr", FLICKR_DEEPEST + 1000)
    assert {hit.image_url for hit in search("flickr", made(server), limit=9000)} == set(urls)
    assert max(int(query["page"]) for query in asked(server, "flickr")) == 8


def test_an_error_of_flickr_comes_with_status_200_and_is_told(server):
    assert fails("flickr", made(server, flickr_key="wrong1")) == (
        "Flickr could not be searched: Invalid API Key ([key] has wrong format). Is DARKROOM_FLICKR_KEY right?"
    )


def test_flickr_without_a_large_size_gives_the_next_one(server):
    server.hits["flickr"]["cat"] = ["/img/not-large.jpg"]
    (hit,) = search("flickr", made(server))
    assert hit.image_url == f"{server.url}/small/img/not-large.jpg"


# -- the sources without licences ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["brave", "google", "duckduckgo", "bing"])
def test_a_search_of_the_web_says_that_the_licence_is_unknown(server, name):
    offer(server, name, 2)
    assert {hit.licence for hit in search(name, made(server))} == {"unknown"}


@pytest.mark.parametrize("name", ["brave", "google", "duckduckgo", "bing"])
def test_a_search_that_names_no_licence_is_not_asked_for_named_ones(server, name):
    assert "known" in fails(name, made(server), licence="known")
    assert server.seen == []


@pytest.mark.parametrize(
    ("name", "parameter", "value"),
    [("google", "rights", "cc_publicdomain"), ("bing", "license", "Public"), ("i.js", "f", ",,,,,license:Public")],
)
def test_a_filter_of_a_search_is_its_own_word_and_the_licence_says_so(server, name, parameter, value):
    source = "duckduckgo" if name == "i.js" else name
    offer(server, source, 2)
    hits = search(source, made(server), licence="public")
    assert {hit.licence for hit in hits} == {f"public domain, says {TITLES[source]}"}
    assert all(fits(hit, Query("cat", "cat", 9, licence="public")) is None for hit in hits)
    assert [r.query[parameter] for r in server.seen if r.path.endswith(name)] == [value]


def test_brave_gives_two_hundred_in_one_answer(server):
    offer(server, "brave", 300)
    assert len(search("brave", made(server))) == 200
    assert [query["count"] for query in asked(server, "brave")] == ["200"]


def test_a_licence_that_serpapi_knows_is_named(server):
    offer(server, "serpapi", 2)
    assert [hit.licence for hit in search("serpapi", made(server))] == ["CC BY 4.0", "unknown"]


def test_serpapi_is_read_page_by_page_to_the_end(server):
    urls = offer(server, "serpapi", 45)
    assert [hit.image_url for hit in search("serpapi", made(server))] == urls
    assert [query["ijn"] for query in asked(server, "serpapi")] == ["0", "1", "2", "3"]


def test_google_is_split_by_size_where_a_query_shows_no_more(server):
    first = offer(server, "google", 200)
    large = offer(server, "google", 30, "cat large")
    found = {hit.image_url for hit in search("google", made(server))}
    assert found == {*first[:99], *large}
    assert all(int(query["start"]) + int(query["num"]) <= 100 for query in asked(server, "google"))


def test_google_is_not_asked_again_where_a_query_shows_all(server):
    offer(server, "google", 45)
    assert len(search("google", made(server))) == 45
    assert len(asked(server, "google")) == 5


def test_bing_is_read_by_its_next_offset_without_repeats(server):
    urls = offer(server, "bing", 400)
    assert [hit.image_url for hit in search("bing", made(server))] == urls


def test_a_search_like_bing_may_want_no_key(server):
    sentence = fails("bing", made(server, bing_key=""))
    assert "Ocp-Apim-Subscription-Key" not in server.seen[0].headers
    assert "DARKROOM_BING_KEY" not in sentence


def test_duckduckgo_is_read_page_by_page_with_the_token_of_its_page(server):
    urls = offer(server, "duckduckgo", 250)
    assert [hit.image_url for hit in search("duckduckgo", made(server))] == urls
    assert [r.query.get("s") for r in server.seen if r.path.endswith("i.js")] == [None, "100", "200"]


def test_what_a_source_says_in_plain_text_is_told(server):
    server.faults["i.js"] = "plain"
    assert 'answered 403 Forbidden. It says: "Rate Limit Exceeded".' in fails("duckduckgo", made(server))


def test_duckduckgo_whose_page_holds_no_token_is_told(server):
    server.faults["duckduckgo"] = "no token"
    assert "holds no token" in fails("duckduckgo", made(server))


def test_duckduckgo_is_off_unless_it_is_turned_on(server):
    assert known.BY_NAME["duckduckgo"].configured(Settings())
    assert not known.BY_NAME["duckduckgo"].configured(made(server))


@pytest.mark.parametrize(
    ("name", "strict", "off"),
    [
        ("flickr", {"safe_search": "1"}, {"safe_search": "3"}),
        ("brave", {"safesearch": "strict"}, {"safesearch": "off"}),
        ("serpapi", {"safe": "active"}, {"safe": "off"}),
        ("google", {"safe": "active"}, {"safe": "off"}),
        ("unsplash", {"content_filter": "high"}, {"content_filter": "low"}),
        ("bing", {"safeSearch": "Strict"}, {"safeSearch": "Off"}),
    ],
)
def test_safe_search_is_told_in_the_words_of_each_source(server, name, strict, off):
    offer(server, name, 1)
    for safe, words in ((True, strict), (False, off)):
        server.seen.clear()
        search(name, made(server), safe=safe, limit=1)
        assert words.items() <= asked(server, name)[0].items()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("brave", {"country": "DE", "search_lang": "en"}),
        ("serpapi", {"gl": "de", "hl": "en"}),
        ("google", {"gl": "de", "hl": "en"}),
        ("unsplash", {"lang": "en"}),
        ("bing", {"mkt": "en-DE"}),
    ],
)
def test_a_region_is_told_in_the_words_of_each_source(server, name, words):
    offer(server, name, 1)
    search(name, made(server), region="de-en", limit=1)
    assert words.items() <= asked(server, name)[0].items()
    search(name, made(server), limit=1)
    assert not words.keys() & asked(server, name)[-1].keys()


def test_the_smallest_side_is_told_where_a_source_takes_it(server):
    offer(server, "bing", 1)
    search("bing", made(server), min_side=200)
    assert {"minWidth": "200", "minHeight": "200"}.items() <= asked(server, "bing")[0].items()


# -- Pexels and Unsplash ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "title"), [("pexels", "Pexels"), ("unsplash", "Unsplash")])
def test_a_stock_photograph_has_the_licence_of_all_and_a_creator_of_its_own(server, name, title):
    offer(server, name, 1)
    (hit,) = search(name, made(server), licence="commercial")
    assert (hit.licence, hit.creator, hit.attribution) == (f"{title} Licence", "Tim Sullivan", f"Photo by Tim Sullivan on {title}")
    assert hit.licence_url.startswith("https://")
    assert hit.creator_url.endswith("@tim")


@pytest.mark.parametrize("name", ["pexels", "unsplash"])
def test_stock_photographs_are_not_in_the_public_domain_and_are_not_asked_for(server, name):
    offer(server, name, 1)
    assert search(name, made(server), licence="public") == []
    assert server.seen == []


@pytest.mark.parametrize(("name", "pages"), [("pexels", ["1", "2", "3"]), ("unsplash", ["1", "2", "3", "4", "5", "6", "7"])])
def test_stock_photographs_are_read_page_by_page(server, name, pages):
    urls = offer(server, name, 200)
    assert [hit.image_url for hit in search(name, made(server))] == urls
    assert [query["page"] for query in asked(server, name)] == pages


def tell(settings: Settings, hit: Hit) -> None:
    async def run() -> None:
        async with Fetcher(settings) as fetcher:
            await unsplash.told(fetcher, hit, settings)

    asyncio.run(run())


def test_unsplash_is_told_of_a_photograph_that_is_used(server):
    offer(server, "unsplash", 1)
    (hit,) = search("unsplash", made(server))
    tell(made(server), hit)
    assert server.paths()[-1] == "/unsplash-used/unsplash-cat-0.jpg"


@pytest.mark.parametrize("address", ["http://localhost:1/x", "file:///x", "x"])
def test_the_key_of_unsplash_goes_to_unsplash_alone(server, address):
    with pytest.raises(SourceFailed, match="not one of Unsplash"):
        tell(made(server), Hit("unsplash", "cat", "cat", "http://x/", ping=address))
    assert server.seen == []


# -- how fast -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", APIS)
def test_a_source_that_asks_to_wait_a_moment_is_asked_again(server, name):
    offer(server, name, 3)
    server.faults["i.js" if name == "duckduckgo" else name] = "busy once"
    assert len(search(name, made(server))) == 3


def test_a_quota_by_the_hour_that_is_used_up_is_not_waited_for(server):
    offer(server, "unsplash", 1)
    settings = made(server)

    async def run() -> str:
        async with Fetcher(settings) as fetcher:
            for _ in range(51):
                try:
                    async for _hit in SOURCES["unsplash"](fetcher, Query("cat", "cat", 9), settings):
                        pass
                except SourceFailed as error:
                    return str(error)
        return ""

    assert asyncio.run(run()) == "Unsplash may be asked 50 times an hour, and this scrape has done so; order the rest later."
    assert len(asked(server, "unsplash")) == 50


@pytest.mark.parametrize(
    ("sent", "rates", "wait"),
    [([], [(2, 60)], 0), ([90], [(2, 60)], 0), ([30, 90], [(2, 60)], -10), ([50, 90], [(2, 60)], 10), ([1, 50, 90], [(2, 60), (3, 3600)], 3501), ([1], [], 0)],
)  # fmt: skip
def test_the_next_request_waits_until_all_rates_are_kept(sent, rates, wait):
    assert due(deque(sent), rates, now=100) == wait


# -- addresses and folders ----------------------------------------------------------------------------------------------


def test_addresses_of_a_class_are_hits_in_their_order(server):
    urls = ("https://example.org/b.jpg", "https://example.org/a.jpg", "https://example.org/b.jpg")
    hits = search("urls", made(server), urls=urls)
    assert [(hit.source, hit.label, hit.image_url, hit.rank) for hit in hits] == [("urls", "cat", urls[0], 0), ("urls", "cat", urls[1], 1)]


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(name))
    return folder


def test_the_pictures_in_the_folder_of_a_class_are_hits_that_can_be_read(server, tmp_path):
    fill(tmp_path, "Cat/a.jpg", "Cat/more/b.png", "Cat/notes.txt", "dog/c.jpg")
    hits = search("folder", made(server), folder=str(tmp_path))
    assert [(hit.source, hit.title) for hit in hits] == [("folder", "a.jpg"), ("folder", "more/b.png")]
    reader = ItemReader(Storage(str(tmp_path / "store"), tmp_path), 10**6)
    assert reader.read(hits[0].image_url) == picture("Cat/a.jpg")


def test_a_class_without_a_folder_has_no_hits(server, tmp_path):
    fill(tmp_path, "dog/c.jpg")
    assert search("folder", made(server), folder=str(tmp_path)) == []


@pytest.mark.parametrize("label", ["..", ".", "../secret", "/etc", "cats/a", ""])
def test_the_name_of_a_class_leads_nowhere(server, tmp_path, label):
    fill(tmp_path / "secret", "x.jpg")
    fill(tmp_path / "photos", "cat/a.jpg")
    query = Query(label, label, 9, folder=str(tmp_path / "photos"))

    async def run() -> list[Hit]:
        async with Fetcher(made(server)) as fetcher:
            return [hit async for hit in SOURCES["folder"](fetcher, query, made(server))]

    assert asyncio.run(run()) == []


def test_a_folder_that_is_a_link_to_elsewhere_is_passed_over(server, tmp_path):
    fill(tmp_path / "secret", "x.jpg")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat").symlink_to(tmp_path / "secret")
    assert search("folder", made(server), folder=str(tmp_path / "photos")) == []


def test_a_folder_that_may_not_be_read_is_told(server, tmp_path):
    with pytest.raises(SourceFailed, match="DARKROOM_IMPORT_ROOTS"):
        search("folder", made(server, import_roots=["/srv/photos"]), folder=str(tmp_path))
    with pytest.raises(SourceFailed, match="There is no folder"):
        search("folder", made(server), folder=str(tmp_path / "nothing"))


# -- licences -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("licence", "url", "allowed"),
    [
        ("CC BY 2.0", "", "commercial modification"),
        ("CC BY-SA 4.0", "", "commercial modification"),
        ("CC BY-NC 2.0", "", "modification"),
        ("CC BY NC ND 2.0", "", ""),
        ("cc-by-nd-3.0", "", "commercial"),
        ("Attribution", "https://creativecommons.org/licenses/by-nc-sa/2.0/", "modification"),
        ("CC BY 2.0", "https://creativecommons.org/licenses/by-nc/2.0/", "modification"),
        ("CC0 1.0", "", "commercial modification public"),
        ("Public domain", "", "commercial modification public"),
        ("Public Domain Mark 1.0", "", "commercial modification public"),
        ("Pexels Licence", "https://www.pexels.com/license/", "commercial modification"),
        ("commercial use, says Google", "", "commercial"),
        ("All Rights Reserved", "", ""),
        ("GFDL", "", ""),
        ("unknown", "", ""),
        ("", "", ""),
    ],
)
def test_what_a_licence_allows_is_read_from_its_name_and_address(licence, url, allowed):
    assert uses(licence, url) == frozenset(allowed.split())


@pytest.mark.parametrize(
    ("licence", "wanted", "words"),
    [
        ("unknown", "any", None),
        ("unknown", "known", "names no licence"),
        ("", "commercial", "names no licence"),
        ("All Rights Reserved", "known", None),
        ("commercial use, says Google", "known", "names no licence"),
        ("commercial use, says Google", "commercial", None),
        ("CC BY-NC 2.0", "commercial", "(CC BY-NC 2.0) does not say that it is free for commercial use"),
        ("CC BY 2.0", "public", "in the public domain"),
    ],
)
def test_a_hit_whose_licence_does_not_fit_says_why(licence, wanted, words):
    sentence = fits(Hit("flickr", "cat", "cat", "http://x/", licence=licence), Query("cat", "cat", 9, licence=wanted))
    assert sentence is None if words is None else words in (sentence or "")


@pytest.mark.parametrize(
    ("url", "name"),
    [("https://creativecommons.org/licenses/by-nc-sa/2.0/", "CC BY-NC-SA 2.0"), ("http://creativecommons.org/publicdomain/zero/1.0/deed.de", "CC0 1.0"), ("https://creativecommons.org/publicdomain/mark/1.0/", "Public Domain Mark 1.0"), ("https://example.org/", "")],
)  # fmt: skip
def test_a_licence_is_named_by_its_address(url, name):
    assert licence_name(url) == name


def test_a_creator_is_named_as_far_as_is_known():
    assert attribution("Bark", "Tim", "CC BY 2.0") == '"Bark" by Tim, CC BY 2.0'
    assert attribution("", "", "") == "Image"


# -- what everybody may know --------------------------------------------------------------------------------------------


def test_the_state_of_a_source_is_what_it_needs_and_how_it_did_last(server, tmp_path):
    storage = Storage(str(tmp_path), tmp_path / "cache")
    known.note(storage, "openverse", "")
    known.note(storage, "commons", "Wikimedia Commons could not be searched: it answered with a web page.")
    found = {entry["name"]: entry for entry in known.standings(made(server, flickr_key=""), storage)}
    assert {name: entry["state"] for name, entry in found.items()} == {
        **dict.fromkeys(SOURCES, "untried"), "openverse": "works", "commons": "failed", "flickr": "needs",
    }  # fmt: skip
    assert found["commons"]["sentence"].endswith("a web page.")
    assert found["commons"]["at"] > 1e9
    assert found["flickr"]["lacking"] == ["DARKROOM_FLICKR_KEY"]
    assert KEY not in json.dumps(found)


def test_only_sources_with_licences_are_on_by_default():
    spec = parse("scrape", {"dataset": "pets", "classes": [{"name": "cat"}, {"name": "dog"}]})
    assert spec.sources == [source.name for source in known.SOURCES if source.default] == ["openverse", "commons"]


# -- the order ----------------------------------------------------------------------------------------------------------


def ordered(**more: Any) -> Any:
    return parse(
        "scrape", {"dataset": "pets", "classes": [{"name": "cat", "urls": ["https://example.org/1.jpg"]}, {"name": "dog"}], **more}
    )


def test_addresses_and_a_folder_come_first_unless_they_are_named_elsewhere():
    assert ordered().sources == ["urls", "openverse", "commons"]
    assert ordered(folder="/data").sources == ["urls", "folder", "openverse", "commons"]
    assert ordered(sources=["flickr", "urls", "flickr"]).sources == ["flickr", "urls"]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("sources", ["altavista"], "sources"),
        ("sources", ["folder"], "needs a folder"),
        ("licence", "free", "licence"),
        ("region", "Germany", "region"),
        ("note", "x" * 501, "note"),
        ("classes", [{"name": "cat", "urls": ["file:///etc/passwd"]}, {"name": "dog"}], "not an http or https address"),
    ],
)
def test_an_order_that_does_not_fit_names_the_field(field, value, words):
    with pytest.raises(Invalid, match=words) as caught:
        ordered(**{field: value})
    assert caught.value.field == field


def test_a_source_of_addresses_without_addresses_is_refused():
    with pytest.raises(Invalid, match="needs addresses"):
        parse("scrape", {"dataset": "pets", "classes": [{"name": "cat"}, {"name": "dog"}], "sources": ["urls"]})


def test_no_source_is_refused():
    with pytest.raises(Invalid, match="choose one source"):
        parse("scrape", {"dataset": "pets", "classes": [{"name": "cat"}, {"name": "dog"}], "sources": []})


def test_a_search_can_be_left_at_any_time(server):
    offer(server, "openverse", 50)
    settings = made(server)

    async def run() -> int:
        async with Fetcher(settings) as fetcher:
            hits: AsyncGenerator[Hit] = SOURCES["openverse"](fetcher, Query("cat", "cat", 100), settings)
            async with aclosing(hits):
                async for hit in hits:
                    return hit.rank
        return -1

    assert asyncio.run(run()) == 0
    assert len(asked(server, "openverse")) == 1
