"""Following a job to its end: a progress bar on a terminal, plain lines in a log, always on standard error."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import click

from cli import show
from cli.client import CHUNK, Client
from shared.errors import DarkroomError, Invalid, NotFound, Unavailable

POLL_SECONDS = 0.5
LINE_SECONDS = 5  # between two lines of a log
PATIENCE_SECONDS = 30  # how long the web may be away
LONELY_SECONDS = 5  # how long a job waits before we look whether there is a worker for it
ENDED = ("done", "failed", "cancelled")
Report = Callable[[int, int, str], None]  # done, total (0: not known), what is happening


class Interrupted(KeyboardInterrupt):
    """The user stopped following; the job goes on."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.job_id = job_id


def follow(client: Client, job_id: str, poll: float = POLL_SECONDS, patience: float = PATIENCE_SECONDS) -> dict[str, Any]:
    """Show a job's progress until it has ended, and return it. Raises Unavailable when the web stays away, Interrupted on Ctrl-C."""
    watched = _Watched(client)
    try:
        with reporting() as report:
            for job in _changes(client, job_id, poll, patience):
                watched.see(job)
                report(*show.measure(job), _phase(job))
    except KeyboardInterrupt:
        raise Interrupted(job_id) from None
    return job


def tell(client: Client, job: dict[str, Any], wait: bool, as_json: bool) -> None:
    """Print a job that was ordered or asked for, with `wait` after following it. Raises DarkroomError if it has failed or was cancelled."""
    if wait and job["state"] not in ENDED:
        job = follow(client, job["id"])
    if as_json:
        show.as_json(job)
    else:
        show.job(job)
        if job["state"] not in ENDED:
            notice(f"Follow it with `darkroom job show {job['id']} --wait`.")
    raise_unless_well(job)
    if wait and job["kind"] == "train" and not as_json:
        beside(client, job["result"])


def beside(client: Client, made: dict[str, Any]) -> None:
    """Tell whether a model that was retrained is better than the one it came from; nothing for one that came from none."""
    new = f"{made['model']}/v{made['version']}"
    where = ("models", made["model"], "versions", made["version"])
    try:
        old = client.get(*where).get("parent")
        if not old:
            return
        found = client.get(*where, "compare", **{"with": old})
    except (NotFound, Invalid) as error:
        notice(f"{new} is not compared with what it came from. {error}")
        return
    said = {"even": f"{new} and {old} may be equally good"}.get(found["verdict"], f"{new} is {found['verdict']} than {old}")
    then, now = (show.rate(e) for e in found["error_rate"])
    click.echo(f"{said}: {now} errors, {then} before, on the {found['images']:,} images that both were validated on.")
    click.echo(f"See where with `darkroom model compare {new} {old}`, use it with `darkroom model promote {new}`.")


def raise_unless_well(job: dict[str, Any]) -> None:
    """Raises DarkroomError for a job that has failed or was cancelled: the command then ends with 1."""
    if job["state"] == "failed":
        raise DarkroomError(f"The job failed: {job['error'] or 'the log of its worker says why'}")
    if job["state"] == "cancelled":
        raise DarkroomError("The job was cancelled.")


def _changes(client: Client, job_id: str, poll: float, patience: float) -> Iterator[dict[str, Any]]:
    """The job as often as it is asked for, the last time when it has ended."""
    job: dict[str, Any] = {}
    etag, away_since = "", None
    while job.get("state") not in ENDED:
        try:
            news, etag = client.get_if_changed(etag, "jobs", job_id, lists="epochs")
            job, away_since = news or job, None
            yield job
        except Unavailable as error:
            if away_since is None:
                away_since = time.monotonic()
                notice(f"{error} Trying again for {patience:.0f} seconds.")
            elif time.monotonic() - away_since > patience:
                raise
        if job.get("state") not in ENDED:
            time.sleep(poll)


