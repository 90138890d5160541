"""The one way out: fetching addresses that nobody vouches for.

Only http and https, only public addresses (and the networks of the setting `fetch_allow`), and of those only the ports 80 and
443. A name is resolved once, every address it has must be public, and the connection goes to exactly what was checked; a
second check sits where the socket is made, so that no spelling of an address gets past the first. Redirects are followed by
hand and each hop is checked anew. No cookies, no proxies of the environment; a key that a source wants in a header goes to the
host it was given for and to no other, wherever that redirects. Limits on time and bytes.
"""

import asyncio
import ipaddress
import socket
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self
from urllib.parse import unquote

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from shared.errors import DarkroomError
from shared.settings import Settings

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # the last 32 bits are an IPv4 address (RFC 6052)
PER_HOST = 8
PER_HOST_OF_WIKIMEDIA = 3  # what it asks of its users
REDIRECTS = {301, 302, 303, 307, 308}
OPT_OUT = {"noai", "noimageai"}
CHUNK = 1 << 16
HELD = 1 << 18  # bytes of an answer in memory; a file costs half a millisecond, as long as all else of a small one


@dataclass(frozen=True)
class Limits:
    """How long and how much a fetch may take. Seconds and bytes."""

    max_bytes: int
    seconds: float = 30  # one request, from connecting to the last byte
    connect: float = 10
    silence: float = 10  # between two pieces of an answer
    redirects: int = 3
    retries: int = 2  # after 429, 5xx and timeouts
    backoff: float = 0.5  # before the first retry, and twice as long before each one more
    patience: float = 30  # the longest Retry-After that is waited for


