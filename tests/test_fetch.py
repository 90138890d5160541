"""The one way out: what is fetched, what is refused, and what is tried again."""

import asyncio
import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from image_server import ImageServer, picture

from shared.errors import DarkroomError
from shared.settings import Settings
from worker.scraping.fetch import Blocked, Extra, Fetcher, FetchError, Gate, Limits, fetch_all, opted_out

QUICK = Limits(max_bytes=1 << 20, seconds=1, connect=1, silence=1, retries=1, backoff=0, patience=1)


@pytest.fixture(scope="module")
def server() -> Iterator[ImageServer]:
    with ImageServer() as running:
        yield running


def made(**values: object) -> Settings:
    return Settings(**{"fetch_allow": ["127.0.0.0/8"], **values})  # type: ignore[arg-type]


def one(url: str, settings: Settings | None = None, limits: Limits = QUICK) -> bytes | FetchError:
    ((index, answer),) = fetch_all([url], settings or made(), limits=limits)
    assert index == 0
    return answer


def code(url: str, settings: Settings | None = None, limits: Limits = QUICK) -> str:
    answer = one(url, settings, limits)
    assert isinstance(answer, FetchError), f"{len(answer)} bytes"
    assert str(answer).endswith(".")
    return answer.code


def test_many_addresses_are_fetched_in_order(server):
    names = [f"many-{n}.jpg" for n in range(60)]
    answers = fetch_all([f"{server.url}/img/{name}" for name in names], made(), limits=QUICK)
    assert answers == [(n, picture(name)) for n, name in enumerate(names)]


def test_one_bad_address_leaves_the_others_alone(server):
    answers = dict(fetch_all([f"{server.url}/img/a.jpg", f"{server.url}/bad/gone/b.jpg", f"{server.url}/img/c.jpg"], made(), limits=QUICK))
    assert answers[0] == picture("a.jpg")
    assert answers[1].code == "not_found"
    assert answers[2] == picture("c.jpg")


@pytest.mark.parametrize(
    ("fault", "expected"), [("forbidden", "forbidden"), ("gone", "not_found"), ("error", "http_error"), ("noai", "opted_out")]
)
def test_an_answer_that_is_no_picture_has_a_stable_code(server, fault, expected):
    assert code(f"{server.url}/bad/{fault}/x.jpg") == expected


@pytest.mark.parametrize("fault", ["large", "endless"])
def test_an_answer_is_cut_off_at_the_byte_limit_whether_it_says_its_length_or_not(server, fault):
    assert code(f"{server.url}/bad/{fault}/x.jpg") == "too_large"


def test_a_server_that_drips_is_given_up(server):
    assert code(f"{server.url}/bad/drip/x.jpg") == "timeout"


def test_a_busy_server_is_asked_again_when_it_said(server):
    assert one(f"{server.url}/busy/1/1/x.jpg") == picture("x.jpg")


def test_a_server_that_stays_busy_is_given_up(server):
    assert code(f"{server.url}/busy/9/0/x.jpg") == "http_error"
    assert server.paths().count("/busy/9/0/x.jpg") == 1 + QUICK.retries


def test_a_wait_longer_than_our_patience_is_not_waited_for(server):
    assert code(f"{server.url}/busy/1/3600/x.jpg") == "http_error"
    assert server.paths().count("/busy/1/3600/x.jpg") == 1


def test_what_is_forbidden_is_not_asked_for_again(server):
    assert code(f"{server.url}/bad/forbidden/once.jpg") == "forbidden"
    assert server.paths().count("/bad/forbidden/once.jpg") == 1


def test_three_redirects_are_followed_and_a_fourth_is_not(server):
    assert one(f"{server.url}/hop/3/x.jpg") == picture("x.jpg")
    assert code(f"{server.url}/hop/4/x.jpg") == "http_error"


@pytest.mark.parametrize(
    "target",
    ["http://10.0.0.1/x.jpg", "http://169.254.169.254/latest/meta-data/", "http://[::1]/", "http://[fd00::1]/", "file:///etc/passwd", "ftp://example.org/x.jpg"],
)  # fmt: skip
def test_a_redirect_to_somewhere_private_is_refused(server, target):
    assert code(f"{server.url}/to?{target}") == "blocked_address"


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0.0.0.0", "localhost", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254",
        "100.64.0.1", "224.0.0.1", "255.255.255.255", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]",
        "[fe80::1]", "[fc00::1]", "[ff02::1]",
    ],
)  # fmt: skip
def test_a_private_address_is_refused_however_it_is_written(server, host):
    before = len(server.seen)
    assert code(f"http://{host}:{server.port}/img/x.jpg", Settings()) == "blocked_address"
    assert len(server.seen) == before


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::1", "::ffff:93.184.216.34", "64:ff9b::5db8:d822"])
def test_a_public_address_may_be_connected_to_on_the_ports_of_the_web_alone(address):
    gate = Gate(Settings())
    gate.check(address, 80)
    gate.check(address, 443)
    with pytest.raises(Blocked, match="port 6379"):
        gate.check(address, 6379)


def test_the_socket_itself_refuses_a_private_address():
    with pytest.raises(Blocked):
        Gate(Settings()).make_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("10.0.0.1", 80)))


def test_a_name_with_a_private_address_is_refused_when_it_is_resolved():
    with pytest.raises(Blocked, match="private network"):
        asyncio.run(Gate(Settings()).resolve("localhost", 80))


