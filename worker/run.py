"""One unit of work, from its claim to its end: the only place where a job ends.

    claim -> call the child -> heartbeat while it works -> commit, finish, release or fail

The heartbeat renews the lease, publishes progress and learns of a cancel. When Redis is away the child goes on, and the
outcome waits until it is back; when the lease was lost meanwhile, nothing is committed.
"""

import base64
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog

from shared.errors import Unavailable
from shared.jobs import Claim, Job, JobStore, State, keep_record
from shared.results import shard_name, shard_range
from shared.settings import Settings
from shared.storage import Storage
from worker.device import Child, ChildDied

log = structlog.get_logger()
T = TypeVar("T")
GRACE = 10  # seconds a child has to end when it was asked to stop
PREDICT_SECONDS = 60  # a single image that takes longer is given up; nobody waits for it any more


class Lost(Exception):
    """The lease went to another worker: stop, commit nothing."""


class Stopped(Exception):
    """The job was cancelled and its child has stopped."""


class Failed(Exception):
    """The job cannot be done; the message is the sentence for the user."""


@dataclass
class Worker:
    """What one worker process works with. The warm child stays between two shards."""

    settings: Settings
    name: str
    store: JobStore
    storage: Storage
    send: Callable[[str, str, str], None]  # kind, job, unit: hints the queue
    warm: Child | None = None

    def warm_child(self) -> Child:
        """The child that classifies; a new one if the last has died."""
        if self.warm is None or not self.warm.alive:
            self.drop_warm()
            self.warm = Child(self.settings)
        return self.warm

    def drop_warm(self) -> None:
        """End the child that classifies."""
        if self.warm is not None:
            self.warm.kill()
            self.warm = None


def run_unit(worker: Worker, job_id: str, unit: str) -> None:
    """Do one unit of work, if it is still to be done."""
    claim = worker.store.claim(job_id, unit, worker.name)
    if claim is None:
        log.debug("nothing to do", job=job_id, unit=unit)
        return
    job = worker.store.get(job_id)
    with structlog.contextvars.bound_contextvars(job=job_id, unit=unit, attempt=claim.attempt, worker=worker.name):
        log.info("started", kind=job.kind)
        try:
            _settle(worker, job, claim)
        except Lost:
            log.warning("lease lost; nothing was committed")
        except SystemExit:  # the worker was told to stop: the unit is given back as it was
            _put_down(worker, claim)
            raise


def _settle(worker: Worker, job: Job, claim: Claim) -> None:
    """Do the work and map its outcome to a state."""
    try:
        _do(worker, job, claim)
    except Stopped:
        _patiently(worker, lambda: worker.store.release(claim, counted=False))
        log.info("cancelled")
    except Failed as error:
        _finish(worker, claim, State.FAILED, error=str(error))
        log.warning("failed", error=str(error))
    except ChildDied as death:
        log.warning("the child process died", how=str(death))
        _after_death(worker, job, claim, str(death))
    if _patiently(worker, lambda: worker.store.get(job.id)).state.terminal:
        _patiently(worker, lambda: keep_record(worker.store, worker.storage, job.id))


def _after_death(worker: Worker, job: Job, claim: Claim, how: str) -> None:
    """A training is not silently started over; other work is tried again, and a shard is split in the end."""
    if job.kind == "train":
        _finish(worker, claim, State.FAILED, error=f"The training process {how}. Nothing of this run was kept.")
    elif job.kind != "classify" and claim.attempt >= worker.settings.max_attempts:
        _finish(worker, claim, State.FAILED, error=f"The process that read the images {how}, {claim.attempt} times.")
    else:
        _patiently(worker, lambda: worker.store.release(claim, note=f"Attempt {claim.attempt}: the process {how}."))


def _do(worker: Worker, job: Job, claim: Claim) -> None:
    exhausted = claim.attempt > worker.settings.max_attempts
    if job.kind == "classify":
        _classify(worker, job, claim, exhausted)
        return
    if exhausted:
        raise Failed(f"The worker stopped answering, {worker.settings.max_attempts} times; the work was given up.")
    child = Child(worker.settings, 0 if job.kind == "train" else worker.settings.child_memory_bytes)
    try:
        if job.kind == "train":
            result = _call(worker, claim, child, "train", spec=job.spec, job=job.id)
        else:
            result = _call(worker, claim, child, "dataset", kind=job.kind, spec=job.spec, job=job.id)
    finally:
        child.kill()
    _finish(worker, claim, State.DONE, result=result)
    log.info("done", **result)


def _classify(worker: Worker, job: Job, claim: Claim, exhausted: bool) -> None:
    """Plan, one shard, or finish."""
    common = {"spec": job.spec, "job": job.id}
    if claim.unit == "plan":
        if exhausted:
            raise Failed(f"The worker stopped answering while it listed the items, {worker.settings.max_attempts} times.")
        plan = _call(worker, claim, worker.warm_child(), "plan", **common)
        _commit(worker, job, claim, {"counts": {"items": plan["items"]}}, plan["shards"], "finish")
    elif claim.unit == "finish":
        result = _call(worker, claim, worker.warm_child(), "finish", started=job.started, **common)
        _finish(worker, claim, State.DONE, result=result)
    elif not exhausted:
        tally = _call(worker, claim, worker.warm_child(), "shard", shard=claim.unit, **common)
        _commit(worker, job, claim, tally)
    else:
        _isolate(worker, job, claim, common)


