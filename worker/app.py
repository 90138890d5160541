"""The Celery worker: one task of a few lines. The only file of the pipeline's side that knows Celery's worker.

The main process holds the sweeper's thread; the pool's one process runs the units, starts the children, and in threads
passes single images to the child that classifies and looks at the rules.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import structlog
from celery import Celery
from celery.signals import setup_logging, worker_process_init, worker_process_shutdown, worker_ready

from shared.jobs import JobStore, connect, new_id
from shared.log import configure
from shared.queue import QUEUES, UNIT_TASK, lists_of, make_app, send
from shared.settings import Settings
from shared.storage import Storage
from worker.child import die_with
from worker.run import Worker, keep_answering, keep_explaining, run_unit
from worker.sweeper import keep_rules, keep_sweeping

LINGER = 20  # seconds from being told to stop; five are Celery's for the unit under way
log = structlog.get_logger()


def serve(settings: Settings, queues: list[str], name: str | None = None) -> None:
    """Work until told to stop: SIGTERM or SIGQUIT give the current unit back, SIGINT finishes it first."""
    configure(settings.log_level)
    queues = [queue for queue in QUEUES if queue in queues]
    name = name or f"{socket.gethostname()}-{'-'.join(queues)}-{new_id()[-4:]}"
    app = make_app(settings.redis_url or "")
    _add_task(app, settings, queues, name)
    depart = _watch(app, settings, queues, name)
    where = ["--queues", ",".join(lists_of(queues)), "--hostname", f"{name}@%h", "--pool", "prefork", "--concurrency", "1"]
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--disable-prefetch", "--loglevel", settings.log_level]
    try:
        app.worker_main(["worker", *where, *quiet])
    finally:
        depart()


def _add_task(app: Celery, settings: Settings, queues: list[str], name: str) -> None:
    workers: list[Worker] = []  # made in the pool's process, after the fork

    @app.task(name=UNIT_TASK)
    def unit(job_id: str, unit_name: str) -> None:
        run_unit(workers[0], job_id, unit_name)

    main_pid = os.getpid()

    @worker_process_init.connect(weak=False)
    def prepare(**_: Any) -> None:
        die_with(main_pid)
        # Celery leaves SIGTERM to kill the process; as an exception it lets the unit be given back
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        store = JobStore(connect(settings.redis_url or ""), settings.lease_seconds)
        lists = lists_of(queues)
        workers.append(Worker(settings, name, lists, store, Storage(settings.storage, settings.cache), partial(send, app)))
        if "predict" in queues:
            for keep in (keep_answering, keep_explaining):
                threading.Thread(target=keep, args=(workers[0],), daemon=True).start()
        threading.Thread(target=keep_rules, args=(workers[0], name), daemon=True).start()

    @worker_process_shutdown.connect(weak=False)
    def end(**_: Any) -> None:
        for w in workers:
            w.drop_warm()


def _watch(app: Celery, settings: Settings, queues: list[str], name: str) -> Callable[[], None]:
    """Announce the worker and sweep, from the moment it consumes until the function returned here is called."""
    stop = threading.Event()
    threads: list[threading.Thread] = []
    facts = {"name": name, "host": socket.gethostname(), "pid": os.getpid(), "queues": queues, "device": device(), "started": time.time()}

    @worker_ready.connect(weak=False)
    def start(**_: Any) -> None:
        _leave_in_time()
        store = JobStore(connect(settings.redis_url or ""), settings.lease_seconds)
        thread = threading.Thread(target=keep_sweeping, args=(store, partial(send, app), name, facts, stop), daemon=True)
        threads.append(thread)
        thread.start()

    @setup_logging.connect(weak=False)
    def ours(**_: Any) -> None:
        """Keep the logging configured above: Celery would put its own in its place."""

    def finish() -> None:
        stop.set()
        for thread in threads:
            thread.join(timeout=5)

    return finish


def _leave_in_time() -> None:
    """Lets SIGTERM and SIGQUIT end this process `LINGER` seconds later, if Celery has not.

    Its handler runs wherever the signal finds it. In the middle of a message of the pool's process it waits for the rest of it, which nobody reads, for ever
    (billiard 4.3.2, celery 5.7.0). Nothing is lost: the pool's process dies with this one, and what it held is in the ledger.
    """
    for number in (signal.SIGTERM, signal.SIGQUIT):
        celerys = signal.getsignal(number)

        def handle(told: int, frame: FrameType | None, celerys: Any = celerys) -> None:
            leave = threading.Timer(LINGER, _leave)
            leave.daemon = True
            leave.start()
            celerys(told, frame)

        signal.signal(number, handle)


def _leave() -> None:
    log.warning("the worker did not end when it was told to; it is ended")
    os._exit(1)


def device() -> str:
    """What this worker computes on, found without torch: the names of the GPUs, or the number of processors."""
    cards = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    models = [line.partition(":")[2].strip() for card in cards for line in card.read_text().splitlines() if line.startswith("Model")]
    return ", ".join(models) or f"CPU, {len(os.sched_getaffinity(0))} cores"
