"""`darkroom dataset`: import, scrape, list, show; edit, edits, freeze; versions, diff, restore, delete."""

from typing import Any

import click

from cli import show
from cli.client import Client
from cli.follow import tell
from cli.options import Checked, checked, json_option, making, spec_options, wait_option
from cli.pack import existing, upload
from shared.specs import ModelRef, Name, ScrapeSpec

NAME = Checked("name", Name)
VERSION = click.IntRange(min=1, max=999_999)
PARTS = ("added", "removed", "relabelled")  # of a diff


@click.group("dataset")
def dataset() -> None:
    """Pictures with class names, in versions."""


@dataset.command("import")
@click.argument("name", type=NAME)
@click.argument("path")
@click.option("--on-server", is_flag=True, help="PATH is a folder that the server sees, or s3://bucket/prefix; nothing is uploaded")
@making
@wait_option
@json_option
@click.pass_obj
def import_(client: Client, name: str, path: str, on_server: bool, wait: bool, as_json: bool, **told: str) -> None:
    """Make a dataset of a folder or zip that has a folder per class."""
    source = {"kind": "folder", "path": path} if on_server else None
    source = source or upload(client, existing((path,)))
    spec = checked("import", {"dataset": name, "source": source, **told})
    tell(client, client.submit("datasets", name, "import", spec=spec), wait, as_json)


@dataset.command("scrape")
@click.argument("name", type=NAME)
@click.option("--class", "classes", multiple=True, required=True, metavar="NAME[=QUERY]", help="a class, and what to search for it")
@spec_options(ScrapeSpec, leave_out=("dataset", "classes", "note", "author"))
@making
@wait_option
@json_option
@click.pass_obj
def scrape(client: Client, name: str, classes: tuple[str, ...], wait: bool, as_json: bool, **fields: Any) -> None:
    """Make a dataset by searching for each class: --class "Taj Mahal" --class "Petra=Petra Jordan ruins"."""
    queries = [dict(zip(("name", "query"), map(str.strip, text.split("=", 1)), strict=False)) for text in classes]
    spec = checked("scrape", {"dataset": name, "classes": queries, **fields})
    tell(client, client.submit("datasets", name, "scrape", spec=spec), wait, as_json)


@dataset.command("list")
@json_option
@click.pass_obj
def list_(client: Client, as_json: bool) -> None:
    """The datasets, each with its newest version."""
    found = client.get("datasets")["datasets"]
    if as_json:
        show.as_json(found)
        return
    rows = [
        (d["dataset"], f"v{d['version']}", f"{d['images']:,}", len(d["classes"]), show.size(d["bytes"]), show.ago(d["created"]))
        for d in found
    ]
    show.table(("dataset", "version", "images", "classes", "size", "made"), rows, ("images", "classes", "size"))


@dataset.command("show")
@click.argument("name", type=NAME)
@click.option("--version", type=click.IntRange(min=1), help="empty: the newest")
@json_option
@click.pass_obj
def show_(client: Client, name: str, version: int | None, as_json: bool) -> None:
    """A version of a dataset: classes, what was dropped and why."""
    found = client.get("datasets", name, "versions", version) if version else client.get("datasets", name)["versions"][0]
    if as_json:
        show.as_json(found)
        return
    show.facts(
        [
            ("dataset", f"{found['dataset']} v{found['version']}"),
            ("images", f"{found['images']:,}"),
            ("size", show.size(found["bytes"])),
            ("made", show.ago(found["created"])),
            ("by", found.get("author")),
            ("note", found.get("note")),
            ("from", _source(found)),
            ("parent", f"v{found['parent']}" if found.get("parent") else None),
            ("licences", _licences(found)),
            ("hash", found["hash"]),
        ]
    )
    show.counts("class", found["classes"])
    show.counts("dropped", found["dropped"])


@dataset.command("edit")
@click.argument("name", type=NAME)
@click.argument("sha256")
@click.option("--relabel", metavar="LABEL", help="the right label, one of the classes or a new one")
@click.option("--remove", is_flag=True, help="the image does not belong in the dataset")
@click.option("--keep", is_flag=True, help="its label is right: no model suspects it any more")
@click.option("--undo", is_flag=True, help="take back what was decided about the image")
@click.option("--why", default="", help="kept with the decision")
@json_option
@click.pass_obj
def edit(
    client: Client, name: str, sha256: str, relabel: str | None, remove: bool, keep: bool, undo: bool, why: str, as_json: bool
) -> None:
    """Decide about an image, which `dataset freeze` then makes part of a version."""
    if (relabel is not None) + remove + keep + undo != 1:
        raise click.UsageError("Say one of --relabel LABEL, --remove, --keep and --undo.")
    if undo:
        client.delete("datasets", name, "edits", sha256)
        found: dict[str, Any] = {"sha256": sha256, "action": "undo"}
    else:
        said = {"action": "relabel", "label": relabel} if relabel is not None else {"action": "remove" if remove else "keep"}
        found = client.post("datasets", name, "edits", sha256=sha256, why=why, **said)
    if as_json:
        show.as_json(found)
    else:
        show.facts([(key, found.get(key)) for key in ("sha256", "action", "before", "label", "why") if found.get(key)])


