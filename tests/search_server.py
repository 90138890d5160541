"""The image searches beside Openverse and Commons, in their own wire formats: a part of the server in tests/image_server.py.

Each has the path of its name and answers out of `hits[name]`: {query: [path or address of a picture]}. Those that want the key
`KEY` refuse any other, and repeat it in what they say. They are as strict as theirs are: no more a page, and no deeper.
"""

import json
from typing import Any

from aiohttp import web

KEY = "k3y-of+the/operator=="
TOKEN = "4-1234567890"
FLICKR_LICENCES = {
    0: ("All Rights Reserved", ""),
    2: ("Attribution-NonCommercial License", "https://creativecommons.org/licenses/by-nc/2.0/"),
    4: ("Attribution License", "https://creativecommons.org/licenses/by/2.0/"),
    9: ("Public Domain Dedication (CC0)", "https://creativecommons.org/publicdomain/zero/1.0/"),
    15: ("Attribution-NoDerivatives 4.0", "https://creativecommons.org/licenses/by-nd/4.0/"),
}
FLICKR_DEEPEST = 4000


def routes(server: Any) -> list[web.RouteDef]:
    """The routes of the searches; `server` is the ImageServer."""
    searches = Searches(server)
    return [
        web.get("/flickr", searches.flickr),
        web.get("/brave", searches.brave),
        web.get("/serpapi", searches.serpapi),
        web.get("/google", searches.google),
        web.get("/pexels", searches.pexels),
        web.get("/unsplash", searches.unsplash),
        web.get("/unsplash-used/{name}", searches.used),
        web.get("/duckduckgo/", searches.duckduckgo),
        web.get("/duckduckgo/i.js", searches.images_of_duckduckgo),
        web.get("/bing", searches.bing),
        web.post("/auth_tokens/token/", searches.token),
    ]


def addresses(url: str) -> dict[str, str]:
    """The settings that point all sources at the server."""
    names = ("openverse", "commons", "flickr", "brave", "serpapi", "google", "pexels", "unsplash", "bing")
    return {**{f"{name}_url": f"{url}/{name}" for name in names}, "duckduckgo_url": f"{url}/duckduckgo/"}


