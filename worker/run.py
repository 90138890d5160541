"""One unit of work, from its claim to its end: the only place where a job ends.

    claim -> call the child -> heartbeat while it works -> commit, finish, release or fail

A worker that has read all of a shard claims the next one of the same batch, so that the device never waits for a shard to
be written. The heartbeat renews the lease, publishes progress and learns of a cancel. When Redis is away the child goes on, and the
outcome waits until it is back; when the lease was lost meanwhile, nothing is committed.
"""

import base64
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog

from shared import models
from shared.errors import Conflict, Invalid, NotFound, Unavailable, Unwritable
from shared.jobs import EXPLAIN, Claim, Job, JobStore, State, keep_record
from shared.orders import submit
from shared.queue import list_of
from shared.results import shard_name, shard_range
from shared.settings import Settings
from shared.storage import Storage
from worker.device import Child, ChildDied

log = structlog.get_logger()
T = TypeVar("T")
GRACE = 10  # seconds a child has to end when it was asked to stop
FIRST_SHARD = 32  # images of the first shard of a batch; each after it has as many as all before, up to the shard size
JUDGED_FROM = 100  # images of a batch before its failure rate is judged
PREDICT_SECONDS = 60  # a single image that takes longer is given up; nobody waits for it any more


class Lost(Exception):
    """The lease went to another worker: stop, commit nothing."""


class Stopped(Exception):
    """The job was cancelled and its child has stopped."""


class Stuck(Exception):
    """Something that the operator can heal is in the way, such as a full disk; the message says what."""


class Failed(Exception):
    """The job cannot be done; the message is the sentence for the user."""


@dataclass
class Worker:
    """What one worker process works with. The warm child stays between two shards."""

    settings: Settings
    name: str
    lists: list[str]  # what it reads of the queue, in the order it is served
    store: JobStore
    storage: Storage
    send: Callable[[str, str, str], None]  # list, job, unit: hints the queue
    warm: Child | None = None
    warming: threading.Lock = field(default_factory=threading.Lock)

    def warm_child(self) -> Child:
        """The child that classifies; a new one if the last has died. Any thread may ask."""
        with self.warming:
            if self.warm is None or not self.warm.alive:
                self._end()
                self.warm = Child(self.settings)
            return self.warm

    def drop_warm(self) -> None:
        """End the child that classifies."""
        with self.warming:
            self._end()

    def _end(self) -> None:
        if self.warm is not None:
            self.warm.kill()
            self.warm = None


@dataclass(frozen=True)
class Ahead:
    """A shard that was claimed, and whose reading has begun, while the one before it is still in the network."""

    claim: Claim
    child: Child
    call: int


def run_unit(worker: Worker, job_id: str, unit: str) -> None:
    """Do one unit of work, if it is still to be done, and go on with shards of the same job as long as no other job waits."""
    claim = worker.store.claim(job_id, unit, worker.name)
    if claim is None:
        log.debug("nothing to do", job=job_id, unit=unit)
        return
    job = worker.store.get(job_id)
    _send(worker, job, claim.send)
    following: Ahead | None = None
    while claim is not None:
        with structlog.contextvars.bound_contextvars(job=job_id, unit=claim.unit, attempt=claim.attempt, worker=worker.name):
            log.info("started", kind=job.kind)
            following = _run(worker, job, claim, following)
        claim = following.claim if following else None


def _run(worker: Worker, job: Job, claim: Claim, started: Ahead | None) -> Ahead | None:
    """Do a unit and map its outcome to a state; returns the shard that is to follow. `started`: its call is under way."""
    turn = _Turn(worker, job, claim, started)
    try:
        _settle(turn)
    except Lost:
        log.warning("lease lost; nothing was committed")
        turn.put_back_ahead()
    except SystemExit:  # the worker was told to stop: the units are given back as they were
        _put_down(worker, claim, turn.ahead)
        raise
    return turn.ahead


