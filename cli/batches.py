"""`darkroom classify`, `darkroom batch` and `darkroom predict`: labels for many images, and for one."""

from pathlib import Path
from typing import IO, Any

import click

from cli import show
from cli.client import Client
from cli.follow import follow, raise_unless_well, tell
from cli.models import MODEL
from cli.options import Checked, checked, json_option, spec_options, wait_option
from cli.pack import existing, upload, upload_list
from shared.errors import DarkroomError
from shared.specs import ClassifySpec, ModelRef, parse_model_ref

FORMS = ("csv", "jsonl", "parquet")


class Output(click.ParamType[Path]):
    """A file for results: its suffix says in what form, and its folder is there."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path. Fails with a sentence before anything was ordered."""
        path = Path(value)
        if path.suffix[1:].lower() not in FORMS:
            self.fail(f"{value!r} should end in .csv, .jsonl or .parquet.", param, ctx)
        if not path.absolute().parent.is_dir() or path.is_dir():
            self.fail(f"{value!r} cannot be a file: there is no such folder, or a folder has this name.", param, ctx)
        return path


@click.command("classify")
@click.argument("model", type=MODEL)
@click.argument("paths", nargs=-1, metavar="PATH...")
@click.option(
    "--list",
    "--urls",
    "listed",
    type=click.File("rb"),
    help="a file with an http(s) address or a path on the server a line, or a .csv with a column url or path; - reads standard input",
)
@click.option("--dataset", type=Checked("name", ModelRef), metavar="NAME[/v2]", help="the images of a dataset version")
@click.option("--on-server", is_flag=True, help="PATH is a folder that the server sees, or s3://bucket/prefix; nothing is uploaded")
@click.option("--out", type=Output(), help="wait, and save the rows as .csv, .jsonl or .parquet")
@spec_options(ClassifySpec, leave_out=("model", "source"))
@wait_option
@json_option
@click.pass_obj
def classify(
    client: Client,
    model: str,
    paths: tuple[str, ...],
    listed: IO[bytes] | None,
    dataset: str | None,
    on_server: bool,
    out: Path | None,
    wait: bool,
    as_json: bool,
    **fields: Any,
) -> None:
    """Label the pictures of a folder, a zip, single files, a list or a dataset."""
    checked("classify", {"model": model, "source": {"kind": "urls", "urls": ["http://x"]}, **fields})  # before anything is uploaded
    spec = checked("classify", {"model": model, "source": _source(client, paths, listed, dataset, on_server), **fields})
    job = client.submit("batches", spec=spec)
    if not (wait or out):
        tell(client, job, wait=False, as_json=as_json)
        return
    job = follow(client, job["id"])
    if out and job["state"] == "done":
        _save(client, job["id"], out)
    _show_batch(client, job["id"], as_json)


def _source(client: Client, paths: tuple[str, ...], listed: IO[bytes] | None, dataset: str | None, on_server: bool) -> dict[str, Any]:
    if [bool(paths), listed is not None, dataset is not None].count(True) != 1 or (on_server and len(paths) != 1):
        raise click.UsageError("Name what to label: one or more PATHs, or --list FILE, or --dataset NAME, or one PATH with --on-server.")
    if listed is not None:
        return upload_list(client, listed)
    if dataset is not None:
        name, version = parse_model_ref(dataset)
        return {"kind": "dataset", "dataset": name, "version": version}
    return {"kind": "folder", "path": paths[0]} if on_server else upload(client, existing(paths))


@click.group("batch")
def batch() -> None:
    """Batches of images that were or are being labelled."""


@batch.command("list")
@json_option
@click.pass_obj
def list_(client: Client, as_json: bool) -> None:
    """The newest batches."""
    found = client.get("batches")["batches"]
    if as_json:
        show.as_json(found)
    else:
        show.jobs(found)


