"""The JSON API of models that come and go: export as ONNX, import from another installation. The rest is in web/api.py."""

from flask import Response, request
from werkzeug.exceptions import UnsupportedMediaType

from shared.errors import Invalid
from shared.specs import Name, check
from shared.weights import MAX_INFO
from web import orders
from web.api import accepted, blueprint
from web.backend import backend
from web.uploads import keep_model


@blueprint.post("/models/<name>/versions/<int(max=999999):version>/export")
def export(name: str, version: int) -> Response:
    """Order model.onnx of a version."""
    spec = {"model": f"{check(Name, name)}/v{version}"}
    return accepted(orders.submit(backend(), "export", spec, request.headers.get("Idempotency-Key", "")))


@blueprint.post("/models/<name>/import")
def adopt(name: str) -> Response:
    """Order a version made of a form's two files, `weights` and `info`: the model.safetensors and info.json of another installation."""
    check(Name, name)
    if request.mimetype != "multipart/form-data":
        raise UnsupportedMediaType(
            "Send a form (multipart/form-data) with the files `weights`, a model.safetensors, and `info`, its info.json."
        )
    most = backend().settings.max_model_bytes
    if (request.content_length or 0) > most + 2 * MAX_INFO:
        raise Invalid(f"The weights have more than the {most:,} bytes that are allowed; see DARKROOM_MAX_MODEL_BYTES.", field="weights")
    upload = keep_model(backend(), request.files.get("weights"), request.files.get("info"))
    spec = {"model": name, "upload": upload}
    return accepted(orders.submit(backend(), "adopt", spec, request.headers.get("Idempotency-Key", "")))
