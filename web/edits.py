"""Deciding about a dataset's images where they are looked at: suspects of a model, an image of a dataset, and what waits for the next version."""

from typing import Any

from flask import Blueprint, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as Redirect

from shared import datasets, edits, models
from shared.edits import Edit
from shared.errors import DarkroomError, NotFound
from web import orders, parameters
from web.backend import backend

blueprint = Blueprint("edits", __name__)
FIRST = 12  # suspects on a model's page, and changes on a dataset's
PAGE = 96  # changes a page
NOTHING = "not a photo of anything"  # why an image is removed where the box is ticked
VERBS = {"keep": "kept", "relabel": "relabelled", "remove": "removed"}


@blueprint.get("/datasets/<name>/edits")
def index(name: str) -> str:
    """What the next version will change, the newest decision first."""
    info, found = datasets.info(backend().storage, name), changes(name)
    page = parameters.page()
    shown = found[(page - 1) * PAGE : page * PAGE]
    return render_template("edits/index.html", info=info, shown=shown, page=page, pages=-(-len(found) // PAGE))


@blueprint.post("/datasets/<name>/edits")
def decide(name: str) -> Redirect | str:
    """Keep, relabel, remove or undo, for an image of the form; then the page it came from, or with htmx the part that changes."""
    storage, sha256 = backend().storage, request.form.get("sha256", "")
    model, version = request.form.get("model", ""), request.form.get("version", type=int)
    said = {"sha256": sha256, "why": NOTHING if request.form.get("nothing") else f"suspect of {model}" if model else ""}
    wrong = ""
    try:
        if request.form.get("action") == "undo":
            edits.undo(storage, name, sha256)
        elif "label" in request.form:
            edits.decide(storage, name, edits.parse_edit({**said, "action": "relabel", "label": request.form["label"]}))
        else:
            edits.decide(storage, name, edits.parse_edit({**said, "action": request.form.get("action", "")}))
    except DarkroomError as error:
        if not request.headers.get("HX-Request"):
            raise
        wrong = str(error)
    if request.headers.get("HX-Request"):  # 200 whatever it says: htmx swaps nothing else in
        return _part(name, sha256, model, version, wrong)
    return redirect(_back(name, sha256, model, version), 303)


def _part(name: str, sha256: str, model: str, version: int | None, wrong: str) -> str:
    """The image's part of the page it came from, and the line that counts what waits."""
    if model:
        suspect, info = _suspect(*models.resolve(backend().storage, model), sha256)
        return render_template("edits/_decided.html", part="edits/_suspect.html", info=info, name=name, s=suspect, wrong=wrong, model=model)
    if version:
        info = datasets.info(backend().storage, name, version)
        row = next((row for row in datasets.rows(backend().storage, name, version) if row["sha256"] == sha256), None)
        return render_template("edits/_decided.html", part="edits/_image.html", info=info, name=name, row=row, wrong=wrong)
    return render_template("edits/_decided.html", part="", name=name, wrong=wrong)


def _back(name: str, sha256: str, model: str, version: int | None) -> str:
    if model:
        model, number = models.resolve(backend().storage, model)
        shown = "all" if request.form.get("suspects") == "all" else None
        return url_for("models.show", name=model, version=number, suspects=shown) + "#suspects"
    if version:
        return url_for("datasets.image", name=name, version=version, sha256=sha256)
    return url_for("edits.index", name=name)


@blueprint.post("/datasets/<name>/edits/version")
def freeze(name: str) -> Redirect:
    """Order the next version, with what was decided."""
    source = {"kind": "edits", "model": request.form.get("model") or None}
    spec = {"dataset": name, "source": source, "note": request.form.get("note", "")}
    return redirect(url_for("jobs.show", job_id=orders.submit(backend(), "import", spec).id), 303)


# -- what templates ask -----------------------------------------------------------------------------------------------


@blueprint.app_context_processor
def common() -> dict[str, Any]:
    """What pages of models and datasets show of decisions; nothing is read before one asks."""
    return {"changes": changes, "suspects": suspects, "decision": decision, "edit_verbs": VERBS, "first_edits": FIRST}


def changes(name: str) -> list[Edit]:
    """What the next version of a dataset will change, the newest decision first."""
    return edits.pending(backend().storage, name)[::-1]


def decision(name: str, sha256: str) -> dict[str, Any]:
    """Of an image: `label` in the newest version (None: it is not there), that version, and the `edit` that waits or keeps it (None: there is none)."""
    storage = backend().storage
    info = datasets.info(storage, name)
    row = edits.image(storage, info, sha256)
    return {
        "label": row and row["label"],
        "version": info["version"],
        "classes": info["classes"],
        "edit": edits.standing(storage, name).get(sha256),
    }


def suspects(info: dict[str, Any], report: dict[str, Any]) -> dict[str, Any] | None:
    """The suspects of a model, each with the `edit` that was decided: those to `look` at or that wait, those `kept`, how many are `corrected` already.

    None for a model of before there were any, or whose dataset is gone.
    """
    storage, name = backend().storage, info["dataset"]["name"]
    try:
        newest = datasets.info(storage, name)
    except NotFound:
        return None
    if "suspects" not in report:
        return None
    standing = edits.standing(storage, name)
    there = edits.labels(storage, newest, [s["sha256"] for s in report["suspects"]])
    found = [{**s, "edit": standing.get(s["sha256"])} for s in report["suspects"] if there.get(s["sha256"]) == s["actual"]]
    return {
        "look": [s for s in found if not _is_kept(s)],
        "kept": [s for s in found if _is_kept(s)],
        "corrected": len(report["suspects"]) - len(found),
        "classes": list(newest["classes"]),
    }


def _is_kept(suspect: dict[str, Any]) -> bool:
    return suspect["edit"] is not None and suspect["edit"].action == "keep"


def _suspect(model: str, version: int, sha256: str) -> tuple[dict[str, Any], dict[str, Any]]:
    storage = backend().storage
    info, report = models.info(storage, model, version), models.report(storage, model, version)
    found = next((s for s in report.get("suspects", []) if s["sha256"] == sha256), None)
    if found is None:
        raise NotFound(f"{model}/v{version} does not suspect this image.")
    return {**found, "edit": edits.standing(storage, info["dataset"]["name"]).get(sha256)}, info
