"""What the web stands on: settings, storage, the ledger, the queue. Made once in `create_app`, read with `backend()`."""

from dataclasses import dataclass
from functools import cached_property

from celery import Celery
from flask import current_app

from shared.errors import DarkroomError, NotFound
from shared.jobs import Job, JobStore, connect
from shared.queries import Queries
from shared.queue import make_app, send
from shared.settings import Settings
from shared.storage import Storage


@dataclass
class Backend:
    """Nothing connects before it is first used, and after gunicorn has forked."""

    settings: Settings

    @cached_property
    def storage(self) -> Storage:
        """Files."""
        return Storage(self.settings.storage, self.settings.cache)

    @cached_property
    def queries(self) -> Queries:
        """The rows of batches, filtered and sorted."""
        return Queries(self.storage)

    @cached_property
    def store(self) -> JobStore:
        """The ledger. Raises DarkroomError when no Redis is configured."""
        return JobStore(connect(self._redis_url), self.settings.lease_seconds)

    @cached_property
    def celery(self) -> Celery:
        """The queue. Raises DarkroomError when no Redis is configured."""
        return make_app(self._redis_url)

    def send(self, name: str, job_id: str, unit: str) -> None:
        """Hint in the list `name` of the queue that a unit waits. Raises Unavailable."""
        send(self.celery, name, job_id, unit)

    @property
    def _redis_url(self) -> str:
        if not self.settings.redis_url:
            raise DarkroomError("DARKROOM_REDIS_URL is not set. `darkroom up` starts everything, a Redis of its own included.")
        return self.settings.redis_url


def backend() -> Backend:
    """The backend of the app that answers this request."""
    return current_app.extensions["darkroom"]  # type: ignore[no-any-return]


def job_of(job_id: str) -> Job:
    """A job of the ledger. Raises NotFound."""
    return backend().store.get(job_id)


def batch_of(job_id: str) -> Job:
    """The job of a batch. Raises NotFound."""
    job = job_of(job_id)
    if job.kind != "classify":
        raise NotFound(f"The job {job_id} is no batch; it is of the kind {job.kind}.")
    return job
