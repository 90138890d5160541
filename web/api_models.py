"""What programs ask of models beside what web/api.py answers: what a version said of each validation image, a threshold, where it looks, export and import."""

from flask import Response, jsonify, request
from werkzeug.exceptions import UnsupportedMediaType

from shared import models, validation
from shared.errors import Invalid
from shared.specs import Name, check
from shared.weights import MAX_INFO
from web import orders, parameters
from web.api import accepted, blueprint
from web.backend import backend
from web.uploads import keep_model

ORDERS = {"loss": "descending", "probability": "ascending"}


@blueprint.get("/models/<name>/versions/<int(max=999999):version>/validation")
def list_validation(name: str, version: int) -> Response:
    """What a version said of its validation images: all of them, or those of a class, of a label, or of a cell of the confusion matrix."""
    said = validation.read(backend().storage, name, version)
    for column in ("actual", "predicted"):
        if label := request.args.get(column):
            said = validation.of(said, column, label)
    order = parameters.one_of("order", tuple(ORDERS)) or "loss"
    start, limit = parameters.number("start", 0, 0, 2**53), parameters.number("limit", 100, 1, 1000)
    rows = said.sort_by([(order, ORDERS[order]), ("sha256", "ascending")]).slice(start, limit).to_pylist()
    return jsonify(rows=rows, next=start + limit if start + limit < len(said) else None, total=len(said))


@blueprint.get("/models/<name>/versions/<int(max=999999):version>/threshold")
def show_threshold(name: str, version: int) -> Response:
    """From which probability on labels are right as often as `?precision=` asks, and the share of images below it; null: from none."""
    precision = parameters.share("precision", validation.PRECISION)
    return jsonify(wanted=precision, threshold=validation.threshold(validation.read(backend().storage, name, version), precision))


@blueprint.post("/models/<name>/versions/<int(max=999999):version>/look")
def look_into(name: str, version: int) -> Response:
    """Where a version looks in one image, the body or the form's `image`, for the class it predicts or the one that `?class=` names."""
    b = backend()
    info = models.info(b.storage, name, version)
    return jsonify(orders.explain(b, info, parameters.image(b.settings.max_image_bytes), request.args.get("class", "")))


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
