"""Pages of datasets: cards, making one in four ways, and a version as contact sheets."""

import re
from contextlib import suppress
from typing import Any

from flask import Blueprint, Response, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as Redirect

from shared import datasets, looks, models, rules, sources
from shared.errors import DarkroomError, Invalid, NotFound
from shared.specs import LookSpec, Name, check, rename_lines
from shared.storage import versions
from web import charts, orders, parameters
from web.backend import backend
from web.covers import cover, first_rows
from web.forms import SpecForm, class_lines
from web.images import webp
from web.uploads import keep_files

blueprint = Blueprint("datasets", __name__)
WAYS = {"scrape": "Class names", "zip": "A zip, tar or CSV", "folder": "A folder on the server", "dataset": "Another dataset"}
ANY_FOLDER = {"kind": "folder", "path": "/"}  # where the source is not known yet, and the rest is looked at
FORMATS = {
    "folder": "a folder per class",
    "csv": "images and labels.csv",
    "coco": "COCO-style annotations.json",
    "huggingface": "a Hugging Face image folder",
    "labelstudio": "Label Studio tasks",
}
THIN = 20  # images of a class: a fifth of fewer is no more than three, and three say nothing about the next
PAGE = 96  # thumbnails a page of one class
CLASSES = 24  # classes a page


@blueprint.get("/datasets")
def index() -> str:
    """Every dataset as a card, the newest first."""
    storage = backend().storage
    found = [datasets.info(storage, name) for name in datasets.names(storage)]
    cards = [
        {"info": info, "cover": cover(storage, info["dataset"], info["version"])} for info in sorted(found, key=lambda i: -i["created"])
    ]
    return render_template("datasets/index.html", cards=cards)


@blueprint.get("/datasets/new")
def new() -> str:
    """The form, for one of four ways."""
    values = {"dataset": request.args.get("dataset", "")}
    way = request.args.get("way", "scrape")
    return _form(SpecForm("scrape", values), {**request.args.to_dict(), "way": way if way in WAYS else "scrape"})


@blueprint.post("/datasets/new")
def create() -> Redirect | tuple[str, int]:
    """Order a dataset."""
    way = request.form.get("way", "scrape")
    kind = "scrape" if way == "scrape" else "import"
    form = SpecForm(kind, typed=request.form)
    if request.form.get("up"):  # a source is moved; nothing is ordered
        return _form(SpecForm("scrape", typed=request.form), request.form.to_dict()), 200
    data = form.data()
    data.pop("classes", None)  # of one way they are searched for, of the others they are renamed
    try:
        if kind == "scrape":
            data |= {"classes": class_lines(request.form.get("classes", "")), "sources": form.values["sources"]}
        else:
            data |= {"classes": _renames()}
            data |= {"source": _source(form, way)}
        return redirect(url_for("jobs.show", job_id=orders.submit(backend(), kind, data).id), 303)
    except DarkroomError as error:
        status = form.refuse(data if "classes" in data else {**data, "source": ANY_FOLDER}, error)
        shown = SpecForm("scrape", typed=request.form)  # its fields are all there are
        shown.errors = form.errors
        return _form(shown, request.form.to_dict()), status


def _renames() -> dict[str, str | None]:
    """What classes are called from now on, as it was typed. Raises Invalid."""
    try:
        return rename_lines(request.form.get("renames", "").splitlines())
    except ValueError as error:
        raise Invalid(f"{str(error)[:1].upper()}{str(error)[1:]}.", field="classes") from None


def _source(form: SpecForm, way: str) -> dict[str, Any]:
    """Where the pictures come from; an upload is kept only once the rest of the form is right."""
    if way == "dataset":
        return _dataset_source(request.form.get("from", "").strip(), request.form.get("only", "").splitlines())
    if way == "folder":
        path = request.form.get("path", "").strip()
        if not path:
            raise Invalid("Name the folder.", field="source")
        return {"kind": "folder", "path": path}
    trial = SpecForm("import", typed=request.form)
    trial.refuse(form.data(source=ANY_FOLDER, classes=_renames()), Invalid(""))
    for field in ("dataset", "classes"):
        if field in trial.errors:
            raise Invalid(trial.errors[field], field=field)
    return {"kind": "upload", "id": keep_files(backend(), request.files.getlist("zip"))}


