"""Real workers, real signals, real Redis: whatever dies, each item ends as exactly one row.

The oracle is the same for each: the rows are the items, the counts are right, the job has ended, nobody is left behind
(`start_worker` looks), no lease is held and no temporary file lies in the storage.
"""

import os
import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest
from conftest import alive, descendants, until
from faults import (
    OwnRedis,
    attempts,
    ended,
    explain,
    fault,
    kill_all_of,
    many,
    one_row_an_item,
    order_batch,
    order_training,
    shard_files,
    working,
)

from cli.start import environment, free_port
from shared.jobs import JobStore, State, connect
from shared.queue import make_app, send
from shared.recovery import recover
from shared.specs import parse
from shared.storage import Storage
from web import create_app
from web.backend import Backend
from web.orders import cancel, submit

pytestmark = pytest.mark.fault

# -- workers that die -------------------------------------------------------------------------------------------------

CRASHES = {
    "before its file is written": (
        "shared.results",
        """
        real = module.shard_bytes
        def shard_bytes(*args, **about):
            if once():
                kill_worker()
            return real(*args, **about)
        module.shard_bytes = shard_bytes
        """,
    ),
    "while its file is written": (
        "shared.storage",
        """
        real = module.Storage.writing
        @contextlib.contextmanager
        def writing(self, key, *args, **more):
            with real(self, key, *args, **more) as f:
                if "/shards/" in key and once():
                    f.write(b"PAR1 and no more")
                    f.flush()
                    kill_worker()
                yield f
        module.Storage.writing = writing
        """,
    ),
    "between its file and its commit": (
        "shared.storage",
        """
        real = module.Storage.write
        def write(self, key, *args, **more):
            real(self, key, *args, **more)
            if "/shards/" in key and once():
                kill_worker()
        module.Storage.write = write
        """,
    ),
    "while the results are gathered": (
        "shared.storage",
        """
        real = module.Storage.writing
        @contextlib.contextmanager
        def writing(self, key, *args, **more):
            with real(self, key, *args, **more) as f:
                if key.endswith("results.parquet") and once():
                    kill_worker()
                yield f
        module.Storage.writing = writing
        """,
    ),
}


@pytest.mark.parametrize("point", CRASHES)
def test_a_whole_worker_killed_at_any_point_of_a_shard_loses_and_repeats_nothing(backend, start_worker, digits, tmp_path, point):
    victim = start_worker(**fault(tmp_path, *CRASHES[point]))
    job = order_batch(backend, digits / "digit 0")
    assert victim.wait(60) == -signal.SIGKILL
    written = shard_files(backend, job)
    start_worker()
    one_row_an_item(backend, job, 30)
    assert shard_files(backend, job).items() >= written.items()


def test_a_worker_killed_in_a_batch_loses_nothing_when_another_runs(backend, start_worker, digits, tmp_path):
    victim, _ = start_worker(), start_worker()
    job = order_batch(backend, many(digits, tmp_path))
    working(backend, job)
    kill_all_of(victim)
    one_row_an_item(backend, job, 360)


def test_a_worker_whose_main_process_alone_is_killed_leaves_nobody_behind(backend, start_worker, digits, tmp_path):
    victim, _ = start_worker(), start_worker()
    job = order_batch(backend, many(digits, tmp_path))
    working(backend, job)
    family = descendants(victim.pid)
    assert family
    victim.kill()
    until(lambda: not any(alive(pid) for pid in family), 10)
    one_row_an_item(backend, job, 360)


def test_the_child_that_owns_the_device_may_be_killed_again_and_again(backend, start_worker, digits, tmp_path):
    worker = start_worker()
    job = order_batch(backend, many(digits, tmp_path))
    pool = None
    for goal in (40, 120, 200):
        working(backend, job, goal)
        pool = pool or descendants(worker.pid)[0]
        children = descendants(pool)
        for child in children:
            os.kill(child, signal.SIGKILL)
        until(lambda: not any(alive(pid) for pid in children), 10)  # noqa: B023 - called at once
    one_row_an_item(backend, job, 360)
    assert alive(pool)
    assert max(attempts(backend, job, name) for name in names(backend, job)) == 2
    assert backend.store.get(job).note == "Attempt 1: the process was killed (signal 9); usually the machine ran out of memory."


def names(backend, job):
    """The units of a batch that the ledger remembers."""
    return [key.decode().rpartition(":")[2] for key in backend.store.redis.scan_iter(f"darkroom:unit:{job}:*")]


def test_a_worker_whose_pool_never_answers_ends_all_the_same_when_it_is_told_to(backend, start_worker, digits, tmp_path):
    worker = start_worker()
    job = order_batch(backend, many(digits, tmp_path))
    working(backend, job)
    os.kill(descendants(worker.pid)[0], signal.SIGSTOP)
    worker.terminate()
    assert worker.wait(60) == 1
    start_worker()
    one_row_an_item(backend, job, 360)