def test_an_allowed_network_opens_nothing_else(server):
    assert code("http://10.0.0.1/x.jpg", made()) == "blocked_address"


def test_a_network_that_is_none_is_told():
    with pytest.raises(DarkroomError, match="DARKROOM_FETCH_ALLOW"):
        fetch_all(["http://example.org/"], made(fetch_allow=["everything"]))


@pytest.mark.parametrize(
    "url", ["", "x.jpg", "http://", "http:///x", "javascript:alert(1)", "http://[::1/x", "http://host:99999/", "data:image/png;base64,aa"]
)
def test_what_is_no_web_address_is_refused(url):
    assert code(url) == "blocked_address"


@pytest.mark.parametrize("url", ["http://nowhere.invalid/x.jpg", f"http://{'a' * 70}.invalid/", "http://127.0.0.1:9/x.jpg"])
def test_a_host_that_is_not_there_is_unreachable(url):
    assert code(url) == "unreachable"


def test_no_cookie_and_no_credentials_are_sent_and_the_operator_is_named(server):
    settings = made(operator_contact="https://example.org; me@example.org", fetch_allow=["127.0.0.0/8", "::1/128"])
    answer = one(f"http://user:secret@localhost:{server.port}/to?/echo", settings)
    assert isinstance(answer, bytes)
    headers = json.loads(answer)
    assert "Cookie" not in headers
    assert "Authorization" not in headers
    assert headers["User-Agent"] == "Darkroom/0.1 (https://example.org; me@example.org)"


def with_extra(url: str, extra: Extra) -> dict[str, str] | FetchError:
    async def run() -> dict[str, str] | FetchError:
        async with Fetcher(made(fetch_allow=["127.0.0.0/8", "::1/128"]), QUICK) as fetcher:
            try:
                return dict(json.loads(await fetcher.get(url, extra=extra)))
            except FetchError as error:
                return error

    return asyncio.run(run())


def test_a_key_goes_to_its_own_host_and_along_its_redirects_there(server):
    answer = with_extra(f"{server.url}/to?/echo", Extra({"Authorization": "Bearer secret"}))
    assert isinstance(answer, dict)
    assert answer["Authorization"] == "Bearer secret"


def test_a_key_is_not_sent_on_to_another_host_nor_back_from_there(server):
    elsewhere = f"http://localhost:{server.port}"
    for url in (f"{server.url}/to?{elsewhere}/echo", f"{server.url}/to?{elsewhere}/to?{server.url}/echo"):
        answer = with_extra(url, Extra({"Authorization": "Bearer secret"}))
        assert isinstance(answer, dict)
        assert "Authorization" not in answer


def test_a_redirect_that_carries_a_key_of_the_address_to_another_host_is_not_followed(server):
    before = server.paths().count("/echo")
    answer = with_extra(f"{server.url}/to?http://localhost:{server.port}/echo?key=s%65cret", Extra(secrets=("secret",)))
    assert isinstance(answer, FetchError)
    assert "secret" not in str(answer)
    assert server.paths().count("/echo") == before


def test_a_proxy_of_the_environment_is_not_used(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert one(f"{server.url}/img/x.jpg") == picture("x.jpg")


def test_an_opt_out_is_not_asked_about_when_the_operator_says_so(server):
    url = f"{server.url}/bad/noai/x.jpg"
    assert code(url) == "opted_out"
    assert isinstance(one(url, made(honour_noai=False)), bytes)


LARGE = replace(QUICK, max_bytes=10 << 20, seconds=10)


def test_a_small_answer_is_bytes_and_a_large_one_a_file(server, tmp_path):
    async def run() -> tuple[bytes | Path, bytes | Path]:
        async with Fetcher(made(), LARGE) as fetcher:
            return await fetcher.fetch(f"{server.url}/img/a.jpg", tmp_path / "a"), await fetcher.fetch(
                f"{server.url}/bad/large/a.jpg", tmp_path / "b"
            )

    assert asyncio.run(run()) == (picture("a.jpg"), tmp_path / "b")
    assert [(path.name, path.stat().st_size) for path in tmp_path.iterdir()] == [("b", 5 << 20)]


@pytest.mark.parametrize("limits", [QUICK, replace(LARGE, max_bytes=3 << 20)])
def test_a_failed_answer_leaves_no_file(server, tmp_path, limits):
    async def run() -> None:
        async with Fetcher(made(), limits) as fetcher:
            await fetcher.fetch(f"{server.url}/bad/endless/a.jpg", tmp_path / "a")

    with pytest.raises(FetchError):
        asyncio.run(run())
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_is_no_trouble_of_the_connection(server, tmp_path):
    (tmp_path / "full").symlink_to("/dev/full")

    async def run() -> None:
        async with Fetcher(made(), LARGE) as fetcher:
            await fetcher.fetch(f"{server.url}/bad/large/a.jpg", tmp_path / "full")

    with pytest.raises(OSError, match="No space left"):
        asyncio.run(run())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tag", "expected"),
    [("noai", True), ("noindex, NoImageAI", True), ("darkroom: noai", True), ("otherbot: noai", False), ("noindex", False), ("unavailable_after: 1 Jan 2030", False)],
)  # fmt: skip
def test_an_opt_out_counts_when_it_is_meant_for_everybody_or_for_us(tag, expected):
    assert opted_out([tag]) is expected
