"""What programs ask of one version of a model: what it said of each validation image, a threshold, and where it looks."""

from flask import Response, jsonify, request

from shared import models, validation
from web import orders
from web.api import _image, _number, _one_of, _share, blueprint
from web.backend import backend

ORDERS = {"loss": "descending", "probability": "ascending"}


@blueprint.get("/models/<name>/versions/<int(max=999999):version>/validation")
def list_validation(name: str, version: int) -> Response:
    """What a version said of its validation images: all of them, or those of a class, of a label, or of a cell of the confusion matrix."""
    said = validation.read(backend().storage, name, version)
    for column in ("actual", "predicted"):
        if label := request.args.get(column):
            said = validation.of(said, column, label)
    order = _one_of("order", tuple(ORDERS)) or "loss"
    start, limit = _number("start", 0, 0, 2**53), _number("limit", 100, 1, 1000)
    rows = said.sort_by([(order, ORDERS[order]), ("sha256", "ascending")]).slice(start, limit).to_pylist()
    return jsonify(rows=rows, next=start + limit if start + limit < len(said) else None, total=len(said))


@blueprint.get("/models/<name>/versions/<int(max=999999):version>/threshold")
def show_threshold(name: str, version: int) -> Response:
    """From which probability on labels are right as often as `?precision=` asks, and the share of images below it; null: from none."""
    precision = _share("precision", validation.PRECISION)
    return jsonify(wanted=precision, threshold=validation.threshold(validation.read(backend().storage, name, version), precision))


@blueprint.post("/models/<name>/versions/<int(max=999999):version>/look")
def look_into(name: str, version: int) -> Response:
    """Where a version looks in one image, the body or the form's `image`, for the class it predicts or the one that `?class=` names."""
    b = backend()
    info = models.info(b.storage, name, version)
    return jsonify(orders.explain(b, info, _image(b.settings.max_image_bytes), request.args.get("class", "")))
