"""Speaking to the web's API. Whatever goes wrong comes back as a DarkroomError with a sentence."""

import secrets
from collections.abc import Iterable
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from shared.errors import Conflict, DarkroomError, Invalid, NotFound, Unavailable
from shared.settings import load

ERRORS: dict[int, type[DarkroomError]] = {404: NotFound, 409: Conflict, 422: Invalid, 503: Unavailable}
SECONDS = httpx.Timeout(60, connect=5)  # an answer to `predict` may take half a minute
UPLOAD_SECONDS = httpx.Timeout(600, connect=5)  # the server looks at each name of a million
CHUNK = 1 << 20


class Client:
    """The API at one address. Connects when it is first used."""

    def __init__(self, url: str | None = None) -> None:
        """`url`: None means DARKROOM_URL, or this machine."""
        self._given = url

    @cached_property
    def url(self) -> str:
        """The address of the web, without a slash at its end."""
        return load(url=self._given).url.rstrip("/")

    @cached_property
    def _http(self) -> httpx.Client:
        # no proxies from the environment: the web is on this machine or a neighbour
        return httpx.Client(timeout=SECONDS, trust_env=False, headers={"Accept": "application/json"})

    def get(self, *path: str | int, **query: Any) -> Any:
        """GET an address below `/api/v1`, given by its parts."""
        return self._json(self._send("GET", path, params=_given(query)))

    def get_if_changed(self, etag: str, *path: str | int, **query: Any) -> tuple[Any, str]:
        """(answer, its ETag), or (None, `etag`) if nothing has changed since the answer with this ETag."""
        response = self._send("GET", path, params=_given(query), headers={"If-None-Match": etag} if etag else {})
        if response.status_code == 304:
            return None, etag
        return self._json(response), response.headers.get("ETag", "")

    def post(self, *path: str | int, **body: Any) -> Any:
        """POST without or with a JSON object."""
        return self._json(self._send("POST", path, json=body))

    def put(self, *path: str | int, **body: Any) -> Any:
        """PUT a JSON object."""
        return self._json(self._send("PUT", path, json=body))

    def delete(self, *path: str | int) -> None:
        """DELETE; the answer has no body."""
        response = self._send("DELETE", path)
        if response.status_code != 204:
            self._json(response)

    def submit(self, *path: str | int, spec: dict[str, Any]) -> dict[str, Any]:
        """Order a job: the job as it stands."""
        return self._json(self._send("POST", path, json=spec, headers={"Idempotency-Key": secrets.token_hex(16)}))  # type: ignore[no-any-return]

    def submit_files(self, *path: str | int, **files: Path) -> dict[str, Any]:
        """Order a job with a form of files: the job as it stands. Raises DarkroomError, also when a file cannot be read."""
        with ExitStack() as opened:
            try:
                form = {
                    name: (file.name, opened.enter_context(file.open("rb")), "application/octet-stream") for name, file in files.items()
                }
            except OSError as error:
                raise DarkroomError(f"{error.filename} cannot be read: {error.strerror or error}.") from None
            headers = {"Idempotency-Key": secrets.token_hex(16)}
            return self._json(self._send("POST", path, files=form, headers=headers, timeout=UPLOAD_SECONDS))  # type: ignore[no-any-return]

    def upload(self, pieces: Iterable[bytes], size: int | None, *path: str, kind: str = "application/zip", method: str = "POST") -> Any:
        """Upload a body of `size` bytes (None: not known) below `/uploads`; the answer's `source`, if any, goes into a spec."""
        headers = {"Content-Type": kind} | ({} if size is None else {"Content-Length": str(size)})
        return self._json(self._send(method, ("uploads", *path), content=pieces, headers=headers, timeout=UPLOAD_SECONDS))

    def predict(self, model: str, image: bytes) -> dict[str, Any]:
        """Label one image."""
        headers = {"Content-Type": "application/octet-stream"}
        return self._json(self._send("POST", ("predict",), params={"model": model}, content=image, headers=headers))  # type: ignore[no-any-return]

    def look(self, model: str, version: int, image: bytes, label: str | None) -> dict[str, Any]:
        """Where a model version looks in one image, for a class or for the one it predicts."""
        path = ("models", model, "versions", version, "look")
        headers = {"Content-Type": "application/octet-stream"}
        return self._json(self._send("POST", path, params=_given({"class": label}), content=image, headers=headers))  # type: ignore[no-any-return]

    def download(self, target: Path, *path: str | int) -> None:
        """Save an answer as the file `target`, whole or not at all."""
        part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        try:
            with self._http.stream("GET", self._address(path)) as response, part.open("wb") as out:
                if response.status_code != 200:
                    response.read()
                    self._json(response)
                for chunk in response.iter_bytes(CHUNK):
                    out.write(chunk)
            part.replace(target)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._away(error) from error
        except OSError as error:
            raise DarkroomError(f"{target} cannot be written: {error.strerror or error}.") from error
        finally:
            part.unlink(missing_ok=True)

    def _address(self, path: tuple[str | int, ...]) -> str:
        return "/".join([self.url, "api/v1", *(quote(str(part), safe="") for part in path)])

    def _send(self, method: str, path: tuple[str | int, ...], **more: Any) -> httpx.Response:
        try:
            return self._http.request(method, self._address(path), **more)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._away(error) from error

    def _away(self, error: Exception) -> Unavailable:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return Unavailable(
                f"Darkroom cannot be reached at {self.url}. Start it with `darkroom up`, or name its address with --url or DARKROOM_URL."
            )
        if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
            return Unavailable(f"{self.url!r} is no address of a web. It should look like http://127.0.0.1:8000.")
        what = "took too long to answer" if isinstance(error, httpx.TimeoutException) else "broke off the connection"
        return Unavailable(f"Darkroom at {self.url} {what} ({type(error).__name__}).")

    def _json(self, response: httpx.Response) -> Any:
        """The value of an answer. Raises DarkroomError for a problem, and for an answer that is not Darkroom's."""
        kind = response.headers.get("Content-Type", "")
        try:
            value = response.json() if "json" in kind else None
        except ValueError:
            value = None
        if response.is_success and value is not None:
            return value
        if isinstance(value, dict) and isinstance(value.get("detail"), str):
            raise ERRORS.get(response.status_code, DarkroomError)(value["detail"])
        if response.status_code in {502, 503, 504}:  # a proxy whose web is away
            raise Unavailable(f"Darkroom at {self.url} is not available at the moment (status {response.status_code}).")
        raise DarkroomError(
            f"What answers at {self.url} is not Darkroom, or another version of it (status {response.status_code}, {kind or 'no type'})."
        )


def _given(query: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in query.items() if value is not None}