def test_a_worker_told_to_stop_gives_its_shard_back(backend, start_worker, digits, tmp_path):
    first = start_worker()
    job = order_batch(backend, many(digits, tmp_path))
    working(backend, job)
    first.terminate()
    assert first.wait(20) is not None
    start_worker()
    one_row_an_item(backend, job, 360)


TAKEN_AND_LOST = """
    real = module.QoS.append
    def append(self, *args):
        if once():
            os.kill(os.getpid(), signal.SIGKILL)
        real(self, *args)
    module.QoS.append = append
"""


def test_a_message_taken_by_a_worker_that_dies_before_it_is_noted_is_sent_again(backend, start_worker, digits, tmp_path):
    victim = start_worker(**fault(tmp_path, "kombu.transport.redis", TAKEN_AND_LOST))
    job = order_batch(backend, digits / "digit 0")
    assert victim.wait(60) == -signal.SIGKILL
    assert (backend.store.redis.llen("classify"), backend.store.redis.hlen("unacked")) == (0, 0)  # the broker knows nothing of it
    start_worker()
    one_row_an_item(backend, job, 30)


def test_every_message_sent_three_times_before_and_after_the_end_changes_nothing(backend, start_worker, digits):
    job = order_batch(backend, digits)
    units = [f"{first:08d}-{first + 4:08d}" for first in range(0, 120, 4)]

    def send_twice(units):
        for unit in [*units, *units]:
            send(backend.celery, "classify", job, unit)

    send_twice(["plan"])
    start_worker()
    until(lambda: backend.store.get(job).counts.get("items"), explain=explain(backend, job))
    send_twice(units)
    one_row_an_item(backend, job, 120)
    written = shard_files(backend, job)
    send_twice(["plan", *units, "finish"])
    until(lambda: backend.store.redis.llen("classify") == 0)
    one_row_an_item(backend, job, 120)
    assert shard_files(backend, job) == written


def test_a_worker_frozen_past_its_lease_cannot_spoil_what_another_did(backend, start_worker, digits, tmp_path):
    zombie = start_worker()
    job = order_batch(backend, many(digits, tmp_path))
    working(backend, job)
    family = [zombie.pid, *descendants(zombie.pid)]
    for pid in family:
        os.kill(pid, signal.SIGSTOP)
    start_worker()
    one_row_an_item(backend, job, 360)
    written = shard_files(backend, job)
    for pid in family:
        os.kill(pid, signal.SIGCONT)
    time.sleep(2)  # let it try
    one_row_an_item(backend, job, 360)
    assert shard_files(backend, job) == written


def test_a_running_training_is_cancelled_by_the_worker_that_has_it(backend, start_worker):
    start_worker("train")
    job = order_training(backend)
    until(lambda: backend.store.rows(job, "epochs"), explain=explain(backend, job))
    cancel(backend, job)
    until(lambda: ended(backend, job), 20, explain(backend, job))
    assert backend.store.get(job).state == State.CANCELLED
    assert backend.storage.list("models") == ["digits"]


@pytest.mark.parametrize("how", ["killed", "told to stop"])
def test_a_training_whose_worker_is_ended_goes_on_from_its_last_epoch_on_another(backend, start_worker, how):
    worker = start_worker("train")
    job = order_training(backend, epochs=15)
    until(lambda: len(backend.store.rows(job, "epochs")) >= 3, 60, explain(backend, job))
    if how == "killed":
        kill_all_of(worker)
    else:
        worker.terminate()
    worker.wait(30)
    kept = backend.store.rows(job, "epochs")
    assert not ended(backend, job)
    start_worker("train")
    until(lambda: ended(backend, job), 120, explain(backend, job))
    rows = backend.store.rows(job, "epochs")
    assert backend.store.get(job).state == State.DONE
    assert [row["epoch"] for row in rows] == list(range(1, 16))
    assert rows[: len(kept) - 1] == kept[:-1]  # the last may have been told and not yet kept
    assert backend.storage.list("models/slow") == ["v0001"]


@pytest.mark.slow
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


# -- a Redis that goes away -------------------------------------------------------------------------------------------


@pytest.fixture
def own_redis(tmp_path):
    folder = tmp_path / "redis"
    folder.mkdir()
    server = OwnRedis(folder)
    yield server
    server.stop()


@pytest.fixture
def on_own_redis(with_model, own_redis):
    """A backend whose Redis may be killed."""
    return Backend(with_model.model_copy(update={"redis_url": own_redis.url}))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_redis_may_go_away_in_the_middle_of_a_batch(on_own_redis, start_worker, own_redis, digits, tmp_path, how):
    start_worker(settings=on_own_redis.settings)
    job = order_batch(on_own_redis, many(digits, tmp_path))
    working(on_own_redis, job)
    own_redis.stop(how)
    time.sleep(3)
    own_redis.start()
    one_row_an_item(on_own_redis, job, 360)


