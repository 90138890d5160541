"""The ledger of jobs: what was asked, how far it is, who works on it. One writer, and every change is one Lua call.

A job is made of units of work: a training is one, a scrape is one, a batch is `plan` (in portions), a unit a shard, then `finish`.
A worker claims a unit for a **lease** and renews it; the claim's number is a **fencing token**, so a worker that was
believed dead cannot commit. The ledger can be rebuilt from storage; a Celery message is only a hint that there is work.

Keys, all under `darkroom:` (times are milliseconds of Redis's own clock):

| key                       | type   | meaning                                                                            | lives        |
|---------------------------|--------|------------------------------------------------------------------------------------|--------------|
| `job:<id>`                | hash   | kind, state, spec, created, started, ended, error, note, progress, result, cancel, | for ever     |
|                           |        | pause; units, units_done, leased, waiting (in the queue), last; items, errors, ... of a batch | |
| `job:<id>:epochs`, `:loss`| list   | rows of a training as JSON, in order                                               | for ever     |
| `job:<id>:labels`, `:confidence`, `:reasons` | hash | histograms of a batch, reasons of a scrape                          | for ever     |
| `job:<id>:latest`         | list   | the newest rows of a batch as JSON, at most 48                                     | for ever     |
| `job:<id>:unsent`         | list   | units not yet in the queue, or stretches of shards `<first>-<last>/<size>`          | to job's end |
| `unit:<id>:<unit>`        | hash   | state (unsent, waiting, leased, done), token, attempts, until, worker, sends       | 10 min after |
| `jobs`                    | zset   | every job id, all with score 0 and so in the order of the ids, that is of time     | for ever     |
| `state:<state>`           | set    | ids of the jobs in that state                                                      | for ever     |
| `leases`                  | zset   | `<id> <unit>` by end of lease                                                      | of the lease |
| `sent`                    | zset   | `<id> <unit>` in the queue but not claimed, by when it was sent                    | to the claim |
| `idem:<key>`              | string | job id that an Idempotency-Key made                                                | a day        |
| `worker:<name>`           | string | JSON of a live worker                                                              | 30 s         |
| `questions`               | list   | ids of single images to label at once                                              | a minute     |
| `questions:explain`       | list   | ids of single images of which is asked where a model looks                         | a minute     |
| `predict:<id>`, `:reply`  | string, list | such an image with its model, and the answer                                 | a minute     |
| `sweeper`                 | string | lock of the sweeper                                                                | 6 s          |
"""

import base64
import json
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from shared.errors import NotFound, Unavailable
from shared.storage import Storage

PREFIX = "darkroom:"
QUESTIONS = f"{PREFIX}questions"
EXPLAIN = f"{PREFIX}questions:explain"
ID = re.compile(r"[0-9a-v]{20}")
SWEEPER_MS = 6000  # how long the sweeper's lock outlives a sweeper that died


