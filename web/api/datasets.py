"""Datasets: order, show, compare, export and delete their versions."""

from flask import Response, jsonify, request

from shared import datasets
from shared.diff import PARTS, diff
from shared.errors import NotFound
from shared.specs import Name, check
from shared.storage import versions
from web import orders, parameters
from web.api import blueprint, submitted
from web.backend import backend
from web.downloads import attachment


@blueprint.post("/datasets/<name>/scrape")
def scrape(name: str) -> Response:
    """Order a dataset made by searching."""
    return submitted("scrape", parameters.body(dataset=name))


@blueprint.post("/datasets/<name>/import")
def import_(name: str) -> Response:
    """Order a dataset made from a folder, an upload or another dataset, or its next version from what was decided."""
    return submitted("import", parameters.body(dataset=name))


@blueprint.get("/datasets")
def list_datasets() -> Response:
    """The newest version of every dataset."""
    storage = backend().storage
    return jsonify(datasets=[datasets.info(storage, name) for name in datasets.names(storage)])


@blueprint.get("/datasets/<name>")
def show_dataset(name: str) -> Response:
    """Every version of a dataset, newest first."""
    storage = backend().storage
    datasets.latest(storage, name)
    numbers = versions(storage, f"datasets/{name}")
    return jsonify(dataset=name, versions=[datasets.info(storage, name, number) for number in reversed(numbers)])


@blueprint.get("/datasets/<name>/versions/<int(max=999999):version>")
def show_dataset_version(name: str, version: int) -> Response:
    """One version of a dataset."""
    return jsonify(datasets.info(backend().storage, name, version))


@blueprint.post("/datasets/<name>/look")
def look(name: str) -> Response:
    """Order pictures of a dataset as a network will see it."""
    return submitted("look", parameters.body(dataset=name))


@blueprint.get("/datasets/<name>/diff")
def show_diff(name: str) -> Response:
    """What changed from version `?from=` to `?to=`: totals, changes of each class, and the images of each part, a page at a time."""
    storage = backend().storage
    new = parameters.number("to", datasets.latest(storage, name), 1, 999_999)
    old = parameters.number("from", datasets.info(storage, name, new).get("parent") or 1, 1, 999_999)
    found = diff(storage, name, old, new)
    start, limit = parameters.number("start", 0, 0, 2**53), parameters.number("limit", 100, 1, 1000)
    tables = {part: found.part(part, request.args.get("label")) for part in PARTS}
    return jsonify(
        {
            "dataset": name,
            "from": old,
            "to": new,
            "total": {part: len(table) for part, table in tables.items()},
            "unchanged": found.unchanged,
            "dropped": found.dropped,
            "classes": found.classes(),
            **{part: table.slice(start, limit).to_pylist() for part, table in tables.items()},
            "next": start + limit if any(start + limit < len(table) for table in tables.values()) else None,
        }
    )


@blueprint.delete("/datasets/<name>/versions/<int(max=999999):version>")
def delete_dataset_version(name: str, version: int) -> tuple[str, int]:
    """Delete a version of a dataset that nothing needs."""
    orders.delete_dataset(backend(), name, version)
    return "", 204


@blueprint.delete("/datasets/<name>")
def delete_dataset(name: str) -> tuple[str, int]:
    """Delete a dataset that nothing needs."""
    orders.delete_dataset(backend(), name)
    return "", 204


@blueprint.get("/datasets/<name>/versions/<int(max=999999):version>/exports")
def list_exports(name: str, version: int) -> Response:
    """The zips that were made of a version and are still there."""
    datasets.info(backend().storage, name, version)
    return jsonify(exports=datasets.exports(backend().storage, name, version))


@blueprint.post("/datasets/<name>/versions/<int(max=999999):version>/exports/<form>")
def export_dataset(name: str, version: int, form: str) -> Response:
    """Order a version as a zip."""
    spec = {"dataset": check(Name, name), "version": version, "format": form}
    return submitted("pack", spec)


@blueprint.get("/datasets/<name>/versions/<int(max=999999):version>/exports/<form>")
def download_export(name: str, version: int, form: str) -> Response:
    """A version as a zip, once it was made."""
    storage = backend().storage
    datasets.info(storage, name, version)
    if form not in {found["format"] for found in datasets.exports(storage, name, version)}:
        raise NotFound(
            f"{name} v{version} was not exported as {form[:40]!r}, or the zip was freed since. Order it with a POST to this address."
        )
    return attachment(storage, datasets.export_key(name, version, form), f"{name}-v{version}-{form}.zip")
