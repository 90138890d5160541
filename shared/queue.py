"""Celery on Redis: the app, the queues, and how a unit of work is sent.

Tasks are named, not imported, so that the web needs no worker code. A message carries ids only; it is a hint that there is
work, and the ledger decides. Each setting below has a measured reason: see "Why Celery is set this way" in docs/architecture.md.
"""

from celery import Celery
from kombu.entity import Queue
from kombu.exceptions import OperationalError
from kombu.utils.scheduling import priority_cycle

from shared.errors import Unavailable

UNIT_TASK = "darkroom.unit"
PREDICT_TASK = "darkroom.predict"
QUEUES = ("predict", "classify", "train", "scrape")  # a worker of several queues serves them in this order
QUEUE_OF = {"import": "scrape", "scrape": "scrape", "train": "train", "classify": "classify"}


class in_served_order(priority_cycle):  # noqa: N801 - kombu names its cycles in lower case
    """Take from `predict` before anything else, then in the order of QUEUES."""

    def consume(self, n: int) -> list[str]:
        """The first n queues, in the order they are served."""
        return sorted(self.items[:n], key=lambda queue: QUEUES.index(queue) if queue in QUEUES else len(QUEUES))


def make_app(redis_url: str) -> Celery:
    """A Celery app on this Redis. Nothing connects until something is sent or a worker starts."""
    # kombu has a name of its own for a unix socket
    app = Celery("darkroom", broker=redis_url.replace("unix://", "redis+socket://", 1), set_as_current=False)
    app.conf.update(
        task_queues=[Queue(name) for name in QUEUES],  # type: ignore[no-untyped-call]
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


def send(app: Celery, kind: str, job_id: str, unit: str) -> None:
    """Hint that a unit waits. Raises Unavailable when Redis cannot be reached; the sweeper sends it again then."""
    _send(app, UNIT_TASK, [job_id, unit], QUEUE_OF[kind])


def send_predict(app: Celery, question_id: str) -> None:
    """Hint that a single image waits. Raises Unavailable."""
    _send(app, PREDICT_TASK, [question_id], "predict")


def _send(app: Celery, task: str, args: list[str], queue: str) -> None:
    try:
        app.send_task(task, args=args, queue=queue, ignore_result=True, retry=False)
    except OperationalError as error:
        raise Unavailable(
            "Redis cannot be reached, so nothing was queued. Start it with `darkroom up`, or check DARKROOM_REDIS_URL."
        ) from error
