"""`darkroom dataset`: import, export, scrape, sources, list, show, findings; edit, edits, freeze; versions, diff, restore, delete."""

from pathlib import Path
from typing import Any, get_args

import click

from cli import show
from cli.client import Client
from cli.follow import notice, tell
from cli.options import Checked, checked, json_option, making, spec_options, wait_option
from cli.pack import existing, upload
from shared.sources import OWN
from shared.specs import ModelRef, Name, PackSpec, ScrapeSpec, rename_lines

NAME = Checked("name", Name)
FORMATS = get_args(PackSpec.model_fields["format"].annotation)
VERSION = click.IntRange(min=1, max=999_999)
PARTS = ("added", "removed", "relabelled")  # of a diff


@click.group("dataset")
def dataset() -> None:
    """Pictures with class names, in versions."""


@dataset.command("import")
@click.argument("name", type=NAME)
@click.argument("path", required=False)
@click.option("--on-server", is_flag=True, help="PATH is a folder that the server sees, or s3://bucket/prefix; nothing is uploaded")
@click.option("--from", "other", metavar="NAME[/vN]", help="instead of PATH: another dataset, or NAME itself to rename its classes")
@click.option("--only", multiple=True, metavar="CLASS", help="with --from: this class, and others so named")
@click.option(
    "--rename", multiple=True, metavar="OLD=NEW", help="what a class is called from now on; two may become one, and OLD= is left out"
)
@making
@wait_option
@json_option
@click.pass_obj
def import_(
    client: Client,
    name: str,
    path: str | None,
    on_server: bool,
    other: str | None,
    only: tuple[str, ...],
    rename: tuple[str, ...],
    wait: bool,
    as_json: bool,
    **told: str,
) -> None:
    """Make a dataset of a folder, zip or tar that has a folder per class or a table of classes, of a CSV, or of another dataset."""
    if (path is None) == (other is None):
        raise click.UsageError("Say what to import: PATH, or --from NAME.")
    try:
        common = {"dataset": name, "classes": rename_lines(rename), **told}
    except ValueError as error:
        raise click.UsageError(f"--rename: {error}.") from None
    source = {"kind": "folder", "path": path} if on_server else _other(other, only) if other else None
    checked("import", {**common, "source": source or {"kind": "folder", "path": "/"}})  # before anything is uploaded
    source = source or upload(client, existing((path or "",)), tables=True)
    tell(client, client.submit("datasets", name, "import", spec=checked("import", {**common, "source": source})), wait, as_json)


def _other(ref: str, only: tuple[str, ...]) -> dict[str, Any]:
    """The source that is another dataset. Raises UsageError."""
    name, slash, version = ref.partition("/")
    if slash and not version.removeprefix("v").isdigit():
        raise click.UsageError(f"--from {ref!r}: a dataset is named as name or name/v3.")
    more: dict[str, Any] = {"version": int(version.removeprefix("v"))} if slash else {}
    return {"kind": "dataset", "dataset": name, **more, **({"classes": list(only)} if only else {})}


@dataset.command("export")
@click.argument("name", type=NAME)
@click.option("--version", type=click.IntRange(min=1), help="empty: the newest")
@click.option(
    "--format", "form", type=click.Choice(FORMATS), default="folder", show_default=True, help=PackSpec.model_fields["format"].description
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="the file to write; default: NAME-vN-FORMAT.zip")
@json_option
@click.pass_obj
def export(client: Client, name: str, version: int | None, form: str, out: Path | None, as_json: bool) -> None:
    """Download a version as a zip that other programs read, and that makes the same dataset when it is imported."""
    number = version or client.get("datasets", name)["versions"][0]["version"]
    place = ("datasets", name, "versions", number, "exports", form)
    tell(client, client.submit(*place, spec={}), True, as_json)
    target = out or Path(f"{name}-v{number}-{form}.zip")
    client.download(target, *place)
    notice(f"Saved as {target}.")


@dataset.command("scrape")
@click.argument("name", type=NAME)
@click.option("--class", "classes", multiple=True, required=True, metavar="NAME[=QUERY]", help="a class, and what to search for it")
@click.option(
    "--address", "addresses", multiple=True, metavar="NAME=ADDRESS", help="the address of an image of a class, taken before any search"
)
@spec_options(ScrapeSpec, leave_out=("dataset", "classes", "note", "author"))
@making
@wait_option
@json_option
@click.pass_obj
def scrape(
    client: Client, name: str, classes: tuple[str, ...], addresses: tuple[str, ...], wait: bool, as_json: bool, **fields: Any
) -> None:
    """Make a dataset by searching for each class: --class "Taj Mahal" --class "Petra=Petra Jordan ruins"."""
    queries: list[dict[str, Any]] = [dict(zip(("name", "query"), map(str.strip, text.split("=", 1)), strict=False)) for text in classes]
    for text in addresses:
        label, equals, address = text.partition("=")
        query = next((query for query in queries if query["name"] == label.strip()), None)
        if not equals or query is None:
            raise click.UsageError(f"--address {text[:100]!r} should begin with the name of a --class and an equals sign.")
        query.setdefault("urls", []).append(address.strip())
    spec = checked("scrape", {"dataset": name, "classes": queries, **fields})
    tell(client, client.submit("datasets", name, "scrape", spec=spec), wait, as_json)


@dataset.command("sources")
@json_option
@click.pass_obj
def sources(client: Client, as_json: bool) -> None:
    """The image sources: what each needs, and how it did when it was last asked."""
    found = client.get("sources")["sources"]
    if as_json:
        show.as_json(found)
        return
    rows = [(s["name"], s["title"], _standing(s), s["licences"], s["terms"]) for s in found]
    show.table(("source", "title", "state", "licence", "terms"), rows)


def _standing(source: dict[str, Any]) -> str:
    match source["state"]:
        case "works":
            return f"works, {show.ago(source['at'])}"
        case "failed":
            return f"failed {show.ago(source['at'])}: {source['sentence']}"
        case "needs":
            return f"needs {' and '.join(source['lacking'])}"
        case _:
            return "comes with the order" if source["name"] in OWN else "not asked yet"


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
    show.counts("licence", found["licences"])
    show.counts("dropped", found["dropped"])


@dataset.command("findings")
@click.argument("name", type=NAME)
@click.option("--version", type=click.IntRange(min=1), help="empty: the newest")
@json_option
@click.pass_obj
def findings(client: Client, name: str, version: int | None, as_json: bool) -> None:
    """What looks odd about the images of a version: duplicates, blurry, dark, small, and what could not be read."""
    number = version or client.get("datasets", name)["versions"][0]["version"]
    found = client.get("datasets", name, "versions", number, "findings")
    if as_json:
        show.as_json(found)
        return
    rows = [
        (kind.replace("_", " "), f"{n:,}", f"{len(found['accepted'].get(kind, ())):,}", f"{found['dropped'].get(kind, 0):,}")
        for kind, n in found["counts"].items()
    ]
    show.table(("finding", "images", "kept", "dropped"), rows, ("images", "kept", "dropped"))


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
