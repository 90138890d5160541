"""`darkroom jobs`, `darkroom job` and `darkroom workers`: what is queued, and who works on it."""

import click

from cli import show
from cli.client import Client
from cli.follow import tell
from cli.options import json_option, wait_option

KINDS = ("import", "scrape", "look", "pack", "train", "export", "adopt", "classify")
STATES = ("queued", "running", "paused", "done", "failed", "cancelled")
ID = click.argument("job_id", metavar="ID")


@click.command("jobs")
@click.option("--kind", type=click.Choice(KINDS), help="only jobs of this kind")
@click.option("--state", type=click.Choice(STATES), help="only jobs in this state")
@click.option("--limit", type=click.IntRange(1, 500), default=20, show_default=True, help="how many")
@json_option
@click.pass_obj
def jobs(client: Client, kind: str | None, state: str | None, limit: int, as_json: bool) -> None:
    """The newest jobs."""
    found = client.get("jobs", kind=kind, state=state, limit=limit)["jobs"]
    if as_json:
        show.as_json(found)
    else:
        show.jobs(found)


@click.group("job")
def job() -> None:
    """One job: a scrape, an import, a training or a batch."""


@job.command("show")
@ID
@wait_option
@json_option
@click.pass_obj
def show_(client: Client, job_id: str, wait: bool, as_json: bool) -> None:
    """A job, with --wait followed to its end."""
    found = client.get("jobs", job_id)
    if wait:
        tell(client, found, wait, as_json)
    elif as_json:
        show.as_json(found)
    else:
        show.job(found)


@job.command("cancel")
@ID
@json_option
@click.pass_obj
def cancel(client: Client, job_id: str, as_json: bool) -> None:
    """Ask a job to end; what it has done stays."""
    found = client.post("jobs", job_id, "cancel")
    if as_json:
        show.as_json(found)
    else:
        click.echo("The job is cancelled." if found["state"] == "cancelled" else "The job was asked to end and stops in a moment.")


@job.command("pause")
@ID
@json_option
@click.pass_obj
def pause(client: Client, job_id: str, as_json: bool) -> None:
    """Let a batch rest; what it has done stays."""
    found = client.post("jobs", job_id, "pause")
    if as_json:
        show.as_json(found)
    else:
        state = "is paused" if found["state"] == "paused" else "was asked to pause and rests in a moment"
        click.echo(f"The batch {state}. `darkroom job resume {job_id}` lets it go on.")


@job.command("resume")
@ID
@wait_option
@json_option
@click.pass_obj
def resume(client: Client, job_id: str, wait: bool, as_json: bool) -> None:
    """Let a paused batch go on, or a training that failed or was cancelled: from its last finished epoch, as a new job."""
    tell(client, client.post("jobs", job_id, "resume"), wait, as_json)


@job.command("extend")
@ID
@click.option("--epochs", type=click.IntRange(1, 500), required=True, help="how many more epochs")
@wait_option
@json_option
@click.pass_obj
def extend(client: Client, job_id: str, epochs: int, wait: bool, as_json: bool) -> None:
    """Train on: more epochs of a training that is done, as a new job that makes the next version of its model."""
    tell(client, client.post("jobs", job_id, "extend", epochs=epochs), wait, as_json)


@job.command("retry")
@ID
@wait_option
@json_option
@click.pass_obj
def retry(client: Client, job_id: str, wait: bool, as_json: bool) -> None:
    """Order again what a failed or cancelled job asked for, as a new job."""
    tell(client, client.post("jobs", job_id, "retry"), wait, as_json)


@click.command("workers")
@json_option
@click.pass_obj
def workers(client: Client, as_json: bool) -> None:
    """The workers that are there, and how many messages wait in each queue."""
    found = client.get("workers")
    if as_json:
        show.as_json(found)
        return
    rows = [
        (
            w["name"],
            ", ".join(w.get("queues", [])),
            w.get("device"),
            ", ".join(job_id for job_id, _ in w["busy"]),
            show.ago(w.get("started")),
        )
        for w in found["workers"]
    ]
    show.table(("worker", "queues", "device", "works on", "started"), rows)
    show.facts((f"waiting in {name}", n) for name, n in found["queues"].items() if n)
    if not rows:
        click.echo("There is no worker. `darkroom up` starts everything, `darkroom worker` one.", err=True)