@batch.command("show")
@click.argument("batch_id", metavar="ID")
@json_option
@click.pass_obj
def show_(client: Client, batch_id: str, as_json: bool) -> None:
    """A batch and how many images got each label so far."""
    _show_batch(client, batch_id, as_json)


@batch.command("results")
@click.argument("batch_id", metavar="ID")
@click.argument("out", type=Output())
@json_option
@click.pass_obj
def results(client: Client, batch_id: str, out: Path, as_json: bool) -> None:
    """Save the rows of a batch that are done as OUT: .csv, .jsonl or .parquet."""
    _save(client, batch_id, out)
    if as_json:
        show.as_json({"batch": batch_id, "out": str(out)})


@batch.command("retry-failed")
@click.argument("batch_id", metavar="ID")
@wait_option
@json_option
@click.pass_obj
def retry_failed(client: Client, batch_id: str, wait: bool, as_json: bool) -> None:
    """Order the images of a batch that failed again, as a new batch."""
    tell(client, client.post("batches", batch_id, "retry-failed"), wait, as_json)


@batch.command("retrain")
@click.argument("batch_id", metavar="ID")
@wait_option
@json_option
@click.pass_obj
def retrain(client: Client, batch_id: str, wait: bool, as_json: bool) -> None:
    """Add what was reviewed to the dataset of the batch's model, and train the model's next version on that."""
    ref = client.get("batches", batch_id)["spec"]["model"]
    name, version = parse_model_ref(ref)
    known = client.get("models", name, "versions", version or 1).get("dataset")
    if not known:
        raise DarkroomError(
            f"{ref} was trained on no dataset of this installation. Add the images to one with the review page, then train."
        )
    dataset = known["name"]
    spec = checked("import", {"dataset": dataset, "source": {"kind": "review", "batch": batch_id}, "then": ref})
    job = client.submit("datasets", dataset, "import", spec=spec)
    if wait:
        job = follow(client, job["id"])
        raise_unless_well(job)
        if "training" not in job["result"]:
            raise DarkroomError(f"{dataset} v{job['result']['version']} is made. {job['result']['not_retrained']}")
        job = client.get("jobs", job["result"]["training"])
    tell(client, job, wait, as_json)


@batch.command("clone")
@click.argument("batch_id", metavar="ID")
@spec_options(ClassifySpec, leave_out=("source",), defaults=False)
@wait_option
@json_option
@click.pass_obj
def clone(client: Client, batch_id: str, wait: bool, as_json: bool, **changes: Any) -> None:
    """Order the same images again, with what is named changed: --model clothing/v4 --precision exact."""
    spec = client.get("batches", batch_id)["spec"] | {name: value for name, value in changes.items() if value is not None}
    tell(client, client.submit("batches", spec=checked("classify", spec)), wait, as_json)


@click.command("predict")
@click.argument("model", type=MODEL)
@click.argument("image", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option
@click.pass_obj
def predict(client: Client, model: str, image: Path, as_json: bool) -> None:
    """Label one picture now."""
    try:
        data = image.read_bytes()
    except OSError as error:
        raise DarkroomError(f"{image} cannot be read: {error.strerror or error}.") from error
    answer = client.predict(model, data)
    if as_json:
        show.as_json(answer)
        return
    best = sorted(answer["probabilities"].items(), key=lambda pair: -pair[1])[:5]
    show.table(("label", "probability"), [(label, f"{p:.1%}") for label, p in best], ("probability",))


def _save(client: Client, batch_id: str, out: Path) -> None:
    client.download(out, "batches", batch_id, f"results.{out.suffix[1:].lower()}")
    click.echo(f"The rows are in {out}.", err=True)


def _show_batch(client: Client, batch_id: str, as_json: bool) -> None:
    found = client.get("batches", batch_id)
    if as_json:
        show.as_json(found)
    else:
        show.job(found)
        show.counts("label", found["histograms"]["labels"])
        show.counts("error", found["histograms"]["reasons"])
    raise_unless_well(found)
