"""Pages of models: the registry, training a version, its report, and trying it on one image."""

import base64
from typing import Any

from flask import Blueprint, Response, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as Redirect

from shared import aliases, datasets, models
from shared.compare import CHANCE, compare
from shared.errors import DarkroomError, Invalid, Unavailable
from shared.images import read_bounded, thumbnail
from shared.storage import Storage
from web import charts, orders
from web.api import MODEL_FILES
from web.backend import backend
from web.forms import SpecForm
from web.jobs import training_charts

blueprint = Blueprint("models", __name__)
COMMON = ("dataset", "arch", "epochs", "image_size")
RARE = (
    "frozen_epochs", "base_lr", "find_lr", "batch_size", "augment", "min_scale", "mixup", "label_smoothing", "class_weights", "weight_decay",
    "patience", "keep_best", "mixed_precision", "gpus", "valid_pct", "seed",
)  # fmt: skip
SHOWN = 96  # mistakes on one page


@blueprint.get("/models")
def index() -> str:
    """Every version of every model, newest model first."""
    storage = backend().storage
    found = [models.all_versions(storage, name) for name in models.names(storage)]
    pointed = {name: aliases.pointed(storage, name) for name in models.names(storage)}
    return render_template("models/index.html", models=sorted(found, key=lambda v: -v[0]["created"]), pointed=pointed)


@blueprint.get("/models/<name>")
def newest(name: str) -> Redirect:
    """The newest version."""
    name, version = models.resolve(backend().storage, name)
    return redirect(url_for("models.show", name=name, version=version))


@blueprint.get("/models/<name>/v/<int(max=999999):version>")
def show(name: str, version: int) -> str:
    """A version: how good it is, where it is wrong, what it was made of."""
    return render_template("models/show.html", **_view(name, version))


def _view(name: str, version: int) -> dict[str, Any]:
    storage = backend().storage
    info, report = models.info(storage, name, version), models.report(storage, name, version)
    actual, predicted = request.args.get("actual"), request.args.get("predicted")
    found = [m for m in report["mistakes"] if actual in {None, m["actual"]} and predicted in {None, m["predicted"]}]
    pointed = aliases.pointed(storage, name)
    return {
        "info": info,
        "aliases": {alias: aliases.log(storage, name, alias) for alias, target in pointed.items() if target == version},
        "pointed": pointed,
        "report": report,
        "numbers": [v["version"] for v in models.all_versions(storage, name)],
        "heat": charts.heat_map(report["classes"], report["confusion"]),
        "per_class": [{**row, "bar": charts.bar(row["f1"])} for row in sorted(report["per_class"], key=lambda r: r["f1"])],
        "mistakes": sorted(found, key=lambda m: -m["probability"])[:SHOWN] if actual or predicted else None,
        "found": len(found),
        "actual": actual,
        "predicted": predicted,
        "files": [(f, storage.size(key)) for f in MODEL_FILES if storage.exists(key := models.key(name, version, f))],
        "reliability": charts.reliability((report.get("calibration") or {}).get("bins", [])),
        "lr_chart": charts.loss_by_rate(report.get("lr_curve") or [], info.get("base_lr") or 0),
        **training_charts(report.get("epochs") or info.get("epochs") or [], report.get("loss") or [], {}),
    }


# -- trying one image -------------------------------------------------------------------------------------------------


@blueprint.post("/models/<name>/v/<int(max=999999):version>/try")
def try_one(name: str, version: int) -> str | tuple[str, int]:
    """Label one image now and show the probability of each class."""
    status, shown = 200, {}
    try:
        shown = _ask(name, version)
    except DarkroomError as error:
        status, shown = (503 if isinstance(error, Unavailable) else 422), {"error": str(error)}
    if request.headers.get("HX-Request"):
        return render_template("models/_answer.html", answer=shown)  # 200: htmx swaps nothing else in
    return render_template("models/show.html", **_view(name, version), answer=shown), status


def _ask(name: str, version: int) -> dict[str, Any]:
    b = backend()
    models.info(b.storage, name, version)
    file = request.files.get("image")
    if file is None or not file.filename:
        raise Invalid("Choose an image first.", field="image")
    image = read_bounded(file.stream, b.settings.max_image_bytes)
    seen = "data:image/webp;base64," + base64.b64encode(thumbnail(image, 224)).decode()
    answer = orders.predict(b, f"{name}/v{version}", image)
    ranked = sorted(answer["probabilities"].items(), key=lambda item: -item[1])[:20]
    return {**answer, "image": seen, "ranked": [(label, p, charts.bar(p)) for label, p in ranked]}


# -- which version is used ---------------------------------------------------------------------------------------------


