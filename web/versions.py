"""Pages of a dataset's versions: all of them in a table, what changed between two, and an earlier one again."""

from typing import Any

from flask import Blueprint, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as Redirect

from shared import datasets, models
from shared.diff import PARTS, changes, diff
from shared.errors import Invalid, NotFound
from shared.storage import versions
from web import orders, parameters
from web.backend import backend

blueprint = Blueprint("versions", __name__)
PAGE = 96  # thumbnails a page of one part
FIRST = 24  # and of each while all three are shown
ROWS = 20  # versions a page: each is compared with the one it was made from
CLASSES = 200  # classes of which changes are listed


@blueprint.get("/datasets/<name>/versions")
def index(name: str) -> str:
    """Every version, the newest first: what made it, what it changed, and what was trained on it."""
    storage = backend().storage
    newest = datasets.info(storage, name)
    numbers, page = versions(storage, f"datasets/{name}")[::-1], parameters.page()
    shown = numbers[(page - 1) * ROWS : page * ROWS]
    return render_template(
        "versions/index.html",
        info=newest,
        found=[datasets.info(storage, name, number) for number in shown],
        since=changes(storage, name, shown),
        trained=_trained_on(name),
        page=page,
        pages=-(-len(numbers) // ROWS),
    )


def _trained_on(name: str) -> dict[int, list[dict[str, Any]]]:
    """By version of a dataset, the infos of the models that were trained on it."""
    found: dict[int, list[dict[str, Any]]] = {}
    storage = backend().storage
    for made in (made for model in models.names(storage) for made in models.all_versions(storage, model)):
        on = made.get("dataset") or {}
        if on.get("name") == name:
            found.setdefault(on["version"], []).append(made)
    return found


@blueprint.get("/datasets/<name>/diff")
def show_diff(name: str) -> str:
    """What changed between two versions, as contact sheets: all of it, or one part a page at a time; of one class if it is named."""
    storage = backend().storage
    info = datasets.info(storage, name)
    new = parameters.number("to", info["version"], 1, 999_999)
    old = parameters.number("from", datasets.info(storage, name, new).get("parent") or 1, 1, 999_999)
    if old == new:
        raise Invalid("A version differs in nothing from itself; name two.", field="from")
    found, label, part, page = diff(storage, name, old, new), request.args.get("label"), parameters.one_of("part", PARTS), parameters.page()
    classes = found.classes()
    if label is not None and label not in {c["label"] for c in classes}:
        raise NotFound(f"Nothing changed in a class {label!r} of {name!r} between v{old} and v{new}.")
    tables = {p: found.part(p, label) for p in PARTS if part in {None, p}}
    start, size = ((page - 1) * PAGE, PAGE) if part else (0, FIRST)
    return render_template(
        "versions/diff.html",
        info=info,
        found=found,
        numbers=versions(storage, f"datasets/{name}")[::-1],
        classes=classes[:CLASSES],
        left_out=max(0, len(classes) - CLASSES),
        sheets={p: (len(table), table.slice(start, size).to_pylist()) for p, table in tables.items()},
        label=label,
        part=part,
        page=page,
        pages=-(-len(tables[part]) // PAGE) if part else 1,
        same=datasets.info(storage, name, old)["hash"] == datasets.info(storage, name, new)["hash"],
    )


@blueprint.post("/datasets/<name>/v/<int(max=999999):version>/restore")
def restore(name: str, version: int) -> Redirect:
    """Order a version with the images and labels of an earlier one."""
    spec = {"dataset": name, "source": {"kind": "restore", "version": version}, "note": request.form.get("note", "")}
    return redirect(url_for("jobs.show", job_id=orders.submit(backend(), "import", spec).id), 303)


# -- what templates ask -----------------------------------------------------------------------------------------------


@blueprint.app_context_processor
def common() -> dict[str, Any]:
    """What pages of trainings and models show of the dataset; nothing is read before one asks."""
    return {"dataset_version": dataset_version}


def dataset_version(name: str | None, version: int | None) -> dict[str, Any] | None:
    """The info of a version of a dataset; None if it is not there any more."""
    try:
        return datasets.info(backend().storage, name or "", version) if version else None
    except (NotFound, Invalid):
        return None
