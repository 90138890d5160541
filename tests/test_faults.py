"""Real workers, real signals, real Redis: whatever dies, each item ends as exactly one row.

The oracle is the same for each: the rows are the items, the counts are right, the job has ended, nobody is left behind
(`start_worker` looks), and no temporary file lies in the results.
"""

import os
import signal
import subprocess
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import redis
from conftest import alive, descendants, until

from cli.start import redis_server
from shared.jobs import JobStore, State, connect
from shared.queue import make_app, send
from shared.specs import parse
from shared.storage import Storage
from web.backend import Backend
from web.orders import cancel, submit

pytestmark = pytest.mark.fault


@pytest.fixture
def backend(with_model):
    return Backend(with_model)


def order_batch(backend, folder, **more):
    spec = {"model": "digits", "source": {"kind": "folder", "path": str(folder)}, "shard_size": 4, **more}
    return submit(backend, "classify", spec).id


def order_training(backend):
    spec = {"dataset": "digits", "model": "slow", "pretrained": False, "image_size": 32, "epochs": 300, "batch_size": 16}
    return submit(backend, "train", spec).id


def many(digits: Path, tmp_path: Path, copies=3) -> Path:
    """A folder of 120 x copies images: long enough to be hit in the middle."""
    folder = tmp_path / "many"
    for n in range(copies):
        for path in digits.rglob("*.png"):
            target = folder / str(n) / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, target)
    return folder


def ended(backend, job):
    return backend.store.get(job).state.terminal


def done(backend, job):
    return backend.store.get(job).counts.get("done", 0)


def attempts(backend, job):
    return int(backend.store.redis.hget(f"darkroom:unit:{job}:main", "attempts") or 0)


def explain(backend, job):
    log = Path(backend.settings.storage).with_name("workers.log")
    return lambda: f"{backend.store.get(job)}\n{log.read_text()[-3000:] if log.exists() else ''}"


def one_row_an_item(backend, job, items):
    until(lambda: ended(backend, job), 120, explain(backend, job))
    state = backend.store.get(job)
    assert state.state == State.DONE, state
    with backend.storage.open(f"batches/{job}/results.parquet") as f:
        ids = pq.read_table(f, columns=["item_id"])["item_id"].to_pylist()
    assert ids == list(range(items))
    assert (state.counts["done"], state.counts["items"], state.counts["errors"]) == (items, items, 0)
    assert sum(backend.store.histogram(job, "labels").values()) == items
    assert not list(Path(backend.settings.storage).rglob(".*.tmp"))
    assert backend.store.redis.zcard("darkroom:leases") == 0


def kill_all_of(process: subprocess.Popen) -> None:
    """SIGKILL to a worker and everything it started, at once."""
    for pid in [process.pid, *descendants(process.pid)]:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


def test_a_worker_killed_in_a_batch_loses_nothing_when_another_runs(backend, start_worker, digits, tmp_path):
    victim, _ = start_worker(), start_worker()
    job = order_batch(backend, many(digits, tmp_path))
    until(lambda: done(backend, job) > 40, explain=explain(backend, job))
    kill_all_of(victim)
    one_row_an_item(backend, job, 360)


def test_a_worker_whose_main_process_alone_is_killed_leaves_nobody_behind(backend, start_worker, digits, tmp_path):
    victim, _ = start_worker(), start_worker()
    job = order_batch(backend, many(digits, tmp_path))
    until(lambda: done(backend, job) > 40, explain=explain(backend, job))
    family = descendants(victim.pid)
    assert family
    victim.kill()
    until(lambda: not any(alive(pid) for pid in family), 10)
    one_row_an_item(backend, job, 360)


def test_the_child_that_owns_the_device_may_be_killed_again_and_again(backend, start_worker, digits, tmp_path):
    worker = start_worker()
    job = order_batch(backend, many(digits, tmp_path))
    for goal in (40, 120, 200):
        until(lambda: done(backend, job) > goal, explain=explain(backend, job))  # noqa: B023 - called at once
        pool = descendants(worker.pid)[0]
        for child in descendants(pool):
            os.kill(child, signal.SIGKILL)
    one_row_an_item(backend, job, 360)


