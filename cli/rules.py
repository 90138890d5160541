"""`darkroom rule`: retrain a model by itself when its dataset has grown."""

from typing import Any

import click

from cli import show
from cli.client import Client
from cli.datasets import NAME
from cli.options import json_option


@click.group("rule")
def rule() -> None:
    """Rules: retrain a model when a dataset has gained so many images."""


@rule.command("add")
@click.argument("dataset", type=NAME)
@click.argument("model", type=NAME)
@click.option(
    "--gained", type=click.IntRange(1, 10_000_000), required=True, help="images that the model's newest version was not trained on"
)
@click.option(
    "--start",
    type=click.Choice(("model", "imagenet", "scratch")),
    default="model",
    show_default=True,
    help="what each training starts from; model: the newest version's weights",
)
@json_option
@click.pass_obj
def add(client: Client, dataset: str, model: str, gained: int, start: str, as_json: bool) -> None:
    """Retrain MODEL, with the spec of its newest version, whenever DATASET has gained so many images."""
    made = client.post("rules", dataset=dataset, model=model, gained=gained, start=start)
    if as_json:
        show.as_json(made)
    else:
        click.echo(
            f"{model} will be retrained when {dataset} has gained {gained:,} images. End this with `darkroom rule delete {made['id']}`."
        )


@rule.command("list")
@json_option
@click.pass_obj
def list_(client: Client, as_json: bool) -> None:
    """The rules, and what came of each last."""
    found = client.get("rules")["rules"]
    if as_json:
        show.as_json(found)
        return
    rows = [(r["id"], r["dataset"], f"{r['gained']:,}", r["model"], r["start"], _outcome(r["last"] or {})) for r in found]
    show.table(("rule", "dataset", "gained", "model", "start", "last"), rows, ("gained",))


@rule.command("delete")
@click.argument("rule_id", metavar="ID")
@click.pass_obj
def delete(client: Client, rule_id: str) -> None:
    """Delete a rule; what it has ordered goes on."""
    client.delete("rules", rule_id)
    click.echo(f"The rule {rule_id} is deleted.")


def _outcome(last: dict[str, Any]) -> str:
    if not last:
        return "not looked at yet"
    if last["error"]:
        return str(last["error"])
    ordered = f"; ordered {last['job']} for v{last['ordered']}" if last["job"] else ""
    return f"v{last['version']} has gained {last['gained']:,}{ordered}"
