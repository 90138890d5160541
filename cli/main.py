"""The console script: `darkroom NOUN VERB`, with train, classify and predict as everyday shortcuts.

Exit codes: 0 done, 1 failed or cancelled, 2 wrong usage, 130 interrupted (the job goes on). Nothing here imports torch,
flask or celery; what starts them does so when it is called.
"""

from typing import Any

import click

from cli import batches, datasets, jobs, models, rules, show
from cli.client import Client
from cli.follow import Interrupted
from cli.options import json_option, setting_option
from shared.errors import DarkroomError
from shared.settings import load


class Commands(click.Group):
    """A group that ends with a sentence and the exit code that scripts rely on."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except DarkroomError as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt as stop:
            click.echo(_goodbye(stop), err=True)
            ctx.exit(130)


def _goodbye(stop: KeyboardInterrupt) -> str:
    if not isinstance(stop, Interrupted):
        return "\nInterrupted."
    job_id = stop.job_id
    return f"\nThe job goes on. Follow it with `darkroom job show {job_id} --wait`, end it with `darkroom job cancel {job_id}`."


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--url", help="address of the web; otherwise DARKROOM_URL, or this machine")
@click.pass_context
def cli(ctx: click.Context, url: str | None) -> None:
    """Class names in, an image classifier out, and labels for millions of images."""
    ctx.obj = Client(url)


for _command in (
    datasets.dataset,
    models.train,
    models.model,
    batches.classify,
    batches.batch,
    batches.predict,
    rules.rule,
    jobs.jobs,
    jobs.job,
    jobs.workers,
):
    cli.add_command(_command)


@cli.command("up")
@setting_option("port")
@setting_option("storage")
def up(**overrides: Any) -> None:
    """Start everything on this machine: Redis if none is configured, the web, and a worker for each kind of job."""
    from cli import start

    start.up(load(**overrides))


@cli.command("web")
@setting_option("port")
@setting_option("storage")
def web(**overrides: Any) -> None:
    """Start the web alone."""
    from cli import start

    start.web(load(**overrides))


@cli.command("worker")
@click.option("--queues", default="predict,classify,train,scrape", show_default=True, help="the queues it serves, separated by commas")
@click.option("--name", help="how it is called; empty: made of the machine's name")
@setting_option("storage")
def worker(queues: str, name: str | None, **overrides: Any) -> None:
    """Start a worker."""
    from shared.queue import QUEUES

    chosen = [queue.strip() for queue in queues.split(",") if queue.strip()]
    if not chosen or not set(chosen) <= set(QUEUES):
        raise click.UsageError(f"--queues takes one or more of {', '.join(QUEUES)}, separated by commas; not {queues!r}.")
    from cli import start

    start.worker(load(**overrides), chosen, name)


@cli.command("recover")
@setting_option("storage")
@json_option
def recover(as_json: bool, **overrides: Any) -> None:
    """Rebuild the ledger from the storage, after Redis has lost its data; `up` does it by itself."""
    from cli import start

    found = start.recovered(load(**overrides))
    if as_json:
        show.as_json({"recovered": found})
    else:
        click.echo(f"{len(found)} jobs were recovered." if found else "Nothing is missing: the ledger knows every job of the storage.")


@cli.command("gc")
@click.option("--delete", is_flag=True, help="free it; without this nothing is deleted")
@click.option("--older-than", default="1d", show_default=True, help="leave what is younger, such as 12h, 7d or 0")
@setting_option("storage")
@json_option
def gc(delete: bool, older_than: str, as_json: bool, **overrides: Any) -> None:
    """Show what nothing on the storage refers to any more, and with --delete free it; the web and workers may run meanwhile."""
    from cli import start

    heaps, freed = start.garbage(load(**overrides), older_than, delete)
    show.garbage([heap.as_json() for heap in heaps], freed, as_json)


@cli.command("demo")
@click.option("--once", is_flag=True, help="end when the demo is through, instead of leaving it running")
@setting_option("port")
@setting_option("storage")
@json_option
@click.pass_context
def demo(ctx: click.Context, once: bool, as_json: bool, **overrides: Any) -> None:
    """See the whole of Darkroom at work on a small dataset."""
    from cli.demo import demo as show_all

    ctx.exit(show_all(load(**overrides), once, as_json))


def main() -> None:
    """The console script `darkroom`."""
    cli(prog_name="darkroom")