@dataclass
class _Turn:
    """One unit in hand, and what was claimed ahead meanwhile."""

    worker: Worker
    job: Job
    claim: Claim
    started: Ahead | None
    ahead: Ahead | None = None
    attempt: int = 0  # since anything of the unit was last kept

    def __post_init__(self) -> None:
        self.attempt = self.claim.attempt

    def look_ahead(self, child: Child) -> None:
        """Claim the next shard and let the child begin to read it, unless somebody else waits for this worker."""
        worker, lists = self.worker, self.worker.lists
        if self.claim.attempt >= worker.settings.max_attempts:
            return  # alone, so that it is this shard's fault and not that of the next if the child dies once more
        if self.job.kind != "classify" or not worker.store.get(self.job.id).counts.get("planned"):
            return
        served_before = lists[: lists.index(name) + 1] if (name := list_of(self.job.kind, self.job.spec)) in lists else lists
        if worker.store.others_wait(self.job.id, served_before):
            return
        claim = worker.store.take(self.job.id, worker.name)
        if claim is None:
            return
        if claim.unit == "finish" or claim.attempt > worker.settings.max_attempts:
            worker.store.release(claim, counted=False)
            return
        self.ahead = Ahead(claim, child, child.start("shard", {"spec": self.job.spec, "job": self.job.id, "shard": claim.unit}))

    def put_back_ahead(self) -> None:
        """Give the shard that was claimed ahead back, untouched."""
        if self.ahead is None:
            return
        with suppress(ChildDied):
            self.ahead.child.stop(self.ahead.call)
        claim, self.ahead = self.ahead.claim, None
        _patiently(self.worker, lambda: self.worker.store.release(claim, counted=False))


def _settle(turn: _Turn) -> None:
    """Do the work and map its outcome to a state."""
    worker, job, claim = turn.worker, turn.job, turn.claim
    try:
        _do(turn)
    except Stopped:
        turn.put_back_ahead()
        _patiently(worker, lambda: worker.store.release(claim, counted=False))
        log.info("stopped")
    except Stuck as error:
        turn.put_back_ahead()
        _rest(worker, job, claim, str(error))
    except Failed as error:
        turn.put_back_ahead()
        _finish(worker, claim, State.FAILED, error=str(error))
        log.warning("failed", error=str(error))
    except ChildDied as death:
        log.warning("the child process died", how=str(death))
        turn.put_back_ahead()
        _after_death(turn, str(death))
    now = _patiently(worker, lambda: worker.store.get(job.id))
    if sentence := _too_many_failures(now):
        _patiently(worker, lambda: worker.store.fail(job.id, sentence))
        log.warning("failed", error=sentence)
    if sentence or now.state.terminal:
        turn.put_back_ahead()
        try:
            _patiently(worker, lambda: keep_record(worker.store, worker.storage, job.id))
        except OSError as error:  # a full disk, say: the ledger knows how the job ended
            log.warning("the record of the job could not be written", error=str(error))


def _rest(worker: Worker, job: Job, claim: Claim, why: str) -> None:
    """A batch pauses until the operator has healed what is in the way; any other job fails, and a training keeps its last epoch."""
    if job.kind != "classify":
        then = "`resume`: it goes on from its last finished epoch" if job.kind == "train" else "`retry`"
        _finish(worker, claim, State.FAILED, error=f"{why} Heal this, then {then}.")
    else:
        _patiently(worker, lambda: worker.store.pause(job.id, f"Paused: {why} Resume the batch when this is healed; nothing is lost."))
        _patiently(worker, lambda: worker.store.release(claim, counted=False))
    log.error("stuck", why=why)


def _too_many_failures(job: Job) -> str:
    """The sentence that ends a batch with too many bad images, or nothing."""
    most = job.spec.get("max_failure_rate", 1.0)
    done, errors = job.counts.get("done", 0), job.counts.get("errors", 0)
    judged = done >= JUDGED_FROM or (job.counts.get("planned") and done == job.counts.get("items"))
    if job.state.terminal or not judged or errors <= most * done:
        return ""
    return f"Stopped: {errors:,} of the first {done:,} images could not be labelled, more than the {most:.0%} that max_failure_rate allows. What was done stays."


