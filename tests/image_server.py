"""A web server on 127.0.0.1 that stands in for the world: image searches, pictures that it draws, and every misbehaviour.

    /openverse, /commons            two APIs, out of `hits`: {query: [path or address of a picture]}
    /flickr, /brave, ...            the others, in tests/search_server.py
    /img/<name>.jpg                 a picture of its own for each name
    /copy/<n>/<name>.jpg            the same bytes under another address
    /bad/<fault>/<name>.jpg         html, truncated, empty, bomb, forbidden, gone, error, drip, large, endless, noai
    /busy/<n>/<seconds>/<name>.jpg  429 with Retry-After, n times, then the picture
    /hop/<n>/<name>.jpg             n redirects, then the picture
    /to?<address>                   a redirect to any address
    /echo                           the headers of the request as JSON

`faults["openverse"]`, or that of another source, makes its API answer `unauthorised`, `forbidden`, `html`, `truncated`, `empty`,
`busy`, `busy once`, `plain` (403 and a word), `list` (JSON that is no object), `odd` (an object of other types) or `away` (a redirect to another origin, query and all).
"""

import asyncio
import hashlib
import io
import struct
import threading
import zlib
from collections import Counter, defaultdict
from typing import Any, Self

import numpy as np
from aiohttp import web
from PIL import Image
from search_server import routes

CREATOR = '<a href="//commons.wikimedia.org/wiki/User:Six">Six &amp; <b>Seven</b></a>'
ODD = {
    "results": [1, None, {"url": 5, "urls": [], "properties": "x"}],
    "value": [{"contentUrl": 1}],
    "photos": [{"src": []}, 7],
    "items": 5,
}
LICENCES = ["CC BY-SA 4.0", "CC0"]


def picture(name: str, size: tuple[int, int] = (96, 80), kind: str = "JPEG") -> bytes:
    """A picture that depends on nothing but its name: coloured blocks."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).save(out, kind)
    return out.getvalue()


def bomb() -> bytes:
    """A PNG of a few kilobytes that says it has 20,000 x 20,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")


