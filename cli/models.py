"""`darkroom train` and `darkroom model`: list, show."""

from typing import Any

import click

from cli import show
from cli.client import Client
from cli.datasets import NAME
from cli.follow import tell
from cli.options import Checked, checked, json_option, spec_options, wait_option
from shared.specs import ModelRef, TrainSpec, parse_model_ref

MODEL = Checked("name[/vN]", ModelRef)


@click.command("train")
@click.argument("dataset", type=NAME)
@spec_options(TrainSpec, leave_out=("dataset",))
@wait_option
@json_option
@click.pass_obj
def train(client: Client, dataset: str, wait: bool, as_json: bool, **fields: Any) -> None:
    """Train a classifier on a dataset."""
    spec = checked("train", {"dataset": dataset, **fields})
    tell(client, client.submit("trainings", spec=spec), wait, as_json)


@click.group("model")
def model() -> None:
    """Trained classifiers, in versions."""


@model.command("list")
@json_option
@click.pass_obj
def list_(client: Client, as_json: bool) -> None:
    """The models, each with its newest version."""
    found = client.get("models")["models"]
    if as_json:
        show.as_json(found)
    else:
        _table(found)


@model.command("show")
@click.argument("name", type=MODEL, metavar="NAME[/vN]")
@json_option
@click.pass_obj
def show_(client: Client, name: str, as_json: bool) -> None:
    """A model with its versions, or one version of it."""
    plain, version = parse_model_ref(name)
    versions = [client.get("models", plain, "versions", version)] if version else client.get("models", plain)["versions"]
    if as_json:
        show.as_json(versions[0] if version else versions)
        return
    _facts(versions[0])
    if len(versions) > 1:
        _table(versions)


def _table(found: list[dict[str, Any]]) -> None:
    rows = [
        (m["model"], f"v{m['version']}", m["arch"], len(m["classes"]), show.rate(m["error_rate"]), _dataset(m), show.ago(m["created"]))
        for m in found
    ]
    show.table(("model", "version", "arch", "classes", "error rate", "dataset", "made"), rows, ("classes", "error rate"))


def _dataset(found: dict[str, Any]) -> str:
    return f"{found['dataset']['name']} v{found['dataset']['version']}"


def _facts(found: dict[str, Any]) -> None:
    show.facts(
        [
            ("model", f"{found['model']} v{found['version']}"),
            ("arch", f"{found['arch']}, {found['image_size']} pixels"),
            ("classes", ", ".join(found["classes"])),
            ("error rate", f"{show.rate(found['error_rate'])} of {found['valid_images']:,} validation images"),
            ("trained on", f"{_dataset(found)}, {found['train_images']:,} images, in {show.duration(found['train_seconds'])}"),
            ("retrain of", found.get("parent")),
            ("device", found.get("device")),
            ("made", show.ago(found["created"])),
            ("notes", found["spec"].get("notes")),
        ]
    )