def test_a_worker_told_to_stop_gives_its_shard_back(backend, start_worker, digits, tmp_path):
    first = start_worker()
    job = order_batch(backend, many(digits, tmp_path))
    until(lambda: done(backend, job) > 40, explain=explain(backend, job))
    first.terminate()
    assert first.wait(20) is not None
    start_worker()
    one_row_an_item(backend, job, 360)


def test_a_message_that_was_lost_is_sent_again(backend, start_worker, digits):
    """The broker hands a message to a worker that dies before it is noted as taken: it is gone from the queue."""
    job = order_batch(backend, digits)
    assert backend.store.redis.delete("classify") == 1
    start_worker()
    one_row_an_item(backend, job, 120)


def test_every_message_sent_three_times_changes_nothing(backend, start_worker, digits):
    job = order_batch(backend, digits)
    for _ in range(2):
        send(backend.celery, "classify", job, "plan")
    start_worker()
    until(lambda: backend.store.get(job).counts.get("items"), explain=explain(backend, job))
    for first in range(0, 120, 4):
        for _ in range(2):
            send(backend.celery, "classify", job, f"{first:08d}-{first + 4:08d}")
    one_row_an_item(backend, job, 120)
    until(lambda: backend.store.redis.llen("classify") == 0)
    one_row_an_item(backend, job, 120)


def test_a_worker_frozen_past_its_lease_cannot_spoil_what_another_did(backend, start_worker, digits, tmp_path):
    zombie = start_worker()
    job = order_batch(backend, many(digits, tmp_path))
    until(lambda: done(backend, job) > 40, explain=explain(backend, job))
    family = [zombie.pid, *descendants(zombie.pid)]
    for pid in family:
        os.kill(pid, signal.SIGSTOP)
    start_worker()
    until(lambda: ended(backend, job), 120, explain(backend, job))
    for pid in family:
        os.kill(pid, signal.SIGCONT)
    time.sleep(2)  # let it try
    one_row_an_item(backend, job, 360)


def test_a_job_cancelled_while_no_worker_runs_never_starts(backend, start_worker, digits):
    job = order_batch(backend, digits)
    cancel(backend, job)
    start_worker()
    until(lambda: backend.store.redis.llen("classify") == 0)
    time.sleep(1)
    state = backend.store.get(job)
    assert (state.state, state.started) == (State.CANCELLED, None)


def test_a_running_batch_is_cancelled_and_what_was_done_stays(backend, start_worker, digits, tmp_path):
    start_worker()
    job = order_batch(backend, many(digits, tmp_path))
    until(lambda: done(backend, job) > 40, explain=explain(backend, job))
    cancel(backend, job)
    until(lambda: ended(backend, job), 20, explain(backend, job))
    assert backend.store.get(job).state == State.CANCELLED
    assert 40 < done(backend, job) < 360
    assert len(backend.storage.list(f"batches/{job}/shards")) * 4 == done(backend, job)


def test_a_running_training_is_cancelled_by_the_worker_that_has_it(backend, start_worker):
    start_worker("train")
    job = order_training(backend)
    until(lambda: backend.store.rows(job, "epochs"), explain=explain(backend, job))
    cancel(backend, job)
    until(lambda: ended(backend, job), 20, explain(backend, job))
    assert backend.store.get(job).state == State.CANCELLED
    assert backend.storage.list("models") == ["digits"]


def test_a_training_on_which_workers_are_killed_is_given_up_and_says_so(backend, start_worker):
    """The machine goes, not only the process: nobody can tell at once, so the lease runs out and another worker begins."""
    job = order_training(backend)
    for attempt in range(backend.settings.max_attempts):
        worker = start_worker("train")
        until(lambda n=attempt: attempts(backend, job) == n + 1, 60, explain(backend, job))
        kill_all_of(worker)
        worker.wait()
    start_worker("train")
    until(lambda: ended(backend, job), 60, explain(backend, job))
    state = backend.store.get(job)
    assert (state.state, state.error) == (State.FAILED, "The worker stopped answering, 3 times; the work was given up.")
    assert backend.storage.list("models") == ["digits"]