class FetchError(DarkroomError):
    """An address that could not be fetched; the message is a sentence.

    `code` is stable: forbidden, not_found, timeout, too_large, blocked_address, unreachable, http_error, opted_out.
    `body`: the beginning of what a server said with an error status. `wait`: seconds after which a retry makes sense; None if
    it does not.
    """

    def __init__(self, code: str, message: str, body: bytes = b"", wait: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.body = body
        self.wait = wait


@dataclass(frozen=True)
class Extra:
    """What is sent besides the address, to its own host alone: headers, and the fields of a form, which make it a POST."""

    headers: Mapping[str, str] = field(default_factory=dict)
    form: Mapping[str, str] | None = None
    secrets: tuple[str, ...] = ()  # of the address: a redirect that carries one of them to another host is not followed


class Blocked(OSError):
    """An address or a port that must not be connected to."""


class _Local(Exception):
    """The trouble of a file here, which is not that of a connection."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


def fetch_all(
    urls: list[str], settings: Settings, concurrency: int = 32, limits: Limits | None = None
) -> list[tuple[int, bytes | FetchError]]:
    """Fetch addresses at once: (index, bytes or what went wrong) of each, in order. All answers are in memory together."""

    async def run() -> list[tuple[int, bytes | FetchError]]:
        async with Fetcher(settings, limits, concurrency) as fetcher:
            return list(enumerate(await asyncio.gather(*(attempt(fetcher, url) for url in urls))))

    async def attempt(fetcher: Fetcher, url: str) -> bytes | FetchError:
        try:
            return await fetcher.get(url)
        except FetchError as error:
            return error

    return asyncio.run(run())


class _Body:
    """What has come of an answer: held in memory, and from `HELD` bytes on in a file, which the page cache takes at once. Raises _Local."""

    def __init__(self, path: Path | None) -> None:
        """`path`: of the file; None: memory is enough."""
        self.held = bytearray()
        self._path = path
        self._file: IO[bytes] | None = None

    def begin(self) -> None:
        """Whatever there is was of an earlier try."""
        self.drop()
        self.held.clear()

    def write(self, chunk: bytes) -> None:
        """Take the next piece."""
        try:
            if self._file:
                self._file.write(chunk)
                return
            self.held += chunk
            if self._path and len(self.held) > HELD:
                self._file = self._path.open("wb")
                self._file.write(self.held)
                self.held.clear()
        except OSError as error:
            raise _Local(error) from None

    def end(self) -> bytes | Path:
        """All of it, or the file that holds all of it. Raises OSError."""
        if not self._file or not self._path:
            return bytes(self.held)
        self._file.close()
        return self._path

    def drop(self) -> None:
        """Leave no file behind."""
        if self._file and self._path:
            with suppress(OSError):  # a full disk may refuse what is still to be written
                self._file.close()
            self._path.unlink(missing_ok=True)
            self._file = None


class Fetcher:
    """Fetches many addresses at once, few of one host; `async with` opens and closes its connections."""

    def __init__(self, settings: Settings, limits: Limits | None = None, concurrency: int = 32) -> None:
        """`limits`: those of single images if None. Raises DarkroomError when `fetch_allow` holds no networks."""
        self.limits = limits or Limits(settings.max_image_bytes)
        self._gate = Gate(settings)
        self._honours = settings.honour_noai
        self._slots = asyncio.Semaphore(concurrency)
        self._hosts: dict[str, asyncio.Semaphore] = {}
        self._not_before: defaultdict[str, float] = defaultdict(float)  # by host, loop time: what a Retry-After asked for
        self.notes: dict[str, Any] = {}  # what sources remember while this is open: when they were asked, a token, names of licences
        contact = " ".join(settings.operator_contact.split())
        self._headers = {"User-Agent": f"Darkroom/0.1 ({contact})" if contact else "Darkroom/0.1", "Accept-Encoding": "identity"}

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=0, resolver=self._gate, socket_factory=self._gate.make_socket)
        # `total` would count the wait for a free slot too; the whole request is timed in `_hop`
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self.limits.connect, sock_read=self.limits.silence)
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=timeout, headers=self._headers, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def get(self, url: str, patience: float | None = None, extra: Extra | None = None) -> bytes:
        """The bytes at an address. Raises FetchError. `patience`: another longest wait for a Retry-After, seconds."""
        body = _Body(None)
        await self._get(url, body, self.limits.patience if patience is None else patience, extra or Extra())
        return bytes(body.held)

    async def fetch(self, url: str, path: Path) -> bytes | Path:
        """The bytes at an address, or, if they are more than `HELD`, `path`, a local file that holds them. Raises FetchError, and OSError of the file."""
        body = _Body(path)
        try:
            await self._get(url, body, self.limits.patience, Extra())
            return body.end()
        except BaseException:
            body.drop()
            raise

    async def _get(self, url: str, into: _Body, patience: float, extra: Extra) -> None:
        tries = 0
        while True:
            try:
                return await self._follow(url, into, extra)
            except FetchError as error:
                tries += 1
                if error.wait is None or error.wait > patience or tries > self.limits.retries:
                    raise
                await asyncio.sleep(max(error.wait, self.limits.backoff * 2 ** (tries - 1)))

    async def _follow(self, url: str, into: _Body, extra: Extra) -> None:
        here = _parsed(url)
        for _ in range(self.limits.redirects + 1):
            further = await self._hop(here, into, extra)
            if further is None:
                return
            there = _parsed(further, here)
            if there.origin() != here.origin():
                if any(secret in unquote(further) for secret in extra.secrets):
                    raise FetchError(
                        "blocked_address", f"{here.host} redirects to another host together with the key; that is not followed."
                    )
                extra = Extra(secrets=extra.secrets)
            here = there
        raise FetchError("http_error", f"The address was redirected more than {self.limits.redirects} times.")

    async def _hop(self, url: URL, into: _Body, extra: Extra) -> str | None:
        """One request: the address it is redirected to, or None when the body is in `into`. Raises FetchError."""
        host = url.host or ""
        method = "GET" if extra.form is None else "POST"
        sent: dict[str, Any] = {"headers": extra.headers, "data": extra.form, "allow_redirects": False}
        async with self._slots_of(host):
            await self._calm(host)
            try:
                async with self._slots, asyncio.timeout(self.limits.seconds), self._session.request(method, url, **sent) as response:
                    return await self._answer(url, response, into)
            except TimeoutError:
                raise FetchError("timeout", f"{host} did not answer within {self.limits.seconds:g} seconds.", wait=0) from None
            except aiohttp.ClientSSLError:
                raise FetchError("unreachable", f"{host} has no certificate that can be trusted.") from None
            except aiohttp.ClientConnectorError as error:
                if isinstance(error.os_error, Blocked):
                    raise FetchError("blocked_address", str(error.os_error)) from None
                raise FetchError("unreachable", f"{host} cannot be reached: {error.os_error}.") from None
            except aiohttp.InvalidURL:
                raise FetchError("blocked_address", f"The address of {host} is not written as an address usually is.") from None
            except _Local as trouble:
                raise trouble.error from None
            except (aiohttp.ClientError, OSError) as error:
                raise FetchError("unreachable", f"The connection to {host} broke off: {str(error) or type(error).__name__}.") from None

    async def _answer(self, url: URL, response: aiohttp.ClientResponse, into: _Body) -> str | None:
        host = url.host or ""
        if response.status in REDIRECTS and "Location" in response.headers:
            return response.headers["Location"]
        if response.status != 200:
            raise await self._refusal(host, response)
        if self._honours and opted_out(response.headers.getall("X-Robots-Tag", [])):
            raise FetchError("opted_out", f"{host} asks that this image is not used for AI (X-Robots-Tag).")
        if (response.content_length or 0) > self.limits.max_bytes:
            raise self._too_large()
        size = 0
        into.begin()  # without what a try that broke off has left
        async for chunk in response.content.iter_any():
            size += len(chunk)
            if size > self.limits.max_bytes:
                raise self._too_large()
            into.write(chunk)
        return None

    def _too_large(self) -> FetchError:
        return FetchError("too_large", f"The answer has more than {self.limits.max_bytes:,} bytes.")

    async def _refusal(self, host: str, response: aiohttp.ClientResponse) -> FetchError:
        """The error that an answer other than 200 is; a 429 or 503 with Retry-After quietens all requests to the host."""
        code = {401: "forbidden", 403: "forbidden", 451: "forbidden", 404: "not_found", 410: "not_found"}.get(response.status, "http_error")
        wait = None
        if response.status == 429 or response.status >= 500:
            wait = _retry_after(response.headers.get("Retry-After", ""))
            if wait <= self.limits.patience:
                self._not_before[host] = max(self._not_before[host], asyncio.get_running_loop().time() + wait)
        later = f" and asks to wait {wait:g} seconds" if wait else ""
        body = await response.content.read(CHUNK)
        return FetchError(code, f"{host} answered {response.status} {response.reason or ''}".rstrip() + later + ".", body, wait)

    async def _calm(self, host: str) -> None:
        await asyncio.sleep(max(0.0, self._not_before[host] - asyncio.get_running_loop().time()))

    def _slots_of(self, host: str) -> asyncio.Semaphore:
        wikimedia = host == "wikimedia.org" or host.endswith((".wikimedia.org", ".wikipedia.org"))
        return self._hosts.setdefault(host, asyncio.Semaphore(PER_HOST_OF_WIKIMEDIA if wikimedia else PER_HOST))


class Gate(AbstractResolver):
    """Decides which addresses may be connected to, when a name is resolved and again when the socket is made."""

    def __init__(self, settings: Settings) -> None:
        try:
            self._allowed = [ipaddress.ip_network(network, strict=False) for network in settings.fetch_allow]
        except ValueError as error:
            raise DarkroomError(f"DARKROOM_FETCH_ALLOW holds something that is no network: {error}.") from None

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC) -> list[ResolveResult]:
        """All addresses of a name. Raises OSError, and Blocked when one of them must not be connected to."""
        try:
            found = await ThreadedResolver().resolve(host, port, family)
        except UnicodeError:
            raise OSError(f"{host[:80]!r} is no host name") from None
        for result in found:
            self.check(result["host"], port)
        return found

    def make_socket(self, info: tuple[Any, ...]) -> socket.socket:
        """A socket for an address that was looked up, or that stood in the URL as it is. Raises Blocked."""
        family, kind, protocol, _, address = info
        self.check(address[0], address[1])
        return socket.socket(family=family, type=kind, proto=protocol)

    def check(self, host: str, port: int) -> None:
        """Raises Blocked unless the address is public and the port 80 or 443, or the address is in an allowed network."""
        address = _unwrapped(ipaddress.ip_address(host.partition("%")[0]))
        if any(address in network for network in self._allowed):
            return
        if not address.is_global or address.is_multicast or address.is_reserved or address.is_unspecified:
            raise Blocked(f"The address leads into a private network ({host}); only public addresses are fetched.")
        if port not in {80, 443}:
            raise Blocked(f"The address names port {port}; only 80 and 443 are fetched.")

    async def close(self) -> None:
        """Nothing is held."""


def _unwrapped(address: Address) -> Address:
    """The IPv4 address within an IPv6 address that stands for one."""
    if not isinstance(address, ipaddress.IPv6Address):
        return address
    if address in NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _parsed(url: str, base: URL | None = None) -> URL:
    """The address, without fragment and credentials; `base`: what a redirect is relative to. Raises FetchError."""
    try:
        found = base.join(URL(url)) if base else URL(url)
        if found.scheme in {"http", "https"} and found.host:
            return found.with_user(None).with_fragment(None)
    except ValueError:  # yarl's, of a port or a bracket out of place
        pass
    raise FetchError("blocked_address", f"Only http and https addresses are fetched, not {url[:80]!r}.")


def _retry_after(value: str) -> float:
    """Seconds that a Retry-After asks for; 0 for none, and for a date, after which the usual backoff is waited."""
    return float(value) if value.strip().isascii() and value.strip().isdigit() else 0.0


def opted_out(tags: list[str]) -> bool:
    """Whether X-Robots-Tag headers ask everybody, or us, not to use the picture for AI."""
    for tag in tags:
        agent, colon, rest = tag.partition(":")
        if colon and agent.strip().lower() not in {"*", "darkroom"} and "," not in agent:
            continue  # meant for another robot
        if OPT_OUT & {part.strip().lower() for part in (rest if colon and "," not in agent else tag).split(",")}:
            return True
    return False