def test_redis_may_forget_everything_and_nothing_that_was_done_is_done_again(on_own_redis, start_worker, own_redis, digits, tmp_path):
    start_worker(settings=on_own_redis.settings)
    job = order_batch(on_own_redis, many(digits, tmp_path))
    working(on_own_redis, job)
    own_redis.stop(signal.SIGKILL)
    own_redis.forget()
    written = shard_files(on_own_redis, job)
    own_redis.start()
    assert recover(on_own_redis.store, on_own_redis.storage) == [job]
    one_row_an_item(on_own_redis, job, 360)
    assert shard_files(on_own_redis, job).items() >= written.items()


def test_a_frozen_redis_is_told_as_503_and_workers_go_on_when_it_thaws(on_own_redis, start_worker, own_redis, digits, tmp_path):
    client = create_app(on_own_redis.settings).test_client()
    worker = start_worker(settings=on_own_redis.settings)
    job = order_batch(on_own_redis, many(digits, tmp_path))
    working(on_own_redis, job)
    pool = descendants(worker.pid)[0]
    answers = []
    own_redis.process.send_signal(signal.SIGSTOP)
    asking = threading.Thread(target=lambda: answers.append(client.get(f"/api/v1/jobs/{job}")))
    asking.start()
    asking.join(15)
    own_redis.process.send_signal(signal.SIGCONT)
    assert [(answer.status_code, answer.mimetype) for answer in answers] == [(503, "application/problem+json")]
    one_row_an_item(on_own_redis, job, 360)
    assert worker.poll() is None
    assert alive(pool)


@pytest.mark.slow
def test_a_training_goes_on_while_redis_is_away(with_model, start_worker, own_redis):
    settings = with_model.model_copy(update={"redis_url": own_redis.url, "lease_seconds": 60})
    backend = Backend(settings)
    start_worker("train", settings=settings)
    job = order_training(backend, epochs=6)
    until(lambda: backend.store.rows(job, "epochs"), explain=explain(backend, job))
    own_redis.stop()
    time.sleep(3)
    own_redis.start()
    until(lambda: ended(backend, job), 90, explain(backend, job))
    assert backend.store.get(job).state == State.DONE
    assert [row["epoch"] for row in backend.store.rows(job, "epochs")] == list(range(1, 7))
    assert attempts(backend, job) == 1


def test_a_setting_of_celery_that_loses_work_stays_off():
    """With it on, the running task is lost when Redis, broker and result store in one, restarts."""
    conf = make_app("redis://127.0.0.1:1").conf
    assert conf.worker_cancel_long_running_tasks_on_connection_loss is False
    assert conf.task_acks_late is True
    assert conf.task_reject_on_worker_lost is False
    assert conf.broker_connection_max_retries is None


# -- a web that dies --------------------------------------------------------------------------------------------------


def test_the_same_idempotency_key_orders_once_even_when_the_web_died_in_between(backend, digits):
    spec = {"model": "digits", "source": {"kind": "folder", "path": str(digits)}}
    data = parse("classify", spec).model_copy(update={"model": "digits/v1"}).model_dump(mode="json")
    # the web wrote the ledger and was killed before it sent anything
    first = JobStore(connect(backend.settings.redis_url)).create("classify", data, "plan", "key-7")
    assert submit(backend, "classify", spec, "key-7").id == first
    assert len(backend.store.page()) == 1
    assert Storage(backend.settings.storage, backend.settings.cache).read_json(f"jobs/{first}.json")["kind"] == "classify"


def answer_of(method, address, **more):
    """The answer, or None while nobody gives one."""
    try:
        return httpx.request(method, address, timeout=10, **more)
    except httpx.TransportError:
        return None


def test_a_web_killed_in_the_middle_of_orders_takes_each_once(backend, start_worker, digits):
    settings = backend.settings.model_copy(update={"port": free_port("127.0.0.1")})
    address = f"http://127.0.0.1:{settings.port}"
    spec = {"model": "digits", "source": {"kind": "folder", "path": str(digits / "digit 0")}, "shard_size": 8}
    found = {f"key-{n}": [] for n in range(4)}
    over = threading.Event()

    def start_web():
        process = subprocess.Popen([sys.executable, "-m", "cli", "web"], env={**os.environ, **environment(settings)})
        until(lambda: answer_of("GET", f"{address}/healthz"))
        return process

    def keep_ordering(key):
        while not over.wait(0.01):
            if answer := answer_of("POST", f"{address}/api/v1/batches", json=spec, headers={"Idempotency-Key": key}):
                found[key].append(answer.json().get("id", answer.text))

    threads = [threading.Thread(target=keep_ordering, args=(key,)) for key in found]
    web = start_web()
    for thread in threads:
        thread.start()
    until(backend.store.page)  # the first order is in the ledger, the others are on their way
    kill_all_of(web)
    web.wait()
    heard = {key: len(ids) for key, ids in found.items()}
    web = start_web()
    until(lambda: all(len(found[key]) > n for key, n in heard.items()))
    over.set()
    for thread in threads:
        thread.join()
    kill_all_of(web)
    web.wait()
    assert all(len(set(ids)) == 1 for ids in found.values()), found
    assert {ids[0] for ids in found.values()} == {job.id for job in backend.store.page()}
    start_worker()
    for ids in found.values():
        one_row_an_item(backend, ids[0], 30)
