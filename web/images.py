"""Pictures for the pages: thumbnails made once and kept, originals as downloads. Nothing is served as it was uploaded but as an attachment."""

import hashlib
import io
import re
import threading
from functools import lru_cache

from flask import Blueprint, Response, request
from PIL import Image

from shared.errors import Invalid, NotFound
from shared.images import EXTENSIONS, BadImage, thumbnail
from shared.items import ItemReader
from shared.storage import Storage, image_key
from web.backend import backend, batch_of
from web.downloads import attachment

blueprint = Blueprint("images", __name__)
SIDES = (96, 144, 224, 448, 896, 1792)
FOR_EVER = "public, max-age=31536000, immutable"  # the address holds the hash of the bytes, or an item that never changes
LOCKED = "default-src 'none'; sandbox"
DECODING = threading.BoundedSemaphore(2)  # pictures in hand: the largest that is allowed takes some hundred megabytes


@blueprint.get("/images/<sha256>.<ext>/thumb")
def thumb(sha256: str, ext: str) -> Response:
    """A thumbnail of a stored picture."""
    _check(sha256, ext)
    storage = backend().storage
    if kept := _kept(storage, sha256, side := _side()):
        return webp(kept)
    try:
        return webp(_keep(storage, sha256, side, storage.read(image_key(sha256, ext))))
    except BadImage:
        return _placeholder(side)


@blueprint.get("/images/<sha256>.<ext>/original")
def original(sha256: str, ext: str) -> Response:
    """A stored picture as it came, as a download: whatever it is, no browser opens it here."""
    _check(sha256, ext)
    return _locked(attachment(backend().storage, image_key(sha256, ext), f"{sha256[:16]}.{ext}"))


@blueprint.get("/batches/<batch>/items/<int(max=9999999999):item_id>/thumb")
def item_thumb(batch: str, item_id: int) -> Response:
    """A thumbnail of an item of a batch; a neutral square when the picture cannot be had."""
    batch_of(batch)
    storage, side = backend().storage, _side()
    row = backend().queries.row(batch, item_id)
    if row["sha256"] and (kept := _kept(storage, row["sha256"], side)):
        return webp(kept)
    try:
        return webp(_keep(storage, row["sha256"], side, _read(storage, row["locator"], row["sha256"])))
    except BadImage:
        return _placeholder(side)


def _read(storage: Storage, locator: str, sha256: str) -> bytes:
    """The bytes of an item. What came from an address was kept as a picture when it was labelled. Raises BadImage."""
    if locator.startswith(("http:", "https:")):
        found = next((ext for ext in dict.fromkeys(EXTENSIONS.values()) if sha256 and storage.exists(image_key(sha256, ext))), None)
        if found is None:
            raise BadImage("not_found", "The picture of this address was not kept.")
        locator = f"image:{sha256}.{found}"
    settings = backend().settings
    return ItemReader(storage, settings.max_image_bytes, settings).read(locator)


def _check(sha256: str, ext: str) -> None:
    if not re.fullmatch(r"[0-9a-f]{64}", sha256) or ext not in EXTENSIONS.values():
        raise NotFound("There is no such picture.")


def _side() -> int:
    side = request.args.get("side", "224")
    if side not in map(str, SIDES):
        raise Invalid(f"A thumbnail's side is one of {', '.join(map(str, SIDES))}.", field="side")
    return int(side)


def _thumb_key(sha256: str, side: int) -> str:
    return f"thumbs/{sha256[:2]}/{sha256}-{side}.webp"


def _kept(storage: Storage, sha256: str, side: int) -> bytes | None:
    try:
        return storage.read(_thumb_key(sha256, side))
    except NotFound:
        return None


def _keep(storage: Storage, sha256: str, side: int, data: bytes) -> bytes:
    """Make a thumbnail, and keep it under the hash of the picture if these are its bytes: a file may have changed. Raises BadImage."""
    with DECODING:
        made = thumbnail(data, side)
    if sha256 == hashlib.sha256(data).hexdigest():
        storage.write(_thumb_key(sha256, side), made, durable=False)
    return made


def webp(data: bytes, cache: str = FOR_EVER) -> Response:
    """A WebP picture as an answer that browsers keep and that can do nothing."""
    response = Response(data, mimetype="image/webp")
    response.headers["Cache-Control"] = cache
    return _locked(response)


def _locked(response: Response) -> Response:
    response.headers["Content-Security-Policy"] = LOCKED
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def _placeholder(side: int) -> Response:
    return webp(_grey(side), cache="private, max-age=60")


@lru_cache
def _grey(side: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, side), "#77787a").save(out, "WEBP", quality=50)
    return out.getvalue()