class OwnRedis:
    """A redis-server that a test may kill, with its append-only file on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"unix://{folder}/redis.sock"
        self.start()

    def start(self):
        options = ["--port", "0", "--unixsocket", f"{self.folder}/redis.sock", "--dir", str(self.folder), "--appendonly", "yes"]
        self.process = subprocess.Popen([redis_server(), *options, "--appendfsync", "always"], stdout=subprocess.DEVNULL)
        until(self.answers)

    def answers(self):
        try:
            return connect(self.url).ping()
        except redis.RedisError:
            return False

    def stop(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        self.process.wait()


@pytest.fixture
def own_redis(tmp_path):
    folder = tmp_path / "redis"
    folder.mkdir()
    server = OwnRedis(folder)
    yield server
    server.stop()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_redis_may_go_away_in_the_middle_of_a_batch(with_model, start_worker, own_redis, digits, tmp_path, how):
    settings = with_model.model_copy(update={"redis_url": own_redis.url})
    backend = Backend(settings)
    start_worker(settings=settings)
    job = order_batch(backend, many(digits, tmp_path))
    until(lambda: done(backend, job) > 40, explain=explain(backend, job))
    own_redis.stop(how)
    time.sleep(3)
    own_redis.start()
    one_row_an_item(backend, job, 360)


def test_a_training_goes_on_while_redis_is_away(with_model, start_worker, own_redis):
    settings = with_model.model_copy(update={"redis_url": own_redis.url, "lease_seconds": 60})
    backend = Backend(settings)
    start_worker("train", settings=settings)
    spec = {"dataset": "digits", "model": "slow", "pretrained": False, "image_size": 32, "epochs": 6, "batch_size": 16}
    job = submit(backend, "train", spec).id
    until(lambda: backend.store.rows(job, "epochs"), explain=explain(backend, job))
    own_redis.stop()
    time.sleep(3)
    own_redis.start()
    until(lambda: ended(backend, job), 90, explain(backend, job))
    assert backend.store.get(job).state == State.DONE
    assert [row["epoch"] for row in backend.store.rows(job, "epochs")] == list(range(1, 7))
    assert attempts(backend, job) == 1


def test_workers_are_added_in_the_middle_and_share_the_work(backend, start_worker, digits, tmp_path):
    start_worker()
    job = order_batch(backend, many(digits, tmp_path, copies=8))
    until(lambda: done(backend, job) > 20, explain=explain(backend, job))
    start_worker()
    one_row_an_item(backend, job, 960)
    workers = {backend.store.redis.hget(key, "worker") for key in backend.store.redis.scan_iter(f"darkroom:unit:{job}:*")}
    assert len(workers) == 2


def test_a_setting_of_celery_that_loses_work_stays_off():
    """With it on, the running task is lost when Redis, broker and result store in one, restarts."""
    conf = make_app("redis://127.0.0.1:1").conf
    assert conf.worker_cancel_long_running_tasks_on_connection_loss is False
    assert conf.task_acks_late is True
    assert conf.task_reject_on_worker_lost is False
    assert conf.broker_connection_max_retries is None


def test_the_same_idempotency_key_orders_once_even_when_the_web_died_in_between(backend, digits):
    spec = {"model": "digits", "source": {"kind": "folder", "path": str(digits)}}
    data = parse("classify", spec).model_copy(update={"model": "digits/v1"}).model_dump(mode="json")
    # the web wrote the ledger and was killed before it sent anything
    first = JobStore(connect(backend.settings.redis_url)).create("classify", data, "plan", "key-7")
    assert submit(backend, "classify", spec, "key-7").id == first
    assert len(backend.store.page()) == 1
    assert Storage(backend.settings.storage, backend.settings.cache).read_json(f"jobs/{first}.json")["kind"] == "classify"
