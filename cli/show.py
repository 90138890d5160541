"""What people and scripts read on standard output: tables, facts, one JSON value."""

import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import click


def as_json(value: Any) -> None:
    """One JSON value and nothing else."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], numbers: Sequence[str] = ()) -> None:
    """A table on a terminal, lines of tab-separated cells elsewhere; the columns in `numbers` are set to the right."""
    if not sys.stdout.isatty():
        for row in [columns, *rows]:
            click.echo("\t".join(clean(cell) for cell in row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(clean(cell)) for cell in row))  # Text: a class called [red] is no markup
    Console().print(made)


def facts(pairs: Iterable[tuple[str, Any]]) -> None:
    """Names and values, one pair a line; pairs without a value are left out."""
    kept = [(name, clean(value)) for name, value in pairs if value is not None and value != ""]
    width = max((len(name) for name, _ in kept), default=0)
    for name, value in kept:
        click.echo(f"{name:<{width}}  {value}")


def counts(title: str, values: dict[str, int]) -> None:
    """A histogram as a table, the largest first, with shares."""
    total = sum(values.values())
    rows = [(name, f"{n:,}", f"{n / total:.1%}") for name, n in sorted(values.items(), key=lambda pair: (-pair[1], pair[0]))]
    if rows:
        table((title, "images", "share"), rows, ("images", "share"))


def clean(value: Any) -> str:
    """Text for a terminal: names come from strangers, and a control character could rewrite the screen."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str("" if value is None else value))


def ago(seconds: float | None, now: float | None = None) -> str:
    """`3 min ago`, from seconds since 1970."""
    if seconds is None:
        return ""
    passed = max(0.0, (time.time() if now is None else now) - seconds)
    return "just now" if passed < 5 else f"{duration(passed)} ago"


def duration(seconds: float | None) -> str:
    """`42 s`, `3 min`, `5 h`, `2 d`."""
    if seconds is None:
        return ""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


def size(count: float) -> str:
    """`1.5 GiB`."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"


def rate(value: float | None) -> str:
    """An error rate as a percentage."""
    return "" if value is None else f"{value:.1%}"


def jobs(found: list[dict[str, Any]]) -> None:
    """A table of jobs."""
    rows = [(job["id"], job["state"], job["title"], position(job), ago(job["created"])) for job in found]
    table(("id", "state", "job", "progress", "ordered"), rows, ("progress",))


def job(found: dict[str, Any]) -> None:
    """A job with all that is known of it."""
    begun = found.get("started")
    facts(
        [
            ("id", found["id"]),
            ("job", found["title"]),
            ("state", found["state"]),
            ("error", found["error"]),
            ("note", found["note"]),
            ("progress", position(found)),
            ("ordered", ago(found["created"])),
            ("took", duration(found["ended"] - begun) if begun and found["ended"] else None),
            *((name.replace("_", " "), _short(value)) for name, value in found["result"].items()),
        ]
    )


def _short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value) if isinstance(value, dict | list) else value


def measure(found: dict[str, Any]) -> tuple[int, int]:
    """(done, total) of a job; (0, 0) while that is not known."""
    counted, progress = found["counts"], found["progress"]
    if "items" in counted:  # a batch is counted over its shards
        return counted.get("done", 0), counted["items"]
    return progress.get("done") or 0, progress.get("total") or 0


def position(found: dict[str, Any]) -> str:
    """`1,024/10,000`, or nothing."""
    done, total = measure(found)
    return f"{done:,}/{total:,}" if total else ""


def garbage(heaps: list[dict[str, Any]], freed: dict[str, dict[str, int]], as_json_: bool) -> None:
    """What `darkroom gc` found, and what it freed: nothing if it only looked."""
    if as_json_:
        as_json({"found": heaps, "freed": freed})
        return
    some = [heap for heap in heaps if heap["files"] or heap["younger"]]
    rows = [(h["kind"], f"{h['files']:,}", size(h["bytes"]), f"{h['younger']:,}", h["what"]) for h in some]
    if rows:
        table(("kind", "files", "size", "too young", "what"), rows, ("files", "size", "too young"))
    for heap in (heap for heap in some if heap["examples"]):
        more = f" and {heap['files'] - len(heap['examples']):,} more" if heap["files"] > len(heap["examples"]) else ""
        click.echo(f"{heap['kind']}: {', '.join(map(clean, heap['examples']))}{more}")
        if heap["waits"]:
            click.echo(heap["waits"])
    if held := next((heap["held_by"] for heap in some if heap["held_by"]), ""):
        click.echo(f"What was written since the job {held} was ordered is too young until that has ended.")
    ready = [heap for heap in heaps if heap["files"] and not heap["waits"]]
    if freed:
        files, room = (sum(told[key] for told in freed.values()) for key in ("files", "bytes"))
        click.echo(f"{files:,} {'file was' if files == 1 else 'files were'} deleted: {size(room)}.")
    elif ready:
        click.echo(f"Nothing was deleted. `darkroom gc --delete` frees {size(sum(heap['bytes'] for heap in ready))}.")
    else:
        click.echo("There is nothing to free.")