def _isolate(worker: Worker, job: Job, claim: Claim, common: dict[str, Any]) -> None:
    """A shard on which workers keep dying: split it, until the item at fault is alone and becomes a row with an error."""
    first, last = shard_range(claim.unit)
    if last - first > 1:
        middle = (first + last) // 2
        log.warning("workers die on this shard; it is split")
        _send(worker, job, worker.store.split(claim, [shard_name(first, middle), shard_name(middle, last)]))
        return
    tally = _call(worker, claim, worker.warm_child(), "write_off", shard=claim.unit, **common)
    _commit(worker, job, claim, tally)


def _call(worker: Worker, claim: Claim, child: Child, name: str, **args: Any) -> dict[str, Any]:
    """Call the child and keep the lease alive until it answers. Raises Lost, Stopped, Failed or ChildDied."""
    beat = _Heartbeat(worker, claim, child)
    for message in child.call(name, args, worker.settings.heartbeat_seconds):
        beat.hear(message or {})
        if message is None:
            continue
        if "result" in message:
            return message["result"]  # type: ignore[no-any-return]
        if "cancelled" in message:
            raise Stopped
        if "failed" in message:
            raise Failed(message["failed"])
        if "bug" in message:
            log.error("bug", traceback=message["bug"])
            raise Failed(f"This is a bug in Darkroom: {message['bug'].strip().splitlines()[-1]}")
    raise AssertionError("a call ends with an outcome")


class _Heartbeat:
    """Publishes what the child says, renews the lease, and passes a cancel on."""

    def __init__(self, worker: Worker, claim: Claim, child: Child) -> None:
        self.worker, self.claim, self.child = worker, claim, child
        self.progress: dict[str, Any] | None = None
        self.rows: dict[str, list[Any]] = {}
        self.sent: dict[str, int] = {}
        self.last = time.monotonic()
        self.stopping_since: float | None = None

    def hear(self, message: dict[str, Any]) -> None:
        """Take a message of the child; beat when it is time. Raises Lost, or Stopped when a child had to be killed."""
        if "progress" in message:
            self.progress = message["progress"]
        elif "row" in message:
            self.rows.setdefault(message["row"][0], []).append(message["row"][1])
        final = bool(message.keys() & {"result", "failed"})
        if final or time.monotonic() - self.last >= self.worker.settings.heartbeat_seconds:
            self.last = time.monotonic()
            try:
                self._beat()
            except Unavailable:
                log.warning("Redis is away; the work goes on")

    def _beat(self) -> None:
        store = self.worker.store
        for name, rows in self.rows.items():
            store.append(self.claim, name, self.sent.get(name, 0), rows)
            self.sent[name] = self.sent.get(name, 0) + len(rows)
        self.rows = {}
        answer = store.renew(self.claim, self.progress)
        self.progress = None
        if answer == "lost":
            self._end_child()
            raise Lost
        if answer == "cancel":
            self._stop()

    def _stop(self) -> None:
        if self.stopping_since is None:
            self.stopping_since = time.monotonic()
            self.child.stop()
        elif time.monotonic() - self.stopping_since > GRACE:
            self._end_child()
            raise Stopped

    def _end_child(self) -> None:
        self.child.kill()


def _commit(worker: Worker, job: Job, claim: Claim, tally: dict[str, Any], more: list[str] | None = None, last: str = "") -> None:
    units = _patiently(worker, lambda: worker.store.commit(claim, tally, more, last))
    if units is None:
        raise Lost
    _send(worker, job, units)


def _finish(worker: Worker, claim: Claim, state: State, error: str = "", result: dict[str, Any] | None = None) -> None:
    if not _patiently(worker, lambda: worker.store.finish(claim, state, error, result)):
        raise Lost


def _send(worker: Worker, job: Job, units: list[str]) -> None:
    """Hint the queue; what cannot be sent now is sent by the sweeper."""
    for unit in units:
        try:
            worker.send(job.kind, job.id, unit)
        except Unavailable:
            log.warning("Redis is away; the sweeper will send the rest")
            return


def _patiently(worker: Worker, act: Callable[[], T]) -> T:
    """Do what ends a unit, however long Redis is away: the work is done, only the word is missing."""
    while True:
        try:
            return act()
        except Unavailable:
            log.warning("Redis is away; waiting to report the outcome")
            time.sleep(worker.settings.heartbeat_seconds)


def _put_down(worker: Worker, claim: Claim) -> None:
    """Give a unit back when this worker is told to stop: another takes it at once, and the attempt does not count."""
    worker.drop_warm()  # any other child was ended on the way here
    try:
        worker.store.release(claim, note="The worker was stopped; the work is given to another.", counted=False)
    except Unavailable:
        log.warning("Redis is away; the lease will run out")
    log.info("given back")


def run_predict(worker: Worker, question_id: str) -> None:
    """Label one image at once, for somebody who waits for the answer."""
    asked = worker.store.question(question_id)
    if asked is None:
        return
    question, image = asked
    child = worker.warm_child()
    end = time.monotonic() + PREDICT_SECONDS
    answer: dict[str, Any] = {"error": "The image took too long."}
    try:
        for message in child.call("predict", {"model": question["model"], "image": base64.b64encode(image).decode()}, 1):
            if message is None and time.monotonic() > end:
                worker.drop_warm()
                break
            if message is not None:
                answer = _answer(message)
    except ChildDied as death:
        worker.drop_warm()
        answer = {"error": f"The process that looked at the image {death}."}
    worker.store.answer(question_id, answer)


def _answer(message: dict[str, Any]) -> dict[str, Any]:
    if "result" in message:
        return message["result"]  # type: ignore[no-any-return]
    if "bug" in message:
        log.error("bug", traceback=message["bug"])
        return {"error": f"This is a bug in Darkroom: {message['bug'].strip().splitlines()[-1]}"}
    return {"error": message.get("failed", "The image was not looked at.")}
