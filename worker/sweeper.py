"""Finds work that was lost on the way: leases that ran out, and hints that the queue no longer holds.

A thread in every worker's main process; one of them at a time holds the lock.

A hint is sent again when its queue is empty and it was not claimed for 5 seconds, or after a minute in any case, and
twice as long each time after that: a sweep too eager would fill the queue with copies.
"""

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import structlog

from shared.errors import DarkroomError, Unavailable
from shared.jobs import JobStore
from shared.queue import QUEUE_OF

log = structlog.get_logger()
EVERY = 2.0  # seconds
LOST_AFTER = 5.0  # seconds unclaimed while the queue is empty
STALE_AFTER = 60.0  # seconds unclaimed while the queue is busy


def sweep(store: JobStore, send: Callable[[str, str, str], None]) -> int:
    """One pass; returns how many units were sent again. Raises Unavailable."""
    for job_id, unit in store.expire_leases():
        log.warning("lease ran out", job=job_id, unit=unit)
    kinds: dict[str, str] = {}
    lengths: dict[str, int] = {}
    sent = 0
    for job_id, unit, age, times in store.waiting():
        if age < LOST_AFTER:
            continue
        try:
            kind = kinds.setdefault(job_id, store.get(job_id).kind)
        except Unavailable:
            raise
        except DarkroomError:
            kind = "classify"  # a job that is gone; resend forgets it
        queue = QUEUE_OF[kind]
        if queue not in lengths:
            lengths[queue] = int(store.redis.llen(queue))
        if (lengths[queue] == 0 or age > STALE_AFTER * 2 ** min(times, 6)) and store.resend(job_id, unit):
            send(kind, job_id, unit)
            sent += 1
    if sent:
        log.info("sent again", units=sent)
    return sent


def keep_sweeping(store: JobStore, send: Callable[[str, str, str], None], name: str, facts: dict[str, Any], stop: threading.Event) -> None:
    """Announce this worker and sweep when it is its turn, until `stop` is set."""
    away = False
    while True:
        try:
            store.announce(name, facts)
            if store.sweeping(name):
                sweep(store, send)
            away = False
        except Unavailable as error:
            if not away:
                log.warning("Redis is away", error=str(error))
            away = True
        if stop.wait(EVERY):
            break
    with contextlib.suppress(Unavailable):
        store.depart(name)
