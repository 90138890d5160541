"""`darkroom dataset`: import, scrape, sources, list, show; edit, edits, freeze."""

from typing import Any

import click

from cli import show
from cli.client import Client
from cli.follow import tell
from cli.options import Checked, checked, json_option, spec_options, wait_option
from cli.pack import existing, upload
from shared.sources import OWN
from shared.specs import ModelRef, Name, ScrapeSpec

NAME = Checked("name", Name)


@click.group("dataset")
def dataset() -> None:
    """Pictures with class names, in versions."""


@dataset.command("import")
@click.argument("name", type=NAME)
@click.argument("path")
@click.option("--on-server", is_flag=True, help="PATH is a folder that the server sees, or s3://bucket/prefix; nothing is uploaded")
@wait_option
@json_option
@click.pass_obj
def import_(client: Client, name: str, path: str, on_server: bool, wait: bool, as_json: bool) -> None:
    """Make a dataset of a folder or zip that has a folder per class."""
    source = {"kind": "folder", "path": path} if on_server else None
    source = source or upload(client, existing((path,)))
    spec = checked("import", {"dataset": name, "source": source})
    tell(client, client.submit("datasets", name, "import", spec=spec), wait, as_json)


@dataset.command("scrape")
@click.argument("name", type=NAME)
@click.option("--class", "classes", multiple=True, required=True, metavar="NAME[=QUERY]", help="a class, and what to search for it")
@click.option(
    "--address", "addresses", multiple=True, metavar="NAME=ADDRESS", help="the address of an image of a class, taken before any search"
)
@spec_options(ScrapeSpec, leave_out=("dataset", "classes"))
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
            ("from", _origin(found.get("source"))),
        ]
    )
    show.counts("class", found["classes"])
    show.counts("licence", found["licences"])
    show.counts("dropped", found["dropped"])


def _origin(source: Any) -> str:
    """Where a version is from, in a line: `search: openverse, commons`, or the path of a folder."""
    if not isinstance(source, dict):
        return str(source or "")
    more = source.get("path") or ", ".join(source.get("sources", [])) or source.get("batch") or source.get("id")
    return f"{source.get('kind', '')}: {more}" if more else str(source.get("kind", ""))


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
@wait_option
@json_option
@click.pass_obj
def freeze(client: Client, name: str, model: str | None, wait: bool, as_json: bool) -> None:
    """Make the next version, with what was decided."""
    spec = checked("import", {"dataset": name, "source": {"kind": "edits", "model": model}})
    tell(client, client.submit("datasets", name, "import", spec=spec), wait, as_json)
