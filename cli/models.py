"""`darkroom train` and `darkroom model`: list, show, promote, rollback, compare, retrain, threshold, look, export, import, delete."""

from pathlib import Path
from typing import Any

import click

from cli import show
from cli.client import Client
from cli.datasets import NAME
from cli.follow import notice, tell
from cli.options import Checked, checked, json_option, spec_options, wait_option
from shared import heat
from shared.errors import DarkroomError
from shared.specs import ModelRef, TrainSpec, parse_model_ref

MODEL = Checked("name[/vN]", ModelRef)
SIDE = 896  # pixels of a picture with a heat map, at most


@click.command("train")
@click.argument("dataset", type=NAME)
@spec_options(TrainSpec, leave_out=("dataset", "rule"))
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
    versions = [_version(client, name)] if version else client.get("models", plain)["versions"]
    if as_json:
        show.as_json(versions[0] if version else versions)
        return
    _facts(versions[0])
    if len(versions) > 1:
        _table(versions)


@model.command("promote")
@click.argument("name", type=MODEL, metavar="NAME/vN")
@click.option("--alias", default="production", show_default=True, help="the name that is to point to this version")
@json_option
@click.pass_obj
def promote(client: Client, name: str, alias: str, as_json: bool) -> None:
    """Let an alias point to a version: NAME@production is that version from now on."""
    found = _version(client, name)
    move = client.put("models", found["model"], "aliases", alias, version=found["version"])
    if as_json:
        show.as_json(move)
        return
    before = f", before v{move['before']}" if move["before"] else ""
    click.echo(f"{found['model']}@{alias} is v{move['version']}{before}.")


@model.command("rollback")
@click.argument("name", type=NAME)
@click.option("--alias", default="production", show_default=True, help="the alias to move back")
@json_option
@click.pass_obj
def rollback(client: Client, name: str, alias: str, as_json: bool) -> None:
    """Let an alias point to what it pointed to before."""
    move = client.post("models", name, "aliases", alias, "rollback")
    if as_json:
        show.as_json(move)
    else:
        click.echo(f"{name}@{alias} is v{move['version']} again.")


@model.command("compare")
@click.argument("new", type=MODEL, metavar="NEW[/vN]")
@click.argument("old", type=MODEL, metavar="OLD[/vN]")
@json_option
@click.pass_obj
def compare(client: Client, new: str, old: str, as_json: bool) -> None:
    """A version beside another, on the images both were validated on."""
    found = _version(client, new)
    told = client.get("models", found["model"], "versions", found["version"], "compare", **{"with": old})
    if as_json:
        show.as_json(told)
        return
    errors = [
        f"{show.rate(e)} ({show.rate(low)} to {show.rate(high)})"
        for e, (low, high) in zip(told["error_rate"], told["interval"], strict=True)
    ]
    show.facts(
        [
            ("images in common", told["images"]),
            (f"error rate of {old}", errors[0]),
            (f"error rate of {new}", errors[1]),
            ("fixed", len(told["fixed"])),
            ("broken", len(told["broken"])),
            ("both wrong", told["both_wrong"]),
            ("by chance alone", show.rate(told["chance"])),
        ]
    )
    rows = [(c["label"], c["images"], show.rate(c["recall"][0]), show.rate(c["recall"][1])) for c in told["classes"]]
    show.table(("class", "images", f"recall of {old}", f"of {new}"), rows, ("images", f"recall of {old}", f"of {new}"))


@model.command("retrain")
@click.argument("name", type=MODEL, metavar="NAME[/vN]")
@spec_options(TrainSpec, leave_out=("dataset", "model", "parent", "continues", "rule"), defaults=False)
@wait_option
@json_option
@click.pass_obj
def retrain(client: Client, name: str, wait: bool, as_json: bool, **changes: Any) -> None:
    """Train the next version of a model: its own spec on its dataset's newest version, from its own weights, with what is named changed."""
    from shared.models import retraining

    changed = {field: value for field, value in changes.items() if value is not None}
    spec = checked("train", retraining(_version(client, name), **changed))
    tell(client, client.submit("trainings", spec=spec), wait, as_json)


@model.command("threshold")
@click.argument("name", type=MODEL, metavar="NAME[/vN]")
@click.option("--precision", type=click.FloatRange(0, 1), default=0.95, show_default=True, help="how often labels are to be right, 0 to 1")
@json_option
@click.pass_obj
def threshold(client: Client, name: str, precision: float, as_json: bool) -> None:
    """From which probability on labels are right as often as wanted, and how many images that leaves to review."""
    found = _version(client, name)
    told = client.get("models", found["model"], "versions", found["version"], "threshold", precision=precision)
    if as_json:
        show.as_json(told)
        return
    if told["threshold"] is None:
        click.echo(f"There is no probability from which {precision:.2%} of its labels are right: every image needs a look.")
        return
    show.facts(
        [
            ("review below", f"{told['threshold']['probability']:.4f}"),
            ("right from there", show.rate(told["threshold"]["precision"])),
            ("left to review", show.rate(told["threshold"]["review"])),
        ]
    )


