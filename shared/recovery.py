"""Rebuilding the ledger from storage: what Redis has lost, the files still know.

`jobs/<id>.json` holds each order, whether it should rest or end, and how it ended. A batch that had not ended goes on where its shard files end: nothing
that has a file is computed again. Any other job that had not ended is done anew.
"""

import time
from collections import Counter
from dataclasses import replace
from typing import Any

from shared import portions, results
from shared.jobs import Job, JobStore, State
from shared.storage import Storage


def recover(store: JobStore, storage: Storage) -> list[str]:
    """Enter the jobs that storage knows and the ledger does not; returns their ids. Raises Unavailable.

    The sweeper of any worker sends what is left to do.
    """
    recovered = []
    for name in storage.list("jobs"):
        record = storage.read_json(f"jobs/{name}")
        if not store.knows(record["id"]) and _enter(store, storage, _wanted(record)):
            recovered.append(record["id"])
    return recovered


def _wanted(record: dict[str, Any]) -> Job:
    """The job as its record leaves it; one that was asked to end has ended."""
    job = Job(**{**record, "state": State(record["state"]), "progress": {}, "cancel": False})
    if record["cancel"] and not job.state.terminal:
        return replace(job, state=State.CANCELLED, ended=time.time())
    return job


def _enter(store: JobStore, storage: Storage, job: Job) -> bool:
    if job.kind == "classify":
        return _enter_batch(store, storage, job)
    if job.state.terminal:
        return store.restore(job)
    return store.restore(_again(job, units=1, units_done=0), ["main"])


def _again(job: Job, **counts: int) -> Job:
    note = "Redis lost its memory of this job; it was rebuilt from the storage."
    state = State.PAUSED if job.pause else State.QUEUED
    return replace(job, state=state, ended=None, error=None, note=note, result={}, counts=counts)


def _enter_batch(store: JobStore, storage: Storage, job: Job) -> bool:
    done = results.shards(storage, job.id)
    counts: Counter[str] = Counter()
    histograms: dict[str, Counter[str]] = {"labels": Counter(), "confidence": Counter(), "reasons": Counter()}
    for name in done:
        tally = results.shard_tally(storage, job.id, name)
        counts.update(tally["counts"])
        for histogram, fields in tally["hashes"].items():
            histograms[histogram].update(fields)
    if job.state.terminal:
        return store.restore(job, histograms=histograms)
    if storage.exists(f"batches/{job.id}/info.json"):  # it ended, and nobody could say so any more
        info = storage.read_json(f"batches/{job.id}/info.json")
        return store.restore(replace(job, state=State.DONE, ended=info["created"], result=info, counts=dict(counts)), histograms=histograms)
    items, over = portions.planned(storage, job.id)
    units, left = _left(storage, job.id, done, items, job.spec["shard_size"])
    if not over:
        units, left = [*units, f"plan-{items}" if items else "plan"], left + 1
    last: dict[str, Any] = {"last": "finish"} if over else {}
    if over and not units:
        units, left = ["finish"], 1
    known = {"items": items, **counts, **({"planned": 1} if over else {}), "units": left, "units_done": 0}
    return store.restore(_again(job, **known), units, histograms, **last)


def _left(storage: Storage, batch: str, done: list[str], items: int, size: int) -> tuple[list[str], int]:
    """The stretches of items without a shard file, none across two portions, and how many shards they make."""
    stretches: list[str] = []
    shards = 0
    covered = [results.shard_range(name) for name in done]
    for portion in portions.names(storage, batch):
        position, end = results.shard_range(portion)
        inside = [span for span in covered if position <= span[0] < end]
        for first, last in [*inside, (end, end)]:
            if first > position:
                stretches.append(f"{position}-{first}/{size}")
                shards += -(-(first - position) // size)
            position = max(position, last)
    return stretches, shards
