"""What a batch of a million costs: memory, Redis, waiting, and what a second worker brings.

`make bench-scale`, or `python -m benchmarks.scale --help`. The items are scikit-learn's 1,797 handwritten digits, named again
and again by an uploaded list of paths; the model is trained on them at 32 pixels. All of it is real: Redis, web, workers.
"""

import argparse
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from benchmarks._system import Installation, LargestRedis, Peak, bench_folder, conclude, link_files, machine, median, say, table, trained
from cli.demo import TRAINING, write_digits
from shared.jobs import Job

SECTION = "bench-scale"
MODEL = "digits"
POLLS = 30  # looks at a batch, at least: a small one is over before the web has warmed up
SPEEDUP_RUNS = 3
SMALL = 100  # pictures of the batch that must not wait behind the million
PREDICTIONS = 7
# pages of the contact sheet: filters and orders of all kinds, near the beginning and far from it
SHEETS = (
    "order=margin", "order=-confidence&page=5000", "decision=review&order=margin", "label=3&order=confidence&page=40",
    "low=0.4&high=0.6&order=margin&page=100", "error=any", "page=10000",
)  # fmt: skip
LOOKS = 5  # at each of them


def main() -> int:
    """Measure, write, print; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=1_000_000, help="items of the largest batch; the others are parts of it")
    parser.add_argument("--dry", action="store_true", help="leave docs/benchmarks.md as it is")
    args = parser.parse_args()
    with bench_folder() as home:
        pictures = write_digits(home / "digits")
        bench = Bench(home, sorted(pictures.rglob("*.png")), trained(MODEL, pictures, TRAINING))
        lines, facts = _measure(bench, args.items)
    conclude(SECTION, lines, facts, write=not args.dry)
    return 0


class Bench:
    """The pictures and the model of a run."""

    def __init__(self, home: Path, files: list[Path], store: Path) -> None:
        self.home, self.files, self.store = home, files, store
        self._names = itertools.count()

    def installation(self) -> Installation:
        """A new one, without web and workers."""
        return Installation(self.home / f"system{next(self._names)}", self.store)

    def paths(self, items: int) -> Iterator[Path]:
        """So many paths, the same files again and again."""
        return itertools.islice(itertools.cycle(self.files), items)

    def source(self, darkroom: Installation, items: int) -> dict[str, Any]:
        """So many items as the source of a batch: an uploaded list of paths."""
        lines = "".join(f"{path}\n" for path in self.paths(items)).encode()
        headers = {"Content-Type": "text/plain"}
        answer = httpx.post(f"{darkroom.address}/api/v1/uploads/list", content=lines, headers=headers, timeout=600, trust_env=False)
        if answer.status_code == 201:
            return {"kind": "list", "id": answer.json()["id"]}
        if answer.status_code not in {404, 405}:
            raise SystemExit(f"The list of {items:,} paths was refused: {answer.text}")
        return self._folder(items)

    def _folder(self, items: int) -> dict[str, Any]:
        """A web that takes no lists: hard links in folders of ten thousand."""
        folder = self.home / f"links{items}"
        if not folder.exists():
            paths = self.paths(items)
            for n, part in enumerate(iter(lambda: list(itertools.islice(paths, 10_000)), [])):
                link_files(part, folder / f"{n:03d}", (f"{i:05d}.png" for i in range(len(part))))
        return {"kind": "folder", "path": str(folder)}


def _measure(bench: Bench, items: int) -> tuple[list[str], dict[str, Any]]:
    converting = _convert(bench)
    small, large = (_memory(bench, n) for n in (max(items // 500, 100), max(items // 5, 1000)))
    queue = [_noop(bench, n) for n in (items // 100, items // 10, items)]
    crowd = _crowded(bench, items)
    speedup = _speedup(bench, max(items // 50, 1000))
    facts = {
        "worker_peak_ratio": round(large["worker"] / small["worker"], 3),
        "web_peak_ratio": round(large["web"] / small["web"], 3),
        "redis_bytes_per_item": round(queue[-1]["redis_bytes"] / items, 2),
        "submit_seconds_1m": round(crowd["submit"], 3),
        "page_seconds_1m": round(queue[-1]["slowest_page"], 3),
        "us_per_item": [round(q["seconds"] / q["items"] * 1e6, 1) for q in queue],
        "two_worker_speedup": round(speedup["one"] / speedup["two"], 3) if speedup else None,
    }
    lines = [
        "## A batch of a million",
        "Items are scikit-learn's 1,797 handwritten digits, 32 x 32 pixels, named again and again by an uploaded list of paths; the model is a resnet18 at 32 pixels.",
        "",
        *machine("celery", "redis", "pyarrow", "torch", "gunicorn"),
        "",
        *_table(converting, small, large, queue, crowd, speedup, facts, items),
    ]
    return lines, facts


# -- memory -----------------------------------------------------------------------------------------------------------------------


def _convert(bench: Bench) -> int:
    """Peak bytes of a worker that sees the model for the first time on this machine: it converts the network, and keeps that."""
    with bench.installation() as darkroom:
        darkroom.web()
        with Peak(darkroom.worker().pid) as peak:
            darkroom.label(bench.source(darkroom, SMALL), MODEL)
    return peak.bytes


def _memory(bench: Bench, items: int) -> dict[str, float]:
    """Peak bytes of a worker and of the web, each with all its processes, while a batch runs and somebody watches it."""
    with bench.installation() as darkroom:
        web, worker = darkroom.web(), darkroom.worker()
        source = bench.source(darkroom, items)
        with Peak(worker.pid) as of_worker, Peak(web.pid) as of_web:
            started = time.perf_counter()
            job_id = darkroom.order(source, MODEL)
            _watch(darkroom, job_id, items)
            job = darkroom.finish(job_id)
            seconds = time.perf_counter() - started
        _expect(job, items)
    say(f"{items:,} items in {seconds:.0f} s: worker {of_worker.bytes / 2**20:.0f} MiB, web {of_web.bytes / 2**20:.0f} MiB")
    return {"items": items, "worker": of_worker.bytes, "web": of_web.bytes, "rate": items / seconds}


def _watch(darkroom: Installation, job_id: str, items: int) -> None:
    """Look at a batch as open pages and a script do, until it has ended and at least `POLLS` times."""
    get = darkroom.backend.store.get
    with httpx.Client(base_url=darkroom.address, timeout=60, trust_env=False) as client:
        ended = False
        for n in itertools.count():
            for path in _views(job_id, min(get(job_id).counts.get("done", 0), items), n):
                answer = client.get(path)
                if answer.status_code != 200:
                    raise SystemExit(f"GET {path} answered {answer.status_code}: {answer.text[:500]}")
            if ended and n >= POLLS:
                return
            ended = get(job_id).state.terminal
            time.sleep(0 if ended else 0.5)


def _views(job_id: str, done: int, n: int) -> list[str]:
    """What is looked at in the n-th round: the page and its live part, rows in every order and filter, and the API."""
    page, api = f"/batches/{job_id}", f"/api/v1/batches/{job_id}"
    start = max(done - 200, 0) * (n % 3) // 2  # the first rows, some in the middle, the newest
    queries = (f"start={start}", f"start={start}&decision=review&as=table", f"start={start}&label={n % 10}", "order=least-sure")
    return [*(f"{page}?{query}" for query in queries), f"{page}/live", api, f"{api}/rows?start={start}&limit=500"]


def _expect(job: Job, items: int) -> None:
    if (job.result["items"], job.result["errors"]) != (items, 0):
        raise SystemExit(f"Of {items:,} items {job.result['items']:,} were labelled, {job.result['errors']:,} with an error.")


# -- queue, ledger and Parquet alone -------------------------------------------------------------------------------------------------


def _noop(bench: Bench, items: int) -> dict[str, float]:
    """Seconds from order to results when no picture is looked at, and the most that Redis grew meanwhile, bytes."""
    with bench.installation() as darkroom:
        darkroom.web()
        darkroom.worker("benchmarks.noop_worker")
        darkroom.label(bench.source(darkroom, 1000), MODEL)
        source = bench.source(darkroom, items)
        with LargestRedis(darkroom.backend.store.redis) as memory:
            job, seconds = darkroom.label(source, MODEL)
        _expect(job, items)
        pages = _sheets(darkroom, job.id)
    say(f"{items:,} items without looking at a picture: {seconds:.1f} s, {seconds / items * 1e6:.0f} us an item; pages {pages}")
    return {"items": items, "seconds": seconds, "redis_bytes": memory.bytes - memory.before, **pages}


def _sheets(darkroom: Installation, job_id: str) -> dict[str, float]:
    """Seconds until the contact sheet of a batch is there: `first`, before anything of it was read, and the slowest page after that.

    A page's time is the median of several looks; each process of the web has looked once before the clock starts.
    """
    with httpx.Client(base_url=darkroom.address, timeout=120, trust_env=False) as client:

        def look(query: str) -> float:
            started = time.perf_counter()
            answer = client.get(f"/batches/{job_id}?{query}")
            if answer.status_code != 200:
                raise SystemExit(f"GET {answer.url} answered {answer.status_code}: {answer.text[:500]}")
            return time.perf_counter() - started

        first = look(SHEETS[0])
        with ThreadPoolExecutor(8) as threads:  # until both processes of the web have read the batch
            list(threads.map(look, SHEETS * 8))
        return {"first_page": first, "slowest_page": max(median([look(query) for _ in range(LOOKS)]) for query in SHEETS)}


# -- beside the million ---------------------------------------------------------------------------------------------------------------


def _crowded(bench: Bench, items: int) -> dict[str, float]:
    """Seconds to order the million, and how long a small batch and a single picture take while it runs."""
    with bench.installation() as darkroom, httpx.Client(base_url=f"{darkroom.address}/api/v1", timeout=600, trust_env=False) as client:
        darkroom.web()
        darkroom.worker()
        few = bench.source(darkroom, SMALL)
        darkroom.label(few, MODEL)
        alone = _predictions(client, bench.files[0])
        order = {"model": MODEL, "source": bench.source(darkroom, items)}
        started = time.perf_counter()
        answer = client.post("/batches", json=order)
        submit = time.perf_counter() - started
        if answer.status_code != 202:
            raise SystemExit(f"The batch of {items:,} items was refused: {answer.text}")
        million = answer.json()["id"]
        get = darkroom.backend.store.get
        darkroom.wait(lambda: get(million).counts.get("done", 0) > 0, 600, "the million to start")
        job = darkroom.finish(darkroom.order(few, MODEL))
        beside = _predictions(client, bench.files[0])
        if get(million).state.terminal:
            say("the large batch ended before the small one and the single pictures had; these figures are not beside it")
        else:
            client.post(f"/jobs/{million}/cancel")
            darkroom.wait(lambda: get(million).state.terminal, 60, "the million to be cancelled")
    found = {
        "submit": submit,
        "starts": (job.started or 0) - job.created,
        "ends": (job.ended or 0) - job.created,
        "alone": alone,
        "beside": beside,
    }
    say("beside the million: " + ", ".join(f"{name} {value:.3f} s" for name, value in found.items()))
    return found


def _predictions(client: httpx.Client, picture: Path) -> float:
    """Seconds that a single picture takes, warm."""

    def once() -> float:
        started = time.perf_counter()
        answer = client.post(
            "/predict", params={"model": MODEL}, content=picture.read_bytes(), headers={"Content-Type": "application/octet-stream"}
        )
        if answer.status_code != 200:
            raise SystemExit(f"A single picture was not labelled: {answer.text}")
        return time.perf_counter() - started

    return median([once() for _ in range(PREDICTIONS + 1)][1:])


# -- a second worker -------------------------------------------------------------------------------------------------------------------


def _speedup(bench: Bench, items: int) -> dict[str, float] | None:
    """Seconds of one batch with one worker on a core, and with two on a core each; None where there is one core alone."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        say("one core alone: nothing to say about a second worker")
        return None
    with bench.installation() as darkroom:
        darkroom.web()
        source, warm_up = bench.source(darkroom, items), bench.source(darkroom, 1000)
        darkroom.worker(cores={cores[0]})

        def label() -> float:
            darkroom.label(warm_up, MODEL, shard_size=32)  # shards enough for each worker to get some
            return darkroom.label(source, MODEL)[1]

        times: dict[str, list[float]] = {"one": [], "two": []}
        for _ in range(SPEEDUP_RUNS):
            times["one"].append(label())
            second = darkroom.worker(cores={cores[1]})
            times["two"].append(label())
            darkroom.stop(second)
            say(f"{items:,} items: one worker {times['one'][-1]:.1f} s, two {times['two'][-1]:.1f} s")
    return {name: median(values) for name, values in times.items()} | {"items": items}