def _after_death(turn: _Turn, how: str) -> None:
    """What was done is tried again, a training from its last epoch on; a shard is split in the end."""
    worker, job, claim, attempt = turn.worker, turn.job, turn.claim, turn.attempt
    if job.kind != "classify" and attempt >= worker.settings.max_attempts:
        what, then = ("process that read the images" if job.kind in {"import", "scrape", "look"} else "process", "")
        if job.kind == "train":
            what, then = "training process", " No further epoch was finished; those before are kept, and `resume` goes on from there."
        _finish(worker, claim, State.FAILED, error=f"{attempt} times in a row the {what} {how}.{then}")
    else:
        goes_on = " It goes on from its last finished epoch." if job.kind == "train" else ""
        _patiently(worker, lambda: worker.store.release(claim, note=f"Attempt {attempt}: the process {how}.{goes_on}"))


def _do(turn: _Turn) -> None:
    worker, job, claim = turn.worker, turn.job, turn.claim
    if job.kind == "classify":
        _classify(turn)
        return
    if claim.attempt > worker.settings.max_attempts:
        raise Failed(f"The worker stopped answering, {worker.settings.max_attempts} times; the work was given up.")
    decodes = job.kind in {"import", "scrape"}  # pictures of strangers, and no torch, which maps far more memory than it uses
    child = Child(worker.settings, worker.settings.child_memory_bytes if decodes else 0)
    try:
        if not decodes:
            result = _call(turn, child, job.kind, spec=job.spec, job=job.id)
        else:
            result = _call(turn, child, "dataset", kind=job.kind, spec=job.spec, job=job.id)
    finally:
        child.kill()
    if ref := job.spec.get("then"):
        result |= _patiently(worker, lambda: _retrain(worker, job, ref, result))
    _finish(worker, claim, State.DONE, result=result)
    log.info("done", **result)


def _retrain(worker: Worker, job: Job, ref: str, made: dict[str, Any]) -> dict[str, Any]:
    """Order the training that follows an import, once however often the import is done: its id, or why there is none."""
    try:
        spec = models.retraining(models.info(worker.storage, *models.resolve(worker.storage, ref)))
        spec |= {"dataset": made["dataset"], "version": made["version"], "notes": f"Retrained by the import {job.id}."}
        return {"training": submit(worker, "train", spec, f"then-{job.id}").id}
    except (Invalid, NotFound, Conflict, Unwritable) as error:  # the version is there all the same
        return {"not_retrained": str(error)}


def _classify(turn: _Turn) -> None:
    """Plan, one shard, or finish."""
    worker, job, claim = turn.worker, turn.job, turn.claim
    common = {"spec": job.spec, "job": job.id}
    exhausted = claim.attempt > worker.settings.max_attempts
    if claim.unit.startswith("plan"):
        if exhausted:
            raise Failed(f"The worker stopped answering while it listed the items, {worker.settings.max_attempts} times.")
        _plan(turn, _call(turn, worker.warm_child(), "plan", first=int(claim.unit[5:] or 0), **common))
    elif claim.unit == "finish":
        if exhausted:
            raise Failed(f"The worker stopped answering while it gathered the results, {worker.settings.max_attempts} times.")
        result = _call(turn, worker.warm_child(), "finish", started=job.started, **common)
        _finish(worker, claim, State.DONE, result=result)
    elif not exhausted:
        child = turn.started.child if turn.started else worker.warm_child()
        _commit(turn, _call(turn, child, "shard", shard=claim.unit, **common))
    else:
        _isolate(turn, common)