class State(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"  # nobody works on it yet, or its worker died and another is awaited
    RUNNING = "running"  # at least one unit was claimed
    PAUSED = "paused"  # the user will resume it; nobody works on it meanwhile
    DONE = "done"  # every unit is committed and the result is on storage
    FAILED = "failed"  # `error` says why
    CANCELLED = "cancelled"  # the user stopped it; what was done stays

    @property
    def terminal(self) -> bool:
        """Whether the job has ended."""
        return not MOVES[self]


MOVES: dict[State, tuple[State, ...]] = {
    State.QUEUED: (State.RUNNING, State.PAUSED, State.FAILED, State.CANCELLED),
    State.RUNNING: (State.QUEUED, State.PAUSED, State.DONE, State.FAILED, State.CANCELLED),
    State.PAUSED: (State.QUEUED, State.FAILED, State.CANCELLED),
    State.DONE: (),
    State.FAILED: (),
    State.CANCELLED: (),
}


@dataclass(frozen=True)
class Job:
    """A job as the ledger knows it. Times are seconds since 1970 or None; `counts` holds items, errors, units and units_done."""

    id: str
    kind: str
    state: State
    spec: dict[str, Any]
    created: float
    started: float | None = None
    ended: float | None = None
    error: str | None = None
    note: str | None = None
    cancel: bool = False
    pause: bool = False
    progress: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The job as the API answers it."""
        return {**self.__dict__, "state": self.state.value}


@dataclass(frozen=True)
class Claim:
    """A granted lease: `token` fences commits, `attempt` counts from 1; `send`: units that the claimer should send now."""

    job: str
    unit: str
    token: str
    attempt: int
    send: tuple[str, ...] = ()


def new_id() -> str:
    """A 20-character id of lower-case letters and digits that sorts by time: 48 bits of milliseconds, 52 of chance."""
    raw = int(time.time() * 1000).to_bytes(6) + secrets.token_bytes(6)
    alphabet = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", b"0123456789abcdefghijklmnopqrstuv")
    # base32's own alphabet puts letters before digits; this one sorts as the bytes do
    return base64.b32encode(raw).rstrip(b"=").translate(alphabet).decode()


def connect(url: str, timeout: float = 5) -> redis.Redis:
    """A client that gives up after `timeout` seconds instead of hanging on a dead peer."""
    return redis.Redis.from_url(
        url,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        **({} if url.startswith("unix:") else {"socket_keepalive": True}),
        health_check_interval=25,
        # a connection that broke is made again; each try at a peer that does not answer would take `timeout` seconds once more
        retry=Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), 2, supported_errors=(redis.ConnectionError,)),
    )


@contextmanager
def reachable(url: str = "") -> Iterator[None]:
    """Turn redis-py's connection errors into Unavailable, a sentence."""
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise Unavailable(
            f"Redis cannot be reached{f' at {hide_password(url)}' if url else ''}. Start it with `darkroom up`, or check DARKROOM_REDIS_URL."
        ) from error
    except redis.ResponseError as error:
        if any(word in str(error) for word in ("OOM", "MISCONF", "LOADING", "READONLY")):
            raise Unavailable(f"Redis refuses to work at the moment: {error}") from error
        raise


def hide_password(url: str) -> str:
    """The address without credentials, for messages."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


class JobStore:
    """Reads and writes the ledger. Every method raises Unavailable when Redis cannot be reached."""

    def __init__(self, client: redis.Redis, lease_seconds: float = 60) -> None:
        self.redis: Any = client  # redis-py types each answer as the union of all its modes
        self.lease_ms = int(lease_seconds * 1000)
        moves = json.dumps({state: dict.fromkeys(targets, 1) for state, targets in MOVES.items()})
        # cjson turns {} into an empty table, which is what `terminal` looks for
        head = f"local P = '{PREFIX}'\nlocal MOVES = cjson.decode('{moves}')\n"
        self._script = client.register_script(head + Path(__file__).with_name("ledger.lua").read_text())

    def _call(self, op: str, *args: str | int | float) -> Any:
        with reachable():
            return self._script(args=[op, *args])

    # -- jobs ---------------------------------------------------------------------------------------------------------

    def create(self, kind: str, spec: dict[str, Any], unit: str, idempotency_key: str = "") -> str:
        """Record a job of one unit and answer its id: an earlier job's if the key was used before."""
        return self._call("create", new_id(), idempotency_key, kind, json.dumps(spec), unit).decode()  # type: ignore[no-any-return]

    def withdraw(self, job_id: str, idempotency_key: str = "") -> None:
        """Take an order back that nobody has begun: cancelled, and its key orders anew. Raises NotFound."""
        self.cancel(job_id)
        if idempotency_key:
            with reachable():
                self.redis.delete(f"{PREFIX}idem:{idempotency_key}")

    def get(self, job_id: str) -> Job:
        """Raises NotFound."""
        if not ID.fullmatch(job_id):
            raise NotFound(f"There is no job {job_id[:40]!r}.")
        with reachable():
            raw = self.redis.hgetall(f"{PREFIX}job:{job_id}")
        if not raw:
            raise NotFound(f"There is no job {job_id!r}.")
        return _job(job_id, raw)

    def page(self, limit: int = 50, before: str | None = None, kind: str | None = None, states: tuple[State, ...] = ()) -> list[Job]:
        """The newest jobs first, those created before job `before`; `kind` and `states` filter. Raises NotFound."""
        found: list[Job] = []
        with reachable():
            place = -1 if before is None else self.redis.zrevrank(f"{PREFIX}jobs", before)
            if place is None:
                raise NotFound(f"There is no job {before!r}.")
            start = place + 1
            while len(found) < limit:
                ids = [i.decode() for i in self.redis.zrevrange(f"{PREFIX}jobs", start, start + 199)]
                pipe = self.redis.pipeline(transaction=False)
                for job_id in ids:
                    pipe.hgetall(f"{PREFIX}job:{job_id}")
                jobs = [_job(job_id, raw) for job_id, raw in zip(ids, pipe.execute(), strict=True) if raw]
                found += [j for j in jobs if (not kind or j.kind == kind) and (not states or j.state in states)]
                start += 200
                if len(ids) < 200:
                    break
        return found[:limit]

    def counts(self) -> dict[str, int]:
        """Number of jobs in each state."""
        with reachable():
            return {state.value: int(self.redis.scard(f"{PREFIX}state:{state}")) for state in State}

    def cancel(self, job_id: str) -> State:
        """Ask a job to end. A job nobody works on ends at once; otherwise its workers stop within a mini-batch. Raises NotFound."""
        state = self._call("cancel", job_id)
        if state is None:
            raise NotFound(f"There is no job {job_id!r}.")
        return State(state.decode())

    def pause(self, job_id: str, why: str = "") -> State:
        """Ask a job to rest: no unit starts, those in hand are put down within a mini-batch; `why` is noted. Raises NotFound."""
        state = self._call("pause", job_id, why)
        if state is None:
            raise NotFound(f"There is no job {job_id!r}.")
        return State(state.decode())

    def resume(self, job_id: str) -> list[str]:
        """Let a paused job go on; returns the units to send now. Raises NotFound."""
        units = self._call("resume", job_id)
        if units is None:
            raise NotFound(f"There is no job {job_id!r}.")
        return [unit.decode() for unit in units]

    def fail(self, job_id: str, error: str) -> bool:
        """End a job with an error, whatever its workers do. False when it had ended before."""
        return bool(self._call("fail", job_id, error))

    def knows(self, job_id: str) -> bool:
        """Whether the ledger has this job."""
        with reachable():
            return bool(self.redis.exists(f"{PREFIX}job:{job_id}"))

    def restore(
        self, job: Job, units: list[str] | None = None, histograms: Mapping[str, Mapping[str, int]] | None = None, last: str = ""
    ) -> bool:
        """Enter a job that the ledger has lost, with the `units` (or stretches of shards) that are left to do.

        False when the ledger knows it. The sweeper sends what is to be done.
        """
        fields = {
            "kind": job.kind,
            "state": job.state.value,
            "spec": json.dumps(job.spec),
            "created": int(job.created * 1000),
            "started": job.started and int(job.started * 1000),
            "ended": job.ended and int(job.ended * 1000),
            "error": job.error,
            "note": job.note,
            "result": json.dumps(job.result) if job.result else None,
            "last": last or None,
            "pause": 1 if job.pause else None,
            "leased": 0,
            "waiting": 0,
            **job.counts,
        }
        flat = [str(part) for name, value in fields.items() if value is not None for part in (name, value)]
        return bool(self._call("restore", job.id, json.dumps(flat), json.dumps(histograms or {}), json.dumps(units or [])))

    def rows(self, job_id: str, name: str, start: int = 0, stop: int = -1) -> list[Any]:
        """The JSON rows of the list `name` (epochs, loss, latest) of a job."""
        with reachable():
            return [json.loads(row) for row in self.redis.lrange(f"{PREFIX}job:{job_id}:{name}", start, stop)]

    def histogram(self, job_id: str, name: str) -> dict[str, int]:
        """The histogram `name` (labels, confidence, reasons) of a job."""
        with reachable():
            return {k.decode(): int(v) for k, v in self.redis.hgetall(f"{PREFIX}job:{job_id}:{name}").items()}

    # -- units of work ------------------------------------------------------------------------------------------------

    def claim(self, job_id: str, unit: str, worker: str) -> Claim | None:
        """Lease a unit, or None if it is done, leased to another, or its job is over or paused."""
        answer = self._call("claim", job_id, unit, worker, self.lease_ms)
        if answer[0] != b"granted":
            return None
        return Claim(job_id, unit, answer[1].decode(), answer[2], tuple(name.decode() for name in answer[3:]))

    def take(self, job_id: str, worker: str) -> Claim | None:
        """Lease the next unit of a job that was not sent to the queue, or None if there is none."""
        answer = self._call("take", job_id, worker, self.lease_ms)
        return Claim(job_id, answer[0].decode(), answer[1].decode(), answer[2]) if answer else None

    def renew(self, claim: Claim, progress: dict[str, Any] | None = None) -> str:
        """Renew a lease and publish progress: `ok`, `cancel` or `pause` (stop, then `release`), or `lost` (stop, commit nothing)."""
        text = json.dumps(progress) if progress is not None else ""
        return self._call("renew", claim.job, claim.unit, claim.token, self.lease_ms, text).decode()  # type: ignore[no-any-return]

    def kept(self, claim: Claim) -> None:
        """What the unit did so far outlives its worker: the attempts that led there do not count any more."""
        self._call("kept", claim.job, claim.unit, claim.token)

    def append(self, claim: Claim, name: str, first: int, rows: list[Any]) -> None:
        """Append JSON rows to a list of the job; `first` is the serial number of rows[0], and 0 starts the list anew."""
        if rows:
            self._call("append", claim.job, claim.unit, claim.token, name, first, *(json.dumps(row) for row in rows))

    def others_wait(self, job_id: str, lists: list[str]) -> bool:
        """Whether the queue holds, in one of these lists, work of another job than this one."""
        with reachable():
            pipe = self.redis.pipeline(transaction=False)
            for name in lists:
                pipe.llen(name)
            pipe.hget(f"{PREFIX}job:{job_id}", "waiting")
            *lengths, own = pipe.execute()
        return bool(sum(lengths) > int(own or 0))

    def commit(
        self,
        claim: Claim,
        tally: dict[str, Any] | None = None,
        stretches: Iterable[tuple[int, int, int]] = (),
        following: str = "",
        last: str = "",
    ) -> list[str] | None:
        """Mark a unit done and count it, exactly once.

        `tally`: `{"counts": {field: n}, "hashes": {histogram: {field: n}}, "latest": [row text]}`, added to the job's.
        `stretches`: (first, last, size) each: shards of `size` items that this unit has planned. The unit `following` is sent
        at once, and `last` after all others. Returns the units to send now, or None when the lease was lost and nothing was counted.
        """
        planned = json.dumps([f"{first}-{stop}/{size}" for first, stop, size in stretches])
        answer = self._call("commit", claim.job, claim.unit, claim.token, json.dumps(tally or {}), planned, following, last)
        return None if answer is None else [unit.decode() for unit in answer]

    def split(self, claim: Claim, parts: list[str]) -> list[str]:
        """Replace a unit that workers die on by its parts. Returns the units to send now."""
        return [unit.decode() for unit in self._call("split", claim.job, claim.unit, claim.token, json.dumps(parts)) or []]

    def release(self, claim: Claim, note: str = "", counted: bool = True) -> None:
        """Give a unit back to be tried again; `note` is shown with the job; `counted=False`: the worker was asked to stop."""
        self._call("release", claim.job, claim.unit, claim.token, note, 0 if counted else 1)

    def finish(self, claim: Claim, state: State, error: str = "", result: dict[str, Any] | None = None) -> bool:
        """End the job. False when the lease was lost."""
        return bool(
            self._call("finish", claim.job, claim.unit, claim.token, state.value, error, json.dumps(result) if result is not None else "")
        )

    # -- the sweeper --------------------------------------------------------------------------------------------------

    def sweeping(self, worker: str) -> bool:
        """Whether this worker is the one that sweeps for the next seconds; asked again every two."""
        with reachable():
            key = f"{PREFIX}sweeper"
            if self.redis.set(key, worker, nx=True, px=SWEEPER_MS):
                return True
            if self.redis.get(key) != worker.encode():
                return False
            self.redis.pexpire(key, SWEEPER_MS)
            return True

    def expire_leases(self) -> list[tuple[str, str]]:
        """Take back the units whose worker stopped renewing; they wait again. Returns (job, unit)."""
        with reachable():
            expired = self.redis.zrangebyscore(f"{PREFIX}leases", "-inf", self._now(), start=0, num=1000)
        again = []
        for entry in expired:
            job_id, unit = entry.decode().split(" ", 1)
            with reachable():
                worker = (self.redis.hget(f"{PREFIX}unit:{job_id}:{unit}", "worker") or b"?").decode()
            if self._call("expire", job_id, unit, f"The worker {worker} stopped answering; the work is given to another.") == b"again":
                again.append((job_id, unit))
        return again

    def waiting(self) -> list[tuple[str, str, float, int]]:
        """Units that are in the queue or lost on the way: (job, unit, seconds since sent, times sent again)."""
        now = self._now()
        with reachable():
            entries = [(m.decode().split(" ", 1), score) for m, score in self.redis.zrange(f"{PREFIX}sent", 0, 9999, withscores=True)]
            pipe = self.redis.pipeline(transaction=False)
            for (job_id, unit), _ in entries:
                pipe.hget(f"{PREFIX}unit:{job_id}:{unit}", "sends")
            return [
                (job_id, unit, (now - score) / 1000, int(sends or 0))
                for ((job_id, unit), score), sends in zip(entries, pipe.execute(), strict=True)
            ]

    def resend(self, job_id: str, unit: str) -> bool:
        """Whether to send the unit again now."""
        return bool(self._call("resend", job_id, unit))

    def _now(self) -> float:
        seconds, micros = self.redis.time()
        return float(seconds) * 1000 + float(micros) / 1000

    # -- workers ------------------------------------------------------------------------------------------------------

    def announce(self, name: str, facts: dict[str, Any]) -> None:
        """Say that a worker lives; forgotten after 30 seconds."""
        with reachable():
            self.redis.set(f"{PREFIX}worker:{name}", json.dumps(facts), ex=30)

    def depart(self, name: str) -> None:
        """Forget a worker that stopped."""
        with reachable():
            self.redis.delete(f"{PREFIX}worker:{name}")

    def workers(self) -> list[dict[str, Any]]:
        """The live workers, by name, each with the units it holds."""
        with reachable():
            keys = sorted(self.redis.scan_iter(f"{PREFIX}worker:*", count=500))
            facts = [json.loads(v) for v in self.redis.mget(keys) if v] if keys else []
            held: dict[str, list[list[str]]] = {}
            for entry in self.redis.zrange(f"{PREFIX}leases", 0, -1):
                job_id, unit = entry.decode().split(" ", 1)
                worker = self.redis.hget(f"{PREFIX}unit:{job_id}:{unit}", "worker")
                held.setdefault(worker.decode() if worker else "?", []).append([job_id, unit])
        return [{**f, "busy": held.get(f["name"], [])} for f in facts]

    # -- one image at once --------------------------------------------------------------------------------------------

    def ask(self, question: dict[str, Any], image: bytes, line: str = QUESTIONS) -> str:
        """Keep a question about one image in its line, QUESTIONS or EXPLAIN, for a minute; returns its id."""
        question_id = new_id()
        with reachable():
            pipe = self.redis.pipeline()
            pipe.set(f"{PREFIX}predict:{question_id}", json.dumps(question).encode() + b"\n" + image, ex=60)
            pipe.rpush(line, question_id)
            pipe.expire(line, 60)
            pipe.execute()
        return question_id

    def next_question(self, timeout: float, line: str = QUESTIONS) -> tuple[str, dict[str, Any], bytes] | None:
        """Wait at most `timeout` seconds for a question that somebody still waits for: its id, the question and the image."""
        with reachable():
            taken = self.redis.blpop([line], timeout=timeout)
            raw = self.redis.getdel(f"{PREFIX}predict:{taken[1].decode()}") if taken else None
        if raw is None:
            return None
        head, _, image = raw.partition(b"\n")
        return taken[1].decode(), json.loads(head), image

    def answer(self, question_id: str, answer: dict[str, Any]) -> None:
        """Answer a question; kept for a minute."""
        with reachable():
            pipe = self.redis.pipeline()
            pipe.rpush(f"{PREFIX}predict:{question_id}:reply", json.dumps(answer))
            pipe.expire(f"{PREFIX}predict:{question_id}:reply", 60)
            pipe.execute()

    def await_answer(self, question_id: str, timeout: float = 30) -> dict[str, Any] | None:
        """Wait for the answer at most `timeout` seconds."""
        end = time.monotonic() + timeout
        with reachable():
            while (left := end - time.monotonic()) > 0:
                # shorter than the socket's own timeout
                if reply := self.redis.blpop([f"{PREFIX}predict:{question_id}:reply"], timeout=min(left, 3)):
                    return json.loads(reply[1])  # type: ignore[no-any-return]
        return None


def _job(job_id: str, raw: dict[bytes, bytes]) -> Job:
    r = {k.decode(): v.decode() for k, v in raw.items()}

    def seconds(name: str) -> float | None:
        return int(r[name]) / 1000 if name in r else None

    known = {
        "kind",
        "state",
        "spec",
        "created",
        "started",
        "ended",
        "error",
        "note",
        "progress",
        "result",
        "cancel",
        "pause",
        "last",
        "leased",
        "waiting",
    }
    return Job(
        id=job_id,
        kind=r["kind"],
        state=State(r["state"]),
        spec=json.loads(r["spec"]),
        created=seconds("created") or 0.0,
        started=seconds("started"),
        ended=seconds("ended"),
        error=r.get("error"),
        note=r.get("note"),
        cancel=r.get("cancel") == "1",
        pause=r.get("pause") == "1",
        progress=json.loads(r.get("progress", "{}")),
        result=json.loads(r.get("result", "{}")),
        counts={k: int(v) for k, v in r.items() if k not in known},
    )


def keep_record(store: JobStore, storage: Storage, job_id: str) -> None:
    """Keep a job as it stands in `jobs/<id>.json`, where it outlives the ledger: when it is ordered and when it has ended."""
    storage.write_json(f"jobs/{job_id}.json", store.get(job_id).as_json())
