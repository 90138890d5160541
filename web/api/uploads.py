"""What is sent before it is named in an order."""

from flask import Response, jsonify, request
from werkzeug.exceptions import UnsupportedMediaType

from shared.items import upload_key
from web import parameters
from web.api import blueprint
from web.backend import backend
from web.uploads import keep_archive, keep_blob, keep_files, keep_list, keep_manifest, keep_table, missing_blobs


@blueprint.post("/uploads")
def upload() -> tuple[Response, int]:
    """Keep a zip or tar (the body, or a form's only file), the single files of a form, or a CSV of addresses and classes."""
    b = backend()
    if request.mimetype == "multipart/form-data":
        upload_id = keep_files(b, [file for _, file in request.files.items(multi=True)])
    else:
        upload_id = (keep_table if request.mimetype == "text/csv" else keep_archive)(b, request.stream)
    return jsonify(id=upload_id, bytes=b.storage.size(upload_key(upload_id)), source={"kind": "upload", "id": upload_id}), 201


@blueprint.post("/uploads/missing")
def missing_files() -> Response:
    """Which of these files still have to be sent, and the bytes that one may have."""
    b = backend()
    return jsonify(missing=missing_blobs(b, parameters.body().get("sha256")), max_bytes=b.settings.max_image_bytes)


@blueprint.put("/uploads/blobs/<sha256>")
def upload_file(sha256: str) -> tuple[Response, int]:
    """Keep one file under the SHA-256 of its bytes, which are the body."""
    new = keep_blob(backend(), sha256, request.stream)
    return jsonify(sha256=sha256), 201 if new else 200


@blueprint.post("/uploads/manifest")
def upload_manifest() -> tuple[Response, int]:
    """Make an upload of files that were sent one by one: a JSON line each, name and SHA-256."""
    if request.mimetype not in {"application/jsonl", "application/x-ndjson"}:
        raise UnsupportedMediaType("Send the names as JSON lines, with the header Content-Type: application/jsonl.")
    upload_id, count = keep_manifest(backend(), request.stream)
    return jsonify(id=upload_id, items=count, source={"kind": "upload", "id": upload_id}), 201


@blueprint.post("/uploads/list")
def upload_list() -> tuple[Response, int]:
    """Keep a list of addresses or server paths: plain lines, or CSV."""
    if request.mimetype not in {"text/plain", "text/csv"}:
        raise UnsupportedMediaType("Send the list with the header Content-Type: text/plain or text/csv.")
    upload_id, count = keep_list(backend(), request.stream, is_csv=request.mimetype == "text/csv")
    return jsonify(id=upload_id, items=count, source={"kind": "list", "id": upload_id}), 201