class _Watched:
    """What was already told of a job, so that it is told once: epochs, notes, and that no worker is there."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.epochs = 0
        self.note: str | None = None
        self.begun = time.monotonic()
        self.looked = False

    def see(self, job: dict[str, Any]) -> None:
        """Tell what is new."""
        rows = job.get("epochs", [])
        if len(rows) < self.epochs:  # another worker began anew
            self.epochs = 0
        if rows and not self.epochs:
            notice(f"{'epoch':>8} {'train loss':>11} {'valid loss':>11} {'error rate':>11} {'time':>8}")
        for row in rows[self.epochs :]:
            notice(_epoch(row))
        self.epochs = len(rows)
        if job["note"] and job["note"] != self.note:
            self.note = job["note"]
            notice(show.clean(self.note))
        if job["state"] == "queued" and not self.looked and time.monotonic() - self.begun > LONELY_SECONDS:
            self.looked = True
            self._look_for_worker(job["queue"])

    def _look_for_worker(self, queue: str) -> None:
        try:
            workers = self.client.get("workers")["workers"]
        except Unavailable:
            return
        if not any(queue in worker.get("queues", ()) for worker in workers):
            notice(f"No worker takes such jobs at the moment; this one waits. Start one with `darkroom worker --queues {queue}`.")


def _epoch(row: dict[str, Any]) -> str:
    name = f"{row['epoch']}{' head' if row.get('frozen') else ''}"
    numbers = [_number(row.get(key)) for key in ("train_loss", "valid_loss", "error_rate")]
    return f"{name:>8} {' '.join(f'{n:>11}' for n in numbers)} {show.duration(row.get('seconds')):>8}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _phase(job: dict[str, Any]) -> str:
    if job["cancel"] and job["state"] not in ENDED:
        return "stopping"
    if job["state"] == "running":
        return _training(job["progress"]) or str(job["progress"].get("phase") or "running")
    return "waiting for a worker" if job["state"] == "queued" else str(job["state"])


def _training(progress: dict[str, Any]) -> str:
    """How a training is doing, in so few characters that a bar finds room beside them in 80 columns; nothing before and after it trains."""
    if "lr" not in progress or progress.get("phase") != "training":
        return ""
    told = [f"epoch {progress['epoch']}/{progress['epochs']}", f"loss {progress['loss']:.4f}", f"lr {progress['lr']:.1e}"]
    if memory := progress.get("gpu_memory_mb") or progress.get("memory_mb"):
        told.append(show.size(memory * 1e6))
    return " · ".join([*told, f"{show.duration(progress['seconds_left'])} left"])


def notice(text: str) -> None:
    """A line on standard error; rich puts it above the progress bar if there is one."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def reporting(unit: Callable[[float], str] = "{:,.0f}".format) -> Iterator[Report]:
    """A function that shows progress: as a bar on a terminal, as a line every few seconds elsewhere."""
    if not sys.stderr.isatty():
        yield _Lines(unit)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    phase_text, count_text = (TextColumn(f"{{task.{field}}}", markup=False) for field in ("description", "fields[shown]"))
    columns = (phase_text, BarColumn(bar_width=None), count_text, TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, expand=True) as bar:
        task = bar.add_task("", total=None, shown="")

        def report(done: int, total: int, phase: str) -> None:
            shown = f"{unit(done)}/{unit(total)}" if total else ""
            bar.update(task, completed=done, total=total or None, description=show.clean(phase), shown=shown)

        yield report


class _Lines:
    """Progress in a log: a line when something has changed, but at most one every few seconds."""

    def __init__(self, unit: Callable[[float], str]) -> None:
        self.unit = unit
        self.last = ""
        self.at = float("-inf")

    def __call__(self, done: int, total: int, phase: str) -> None:
        line = show.clean(phase) + (f": {self.unit(done)}/{self.unit(total)} ({done / total:.0%})" if total else "")
        if line != self.last and time.monotonic() - self.at >= LINE_SECONDS:
            notice(line)
            self.last, self.at = line, time.monotonic()


def read_reporting(file: IO[bytes], size: int, phase: str) -> Iterable[bytes]:
    """The pieces of a file, with progress in bytes."""
    with reporting(show.size) as report:
        done = 0
        while piece := file.read(CHUNK):
            yield piece
            done += len(piece)
            report(done, size, phase)
