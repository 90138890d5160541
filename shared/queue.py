"""Celery on Redis: the app, the queues, and how a unit of work is sent.

Tasks are named, not imported, so that the web needs no worker code. A message carries ids only; it is a hint that there is
work, and the ledger decides. Each setting below has a measured reason: see "Why Celery is set this way" in docs/architecture.md.
"""

from typing import Any

from celery import Celery
from kombu.entity import Queue
from kombu.exceptions import OperationalError
from kombu.utils.scheduling import priority_cycle

from shared.errors import Unavailable
from shared.jobs import EXPLAIN, QUESTIONS

UNIT_TASK = "darkroom.unit"
QUEUES = ("predict", "classify", "train", "scrape")  # what a worker is started for
# what Celery reads, in the order it is served; nothing is ever sent to `predict`, whose questions have a list of their own in shared/jobs.py
LISTS = ("predict", "classify.high", "classify", "classify.low", "train", "scrape")
QUEUE_OF = {
    "import": "scrape",
    "scrape": "scrape",
    "look": "scrape",
    "pack": "scrape",
    "train": "train",
    "export": "train",
    "adopt": "train",
    "classify": "classify",
}


def list_of(kind: str, spec: dict[str, Any]) -> str:
    """The list in Redis that a job's units are sent to: batches have one a priority."""
    priority = spec.get("priority", "normal")
    return QUEUE_OF[kind] if priority == "normal" else f"{QUEUE_OF[kind]}.{priority}"


def lists_of(queues: list[str]) -> list[str]:
    """The lists that a worker of these queues reads, in the order it serves them."""
    return [name for name in LISTS if name.partition(".")[0] in queues]


class in_served_order(priority_cycle):  # noqa: N801 - kombu names its cycles in lower case
    """Take from a list only when those before it in LISTS are empty."""

    def consume(self, n: int) -> list[str]:
        """The first n lists, in the order they are served."""
        return sorted(self.items[:n], key=lambda name: LISTS.index(name) if name in LISTS else len(LISTS))


def make_app(redis_url: str) -> Celery:
    """A Celery app on this Redis. Nothing connects until something is sent or a worker starts."""
    # kombu has a name of its own for a unix socket
    app = Celery("darkroom", broker=redis_url.replace("unix://", "redis+socket://", 1), set_as_current=False)
    app.conf.update(
        task_queues=[Queue(name) for name in LISTS],  # type: ignore[no-untyped-call]
        task_default_queue="scrape",
        task_create_missing_queues=False,
        task_acks_late=True,
        task_reject_on_worker_lost=False,  # the lease and the sweeper bring work back, and count attempts; Celery cannot
        task_ignore_result=True,
        worker_prefetch_multiplier=1,
        worker_concurrency=1,
        worker_pool="prefork",
        worker_disable_prefetch=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_soft_shutdown_timeout=5,
        worker_enable_soft_shutdown_on_idle=False,
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        accept_content=["json"],
        task_serializer="json",
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "visibility_timeout": 3600,
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 1,
            "queue_order_strategy": "shared.queue:in_served_order",
            "socket_timeout": 30,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 25,
            "max_retries": 2,
        },
    )
    return app


def send(app: Celery, name: str, job_id: str, unit: str) -> None:
    """Hint in the list `name` that a unit waits. Raises Unavailable when Redis cannot be reached; the sweeper sends it again then."""
    try:
        app.send_task(UNIT_TASK, args=[job_id, unit], queue=name, ignore_result=True, retry=False)
    except OperationalError as error:
        raise Unavailable(
            "Redis cannot be reached, so nothing was queued. Start it with `darkroom up`, or check DARKROOM_REDIS_URL."
        ) from error


def lengths(client: Any) -> dict[str, int]:
    """How many messages and questions wait for each queue of QUEUES. `client`: a Redis client."""
    names = [*LISTS[1:], QUESTIONS, EXPLAIN]
    pipe = client.pipeline(transaction=False)
    for name in names:
        pipe.llen(name)
    found = dict(zip(names, pipe.execute(), strict=True))
    return {
        queue: sum(int(n) for name, n in found.items() if (name.partition(".")[0] if name in LISTS else "predict") == queue)
        for queue in QUEUES
    }