def _plan(turn: _Turn, portion: dict[str, Any]) -> None:
    """Count a portion of the items; its shards may be worked on while the next portion is listed."""
    first, last, over = portion["first"], portion["last"], portion["over"]
    tally = {"counts": {"items": last - first, **({"planned": 1} if over else {})}}
    stretches = _stretches(first, last, turn.job.spec["shard_size"])
    _commit(turn, tally, stretches=stretches, **({"last": "finish"} if over else {"following": f"plan-{last}"}))


def _stretches(first: int, last: int, size: int) -> list[tuple[int, int, int]]:
    """Items as stretches of shards. A batch begins with small shards, so that its first rows are seen at once."""
    stretches = []
    while first < min(size, last) and size > FIRST_SHARD:
        stop = min(max(2 * first, FIRST_SHARD), size, last)
        stretches.append((first, stop, stop - first))
        first = stop
    return [*stretches, (first, last, size)] if last > first else stretches


def _isolate(turn: _Turn, common: dict[str, Any]) -> None:
    """A shard on which workers keep dying: split it, until the item at fault is alone and becomes a row with an error."""
    worker, claim = turn.worker, turn.claim
    first, last = shard_range(claim.unit)
    if last - first > 1:
        middle = (first + last) // 2
        log.warning("workers die on this shard; it is split")
        _send(worker, turn.job, worker.store.split(claim, [shard_name(first, middle), shard_name(middle, last)]))
        return
    _commit(turn, _call(turn, worker.warm_child(), "write_off", shard=claim.unit, **common))


def _call(turn: _Turn, child: Child, name: str, **args: Any) -> dict[str, Any]:
    """Call the child and keep the lease alive until it answers. Raises Lost, Stopped, Failed or ChildDied."""
    number = turn.started.call if turn.started else child.start(name, args)
    beat = _Heartbeat(turn, child, number)
    for message in child.messages(number, turn.worker.settings.heartbeat_seconds):
        beat.hear(message or {})
        if message is None:
            continue
        if "result" in message:
            return message["result"]  # type: ignore[no-any-return]
        if "cancelled" in message:
            raise Stopped
        if "failed" in message:
            raise Failed(message["failed"])
        if "stuck" in message:
            raise Stuck(message["stuck"])
        if "died" in message:
            raise ChildDied(message["died"])
        if "bug" in message:
            log.error("bug", traceback=message["bug"])
            raise Failed(f"This is a bug in Darkroom: {message['bug'].strip().splitlines()[-1]}")
    raise AssertionError("a call ends with an outcome")


class _Heartbeat:
    """Publishes what the child says, renews the lease, passes a cancel or a pause on, and looks ahead when the child may."""

    def __init__(self, turn: _Turn, child: Child, number: int) -> None:
        self.turn, self.child, self.number = turn, child, number
        self.worker, self.claim = turn.worker, turn.claim
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
        elif "anew" in message:
            self.rows[message["anew"]], self.sent[message["anew"]] = [], 0
        elif "kept" in message:
            self.turn.attempt = 1
            with suppress(Unavailable):
                self.worker.store.kept(self.claim)
        elif "read" in message and self.stopping_since is None:
            with suppress(Unavailable, NotFound):  # a ledger that was lost: the next heartbeat says so
                self.turn.look_ahead(self.child)
        final = bool(message.keys() & {"result", "failed", "stuck"})
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
        if self.turn.ahead:
            store.renew(self.turn.ahead.claim)
        answer = store.renew(self.claim, self.progress)
        self.progress = None
        if answer == "lost":
            self._end_child()
            raise Lost
        if answer in {"cancel", "pause"}:
            self._stop()

    def _stop(self) -> None:
        if self.stopping_since is None:
            self.stopping_since = time.monotonic()
            self.child.stop(self.number)
        elif time.monotonic() - self.stopping_since > GRACE:
            self._end_child()
            raise Stopped

    def _end_child(self) -> None:
        self.child.kill()


def _commit(turn: _Turn, tally: dict[str, Any], **following: Any) -> None:
    units = _patiently(turn.worker, lambda: turn.worker.store.commit(turn.claim, tally, **following))
    if units is None:
        raise Lost
    _send(turn.worker, turn.job, units)


