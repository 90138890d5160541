"""Models: order, show, compare, export, import and delete their versions, and the aliases that point to them."""

from flask import Response, jsonify, request
from werkzeug.exceptions import UnsupportedMediaType

from shared import aliases, models, validation
from shared.compare import compare
from shared.errors import Invalid, NotFound
from shared.specs import Name, Version, check
from shared.weights import MAX_INFO
from web import orders, parameters
from web.api import blueprint, submitted
from web.backend import backend
from web.downloads import attachment
from web.uploads import keep_model

FILES = ("model.safetensors", "info.json", "report.json", "validation.parquet", "export.pkl", "model.onnx")
ORDERS = {"loss": "descending", "probability": "ascending"}


@blueprint.post("/trainings")
def train() -> Response:
    """Order a training."""
    return submitted("train", parameters.body())


@blueprint.get("/models")
def list_models() -> Response:
    """The newest version of every model."""
    storage = backend().storage
    return jsonify(models=[models.info(storage, *models.resolve(storage, name)) for name in models.names(storage)])


@blueprint.get("/models/<name>")
def show_model(name: str) -> Response:
    """Every version of a model, newest first."""
    storage = backend().storage
    return jsonify(model=name, versions=models.all_versions(storage, name), aliases=aliases.pointed(storage, name))


@blueprint.get("/models/<name>/aliases/<alias>")
def show_alias(name: str, alias: str) -> Response:
    """Where an alias of a model points, and its moves, the last first."""
    moves = aliases.log(backend().storage, name, alias)
    if not moves:
        raise NotFound(f"The model {name!r} has no alias {alias!r}.")
    return jsonify(alias=alias, version=moves[0]["version"], log=moves)


@blueprint.put("/models/<name>/aliases/<alias>")
def promote(name: str, alias: str) -> Response:
    """Let an alias point to a version."""
    version = check(Version, parameters.body().get("version"))
    return jsonify(aliases.move(backend().storage, name, alias, version))


@blueprint.post("/models/<name>/aliases/<alias>/rollback")
def roll_back(name: str, alias: str) -> Response:
    """Let an alias point to what it pointed to before."""
    return jsonify(aliases.back(backend().storage, name, alias))


@blueprint.delete("/models/<name>/aliases/<alias>")
def drop_alias(name: str, alias: str) -> tuple[str, int]:
    """Take an alias away; its log stays."""
    if alias not in aliases.pointed(backend().storage, name):
        raise NotFound(f"The model {name!r} has no alias {alias!r}.")
    aliases.move(backend().storage, name, alias, None)
    return "", 204


@blueprint.get("/models/<name>/versions/<int(max=999999):version>/compare")
def compare_models(name: str, version: int) -> Response:
    """A version beside the one that `?with=` names, on the images both were validated on."""
    storage = backend().storage
    return jsonify(compare(storage, models.resolve(storage, request.args.get("with", "")), (name, version)))


@blueprint.delete("/models/<name>/versions/<int(max=999999):version>")
def delete_model(name: str, version: int) -> tuple[str, int]:
    """Delete a version that no alias and no job uses."""
    orders.delete_model(backend(), name, version)
    return "", 204


@blueprint.get("/models/<name>/versions/<int(max=999999):version>")
def show_model_version(name: str, version: int) -> Response:
    """One version of a model."""
    return jsonify(models.info(backend().storage, name, version))


@blueprint.get("/models/<name>/versions/<int(max=999999):version>/report")
def show_report(name: str, version: int) -> Response:
    """How a version of a model did on its validation images."""
    storage = backend().storage
    models.info(storage, name, version)
    return jsonify(models.report(storage, name, version))


@blueprint.get("/models/<name>/versions/<int(max=999999):version>/files/<file>")
def download_model_file(name: str, version: int, file: str) -> Response:
    """A file of a model version, as a download."""
    storage = backend().storage
    models.info(storage, name, version)
    if file not in FILES:
        raise NotFound(f"A model has the files {', '.join(FILES)}.")
    return attachment(storage, models.key(name, version, file), f"{name}-v{version}-{file}")


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
    return submitted("export", spec)


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
    return submitted("adopt", spec)