def _dataset_source(ref: str, lines: list[str]) -> dict[str, Any]:
    """A dataset as it was named, `pets` or `pets/v2`, and the classes of it that were named, one a line."""
    name, slash, version = ref.partition("/")
    if not name or (slash and not re.fullmatch(r"v?\d{1,6}", version)):
        raise Invalid("Name a dataset, as pets or pets/v2.", field="source")
    try:
        datasets.info(backend().storage, name, int(version.strip("v")) if slash else None)
    except DarkroomError as error:
        raise Invalid(str(error), field="source") from None
    only = [line.strip() for line in lines if line.strip()]
    return {"kind": "dataset", "dataset": name, **({"version": version.strip("v")} if slash else {}), **({"classes": only} if only else {})}


def _form(form: SpecForm, typed: dict[str, str]) -> str:
    found = {entry["name"]: entry for entry in sources.standings(backend().settings, backend().storage)}
    listed = [found[name] for name in moved(request.form.getlist("listed"), request.form.get("up", ""))]
    wrong = {"source_error": form.errors.pop("source", ""), "classes_error": form.errors.get("classes", "")}
    names = datasets.names(backend().storage)
    return render_template("datasets/new.html", form=form, typed=typed, ways=WAYS, names=names, sources=listed, **wrong)


def moved(listed: list[str], up: str) -> list[str]:
    """All sources that are searched, in the order of a form, with the source `up` a place earlier."""
    order = list(dict.fromkeys(name for name in [*listed, *sources.SEARCHED] if name in sources.SEARCHED))
    if up in order[1:]:
        at = order.index(up)
        order[at - 1 : at + 1] = order[at], order[at - 1]
    return order


@blueprint.get("/datasets/<name>")
def newest(name: str) -> Redirect:
    """The newest version."""
    return redirect(url_for("datasets.show", name=name, version=datasets.latest(backend().storage, name)))


def thin(classes: dict[str, int]) -> list[str]:
    """The classes of which so few images are held back for validation that their figures say little, the smallest first."""
    return sorted((c for c, n in classes.items() if n < THIN), key=lambda c: (classes[c], c))


@blueprint.get("/datasets/<name>/v/<int(max=999999):version>")
def show(name: str, version: int) -> str:
    """A version: a contact sheet a class, or one class a page at a time, or what was dropped."""
    return version_page(name, version)


