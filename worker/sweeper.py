"""Finds work that was lost on the way: leases that ran out, and hints that the queue no longer holds.

A thread in every worker's main process; one of them at a time holds the lock.

A hint is sent again when its queue is empty and it was not claimed for 5 seconds, or after a minute in any case, and
twice as long each time after that: a sweep too eager would fill the queue with copies.

Whoever sweeps also looks at the rules (shared/rules.py), in a thread of its own in the pool's process: a storage that is slow must
not keep leases from being taken back.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import structlog

from shared import rules
from shared.errors import NotFound, Unavailable
from shared.jobs import JobStore
from shared.orders import Desk
from shared.queue import LISTS, list_of
from shared.storage import store_errors

log = structlog.get_logger()
EVERY = 2.0  # seconds
LOST_AFTER = 5.0  # seconds unclaimed while the queue is empty
STALE_AFTER = 60.0  # seconds unclaimed while the queue is busy
RULES_EVERY = 10.0  # seconds between two looks at the rules


def sweep(store: JobStore, send: Callable[[str, str, str], None]) -> int:
    """One pass; returns how many units were sent again. Raises Unavailable."""
    for job_id, unit in store.expire_leases():
        log.warning("lease ran out", job=job_id, unit=unit)
    lists: dict[str, str] = {}
    lengths: dict[str, int] = {}
    sent = 0
    for job_id, unit, age, times in store.waiting():
        if age < LOST_AFTER:
            continue
        if job_id not in lists:
            lists[job_id] = _list_of(store, job_id)
        name = lists[job_id]
        if name not in lengths:
            lengths[name] = int(store.redis.llen(name))
        if (lengths[name] == 0 or age > STALE_AFTER * 2 ** min(times, 6)) and store.resend(job_id, unit):
            send(name, job_id, unit)
            sent += 1
    if sent:
        log.info("sent again", units=sent)
    return sent


def _list_of(store: JobStore, job_id: str) -> str:
    try:
        job = store.get(job_id)
    except NotFound:
        return LISTS[0]  # the job is gone; `resend` forgets it
    return list_of(job.kind, job.spec)


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


def keep_rules(desk: Desk, name: str) -> None:
    """Look at the rules now and then, while this worker is the one that sweeps; for ever."""
    told: list[str] = []
    while True:
        try:
            wrong = rules.look_at_all(desk) if desk.store.sweeping(name) else []
        except (Unavailable, *store_errors()) as error:
            wrong = [str(error)]
        if wrong and wrong != told:
            log.warning("rules could not be looked at", why=wrong)
        told = wrong
        time.sleep(RULES_EVERY)
