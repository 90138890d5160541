"""Pages of models: the registry, training a version, its report, and trying it on one image."""

import base64
from contextlib import suppress
from typing import Any

from flask import Blueprint, Response, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as Redirect

from shared import aliases, datasets, models
from shared.compare import compare
from shared.errors import DarkroomError, Invalid, NotFound, Unavailable
from shared.images import read_bounded, thumbnail
from shared.specs import Name, check
from shared.storage import Storage
from web import charts, orders, reports
from web.api.models import FILES
from web.backend import backend
from web.forms import SpecForm
from web.jobs import training_charts
from web.uploads import keep_model

blueprint = Blueprint("models", __name__)
COMMON = ("dataset", "arch", "epochs", "image_size")
RARE = (
    "frozen_epochs", "frozen_stem", "base_lr", "find_lr", "batch_size", "resize", "augment", "min_scale", "mixup", "label_smoothing", "class_weights", "weight_decay",
    "patience", "keep_best", "mixed_precision", "progressive", "gpus", "valid_pct", "seed",
)  # fmt: skip
SHOWN = 96  # images that flipped, on one page


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
    return _page(name, version)


def _page(name: str, version: int, **more: Any) -> str:
    """The page of a version: with its report, or of an imported one, which has none, with where it came from."""
    storage = backend().storage
    info = models.info(storage, name, version)
    if "imported" not in info:
        return render_template("models/show.html", **_view(name, version), **more)
    return render_template("models/imported.html", **_known(info), **more)


def _known(info: dict[str, Any]) -> dict[str, Any]:
    """What the page of any version shows."""
    storage, name, version = backend().storage, info["model"], info["version"]
    pointed = aliases.pointed(storage, name)
    return {
        "info": info,
        "aliases": {alias: aliases.log(storage, name, alias) for alias, target in pointed.items() if target == version},
        "pointed": pointed,
        "numbers": [v["version"] for v in models.all_versions(storage, name)],
        "files": [(f, storage.size(key)) for f in FILES if storage.exists(key := models.key(name, version, f))],
    }


def _view(name: str, version: int) -> dict[str, Any]:
    storage = backend().storage
    info, report = models.info(storage, name, version), models.report(storage, name, version)
    return {
        **_known(info),
        "parent": _parent(storage, info),
        "report": report,
        "heat": charts.heat_map(report["classes"], report["confusion"]),
        "per_class": [{**row, "bar": charts.bar(row["f1"])} for row in sorted(report["per_class"], key=lambda r: r["f1"])],
        **reports.view(info, report),
        "lr_chart": charts.loss_by_rate(report.get("lr_curve") or [], info.get("base_lr") or 0),
        **training_charts(report.get("epochs") or info.get("epochs") or [], report.get("loss") or [], {}),
    }


def _parent(storage: Storage, info: dict[str, Any]) -> dict[str, Any] | None:
    """The version that this one was retrained from, if it is still there."""
    with suppress(NotFound):
        return models.info(storage, *models.resolve(storage, info["parent"])) if info.get("parent") else None
    return None


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
    return _page(name, version, answer=shown), status


def _ask(name: str, version: int) -> dict[str, Any]:
    """The answer; with the picture and where the model looks in it if that was the button."""
    b = backend()
    info = models.info(b.storage, name, version)
    file = request.files.get("image")
    if file is None or not file.filename:
        raise Invalid("Choose an image first.", field="image")
    image = read_bounded(file.stream, b.settings.max_image_bytes)
    seen = "data:image/webp;base64," + base64.b64encode(thumbnail(image, 224)).decode()
    if "look" in request.form:
        answer = reports.heat_of(info, image, request.form.get("class", ""))
    else:
        answer = orders.predict(b, f"{name}/v{version}", image)
    ranked = sorted(answer["probabilities"].items(), key=lambda item: -item[1])[:20]
    return {**answer, "image": seen, "ranked": [(label, p, charts.bar(p)) for label, p in ranked]}


# -- which version is used ---------------------------------------------------------------------------------------------