def version_page(name: str, version: int, **typed: Any) -> str:
    """The page of a version; `typed`: a rule that was refused, and why."""
    storage = backend().storage
    info = datasets.info(storage, name, version)
    numbers = versions(storage, f"datasets/{name}")
    common = {"info": info, "numbers": numbers[::-1], "balance": charts.bar_rows(info["classes"], most=200), "thin": thin(info["classes"])}
    label, page = request.args.get("label"), parameters.page()
    if label is not None:
        if label not in info["classes"]:
            raise NotFound(f"The dataset {name!r} v{version} has no class {label!r}.")
        rows = datasets.rows(storage, name, version, label, start=(page - 1) * PAGE, limit=PAGE)
        return render_template("datasets/label.html", **common, label=label, rows=rows, page=page, pages=-(-info["classes"][label] // PAGE))
    if "dropped" in request.args:
        rows = datasets.rows(storage, name, version, status="dropped", start=(page - 1) * PAGE, limit=PAGE)
        return render_template("datasets/dropped.html", **common, rows=rows, page=page, pages=-(-sum(info["dropped"].values()) // PAGE))
    labels = list(info["classes"])[(page - 1) * CLASSES : page * CLASSES]
    first = first_rows(storage, name, version)
    sheets = [(c, first.get(c, [])) for c in labels]
    there = {made["format"]: made["bytes"] for made in datasets.exports(storage, name, version)}
    common |= {"formats": FORMATS, "exports": there}
    shown = {"sheets": sheets, "page": page, "pages": -(-len(info["classes"]) // CLASSES)}
    return render_template("datasets/show.html", **common, **shown, **_retraining(name, version), **typed)


def _retraining(name: str, version: int) -> dict[str, Any]:
    """The models that can be retrained on a version, by what they were trained on before; and the rules that do so by themselves."""
    storage = backend().storage
    newest = [models.info(storage, *models.resolve(storage, model)) for model in models.names(storage)]
    known = [(info, info.get("dataset") or {}) for info in newest if info.get("spec")]
    return {
        "behind": [info for info, on in known if on.get("name") == name and on["version"] < version],
        "retrainable": sorted((info["model"] for info, _ in known), key=lambda model: model != name),
        "watching": [(rule, rules.last(storage, rule.id)) for rule in rules.found(storage, name)],
    }


@blueprint.post("/datasets/<name>/v/<int(max=999999):version>/export")
def export(name: str, version: int) -> Redirect:
    """Order a version as a zip."""
    spec = {"dataset": check(Name, name), "version": version, "format": request.form.get("format", "")}
    return redirect(url_for("jobs.show", job_id=orders.submit(backend(), "pack", spec).id), 303)


@blueprint.get("/datasets/<name>/v/<int(max=999999):version>/images/<sha256>")
def image(name: str, version: int, sha256: str) -> str:
    """A closer look at one picture: where it comes from, and its neighbours of the same class."""
    info = datasets.info(backend().storage, name, version)
    label = request.args.get("label")
    rows = datasets.rows(backend().storage, name, version, label)
    at = next((i for i, row in enumerate(rows) if row["sha256"] == sha256), None)
    if at is None:
        raise NotFound(f"The dataset {name!r} v{version} has no such picture.")
    before, after = rows[at - 1] if at else None, rows[at + 1] if at + 1 < len(rows) else None
    return render_template("datasets/image.html", info=info, row=rows[at], before=before, after=after, label=label, at=at + 1, of=len(rows))


@blueprint.get("/datasets/<name>/v/<int(max=999999):version>/look")
def look(name: str, version: int) -> str:
    """The dataset as a network will see it, or the button that makes the pictures."""
    info = datasets.info(backend().storage, name, version)
    return _look(info, SpecForm("look", {"dataset": name, "version": version, **request.args.to_dict()}))


def _look(info: dict[str, Any], form: SpecForm) -> str:
    found = key = None
    with suppress(Invalid):
        spec: LookSpec = check(LookSpec, form.data())
        found, key = looks.index(backend().storage, spec, info["version"]), looks.key(spec)
    return render_template("datasets/look.html", info=info, form=form, found=found, key=key, strips=looks.STRIPS)


@blueprint.post("/datasets/<name>/v/<int(max=999999):version>/look")
def order_look(name: str, version: int) -> Redirect | tuple[str, int]:
    """Order the pictures."""
    info = datasets.info(backend().storage, name, version)
    form = SpecForm("look", typed=request.form)
    data = form.data(dataset=name, version=version)
    try:
        return redirect(url_for("jobs.show", job_id=orders.submit(backend(), "look", data).id), 303)
    except DarkroomError as error:
        status = form.refuse(data, error)
        return _look(info, form), status


@blueprint.get("/datasets/<name>/v/<int(max=999999):version>/look/<key>/<strip>.webp")
def look_picture(name: str, version: int, key: str, strip: str) -> Response:
    """One of the pictures."""
    datasets.info(backend().storage, name, version)
    if strip not in looks.STRIPS or not re.fullmatch(r"[0-9a-z.-]{1,40}", key) or ".." in key:
        raise NotFound("There is no such picture.")
    return webp(backend().storage.read(looks.path(name, version, key, f"{strip}.webp")))