@model.command("look")
@click.argument("name", type=MODEL, metavar="NAME[/vN]")
@click.argument("image", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--class", "label", help="look for what speaks for this class; without it for the one that is predicted")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="save the picture with the heat map on it, as PNG")
@json_option
@click.pass_obj
def look(client: Client, name: str, image: Path, label: str | None, out: Path | None, as_json: bool) -> None:
    """Show where a model looks in one picture (Grad-CAM)."""
    found = _version(client, name)
    try:
        data = image.read_bytes()
        told = client.look(found["model"], found["version"], data, label)
        if out:
            out.write_bytes(heat.overlay(data, told["heat"], told["seen"], SIDE, "PNG"))
    except OSError as error:
        raise DarkroomError(f"{error.filename} cannot be opened: {error.strerror or error}.") from error
    if as_json:
        show.as_json(told)
        return
    show.facts(
        [
            ("label", f"{told['label']}, {told['probability']:.1%}"),
            ("looked for", f"{told['class']}, {told['probabilities'][told['class']]:.1%}"),
            ("picture", out),
        ]
    )


@model.command("delete")
@click.argument("name", type=MODEL, metavar="NAME/vN")
@click.option("--yes", is_flag=True, help="do not ask")
@click.pass_obj
def delete(client: Client, name: str, yes: bool) -> None:
    """Delete a version that no alias and no job uses. Its number is not given again."""
    plain, version = parse_model_ref(name)
    if not isinstance(version, int):
        raise click.UsageError("Name the version to delete, as name/v3.")
    if not yes:
        click.confirm(f"Delete {plain}/v{version}?", abort=True)
    client.delete("models", plain, "versions", version)
    click.echo(f"{plain}/v{version} is deleted.")


@model.command("export")
@click.argument("name", type=MODEL, metavar="NAME[/vN]")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="the file to write, with --wait; default: NAME-vN-model.onnx")
@wait_option
@json_option
@click.pass_obj
def export(client: Client, name: str, out: Path | None, wait: bool, as_json: bool) -> None:
    """Make a version's model.onnx, for other programs, and with --wait download it."""
    if out and not wait:
        raise click.UsageError("--out needs --wait: the file is there only when the job has ended.")
    found = _version(client, name)
    place = ("models", found["model"], "versions", found["version"])
    tell(client, client.submit(*place, "export", spec={}), wait, as_json)
    if wait:
        target = out or Path(f"{found['model']}-v{found['version']}-model.onnx")
        client.download(target, *place, "files", "model.onnx")
        notice(f"Saved as {target}.")


@model.command("import")
@click.argument("name", type=NAME)
@click.argument("weights", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="MODEL.SAFETENSORS")
@click.argument("info", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="INFO.JSON")
@wait_option
@json_option
@click.pass_obj
def import_(client: Client, name: str, weights: Path, info: Path, wait: bool, as_json: bool) -> None:
    """Make a version of a model of the model.safetensors and info.json of another installation."""
    tell(client, client.submit_files("models", name, "import", weights=weights, info=info), wait, as_json)


def _version(client: Client, ref: str) -> dict[str, Any]:
    """The version that a reference names, as the web answers it."""
    plain, version = parse_model_ref(ref)
    if isinstance(version, str):
        version = client.get("models", plain, "aliases", version)["version"]
    found: dict[str, Any] = client.get("models", plain, "versions", version) if version else client.get("models", plain)["versions"][0]
    return found


def _table(found: list[dict[str, Any]]) -> None:
    rows = [
        (m["model"], f"v{m['version']}", m["arch"], len(m["classes"]), show.rate(m.get("error_rate")), _dataset(m), show.ago(m["created"]))
        for m in found
    ]
    show.table(("model", "version", "arch", "classes", "error rate", "dataset", "made"), rows, ("classes", "error rate"))


def _dataset(found: dict[str, Any]) -> str:
    return "imported" if "imported" in found else f"{found['dataset']['name']} v{found['dataset']['version']}"


def _facts(found: dict[str, Any]) -> None:
    if "imported" in found:
        _facts_imported(found)
        return
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


def _facts_imported(found: dict[str, Any]) -> None:
    came = found["imported"]["from"]
    version = f" v{came['version']}" if "version" in came else ""
    show.facts(
        [
            ("model", f"{found['model']} v{found['version']}"),
            ("arch", f"{found['arch']}, {found['image_size']} pixels"),
            ("classes", ", ".join(found["classes"])),
            ("imported", show.ago(found["imported"]["at"])),
            ("was", f"{came['model']}{version} where it was trained" if "model" in came else None),
            (
                "error rate",
                f"{show.rate(came['error_rate'])} by its own account, on images that are not here" if "error_rate" in came else "not known",
            ),
        ]
    )
