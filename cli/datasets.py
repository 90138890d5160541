"""`darkroom dataset`: import, scrape, list, show."""

from typing import Any

import click

from cli import show
from cli.client import Client
from cli.follow import tell
from cli.options import Checked, checked, json_option, spec_options, wait_option
from cli.pack import existing, upload
from shared.specs import Name, ScrapeSpec

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
@spec_options(ScrapeSpec, leave_out=("dataset", "classes"))
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
            ("from", found.get("source")),
        ]
    )
    show.counts("class", found["classes"])
    show.counts("dropped", found["dropped"])