@dataset.command("edits")
@click.argument("name", type=NAME)
@json_option
@click.pass_obj
def edits(client: Client, name: str, as_json: bool) -> None:
    """What the next version would change."""
    found: list[dict[str, Any]] = []
    start: int | None = 0
    while start is not None:
        page = client.get("datasets", name, "edits", start=start, limit=1000)
        found, start = found + page["edits"], page["next"]
    if as_json:
        show.as_json(found)
        return
    rows = [(e["sha256"], e["action"], e["before"], e["label"] or "", e["why"], show.ago(e["at"])) for e in found]
    show.table(("sha256", "action", "is", "becomes", "why", "decided"), rows)


@dataset.command("freeze")
@click.argument("name", type=NAME)
@click.option("--model", type=Checked("model", ModelRef), help="the model that gave cause, to be trained again afterwards")
@making
@wait_option
@json_option
@click.pass_obj
def freeze(client: Client, name: str, model: str | None, wait: bool, as_json: bool, **told: str) -> None:
    """Make the next version, with what was decided."""
    spec = checked("import", {"dataset": name, "source": {"kind": "edits", "model": model}, **told})
    tell(client, client.submit("datasets", name, "import", spec=spec), wait, as_json)


@dataset.command("versions")
@click.argument("name", type=NAME)
@json_option
@click.pass_obj
def versions(client: Client, name: str, as_json: bool) -> None:
    """Every version, the newest first: what made it, and what its images may be used for."""
    found = client.get("datasets", name)["versions"]
    if as_json:
        show.as_json(found)
        return
    rows = [
        (f"v{v['version']}", show.ago(v["created"]), v.get("author", ""), f"{v['images']:,}", _source(v), _licences(v), v.get("note", ""))
        for v in found
    ]
    show.table(("version", "made", "by", "images", "from", "licences", "note"), rows, ("images",))


def _source(info: dict[str, Any]) -> str:
    """What a version was made of, in a few words."""
    source = info.get("source") or ""
    if not isinstance(source, dict):
        return str(source)
    if source["kind"] == "restore":
        return f"restored v{source['version']}"
    more = source.get("path") or source.get("batch") or source.get("dataset") or ", ".join(source.get("sources", ()))
    return f"{source['kind']}{f': {more}' if more else ''}"


def _licences(info: dict[str, Any]) -> str:
    return ", ".join(f"{licence}: {n:,}" for licence, n in info.get("licences", {}).items())


@dataset.command("diff")
@click.argument("name", type=NAME)
@click.argument("old", type=VERSION)
@click.argument("new", type=VERSION)
@click.option("--label", help="what changed in this class alone")
@json_option
@click.pass_obj
def diff(client: Client, name: str, old: int, new: int, label: str | None, as_json: bool) -> None:
    """What changed from one version to another: images added, removed and relabelled."""
    found = _diff(client, name, old, new, label)
    if as_json:
        show.as_json(found)
        return
    parts = [f"{found['total'][part]:,} {part}" for part in PARTS]
    click.echo(f"From {name} v{old} to v{new}: {', '.join(parts)}; {found['unchanged']:,} unchanged.")
    columns = ("added", "removed", "came", "left")
    classes = [c for c in found["classes"] if label in {None, c["label"]}]
    if classes:
        show.table(("class", *columns), [(c["label"], *(c[key] or "" for key in columns)) for c in classes], columns)
    rows = [
        (part, row["sha256"], row.get("before", row["label"]), row["label"] if "before" in row else "", row.get("detail", ""))
        for part in PARTS
        for row in found[part]
    ]
    if rows:
        show.table(("what", "sha256", "label", "becomes", "why"), rows)


def _diff(client: Client, name: str, old: int, new: int, label: str | None) -> dict[str, Any]:
    """All pages of a diff as one."""
    ends = {"from": old, "to": new, "label": label, "limit": 1000}
    found: dict[str, Any] = client.get("datasets", name, "diff", **ends)
    while found["next"] is not None:
        page = client.get("datasets", name, "diff", start=found["next"], **ends)
        found |= {part: found[part] + page[part] for part in PARTS} | {"next": page["next"]}
    return found


@dataset.command("restore")
@click.argument("name", type=NAME)
@click.argument("version", type=VERSION)
@making
@wait_option
@json_option
@click.pass_obj
def restore(client: Client, name: str, version: int, wait: bool, as_json: bool, **told: str) -> None:
    """Make the next version, with the images and labels that an earlier one has."""
    spec = checked("import", {"dataset": name, "source": {"kind": "restore", "version": version}, **told})
    tell(client, client.submit("datasets", name, "import", spec=spec), wait, as_json)


@dataset.command("delete")
@click.argument("name", type=NAME)
@click.option("--version", type=VERSION, help="delete this version alone; empty: the whole dataset")
@click.option("--yes", is_flag=True, help="do not ask")
@click.pass_obj
def delete(client: Client, name: str, version: int | None, yes: bool) -> None:
    """Delete a dataset, or one version, if no model, batch, job or later version needs it; `darkroom gc` then frees its images."""
    what = f"{name} v{version}" if version else f"all versions of {name}"
    if not yes:
        click.confirm(f"Delete {what}?", abort=True)
    client.delete("datasets", name, *(("versions", version) if version else ()))
    click.echo(f"Deleted: {what}. `darkroom gc` shows which images nothing needs any more.")