class Searches:
    """Answers as each service does."""

    def __init__(self, server: Any) -> None:
        self.server = server

    def hits(self, source: str, query: str) -> list[str]:
        """What a source has for a query."""
        return self.server.hits[source].get(query, [])

    def sizes(self, path: str) -> tuple[int, int]:
        return (16, 12) if "tiny" in path else (96, 80)

    async def token(self, request: web.Request) -> web.Response:
        form = await request.post()
        if fault := self.server.fault("token", request):
            return fault
        if (form["client_id"], form["client_secret"], form["grant_type"]) != ("darkroom", KEY, "client_credentials"):
            return web.json_response({"error": "invalid_client", "detail": f"{form['client_secret']} is not known."}, status=401)
        return web.json_response({"access_token": "t0ken-of-openverse", "expires_in": 36000, "token_type": "Bearer", "scope": "read write"})

    async def flickr(self, request: web.Request) -> web.Response:
        if fault := self.server.fault("flickr", request):
            return fault
        query = request.query
        if query["api_key"] != KEY:
            return web.json_response({"stat": "fail", "code": 100, "message": f"Invalid API Key ({query['api_key']} has wrong format)"})
        if query["method"] == "flickr.photos.licenses.getInfo":
            known = [{"id": str(number), "name": name, "url": url} for number, (name, url) in FLICKR_LICENCES.items()]
            return web.json_response({"stat": "ok", "licenses": {"license": known}})
        size, page, wanted = min(500, int(query["per_page"])), int(query["page"]), query.get("license", "")
        photos = [self._photo(path, n) for n, path in enumerate(self.hits("flickr", query["text"]))]
        photos = [photo for photo in photos if not wanted or photo["license"] in wanted.split(",")]
        pages = -(-len(photos) // size)
        page = min(page, FLICKR_DEEPEST // size)  # and then it repeats the last one
        some = photos[(page - 1) * size : page * size]
        found = {"page": page, "pages": pages, "perpage": size, "total": len(photos), "photo": some}
        return web.json_response({"stat": "ok", "photos": found})

    def _photo(self, path: str, index: int) -> dict[str, Any]:
        width, height = self.sizes(path)
        numbers = list(FLICKR_LICENCES)
        return {
            "id": str(index), "owner": "47140246@N02", "title": f"Photo {path}", "license": str(numbers[index % len(numbers)]),
            "ownername": "Tim Sullivan", "tags": "a b", "description": {"_content": ".."}, "url_m": f"{self.server.url}/small{path}",
            "url_s": f"{self.server.url}/thumb{path}", "url_l": None if "not-large" in path else self.server.address(path), "width_l": width, "height_l": str(height),
        }  # fmt: skip

    async def brave(self, request: web.Request) -> web.Response:
        if fault := self.server.fault("brave", request):
            return fault
        given = request.headers.get("X-Subscription-Token", "")
        if given != KEY:
            return web.json_response(
                {"type": "ErrorResponse", "error": {"detail": f"The token {given} is invalid.", "status": 422}}, status=422
            )
        some = self.hits("brave", request.query["q"])[: min(200, int(request.query["count"]))]
        results = []
        for path in some:
            width, height = self.sizes(path)
            results.append({
                "type": "image_result", "title": f"Photo {path}", "url": f"{self.server.url}/page{path}", "source": "host",
                "thumbnail": {"src": f"{self.server.url}/thumb{path}", "width": 500, "height": 375},
                "properties": {"url": self.server.address(path), "placeholder": "..", "width": width, "height": height},
            })  # fmt: skip
        return web.json_response({"type": "images", "query": {"original": request.query["q"], "altered": None}, "results": results})

    async def serpapi(self, request: web.Request) -> web.Response:
        if fault := self.server.fault("serpapi", request):
            return fault
        if request.query["api_key"] != KEY:
            return web.json_response({"error": f"Invalid API key {request.query['api_key']}."}, status=401)
        page = int(request.query["ijn"])
        some = self.hits("serpapi", request.query["q"])[page * 20 : (page + 1) * 20]
        if not some:
            return web.json_response({"error": "Google hasn't returned any results for this query."})
        results = []
        for n, path in enumerate(some):
            width, height = self.sizes(path)
            licence = {} if n % 2 else {"license_details_url": "https://creativecommons.org/licenses/by/4.0/"}
            results.append({
                "position": n + 1, "thumbnail": f"{self.server.url}/thumb{path}", "original": self.server.address(path), "original_width": width,
                "original_height": height, "title": f"Photo {path}", "source": "host", "link": f"{self.server.url}/page{path}", **licence,
            })  # fmt: skip
        return web.json_response({"images_results": results, "serpapi_pagination": {}})

    async def google(self, request: web.Request) -> web.Response:
        if fault := self.server.fault("google", request):
            return fault
        query = request.query
        if query["key"] != KEY or query["cx"] != "engine":
            return web.json_response({"error": {"code": 400, "message": f"API key not valid: {query['key']}."}}, status=400)
        start, number = int(query["start"]), int(query["num"])
        if number > 10 or start + number > 100:
            return web.json_response({"error": {"code": 400, "message": "Request contains an invalid argument."}}, status=400)
        hits = self.hits("google", query["q"] + (f" {query['imgSize']}" if "imgSize" in query else ""))
        some = [self._item(path) for path in hits[start - 1 : start - 1 + number]]
        asked = {"totalResults": str(len(hits)), "count": len(some), "startIndex": start}
        further = {"nextPage": [{"startIndex": start + number}]} if len(hits) > start - 1 + number else {}
        answer = {"kind": "customsearch#search", "queries": {"request": [asked], **further}}
        return web.json_response({**answer, "items": some} if some else answer)

    def _item(self, path: str) -> dict[str, Any]:
        width, height = self.sizes(path)
        image = {
            "contextLink": f"{self.server.url}/page{path}", "height": height, "width": width, "byteSize": 12345,
            "thumbnailLink": f"{self.server.url}/thumb{path}", "thumbnailHeight": 100, "thumbnailWidth": 150,
        }  # fmt: skip
        return {
            "kind": "customsearch#result", "title": f"Photo {path}", "link": self.server.address(path), "displayLink": "host",
            "mime": "image/jpeg", "fileFormat": "..", "snippet": "..", "image": image,
        }  # fmt: skip

    async def pexels(self, request: web.Request) -> web.Response:
        if fault := self.server.fault("pexels", request):
            return fault
        if request.headers.get("Authorization") != KEY:
            return web.json_response({"error": f"{request.headers.get('Authorization')} is no key."}, status=401)
        page, size = int(request.query["page"]), min(80, int(request.query["per_page"]))
        hits = self.hits("pexels", request.query["query"])
        answer: dict[str, Any] = {"page": page, "per_page": size, "total_results": len(hits), "photos": []}
        for n, path in enumerate(hits[(page - 1) * size : page * size]):
            width, height = self.sizes(path)
            answer["photos"].append({
                "id": n, "width": width, "height": height, "url": f"{self.server.url}/page{path}", "photographer": "Tim Sullivan",
                "photographer_url": "https://www.pexels.com/@tim", "photographer_id": 1, "avg_color": "#777777", "alt": f"Photo {path}", "liked": False,
                "src": {"original": self.server.address(path), "medium": f"{self.server.url}/thumb{path}"},
            })  # fmt: skip
        if page * size < len(hits):
            answer["next_page"] = f"{self.server.url}/pexels?page={page + 1}"
        return web.json_response(answer)

    async def unsplash(self, request: web.Request) -> web.Response:
        if fault := self.server.fault("unsplash", request):
            return fault
        given = request.headers.get("Authorization", "")
        if given != f"Client-ID {KEY}":
            return web.json_response({"errors": [f"OAuth error: {given} is invalid"]}, status=401)
        page, size = int(request.query["page"]), min(30, int(request.query["per_page"]))
        hits = self.hits("unsplash", request.query["query"])
        results = []
        for path in hits[(page - 1) * size : page * size]:
            width, height = self.sizes(path)
            results.append({
                "id": path, "width": width, "height": height, "color": "#777777", "blur_hash": "..", "description": f"Photo {path}",
                "urls": {"raw": "..", "full": self.server.address(path), "regular": "..", "small": "..", "thumb": f"{self.server.url}/thumb{path}"},
                "links": {
                    "self": "..", "html": f"{self.server.url}/page{path}", "download": "..",
                    "download_location": f"{self.server.url}/unsplash-used/{path.rpartition('/')[2]}?ixid=1",
                },
                "user": {"name": "Tim Sullivan", "links": {"html": "https://unsplash.com/@tim"}},
            })  # fmt: skip
        return web.json_response({"total": len(hits), "total_pages": -(-len(hits) // size), "results": results})

    async def used(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Client-ID {KEY}":
            return web.json_response({"errors": ["OAuth error: The access token is invalid"]}, status=401)
        return web.json_response({"url": f"{self.server.url}/img/x.jpg"})

    async def duckduckgo(self, request: web.Request) -> web.Response:
        if fault := self.server.fault("duckduckgo", request):
            return fault
        token = (
            ""
            if self.server.faults.get("duckduckgo") == "no token"
            else f'<script>nrj("/d.js?q=x&vqd={TOKEN}&p=1"); vqd="{TOKEN}"</script>'
        )
        return web.Response(text=f"<!doctype html><title>{request.query['q']}</title>{token}", content_type="text/html")

    async def images_of_duckduckgo(self, request: web.Request) -> web.Response:
        if fault := self.server.fault("i.js", request):
            return fault
        query = request.query
        if query["vqd"] != TOKEN or not request.headers.get("Referer"):
            return web.Response(status=403, text="If this error persists, please let us know: error-lite@duckduckgo.com")
        start = int(query.get("s", 0))
        hits = self.hits("duckduckgo", query["q"])
        results = []
        for path in hits[start : start + 100]:
            width, height = self.sizes(path)
            results.append({
                "title": f"Photo {path}", "image": self.server.address(path), "thumbnail": f"{self.server.url}/thumb{path}",
                "url": f"{self.server.url}/page{path}", "height": height, "width": width, "source": "Bing",
            })  # fmt: skip
        answer: dict[str, Any] = {"results": results}
        if start + 100 < len(hits):
            answer["next"] = f"i.js?q={query['q']}&s={start + 100}"
        return web.Response(text=json.dumps(answer), content_type="application/x-javascript")

    async def bing(self, request: web.Request) -> web.Response:
        if fault := self.server.fault("bing", request):
            return fault
        given = request.headers.get("Ocp-Apim-Subscription-Key", "")
        if given != KEY:
            told = {
                "code": "InvalidAuthorization",
                "subCode": "AuthorizationMissing",
                "message": f"Authorization {given} is wrong.",
                "moreDetails": "..",
            }
            return web.json_response({"_type": "ErrorResponse", "errors": [told]}, status=401)
        offset, count = int(request.query["offset"]), min(150, int(request.query["count"]))
        hits = self.hits("bing", request.query["q"])
        value = []
        for path in hits[offset : offset + count]:
            width, height = self.sizes(path)
            value.append({
                "imageId": path, "name": f"Photo {path}", "contentUrl": self.server.address(path), "thumbnailUrl": f"{self.server.url}/thumb{path}",
                "hostPageUrl": f"{self.server.url}/page{path}", "encodingFormat": "jpeg", "contentSize": "54018 B", "width": width, "height": height,
            })  # fmt: skip
        following = offset + count - 3  # which overlaps, as theirs did
        answer = {"_type": "Images", "totalEstimatedMatches": len(hits), "currentOffset": offset, "nextOffset": following, "value": value}
        return web.json_response(answer)