class ImageServer:
    """Runs in a thread of its own from `with ImageServer() as server` until the block ends."""

    def __init__(self) -> None:
        self.hits: defaultdict[str, dict[str, list[str]]] = defaultdict(dict)
        self.licences = ["by-sa"]  # of the hits of Openverse, in turn
        self.collections = ["flickr"]  # that they are of, in turn
        self.faults: dict[str, str] = {}
        self.seen: list[web.Request] = []
        self._times: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> None:
        app = web.Application(middlewares=[self._noting])
        app.add_routes(
            [
                *routes(self),
                web.get("/openverse", self._openverse),
                web.get("/commons", self._commons),
                web.get("/img/{name}", self._image),
                web.get("/copy/{n}/{name}", self._image),
                web.get("/bad/{fault}/{name}", self._bad),
                web.get("/busy/{n}/{seconds}/{name}", self._busy),
                web.get("/hop/{n}/{name}", self._hop),
                web.get("/to", self._to),
                web.get("/echo", self._echo),
            ]
        )
        self._runner = web.AppRunner(app, shutdown_timeout=0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self.port}"

    def paths(self) -> list[str]:
        """The paths that were asked for, in order."""
        return [request.path for request in self.seen]

    @web.middleware
    async def _noting(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.seen.append(request)
        return await handler(request)

    # -- the two searches ---------------------------------------------------------------------------------------------

    def fault(self, api: str, request: web.Request) -> web.Response | None:
        """How the API of a source misbehaves, if it is to."""
        fault = self.faults.get(api)
        if fault == "busy":
            return web.json_response({"detail": "Request was throttled."}, status=429, headers={"Retry-After": "86400"})
        if fault in {"forbidden", "unauthorised"}:
            return web.json_response({"detail": "Not for you."}, status=403 if fault == "forbidden" else 401)
        if fault == "busy once":
            del self.faults[api]
            return web.Response(status=429, headers={"Retry-After": "1"})
        if fault == "plain":
            return web.Response(status=403, text="Rate Limit Exceeded")
        if fault in {"list", "odd"}:
            return web.json_response([1, 2] if fault == "list" else ODD)
        if fault == "away":
            return web.Response(status=302, headers={"Location": f"http://localhost:{self.port}/echo?{request.query_string}"})
        body = {"html": "<!doctype html><title>Hello</title>", "truncated": '{"results": [{"url": "http', "empty": ""}.get(fault or "")
        return None if body is None else web.Response(text=body, content_type="application/json")

    def address(self, path: str) -> str:
        return path if "://" in path else self.url + path

    async def _openverse(self, request: web.Request) -> web.Response:
        if fault := self.fault("openverse", request):
            return fault
        page, size = int(request.query["page"]), int(request.query["page_size"])
        if size > 20:
            return web.json_response({"detail": "page_size may not exceed 20 for anonymous requests"}, status=401)
        if page * size > 240:
            return web.json_response({"error": "InputError", "detail": "too deep", "fields": ["page"]}, status=400)
        found = [self._openverse_result(path, n) for n, path in enumerate(self.hits["openverse"].get(request.query["q"], []))]
        hits = [result for result in found if self._wanted(result, request.query)]
        some = hits[(page - 1) * size : page * size]
        pages = min(-(-len(hits) // size), 12)
        return web.json_response({"result_count": len(hits), "page_count": pages, "page_size": size, "page": page, "results": some})

    def _wanted(self, result: dict[str, Any], query: Any) -> bool:
        """Whether the parameters of a query let a result through."""
        free = {"commercial": "nc", "modification": "nd"}.get(query.get("license_type", ""), "-")
        return (
            result["license"] in query.get("license", result["license"]).split(",")
            and free not in result["license"].split("-")
            and query.get("source", result["source"]) == result["source"]
            and result["source"] not in query.get("excluded_source", "").split(",")
        )

    def _openverse_result(self, path: str, index: int) -> dict[str, Any]:
        tiny = "tiny" in path
        code, collection = self.licences[index % len(self.licences)], self.collections[index % len(self.collections)]
        return {
            "id": path, "title": f"Photo {path}", "foreign_landing_url": f"{self.url}/page{path}", "url": self.address(path),
            "creator": "Tim Sullivan", "creator_url": "https://stocksnap.io/author/1", "license": code, "license_version": "2.0",
            "license_url": f"https://creativecommons.org/licenses/{code}/2.0/", "provider": collection, "source": collection, "category": None,
            "attribution": f'"Photo {path}" by Tim Sullivan is licensed under CC {code.upper()} 2.0.',
            "filesize": None, "filetype": None, "tags": [], "mature": False, "height": 12 if tiny else 80, "width": 16 if tiny else 96,
            "thumbnail": f"{self.url}/thumb{path}", "unstable__sensitivity": [],
        }  # fmt: skip

    async def _commons(self, request: web.Request) -> web.Response:
        if fault := self.fault("commons", request):
            return fault
        words, offset, limit = request.query["gsrsearch"], int(request.query["gsroffset"]), int(request.query["gsrlimit"])
        hits = self.hits["commons"].get(words.removesuffix(" filetype:bitmap"), [])
        some = [self._commons_page(path, n) for n, path in enumerate(hits[offset : offset + limit], offset + 1)]
        answer: dict[str, Any] = {"batchcomplete": True}
        if offset + limit < len(hits):
            answer["continue"] = {"gsroffset": offset + limit, "continue": "gsroffset||"}
        if some:
            answer["query"] = {"pages": some[::-1]}  # never in the order of rank
        return web.json_response(answer)

    def _commons_page(self, path: str, index: int) -> dict[str, Any]:
        info = {
            "size": 1000, "width": 96, "height": 80, "mime": "image/jpeg",
            "mediatype": "OFFICE" if path.endswith(".pdf") else "BITMAP",
            "url": f"{self.address(path)}?utm_source=commons.wikimedia.org", "descriptionurl": f"{self.url}/wiki/File:{path}",
            "thumburl": f"{self.url}/thumb{path}", "thumbwidth": 330, "thumbheight": 165,
            "extmetadata": {
                "ObjectName": {"value": path}, "Artist": {"value": CREATOR},
                "LicenseShortName": {"value": LICENCES[index % 2]},
                "LicenseUrl": {"value": "https://creativecommons.org/licenses/by-sa/4.0"},
            },
        }  # fmt: skip
        return {"pageid": index, "ns": 6, "title": f"File:{path}", "index": index, "imageinfo": [info]}

    # -- pictures -----------------------------------------------------------------------------------------------------

    async def _image(self, request: web.Request) -> web.Response:
        return web.Response(body=picture(request.match_info["name"]), content_type="image/jpeg")

    async def _bad(self, request: web.Request) -> web.StreamResponse:
        good = picture(request.match_info["name"])
        fault = request.match_info["fault"]
        if fault in {"forbidden", "gone", "error"}:
            return web.Response(status={"forbidden": 403, "gone": 404, "error": 500}[fault])
        if fault in {"drip", "endless"}:
            return await self._slowly(request, good if fault == "drip" else bytes(1 << 20), 0.2 if fault == "drip" else 0)
        if fault == "noai":
            return web.Response(body=good, content_type="image/jpeg", headers={"X-Robots-Tag": "noimageindex, NoAI"})
        bodies = {"html": b"<!doctype html><title>Not a picture</title>", "truncated": good[: len(good) // 2], "empty": b"", "bomb": bomb()}
        return web.Response(body=bodies.get(fault, bytes(5 << 20)), content_type="image/jpeg")

    async def _slowly(self, request: web.Request, piece: bytes, pause: float) -> web.StreamResponse:
        """One byte, or one piece, after another, without saying how many."""
        response = web.StreamResponse(headers={"Content-Type": "image/jpeg"})
        await response.prepare(request)
        for n in range(200):
            await response.write(piece[n : n + 1] if pause else piece)
            await asyncio.sleep(pause)
        return response

    async def _busy(self, request: web.Request) -> web.Response:
        self._times[request.path] += 1
        if self._times[request.path] <= int(request.match_info["n"]):
            return web.Response(status=429, headers={"Retry-After": request.match_info["seconds"]})
        return await self._image(request)

    async def _hop(self, request: web.Request) -> web.Response:
        n, name = int(request.match_info["n"]), request.match_info["name"]
        raise web.HTTPFound(f"/hop/{n - 1}/{name}" if n > 1 else f"/img/{name}")

    async def _to(self, request: web.Request) -> web.Response:
        return web.Response(status=301, headers={"Location": request.query_string, "Set-Cookie": "spy=1"})

    async def _echo(self, request: web.Request) -> web.Response:
        return web.json_response(dict(request.headers))
