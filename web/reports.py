"""What a model says of its validation images, for its page; and, on a page of its own, one image with where the model looks."""

import base64
import re
from typing import Any

import pyarrow as pa
from flask import Blueprint, render_template, request

from shared import datasets, heat, models, validation
from shared.errors import DarkroomError, NotFound
from shared.storage import Storage, image_key
from web import charts, orders, parameters
from web.backend import backend

blueprint = Blueprint("reports", __name__)
PRECISIONS = (0.9, 0.95, 0.98, 0.99)  # that thresholds are shown for without being asked
PAGE = 96  # images of a cell on one page
CLASSES = 6  # classes a page of best and worst
EXTREMES = 6  # images of each
SIDE = 448  # pixels of a picture with its heat


def view(info: dict[str, Any], report: dict[str, Any]) -> dict[str, Any]:
    """What the parts of a model's page need that show its validation images. Older models have fewer of them."""
    try:
        said = validation.read(backend().storage, info["model"], info["version"])
    except NotFound:
        said = None
    calibration = report.get("calibration") or {}
    return {
        "reliability": charts.reliability(calibration.get("bins", [])),
        "thresholds": _thresholds(said, report),
        "asked": request.args.get("precision", ""),
        **_cell(said, report),
        **_sheets(said, report),
    }


def _thresholds(said: pa.Table | None, report: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows {wanted, probability, precision, review}, the last three missing where no probability will do."""
    if said is None:
        return [{"wanted": validation.PRECISION, **(report.get("threshold") or {})}]
    wanted = {*PRECISIONS, *([asked] if (asked := _precision()) else [])}
    return [{"wanted": each, **(validation.threshold(said, each) or {})} for each in sorted(wanted)]


def _precision() -> float | None:
    """The precision that was asked for, in the percent that people think in; None for what is none."""
    text = request.args.get("precision", "")
    return float(text) / 100 if re.fullmatch(r"\d{1,3}(\.\d{1,4})?", text, re.ASCII) and 0 < float(text) <= 100 else None


def _cell(said: pa.Table | None, report: dict[str, Any]) -> dict[str, Any]:
    """The images of the cell that was asked for, a page of them; without the file of predictions those mistakes that the report has."""
    actual, predicted = request.args.get("actual"), request.args.get("predicted")
    shown: dict[str, Any] = {"actual": actual, "predicted": predicted, "images": None, "found": 0, "page": 1, "pages": 1}
    if actual is None and predicted is None:
        return shown
    page = parameters.page()
    if said is None:
        rows = [m for m in report["mistakes"] if actual in {None, m["actual"]} and predicted in {None, m["predicted"]}]
        rows.sort(key=lambda row: -row["probability"])
        found, rows = len(rows), rows[(page - 1) * PAGE : page * PAGE]
    else:
        cell = validation.cell(said, actual, predicted)
        found, rows = len(cell), cell.slice((page - 1) * PAGE, PAGE).to_pylist()
    return shown | {"images": rows, "found": found, "page": page, "pages": -(-found // PAGE)}


def _sheets(said: pa.Table | None, report: dict[str, Any]) -> dict[str, Any]:
    """The best and the worst of each class, the classes that are least often right first, a page of them."""
    per_class = sorted((row for row in report["per_class"] if row["support"]), key=lambda row: row["recall"])
    page = parameters.page("classes")
    shown = per_class[(page - 1) * CLASSES : page * CLASSES] if said is not None else []
    sheets = [{**row, "sides": validation.extremes(said, row["label"], EXTREMES)} for row in shown]
    return {"sheets": sheets, "class_page": page, "class_pages": -(-len(per_class) // CLASSES)}


# -- one image --------------------------------------------------------------------------------------------------------


@blueprint.get("/models/<name>/v/<int(max=999999):version>/images/<sha256>")
def image(name: str, version: int, sha256: str) -> str:
    """One image of a model's dataset: what the model said of it, and where it looks."""
    storage = backend().storage
    info = models.info(storage, name, version)
    row = _row(storage, info, sha256)
    found = _heat(info, row) if "look" in request.args else None
    return render_template("models/image.html", info=info, row=row, label=request.args.get("class", ""), heat=found)


@blueprint.get("/models/<name>/v/<int(max=999999):version>/images/<sha256>/heat")
def show_heat(name: str, version: int, sha256: str) -> str:
    """Where the model looks in an image, as the part of its page."""
    storage = backend().storage
    info = models.info(storage, name, version)
    return render_template("models/_heat.html", heat=_heat(info, _row(storage, info, sha256)))


def _row(storage: Storage, info: dict[str, Any], sha256: str) -> dict[str, Any]:
    """The image with what was said of it, or from the dataset if it was not validated on. Raises NotFound."""
    try:
        said = validation.of(validation.read(storage, info["model"], info["version"]), "sha256", sha256).to_pylist()
    except NotFound:
        said = []
    if said:
        return said[0]  # type: ignore[no-any-return]
    dataset = info.get("dataset")  # of an imported model it is not known
    for row in datasets.rows(storage, dataset["name"], dataset["version"]) if dataset else ():
        if row["sha256"] == sha256:
            return {"sha256": sha256, "ext": row["ext"], "actual": row["label"]}
    raise NotFound(f"The model {info['model']}/v{info['version']} has seen no such picture.")


def _heat(info: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """Where the model looks in an image of its dataset, or `error` with a sentence."""
    try:
        data = backend().storage.read(image_key(row["sha256"], row["ext"]))
        return heat_of(info, data, request.args.get("class", ""))
    except DarkroomError as error:
        return {"error": str(error)}


def heat_of(info: dict[str, Any], image: bytes, label: str) -> dict[str, Any]:
    """What `orders.explain` answers, with the picture that its heat is laid over as a `data:` address. Raises as it does."""
    answer = orders.explain(backend(), info, image, label)
    made = heat.overlay(image, answer["heat"], answer["seen"], SIDE, "WEBP")
    return {**answer, "overlay": "data:image/webp;base64," + base64.b64encode(made).decode(), "blind": not any(map(any, answer["heat"]))}