@blueprint.get("/models/<name>/v/<int(max=999999):version>/compare")
def compare_with(name: str, version: int) -> str:
    """A version beside another, on the images both were validated on."""
    storage = backend().storage
    info = models.info(storage, name, version)
    others = [f"{m['model']}/v{m['version']}" for each in models.names(storage) for m in models.all_versions(storage, each)]
    likely = [ref for ref in (info.get("parent"), *others) if ref in others and ref != f"{name}/v{version}"]
    ref = request.args.get("with") or next(iter(likely), "")
    old = models.resolve(storage, ref)
    found = compare(storage, old, (name, version))
    return render_template(
        "models/compare.html",
        info=info,
        old=models.info(storage, *old),
        found=found,
        chance=CHANCE,
        classes=sorted(found["classes"], key=lambda c: c["recall"][1] - c["recall"][0]),
        others=others,
        shown=SHOWN,
    )


@blueprint.post("/models/<name>/v/<int(max=999999):version>/promote")
def promote(name: str, version: int) -> Redirect:
    """Let an alias point to this version."""
    aliases.move(backend().storage, name, request.form.get("alias", "").strip() or "production", version)
    return redirect(url_for("models.show", name=name, version=version), 303)


@blueprint.post("/models/<name>/aliases/<alias>/rollback")
def roll_back(name: str, alias: str) -> Redirect:
    """Let an alias point to what it pointed to before."""
    move = aliases.back(backend().storage, name, alias)
    return redirect(url_for("models.show", name=name, version=move["version"]), 303)


# -- training ---------------------------------------------------------------------------------------------------------


@blueprint.get("/trainings/new")
def train() -> str:
    """The form: with the recipe's defaults, or filled in with what made another version."""
    ref = request.args.get("retrain")
    if ref:
        name, version = models.resolve(backend().storage, ref)
        spec = models.info(backend().storage, name, version)["spec"]
        values = {**spec, "version": None, "model": name, "parent": f"{name}/v{version}", "notes": ""}
    else:
        values = {"dataset": request.args.get("dataset", ""), "version": request.args.get("version", "")}
    return _form(SpecForm("train", values))


@blueprint.post("/trainings/new")
def order() -> Redirect | tuple[str, int]:
    """Order a training."""
    form = SpecForm("train", typed=request.form)
    data = form.data()
    try:
        return redirect(url_for("jobs.show", job_id=orders.submit(backend(), "train", data).id), 303)
    except DarkroomError as error:
        status = form.refuse(data, error)
        return _form(form), status


@blueprint.post("/trainings/outlook")
def show_outlook() -> str:
    """What the form would order as it stands, for the form to show while it is filled in."""
    return render_template("models/_outlook.html", outlook=outlook(SpecForm("train", typed=request.form)))


def _form(form: SpecForm) -> str:
    storage = backend().storage
    starts = [
        "imagenet",
        "scratch",
        *(f"{m['model']}/v{m['version']}" for name in models.names(storage) for m in models.all_versions(storage, name)),
    ]
    return render_template(
        "models/train.html", form=form, common=COMMON, rare=RARE, names=datasets.names(storage), starts=starts, outlook=outlook(form)
    )


def outlook(form: SpecForm) -> dict[str, Any] | None:
    """What will happen: dataset, images, classes, epochs, seconds if a like training is known; None while no dataset is chosen."""
    data = form.data()
    try:
        version = data.get("version")
        info = datasets.info(backend().storage, data.get("dataset", ""), int(version) if version else None)
        epochs = int(data["epochs"]) + (int(data["frozen_epochs"]) if data["start"] != "scratch" else 0)
    except (DarkroomError, KeyError, ValueError):
        return None
    known = {"images": info["images"], "classes": len(info["classes"]), "arch": data.get("arch"), "epochs": epochs, "dataset": info}
    return {**known, "seconds": _guess(backend().storage, data, info["images"] * epochs)}


def _guess(storage: Storage, data: dict[str, Any], steps: int) -> float | None:
    """Seconds a training will take, from the newest one with the same network and image size; None if there is none."""
    for name in models.names(storage):
        for made in models.all_versions(storage, name):
            before = int(made["train_images"] + made["valid_images"]) * len(made["epochs"])
            if made["arch"] == data.get("arch") and str(made["image_size"]) == str(data.get("image_size")) and before:
                return float(made["train_seconds"] * steps / before)
    return None


@blueprint.get("/models/<name>/v/<int(max=999999):version>/try")
def try_again(name: str, version: int) -> Response | Redirect:
    """A reload of an answer's address: back to the model."""
    return redirect(url_for("models.show", name=name, version=version))