# -- what came out ---------------------------------------------------------------------------------------------------------------------


def _table(
    converting: int,
    small: dict[str, float],
    large: dict[str, float],
    queue: list[dict[str, float]],
    crowd: dict[str, float],
    speedup: dict[str, float] | None,
    facts: dict[str, Any],
    items: int,
) -> list[str]:
    mib: Callable[[float], str] = lambda n: f"{n / 2**20:.0f} MiB"  # noqa: E731 - shorter than a function
    rows = [
        *(
            [
                f"peak memory of {what}, {small['items']:,} -> {large['items']:,} items",
                f"{mib(small[key])} -> {mib(large[key])}, ratio {facts[f'{key}_peak_ratio']}",
            ]
            for key, what in (("worker", "a worker and its processes"), ("web", "the web, watched all the while"))
        ),
        ["peak memory of a worker that converts the network, once a machine", mib(converting)],
        [f"labelled meanwhile, {large['items']:,} items", f"{large['rate']:.0f} images/s"],
        [f"Redis at its largest, {items:,} items", f"{facts['redis_bytes_per_item']} bytes an item"],
        [f"ordering {items:,} items, until 202", f"{crowd['submit']:.3f} s"],
        *([f"queue, ledger and Parquet alone, {q['items']:,} items", f"{q['seconds'] / q['items'] * 1e6:.1f} us an item"] for q in queue),
        *(
            [
                f"the contact sheet of {q['items']:,} rows: when first asked, then the slowest page of {len(SHEETS)}",
                f"{q['first_page']:.2f} s, {q['slowest_page'] * 1e3:.0f} ms",
            ]
            for q in queue
        ),
        [f"a batch of {SMALL} beside the {items:,}: until it starts", f"{crowd['starts']:.2f} s"],
        [f"a batch of {SMALL} beside the {items:,}: until it is done", f"{crowd['ends']:.2f} s"],
        ["a single picture, warm, nothing else running", f"{crowd['alone'] * 1e3:.0f} ms"],
        [f"a single picture, warm, beside the {items:,}", f"{crowd['beside'] * 1e3:.0f} ms"],
    ]
    if speedup:
        rows.append(
            [
                f"{speedup['items']:,} items: one worker on a core, two on a core each",
                f"{speedup['one']:.1f} s, {speedup['two']:.1f} s: {facts['two_worker_speedup']} times",
            ]
        )
    notes = "Memory is the sum of each process's own peak, looked at 5 times a second. Of `queue, ledger and Parquet alone` only reading a picture and the network are left out."
    return [*table(["what", "measured"], rows), "", notes]


if __name__ == "__main__":
    sys.exit(main())