def _finish(worker: Worker, claim: Claim, state: State, error: str = "", result: dict[str, Any] | None = None) -> None:
    if not _patiently(worker, lambda: worker.store.finish(claim, state, error, result)):
        raise Lost


def _send(worker: Worker, job: Job, units: Iterable[str]) -> None:
    """Hint the queue; what cannot be sent now is sent by the sweeper."""
    for unit in units:
        try:
            worker.send(list_of(job.kind, job.spec), job.id, unit)
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


def _put_down(worker: Worker, claim: Claim, ahead: Ahead | None) -> None:
    """Give a unit back when this worker is told to stop: another takes it at once, and the attempt does not count."""
    worker.drop_warm()  # any other child was ended on the way here
    try:
        for given_back in [claim, *([ahead.claim] if ahead else [])]:
            worker.store.release(given_back, note="The worker was stopped; the work is given to another.", counted=False)
    except Unavailable:
        log.warning("Redis is away; the lease will run out")
    log.info("given back")


def keep_answering(worker: Worker) -> None:
    """Label single images for people who wait for the answer, between the mini-batches of whatever else is done; for ever."""
    while True:
        try:
            asked = worker.store.next_question(timeout=2)
            if asked:
                question_id, question, image = asked
                worker.store.answer(question_id, _ask(worker.warm_child, "predict", question, image))
        except Unavailable:
            time.sleep(worker.settings.heartbeat_seconds)


def keep_explaining(worker: Worker) -> None:
    """Show where models look, for people who wait for the answer; for ever."""
    explainer = Explainer(worker)
    while True:
        try:
            explainer.turn()
        except Unavailable:
            time.sleep(worker.settings.heartbeat_seconds)


@dataclass
class Explainer:
    """The child that shows where a model looks: started when somebody asks, ended when nobody has for `idle` seconds.

    It needs torch and fastai, some seconds and a gigabyte of memory; the child that classifies does without, and is not held up.
    """

    worker: Worker
    idle: float = 60
    child: Child | None = None
    last: float = 0.0

    def turn(self, timeout: float = 2) -> None:
        """Wait at most `timeout` seconds for a question and answer it. Raises Unavailable."""
        try:
            asked = self.worker.store.next_question(timeout, EXPLAIN)
            if asked:
                question_id, question, image = asked
                answer = _ask(self._awake, "explain", question, image)
                self.last = time.monotonic()
                self.worker.store.answer(question_id, answer)
        finally:
            if time.monotonic() - self.last > self.idle:
                self.end()

    def end(self) -> None:
        """End the child, if there is one."""
        if self.child is not None:
            self.child.kill()
            self.child = None

    def _awake(self) -> Child:
        if self.child is None or not self.child.alive:
            self.end()
            self.child = Child(self.worker.settings)
        return self.child


def _ask(child: Callable[[], Child], call: str, question: dict[str, Any], image: bytes, again: bool = True) -> dict[str, Any]:
    """The answer for one image, or `error` with a sentence. A child that dies meanwhile may have died of something else."""
    end = time.monotonic() + PREDICT_SECONDS
    try:
        for message in child().call(call, {**question, "image": base64.b64encode(image).decode()}, 1):
            if message is not None:
                return _answer(message)
            if time.monotonic() > end:
                break
    except ChildDied as death:
        return _ask(child, call, question, image, again=False) if again else {"error": f"The process that looked at the image {death}."}
    return {"error": "The image took too long."}


def _answer(message: dict[str, Any]) -> dict[str, Any]:
    if "result" in message:
        return message["result"]  # type: ignore[no-any-return]
    if "bug" in message:
        log.error("bug", traceback=message["bug"])
        return {"error": f"This is a bug in Darkroom: {message['bug'].strip().splitlines()[-1]}"}
    return {"error": message.get("failed") or message.get("stuck", "The image was not looked at.")}