@blueprint.get("/models/<name>/v/<int(max=999999):version>/compare")
def compare_with(name: str, version: int) -> str:
    """A version beside another, on the images both were validated on."""
    storage = backend().storage
    info = models.info(storage, name, version)
    every = [m for each in models.names(storage) for m in models.all_versions(storage, each)]
    others = [f"{m['model']}/v{m['version']}" for m in every if "imported" not in m]
    likely = [ref for ref in (info.get("parent"), *others) if ref in others and ref != f"{name}/v{version}"]
    ref = request.args.get("with") or next(iter(likely), "")
    old = models.resolve(storage, ref)
    found = compare(storage, old, (name, version))
    return render_template(
        "models/compare.html",
        info=info,
        old=models.info(storage, *old),
        found=found,
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


# -- models that come and go ------------------------------------------------------------------------------------------


@blueprint.post("/models/<name>/v/<int(max=999999):version>/export")
def export(name: str, version: int) -> Redirect:
    """Order model.onnx of a version."""
    return redirect(url_for("jobs.show", job_id=orders.submit(backend(), "export", {"model": f"{name}/v{version}"}).id), 303)


@blueprint.get("/imports/new")
def import_form() -> str:
    """The form for the two files of a model of another installation."""
    return render_template("models/import.html", form=SpecForm("adopt"))


@blueprint.post("/imports/new")
def import_() -> Redirect | tuple[str, int]:
    """Order a version made of an uploaded model."""
    form = SpecForm("adopt", typed=request.form)
    data: dict[str, Any] = {"model": form.data().get("model", "")}
    try:
        check(Name, data["model"])
        data["upload"] = keep_model(backend(), request.files.get("weights"), request.files.get("info"))
        return redirect(url_for("jobs.show", job_id=orders.submit(backend(), "adopt", data).id), 303)
    except DarkroomError as error:
        status = form.refuse(data, error)
        form.errors.pop("upload", None)  # it is not asked for, but made of the files
        named = getattr(error, "field", None)
        if named in {"weights", "info"}:
            form.errors = {**form.errors, named: str(error)}
        return render_template("models/import.html", form=form), status


# -- training ---------------------------------------------------------------------------------------------------------


@blueprint.get("/trainings/new")
def train() -> str:
    """The form: with the recipe's defaults, or filled in with what made another version."""
    ref = request.args.get("retrain")
    if ref:
        name, version = models.resolve(backend().storage, ref)
        info = models.info(backend().storage, name, version)
        if not info.get("spec"):
            return _form(SpecForm("train", _from_imported(info)), known=False)
        values = models.retraining(info, version=request.args.get("version"))
    else:
        values = {"dataset": request.args.get("dataset", ""), "version": request.args.get("version", "")}
    return _form(SpecForm("train", values))


def _from_imported(info: dict[str, Any]) -> dict[str, Any]:
    """A training from an imported model, of which no spec is known."""
    ref = f"{info['model']}/v{info['version']}"
    seen = {"image_size": info["image_size"], "resize": info.get("resize", "squish")}
    return {**seen, "arch": info["arch"], "model": info["model"], "start": ref, "parent": ref}


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


def _form(form: SpecForm, known: bool = True) -> str:
    """`known`: whether it is, how the version that is retrained was made."""
    storage = backend().storage
    others = [f"{m['model']}/v{m['version']}" for name in models.names(storage) for m in models.all_versions(storage, name)]
    parent = form["parent"].value
    starts = [*([parent] if parent in others else []), "imagenet", "scratch", *(ref for ref in others if ref != parent)]
    names = datasets.names(storage)
    return render_template(
        "models/train.html", form=form, known=known, common=COMMON, rare=RARE, names=names, starts=starts, outlook=outlook(form)
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
            if "imported" in made:
                continue
            before = int(made["train_images"] + made["valid_images"]) * len(made["epochs"])
            if made["arch"] == data.get("arch") and str(made["image_size"]) == str(data.get("image_size")) and before:
                return float(made["train_seconds"] * steps / before)
    return None


@blueprint.get("/models/<name>/v/<int(max=999999):version>/try")
def try_again(name: str, version: int) -> Response | Redirect:
    """A reload of an answer's address: back to the model."""
    return redirect(url_for("models.show", name=name, version=version))
